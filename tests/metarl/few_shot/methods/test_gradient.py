"""Gradient methods against slow oracles in float64: finite differences, loops over tasks, torch's own optimiser."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from metarl.core.parameters import ravel, unravel
from metarl.core.rules import GradientDescent
from metarl.few_shot.criteria import CLASSIFICATION, REGRESSION
from metarl.few_shot.evaluation import step_statistics
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.methods.gradient import MAML, Classifier, FewShotReptile
from metarl.few_shot.networks import MLP, ConvNet
from metarl.few_shot.tasks import Examples, FewShotTasks
from tests.metarl.few_shot.learners import (
    RULES,
    Smooth,
    image_learner,
    image_tasks,
    one_task,
    rule_for,
    sine_learner,
)
from tests.probes import finite_differences


def query_losses(method, theta, tasks, weights):
    """The slow way to the training loss, (M,): one task at a time, each inner step by plain autograd."""
    losses = []
    for task in range(len(tasks)):
        one = one_task(tasks, task)
        path = method.states({name: value.detach().unsqueeze(0) for name, value in theta.items()}, one.support, 2)
        after = [method.criterion.loss(method.call(phi, one.query.inputs), one.query.targets) for phi in path]
        losses.append(sum(weight * after[step] for step, weight in weights.items()))
    return torch.cat(losses).detach()


@pytest.mark.parametrize("multi_step", [0, 10])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("make", [image_learner, sine_learner])
def test_second_order_meta_gradient_is_the_derivative(make, name, multi_step):
    learner = make(rule_for(name, make), more=(multi_step,))
    tasks, theta = learner.sample(3, "train"), learner.theta
    weights = learner.method.schedule(0)
    assert weights == ({1: 0.5, 2: 0.5} if multi_step else {2: 1})
    gradients, _, _ = learner.meta_gradient(tasks)
    point, gradient = ravel(list(theta.values())), ravel(list(gradients.values()))
    torch.manual_seed(1)
    random = torch.randn(3, len(point), dtype=torch.float64)
    for direction in (*torch.eye(len(point), dtype=torch.float64)[:: len(point) // 4], *random):
        slope = finite_differences(
            lambda t, d=direction: query_losses(learner.method, unravel(point + t * d, theta), tasks, weights).mean(),
            torch.zeros(1, dtype=torch.float64),
        )
        torch.testing.assert_close(gradient @ direction, slope[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("make", [image_learner, sine_learner])
def test_first_order_meta_gradient_is_the_gradient_at_the_adapted_parameters(make):
    learner = make(GradientDescent(0.3, 2, second_order=False))
    tasks, method = learner.sample(3, "train"), learner.method
    gradients = ravel(list(learner.meta_gradient(tasks)[0].values()))
    phi = learner.adapt(tasks.support, 2)[-1]

    def query_loss(vector):
        moved = {name: phi[name] + change for name, change in unravel(vector, learner.theta).items()}
        return method.criterion.loss(method.call(moved, tasks.query.inputs), tasks.query.targets).mean().detach()

    expected = finite_differences(query_loss, torch.zeros(len(gradients), dtype=torch.float64))
    torch.testing.assert_close(gradients, expected, rtol=1e-6, atol=1e-8)
    other = ravel(list(make(GradientDescent(0.3, 2)).meta_gradient(tasks)[0].values()))
    assert not torch.allclose(other, gradients, rtol=1e-2)


def test_the_gradient_in_two_parts_is_that_of_the_loss():
    learner = image_learner(RULES["meta-sgd"])
    tasks = learner.sample(3, "train")
    theta = {name: value.expand(3, *value.shape).clone().requires_grad_() for name, value in learner.theta.items()}
    last = {2: torch.tensor(1.0, dtype=torch.float64)}
    found, expected = (
        learner.method.gradient(theta, tasks, last),
        super(MAML, learner.method).gradient(theta, tasks, last),
    )
    torch.testing.assert_close(found, expected)


def test_reptile_moves_to_the_mean_of_the_adapted_parameters():
    learner = sine_learner(GradientDescent(0.1, 3), kind=FewShotReptile)
    tasks = learner.sample(3, "train")
    gradients, _, _ = learner.meta_gradient(tasks)
    for name, value in learner.theta.items():
        ends = []
        for task in range(3):
            one = one_task(tasks, task)
            x, y = (torch.cat([getattr(p, a)[0] for p in (one.support, one.query)]) for a in ("inputs", "targets"))
            module = copy.deepcopy(learner.method.module)
            module.load_state_dict(learner.theta)
            sgd = torch.optim.SGD(module.parameters(), 0.1)
            for _ in range(3):
                sgd.zero_grad()
                (module(x) - y).square().mean().backward()
                sgd.step()
            ends.append(module.get_parameter(name).detach())
        torch.testing.assert_close(gradients[name], value - torch.stack(ends).mean(dim=0))


METHODS = {
    "maml": (RULES["shared shift"], MAML, ()),
    "first-order": (replace(RULES["shared shift"], second_order=False), MAML, ()),
    "reptile": (RULES["shared shift"], FewShotReptile, ()),
    "meta-sgd": (RULES["meta-sgd"], MAML, ()),
    "anil": (RULES["anil"], MAML, ()),
    "maml++": (RULES["per layer and step"], MAML, (10,)),
}
NETWORKS = {
    "strided": lambda: ConvNet((8, 8, 1), 3, filters=4),
    "mlp": lambda: MLP((64, 8, 6, 3), normalised=True),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_batched_equals_chunked_equals_one_by_one(network, name):
    rule, kind, more = METHODS[name]
    learner = image_learner(rule, NETWORKS[network](), kind, more, task_chunk=5)
    tasks = learner.sample(5, "train")
    whole, losses, metrics = learner.meta_gradient(tasks)
    curve = learner.metric(tasks, 3)
    for chunk in (1, 2):
        other = replace(learner, task_chunk=chunk)
        parts, part_losses, part_metrics = other.meta_gradient(tasks)
        torch.testing.assert_close(part_losses, losses)
        torch.testing.assert_close(part_metrics, metrics)
        torch.testing.assert_close(other.metric(tasks, 3), curve)
        torch.testing.assert_close(parts, whole)


def test_batch_norm_sees_its_own_task_and_batch_alone():
    learner = image_learner(module=ConvNet((8, 8, 1), 3, filters=4), task_chunk=4)
    tasks = learner.sample(4, "train")
    losses = learner.meta_gradient(tasks)[1]
    tasks.query.inputs[1] *= 0.5
    tasks.query.inputs[1, 0] += 1
    changed = learner.meta_gradient(tasks)[1]
    assert changed[1] != losses[1]
    torch.testing.assert_close(changed[[0, 2, 3]], losses[[0, 2, 3]])


def test_without_a_step_the_support_data_have_no_part():
    learner = sine_learner(GradientDescent(0.3, 0))
    tasks = learner.sample(3, "train")
    other = FewShotTasks(learner.sample(3, "train", 1).support, tasks.query)
    a, b = (learner.meta_gradient(each)[0] for each in (tasks, other))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_inner_step_size_is_that_of_the_mean_loss():
    learner = image_learner(RULES["anil"])
    tasks = learner.sample(1, "train")
    module = copy.deepcopy(learner.method.module)
    torch.nn.functional.cross_entropy(module(tasks.support.inputs[0]), tasks.support.targets[0]).backward()
    after = learner.adapt(tasks.support, 1)[1]
    torch.testing.assert_close(after["head.weight"][0], module.head.weight.detach() - 0.3 * module.head.weight.grad)
    name = "blocks.0.norm.shift"
    assert torch.equal(after[name][0], learner.theta[name])


def test_the_weights_of_the_steps_sum_to_one_and_end_at_the_last():
    maml = MAML(Smooth(), CLASSIFICATION, GradientDescent(0.1, 5), multi_step_iterations=100)
    for iteration in (0, 1, 50, 99, 100, 1000):
        assert sum(maml.schedule(iteration).values()) == pytest.approx(1)
    assert maml.schedule(0) == pytest.approx(dict.fromkeys(range(1, 6), 0.2))
    assert maml.schedule(50)[1] == pytest.approx(0.1)
    assert maml.schedule(99)[1] == pytest.approx(0.03 / 5)
    assert maml.schedule(100) == {5: 1}
    assert replace(maml, rule=GradientDescent(0.1, 0)).schedule(0) == {0: 1}


def test_the_step_size_follows_its_milestones():
    rule = GradientDescent(0.1, milestones=(2,), milestone_step_sizes=(0.01,))
    maml = MAML(Smooth(), CLASSIFICATION, rule)
    assert maml.at(1) is maml
    assert maml.at(2).rule.step_size == 0.01
    learner = sine_learner(rule)
    for _ in range(2):
        learner.step()
    tasks = learner.sample(3, "train")
    small = replace(learner, method=replace(learner.method, rule=GradientDescent(0.01)))
    torch.testing.assert_close(learner.meta_gradient(tasks), small.meta_gradient(tasks))
    torch.testing.assert_close(learner.adapt(tasks.support, 1), small.adapt(tasks.support, 1))


class TestClassifier:
    """The batches of a classifier are float32, as the images are bytes; so are these networks."""

    @pytest.fixture
    def learner(self):
        torch.manual_seed(0)
        module = Smooth()
        module.head = torch.nn.Linear(2, 6)
        method = Classifier(module, CLASSIFICATION, GradientDescent(0.3, 0), batch_size=5)
        return FewShotLearner(image_tasks().inner, method, num_tasks=1)

    def test_training_is_plain_classification(self, learner):
        before = dict(learner.theta)
        tasks = learner._training_tasks.sample(1, "train", np.random.default_rng(0))
        assert tasks.query.inputs.shape == (1, 5, 8, 8, 1)
        module = copy.deepcopy(learner.method.module)
        torch.nn.functional.cross_entropy(module(tasks.query.inputs[0]), tasks.query.targets[0]).backward()
        found, _, _ = learner.meta_gradient(tasks)
        for name, value in module.named_parameters():
            torch.testing.assert_close(found[name], torch.zeros_like(value) if value.grad is None else value.grad)
        learner.step()
        assert not torch.equal(learner.theta["head.weight"], before["head.weight"])

    def test_a_task_gets_a_head_of_zeros_that_is_fine_tuned(self, learner):
        tasks = learner.sample(2, "test")
        states = learner.adapt(tasks.support, 1)
        assert states[0]["head.weight"].shape == (2, 3, 2)
        assert not states[0]["head.weight"].any()
        name = "blocks.0.norm.shift"
        assert torch.equal(states[0][name][1], learner.theta[name])
        module = copy.deepcopy(learner.method.module)
        module.head = torch.nn.Linear(2, 3)
        torch.nn.init.zeros_(module.head.weight)
        torch.nn.init.zeros_(module.head.bias)
        torch.nn.functional.cross_entropy(module(tasks.support.inputs[1]), tasks.support.targets[1]).backward()
        torch.testing.assert_close(states[1]["head.bias"][1], -0.3 * module.head.bias.grad)
        assert learner.metric(tasks, 1).shape == (2, 2)

    def test_nearest_neighbours_are_found_in_features(self, learner):
        tasks = learner.sample(2, "test")
        found = learner.further_metrics(tasks)["nearest_neighbour"]
        features = [learner.method.module.features(of.inputs[0]) for of in (tasks.support, tasks.query)]
        nearest = torch.cdist(features[1], features[0]).argmin(dim=1)
        assert found[0] == (tasks.support.targets[0][nearest] == tasks.query.targets[0]).double().mean()

    def test_with_fixed_statistics_the_neighbour_of_an_image_does_not_depend_on_the_others(self, learner):
        tasks = learner.sample(2, "test")
        [fixed] = step_statistics(learner, learner.sample(3, "train"), 0)
        together = learner.further_metrics(tasks, fixed)["nearest_neighbour"]
        alone = [
            learner.further_metrics(
                replace(tasks, query=Examples(*(of[:, k : k + 1] for of in tasks.query.tensors))), fixed
            )
            for k in range(tasks.query.targets.shape[1])
        ]
        torch.testing.assert_close(together, torch.stack([of["nearest_neighbour"] for of in alone]).mean(dim=0))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: MAML(Smooth(), CLASSIFICATION, multi_step_iterations=-1), "multi_step_iterations"),
        (lambda: FewShotReptile(Smooth(), CLASSIFICATION, multi_step_iterations=5), "multi_step_iterations"),
        (lambda: Classifier(Smooth(), CLASSIFICATION, GradientDescent(0.1, 1)), "inner_steps"),
        (lambda: Classifier(Smooth(), CLASSIFICATION, GradientDescent(0.1, 0), batch_size=0), "batch_size"),
        (lambda: Classifier(Smooth(), CLASSIFICATION, GradientDescent(0.1, 0), head="last"), "head"),
        (
            lambda: sine_learner(GradientDescent(0.1, 0), torch.nn.Sequential(torch.nn.Linear(1, 1)), _classifier),
            "task_distribution",
        ),
    ],
)
def test_settings_out_of_bounds_are_refused_by_name(make, field):
    with pytest.raises(ValueError, match=f"^{field} = "):
        make()


def _classifier(module, criterion, rule):
    return Classifier(module, criterion, rule, head="0")


def test_a_criterion_of_regression_trains_maml():
    learner = sine_learner(GradientDescent(0.01))
    assert learner.method.criterion == REGRESSION
    assert set(learner.step()) == {"iteration", "mse/step_1", "loss", "meta_gradient_norm"}
