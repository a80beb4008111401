"""A captured forward equals the module to the last bit, also after the module or the parameters have changed."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metarl import Learner
from metarl.core import recording as capturing
from metarl.core.parameters import call_per_task, parameters_of
from metarl.core.recording import Recording, capture, one_launch
from metarl.envs import Navigation2D
from metarl.rl import rollout as rollouts
from metarl.rl.action_distributions import distribution_for
from metarl.rl.evaluation import held_out_tasks
from metarl.rl.policies import GaussianMLP


def random_parameters(module, tasks, seed):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(tasks, *v.shape, generator=generator) for n, v in parameters_of(module).items()}


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, inputs):
        return self.scale * self.net(inputs.unsqueeze(1))


@torch.no_grad()
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (GaussianMLP(Navigation2D().observation_space, Navigation2D().action_space, (16, 16), "tanh"), (2,)),
        (Convolutional(), (4, 4)),
    ],
)
def test_equals_the_module_for_any_parameters_and_inputs(module, shape):
    inputs = torch.randn(3, 5, *shape)
    for seed in (0, 1):
        phi = random_parameters(module, 3, seed)
        replay = capture(module, phi, inputs)
        assert replay.func is not call_per_task
        for other in (inputs, torch.randn_like(inputs)):
            assert torch.equal(replay(other), call_per_task(module, phi, other))


@torch.no_grad()
def test_only_what_depends_on_the_inputs_is_done_again():
    policy = GaussianMLP(Navigation2D().observation_space, Navigation2D().action_space, (8, 8))
    run = capturing._record(policy, random_parameters(policy, 3, 0), torch.randn(3, 4, 2))[1]
    assert len([node for node in run.graph.nodes if node.op == "call_function"]) == 9  # 3 products, 3 sums, 2 relu, cat


class Switching(nn.Module):
    """A module that Python code changes from outside."""

    def __init__(self):
        super().__init__()
        self.linear, self.factor = nn.Linear(2, 2), 1.0

    def forward(self, inputs):
        return self.factor * self.linear(inputs)


@torch.no_grad()
def test_a_module_that_has_changed_is_recorded_again():
    module, inputs = Switching(), torch.randn(3, 4, 2)
    phi = random_parameters(module, 3, 0)
    before = capture(module, phi, inputs)(inputs)
    module.factor = 3.0
    assert torch.equal(capture(module, phi, inputs)(inputs), call_per_task(module, phi, inputs))
    assert not torch.equal(capture(module, phi, inputs)(inputs), before)


@torch.no_grad()
def test_a_change_that_the_first_inputs_do_not_show_is_recorded_again():
    module, nothing, inputs = Switching(), torch.zeros(3, 4, 2), torch.randn(3, 4, 2)
    module.linear = nn.Linear(2, 2, bias=False)
    phi = random_parameters(module, 3, 0)
    capture(module, phi, nothing)
    for change in (lambda: setattr(module, "factor", 3.0), lambda: setattr(module, "factor", torch.tensor(2.0))):
        change()
        assert torch.equal(capture(module, phi, nothing)(inputs), call_per_task(module, phi, inputs))


def test_the_fingerprint_knows_attributes_buffers_and_frozen_parameters_and_nothing_else():
    module = Convolutional()
    module.net[3].weight.requires_grad_(False)
    seen = [capturing.fingerprint(module)]
    with torch.no_grad():
        module.net[3].bias.add_(1)
        assert capturing.fingerprint(module) == seen[0]  # learned, and so given to every call
        for change in (
            lambda: module.scale.fill_(3),
            lambda: setattr(module, "scale", torch.tensor(5.0)),
            lambda: module.net[3].weight.mul_(2),
            lambda: module.eval(),
            lambda: setattr(module.net[0], "gain", 2.0),
        ):
            change()
            seen.append(capturing.fingerprint(module))
    assert len(set(seen)) == 6


class Accumulating(nn.Module):
    """A module that writes into a tensor made of its parameters."""

    def __init__(self):
        super().__init__()
        self.start, self.linear = nn.Parameter(torch.ones(3)), nn.Linear(2, 3)

    def forward(self, inputs):
        hidden = self.start.repeat(len(inputs), 1)
        hidden += self.linear(inputs)
        return hidden


@torch.no_grad()
def test_a_module_that_writes_in_place_starts_afresh_in_every_call():
    module, inputs = Accumulating(), torch.randn(3, 4, 2)
    phi = random_parameters(module, 3, 0)
    replay = capture(module, phi, inputs)
    assert replay.func is not call_per_task
    for other in (inputs, torch.randn_like(inputs)):
        assert torch.equal(replay(other), call_per_task(module, phi, other))


@torch.no_grad()
def test_a_module_that_cannot_be_recorded_runs_as_it_is(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("data-dependent")

    monkeypatch.setattr(capturing, "_record", fail)
    module, inputs = Switching(), torch.randn(3, 4, 2)
    phi = random_parameters(module, 3, 0)
    assert torch.equal(capture(module, phi, inputs)(inputs), call_per_task(module, phi, inputs))


@torch.no_grad()
def test_captures_go_with_their_module():
    module, inputs = Switching(), torch.randn(3, 4, 2)
    count = len(capturing._captured)
    capture(module, random_parameters(module, 3, 0), inputs)
    assert len(capturing._captured) == count + 1
    del module
    assert len(capturing._captured) == count


def gradient_norm(weight, inputs):
    weight = weight.detach().requires_grad_()
    [gradient] = torch.autograd.grad((inputs @ weight).tanh().square().sum(), weight, create_graph=True)
    return [*torch.autograd.grad(gradient.square().sum(), weight), gradient.detach()]


def test_a_recording_replays_derivatives_to_the_last_bit(monkeypatch):
    calls = []

    def counted(*tensors):
        calls.append(tensors)
        return gradient_norm(*tensors)

    monkeypatch.setattr(capturing, "_PATIENCE", 3)
    recording = Recording(counted)
    for _ in range(6):
        for rows in (4, 5):
            tensors = torch.randn(2, 2), torch.randn(rows, 2)
            found, expected = recording(*tensors), gradient_norm(*tensors)
            assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(found, expected, strict=True))
    assert len(calls) == 2 * 4  # of each shape three plain calls, the last of which was recorded in a fourth


@pytest.mark.parametrize(
    "function",
    [
        lambda x: [x + 1 if x.sum() > 0 else x - 1],
        lambda x: [x + torch.rand_like(x)],
    ],
)
def test_what_cannot_be_replayed_runs_as_it_is(function, monkeypatch):
    monkeypatch.setattr(capturing, "_PATIENCE", 1)
    recording = Recording(function)
    recording(torch.ones(3))
    assert recording._recorded[next(iter(recording._recorded))] is function
    assert recording(-torch.ones(3))[0].sum() < 3


class EmulatedGraph(TorchDispatchMode):
    """What a CUDA graph does, on a CPU: it keeps the operations, and repeats them on the very same memory."""

    def __init__(self):
        super().__init__()
        self.kernels = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.kernels.append((operation, args, kwargs or {}, result))
        return result

    def capture_begin(self):
        self.__enter__()

    def capture_end(self):
        self.__exit__(None, None, None)

    def replay(self):
        for operation, args, kwargs, result in self.kernels:
            again = operation(*args, **kwargs)
            for place, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                place.copy_(value)


@pytest.fixture
def emulated_cuda(monkeypatch):
    class Stream:
        def __init__(self, device):
            assert device == torch.device("cpu"), "a stream of another device than the tensors'"

        def wait_stream(self, other):
            pass

        def synchronize(self):
            pass

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", EmulatedGraph)


@torch.no_grad()
def test_one_launch_repeats_the_kernels_on_new_inputs(emulated_cuda):
    policy = GaussianMLP(Navigation2D().observation_space, Navigation2D().action_space, (8, 8))
    family = distribution_for(Navigation2D().action_space)
    phi = random_parameters(policy, 3, 0)
    calls = []

    def act(inputs, noise):
        calls.append(1)
        output = call_per_task(policy, phi, inputs)
        return output, family.sample(output, noise)

    examples = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    launched = one_launch(act, *examples)
    recorded = len(calls)
    for _ in range(3):
        inputs = torch.randn(3, 4, 2), torch.randn(3, 9, 4, 2)[:, 5]
        found = [value.clone() for value in launched(*inputs)]
        assert len(calls) == recorded, "the function itself runs again"
        assert all(torch.equal(a, b) for a, b in zip(found, act(*inputs), strict=True))
        calls.pop()


@torch.no_grad()
def test_what_cannot_be_one_launch_runs_as_it_is(emulated_cuda, monkeypatch):
    state = []

    def counts(inputs):
        state.append(1)
        return (inputs + len(state),)

    assert one_launch(counts, torch.zeros(2)) is counts

    def fail(graph):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(EmulatedGraph, "capture_begin", lambda graph: None)  # its kernels went to another stream
    monkeypatch.setattr(EmulatedGraph, "capture_end", lambda graph: None)
    assert one_launch(torch.ones_like, torch.zeros(2)) is torch.ones_like

    monkeypatch.setattr(EmulatedGraph, "capture_end", fail)
    assert one_launch(torch.atleast_1d, torch.zeros(2)) is torch.atleast_1d


def test_a_rollout_in_single_launches_is_the_same(emulated_cuda, monkeypatch):
    distribution = Navigation2D(60)
    torch.manual_seed(0)
    policy = GaussianMLP(distribution.observation_space, distribution.action_space, (8,))
    learner = Learner(distribution, policy, tasks=3, episodes=4)
    tasks = held_out_tasks(learner, 3)
    expected = learner.adapt(tasks, 1)
    launches = []
    monkeypatch.setattr(rollouts, "_on_gpu", lambda device: True)
    replay = EmulatedGraph.replay
    monkeypatch.setattr(EmulatedGraph, "replay", lambda graph: (launches.append(1), replay(graph)))
    for mine, other in zip(expected, learner.adapt(tasks, 1), strict=True):
        assert torch.equal(mine.episodes.actions, other.episodes.actions)
        assert torch.equal(mine.episodes.observations, other.episodes.observations)
        assert torch.equal(mine.episodes.rewards, other.episodes.rewards)
    assert len(launches) == 2 * (1 + 60)  # one to compare, one per step
