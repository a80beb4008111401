"""Compare all meta-gradient estimators with the exact meta-gradient: `python experiments/studies/estimators.py`.

Prints a table, and writes it with a figure to runs/estimators. Bias and noise are measured on tiny
tabular tasks whose meta-gradient is known exactly (`tabular.py`), in units of its norm; cost is the time of
a meta-gradient of a 64-64 network on 10 tasks of 20 episodes of 100 steps, against that of `score`, second order.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import gymnasium
import numpy as np
import torch
from matplotlib.figure import Figure

import metarl
from metarl.core.parameters import call_per_task, expand_over_tasks, parameters_of, ravel
from metarl.core.settings import setting
from metarl.experiments.runner import plots
from metarl.experiments.runner.command_line import OneLineParser, read_plain
from metarl.experiments.runner.outputs import output_folder
from metarl.experiments.runner.training import one_line_errors
from metarl.experiments.studies import tabular, tabular_batches
from metarl.rl.action_distributions import DiagonalGaussian
from metarl.rl.episodes import Samples
from metarl.rl.estimators import ESTIMATORS, PolicyModel
from metarl.rl.objective import MetaObjective

RESULTS = Path("runs") / "estimators"


@dataclass(frozen=True)
class EstimatorSettings:
    """Measure bias, noise and cost of every meta-gradient estimator against the exact meta-gradient."""

    step_size: float = setting(1.5, "of the inner loop, on returns per time step", more_than=0)
    episodes: int = setting(5, "per task, before and after the inner step", at_least=1, at_most=10)
    groups: int = setting(30, "of 1,000 repetitions, for the bias", at_least=2)
    estimates: int = setting(300, "single meta-gradients of 20 tasks, for the noise", at_least=2)
    repeats: int = setting(5, "timings of each estimator", at_least=1)
    seed: int = setting(0, "names all randomness", at_least=0)


@dataclass(frozen=True)
class Variant:
    """What a meta-gradient is made of.

    Attributes:
        estimator: name of the inner loss.
        order: first or second.
        sampling: whether E-MAML's sampling term is in it.
    """

    estimator: str
    order: str
    sampling: bool = False

    @property
    def name(self) -> str:
        """As table and figure show it."""
        return f"{self.estimator}, {self.order}" + (", E-MAML" if self.sampling else "")

    def rule(self, step_size: float, steps: int = 1) -> metarl.GradientDescent:
        """Its inner loop."""
        return metarl.GradientDescent(step_size, steps, self.order == "second")

    def gradient(self, batch: tabular_batches.Batch, step_size: float, steps: int = 1) -> np.ndarray:
        """Its meta-gradient on a batch."""
        return batch.meta_gradient(ESTIMATORS[self.estimator], self.rule(step_size, steps), self.sampling)


VARIANTS = [
    Variant("score", "second", sampling=True),
    *(Variant(estimator, "second") for estimator in reversed(ESTIMATORS)),
    Variant("score", "first", sampling=True),
    *(Variant(estimator, "first") for estimator in reversed(ESTIMATORS)),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = OneLineParser(EstimatorSettings.__doc__ or "")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="where table and figure go")
    with one_line_errors():
        words = sys.argv[1:] if arguments is None else arguments
        namespace, settings = read_plain(EstimatorSettings, words, parser)
        output = output_folder(namespace.output)
        torch.set_num_threads(1)
        columns = [bias(settings), noise(settings), limits(settings), cost(settings)]
        rows = [{key: part[v.name][key] for part in columns for key in part[v.name]} for v in VARIANTS]
        result = {"settings": asdict(settings), "rows": {v.name: row for v, row in zip(VARIANTS, rows, strict=True)}}
        print(table(result["rows"], settings))
        output.mkdir(parents=True, exist_ok=True)
        plots.save_json(output / "estimators.json", result)
        figure(result["rows"]).savefig(output / "estimators.png", dpi=120)
        print(f"estimators.json and estimators.png in {output}")


Columns = dict[str, dict[str, float]]


def bias(settings: EstimatorSettings) -> Columns:
    """|expectation - truth| / |truth| for one inner step: as theory has it, and by Monte Carlo over support data.

    The same support data serve all estimators; the expectation over query data is exact. `distance` is how far the
    Monte Carlo mean is from theory, and `half_width` how far 95 % of correct means are at most, about.
    """
    truth = tabular.exact_gradient(settings.step_size, 1, settings.episodes)
    rng, rule = np.random.default_rng([settings.seed, 0]), metarl.GradientDescent(settings.step_size)
    found: dict[str, list[np.ndarray]] = {variant.name: [] for variant in VARIANTS}
    for _ in range(settings.groups):
        batch = tabular_batches.sampled(rule, settings.episodes, 1000, rng, query=None)
        for variant in VARIANTS:
            found[variant.name].append(variant.gradient(batch, settings.step_size))
    columns, unit = {}, np.linalg.norm(truth)
    for variant in VARIANTS:
        kind = ESTIMATORS[variant.estimator] if variant.order == "second" else None
        theory = tabular.theoretical_gradient(settings.step_size, 1, settings.episodes, kind, variant.sampling)
        mean = np.mean(found[variant.name], axis=0)
        error = np.std(found[variant.name], axis=0, ddof=1) / np.sqrt(settings.groups)
        columns[variant.name] = {
            "bias": float(np.linalg.norm(theory - truth) / unit),
            "bias_measured": float(np.linalg.norm(mean - truth) / unit),
            "distance": float(np.linalg.norm(mean - theory) / unit),
            "half_width": float(1.96 * np.linalg.norm(error) / unit),
        }
    return columns


def noise(settings: EstimatorSettings) -> Columns:
    """Root of the summed variances of one meta-gradient of 20 tasks, in units of the truth's norm."""
    truth = tabular.exact_gradient(settings.step_size, 1, settings.episodes)
    rng, rule = np.random.default_rng([settings.seed, 1]), metarl.GradientDescent(settings.step_size)
    found: dict[str, list[np.ndarray]] = {variant.name: [] for variant in VARIANTS}
    for _ in range(settings.estimates):
        batch = tabular_batches.sampled(rule, settings.episodes, 10, rng, query=settings.episodes)
        for variant in VARIANTS:
            found[variant.name].append(variant.gradient(batch, settings.step_size))
    return {
        name: {"std": float(np.sqrt(np.var(all_, axis=0, ddof=1).sum()) / np.linalg.norm(truth))}
        for name, all_ in found.items()
    }


