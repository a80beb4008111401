"""Tiny tabular tasks whose expected return after adaptation, and its meta-gradient, are known exactly.

Two states, two actions, two time steps, a softmax policy with one logit per state and action. Every trajectory can be
enumerated, and so can every set of support episodes. Two independent halves:

- the truth and the theory, in numpy: probabilities, scores and curvatures written out by hand, differentiated by a
  complex step (exact to rounding: f'(x) = Im f(x + ih) / h with h = 1e-30);
- the library's estimators, run on enumerated or sampled episodes of the same tasks.

All returns here are divided by the horizon, as a loss that weighs every time step the same divides them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from metarl.core.adaptation import AdaptationRule, adapt_step
from metarl.core.parameters import Parameters, call_per_task, expand_over_tasks, ravel
from metarl.rl.action_distributions import Categorical
from metarl.rl.episodes import Samples
from metarl.rl.estimators import Estimator, dice, lvc, outcomes, policy_loss, score, surrogate
from metarl.rl.objective import MetaObjective

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


def estimated_return(
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
        after = estimated_return(task, moved, alpha, steps - 1, episodes, kind, sampling)
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
            sum(estimated_return(task, table, sizes, steps, episodes, kind, sampling) for task in TASKS) / len(TASKS)
        ),
        TABLE,
    )


# The library on the same tasks


class TabularPolicy(nn.Module):
    """One-hot states to the logits of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.from_numpy(TABLE.copy()))

    def forward(self, observations: Tensor) -> Tensor:
        """(batch, 2) to (batch, 2)."""
        return observations @ self.table


def samples_of(phi: Parameters, task: Sequence[int], chosen: np.ndarray, shares: np.ndarray) -> Samples:
    """Samples as the learner would make them of episodes that followed some of the 8 trajectories.

    Args:
        phi: parameters that acted, (M, ...).
        task: which of the tasks each row is, M times.
        chosen: trajectory of every episode, (M, E).
        shares: weight of every episode, (M, E).
    """
    states, actions = (np.moveaxis(part[chosen], 1, 2).reshape(len(chosen), -1) for part in (STATES, ACTIONS))
    advantages = np.stack([TASKS[m].advantages[row].T.reshape(-1) for m, row in zip(task, chosen, strict=True)])
    observations = nn.functional.one_hot(torch.from_numpy(states), 2).double()
    outputs = call_per_task(TabularPolicy(), phi, observations).detach()
    taken = torch.from_numpy(actions)
    return Samples(
        observations=observations,
        actions=taken,
        distribution=outputs,
        log_probs=FAMILY.log_prob(outputs, taken),
        advantages=torch.from_numpy(advantages),
        weights=torch.from_numpy(np.tile(shares, HORIZON) / HORIZON),
        steps=HORIZON,
    )


@dataclass(frozen=True)
class Batch:
    """Support and query data of M tasks, or of M repetitions of them.

    Attributes:
        supports, query: as the meta-objective takes them.
        outcomes: (M,), return per step after adaptation, as the sampling term takes it.
    """

    supports: list[Samples]
    query: Samples
    outcomes: Tensor

    def objective(self, estimator: Estimator, rule: AdaptationRule, sampling: bool = False) -> MetaObjective:
        """The library's meta-objective of this data."""
        like = rule.meta_parameters({"table": torch.from_numpy(TABLE)})
        arguments = (TabularPolicy(), FAMILY, estimator, rule, like, self.supports, self.query)
        return MetaObjective(*arguments, chunk=4096, outcomes=self.outcomes if sampling else None)

    def meta_gradient(self, estimator: Estimator, rule: AdaptationRule, sampling: bool = False) -> np.ndarray:
        """The library's estimate of the gradient of the return, flat."""
        objective = self.objective(estimator, rule, sampling)
        return -objective.loss_and_gradient(ravel(list(objective.like.values())))[1].numpy()


