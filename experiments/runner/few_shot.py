"""What the supervised few-shot experiments share: settings, the learner built from them, evaluation, pictures."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

import metarl
from metarl.experiments.runner.configuration import SettingError, setting, with_default
from metarl.experiments.runner.experiment import Experiment, step
from metarl.experiments.runner.settings import Settings, prepare_process
from metarl.few_shot.learner import Criterion, FewShotLearner, MAMLGradient, ReptileGradient
from metarl.few_shot.networks import BatchNorm
from metarl.few_shot.tasks import FewShotDistribution, FewShotTasks
from metarl.runs import RunError

LEARNERS = ("maml", "first-order", "reptile", "meta-sgd", "anil", "maml++")
_BLOCK = 25  # tasks that are drawn together in evaluation


@dataclass(frozen=True)
class FewShotSettings:
    """Settings of a supervised few-shot run; experiments change the defaults that the paper changes."""

    seed: int = with_default(Settings, "seed", 0, "")
    iterations: int = with_default(Settings, "iterations", 60_000, "paper")
    tasks: int = with_default(Settings, "tasks", 25, "paper's code")
    learner: str = setting(
        "maml",
        "how it meta-learns; maml++ learns a step size per tensor and step and weighs the losses of all steps",
        choices=LEARNERS,
        source="paper",
    )
    shots: int = setting(1, "K, support examples of a class or curve", at_least=1, source="paper")
    queries: int = setting(
        0, "query examples of a class or curve in training; 0 for as many as support", at_least=0, source="paper's code"
    )
    inner_steps: int = with_default(Settings, "inner_steps", 1, "paper")
    inner_step_size: float = with_default(Settings, "inner_step_size", 0.01, "paper")
    later_factor: float = with_default(Settings, "later_factor", 1.0, "paper")
    multi_step_iterations: int = setting(
        1_500,
        "until then the losses of earlier inner steps count too",
        at_least=0,
        source="MAML++'s code",
        only=("learner", "maml++"),
    )
    learning_rate: float = setting(0.001, "of Adam in the outer loop", more_than=0, source="paper's code")
    final_learning_rate: float = setting(
        0.0, "where a cosine takes it by the last iteration; 0 keeps it constant", at_least=0, source="paper"
    )
    clip: float = setting(0.0, "bound on each element of the meta-gradient; 0 for none", at_least=0, source="paper")
    device: str = with_default(Settings, "device", "auto", "")
    threads: int = with_default(Settings, "threads", 0, "")
    task_chunk: int = with_default(Settings, "task_chunk", 0, "")
    shrink_chunks: bool = with_default(Settings, "shrink_chunks", False, "")
    record_every: int = setting(10, "iterations that a line of figures averages", at_least=1)
    checkpoint_every: int = with_default(Settings, "checkpoint_every", 100, "")
    evaluate_every: int = setting(
        1000, "iterations between evaluations on validation tasks; 0 for none", at_least=0, changeable=True
    )
    evaluation_tasks: int = with_default(Settings, "evaluation_tasks", 600, "paper")
    evaluation_shots: int = setting(
        0, "K of the tasks of evaluations; 0 for that of training", at_least=0, changeable=True
    )
    evaluation_steps: int = with_default(Settings, "evaluation_steps", 10, "paper")
    evaluation_statistics: str = setting(
        "batch",
        "of batch norm on query data of evaluations: of these data, or per step of training tasks",
        choices=("batch", "per-step"),
        changeable=True,
        source="paper; MAML++",
    )

    @property
    def training_queries(self) -> int:
        """Query examples of a class or curve in training."""
        return self.queries or self.shots

    @property
    def judged_shots(self) -> int:
        """Support examples of a class or curve in evaluations."""
        return self.evaluation_shots or self.shots


@dataclass(frozen=True)
class FewShotEvaluation:
    """How well a learner does on tasks that it did not train on.

    Attributes:
        name: of the figure, `mse` or `accuracy`.
        per_task: the figure after 0 ... S steps, (S + 1, M).
        learner: that was evaluated.
        tasks: a few of the tasks, for pictures.
        nearest_neighbour: the figure of a classifier's nearest neighbours, (M,), where there is one.
    """

    name: str
    per_task: np.ndarray
    learner: FewShotLearner
    tasks: FewShotTasks
    nearest_neighbour: np.ndarray | None = None

    @property
    def mean(self) -> np.ndarray:
        """Over tasks, (S + 1,)."""
        return self.per_task.mean(axis=1)

    @property
    def standard_error(self) -> np.ndarray:
        """Of the mean over tasks, (S + 1,); NaN for a single task, or where a task's figure is infinite."""
        return np.array([_standard_error(values) for values in self.per_task])

    @property
    def uncertainty(self) -> tuple[str, np.ndarray]:
        """What is shown beside the mean: half of its 95 % interval over tasks, (S + 1,)."""
        return "95 %", 1.96 * self.standard_error

    @property
    def figures(self) -> dict[str, float]:
        """Means over tasks by name, as `metrics.jsonl` and TensorBoard show them."""
        return {name: float(values.mean()) for name, values in self._measured.items()}

    @property
    def _measured(self) -> dict[str, np.ndarray]:
        """Each figure of every task, (M,), by name."""
        found = {f"{self.name}/step_{step}": values for step, values in enumerate(self.per_task)}
        nearest = self.nearest_neighbour
        return found if nearest is None else {**found, f"{self.name}/nearest_neighbour": nearest}

    def to_json(self) -> dict[str, Any]:
        """Plain data: per gradient step the mean, half of its 95 % interval, and each task; None if not finite."""

        def described(values: np.ndarray) -> dict[str, Any]:
            error = _standard_error(values)
            rounded = [round(value, 5) if math.isfinite(value) else None for value in values.tolist()]
            return {"mean": _finite(values.mean()), "interval_95": _finite(1.96 * error), "per_task": rounded}

        found = {name: described(values) for name, values in self._measured.items()}
        return found | {"evaluation_tasks": self.per_task.shape[1]}


