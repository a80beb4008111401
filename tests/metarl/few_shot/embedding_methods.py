"""Small methods that embed, in float64, one of every kind, and tasks for them."""

import torch
from torch import nn

from metarl.core.randomness import keyed_generator
from metarl.few_shot.criteria import CLASSIFICATION
from metarl.few_shot.embedding_networks import EmbeddingNet
from metarl.few_shot.methods.centroids import Prototypical, SimpleShot
from metarl.few_shot.methods.embedding import one_hot
from metarl.few_shot.methods.matching import ContextEmbeddings, FullContextMatching, Matching
from metarl.few_shot.methods.memory_module import MemoryModule
from metarl.few_shot.methods.meta_transfer import MetaTransfer
from metarl.few_shot.methods.relation import Relation, RelationNet
from metarl.few_shot.methods.ridge import RidgeRegression
from metarl.few_shot.methods.siamese import Siamese
from metarl.few_shot.methods.snail import SNAIL, SNAILNet
from metarl.few_shot.methods.statistician import NeuralStatistician, StatisticianNet, with_noise
from metarl.few_shot.tasks import Examples, FewShotTasks

SIZE, FILTERS, CLASSES = (16, 16, 1), 4, 6


def embedding(**options):
    """Conv-4 for images of 16 x 16 pixels: 4 features."""
    return EmbeddingNet(SIZE, FILTERS, **options)


def _dtype(module):
    return next(module.parameters()).dtype


def _context(module, **options):
    return FullContextMatching(
        module, CLASSIFICATION, context=ContextEmbeddings(FILTERS, reads=2).to(_dtype(module)), **options
    )


def _relation(module, **options):
    return Relation(
        module, CLASSIFICATION, relation=RelationNet((2, 2, FILTERS), FILTERS, 3).to(_dtype(module)), **options
    )


def _siamese(module, **options):
    return Siamese(module, CLASSIFICATION, comparison=nn.Linear(FILTERS, 1).to(_dtype(module)), pairs=4, **options)


def _simple_shot(module, **options):
    return SimpleShot(
        module, CLASSIFICATION, head=nn.Linear(FILTERS, CLASSES).to(_dtype(module)), batch_size=10, **options
    )


def _mtl(module, ways=3, **options):
    heads = [nn.Linear(FILTERS, count).to(_dtype(module)) for count in (CLASSES, ways)]
    steps = {"head_steps": 3, "head_step_size": 0.5}
    return MetaTransfer(module, CLASSIFICATION, head=heads[0], task_head=heads[1], batch_size=10, **steps, **options)


def _snail(module, ways=3, **options):
    network = SNAILNet(FILTERS, ways, 7, filters=3, heads=((4, 2), (3, 5), (2, 2))).to(_dtype(module))
    return SNAIL(module, CLASSIFICATION, network=network, **options)


def _memory_module(module, **options):
    projection = nn.Linear(FILTERS, 5, bias=False).to(_dtype(module))
    return MemoryModule(module, CLASSIFICATION, projection=projection, slots=20, **options)


def _statistician(module, **options):
    model = StatisticianNet(FILTERS, SIZE, context=3, latent=2, hidden=6, filters=2).to(_dtype(module))
    return NeuralStatistician(module, CLASSIFICATION, model=model, sets=4, set_size=3, halving=10, **options)


MAKERS = {
    "prototypical": lambda module, **options: Prototypical(module, CLASSIFICATION, **options),
    "matching": lambda module, **options: Matching(module, CLASSIFICATION, **options),
    "matching-cosine": lambda module, **options: Matching(
        module, CLASSIFICATION, distance="cosine", scale=10.0, **options
    ),
    "matching-fce": _context,
    "relation": _relation,
    "siamese": _siamese,
    "r2-d2": lambda module, **options: RidgeRegression(module, CLASSIFICATION, ridge=0.5, **options),
    "simple-shot": _simple_shot,
    "mtl": lambda module, **options: _mtl(module, pretraining_iterations=0, **options),
    "mtl-pretraining": lambda module, **options: _mtl(module, pretraining_iterations=2, **options),
    "snail": _snail,
    "memory-module": _memory_module,
    "statistician": _statistician,
}
ORDERED = ("matching-fce", "snail", "memory-module")  # the order of support examples has a part
LEARNED_OUTPUTS = ("snail", "mtl", "mtl-pretraining")  # of each label its own, so that a label's name has a part
BATCHES = ("simple-shot", "mtl-pretraining")  # what they are trained with
MODES = ("running", "support", "batch")


