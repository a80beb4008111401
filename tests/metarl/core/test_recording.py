"""Recordings equal what they were made of to the last bit; what cannot be recorded says so once and runs as it is."""

import copy
import warnings

import pytest
import torch
from torch import nn

from metarl import GaussianMLP
from metarl.core import recording
from metarl.core.parameters import call_per_task, expand_over_tasks, parameters_of
from metarl.core.recording import RecordedFunction, RecordedModule
from metarl.envs import Navigation2D
from tests.builders import needs_compiler, random_parameters


class Attending(nn.Module):
    """Attention over the numbers of an input, whose operations depend on how tensors lie in memory."""

    def __init__(self):
        super().__init__()
        self.attention, self.linear = nn.MultiheadAttention(1, 1, batch_first=True), nn.Linear(3, 2)

    def forward(self, inputs):
        sequence = inputs.unsqueeze(-1)
        return self.linear(self.attention(sequence, sequence, sequence)[0].squeeze(-1))


def navigation_policy():
    return GaussianMLP(Navigation2D().observation_space, Navigation2D().action_space, (8, 8), "tanh")


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, inputs):
        return self.scale * self.net(inputs.unsqueeze(1))


class Accumulating(nn.Module):
    """A module that writes into a tensor made of its parameters."""

    def __init__(self):
        super().__init__()
        self.start, self.linear = nn.Parameter(torch.ones(3)), nn.Linear(2, 3)

    def forward(self, inputs):
        hidden = self.start.repeat(len(inputs), 1)
        hidden += self.linear(inputs)
        return hidden


class Switching(nn.Module):
    """A module that Python code changes from outside."""

    def __init__(self):
        super().__init__()
        self.linear, self.factor = nn.Linear(2, 2), 1.0

    def forward(self, inputs):
        return self.factor * self.linear(inputs)


@torch.no_grad()
@pytest.mark.parametrize(
    ("module", "shape"),
    [(navigation_policy(), (2,)), (Convolutional(), (4, 4)), (Accumulating(), (2,))],
    ids=["mlp", "convolution", "in place"],
)
def test_a_module_has_the_same_outputs_for_any_parameters_and_inputs(module, shape):
    recorded, inputs = RecordedModule(module), torch.randn(3, 5, *shape)
    for seed in (0, 1):
        phi = random_parameters(module, 3, seed, scale=1.0)
        replay = recorded.bind(phi, inputs)
        assert replay.func is not call_per_task
        for other in (inputs, torch.randn_like(inputs)):
            assert torch.equal(replay(other), call_per_task(module, phi, other))


@torch.no_grad()
def test_parameters_of_all_tasks_may_be_one_tensor_or_several():
    """As before and after adaptation: the strides differ, and views that are recorded for some fail with others."""
    module, inputs = Attending(), torch.randn(3, 5, 3)
    recorded = RecordedModule(module)
    shared = expand_over_tasks(parameters_of(module), 3)
    for phi in (shared, random_parameters(module, 3), shared):
        replay = recorded.bind(phi, inputs)
        assert replay.func is not call_per_task
        assert torch.equal(replay(inputs), call_per_task(module, phi, inputs))


@torch.no_grad()
def test_only_what_depends_on_the_inputs_is_done_again():
    policy = navigation_policy()
    run = recording._split_recording(policy, random_parameters(policy, 3), torch.randn(3, 4, 2))[1]
    assert len([node for node in run.graph.nodes if node.op == "call_function"]) == 9  # 3 products, 3 sums, 2 tanh, cat


@torch.no_grad()
def test_a_recording_is_made_once_per_layout(monkeypatch):
    made = []
    split = recording._split_recording
    monkeypatch.setattr(recording, "_split_recording", lambda *arguments: made.append(1) or split(*arguments))
    module = navigation_policy()
    recorded = RecordedModule(module)
    for _ in range(3):
        for lanes in (4, 5):
            recorded.bind(random_parameters(module, 3), torch.randn(3, lanes, 2))
    assert len(made) == 2
    copy.deepcopy(recorded).bind(random_parameters(module, 3), torch.randn(3, 4, 2))
    assert len(made) == 3  # a copy has a module of its own, and records it anew


