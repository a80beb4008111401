"""Supervised meta-learning: gradients against finite differences, batches against loops, exact resuming, learning."""

import copy
import functools
from dataclasses import replace

import pytest
import torch
from torch import nn

from metarl.core import recording as capture
from metarl.core.adaptation import GradientDescent, LayerStepSizes, MetaSGD
from metarl.core.errors import NonFiniteError
from metarl.core.parameters import ravel, unravel
from metarl.core.randomness import keyed_generator
from metarl.few_shot import learner as few_shot
from metarl.few_shot.learner import (
    CLASSIFICATION,
    REGRESSION,
    Criterion,
    FewShotLearner,
    MAMLGradient,
    ReptileGradient,
    accuracy,
    nearest_neighbour,
)
from metarl.few_shot.networks import MLP, ConvNet
from metarl.few_shot.tasks import Examples, FewShotTasks, ImageEpisodes, Sine
from tests.probes import finite_differences

NOT_SHIFT = ("*weight", "*bias")


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


class Doubled:
    """A distribution whose tasks are float64."""

    def __init__(self, inner):
        self.inner = inner

    def sample(self, tasks, split, rng):
        drawn = self.inner.sample(tasks, split, rng)
        return FewShotTasks(*(Examples(_double(p.inputs), _double(p.targets)) for p in (drawn.support, drawn.query)))


def _double(tensor):
    return tensor.double() if tensor.is_floating_point() else tensor


def images(size=8, classes=6, channels=1):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (classes, 6, size, size, channels), generator=generator, dtype=torch.uint8)


class Smooth(torch.nn.Module):
    """A network with convolution and batch norm but no kinks, so that finite differences are exact."""

    def __init__(self):
        super().__init__()
        net = ConvNet((8, 8, 1), 3, filters=2)
        self.blocks, self.head = net.blocks, net.head

    def forward(self, inputs):
        for block in self.blocks[:2]:
            inputs = torch.tanh(block.norm(block.convolution(inputs)))
        return self.head(inputs.mean(dim=(1, 2)))


def image_learner(rule, module=None, **settings):
    source = Doubled(ImageEpisodes({"train": images(), "test": images()}, ways=3, shots=2, queries=2))
    return FewShotLearner(source, module or Smooth(), CLASSIFICATION, tasks=4, rule=rule, **settings)


