"""Few-shot learning: the settings that all its experiments share, and the learner built from them."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import nn

from metarl.core.rules import GradientDescent, LayerStepSizes, MetaSGD
from metarl.core.settings import SettingError, check_settings, setting
from metarl.experiments.runner.experiment import Experiment, step
from metarl.experiments.runner.flat_settings import in_flags
from metarl.experiments.runner.machine import prepare_process
from metarl.experiments.runner.settings import (
    EVALUATION,
    MACHINE,
    RUN,
    EvaluationSettings,
    MachineSettings,
    RunSettings,
    Settings,
    part,
    same_as,
    variants,
)
from metarl.few_shot.criteria import Criterion
from metarl.few_shot.evaluation import FewShotEvaluation, evaluate
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.method import Method
from metarl.few_shot.methods.gradient import MAML, FewShotReptile
from metarl.few_shot.normalisation import BatchNorm
from metarl.few_shot.outer import OuterLoop
from metarl.few_shot.tasks import FewShotDistribution
from metarl.runs import RunError

ADAPTED = ("*weight", "*bias")  # all but the shifts of batch norms, which tasks share, as in the paper's code
_HEAD = ("head.*",)


@dataclass(frozen=True)
class FirstOrder(GradientDescent):
    """MAML's first-order approximation."""

    second_order: bool = False


@dataclass(frozen=True)
class ReptileRule(GradientDescent):
    """The inner loop of Reptile, through which no gradient runs."""

    second_order: bool = False


@dataclass(frozen=True)
class ANIL(GradientDescent):
    """Gradient descent on the last layer alone."""


@dataclass(frozen=True)
class MAMLPlusPlus(LayerStepSizes):
    """Learned step sizes per tensor and step, and the multi-step loss."""

    multi_step_iterations: int = same_as(MAML, "multi_step_iterations", default=1_500, source="MAML++'s code")


@dataclass(frozen=True)
class FineTuned(GradientDescent):
    """Training takes no inner steps; gradient descent on a task comes after it."""

    inner_steps: int = 0
    second_order: bool = False


MakeModule = Callable[[], nn.Module]


class BuildsMethod(ABC):
    """Settings of a method that build it themselves."""

    @abstractmethod
    def build(self, criterion: Criterion, module: nn.Module, make: MakeModule) -> Method:
        """Return the method with its module; `make` returns a further module at each call."""


def inner_loop(settings: GradientDescent, adapted: tuple[str, ...]) -> GradientDescent:
    """The rule in the settings of a method that has more of them, for the parameters that it adapts."""
    values = {name: getattr(settings, name) for name in GradientDescent.__dataclass_fields__}
    return GradientDescent(**{**values, "adapted": adapted})


METHODS: dict[str, type[GradientDescent]] = {
    "maml": GradientDescent,
    "first-order": FirstOrder,
    "reptile": ReptileRule,
    "meta-sgd": MetaSGD,
    "anil": ANIL,
    "maml++": MAMLPlusPlus,
}


def methods(help: str, **more: type) -> Any:
    """Declare the method of an experiment: those above, and more of its own."""
    text = "how it meta-learns; maml++ learns a step size per tensor and step and weighs the losses of all steps"
    return variants("method", f"{text}; {help}", {**METHODS, **more}, "inner loop")


@dataclass(frozen=True)
class FewShotRun(RunSettings):
    """How long a run is, and how often it is recorded and saved."""

    iterations: int = same_as(RunSettings, "iterations", default=60_000)
    checkpoint_every: int = same_as(RunSettings, "checkpoint_every", default=100)
    record_every: int = setting(10, "iterations that a line of metrics averages", at_least=1)


@dataclass(frozen=True)
class Episodes:
    """The tasks of a meta-batch."""

    num_tasks: int = same_as(FewShotLearner, "num_tasks")
    shots: int = setting(1, "K, support examples of a class or curve", at_least=1)
    queries: int = setting(
        0, "query examples of a class or curve in training; 0 for as many as support", at_least=0, source="paper's code"
    )

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def training_queries(self) -> int:
        """Query examples of a class or curve in training."""
        return self.queries or self.shots


