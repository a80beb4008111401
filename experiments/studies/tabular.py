"""Tiny tabular tasks whose expected return after adaptation, and its meta-gradient, are known exactly.

Two states, two actions, two time steps, a softmax policy with one logit per state and action. Every trajectory can be
enumerated, and so can every set of support episodes.

This file has the truth and the theory, in numpy: probabilities, scores and curvatures written out by hand,
differentiated by a complex step (exact to rounding: f'(x) = Im f(x + ih) / h with h = 1e-30). `tabular_batches.py` runs
the library's estimators on enumerated or sampled episodes of the same tasks.

All returns here are divided by the horizon, as a loss that weighs every time step the same divides them.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement, product

import gymnasium
import numpy as np

from metarl.rl.action_distributions import Categorical
from metarl.rl.estimators import Estimator, dice, lvc, surrogate

HORIZON = 2
TRAJECTORIES = np.array(list(product([0], [0, 1], [0, 1], [0, 1])))  # state 0, action, state, action: (8, 4)
STATES, ACTIONS = TRAJECTORIES[:, ::2], TRAJECTORIES[:, 1::2]  # (8, 2)
TABLE = np.array([[0.3, -0.2], [-0.5, 0.4]])  # logits (state, action) at which everything is measured
FAMILY = Categorical(gymnasium.spaces.Discrete(2))


@dataclass(frozen=True)
class TabularTask:
    """A decision process that starts in state 0.

    Attributes:
        transitions: (2, 2, 2), probability of the next state by state and action.
        rewards: (2, 2), by state and action.
        baseline: (2, 2), by time step and state; any numbers, none of which may change an expected gradient.
    """

    transitions: np.ndarray
    rewards: np.ndarray
    baseline: np.ndarray

    @property
    def advantages(self) -> np.ndarray:
        """Reward-to-go less the baseline, (8, 2)."""
        rewards = self.rewards[STATES, ACTIONS]
        return np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1] - self.baseline[np.arange(HORIZON), STATES]

    def probabilities(self, table: np.ndarray) -> np.ndarray:
        """Of the 8 trajectories, (8,)."""
        chosen = softmax(table)[STATES, ACTIONS].prod(axis=1)
        return chosen * self.transitions[STATES[:, 0], ACTIONS[:, 0], STATES[:, 1]]

    def expected_return(self, table: np.ndarray) -> np.ndarray:
        """Per time step, ()."""
        return self.probabilities(table) @ self.rewards[STATES, ACTIONS].sum(axis=1) / HORIZON


TASKS = (
    TabularTask(
        transitions=np.array([[[0.8, 0.2], [0.3, 0.7]], [[0.4, 0.6], [0.9, 0.1]]]),
        rewards=np.array([[1.0, -0.5], [2.0, 0.3]]),
        baseline=np.array([[0.5, 0.0], [0.2, 0.7]]),
    ),
    TabularTask(
        transitions=np.array([[[0.1, 0.9], [0.6, 0.4]], [[0.5, 0.5], [0.2, 0.8]]]),
        rewards=np.array([[-1.0, 0.8], [0.4, 1.5]]),
        baseline=np.array([[0.1, 0.0], [-0.4, 0.6]]),
    ),
)


def softmax(table: np.ndarray) -> np.ndarray:
    """Of every row; complex numbers pass through."""
    exponentials = np.exp(table)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


# The truth and the theory


def scores(table: np.ndarray) -> np.ndarray:
    """Gradient of log p(a_t | s_t) in the logits, which is 1(a) - p(s_t) in the row of s_t: (8, 2, 4)."""
    rows = np.eye(2)[ACTIONS] - softmax(table)[STATES]
    return (np.eye(2)[STATES][..., None] * rows[:, :, None]).reshape(len(TRAJECTORIES), HORIZON, 4)


def inner_gradients(task: TabularTask, table: np.ndarray) -> np.ndarray:
    """sum_t A_t l_t' / T of every trajectory, (8, 4)."""
    return np.einsum("nt,ntk->nk", task.advantages, scores(table)) / HORIZON