def fresh(name, batch_norm="running", module=None, dtype=torch.float64, ways=3):
    """A method with its initial parameters; `ways` is for those with an output for every class."""
    torch.manual_seed(0)
    blocks = (*EmbeddingNet.POOLED[:3], (1, 1, False)) if name == "relation" else EmbeddingNet.POOLED
    module = (module or embedding(blocks=blocks, as_map=name == "relation")).to(dtype)
    more = {"ways": ways} if name in LEARNED_OUTPUTS else {}
    return MAKERS[name](module, batch_norm=batch_norm, **more)


def scheduled(method, iteration=3):
    """The numbers of a method's schedule, as its loss takes them."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in method.schedule(iteration).items()}


def make(name, batch_norm="running", module=None, ways=3):
    """A method, and a theta without an axis of tasks in which nothing has its initial value."""
    method = fresh(name, batch_norm, module, ways=ways)
    theta = {}
    for key, value in method.meta_parameters().items():
        noise = torch.randn(value.shape, dtype=torch.float64)
        moved = value.double() + 0.2 * noise
        theta[key] = moved.abs() + 0.5 if key.endswith("variance") else moved
        if key.endswith("norm.scale") and len(value) > 1:
            theta[key][0] = -0.7  # a scale that changes the sign of its filter
    return method, theta


def tasks(count=3, ways=3, shots=2, queries=2, size=SIZE, seed=1, ordered=False):
    """Tasks of images of noise, float64, with labels in random order or in that of classes."""
    generator = torch.Generator().manual_seed(seed)

    def examples(each):
        labels = torch.arange(ways).repeat_interleave(each)
        targets = torch.stack([labels if ordered else labels[torch.randperm(ways * each)] for _ in range(count)])
        return Examples(torch.rand(count, ways * each, *size, generator=generator, dtype=torch.float64), targets)

    torch.manual_seed(seed)
    return FewShotTasks(examples(shots), examples(queries))


def training_tasks(name, count=3):
    """Tasks like those of a method's training."""
    if name == "siamese":
        return tasks(count, ways=4, shots=1, queries=1)
    if name in BATCHES:
        drawn = tasks(count, ways=CLASSES)
        return FewShotTasks(Examples(*(tensor[:, :0] for tensor in drawn.support.tensors)), drawn.query)
    drawn = tasks(count)
    if name == "statistician":
        return FewShotTasks(with_noise(drawn.support, 3, 3, 2, keyed_generator(0, "noise")), drawn.query)
    return drawn


def outputs(method, theta, support, inputs):
    """Log-probabilities (M, Q, ways) of inputs after learning from the support examples."""
    rows = {name: value.expand(len(inputs), *value.shape) for name, value in theta.items()}
    with torch.no_grad():
        return method.predict(rows, method.adapt(rows, support), inputs)


def numbered():
    """Images (6 classes, 5 examples) each of which is full of a number of its own."""
    numbers = torch.arange(CLASSES * 5, dtype=torch.uint8).view(CLASSES, 5, 1, 1, 1)
    return numbers.expand(CLASSES, 5, *SIZE).contiguous()


def features(count=7, classes=3, seed=0):
    """Features (1, N, F), their classes, of unequal size, and features of queries (1, Q, F)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(1, n, FILTERS, generator=generator, dtype=torch.float64) for n in (count, 5)]
    return drawn[0], torch.arange(count).flip(0).unsqueeze(0) % classes, drawn[1]


def predicted(method, theta, support, targets, query):
    """Log-probabilities of one task, (Q, ways), from features."""
    with torch.no_grad():
        return method.compare(theta, method.learn(theta, support, one_hot(targets)), query)[0]