def limits(settings: EstimatorSettings) -> Columns:
    """Bias by enumeration, exact: of single support episodes and of infinitely many, for one to three inner steps."""
    columns: Columns = {variant.name: {} for variant in VARIANTS}
    for episodes, steps in ((1, 1), (1, 2), (1, 3), (None, 1), (None, 2), (None, 3)):
        truth = tabular.exact_gradient(settings.step_size, steps, episodes)
        batch = tabular_batches.enumerated(metarl.GradientDescent(settings.step_size, steps), episodes)
        for variant in VARIANTS:
            if variant.sampling and episodes is None:
                continue  # a sum over episodes has no limit
            error = variant.gradient(batch, settings.step_size, steps) - truth
            key = f"bias_{'infinite' if episodes is None else episodes}_episodes_{steps}_steps"
            columns[variant.name][key] = float(np.linalg.norm(error) / np.linalg.norm(truth))
    return columns


def cost(settings: EstimatorSettings) -> Columns:
    """Median time of a meta-gradient, in that of `score`, second order; estimators take turns."""
    objectives = {variant.name: _large_objective(variant) for variant in VARIANTS}
    seconds: dict[str, list[float]] = {variant.name: [] for variant in VARIANTS}
    for _ in range(settings.repeats):
        for name, objective in objectives.items():
            vector = ravel(list(objective.like.values()))
            started = time.perf_counter()
            objective.loss_and_gradient(vector)
            seconds[name].append(time.perf_counter() - started)
    unit = median(seconds["score, second"])
    return {name: {"time": median(times) / unit} for name, times in seconds.items()}


def _large_objective(variant: Variant) -> MetaObjective:
    """A meta-objective of the size of real ones, on made-up samples."""
    torch.manual_seed(0)
    tasks, steps, episodes, observations, actions = 10, 100, 20, 17, 6
    spaces = gymnasium.spaces.Box(-1, 1, (observations,)), gymnasium.spaces.Box(-1, 1, (actions,))
    policy, family = metarl.GaussianMLP(*spaces, (64, 64), "tanh"), DiagonalGaussian(spaces[1])
    theta = parameters_of(policy)

    def draw() -> Samples:
        inputs = torch.randn(tasks, steps * episodes, observations)
        with torch.no_grad():
            outputs = call_per_task(policy, expand_over_tasks(theta, tasks), inputs)
        taken = family.sample(outputs, torch.randn(tasks, steps * episodes, actions))
        weights = torch.full(inputs.shape[:2], 1 / (steps * episodes))
        advantages = torch.randn(inputs.shape[:2])
        return Samples(inputs, taken, outputs, family.log_prob(outputs, taken), advantages, weights, steps)

    returns = torch.randn(tasks) if variant.sampling else None
    model = PolicyModel(policy, family, ESTIMATORS[variant.estimator])
    support, query = draw(), draw()
    return MetaObjective(model, variant.rule(0.1), theta, [support], {1: query}, {1: 1.0}, chunk=8, outcomes=returns)


def table(rows: Columns, settings: EstimatorSettings) -> str:
    """The rows as text; biases in units of the exact meta-gradient."""
    heads = [
        f"exact, E = {settings.episodes}",
        "measured (95 %)",
        "E = 1",
        "E = inf",
        "E = inf, S = 3",
        "std",
        "time",
    ]
    lines = [f"{'bias, after one inner step (S = 1)':36}" + "".join(f"{head:>18}" for head in heads)]
    keys = ["bias_1_episodes_1_steps", "bias_infinite_episodes_1_steps", "bias_infinite_episodes_3_steps"]
    for name, row in rows.items():
        cells = [f"{row['bias']:.4f}", f"{row['bias_measured']:.4f} +- {row['half_width']:.4f}"]
        cells += [f"{row[key]:.4f}" if key in row else "-" for key in keys]
        cells += [f"{row['std']:.3f}", f"{row['time']:.2f}"]
        lines.append(f"{name:36}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def figure(rows: Columns) -> Figure:
    """Bars of bias, noise and cost."""
    drawing = Figure(figsize=(11, 4), layout="constrained")
    panels = drawing.subplots(1, 3, sharey=True)
    titles = {
        "bias": "exact bias / |exact meta-gradient|",
        "std": "standard deviation / |exact meta-gradient|",
        "time": "time / that of score, second",
    }
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        colors = ["tab:blue" if "second" in name else "0.6" for name in rows]
        axes.barh(list(rows), [row[key] for row in rows.values()], color=colors)
        axes.set_title(title, fontsize=10)
        if key == "bias":
            measured, widths = ([row[k] for row in rows.values()] for k in ("bias_measured", "half_width"))
            axes.errorbar(measured, list(rows), xerr=widths, fmt="k.", capsize=3, label="measured, 95 %")
            axes.legend(fontsize=8)
    panels[0].invert_yaxis()
    return drawing


if __name__ == "__main__":
    main()
