"""What learners have in common shows where their state does."""

from dataclasses import FrozenInstanceError, dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from metarl.core.stateful import Stateful


@dataclass(frozen=True, eq=False)
class Counter(Stateful):
    module: nn.Module
    state: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(theta={"w": torch.ones(2)}, iteration=3))

    @property
    def _module(self):
        return self.module


def test_theta_and_iteration_are_those_of_the_state():
    counter = Counter(nn.Linear(1, 1))
    assert counter.theta is counter.state.theta
    counter.state.iteration += 1
    assert counter.iteration == 4


def test_a_state_dict_is_the_state_and_what_of_the_module_is_not_learned():
    module = nn.BatchNorm1d(2)
    saved = Counter(module).state_dict()
    assert saved.keys() == {"theta", "iteration", "constants"}
    assert saved["iteration"] == 3
    assert torch.equal(saved["constants"]["running_var"], module.running_var)


def test_settings_are_fixed_for_everybody_else():
    counter = Counter(nn.Linear(1, 1))
    with pytest.raises(FrozenInstanceError):
        counter.module = None
    counter._set(module=None)
    assert counter.module is None