@dataclass(frozen=True)
class FewShotEvaluationSettings(EvaluationSettings):
    """How a learner is evaluated on held-out tasks."""

    every: int = same_as(EvaluationSettings, "every", default=1_000)
    num_tasks: int = same_as(EvaluationSettings, "num_tasks", default=600)
    inner_steps: int = same_as(EvaluationSettings, "inner_steps", default=10)
    shots: int = setting(
        0,
        "K of the tasks of evaluations; 0 for that of training",
        at_least=0,
        flag="evaluation_shots",
        changeable=True,
    )
    statistics: str = setting(
        "batch",
        "of batch norm on query data of evaluations: of these data, or per step of training tasks",
        choices=("batch", "per-step"),
        flag="evaluation_statistics",
        changeable=True,
        source="paper; MAML++",
    )


@dataclass(frozen=True)
class FewShotMachineSettings(MachineSettings):
    """Where a run computes, and how."""

    compiled: bool = same_as(FewShotLearner, "compiled", flag="compile", changeable=True)


@dataclass(frozen=True)
class FewShotSettings(Settings):
    """The settings of a few-shot run; experiments add a network, and declare the method again where they have more."""

    run: FewShotRun = part(FewShotRun, RUN)
    episodes: Episodes = part(Episodes, "sampling")
    method: GradientDescent = methods("anil adapts the last layer alone")
    outer: OuterLoop = part(OuterLoop, "outer loop")
    evaluation: FewShotEvaluationSettings = part(FewShotEvaluationSettings, EVALUATION)
    machine: FewShotMachineSettings = part(FewShotMachineSettings, MACHINE)

    @property
    def judged_shots(self) -> int:
        """Support examples of a class or curve in evaluations."""
        return self.evaluation.shots or self.episodes.shots


