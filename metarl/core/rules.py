"""Adaptation rules: where a task's parameters start from the meta-parameters, and what one inner step does to them.

Shapes: theta and phi are dicts of tensors with a leading axis of M tasks, except in `meta_parameters`.
"""

import fnmatch
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from metarl.core.parameters import Parameters
from metarl.core.settings import SettingError, check_settings, setting


class AdaptationRule(Protocol):
    """What the inner loop needs of a rule.

    Attributes:
        inner_steps: S, the number of inner steps in meta-training.
        second_order: whether the meta-gradient runs through the inner gradients.
    """

    @property
    def inner_steps(self) -> int: ...

    @property
    def second_order(self) -> bool: ...

    def at(self, iteration: int) -> Self:
        """The rule that holds after so many meta-iterations; the same one where nothing is scheduled."""
        ...

    def meta_parameters(self, parameters: Parameters) -> Parameters:
        """Theta for a module's parameters: these, and whatever else the rule itself learns; no axis of tasks."""
        ...

    def adapted_names(self, phi: Parameters) -> list[str]:
        """Names of the parameters that inner steps change; the others are shared by all tasks."""
        ...

    def start(self, theta: Parameters) -> Parameters:
        """The module's parameters before the first inner step."""
        ...

    def update(self, theta: Parameters, phi: Parameters, gradients: Parameters, inner_step: int) -> Parameters:
        """Parameters after inner step number `inner_step`, counted from 0, given the gradients of the adapted ones."""
        ...


@dataclass(frozen=True)
class GradientDescent:
    """phi' = phi - alpha_s * gradient (Finn et al. 2017).

    With `adapted` naming the last layer this is ANIL (Raghu et al. 2020): the rest of the network is shared and only
    meta-learned. With `adapted` naming a context vector that the module feeds to itself, and `from_zero`, it is CAVIA
    (Zintgraf et al. 2019); the context's entry in theta then has no effect and keeps its value.

    With `averaged`, inner step s = 1, 2, ... has the size alpha / s. The gradient of every step comes from new data and
    is as noisy as that of the step before. If a whole step from phi_{s-1} leads to an estimate x_s of the task's best
    parameters, then phi_s = phi_{s-1} + (x_s - phi_{s-1}) / s is the mean of x_1 ... x_s. So the noise of all steps is
    averaged, where equal steps would keep that of the last one (Robbins and Monro 1951).

    Attributes:
        adapted: patterns, as of file names, of the parameters that inner steps change.
        from_zero: the adapted parameters of every task start at 0, not at theta.
    """

    step_size: float = setting(0.1, "step size of the inner loop, alpha", more_than=0, flag="inner_step_size")
    inner_steps: int = setting(1, "gradient steps of the inner loop in training, S", at_least=0)
    second_order: bool = setting(True, "let the meta-gradient run through the inner gradients")
    extra_step_scale: float = setting(
        0.5,
        "scale of the step size, at test time, of steps after the S trained ones and after the first",
        more_than=0,
        source="paper's code",
        changeable=True,
    )
    averaged: bool = setting(
        False,
        "give inner step s = 1, 2, ... the size alpha / s, at test time too, so that steps average their estimates; "
        "the scale of extra steps then plays no part",
        flag="averaged_steps",
    )
    milestones: tuple[int, ...] = setting(
        (), "iterations after which the step size changes", at_least=1, flag="inner_step_size_milestones"
    )
    milestone_step_sizes: tuple[float, ...] = setting(
        (), "step size after each of these milestones", more_than=0, flag="milestone_step_sizes"
    )
    adapted: tuple[str, ...] = ("*",)
    from_zero: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
        if isinstance(self.adapted, str):
            raise SettingError(f"adapted = {self.adapted!r}; allowed: a tuple of patterns")
        if len(self.milestones) != len(self.milestone_step_sizes) or list(self.milestones) != sorted(
            set(self.milestones)
        ):
            raise SettingError(
                f"milestones = {self.milestones} with milestone_step_sizes = {self.milestone_step_sizes}; "
                "allowed: rising iterations, with a step size for each"
            )

    def at(self, iteration: int) -> Self:
        """The rule with the step size of the last milestone that `iteration` has reached."""
        reached = sum(milestone <= iteration for milestone in self.milestones)
        if not reached:
            return self
        return replace(self, step_size=self.milestone_step_sizes[reached - 1], milestones=(), milestone_step_sizes=())

    def meta_parameters(self, parameters: Parameters) -> Parameters:
        """The module's parameters alone; ValueError if a pattern of `adapted` fits none of them."""
        for pattern in self.adapted:
            if not fnmatch.filter(parameters, pattern):
                raise ValueError(f"adapted = {pattern!r} fits no parameter; allowed: {', '.join(parameters)}")
        return dict(parameters)

    def adapted_names(self, phi: Parameters) -> list[str]:
        """Those that fit a pattern of `adapted`."""
        return [name for name in phi if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.adapted)]

    def start(self, theta: Parameters) -> Parameters:
        """Every task starts at theta, or its adapted parameters at 0."""
        phi = dict(theta)
        if self.from_zero:
            phi |= {name: 0 * phi[name] for name in self.adapted_names(phi)}  # in the graph, with derivative 0
        return phi

    def update(self, theta: Parameters, phi: Parameters, gradients: Parameters, inner_step: int) -> Parameters:
        """Return phi with the adapted parameters moved by -alpha_s times their gradients."""
        scale = self._scale(inner_step)
        moved = {
            name: phi[name] - scale * self._step_size(theta, name, inner_step) * gradient
            for name, gradient in gradients.items()
        }
        return {**phi, **moved}

    def _scale(self, inner_step: int) -> float:
        """The factor of the step size of an inner step, counted from 0."""
        if self.averaged:
            return 1 / (inner_step + 1)
        return 1.0 if inner_step < max(1, self.inner_steps) else self.extra_step_scale

    def _step_size(self, theta: Parameters, name: str, inner_step: int) -> float | Tensor:
        return self.step_size


