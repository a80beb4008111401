"""Noise that comes with tasks."""

import numpy as np
import pytest
import torch

from metarl.core.randomness import keyed_generator
from metarl.few_shot.methods.noise import NoisyTasks, fixed_noise, noise_of
from metarl.few_shot.tasks import Examples, Sine


def test_tasks_are_those_of_the_distribution_and_their_noise_is_keyed():
    plain = Sine(3, 2).sample(4, "train", keyed_generator(0, "a"))
    first, second = (NoisyTasks(Sine(3, 2), 5).sample(4, "train", keyed_generator(0, "a")) for _ in range(2))
    assert torch.equal(first.support.inputs, plain.support.inputs)
    assert torch.equal(first.query.targets, plain.query.targets)
    assert torch.equal(first.support.noise, second.support.noise)
    assert first.support.noise.shape == (4, 5)
    assert len(first.support.noise.unique()) == 20


def test_numbers_are_standard_normal_or_uniform():
    normal, uniform = (
        NoisyTasks(Sine(1, 1), 5_000, kind).sample(2, "train", keyed_generator(0, "a")).support.noise
        for kind in (False, True)
    )
    assert abs(normal.mean()) < 0.03
    assert abs(normal.std() - 1) < 0.03
    assert 0 < uniform.min() < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.02


def test_examples_without_noise_have_the_same_fixed_numbers_for_all_tasks():
    examples = Examples(torch.zeros(3, 2, 1), torch.zeros(3, 2, 1))
    found = noise_of(examples, 4)
    assert torch.equal(found, fixed_noise(examples.inputs, 1, 4).expand(3, 4))
    assert torch.equal(found, noise_of(examples, 4))
    drawn = NoisyTasks(Sine(2, 2), 4).sample(3, "train", np.random.default_rng(0)).support
    assert noise_of(drawn, 4) is drawn.noise


def test_what_a_distribution_has_beside_its_tasks_remains_visible():
    class Named(Sine):
        ways = 7

    assert NoisyTasks(Named(), 1).ways == 7
    assert not hasattr(NoisyTasks(Sine(), 1), "ways")
    with pytest.raises(AttributeError):
        NoisyTasks(Sine(), 1).shots  # noqa: B018
