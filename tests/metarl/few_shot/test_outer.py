"""The outer loop: Adam, its schedule and its bounds."""

import pytest
import torch

from metarl.core.settings import SettingError
from metarl.few_shot.outer import OuterLoop


def test_updates_are_those_of_torchs_adam():
    torch.manual_seed(0)
    theta = {"weight": torch.randn(3, 2), "bias": torch.randn(3)}
    parameters = [value.clone().requires_grad_() for value in theta.values()]
    optimiser = torch.optim.Adam(parameters, 0.01, fused=True)
    outer = OuterLoop(0.01)
    adam = outer.start(theta)
    for iteration in range(5):
        gradient = {name: torch.randn_like(value) for name, value in theta.items()}
        theta, adam = outer.update(theta, gradient, adam, iteration)
        for parameter, value in zip(parameters, gradient.values(), strict=True):
            parameter.grad = value.clone()
        optimiser.step()
        assert all(torch.equal(a, b) for a, b in zip(parameters, theta.values(), strict=True))


def test_clip_bounds_each_element():
    theta = {"weight": torch.zeros(3)}
    gradient = {"weight": torch.tensor([0.1, -5.0, 30.0])}
    bounded = {"weight": torch.tensor([0.1, -1.0, 1.0])}
    clipped, plain = OuterLoop(clip=1.0), OuterLoop()
    found = clipped.update(theta, gradient, clipped.start(theta), 0)[1]
    assert torch.equal(
        found["mean"]["weight"], plain.update(theta, bounded, plain.start(theta), 0)[1]["mean"]["weight"]
    )


def test_the_learning_rate_follows_a_cosine():
    outer = OuterLoop(1.0, 0.2, iterations=10)
    assert [outer.learning_rate_at(iteration) for iteration in (0, 5, 10, 12)] == pytest.approx([1, 0.6, 0.2, 0.2])
    assert OuterLoop(0.3).learning_rate_at(1_000) == 0.3


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"clip": -1.0}, SettingError),
        ({"iterations": 0}, ValueError),
        ({"learning_rate": 0.0}, SettingError),
        ({"final_learning_rate": -0.1}, SettingError),
    ],
)
def test_settings_out_of_bounds_are_refused_by_name(settings, kind):
    [name] = settings
    with pytest.raises(kind, match=f"^{name} = "):
        OuterLoop(**settings)
