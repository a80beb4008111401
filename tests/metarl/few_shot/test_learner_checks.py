"""What is refused when a few-shot learner is made, or when tasks are given to it."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from metarl.core.distributed import Processes
from metarl.core.rules import GradientDescent
from metarl.few_shot.criteria import CLASSIFICATION, REGRESSION, Criterion, accuracy
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.methods.centroids import Prototypical
from metarl.few_shot.methods.gradient import MAML
from metarl.few_shot.tasks import Examples, FewShotTasks, ImageEpisodes, Sine
from tests.metarl.few_shot.learners import images, sine_learner


def line(**named):
    """A linear module on curves."""
    settings = {"task_distribution": Sine(), "method": MAML(nn.Linear(1, 1), REGRESSION), **named}
    return FewShotLearner(**settings)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"num_tasks": 0}, "num_tasks"),
        ({"num_tasks": 2.5}, "num_tasks"),
        ({"seed": 2**64}, "seed"),
        ({"seed": -1}, "seed"),
        ({"task_chunk": 0}, "task_chunk"),
        ({"outer": 0.001}, "outer"),
        ({"method": "maml"}, "method"),
        ({"method": MAML}, "method"),
        ({"method": MAML(nn.Linear(1, 1), REGRESSION, 0.1)}, "rule"),
        ({"method": MAML(nn.Linear(1, 1), "mse")}, "criterion"),
        ({"method": MAML("mlp", REGRESSION)}, "module"),
        ({"task_distribution": [1, 2]}, "task_distribution"),
        ({"task_distribution": Sine}, "task_distribution"),
        ({"num_tasks": 2, "processes": Processes(0, 3)}, "num_tasks"),
        ({"method": Prototypical(nn.Linear(1, 1), CLASSIFICATION), "compiled": True}, "compiled"),
    ],
)
def test_parts_that_are_none_are_refused_by_name(settings, name):
    with pytest.raises(ValueError, match=f"^{name} = "):
        line(**settings)


@dataclass
class Given:
    """Tasks as they are given, with another number if that is wanted."""

    support: Examples
    query: Examples
    more: int = 0

    def sample(self, num_tasks, split, rng):
        def rows(values):
            known = isinstance(values, torch.Tensor) and len(values) == 1
            return values.expand(num_tasks + self.more, *values.shape[1:]) if known else values

        return FewShotTasks(*(Examples(rows(part.inputs), rows(part.targets)) for part in (self.support, self.query)))


X, Y, LABELS = torch.ones(1, 5, 1), torch.ones(1, 5, 1), torch.arange(5).view(1, 5)
GOOD = Examples(X, Y)


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        (Given(Examples(X.numpy(), Y), GOOD), "support inputs are a ndarray"),
        (Given(GOOD, Examples(X, [1.0])), "query targets are a list"),
        (Given(Examples(X[0], Y[0]), GOOD), r"support inputs .* allowed: \(task, example, ...\)"),
        (Given(GOOD, Examples(X, Y[:, :4])), r"query inputs .* with targets"),
        (Given(GOOD, Examples(X[:, :0], Y[:, :0])), "without query examples"),
        (Given(Examples(X.to(torch.uint8), Y), Examples(X.to(torch.uint8), Y)), "inputs are torch.uint8"),
        (Given(Examples(X.double(), Y), GOOD), r"support inputs .* with query inputs"),
        (Given(Examples(X, LABELS), GOOD), r"support targets .* with query targets"),
        (Given(Examples(X.expand(1, 5, 2), Y), GOOD), r"support inputs .* with query inputs"),
        (Given(Examples(X, LABELS - 1), Examples(X, LABELS)), "hold the class -1"),
        (Given(Examples(X, LABELS), Examples(X, LABELS + 1)), r"query targets hold the class 5; allowed: 0 to 4"),
        (Given(GOOD, GOOD, more=1), r"sample\(2, ...\) returned support examples of 3 tasks"),
    ],
)
def test_tasks_that_do_not_fit_are_refused(distribution, message):
    with pytest.raises(ValueError, match=message):
        line(task_distribution=distribution)


def test_something_else_than_tasks_is_refused():
    class Pairs:
        def sample(self, num_tasks, split, rng):
            return (GOOD, GOOD)

    with pytest.raises(ValueError, match="sample returned a tuple"):
        line(task_distribution=Pairs())


def test_fewer_tasks_than_asked_for_are_refused_in_training():
    learner = sine_learner()
    learner.task_distribution.inner = Few()
    with pytest.raises(ValueError, match=r"sample\(4, ...\) returned support examples of 3 tasks"):
        learner.step()


class Few:
    def sample(self, num_tasks, split, rng):
        return Sine(4, 3).sample(num_tasks - 1, split, rng)


class Remembering(nn.Module):
    """A module whose outputs depend on how often it was called."""

    def __init__(self):
        super().__init__()
        self.linear, self.calls = nn.Linear(1, 1), 0

    def forward(self, inputs):
        self.calls += 1
        return self.linear(inputs) * self.calls


class OnceDifferentiable(nn.Module):
    """Attention, whose second derivative torch does not have on a CPU."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 8)

    def forward(self, inputs):
        hidden = self.linear(inputs).view(1, 1, -1, 8)
        return nn.functional.scaled_dot_product_attention(hidden, hidden, hidden)[0, 0, :, :1]


