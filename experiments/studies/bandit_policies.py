"""What known policies earn on Bernoulli bandits: `python experiments/studies/bandit_policies.py --arms 5 --pulls 10`.

The Gittins index knows the prior and the number of pulls that are left, and is close to the best policy there is;
Thompson sampling knows the prior alone. RL^2, which is told neither, is compared with them.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from metarl.core.randomness import RolloutKey, keyed_generator
from metarl.core.settings import check_settings, setting
from metarl.envs import BernoulliBandits
from metarl.experiments.runner.command_line import OneLineParser, read_plain
from metarl.experiments.runner.training import one_line_errors

BanditPolicy = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""Maps the payoffs 1 and 0 so far, (N, k) each, and the number of pulls that are left to arms (N,)."""


@dataclass(frozen=True)
class BanditStudy:
    """Which bandits, and how many."""

    arms: int = setting(5, "k, arms of a bandit", at_least=2)
    pulls: int = setting(10, "pulls of an episode", at_least=1)
    bandits: int = setting(10_000, "bandits that are played", at_least=2)
    seed: int = setting(0, "names all randomness", at_least=0)

    def __post_init__(self) -> None:
        check_settings(self)


def main(arguments: Sequence[str] | None = None) -> None:
    """Play, and print a table."""
    parser = OneLineParser("Play Bernoulli bandits with known policies.")
    with one_line_errors():
        _, study = read_plain(BanditStudy, sys.argv[1:] if arguments is None else arguments, parser)
        print(f"{study.arms} arms, {study.pulls} pulls, {study.bandits} bandits: mean return ± standard error")
        for name, policy in policies(study).items():
            returns = play(study, policy)
            print(f"{name:<18} {returns.mean():8.3f} ± {returns.std(ddof=1) / np.sqrt(len(returns)):.3f}")


def policies(study: BanditStudy) -> dict[str, BanditPolicy]:
    """The policies by name."""
    rng = keyed_generator(study.seed, "study/policy")
    return {
        "random": lambda ones, zeros, left: rng.integers(ones.shape[1], size=len(ones)),
        "Thompson sampling": lambda ones, zeros, left: rng.beta(ones + 1, zeros + 1).argmax(axis=1),
        "Gittins index": gittins_policy(study.pulls, rng),
    }


def gittins_policy(pulls: int, rng: np.random.Generator) -> BanditPolicy:
    """Pull the arm of the largest index, one of them at random where several have it."""
    indices = gittins_indices(pulls)

    def act(ones: np.ndarray, zeros: np.ndarray, left: int) -> np.ndarray:
        index = indices[left][ones, zeros]
        return np.where(index >= index.max(axis=1, keepdims=True) - 1e-9, rng.random(index.shape), -1.0).argmax(axis=1)

    return act


def gittins_indices(pulls: int, sizes: int = 401) -> dict[int, np.ndarray]:
    """The index of an arm for a finite horizon, by the number of pulls that are left: (n + 1, n + 1) by ones and zeros.

    The index is the certain payoff per pull between which and the arm one would be indifferent: the lambda for which

        V_m(a, b) = max(m lambda, p (1 + V_{m-1}(a + 1, b)) + (1 - p) V_{m-1}(a, b + 1)),  p = (a + 1) / (a + b + 2),

    has equal parts, V_0 being 0; a and b are the payoffs 1 and 0 so far, under a prior that is uniform in [0, 1].

    Args:
        pulls: n.
        sizes: numbers of values of lambda, equally spaced in [0, 1], between which the index is interpolated.
    """
    payoffs = np.linspace(0.0, 1.0, sizes)
    ones, zeros = np.meshgrid(np.arange(pulls + 1), np.arange(pulls + 1), indexing="ij")
    chance = ((ones + 1) / (ones + zeros + 2))[..., None]
    values, indices = np.zeros((pulls + 2, pulls + 2, sizes)), {}
    for left in range(1, pulls + 1):
        going_on = chance * (1.0 + values[1:, :-1]) + (1 - chance) * values[:-1, 1:]
        gain = going_on - left * payoffs  # decreases in lambda
        above = (gain > 0).sum(axis=-1).clip(1, sizes - 1)[..., None]
        high, low = np.take_along_axis(gain, above - 1, -1), np.take_along_axis(gain, above, -1)
        indices[left] = ((above - 1 + high / (high - low)) / (sizes - 1))[..., 0]
        # beyond n payoffs, where no episode comes, the values stay 0 and are not looked at
        values[:-1, :-1] = np.maximum(going_on, left * payoffs)
    return indices


def play(study: BanditStudy, policy: BanditPolicy) -> np.ndarray:
    """Returns of one episode on each of the bandits, (N,)."""
    distribution = BernoulliBandits(study.arms, study.pulls)
    batch = distribution.make(study.bandits)
    seeds = RolloutKey(study.seed, "study", 0).reset_seeds(study.bandits, 1)
    tasks = distribution.sample(study.bandits, keyed_generator(study.seed, "study/tasks"))
    batch.reset(seed=seeds, options={"tasks": tasks})
    ones, zeros = (np.zeros((study.bandits, study.arms), int) for _ in range(2))
    lanes = np.arange(study.bandits)
    for t in range(study.pulls):
        arms = policy(ones, zeros, study.pulls - t)
        _, rewards, *_ = batch.step(arms)
        ones[lanes, arms] += rewards > 0
        zeros[lanes, arms] += rewards == 0
    return ones.sum(axis=1).astype(float)


if __name__ == "__main__":
    main()
