"""What holds on any device: no waiting for the host inside conjugate gradient; CPU and GPU give the same update."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from metarl import (
    CLASSIFICATION,
    MAML,
    TRPO,
    FewShotLearner,
    GradientDescent,
    ImageEpisodes,
)
from metarl.core.parameters import ravel
from metarl.core.trust_region import conjugate_gradient
from metarl.experiments.runner.device_parity import moved
from metarl.few_shot.networks import ConvNet
from tests.builders import navigation_learner

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")),
]
ON_HOST = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}


class Waiting(TorchDispatchMode):
    """Counts the operations for whose results Python would have to wait on a GPU."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation in ON_HOST
        return operation(*args, **(kwargs or {}))


def device_learner(**changes):
    settings = {"num_tasks": 6, "episodes_per_task": 10, "outer": TRPO(hvp_sample_fraction=0.5)}
    defaults = {"horizon": 40, "hidden_sizes": (32, 32), "rule": GradientDescent(0.2), **settings}
    return navigation_learner(**{**defaults, **changes})


@pytest.fixture(scope="module")
def data():
    learner = device_learner()
    tasks = learner.task_distribution.sample(6, np.random.default_rng(0))
    return learner.adapt(tasks, 1)


def update(device, data):
    """Gradient, a product of the KL's Hessian, and the TRPO step, from the same episodes."""
    learner = device_learner(device=device)
    objective = learner.objective([moved(at, device) for at in data])
    vector = ravel(list(learner.theta.values()))
    _, gradient = objective.loss_and_gradient(vector)
    product = objective.kl_products(vector, 0.5, np.random.default_rng(0))(gradient)
    after, _, outcome = learner.outer.update(objective, vector, np.random.default_rng(0), learner.state.outer)
    return {"gradient": gradient, "product": product, "step": after - vector}, outcome


@pytest.mark.parametrize("device", DEVICES)
def test_every_device_gives_the_same_update_from_the_same_episodes(device, data):
    """To 1e-4 of its length for a gradient and a product, 1e-2 for the step, in which conjugate gradient adds to it."""
    expected, outcome = update("cpu", data)
    found, other = update(device, data)
    for name, tolerance in (("gradient", 1e-4), ("product", 1e-4), ("step", 1e-2)):
        assert (found[name].cpu() - expected[name]).norm() <= tolerance * expected[name].norm(), name
    assert (outcome.status, other.status) == ("accepted", "accepted")
    assert other.details == outcome.details


@pytest.mark.parametrize("device", DEVICES)
def test_an_iteration_runs_on_every_device(device):
    learner = device_learner(device=device, num_tasks=2, episodes_per_task=3, horizon=60)
    metrics = learner.step()
    assert all(value.device.type == device for value in learner.theta.values())
    assert metrics["kl"] >= 0


@pytest.mark.parametrize("device", DEVICES)
def test_conjugate_gradient_never_waits_for_the_host(device, data):
    learner = device_learner(device=device)
    objective = learner.objective([moved(at, device) for at in data])
    vector = ravel(list(learner.theta.values()))
    product = objective.kl_products(vector, 0.5, np.random.default_rng(0))
    with Waiting() as waiting:
        _, residual = conjugate_gradient(product, vector, 3)
    assert waiting.count == 0
    with waiting:
        assert residual.norm().item() >= 0
    assert waiting.count == 1, "the counter counts nothing"


@pytest.mark.parametrize("device", DEVICES)
def test_few_shot_tasks_are_drawn_where_the_images_lie(device):
    images = torch.randint(0, 256, (8, 6, 28, 28, 1), dtype=torch.uint8)
    tasks = [
        ImageEpisodes({"train": images.to(place)}, 3, 1, 2).sample(4, "train", np.random.default_rng(0))
        for place in ("cpu", device)
    ]
    assert tasks[1].query.inputs.device.type == device
    assert torch.equal(tasks[1].query.inputs.cpu(), tasks[0].query.inputs)
    learner = FewShotLearner(
        ImageEpisodes({"train": images.to(device)}, 3, 1, 2),
        MAML(ConvNet((28, 28, 1), 3, 4), CLASSIFICATION),
        num_tasks=4,
        device=device,
    )
    assert np.isfinite(learner.step()["loss"])