@pytest.mark.parametrize(
    ("module", "criterion", "reason"),
    [
        (nn.Sequential(nn.Linear(1, 1), nn.Flatten(0), nn.Unflatten(0, (-1, 1))), REGRESSION, "must be alike"),
        (nn.Sequential(nn.Linear(1, 9), nn.Dropout()), CLASSIFICATION, "randomness"),
        (nn.Sequential(nn.Linear(1, 9), nn.BatchNorm1d(9)), CLASSIFICATION, "running"),
        (nn.Linear(1, 3), CLASSIFICATION, "out of bounds"),
        (nn.Linear(2, 9), CLASSIFICATION, "size"),
        (nn.Linear(1, 9), Criterion("whole", lambda o, t: o.mean(), accuracy), "not one number per task"),
        (nn.Sequential(Remembering(), nn.Linear(1, 9)), CLASSIFICATION, "a second call gives other outputs"),
        (nn.Sequential(OnceDifferentiable(), nn.Linear(1, 9)), CLASSIFICATION, "not implemented"),
    ],
)
@pytest.mark.parametrize("num_tasks", [1, 3])
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of attention for a batch of weights
def test_a_module_that_cannot_learn_gets_one_line(module, criterion, reason, num_tasks):
    distribution = Given(Examples(X, LABELS), Examples(X, LABELS))
    with pytest.raises(ValueError, match=r"cannot learn a task of inputs \(5, 1\) and targets \(5,\)") as caught:
        FewShotLearner(distribution, MAML(module, criterion), num_tasks=num_tasks)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_one_derivative_is_enough_for_first_order():
    method = MAML(OnceDifferentiable(), REGRESSION, GradientDescent(0.1, second_order=False))
    assert FewShotLearner(Sine(), method, num_tasks=2).step()["iteration"] == 1


@pytest.mark.parametrize("outputs", [2, 6])
def test_as_many_outputs_as_ways_are_needed(outputs):
    episodes = ImageEpisodes({"train": images()}, 3, 1, 1)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))
    with pytest.raises(ValueError, match=r"6 outputs for tasks of 3 ways|out of bounds"):
        FewShotLearner(episodes, MAML(module, CLASSIFICATION))


def test_what_cannot_be_copied_is_refused():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(1, 1)
            self.kept = self.linear.weight * 2

    with pytest.raises(ValueError, match="Graph cannot be copied"):
        line(method=MAML(Graph(), REGRESSION))