@torch.no_grad()
def test_a_module_that_has_changed_is_noticed_and_runs_as_it_is():
    module, inputs = Switching(), torch.randn(3, 4, 2)
    phi, recorded = random_parameters(module, 3), RecordedModule(module)
    recorded.bind(phi, inputs)
    module.factor = 3.0
    with pytest.warns(RuntimeWarning, match="Switching cannot be recorded"):
        replay = recorded.bind(phi, inputs)
    assert torch.equal(replay(inputs), call_per_task(module, phi, inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(recorded.bind(phi, inputs)(inputs), call_per_task(module, phi, inputs))


@torch.no_grad()
def test_a_module_that_cannot_be_recorded_warns_once_and_runs_as_it_is(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("data-dependent\nmore")

    monkeypatch.setattr(recording, "_split_recording", fail)
    module, inputs = Switching(), torch.randn(3, 4, 2)
    phi, recorded = random_parameters(module, 3), RecordedModule(module)
    with pytest.warns(RuntimeWarning, match=r"Switching cannot be recorded \(.*data-dependent\)") as caught:
        replays = [recorded.bind(phi, inputs) for _ in range(3)]
    assert len(caught) == 1
    for replay in replays:
        assert torch.equal(replay(inputs), call_per_task(module, phi, inputs))


def gradient_norm(weight, inputs):
    """A first and a second derivative."""
    weight = weight.detach().requires_grad_()
    [gradient] = torch.autograd.grad((inputs @ weight).tanh().square().sum(), weight, create_graph=True)
    return [*torch.autograd.grad(gradient.square().sum(), weight), gradient.detach()]


def test_a_function_replays_its_derivatives_to_the_last_bit(monkeypatch):
    calls = []

    def counted(*tensors):
        calls.append(tensors)
        return gradient_norm(*tensors)

    monkeypatch.setattr(recording, "_PATIENCE", 3)
    recorded = RecordedFunction(counted, "counted")
    for _ in range(6):
        for rows in (4, 5):
            tensors = torch.randn(2, 2), torch.randn(rows, 2)
            found, expected = recorded(*tensors), gradient_norm(*tensors)
            assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(found, expected, strict=True))
    assert len(calls) == 2 * 4  # of each shape three plain calls, the last of which was recorded in a fourth


@pytest.mark.parametrize(
    "function",
    [lambda x: [x + 1 if x.sum() > 0 else x - 1], lambda x: [x + torch.rand_like(x)]],
    ids=["branches", "random"],
)
def test_a_function_that_cannot_be_replayed_warns_once_and_runs_as_it_is(function, monkeypatch):
    monkeypatch.setattr(recording, "_PATIENCE", 2)
    recorded = RecordedFunction(function, "mine")
    with pytest.warns(RuntimeWarning, match="mine cannot be recorded") as caught:
        found = [recorded(sign * torch.ones(3))[0] for sign in (1, 1, -1, 1)]
    assert len(caught) == 1
    assert [bool((value > 0.99).all()) for value in found] == [True, True, False, True]


@needs_compiler
def test_a_compiled_function_has_the_same_derivatives_within_rounding_from_the_first_call_on():
    calls = []

    def counted(*tensors):
        calls.append(tensors)
        return gradient_norm(*tensors)

    compiled = RecordedFunction(counted, "counted", compiled=True)
    for _ in range(3):
        tensors = torch.randn(2, 2), torch.randn(4, 2)
        for found, expected in zip(compiled(*tensors), gradient_norm(*tensors), strict=True):
            torch.testing.assert_close(found, expected)
            assert not found.requires_grad
    assert len(calls) == 2  # what it is compared with, and what is recorded
    first = compiled(*tensors)
    assert all(map(torch.equal, first, compiled(*tensors)))


@needs_compiler
def test_a_compiled_function_with_other_numbers_warns_and_runs_as_it_is():
    function = RecordedFunction(lambda x: [x + torch.rand_like(x)], "mine", compiled=True)
    with pytest.warns(RuntimeWarning, match="mine cannot be recorded .its recording gives other numbers"):
        found = function(torch.ones(3))[0]
    assert ((found >= 1) & (found <= 2)).all()


def test_without_a_compiler_a_function_warns_once_and_runs_as_it_is(monkeypatch):
    def missing(function, **options):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", missing)
    function = RecordedFunction(lambda x: [2 * x], "mine", compiled=True)
    with pytest.warns(RuntimeWarning, match="mine cannot be recorded .*no compiler") as caught:
        found = [function(torch.ones(3))[0] for _ in range(2)]
    assert len(caught) == 1
    assert [value.tolist() for value in found] == [[2.0] * 3] * 2
