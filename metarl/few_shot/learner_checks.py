"""What a few-shot learner refuses, each in one line that says what is allowed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metarl.core.errors import NonFiniteError, first_line
from metarl.core.parameters import Parameters, expand_over_tasks
from metarl.core.validation import require, require_part, require_whole
from metarl.few_shot.method import Method
from metarl.few_shot.outer import OuterLoop
from metarl.few_shot.tasks import Examples, FewShotTasks

if TYPE_CHECKING:
    from metarl.few_shot.learner import FewShotLearner

_LARGEST = 16.0  # of an image that was meant to go from 0 to 1, or was normalised otherwise


def check_parts(learner: "FewShotLearner") -> None:
    """ValueError for a part that is no such part."""
    require_part("task_distribution", learner.task_distribution, "sample", "metarl.Sine()")
    example = "metarl.MAML(module, metarl.REGRESSION)"
    require(isinstance(learner.method, Method), "method", learner.method, f"one such as {example}")
    require(isinstance(learner.outer, OuterLoop), "outer", learner.outer, "one such as metarl.OuterLoop(0.001)")
    for name, has, good in (
        ("rule", "meta_parameters", "metarl.GradientDescent(0.01)"),
        ("criterion", "loss", "metarl.REGRESSION"),
        ("module", "named_parameters", "metarl.few_shot.networks.MLP((1, 40, 1))"),
    ):
        if hasattr(learner.method, name):
            require_part(name, getattr(learner.method, name), has, good)
    if learner.task_chunk is not None:
        require_whole("task_chunk", learner.task_chunk)
    if learner.compiled and learner.method.shares_theta:
        kind = type(learner.method).__name__
        raise ValueError(f"compiled = True with {kind}, whose tasks share their parameters; allowed: False")
    num_tasks, ranks = learner.num_tasks, learner.processes.world_size
    if num_tasks < ranks:
        raise ValueError(f"num_tasks = {num_tasks} on {ranks} processes; allowed: one or more on each")


def check_tasks(tasks: Any, num_tasks: int) -> None:
    """ValueError for what `sample` returned, unless it is M tasks whose support and query examples fit together."""
    if not isinstance(tasks, FewShotTasks):
        raise ValueError(f"sample returned a {type(tasks).__name__}; allowed: metarl.FewShotTasks")
    for name, examples in (("support", tasks.support), ("query", tasks.query)):
        _check_examples(name, examples)
        if len(examples.targets) != num_tasks:
            raise ValueError(f"sample({num_tasks}, ...) returned {name} examples of {len(examples.targets)} tasks")
    for name in ("inputs", "targets"):
        support, query = (getattr(of, name) for of in (tasks.support, tasks.query))
        kinds = [(tuple(of.shape[2:]), of.dtype) for of in (support, query)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"support {name} {kinds[0]} with query {name} {kinds[1]}; allowed: of one shape and type")
    if not tasks.query.targets.shape[1]:
        raise ValueError("sample returned tasks without query examples; allowed: at least one")
    _check_query_classes(tasks)


def check_support(support: Any) -> None:
    """ValueError unless these are examples of M tasks."""
    if not isinstance(support, Examples):
        raise ValueError(f"the support is a {type(support).__name__}; allowed: metarl.Examples")
    _check_examples("support", support)


def check_judged(tasks: Any) -> None:
    """ValueError unless these are tasks of the caller's whose query examples can be judged."""
    if not isinstance(tasks, FewShotTasks):
        raise ValueError(f"the tasks are a {type(tasks).__name__}; allowed: metarl.FewShotTasks")
    _check_examples("query", tasks.query)
    _check_query_classes(tasks)


def check_inputs(state: Any, inputs: Any) -> None:
    """ValueError unless these are inputs of as many tasks as a state is of."""
    _check_inputs("inputs", inputs)
    tasks = next((len(part) for part in _tensors(state)), None) if isinstance(state, dict) else None
    if inputs.ndim < 3 or (tasks is not None and len(inputs) != tasks):
        of = "" if tasks is None else f", of {tasks} tasks as the state"
        raise ValueError(f"inputs have the shape {tuple(inputs.shape)}; allowed: (task, example, ...){of}")


def check_method(learner: "FewShotLearner", tasks: FewShotTasks) -> None:
    """ValueError for a module or criterion that cannot learn tasks like these; what learning does is tried on them.

    Args:
        learner: that is being made.
        tasks: two training tasks.
    """
    method, examples = learner.method, tasks.query
    theta = expand_over_tasks(learner.state.theta, len(tasks))
    try:
        _try_twice(method, theta, tasks)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # user code may raise anything
        inputs, targets = (tuple(values.shape[1:]) for values in (examples.inputs, examples.targets))
        kind, reason = type(method.module).__name__, first_line(error)
        raise ValueError(
            f"the module {kind} cannot learn a task of inputs {inputs} and targets {targets} ({reason}); allowed: what "
            "torch.func.vmap can do and torch.autograd can differentiate as often as the method needs, without chance, "
            f"state and running statistics, with outputs that the criterion {method.criterion.name} takes"
        ) from error
    ways = getattr(learner._training_tasks, "ways", None)
    if ways is not None and not examples.targets.is_floating_point():
        outputs = _outputs(method, theta, tasks)
        if outputs.shape[-1] != ways:
            raise ValueError(
                f"the module {type(method.module).__name__} has {outputs.shape[-1]} outputs for tasks of {ways} ways; "
                "allowed: one for each"
            )


