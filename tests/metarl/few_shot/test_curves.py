"""Families of curves against their equations."""

import numpy as np
import pytest
import torch

from metarl.core.randomness import keyed_generator
from metarl.few_shot.curves import Curves, FixedTasks
from metarl.few_shot.tasks import Sine


def draw(count=200, **options):
    tasks = Curves(4, 6, **options).sample(count, "train", keyed_generator(0, "a"))
    x, y = (torch.cat([getattr(of, name) for of in (tasks.support, tasks.query)], 1) for name in ("inputs", "targets"))
    return x[:, :, 0].double().numpy(), y[:, :, 0].double().numpy()


def residual(columns, y):
    """Largest residual of each curve's least-squares fit in some functions of x (curves, points, functions)."""
    return max(abs(a @ np.linalg.lstsq(a, b, rcond=None)[0] - b).max() for a, b in zip(columns, y, strict=True))


def test_a_sine_of_one_frequency_is_a_sum_of_sine_and_cosine():
    x, y = draw()
    assert residual(np.stack([np.sin(x), np.cos(x)], axis=2), y) < 1e-5
    x, y = draw(frequency=(0.8, 1.2))
    assert residual(np.stack([np.sin(x), np.cos(x)], axis=2), y) > 0.1
    assert abs(x).max() <= 5
    assert 4 < abs(y).max() <= 5


def test_polynomials_have_their_order_and_lines_are_lines():
    for order in (0, 1, 2):
        x, y = draw(families=("polynomial",), order=order, x=(-2.0, 2.0))
        powers = x[:, :, None] ** np.arange(3)
        assert residual(powers[:, :, : order + 1], y) < 1e-5
        if order:
            assert residual(powers[:, :, :order], y) > 0.1
        assert abs(y).max() <= order + 1  # sum of |c_i| (|x| / 2)^i
    x, y = draw(families=("line",))
    assert residual(np.stack([np.ones_like(x), x], axis=2), y) < 1e-4


def test_families_are_mixed_half_and_half():
    x, y = draw(400, families=("sine", "line"), amplitude=(1.0, 5.0))
    lines = [residual(np.stack([np.ones_like(a), a], axis=1)[None], b[None]) < 1e-4 for a, b in zip(x, y, strict=True)]
    assert 0.42 < np.mean(lines) < 0.58


def test_noise_is_absolute_or_a_share_of_the_amplitude():
    _, clean = draw(2_000)
    _, noisy = draw(2_000, noise_std=0.3)
    assert abs((noisy - clean).std() - 0.3) < 0.01
    _, relative = draw(2_000, relative_noise=0.01)
    assert 0.02 < (relative - clean).std() < 0.035  # 0.01 times the root mean square of amplitudes, 2.95
    lines = [draw(20, families=("line",), **noise)[1] for noise in ({}, {"relative_noise": 1.0})]
    torch.testing.assert_close(*lines)  # which have no amplitude


def test_support_points_may_be_on_a_part_of_the_range():
    tasks = Curves(50, 50, support_x=(-5.0, 0.0)).sample(3, "test", keyed_generator(0, "a"))
    assert tasks.support.inputs.max() <= 0
    assert tasks.query.inputs.max() > 4


def test_fixed_training_tasks_come_back_and_test_tasks_are_new():
    fixed = FixedTasks(Sine(3, 2), 4)
    first, second = (fixed.sample(50, "train", keyed_generator(0, key)) for key in "ab")
    assert len(first.support.inputs[:, 0, 0].unique()) == 4
    assert set(first.query.targets[:, 1, 0].tolist()) == set(second.query.targets[:, 1, 0].tolist())
    assert len(fixed.sample(50, "test", keyed_generator(0, "a")).support.inputs[:, 0, 0].unique()) == 50


@pytest.mark.parametrize("options", [{"families": ("cosine",)}, {"order": -1}, {"shots": 0}])
def test_what_is_no_curve_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Curves(**{"shots": 1, **options})
