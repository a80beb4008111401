"""What PSRL earns on random decision processes: `python experiments/studies/posterior_sampling.py --episodes 10`.

Posterior sampling (Strens 2000; Osband et al. 2013, "(More) efficient reinforcement learning via posterior sampling")
knows the prior of the decision processes. RL^2, which does not, is compared with it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metarl.core.randomness import RolloutKey, keyed_generator
from metarl.core.settings import check_settings, setting
from metarl.envs import RandomMDPs
from metarl.experiments.runner.command_line import OneLineParser, read_plain
from metarl.experiments.runner.training import one_line_errors


@dataclass(frozen=True)
class PosteriorStudy:
    """Which decision processes, and how many."""

    states: int = setting(10, "S", at_least=2)
    actions: int = setting(5, "A", at_least=2)
    horizon: int = setting(10, "steps of an episode", at_least=1)
    episodes: int = setting(10, "episodes of a trial", at_least=1)
    processes: int = setting(1_000, "decision processes that are played", at_least=2)
    seed: int = setting(0, "names all randomness", at_least=0)

    def __post_init__(self) -> None:
        check_settings(self)


class Posterior:
    """What N agents know of their decision processes: Dirichlet counts, and sums and numbers of rewards."""

    def __init__(self, processes: int, states: int, actions: int):
        self.counts = np.ones((processes, states, actions, states))
        self.reward_sums = np.ones((processes, states, actions))  # the prior N(1, 1) weighs as one reward of 1
        self.reward_counts = np.ones((processes, states, actions))

    def sample(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw mean rewards (N, S, A) and transitions (N, S, A, S) from the posterior."""
        gammas = rng.standard_gamma(self.counts)
        means = self.reward_sums / self.reward_counts + rng.standard_normal(self.reward_sums.shape) / np.sqrt(
            self.reward_counts
        )
        return means, gammas / gammas.sum(axis=-1, keepdims=True)

    def add(self, state: np.ndarray, action: np.ndarray, reward: np.ndarray, following: np.ndarray) -> None:
        """Add one step of each agent, (N,) each."""
        agents = np.arange(len(state))
        self.counts[agents, state, action, following] += 1
        self.reward_sums[agents, state, action] += reward
        self.reward_counts[agents, state, action] += 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Play, and print a table."""
    parser = OneLineParser("Play random decision processes with a random policy, with PSRL, and knowing the process.")
    with one_line_errors():
        _, study = read_plain(PosteriorStudy, sys.argv[1:] if arguments is None else arguments, parser)
        print(f"{study.episodes} episodes, {study.processes} processes: mean return of a trial ± standard error")
        for name in ("random", "PSRL", "optimal"):
            returns = play(study, name).sum(axis=0)
            print(f"{name:<8} {returns.mean():8.2f} ± {returns.std(ddof=1) / np.sqrt(len(returns)):.2f}")


def optimal_policy(mean_rewards: np.ndarray, transitions: np.ndarray, horizon: int) -> np.ndarray:
    """Backward induction: the best action by time step and state, (T, N, S).

    Q_t(s, a) = mu(s, a) + sum_s' P(s' | s, a) max_a' Q_{t+1}(s', a'), with 0 after the last step.

    Args:
        mean_rewards: mu, (N, S, A).
        transitions: P, (N, S, A, S).
        horizon: T.
    """
    values, policy = np.zeros(mean_rewards.shape[:2]), []
    for _ in range(horizon):
        action_values = mean_rewards + np.einsum("nsaz,nz->nsa", transitions, values)
        policy.append(action_values.argmax(axis=-1))
        values = action_values.max(axis=-1)
    return np.stack(policy[::-1])


def play(study: PosteriorStudy, policy: str) -> np.ndarray:
    """Returns of every episode of a trial, (E, N), with the policy `random`, `PSRL` or `optimal`."""
    distribution = RandomMDPs(study.states, study.actions, study.horizon)
    count, rng = study.processes, keyed_generator(study.seed, "study/policy")
    tasks = distribution.sample(count, keyed_generator(study.seed, "study/tasks"))
    batch, posterior = distribution.make(count), Posterior(count, study.states, study.actions)
    returns, agents = np.zeros((study.episodes, count)), np.arange(count)
    known = optimal_policy(tasks["mean_rewards"], tasks["transitions"], study.horizon)
    for episode in range(study.episodes):
        seeds = RolloutKey(study.seed, "study", 0, first_episode=episode).reset_seeds(count, 1)
        observations, _ = batch.reset(seed=seeds, options={"tasks": tasks})
        plan = optimal_policy(*posterior.sample(rng), study.horizon) if policy == "PSRL" else known
        for t in range(study.horizon):
            state = observations.argmax(axis=1)
            actions = rng.integers(study.actions, size=count) if policy == "random" else plan[t, agents, state]
            observations, rewards, *_ = batch.step(actions)
            posterior.add(state, actions, rewards, observations.argmax(axis=1))
            returns[episode] += rewards
    return returns


if __name__ == "__main__":
    main()