def test_support_given_by_hand_is_checked():
    learner = line()
    for support, message in (
        ((X, Y), "the support is a tuple"),
        (Examples(X[0], Y[0]), r"allowed: \(task, example, ...\)"),
        (Examples(X.to(torch.uint8), Y), "torch.uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            learner.adapt(support, 1)
    with pytest.raises(ValueError, match="inner_steps"):
        learner.adapt(GOOD, -1)
    with pytest.raises(ValueError, match="num_tasks"):
        learner.sample(0, "test")


def test_other_ways_than_in_training_are_refused_for_a_network_with_a_head():
    learner = FewShotLearner(
        ImageEpisodes({"train": images()}, 3, 1, 1),
        MAML(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), CLASSIFICATION),
    )
    with pytest.raises(ValueError, match="3 outputs for tasks of 2 ways"):
        replace(learner, task_distribution=ImageEpisodes({"train": images()}, 2, 1, 1))


PICTURES = torch.rand(2, 3, 8, 8, 1)


def picture_learner():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    return FewShotLearner(ImageEpisodes({"train": images()}, 3, 1, 1), MAML(module, CLASSIFICATION))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (PICTURES * 255, r"support inputs are images from .* allowed: from 0 to 1, as images.float\(\) / 255"),
        ((PICTURES * 255).long(), "support inputs are images from"),
        ((PICTURES * 255).to(torch.uint8), "support inputs are torch.uint8"),
        (PICTURES.numpy(), "support inputs are a ndarray; allowed: a tensor, such as torch.from_numpy makes"),
        (PICTURES[0], r"support inputs .* allowed: \(task, example"),
    ],
)
def test_images_that_are_none_from_0_to_1_are_refused(inputs, message):
    labels = torch.arange(3).expand(2, 3)
    with pytest.raises(ValueError, match=message):
        picture_learner().adapt(Examples(inputs, labels), 1)


def test_images_that_were_normalised_otherwise_are_taken():
    labels = torch.arange(3).expand(2, 3)
    for inputs in (PICTURES * 1.3, 60 * (PICTURES - 0.5)):
        assert len(picture_learner().adapt(Examples(inputs, labels), 1)) == 2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (PICTURES[0], r"inputs have the shape \(3, 8, 8, 1\); allowed: \(task, example, ...\), of 2 tasks"),
        (PICTURES.expand(2, 3, 8, 8, 1)[:1], r"inputs have the shape \(1, .*, of 2 tasks as the state"),
        (PICTURES * 255, "inputs are images from"),
        (PICTURES.numpy(), "inputs are a ndarray"),
        ((PICTURES * 255).to(torch.uint8), "inputs are torch.uint8"),
    ],
)
def test_inputs_to_predict_are_checked(inputs, message):
    learner = picture_learner()
    state = learner.adapt(Examples(PICTURES, torch.arange(3).expand(2, 3)), 1)[-1]
    assert learner.predict(state, PICTURES).shape == (2, 3, 3)
    with pytest.raises(ValueError, match=message):
        learner.predict(state, inputs)


def test_query_classes_without_support_are_refused_in_evaluation():
    learner, labels = picture_learner(), torch.arange(3).expand(2, 3)
    good = FewShotTasks(Examples(PICTURES, labels), Examples(PICTURES, labels))
    assert learner.metric(good, 1).shape == (2, 2)
    for tasks, message in (
        (replace(good, query=Examples(PICTURES, labels + 5)), "query targets hold the class 7; allowed: 0 to 2"),
        (replace(good, query=Examples(PICTURES, labels - 1)), "query targets hold the class -1"),
        (replace(good, query=Examples(PICTURES[0], labels[0])), "query inputs"),
        ((good.support, good.query), "the tasks are a tuple"),
    ):
        with pytest.raises(ValueError, match=message):
            learner.metric(tasks, 1)
