"""A method of one's own is an `adapt` and a `predict`: everything else comes with it."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarl.core.parameters import ravel, unravel
from metarl.few_shot.criteria import CLASSIFICATION, accuracy
from metarl.few_shot.evaluation import evaluate
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.method import Method
from metarl.few_shot.tasks import Examples, FewShotTasks, ImageEpisodes
from tests.metarl.few_shot.learners import Doubled, image_tasks, images, one_task
from tests.probes import finite_differences


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 4)

    def forward(self, inputs):
        return torch.tanh(self.layer(inputs.flatten(1)))


@dataclass(frozen=True)
class Means(Method):
    """Classes are the means of their embeddings; a learned scale, and a scheduled one in the loss."""

    ways: int = 3
    halved_by: int = 10

    def meta_parameters(self):
        return {**super().meta_parameters(), "scale": torch.ones((), dtype=torch.float64)}

    def adapt(self, theta, support):
        own = (support.targets.unsqueeze(2) == torch.arange(self.ways)).to(torch.float64)  # (M, N, ways)
        return {"means": own.mT @ self.embed(theta, support.inputs) / own.sum(dim=1).unsqueeze(2)}

    def predict(self, theta, state, inputs):
        distances = torch.cdist(self.embed(theta, inputs), state["means"]).square()
        return -theta["scale"].view(-1, 1, 1) * distances

    def schedule(self, iteration):
        return {"share": max(0.0, 1 - iteration / self.halved_by)}

    def loss(self, theta, tasks, schedule):
        loss, metric = super().loss(theta, tasks, schedule)
        return loss * (1 + schedule["share"]), metric

    def embed(self, theta, inputs):
        return self.call({name: value for name, value in theta.items() if name != "scale"}, inputs)


def learner(**settings):
    torch.manual_seed(0)
    return FewShotLearner(image_tasks(), Means(Embedding().double(), CLASSIFICATION), **{"num_tasks": 4, **settings})


def test_its_gradient_is_the_derivative_of_its_loss():
    made = learner()
    tasks, theta = made.sample(3, "train"), made.theta
    gradients, losses, metrics = made.meta_gradient(tasks)
    point, gradient = ravel(list(theta.values())), ravel(list(gradients.values()))

    def slow(vector):
        """One task after another, without axes of tasks."""
        values, found = unravel(vector, theta), []
        scale = values.pop("scale")
        for task in range(3):
            support, query = tasks.support, tasks.query
            z, z_query = (
                functional_call(made.method.module, values, (of.inputs[task],)).detach() for of in (support, query)
            )
            means = torch.stack([z[support.targets[task] == label].mean(dim=0) for label in range(3)])
            logits = -scale * (z_query[:, None] - means).square().sum(dim=2)
            found.append(2 * nn.functional.cross_entropy(logits, query.targets[task]))
        return torch.stack(found)

    torch.testing.assert_close(losses, slow(point))
    for direction in torch.randn(4, len(point), dtype=torch.float64):
        slope = finite_differences(
            lambda t, d=direction: slow(point + t * d).mean(), torch.zeros(1, dtype=torch.float64)
        )
        torch.testing.assert_close(gradient @ direction, slope[0], rtol=1e-6, atol=1e-8)
    assert metrics.shape == (3,)


def test_it_trains_in_chunks_as_a_whole_and_is_resumed():
    first, second = learner(), learner(task_chunk=2)
    expected = [first.step() for _ in range(12)]
    assert expected[-1]["accuracy/step_0"] <= 1
    for line, other in zip(expected[:6], [second.step() for _ in range(6)], strict=True):
        assert line == pytest.approx(other)
    third = learner()
    third.load_state_dict(second.state_dict())
    assert third.step() == pytest.approx(expected[6])
    assert expected[-1]["loss"] < expected[0]["loss"]


def test_it_is_evaluated_with_other_ways_and_shots():
    made = learner()
    episodes = Doubled(ImageEpisodes({"train": images(), "test": images()}, ways=5, shots=1, queries=3))
    with pytest.raises(ValueError, match="outputs for tasks of 2 ways"):
        replace(made, task_distribution=Wrong(image_tasks()))
    evaluation = evaluate(
        replace(made, task_distribution=episodes, method=replace(made.method, ways=5)), 7, inner_steps=3
    )
    assert evaluation.per_task.shape == (1, 7)
    assert set(evaluation.metrics) == {"accuracy/step_0"}


class Wrong(Doubled):
    def __init__(self, inner):
        super().__init__(inner.inner)
        self.ways = 2


def test_the_state_of_a_task_depends_on_that_task_alone():
    made = learner()
    tasks = made.sample(3, "train")
    whole = made.predict(made.adapt(tasks.support, 0)[0], tasks.query.inputs)
    for task in range(3):
        one = one_task(tasks, task)
        torch.testing.assert_close(
            made.predict(made.adapt(one.support, 0)[0], one.query.inputs), whole[task : task + 1]
        )


@dataclass(frozen=True)
class Noisy(Examples):
    """Examples with noise of their own, as a method that draws something for each task needs it."""

    noise: Tensor = field(default_factory=lambda: torch.zeros(1))


class WithNoise:
    def __init__(self, inner):
        self.inner, self.ways = inner, inner.ways

    def sample(self, num_tasks, split, rng):
        tasks = self.inner.sample(num_tasks, split, rng)
        noise = torch.from_numpy(rng.standard_normal((num_tasks, 3)))
        return FewShotTasks(Noisy(tasks.support.inputs, tasks.support.targets, noise), tasks.query)


@dataclass(frozen=True)
class Shaken(Means):
    """Trains on tasks of another kind: with noise that is added to the logits."""

    def training_tasks(self, task_distribution):
        return WithNoise(task_distribution)

    def adapt(self, theta, support):
        noise = support.noise if isinstance(support, Noisy) else torch.zeros(len(support.targets), 3)
        return {**super().adapt(theta, support), "noise": noise}

    def predict(self, theta, state, inputs):
        return super().predict(theta, state, inputs) + state["noise"].unsqueeze(1)


def test_a_method_may_have_training_tasks_of_its_own():
    torch.manual_seed(0)
    shaken = FewShotLearner(image_tasks(), Shaken(Embedding().double(), CLASSIFICATION), num_tasks=4, task_chunk=2)
    lines = [shaken.step() for _ in range(3)]
    whole = FewShotLearner(image_tasks(), Shaken(shaken.method.module, CLASSIFICATION), num_tasks=4)
    for line in lines:
        assert line == pytest.approx(whole.step())
    assert lines[0]["loss"] != pytest.approx(learner().step()["loss"])
    assert not isinstance(shaken.sample(2, "test").support, Noisy)


def test_outputs_of_an_untrained_method_are_chance():
    made = learner()
    torch.manual_seed(0)
    tasks = made.sample(200, "test")
    noise = replace(tasks.query, inputs=torch.rand_like(tasks.query.inputs))
    outputs = made.predict(made.adapt(tasks.support, 0)[0], noise.inputs)
    assert accuracy(outputs, noise.targets).mean().item() == pytest.approx(1 / 3, abs=0.05)


def test_a_method_needs_both_functions():
    class Half(Method):
        def adapt(self, theta, support):
            return {}

    with pytest.raises(TypeError, match="predict"):
        Half(Embedding(), CLASSIFICATION)


def test_kept_numbers_are_per_task():
    evaluation = evaluate(learner(), 30, inner_steps=0)
    assert len(np.unique(evaluation.per_task)) > 1
