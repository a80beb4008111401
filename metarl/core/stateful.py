"""What learners have in common: settings that are fixed, and one attribute `state` in which all that changes is."""

from typing import Any

from torch import nn

from metarl.core.parameters import Parameters, constants_of


class Stateful:
    """Base class of learners: frozen dataclasses with a `state` that has `theta` and `iteration`."""

    state: Any

    @property
    def theta(self) -> Parameters:
        """The meta-parameters."""
        return self.state.theta

    @property
    def iteration(self) -> int:
        """Meta-iterations done."""
        return self.state.iteration

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later iteration depends on, beside the settings."""
        return {**vars(self.state), "constants": constants_of(self._module)}

    @property
    def _module(self) -> nn.Module:
        """The module that is learned, whose buffers and frozen parameters are part of what is saved."""
        raise NotImplementedError

    def _set(self, **attributes: Any) -> None:
        for name, value in attributes.items():
            object.__setattr__(self, name, value)