def sine_learner(rule, **settings):
    module = torch.nn.Sequential(torch.nn.Linear(1, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    return FewShotLearner(Doubled(Sine(4, 3)), module, REGRESSION, tasks=4, rule=rule, **settings)


RULES = {
    "maml": GradientDescent(0.3, 2),
    "shared shift": GradientDescent(0.3, 2, adapted=NOT_SHIFT),
    "anil": GradientDescent(0.3, 2, adapted=("head*", "2*")),
    "meta-sgd": MetaSGD(0.3, 2),
    "per layer and step": LayerStepSizes(0.3, 2),
}


def rule_for(name, make):
    rule = RULES[name]
    if name == "anil":
        return replace(rule, adapted=("head*",) if make is image_learner else ("2*",))
    return replace(rule, adapted=("*",)) if name == "shared shift" and make is sine_learner else rule


@pytest.mark.parametrize("multi_step", [0, 10])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("make", [image_learner, sine_learner])
def test_second_order_meta_gradient_is_the_derivative(make, name, multi_step):
    learner = make(rule_for(name, make), meta_gradient=MAMLGradient(multi_step))
    tasks = learner.sample(3, "train")
    gradients, _, _ = learner.gradient(tasks)
    theta = learner.theta
    weights = learner.meta_gradient.weights(2, 0)
    assert weights == ({1: 0.5, 2: 0.5} if multi_step else {2: 1})

    def objective(vector):
        learner.theta = {n: value.detach() for n, value in unravel(vector, theta).items()}
        path = []
        for task in range(3):  # the slow way: one task at a time, each step by plain autograd
            one = tasks.of_tasks(slice(task, task + 1))
            phis = learner.adapt(one.support, 2)
            path.append(sum(w * learner.model(phis[step], one.query)[0] for step, w in weights.items()))
        return torch.stack(path).mean().detach()

    point, gradient = ravel([value.detach() for value in theta.values()]), ravel(list(gradients.values()))
    for direction in torch.eye(len(point))[:: len(point) // 4].unbind() + torch.randn(3, len(point)).unbind():
        slope = finite_differences(lambda t, d=direction: objective(point + t * d), torch.zeros(1))
        torch.testing.assert_close(gradient @ direction, slope[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("make", [image_learner, sine_learner])
def test_first_order_meta_gradient_is_the_gradient_at_the_adapted_parameters(make):
    learner = make(GradientDescent(0.3, 2, second_order=False))
    tasks = learner.sample(3, "train")
    gradients, _, _ = learner.gradient(tasks)
    phi = learner.adapt(tasks.support, 2)[-1]

    def query_loss(vector):
        moved = {name: phi[name] + change for name, change in unravel(vector, learner.theta).items()}
        return learner.model(moved, tasks.query).mean().detach()

    expected = finite_differences(query_loss, torch.zeros(sum(value.numel() for value in gradients.values())))
    torch.testing.assert_close(ravel(list(gradients.values())), expected, rtol=1e-6, atol=1e-8)
    second = make(GradientDescent(0.3, 2))
    second.theta = learner.theta
    other = second.gradient(tasks)[0]
    assert not torch.allclose(ravel(list(other.values())), ravel(list(gradients.values())), rtol=1e-2)


def test_reptile_moves_to_the_mean_of_the_adapted_parameters():
    learner = sine_learner(GradientDescent(0.1, 3), meta_gradient=ReptileGradient())
    tasks = learner.sample(3, "train")
    gradients, _, _ = learner.gradient(tasks)
    for name, value in learner.theta.items():
        ends = []
        for task in range(3):
            one = tasks.of_tasks(slice(task, task + 1))
            x, y = (torch.cat([getattr(p, a)[0] for p in (one.support, one.query)]) for a in ("inputs", "targets"))
            module = copy.deepcopy(learner.module)
            module.load_state_dict(learner.theta)
            sgd = torch.optim.SGD(module.parameters(), 0.1)
            for _ in range(3):
                sgd.zero_grad()
                (module(x) - y).square().mean().backward()
                sgd.step()
            ends.append(module.get_parameter(name).detach())
        torch.testing.assert_close(gradients[name], value.detach() - torch.stack(ends).mean(dim=0))


NETWORKS = {
    "strided": lambda: ConvNet((8, 8, 1), 3, filters=4),
    "mlp": lambda: MLP((64, 8, 6, 3), normalised=True),
}


LEARNERS = {
    "maml": (RULES["shared shift"], MAMLGradient()),
    "first-order": (replace(RULES["shared shift"], second_order=False), MAMLGradient()),
    "reptile": (RULES["shared shift"], ReptileGradient()),
    "meta-sgd": (RULES["meta-sgd"], MAMLGradient()),
    "anil": (RULES["anil"], MAMLGradient()),
    "maml++": (RULES["per layer and step"], MAMLGradient(10)),
}


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_batched_equals_chunked_equals_one_by_one(network, name):
    rule, meta_gradient = LEARNERS[name]
    rule = replace(rule, adapted=("head*",)) if name == "anil" else rule
    learner = image_learner(rule, NETWORKS[network](), meta_gradient=meta_gradient, task_chunk=5)
    tasks = learner.sample(5, "train")
    whole, losses, scores = learner.gradient(tasks)
    curve = learner.scores(tasks, 3)
    for chunk in (1, 2):
        learner.task_chunk = chunk
        parts, part_losses, part_scores = learner.gradient(tasks)
        torch.testing.assert_close(part_losses, losses)
        torch.testing.assert_close(part_scores, scores)
        torch.testing.assert_close(learner.scores(tasks, 3), curve)
        for name in whole:
            torch.testing.assert_close(parts[name], whole[name])


def test_batch_norm_sees_its_own_task_and_batch_alone():
    learner = image_learner(GradientDescent(0.3, 1), ConvNet((8, 8, 1), 3, filters=4), task_chunk=4)
    tasks = learner.sample(4, "train")
    losses = learner.gradient(tasks)[1]
    tasks.query.inputs[1] *= 0.5
    tasks.query.inputs[1, 0] += 1
    changed = learner.gradient(tasks)[1]
    assert changed[1] != losses[1]
    torch.testing.assert_close(changed[[0, 2, 3]], losses[[0, 2, 3]])


def test_without_a_step_the_support_data_have_no_part():
    learner = sine_learner(GradientDescent(0.3, 0))
    tasks = learner.sample(3, "train")
    other = FewShotTasks(learner.sample(3, "train", 1).support, tasks.query)
    a, b = (learner.gradient(each)[0] for each in (tasks, other))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_inner_step_size_is_that_of_the_mean_loss():
    learner = image_learner(GradientDescent(0.3, 1, adapted=("head*",)))
    tasks = learner.sample(1, "train")
    module = copy.deepcopy(learner.module)
    outputs = module(tasks.support.inputs[0])
    torch.nn.functional.cross_entropy(outputs, tasks.support.targets[0]).backward()
    after = learner.adapt(tasks.support, 1)[1]
    torch.testing.assert_close(after["head.weight"][0], module.head.weight.detach() - 0.3 * module.head.weight.grad)
    name = "blocks.0.norm.shift"
    assert torch.equal(after[name][0], learner.theta[name])


def test_multi_step_weights_sum_to_one_and_end_at_the_last():
    maml = MAMLGradient(100)
    for iteration in (0, 1, 50, 99, 100, 1000):
        assert sum(maml.weights(5, iteration).values()) == pytest.approx(1)
    assert maml.weights(5, 0) == pytest.approx(dict.fromkeys(range(1, 6), 0.2))
    assert maml.weights(5, 50)[1] == pytest.approx(0.1)
    assert maml.weights(5, 99)[1] == pytest.approx(0.03 / 5)
    assert maml.weights(5, 100) == {5: 1}
    assert maml.weights(0, 0) == {0: 1}


def test_clip_bounds_each_element():
    learner = sine_learner(GradientDescent(0.3, 1), clip=1e-3)
    learner.step()
    gradients = ravel([value.grad for value in learner.theta.values()])
    assert gradients.abs().max() == 1e-3


def test_the_learning_rate_follows_a_cosine():
    learner = sine_learner(GradientDescent(), learning_rate=1.0, final_learning_rate=0.2, iterations=10)
    rates = []
    for learner.iteration in (0, 5, 10, 12):
        rates.append(learner._learning_rate())
    assert rates == pytest.approx([1, 0.6, 0.2, 0.2])


@pytest.mark.parametrize("rule", [GradientDescent(0.1, 2), MetaSGD(0.1, 1)])
def test_resumed_equals_never_stopped(rule):
    straight = sine_learner(rule)
    start = copy.deepcopy(straight)
    unbroken = [straight.step() for _ in range(5)]
    first = copy.deepcopy(start)
    lines = [first.step() for _ in range(2)]
    start.load_state_dict(first.state_dict())
    lines += [start.step() for _ in range(3)]
    assert lines == unbroken
    assert all(torch.equal(start.theta[name], straight.theta[name]) for name in straight.theta)


@pytest.mark.parametrize(
    ("make", "meta_gradient"),
    [
        (image_learner, MAMLGradient()),
        (sine_learner, MAMLGradient()),
        (sine_learner, MAMLGradient(3)),
        (sine_learner, ReptileGradient()),
    ],
)
def test_recorded_equals_plain(make, meta_gradient, monkeypatch):
    plain = make(GradientDescent(0.1, 2), meta_gradient=meta_gradient, task_chunk=2)
    recorded = copy.deepcopy(plain)
    expected = [plain.step() for _ in range(4)]
    monkeypatch.setattr(capture, "_PATIENCE", 2)
    assert [recorded.step() for _ in range(4)] == expected
    replays = [replay for each in recorded._recordings.values() for replay in each._recorded.values()]
    assert replays
    assert not any(isinstance(replay, functools.partial) for replay in replays)  # which is the function itself


def test_another_rule_or_criterion_is_not_replayed_by_old_recordings(monkeypatch):
    monkeypatch.setattr(capture, "_PATIENCE", 2)
    learner = sine_learner(GradientDescent(0.1, 2), task_chunk=2)
    fresh = copy.deepcopy(learner)
    tasks = learner.sample(4, "train")
    before = [learner.gradient(tasks)[0] for _ in range(3)][-1]
    for one in (learner, fresh):
        one.rule = GradientDescent(0.1, 2, second_order=False)
    found, expected = learner.gradient(tasks)[0], fresh.gradient(tasks)[0]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert any(not torch.allclose(found[name], value, rtol=1e-3) for name, value in before.items())


class Shifted(torch.nn.Module):
    """A module with a buffer and a plain attribute."""

    def __init__(self):
        super().__init__()
        self.linear, self.factor = torch.nn.Linear(1, 1), 1.0
        self.register_buffer("shift", torch.zeros(1))

    def forward(self, inputs):
        return self.factor * self.linear(inputs) + self.shift


@pytest.mark.parametrize("threads", [1, 2])
def test_a_module_that_has_changed_is_not_replayed(threads, monkeypatch):
    monkeypatch.setattr(capture, "_PATIENCE", 2)
    learner = FewShotLearner(Doubled(Sine(shots=3)), Shifted(), REGRESSION, tasks=4, task_chunk=2)
    tasks, before = learner.sample(4, "train"), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for change in (
            lambda module: setattr(module, "factor", 3.0),
            lambda module: setattr(module, "shift", torch.ones(1)),
            lambda module: module.shift.fill_(5),
        ):
            for _ in range(3):
                old = learner.gradient(tasks)[1]
            change(learner.module)
            fresh = FewShotLearner(learner.distribution, learner.module, REGRESSION, tasks=4, task_chunk=2)
            fresh.theta = learner.theta
            expected = fresh.gradient(tasks)[1]
            assert not torch.allclose(expected, old)
            torch.testing.assert_close(learner.gradient(tasks)[1], expected)
    finally:
        torch.set_num_threads(before)


def test_a_state_is_a_copy_both_ways():
    learners = [sine_learner(GradientDescent(0.1)) for _ in range(3)]
    one, other, apart = learners
    for _ in range(2):
        one.step()
    state = one.state_dict()
    kept = copy.deepcopy(state)
    other.load_state_dict(state)
    apart.load_state_dict(copy.deepcopy(state))
    lines = [learner.step() for learner in learners]
    assert lines[1] == lines[0]
    for name, value in one.theta.items():
        assert torch.equal(other.theta[name], value)
        assert torch.equal(apart.theta[name], value)
        assert torch.equal(state["theta"][name], kept["theta"][name])
    for number, moments in kept["adam"].items():
        assert all(torch.equal(state["adam"][number][name], value) for name, value in moments.items())


@pytest.mark.parametrize("make", [image_learner, sine_learner])
def test_threads_change_nothing(make, monkeypatch):
    monkeypatch.setattr(capture, "_PATIENCE", 2)
    monkeypatch.setattr(few_shot, "_CHUNK_VALUES", 1)  # one task's query examples at a time
    start = make(GradientDescent(0.1, 2), task_chunk=2)
    lines, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            learner = copy.deepcopy(start)
            lines.append([learner.step() for _ in range(4)])
    finally:
        torch.set_num_threads(threads)
    assert lines[1] == lines[0]
    assert lines[2] == lines[0]


def test_per_step_statistics_make_query_examples_independent():
    learner = image_learner(GradientDescent(0.3, 1), ConvNet((8, 8, 1), 3, filters=12))
    tasks = learner.sample(4, "test")
    statistics = learner.step_statistics(learner.sample(3, "train"), 2)
    assert len(statistics) == 3
    name = "blocks.1.norm.mean"
    assert not torch.allclose(statistics[0][name], statistics[2][name], atol=1e-3)
    whole = learner.scores(tasks, 2, statistics)
    single = []
    for index in range(6):
        query = Examples(tasks.query.inputs[:, index : index + 1], tasks.query.targets[:, index : index + 1])
        single.append(learner.scores(FewShotTasks(tasks.support, query), 2, statistics))
    torch.testing.assert_close(torch.stack(single).mean(dim=0), whole)


def test_the_nearest_neighbour_gives_the_class():
    support = torch.tensor([[[0.0, 0.0], [3.0, 0.0]], [[1.0, 1.0], [0.0, 5.0]]])
    query = torch.tensor([[[1.0, 1.0], [2.0, 0.0]], [[0.0, 4.0], [0.0, 0.0]]])
    assert nearest_neighbour(support, torch.tensor([[4, 7], [1, 2]]), query).tolist() == [[4, 7], [2, 1]]


def test_training_validation_and_test_tasks_come_from_different_streams():
    """Sine has no classes that could keep them apart."""
    learner = sine_learner(GradientDescent(0.01))
    drawn = [learner.sample(4, split).query.targets for split in ("train", "validation", "test")]
    assert not any(
        torch.isin(a, b).any() for a, b in ((drawn[0], drawn[1]), (drawn[0], drawn[2]), (drawn[1], drawn[2]))
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": -1.0}, "clip = -1.0; allowed: more than 0"),
        ({"iterations": 0}, "iterations = 0; allowed: a whole number, at least 1"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0; allowed: more than 0"),
        ({"final_learning_rate": -0.1}, "final_learning_rate = -0.1; allowed: more than 0"),
        ({"seed": 2**64}, "seed = 18446744073709551616; allowed: a whole number, 0 to 2"),
        ({"meta_gradient": "maml"}, r"meta_gradient = 'maml'; allowed: one such as metarl.MAMLGradient\(\)"),
    ],
)
def test_settings_out_of_bounds_get_one_line(settings, message):
    with pytest.raises(ValueError, match=message):
        sine_learner(GradientDescent(0.01), **settings)
    with pytest.raises(ValueError, match=r"rule = 0.1; allowed: one such as metarl.GradientDescent\(0.01\)"):
        sine_learner(0.1)


def test_a_foreign_state_is_refused():
    learner = sine_learner(GradientDescent())
    with pytest.raises(ValueError, match="the state holds the parameters"):
        learner.load_state_dict(image_learner(GradientDescent()).state_dict())


@pytest.mark.parametrize(
    ("module", "criterion", "reason"),
    [
        (
            nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 1))),
            REGRESSION,
            r"outputs \(\d, 5, 1\) for targets \(\d, 5\)",
        ),
        (nn.Sequential(nn.Linear(1, 9), nn.Dropout()), CLASSIFICATION, "randomness"),
        (nn.Sequential(nn.Linear(1, 9), nn.BatchNorm1d(9)), CLASSIFICATION, "running"),
        (nn.Linear(1, 3), CLASSIFICATION, "out of bounds"),
        (nn.Linear(2, 9), CLASSIFICATION, "Expected size"),
        (nn.Linear(1, 9), Criterion("whole", lambda o, t: o.mean(), accuracy), r"shape \(\), not one number per task"),
    ],
)
@pytest.mark.parametrize("tasks", [1, 3])
def test_a_module_that_cannot_learn_gets_one_line(module, criterion, reason, tasks):
    class Numbers:
        def sample(self, tasks, split, rng):
            examples = Examples(torch.ones(tasks, 5, 1), torch.arange(5).expand(tasks, 5))
            return FewShotTasks(examples, examples)

    module = nn.Sequential(nn.Linear(1, 1), module) if criterion is REGRESSION else module
    learner = FewShotLearner(Numbers(), module.double(), criterion, tasks=tasks)
    with pytest.raises(
        ValueError, match=rf"cannot learn a task of inputs \(5, 1\) and targets \(5,\) \(.*{reason}.*\)"
    ):
        learner.step()


def test_a_broken_loss_says_which_task():
    learner = sine_learner(GradientDescent())
    sample = learner.distribution.sample

    def broken(*arguments):
        tasks = sample(*arguments)
        tasks.query.targets[2] = float("nan")
        return tasks

    learner.distribution.sample = broken
    with pytest.raises(NonFiniteError, match="the query loss is not finite in iteration 0: task 2"):
        learner.step()


def test_sine_is_learned():
    torch.set_default_dtype(torch.float32)
    rule = GradientDescent(0.01, later_factor=1)
    learner = FewShotLearner(Sine(), MLP((1, 40, 40, 1)), REGRESSION, rule=rule, learning_rate=0.005)
    tasks = Sine(5, 50).sample(100, "test", keyed_generator(0, "test"))
    before = learner.scores(tasks, 5).mean(dim=1)
    for _ in range(400):
        learner.step()
    after = learner.scores(tasks, 5).mean(dim=1)
    assert before[5] > 3
    assert after[5] < 2
    assert after[5] < after[1] < 0.6 * after[0]
