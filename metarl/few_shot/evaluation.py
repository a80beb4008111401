"""Evaluation: the metric of a few-shot learner on held-out tasks, after each inner step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from metarl.core.evaluation import Evaluation
from metarl.core.parameters import Parameters
from metarl.core.validation import require_whole
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.normalisation import batch_statistics
from metarl.few_shot.tasks import FewShotTasks

_BLOCK = 25  # tasks that are drawn together
_STATISTICS_TASKS = 100  # training tasks over which the statistics of batch norms are averaged


@dataclass(frozen=True, kw_only=True)
class FewShotEvaluation(Evaluation):
    """Metrics of query examples; `others` holds those of the method's own.

    Attributes:
        learner: that was evaluated.
        tasks: the first of the tasks, for pictures.
        statistics: of batch norms on query examples after each inner step, where fixed ones were asked for.
    """

    learner: FewShotLearner
    tasks: FewShotTasks
    statistics: Sequence[Parameters] | None = None


def evaluate(
    learner: FewShotLearner,
    num_tasks: int,
    inner_steps: int,
    split: str = "test",
    fixed_statistics: bool = False,
) -> FewShotEvaluation:
    """Adapt to every task, and judge it by its query examples after each inner step; the learner is left as it was.

    Collective: the processes take blocks of tasks in turn.

    Args:
        learner: that has been trained; `dataclasses.replace` gives it tasks with other numbers of ways or shots.
        num_tasks: M.
        inner_steps: S, inner steps.
        split: `validation`, by which settings and iterates are chosen, or `test`, on which results are reported.
        fixed_statistics: whether batch norms use statistics of training tasks on query examples, see
            `step_statistics`, instead of those of the query examples themselves.

    Raises:
        NonFiniteError: see `FewShotLearner.metric`.
    """
    require_whole("num_tasks", num_tasks)
    statistics = None
    if fixed_statistics:
        statistics = step_statistics(learner, learner.sample(_STATISTICS_TASKS, "train"), inner_steps)

    def measure(block: FewShotTasks, first_task: int) -> dict[str, Tensor]:
        metric = learner.metric(block, inner_steps, statistics, first_task)
        before = None if statistics is None else statistics[0]
        own = learner.further_metrics(block, before, first_task)
        further = {name: values.unsqueeze(0) for name, values in own.items()}
        return {learner.method.criterion.name: metric, **further}

    found = _over_blocks(learner, num_tasks, split, measure)
    name = learner.method.criterion.name
    per_task = found.pop(name)
    first = learner.sample(min(_BLOCK, num_tasks), split)
    others = {other: values[0] for other, values in found.items()}
    return FewShotEvaluation(name, per_task, others, learner=learner, tasks=first, statistics=statistics)


def step_statistics(learner: FewShotLearner, tasks: FewShotTasks, inner_steps: int) -> Sequence[Parameters]:
    """Return batch norms' statistics on query examples after 0 ... S inner steps, averaged over tasks.

    With them no query example depends on another. Deviation: MAML++ (Antoniou et al. 2019) proposes such statistics
    per step as running averages of training; here they are those of the current theta. Support examples keep their
    own, in training and test.

    Args:
        learner: that has been trained.
        tasks: training tasks.
        inner_steps: S.
    """
    ones = [tasks.of_tasks(slice(index, index + 1)) for index in range(len(tasks))]
    paths = [learner.adapt(one.support, inner_steps) for one in ones]
    return [
        batch_statistics(
            learner.method.module,
            [partial(learner.predict, path[step], one.query.inputs) for path, one in zip(paths, ones, strict=True)],
        )
        for step in range(len(paths[0]))
    ]


def _over_blocks(
    learner: FewShotLearner, num_tasks: int, split: str, measure: Callable[[FewShotTasks, int], dict[str, Tensor]]
) -> dict[str, np.ndarray]:
    """Measure the tasks of an evaluation, in blocks that the processes take in turn: (rows, M) by name."""
    starts, processes = range(0, num_tasks, _BLOCK), learner.processes
    own: dict[int, dict[str, np.ndarray]] = {}
    for number in range(processes.rank, len(starts), processes.world_size):
        size = min(_BLOCK, num_tasks - starts[number])
        measured = measure(learner.sample(size, split, number), starts[number])
        own[number] = {name: values.double().cpu().numpy() for name, values in measured.items()}
    blocks = {number: block for of_rank in processes.all_gather_objects(own) for number, block in of_rank.items()}
    return {name: np.concatenate([blocks[number][name] for number in range(len(starts))], axis=1) for name in blocks[0]}
