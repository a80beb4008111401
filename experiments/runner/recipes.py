"""The methods of the paper's reinforcement-learning figures, and those that are compared with them, as flags."""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Method:
    """One line of a figure.

    Attributes:
        flags: of the experiment's script.
        published: the paper's mean return after 0, 1, ... gradient steps.
        trained: whether there is anything to train.
        then: iterations, in order, each with flags for those after it.
    """

    flags: str = ""
    published: tuple[float, ...] = ()
    trained: bool = True
    then: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Reproduction:
    """What is run on one environment.

    Attributes:
        paper: the methods of the paper's figure by name, `maml` among them.
        comparison: other meta-learners by name, at the same environment steps as `maml`.
    """

    paper: dict[str, Method]
    comparison: dict[str, Method] = field(default_factory=dict)

    @property
    def methods(self) -> dict[str, Method]:
        """All methods by name."""
        return {**self.paper, **self.comparison}


PRETRAINED, RANDOM = "--inner-steps 0 --inner-step-size", "--iterations 1 --inner-step-size"
HALVED = "--later-factor 0.5"  # published returns that go on changing after one step had no factor of 0.01
ORACLE = "--inner-steps 0 --observe-task --evaluation-steps 0"
PENALTY = "--bounds-penalty 0.05"

CONTEXT = "--adaptation cavia"  # the paper's context vector, whose learned start the first layer's bias can stand for
GAE = {"first-order, GAE 0.95": Method("--order first --gae-lambda 0.95")}
SHORT_COMPARISON = {"maml, lvc": Method("--estimator lvc"), "first-order": Method("--order first"), **GAE}
NAVIGATION = {  # later factors, of these as of others: the best on other tasks than the test tasks
    "maml, later factor 0.3": Method("--later-factor 0.3"),
    "lvc, small batches": Method(
        "--estimator lvc --gae-lambda 0.95 --tasks 5 --iterations 400 --evaluate-every 100 --inner-step-size 0.1 "
        "--later-factor 0.4"
    ),
    "lvc, small batches, multi-step": Method(
        "--estimator lvc --gae-lambda 0.95 --tasks 5 --iterations 260 --evaluate-every 100 --inner-step-size 0.1 "
        "--inner-steps 3 --adaptation layer-step-sizes --multi-step"
    ),
}


def small_batches(tasks: int, iterations: int, more: str = "", steps: dict[int, float] | None = None) -> Method:
    """More updates from as many environment steps: a part of the paper's tasks in each, and more iterations.

    As the deviation of a policy falls, an inner gradient's noise moves it further: `steps` are the sizes of inner steps
    after some iterations.
    """
    flags = f"--order first --gae-lambda 0.95 --support-lambda 0.8 --max-kl 0.02 --tasks {tasks}"
    then = tuple((iteration, f"--inner-step-size {size}") for iteration, size in (steps or {}).items())
    return Method(f"{flags} --iterations {iterations} --evaluate-every 250 {more}".strip(), then=then)


def quadratic(methods: dict[str, Method]) -> dict[str, Method]:
    """The same methods with products of observations in the baseline."""
    return {f"{name}, quadratic": replace(of, flags=f"{of.flags} --baseline quadratic") for name, of in methods.items()}


COMPARISON = {
    "exact products": Method("--product-fraction 1"),
    **SHORT_COMPARISON,
    **quadratic(GAE),
    "ProMP": Method("--estimator likelihood-ratio --outer ppo"),
    "DiCE": Method("--estimator dice"),
    "E-MAML": Method("--initial-sampling"),
    "Meta-SGD": Method("--adaptation meta-sgd"),
    "ANIL": Method("--adaptation anil"),
}