class _LearnedStepSizes(GradientDescent):
    """Gradient descent whose step sizes are meta-parameters `step_size.NAME`, one tensor per adapted parameter."""

    _prefix = "step_size."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.milestones:
            raise SettingError(f"milestones = {self.milestones} of learned step sizes; allowed: none")

    def meta_parameters(self, parameters: Parameters) -> Parameters:
        """The module's parameters, and the step sizes of the adapted ones, which all start at `step_size`."""
        theta = super().meta_parameters(parameters)
        if taken := [name for name in theta if name.startswith(self._prefix)]:
            raise ValueError(f"parameter {taken[0]!r} has the name of a step size; allowed: any other name")
        sizes = {self._prefix + n: self._initial_step_size(theta[n]) for n in self.adapted_names(theta)}
        return {**theta, **sizes}

    def start(self, theta: Parameters) -> Parameters:
        """As in plain gradient descent; the step sizes are no parameters of the module."""
        own = {name: value for name, value in theta.items() if not name.startswith(self._prefix)}
        return super().start(own)

    def _initial_step_size(self, parameter: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class MetaSGD(_LearnedStepSizes):
    """phi' = phi - alpha * gradient, alpha a learned tensor shaped as the parameter (Meta-SGD, Li et al. 2017).

    All inner steps share it. Its elements may become negative, as in the paper; they start at one value, where the
    paper draws them at random. Attributes as in `GradientDescent`; `step_size` is where alpha starts.
    """

    def _initial_step_size(self, parameter: Tensor) -> Tensor:
        return torch.full_like(parameter, self.step_size)

    def _step_size(self, theta: Parameters, name: str, inner_step: int) -> Tensor:
        return theta[self._prefix + name]


@dataclass(frozen=True)
class LayerStepSizes(_LearnedStepSizes):
    """phi' = phi - alpha_s * gradient, alpha_s a learned number per tensor and step (MAML++, Antoniou et al. 2019).

    Inner steps after the S trained ones use the last one's size times `extra_step_scale`. Attributes as in
    `GradientDescent`; `step_size` is where all alpha_s start. The paper gives a layer's weight and bias one number;
    here each tensor has its own.
    """

    def _initial_step_size(self, parameter: Tensor) -> Tensor:
        return parameter.new_full((max(1, self.inner_steps),), self.step_size)

    def _step_size(self, theta: Parameters, name: str, inner_step: int) -> Tensor:
        sizes = theta[self._prefix + name][:, min(inner_step, max(1, self.inner_steps) - 1)]
        return sizes.view(-1, *[1] * (theta[name].ndim - 1))
