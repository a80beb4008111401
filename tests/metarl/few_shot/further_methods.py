"""Small methods beyond gradient descent, in float64, one of every kind, and tasks for them."""

from dataclasses import replace

import torch
from torch import nn

from metarl.core.parameters import expand_over_tasks
from metarl.core.randomness import keyed_generator
from metarl.core.rules import GradientDescent
from metarl.few_shot.criteria import REGRESSION
from metarl.few_shot.curves import Curves
from metarl.few_shot.methods.implicit import IMAML
from metarl.few_shot.methods.laplace import Llama
from metarl.few_shot.methods.learned_optimisers import CoordinateLSTM, LearnedOptimiser, TunedOptimiser
from metarl.few_shot.methods.meta_lstm import GateLSTM, MetaLSTM
from metarl.few_shot.methods.noise import NoisyExamples
from metarl.few_shot.methods.particles import BMAML, EMAML
from metarl.few_shot.methods.platipus import Platipus
from metarl.few_shot.methods.subspaces import MaskedDescent, MTNet, TransformedMLP
from metarl.few_shot.quadratics import QUADRATIC, Quadratics
from metarl.few_shot.tasks import Examples, FewShotTasks
from tests.metarl.few_shot.learners import SmoothMLP

NOISY = replace(REGRESSION, noise_std=0.3)
ADAPTED = ("*weight", "*bias")
RULE = GradientDescent(0.1, 2)


def smooth():
    """One hidden layer with tanh, in float64."""
    return SmoothMLP().double()


def transformed():
    """Layers with matrices T that are not the identity, in float64."""
    module = TransformedMLP((1, 4, 3, 1)).double()
    with torch.no_grad():
        for layer in module.layers:
            layer.transform += 0.3 * torch.randn_like(layer.transform)
    return module


def linear(size=4):
    """Coordinates of a quadratic, in float64."""
    return nn.Linear(size, 1, bias=False).double()


def members(count=3):
    """Several modules of different initial parameters."""
    return nn.ModuleList(smooth() for _ in range(count))


def _particles(kind, **options):
    own = members()
    return kind(own[0], NOISY, RULE, members=own, **options)


MAKERS = {
    "mt-net": lambda: MTNet(transformed(), NOISY, MaskedDescent(0.1, 2, adapted=ADAPTED)),
    "emaml": lambda: _particles(EMAML),
    "bmaml": lambda: _particles(BMAML, initial_noise=0.5),
    "platipus": lambda: Platipus(smooth(), NOISY, RULE, samples=4, initial_std=0.2),
    "llama": lambda: Llama(smooth(), NOISY, RULE, samples=4, determinant_weight=0.05),
    "imaml": lambda: IMAML(smooth(), NOISY, RULE),
    "meta-lstm": lambda: MetaLSTM(smooth(), NOISY, gates=GateLSTM(3).double(), total_steps=3),
    "learned optimiser": lambda: LearnedOptimiser(
        linear(), QUADRATIC, 6, 3, 0.5, optimiser=CoordinateLSTM(3, log_scale=5.0).double()
    ),
    "adam": lambda: TunedOptimiser(linear(), QUADRATIC, 6, 3, 0.5, algorithm="adam"),
}
OPTIMISERS = ("learned optimiser", "adam")


def make(name):
    """A method, and a theta without an axis of tasks in which nothing has its initial value."""
    torch.manual_seed(0)
    method = MAKERS[name]()
    theta = {n: v + 0.1 * torch.randn(v.shape, dtype=torch.float64) for n, v in method.meta_parameters().items()}
    return method, theta


def tasks_for(name, method, count=3, seed=1):
    """Training tasks of a method, with its noise, in float64."""
    of = Quadratics(4) if name in OPTIMISERS else Curves(5, 4, noise_std=0.1)
    drawn = method.training_tasks(of).sample(count, "train", keyed_generator(seed, "test"))
    return double(drawn)


def double(tasks):
    """The tasks in float64."""
    return tasks.like([tensor.double() for tensor in tasks.tensors])


def with_noise(tasks, noise):
    """The tasks with other noise."""
    support = NoisyExamples(tasks.support.inputs, tasks.support.targets, noise)
    return FewShotTasks(support, tasks.query)


def without_noise(support):
    """The examples alone."""
    return Examples(support.inputs, support.targets)


def rows(theta, count):
    """Theta with an axis of tasks whose tensors require gradients."""
    return {name: value.requires_grad_() for name, value in expand_over_tasks(theta, count).items()}


def numbers(method, iteration=0):
    """The schedule of an iteration as tensors."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in method.schedule(iteration).items()}