def curvatures(task: TabularTask, table: np.ndarray, kind: Estimator) -> np.ndarray:
    """Second derivative of minus an estimator's loss on every trajectory, (8, 4, 4), from the papers' formulas."""
    p, state = softmax(table)[STATES], np.eye(2)[STATES]
    fisher = p[..., None] * np.eye(2) - p[..., None] * p[..., None, :]
    first = scores(table)
    terms = -np.einsum("ntu,ntv,ntij->ntuivj", state, state, fisher).reshape(*STATES.shape, 4, 4)  # l_t''
    if kind in (surrogate, lvc, dice):
        terms += np.einsum("nti,ntj->ntij", first, first)
    if kind is dice:
        cross = np.einsum("ni,nj->nij", first[:, 1], first[:, 0])
        terms[:, 1] += cross + cross.swapaxes(1, 2)
    return np.einsum("nt,ntij->nij", task.advantages, terms) / HORIZON


def draws(task: TabularTask, table: np.ndarray, episodes: int | None) -> Iterator[tuple[complex, np.ndarray]]:
    """All sets of E support episodes: probability of the set, and share (8,) of every trajectory in it.

    None stands for infinitely many episodes: one set, whose shares are the trajectories' probabilities.
    """
    p = task.probabilities(table)
    if episodes is None:
        yield 1.0, p
        return
    for chosen in combinations_with_replacement(range(len(TRAJECTORIES)), episodes):
        counts = np.bincount(chosen, minlength=len(TRAJECTORIES))
        orders = math.factorial(episodes) / math.prod(map(math.factorial, counts.tolist()))
        yield orders * np.prod(p**counts), counts / episodes


def adapted_return(
    task: TabularTask, table: np.ndarray, alpha: np.ndarray, steps: int, episodes: int | None
) -> complex:
    """The objective: the expected return after S inner steps, over all support data; an analytic function."""
    if steps == 0:
        return complex(task.expected_return(table))
    gradients = inner_gradients(task, table)
    return sum(
        probability
        * adapted_return(task, table + alpha * (share @ gradients).reshape(2, 2), alpha, steps - 1, episodes)
        for probability, share in draws(task, table, episodes)
    )


def _estimated_return(
    task: TabularTask,
    table: np.ndarray,
    alpha: np.ndarray,
    steps: int,
    episodes: int | None,
    kind: Estimator | None,
    sampling: bool = False,
) -> complex:
    """A function whose derivative is the expectation of an estimator: what theory says about it.

    The real part of the table is where the episodes are sampled, its imaginary part the direction of differentiation.
    An estimator replaces the derivative of the inner gradient by its own curvature, 0 for first order (kind None), and
    leaves out that of the sampling distribution, unless `sampling` adds it.
    """
    if steps == 0:
        return complex(task.expected_return(table))
    here = table.real.copy()
    gradients = inner_gradients(task, here).astype(complex)
    if kind is not None:
        gradients += 1j * curvatures(task, here, kind) @ table.imag.reshape(4)
    total = 0j
    for (frozen, share), (moving, _) in zip(draws(task, here, episodes), draws(task, table, episodes), strict=True):
        moved = table + alpha * (share @ gradients).reshape(2, 2)
        after = _estimated_return(task, moved, alpha, steps - 1, episodes, kind, sampling)
        total += (moving if sampling else frozen) * after
    return total


def complex_step(function: Callable[[np.ndarray], complex], point: np.ndarray) -> np.ndarray:
    """Gradient of an analytic function, flat."""
    directions = np.eye(point.size).reshape(-1, *point.shape)
    return np.array([function(point + 1e-30j * direction).imag / 1e-30 for direction in directions])


def exact_gradient(alpha: float, steps: int, episodes: int | None) -> np.ndarray:
    """The meta-gradient of the mean adapted return of all tasks, (4,)."""
    sizes = np.full((2, 2), alpha)
    return complex_step(
        lambda table: sum(adapted_return(task, table, sizes, steps, episodes) for task in TASKS) / len(TASKS), TABLE
    )


def theoretical_gradient(
    alpha: float, steps: int, episodes: int | None, kind: Estimator | None, sampling: bool = False
) -> np.ndarray:
    """The meta-gradient that theory expects of an estimator, (4,)."""
    sizes = np.full((2, 2), alpha)
    return complex_step(
        lambda table: (
            sum(_estimated_return(task, table, sizes, steps, episodes, kind, sampling) for task in TASKS) / len(TASKS)
        ),
        TABLE,
    )