SMALL = "first-order, small batches"
CHEETAH = {SMALL: small_batches(8, 500, "--later-factor 0.2")}
SHORTER = ("--inner-step-size 0.03", {600: 0.02, 900: 0.01})  # of half-cheetah velocity
FIGURES = {
    "navigation_2d": Reproduction(
        {
            "maml": Method("", (-40.41, -11.68, -3.33, -3.23)),
            "pretrained": Method(f"{PRETRAINED} 0.5 --outer adam", (-40.81, -19.73, -11.72, -8.48)),
            "random": Method(f"{RANDOM} 0.5", (-82.66, -57.96, -53.84, -46.81), trained=False),
            "oracle": Method(ORACLE, (-2.29,)),
            "context vector": Method(CONTEXT, (-42.42, -13.90, -5.17, -3.18)),
        },
        {**NAVIGATION, **COMPARISON},
    ),
    "half_cheetah_direction": Reproduction(
        {
            "maml": Method("", (-50.69, 293.19, 313.48, 315.65)),
            "pretrained": Method(f"{PRETRAINED} 0.2", (-43.03, -24.75, -12.85, 19.57)),
            "random": Method(f"{RANDOM} 1.0", (-35.74, 21.83, 62.32, 86.19), trained=False),
            "oracle": Method(ORACLE, (442.69,)),
            "context vector": Method(CONTEXT, (-40.49, -44.08, -38.27, -42.50)),
        },
        {
            **COMPARISON,
            "maml, bounds penalty": Method(PENALTY),
            "maml, lvc, bounds penalty": Method(f"--estimator lvc {PENALTY}"),
            **CHEETAH,
            **quadratic(CHEETAH),
            f"{SMALL}, quadratic, bounds penalty": small_batches(
                8, 500, f"--later-factor 0.2 --baseline quadratic {PENALTY}"
            ),
        },
    ),
    "half_cheetah_velocity": Reproduction(
        {
            "maml": Method("", (-129.53, -78.57, -66.62, -60.78)),
            "pretrained": Method(f"{PRETRAINED} 0.02", (-158.00, -135.39, -128.47, -133.61)),
            "random": Method(f"{RANDOM} 0.1", (-254.83, -254.33, -246.79, -230.83), trained=False),
            "oracle": Method(ORACLE, (-54.47,)),
        },
        {
            **SHORT_COMPARISON,
            **quadratic(GAE),
            SMALL: small_batches(20, 950, "--later-factor 0.3"),
            f"{SMALL}, shorter inner steps": small_batches(10, 1900, *SHORTER),
            f"{SMALL}, shorter inner steps, longer": small_batches(10, 2850, *SHORTER),
        },
    ),
    "ant_velocity": Reproduction(
        {
            "maml": Method("", (30.58, 96.74, 100.06, 101.41)),
            "pretrained": Method(f"{PRETRAINED} 0.2", (-1.83, 6.11, 8.48, 9.47)),
            "random": Method(f"{RANDOM} 1.0", (-78.64, -62.81, -48.55, -35.57), trained=False),
            "oracle": Method(ORACLE, (107.89,)),
        },
        {
            **SHORT_COMPARISON,
            SMALL: small_batches(20, 750),
            f"{SMALL}, survival bonus": small_batches(20, 750, "--survival-bonus 2", {252: 0.06}),
        },
    ),
    "ant_direction": Reproduction(
        {
            "maml": Method("", (8.66, 499.15, 500.68, 499.11)),
            "pretrained": Method(f"{PRETRAINED} 0.2 {HALVED}", (3.16, 1.27, 6.51, 6.87)),
            "random": Method(f"{RANDOM} 1.0 {HALVED}", (3.11, 9.25, 15.96, 26.12), trained=False),
            "oracle": Method(ORACLE, (524.80,)),
        },
        {
            **SHORT_COMPARISON,
            SMALL: small_batches(8, 2875),
            f"{SMALL}, shorter inner steps": small_batches(8, 2875, steps={1964: 0.05, 2368: 0.035}),
            f"{SMALL}, two tasks": small_batches(
                tasks=2,
                iterations=11500,
                more="--survival-bonus 2 --evaluate-every 1000",
                steps={300: 0.06, 417: 0.04, 530: 0.025, 1163: 0.015, 2500: 0.01},
            ),
            f"{SMALL}, two tasks, bounds penalty": small_batches(
                tasks=2,
                iterations=11500,
                more=f"--survival-bonus 2 {PENALTY} --evaluate-every 1000",
                steps={200: 0.06, 300: 0.04, 420: 0.03, 560: 0.02, 800: 0.015},
            ),
        },
    ),
}