@dataclass(frozen=True)
class FewShotExperiment(Experiment):
    """An experiment whose learner is a `FewShotLearner`.

    Attributes:
        criterion: loss and metric.
        training_tasks: makes the training tasks, given the settings and the device.
        evaluation_tasks: makes the tasks of evaluations, given the settings and the training tasks.
        network: makes the module, given the settings and the training tasks.
        draw: makes pictures of an evaluation, by name.
    """

    judges_start: ClassVar[bool] = False

    criterion: Criterion = field(kw_only=True)
    training_tasks: Callable[[Any, str], FewShotDistribution] = field(kw_only=True)
    evaluation_tasks: Callable[[Any, Any], FewShotDistribution] = field(kw_only=True)
    network: Callable[[Any, Any], nn.Module] = field(kw_only=True)
    draw: Callable[[FewShotEvaluation], dict[str, Any]] | None = field(default=None, kw_only=True)

    def build(self, settings: FewShotSettings) -> FewShotLearner:
        """As of any experiment."""
        for every in (settings.run.checkpoint_every, settings.evaluation.every):
            if every % settings.run.record_every:
                flag = "--checkpoint-every" if every == settings.run.checkpoint_every else "--evaluate-every"
                multiples = f"a multiple of --record-every = {settings.run.record_every}"
                raise SettingError(f"{flag} = {every}; allowed: {multiples}")
        device = prepare_process(settings)
        tasks = self.training_tasks(settings, device)
        self.evaluation_tasks(settings, tasks)  # what evaluations need is refused now, not after training
        try:
            module = self.network(settings, tasks)
            if settings.evaluation.statistics == "per-step" and not _normalised(module):
                raise SettingError("--evaluation-statistics = per-step of a network without batch norm; allowed: batch")
            return FewShotLearner(
                tasks,
                self.build_method(settings, module, tasks),
                self.meta_batch(settings),
                replace(settings.outer, iterations=max(1, settings.run.iterations)),
                settings.run.seed,
                device,
                settings.machine.task_chunk or None,
                settings.machine.compiled,
            )
        except ValueError as error:  # settings that do not go together
            raise SettingError(in_flags(str(error), self.settings)) from error

    def build_method(self, settings: Any, module: nn.Module, training: Any) -> Method:
        """The method with its module, given the training tasks."""
        criterion = self.criterion_of(settings)
        if isinstance(settings.method, BuildsMethod):
            return settings.method.build(criterion, module, lambda: self.network(settings, training))
        rule = self.build_rule(settings)
        if isinstance(rule, ReptileRule):
            return FewShotReptile(module, criterion, rule)
        multi_step = rule.multi_step_iterations if isinstance(rule, MAMLPlusPlus) else 0
        return MAML(module, criterion, rule, multi_step)

    def criterion_of(self, settings: Any) -> Criterion:
        """Loss and metric, with what settings say of them."""
        return self.criterion

    def build_rule(self, settings: FewShotSettings) -> GradientDescent:
        """The inner loop, with the names of the parameters that it adapts."""
        return replace(settings.method, adapted=_HEAD if isinstance(settings.method, ANIL) else ADAPTED)

    def meta_batch(self, settings: Any) -> int:
        """The number of tasks in a meta-batch."""
        return settings.episodes.num_tasks

    def check_continuable(self, learner: FewShotLearner) -> None:
        """RunError for the parameters alone, which is what results keep of runs."""
        if learner.iteration and not learner.state.adam:
            raise RunError("this checkpoint holds parameters alone, without Adam's moments; allowed: to evaluate it")

    def advance(self, settings: FewShotSettings, learner: FewShotLearner) -> tuple[FewShotLearner, dict[str, float]]:
        """Train to the next multiple of `record_every`, or to the end; metrics are means over these iterations."""
        started, first, every = time.perf_counter(), learner.iteration, settings.run.record_every
        end = min((first // every + 1) * every, settings.run.iterations)
        lines = []
        while learner.iteration < end:
            learner, line = step(settings, learner, learner.num_tasks)
            lines.append(line)
        metrics = {name: sum(line[name] for line in lines) / len(lines) for name in lines[0]}
        speed = len(lines) / (time.perf_counter() - started)
        return learner, {**metrics, "iteration": learner.iteration, "iterations_per_second": speed}

    def selection_metric(self, settings: FewShotSettings, metrics: Mapping[str, float]) -> float:
        """The validation metric after as many inner steps as training takes, or one, where there is one."""
        criterion = self.criterion_of(settings)
        value = metrics.get(f"evaluation/{criterion.name}/step_{self.judged_step(settings)}")
        if value is None or math.isnan(value):
            return -math.inf
        return value if criterion.higher_is_better else -value

    def judged_step(self, settings: FewShotSettings) -> int:
        """The number of inner steps after which evaluations judge a model."""
        return min(max(1, settings.method.inner_steps), settings.evaluation.inner_steps)

    def progress_text(self, settings: FewShotSettings, metrics: Mapping[str, float]) -> str:
        """The metric in training, and speed."""
        name = self.criterion_of(settings).name
        value = metrics[f"{name}/step_{settings.method.inner_steps}"]
        return f"{name} {value:.4f}, {metrics['iterations_per_second']:.1f} iterations/s"

    def evaluate(self, settings: FewShotSettings, learner: FewShotLearner, split: str) -> FewShotEvaluation:
        """As of any experiment: the metric on tasks of a split."""
        chosen = settings.evaluation
        judged = replace(learner, task_distribution=self.evaluation_tasks(settings, learner.task_distribution))
        return evaluate(judged, chosen.num_tasks, chosen.inner_steps, split, chosen.statistics == "per-step")

    def plots(self, evaluation: FewShotEvaluation) -> dict[str, Any]:
        """As of any experiment."""
        return self.draw(evaluation) if self.draw is not None else {}

    def record(self, settings: FewShotSettings, learner: FewShotLearner) -> dict[str, Any]:
        """As of any experiment."""
        judged = {"shots": settings.judged_shots, "evaluation_tasks": settings.evaluation.num_tasks}
        return {"seed": settings.run.seed, "iteration": learner.iteration, **judged}


def _normalised(module: nn.Module) -> bool:
    return any(isinstance(layer, BatchNorm) for layer in module.modules())
