"""The library's estimators on the tasks of `tabular.py`: support and query data, enumerated or sampled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from metarl.core.adaptation import adapt_step
from metarl.core.parameters import Parameters, call_per_task, expand_over_tasks, ravel
from metarl.core.rules import AdaptationRule
from metarl.experiments.studies.tabular import ACTIONS, FAMILY, HORIZON, STATES, TABLE, TASKS, TRAJECTORIES
from metarl.rl.episodes import Samples
from metarl.rl.estimators import Estimator, PolicyModel, outcomes, score
from metarl.rl.objective import MetaObjective


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
        dist_params=outputs,
        log_probs=FAMILY.log_prob(outputs, taken),
        advantages=torch.from_numpy(advantages),
        weights=torch.from_numpy(np.tile(shares, HORIZON) / HORIZON),
        time_steps=HORIZON,
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
        last = rule.inner_steps
        return MetaObjective(
            PolicyModel(TabularPolicy(), FAMILY, estimator),
            rule,
            like,
            self.supports,
            queries={last: self.query},
            weights={last: 1.0},
            chunk=4096,
            outcomes=self.outcomes if sampling else None,
        )

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
    rows = [(m, *path) for m in range(len(TASKS)) for path in product(range(len(sets)), repeat=rule.inner_steps)]
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
    chosen, shares, _ = choose(phi, rule.inner_steps, query)
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
    model = PolicyModel(TabularPolicy(), FAMILY, score)
    phi, supports, weights = rule.start(theta), [], np.ones(len(task))
    for step in range(rule.inner_steps):
        chosen, shares, probability = choose(phi, step)
        supports.append(samples_of(phi, task, chosen, shares))
        weights = weights * probability
        phi, _ = adapt_step(model, rule, theta, phi, supports[-1], step)
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