def enumerated(rule: AdaptationRule, episodes: int | None) -> Batch:
    """All support data of S inner steps and all query trajectories, weighted by their probabilities.

    Every sequence of support sets is a row of its own; the weights of its query data hold the probability of the row,
    so the meta-gradient, linear in them, is the expectation over everything.
    """
    if episodes is None:
        sets = np.arange(len(TRAJECTORIES))[None]
    else:
        sets = np.array(list(product(range(len(TRAJECTORIES)), repeat=episodes)))
    rows = [(m, *path) for m in range(len(TASKS)) for path in product(range(len(sets)), repeat=rule.steps)]
    task = [row[0] for row in rows]

    def choose(phi: Parameters, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        probabilities = _probabilities(phi, task)
        chosen = sets[[row[1 + step] for row in rows]]
        if episodes is None:
            return chosen, probabilities, np.ones(len(rows))
        return chosen, np.full(chosen.shape, 1 / episodes), np.take_along_axis(probabilities, chosen, 1).prod(axis=1)

    supports, phi, weights = _adapt(rule, task, choose)
    weights = weights * len(rows) / len(TASKS)
    return Batch(*_population(phi, task, supports, weights))


def sampled(
    rule: AdaptationRule, episodes: int, repetitions: int, rng: np.random.Generator, query: int | None
) -> Batch:
    """Support data drawn as a learner draws them, for so many repetitions of all tasks.

    Args:
        rule: the adaptation rule.
        episodes: E of support data.
        repetitions: of every task.
        rng: draws the trajectories.
        query: episodes after adaptation; None takes their expectation instead.
    """
    task = list(range(len(TASKS))) * repetitions

    def choose(phi: Parameters, step: int, count: int = episodes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        cumulated = _probabilities(phi, task).cumsum(axis=1)[:, :-1]
        chosen = (rng.random((len(task), count, 1)) > cumulated[:, None]).sum(axis=-1)
        return chosen, np.full(chosen.shape, 1 / count), np.ones(len(task))

    supports, phi, weights = _adapt(rule, task, choose)
    if query is None:
        return Batch(*_population(phi, task, supports, weights))
    chosen, shares, _ = choose(phi, rule.steps, query)
    rewards = np.stack([TASKS[m].rewards[STATES[row], ACTIONS[row]] for m, row in zip(task, chosen, strict=True)])
    returns = torch.from_numpy(rewards.sum(axis=2))
    per_task = outcomes(returns, torch.full_like(returns, HORIZON), torch.ones(len(task)))
    return Batch(supports, samples_of(phi, task, chosen, shares), per_task)


def _probabilities(phi: Parameters, task: Sequence[int]) -> np.ndarray:
    return np.stack([TASKS[m].probabilities(table) for m, table in zip(task, phi["table"].numpy(), strict=True)])


def _adapt(
    rule: AdaptationRule,
    task: Sequence[int],
    choose: Callable[[Parameters, int], tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[list[Samples], Parameters, np.ndarray]:
    """Alternate between `choose`, which returns episodes, shares and probability, and the library's inner step."""
    theta = rule.meta_parameters({"table": torch.from_numpy(TABLE)})
    theta = expand_over_tasks(theta, len(task))
    phi, supports, weights = rule.start(theta), [], np.ones(len(task))
    for step in range(rule.steps):
        chosen, shares, probability = choose(phi, step)
        supports.append(samples_of(phi, task, chosen, shares))
        weights = weights * probability
        phi, _ = adapt_step(policy_loss(TabularPolicy(), FAMILY, score), rule, theta, phi, supports[-1], step)
    return supports, phi, weights


def _population(
    phi: Parameters, task: Sequence[int], supports: list[Samples], weights: np.ndarray
) -> tuple[list[Samples], Samples, Tensor]:
    """Query data that hold every trajectory with its probability times the weight of the row."""
    probabilities = _probabilities(phi, task)
    chosen = np.tile(np.arange(len(TRAJECTORIES)), (len(task), 1))
    query = samples_of(phi, task, chosen, probabilities * weights[:, None])
    returns = [TASKS[m].expected_return(table) for m, table in zip(task, phi["table"].numpy(), strict=True)]
    return supports, query, torch.from_numpy(np.array(returns) * weights)
