"""What learners of reinforcement learning have in common: tasks, a state, and environments that are kept open."""

from typing import Any, Self

import numpy as np
from torch import nn

from metarl.core.parameters import restore_constants
from metarl.core.randomness import keyed_generator
from metarl.core.stateful import Stateful
from metarl.rl.agent import Agent
from metarl.rl.learner_checks import check_state
from metarl.rl.learner_state import LearnerState
from metarl.rl.sampler import Lanes, Sampling, num_rows
from metarl.rl.task_distribution import TaskDistribution, Tasks


class PolicyLearner(Stateful):
    """Base class of `metarl.Learner` and `metarl.RL2Learner`, both frozen dataclasses.

    It is a context manager that closes the environments at its end.
    """

    task_distribution: TaskDistribution
    policy: nn.Module
    sampling: Sampling
    seed: int
    device: str
    state: LearnerState

    _lanes: Lanes

    @property
    def env_steps(self) -> int:
        """Environment steps taken in training."""
        return self.state.env_steps

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; ValueError, and nothing changed, if names or shapes in it are others than our own."""
        given = LearnerState.from_dict(state)
        check_state(given, self.state)
        restore_constants(self.policy, state.get("constants"))
        self._constants_restored()
        self._continue_from(given)

    def agent(self, at: Any, task: int = 0) -> Agent:
        """The policy as it acted in a task at one of the steps of an evaluation, an element of its `path`."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the environments that this learner has opened; it opens others when it needs them."""
        self._lanes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def _module(self) -> nn.Module:
        return self.policy

    def _constants_restored(self) -> None:
        """Drop what was made with other buffers of the policy; by default there is nothing of the kind."""

    def _sample_tasks(self) -> Tasks:
        """A meta-batch of tasks; ValueError if the distribution gives another number of them."""
        tasks = self.task_distribution.sample(self.sampling.num_tasks, self._generator("train/tasks"))
        if (rows := num_rows(tasks)) != self.sampling.num_tasks:
            raise ValueError(f"sample({self.sampling.num_tasks}) returned {rows} tasks; allowed: as many as asked for")
        return tasks

    def _generator(self, purpose: str) -> np.random.Generator:
        return keyed_generator(self.seed, purpose, self.state.iteration)

    def _continue_from(self, state: LearnerState) -> None:
        """Take over a copy of a state; ValueError unless its names and shapes are the learner's own."""
        check_state(state, self.state)
        self._set(state=state.copied_to(self.device))