def refuse_non_finite(outputs: Tensor, metric: Tensor, inner_step: int, first_task: int, diverges: bool) -> None:
    """NonFiniteError for the first task with outputs that are not finite.

    Args:
        outputs: (M, Q, ...).
        metric: (M,).
        inner_step: after which they were computed.
        first_task: number of the first task.
        diverges: whether a metric that is not finite either says enough.
    """
    broken = outputs.reshape(len(outputs), -1).isfinite().all(dim=1).logical_not()
    if diverges:
        broken &= metric.isfinite()
    if broken.any():
        task = first_task + int(broken.nonzero()[0])
        raise NonFiniteError(f"the outputs of test task {task} after inner step {inner_step} are not finite")


def _check_examples(name: str, examples: Examples) -> None:
    inputs, targets = examples.inputs, examples.targets
    _check_inputs(f"{name} inputs", inputs)
    _require_tensor(f"{name} targets", targets)
    if inputs.ndim < 3 or targets.ndim < 2 or inputs.shape[:2] != targets.shape[:2]:
        raise ValueError(
            f"{name} inputs {tuple(inputs.shape)} with targets {tuple(targets.shape)}; allowed: (task, example, ...) "
            "for both, with as many tasks and examples"
        )
    looked_at = not targets.is_floating_point() and not targets.is_cuda and targets.numel()  # a GPU would be waited for
    if looked_at and int(targets.min()) < 0:
        raise ValueError(f"{name} targets hold the class {int(targets.min())}; allowed: 0 or more")


def _check_inputs(name: str, inputs: Any) -> None:
    """ValueError for inputs that are no tensor, or images from 0 to 255."""
    _require_tensor(name, inputs)
    if inputs.dtype == torch.uint8:
        raise ValueError(f"{name} are {inputs.dtype}; allowed: floating point, images from 0 to 1")
    if inputs.ndim == 5 and not inputs.is_cuda and inputs.numel():
        low, high = (float(value) for value in inputs[:1].aminmax())  # of one task, as training comes here often
        if low >= 0 and high > _LARGEST:
            raise ValueError(
                f"{name} are images from {low:g} to {high:g}; allowed: from 0 to 1, as images.float() / 255"
            )


def _require_tensor(name: str, values: Any) -> None:
    if not isinstance(values, Tensor):
        raise ValueError(f"{name} are a {type(values).__name__}; allowed: a tensor, such as torch.from_numpy makes")


def _check_query_classes(tasks: FewShotTasks) -> None:
    """ValueError for a query example of a class that is beyond those of the support examples."""
    support, query = tasks.support.targets, tasks.query.targets
    if query.is_floating_point() or query.is_cuda or not support.numel() or not query.numel():
        return
    if int(query.max()) > int(support.max()):
        raise ValueError(
            f"query targets hold the class {int(query.max())}; allowed: 0 to {int(support.max())}, as in the support"
        )


def _tensors(state: Any) -> Iterator[Tensor]:
    """The tensors in a state, which may be a dict of dicts."""
    for part in state.values():
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, dict):
            yield from _tensors(part)


def _try_twice(method: Method, theta: Parameters, tasks: FewShotTasks) -> None:
    """Compute a training gradient and predictions twice; ValueError if the second ones are others."""
    schedule = {name: torch.tensor(value) for name, value in method.schedule(0).items()}
    first = _outputs(method, theta, tasks)
    for name, judge in (("loss", method.criterion.loss), ("metric", method.criterion.metric)):
        if (found := judge(first, tasks.query.targets)).shape != (len(tasks),):
            raise ValueError(f"{name} has shape {tuple(found.shape)}, not one number per task")
    point = {name: value.detach().clone().requires_grad_() for name, value in theta.items()}
    method.gradient(point, tasks, schedule)
    if not torch.equal(_outputs(method, theta, tasks).nan_to_num(), first.nan_to_num()):
        raise ValueError("a second call gives other outputs")


@torch.no_grad()
def _outputs(method: Method, theta: Parameters, tasks: FewShotTasks) -> Tensor:
    """Outputs on query examples, without adaptation: states before the first inner step."""
    return method.predict(theta, method.states(theta, tasks.support, 0)[0], tasks.query.inputs)
