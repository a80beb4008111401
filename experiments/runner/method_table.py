"""All few-shot methods of the project, for the table of them in `docs/guides/few_shot_methods.md`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MethodEntry:
    """A method, and the recipe that stands for it.

    Attributes:
        name: of the method.
        adapts: what a task changes.
        passes: what `predict` gets of the support examples.
        script: of the experiment, without its ending.
        recipe: that stands for the method, and whose row of results is shown; empty for a method without one.
        flag: the method's name on the command line, where there is no recipe.
        metric: of the row, such as `accuracy/instance_2`; empty for that after the inner steps which training judges.
        published: where the recipe does not say it.
    """

    name: str
    adapts: str
    passes: str
    script: str
    recipe: str = ""
    flag: str = ""
    metric: str = ""
    published: tuple[float, ...] = ()


PHI, ALL, NOTHING = "the adapted parameters", "all weights and biases", "nothing"
OMNIGLOT, MINI, SINE = "omniglot", "mini_imagenet", "sine"

FAMILIES: dict[str, tuple[MethodEntry, ...]] = {
    "gradient": (
        MethodEntry("MAML", ALL, PHI, OMNIGLOT, "5-way 1-shot"),
        MethodEntry("MAML, regression", ALL, PHI, SINE, "maml"),
        MethodEntry("first-order MAML", ALL, PHI, MINI, "5-way 1-shot, first-order"),
        MethodEntry("Reptile", ALL, PHI, OMNIGLOT, flag="reptile"),
        MethodEntry("Meta-SGD", f"{ALL}, by learned step sizes", PHI, OMNIGLOT, flag="meta-sgd"),
        MethodEntry("ANIL", "the last layer", PHI, OMNIGLOT, flag="anil"),
        MethodEntry("Proto-MAML", f"{ALL}; the last layer from class means", PHI, OMNIGLOT, "5-way 1-shot, Proto-MAML"),
        MethodEntry("MAML++", f"{ALL}, by learned step sizes", PHI, OMNIGLOT, "5-way 1-shot, MAML++"),
    ),
    "metric": (
        MethodEntry("prototypical networks", NOTHING, "class means", OMNIGLOT, "5-way 1-shot, prototypical"),
        MethodEntry("matching networks", NOTHING, "embeddings and labels", OMNIGLOT, "5-way 1-shot, matching"),
        MethodEntry(
            "matching networks, full context embeddings",
            NOTHING,
            "embeddings that know each other, and labels",
            OMNIGLOT,
            "5-way 1-shot, matching-fce",
        ),
        MethodEntry("relation networks", NOTHING, "mean map of each class", OMNIGLOT, "5-way 1-shot, relation"),
        MethodEntry("Siamese networks", NOTHING, "embeddings and labels", OMNIGLOT, "5-way 1-shot, siamese"),
    ),
    "closed form": (
        MethodEntry("R2-D2", "the last layer, by ridge regression", "the last layer", OMNIGLOT, "5-way 1-shot, r2-d2"),
    ),
    "memory": (
        MethodEntry(
            "MANN, second instance",
            "an LSTM's state and a memory",
            "memory, its weights and the last label",
            OMNIGLOT,
            "5-way, mann",
            metric="accuracy/instance_2",
            published=(0.828,),
        ),
        MethodEntry(
            "LSTM, second instance",
            "an LSTM's state",
            "that state",
            OMNIGLOT,
            "5-way, mann-lstm",
            metric="accuracy/instance_2",
            published=(0.495,),
        ),
        MethodEntry("memory module", "keys, classes and ages of slots", "the same", OMNIGLOT, "5-way, memory-module"),
        MethodEntry("SNAIL", "nothing: the support is context", "its tokens", OMNIGLOT, "5-way 1-shot, snail"),
        MethodEntry(
            "meta networks",
            "fast weights, of their own for every query image",
            "keys and fast weights of each support image",
            OMNIGLOT,
            "5-way 1-shot, metanet",
        ),
        MethodEntry(
            "neural statistician",
            "mean and variance of each class's context",
            "the same",
            OMNIGLOT,
            "5-way, neural-statistician",
        ),
    ),
    "learned optimisers": (
        MethodEntry("LSTM meta-learner", f"{ALL}, by learned gates", PHI, OMNIGLOT, "5-way 1-shot, LSTM meta-learner"),
        MethodEntry(
            "learning to learn by gradient descent by gradient descent",
            "the coordinates of a function, by an LSTM",
            "the coordinates",
            "optimiser",
            "lstm",
        ),
        MethodEntry(
            "the same, on small classifiers",
            "the weights of a classifier, by an LSTM",
            "the weights",
            "optimiser",
            "lstm, classifiers",
        ),
    ),
    "subspaces": (
        MethodEntry("T-net", f"{ALL}, not the matrices behind them", PHI, SINE, "t-net, frequencies"),
        MethodEntry("MT-net", "the rows of units that a mask lets move", PHI, SINE, "mt-net, frequencies"),
    ),
    "implicit": (MethodEntry("iMAML", f"{ALL}, held near theta", PHI, OMNIGLOT, "5-way 1-shot, iMAML"),),
    "uncertainty": (
        MethodEntry("EMAML", "the parameters of several networks", "the networks", SINE, "emaml, 100 curves"),
        MethodEntry(
            "Bayesian MAML", "particles that repel each other, and their precisions", "them", SINE, "bmaml, 100 curves"
        ),
        MethodEntry(
            "PLATIPUS", "networks drawn from a learned distribution", "the networks", SINE, "platipus, sines and lines"
        ),
        MethodEntry("LLAMA", f"{ALL}, and a Gaussian about them", "both, as samples", SINE, "llama, half the range"),
    ),
    "transfer": (
        MethodEntry(
            "classifier of all training classes, fine-tuned",
            f"a new last layer, and {ALL}",
            PHI,
            OMNIGLOT,
            "5-way 1-shot, classifier",
        ),
        MethodEntry("SimpleShot", NOTHING, "means of centred features", OMNIGLOT, "5-way 1-shot, simple-shot"),
        MethodEntry(
            "head on frozen features, from a learned start",
            "the last layer",
            "the last layer",
            OMNIGLOT,
            "5-way 1-shot, MTL without scales",
        ),
        MethodEntry(
            "meta-transfer learning",
            "the last layer, on features with learned scales and shifts",
            "the last layer",
            OMNIGLOT,
            "5-way 1-shot, MTL",
        ),
    ),
}

INSTANCES = (1, 2, 3, 5, 10)  # of a class in a sequence
PUBLISHED_INSTANCES = {  # Santoro et al. 2016
    "5-way, mann": (0.364, 0.828, 0.910, 0.949, 0.981),
    "5-way, mann-lstm": (0.244, 0.495, 0.553, 0.636, 0.625),
}