def _standard_error(values: np.ndarray) -> float:
    if len(values) == 1:
        return math.nan
    with np.errstate(invalid="ignore"):  # many steps on a hard task may diverge
        return float(values.std(ddof=1)) / math.sqrt(len(values))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class FewShotExperiment(Experiment):
    """An experiment whose learner is a `FewShotLearner`.

    Attributes:
        distribution: the tasks of evaluations, given settings and the learner.
    """

    merit_of_start: ClassVar[bool] = False
    distribution: Any = None

    def check_continuable(self, learner: FewShotLearner) -> None:
        """RunError for the parameters alone, which is what results kept of early runs."""
        if learner.iteration and not learner.state_dict()["adam"]:
            raise RunError("this checkpoint holds parameters alone, without Adam's moments; allowed: to evaluate it")

    def advance(self, settings: Any, learner: FewShotLearner) -> dict[str, float]:
        """Train to the next multiple of `record_every`, or to the end; figures are means over these iterations."""
        started, first = time.perf_counter(), learner.iteration
        end = min((first // settings.record_every + 1) * settings.record_every, settings.iterations)
        lines = [step(settings, learner) for _ in range(end - first)]
        figures = {name: sum(line[name] for line in lines) / len(lines) for name in lines[0]}
        speed = (end - first) / (time.perf_counter() - started)
        return {**figures, "iteration": learner.iteration, "iterations_per_second": speed}

    def merit(self, settings: Any, figures: dict[str, float]) -> float:
        """The validation score after as many steps as training takes, where the figures hold one."""
        name = "accuracy" if any(key.startswith("accuracy/") for key in figures) else "mse"
        after = figures.get(f"evaluation/{name}/step_{min(settings.inner_steps, settings.evaluation_steps)}")
        return -math.inf if after is None else after if name == "accuracy" else -after

    def shown(self, settings: Any, figures: dict[str, float]) -> str:
        """Score in training, and speed."""
        [(name, value)] = [item for item in figures.items() if item[0].startswith(("mse/", "accuracy/"))]
        return f"{name} {value:.4f}, {figures['iterations_per_second']:.1f} iterations/s"

    def evaluate(self, settings: Any, learner: FewShotLearner, split: str) -> FewShotEvaluation:
        """Score after each gradient step on tasks of a split, in blocks that the processes take in turn."""
        judged = self.judged(settings, learner)
        steps, statistics = settings.evaluation_steps, None
        if settings.evaluation_statistics == "per-step":
            statistics = judged.step_statistics(judged.sample(4 * _BLOCK, "train"), steps)
        scores = over_blocks(settings, judged, split, lambda block: judged.scores(block, steps, statistics), steps + 1)
        first = judged.sample(min(_BLOCK, settings.evaluation_tasks), split)
        return FewShotEvaluation(learner.criterion.name, scores, judged, first)

    def judged(self, settings: Any, learner: FewShotLearner) -> FewShotLearner:
        """The learner on the tasks of evaluations."""
        judged = replace(learner, distribution=self.distribution(settings, learner, settings.judged_shots))
        judged.theta = learner.theta
        return judged

    def record(self, settings: Any, learner: FewShotLearner) -> dict[str, Any]:
        """Seed, iteration, and the shots of the tasks."""
        return {"seed": settings.seed, "iteration": learner.iteration, "shots": settings.judged_shots}


def over_blocks(
    settings: Any, learner: FewShotLearner, split: str, measure: Callable[[FewShotTasks], Tensor], rows: int
) -> np.ndarray:
    """Measure the tasks of an evaluation, in blocks that the processes take in turn: (rows, M)."""
    processes, found = learner.processes, np.zeros((rows, settings.evaluation_tasks))
    starts = range(0, settings.evaluation_tasks, _BLOCK)
    for number in range(processes.rank, len(starts), processes.size):
        size = min(_BLOCK, settings.evaluation_tasks - starts[number])
        block = learner.sample(size, split, number)
        found[:, starts[number] : starts[number] + size] = measure(block).cpu()
    return processes.sum(torch.from_numpy(found)).numpy()


def build_few_shot(
    settings: FewShotSettings,
    distribution: FewShotDistribution,
    make_module: Any,
    criterion: Criterion,
) -> FewShotLearner:
    """The learner of an experiment; `make_module` is called once the random seed is set."""
    for name in ("checkpoint_every", "evaluate_every"):
        if (value := getattr(settings, name)) % settings.record_every:
            flag = "--" + name.replace("_", "-")
            raise SettingError(f"{flag} = {value}; allowed: a multiple of --record-every = {settings.record_every}")
    device = prepare_process(settings)
    module: nn.Module = make_module()
    normalised = any(isinstance(part, BatchNorm) for part in module.modules())
    if settings.evaluation_statistics == "per-step" and not normalised:
        raise SettingError("--evaluation-statistics = per-step of a network without batch norm; allowed: batch")
    multi_step = settings.multi_step_iterations if settings.learner == "maml++" else 0
    return FewShotLearner(
        distribution,
        module,
        criterion,
        tasks=settings.tasks,
        rule=build_rule(settings, module),
        meta_gradient=ReptileGradient() if settings.learner == "reptile" else MAMLGradient(multi_step),
        learning_rate=settings.learning_rate,
        final_learning_rate=settings.final_learning_rate or None,
        iterations=settings.iterations,
        clip=settings.clip or None,
        seed=settings.seed,
        device=device,
        task_chunk=settings.task_chunk or None,
    )


def build_rule(settings: FewShotSettings, module: nn.Module) -> metarl.GradientDescent:
    """The inner loop; batch norm's shift is shared by all tasks, as in the paper's code."""
    kinds = {"meta-sgd": metarl.MetaSGD, "maml++": metarl.LayerStepSizes}
    kind = kinds.get(settings.learner, metarl.GradientDescent)
    adapted = ("head.*",) if settings.learner == "anil" else ("*weight", "*bias")
    return kind(
        settings.inner_step_size,
        settings.inner_steps,
        settings.learner != "first-order",
        later_factor=settings.later_factor,
        adapted=adapted,
    )
