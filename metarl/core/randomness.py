"""Keyed randomness: every draw is named by (seed, purpose, iteration, task, episode), never taken from a shared stream.

The key and the counter of a Philox generator hold that name (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3"), so the same name gives the same numbers whatever else was drawn before, on any number of threads, task
chunks or processes, and two names never give the same stream.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np


def keyed_generator(
    seed: int, purpose: str, iteration: int = 0, task: int = 0, episode: int = 0
) -> np.random.Generator:
    """Return the generator that belongs to one name. Numbers are non-negative; `purpose` is any text."""
    digest = hashlib.blake2b(purpose.encode(), digest_size=8).digest()
    key = [seed, int.from_bytes(digest, "little")]
    counter = [0, episode, task, iteration]  # the first word counts the blocks drawn
    return np.random.Generator(np.random.Philox(counter=np.array(counter, np.uint64), key=np.array(key, np.uint64)))


@dataclass(frozen=True)
class RolloutKey:
    """Names the randomness of one rollout.

    Attributes:
        seed: of the run.
        purpose: such as `train/step_0`; different rollouts of an iteration have different purposes.
        iteration: of the outer loop.
        first_task: global number of the first task, where a process holds only a share of the tasks.
        first_episode: number of the first episode of every task, where earlier ones came from another rollout.
    """

    seed: int
    purpose: str
    iteration: int
    first_task: int = 0
    first_episode: int = 0

    def of_step(self, inner_step: int, first_task: int) -> "RolloutKey":
        """The key of the rollout after so many inner steps, of tasks from number `first_task` on."""
        return replace(self, purpose=f"{self.purpose}/step_{inner_step}", first_task=first_task)

    def reset_seeds(self, tasks: int, episodes: int) -> list[int]:
        """One environment seed for each of the M*E lanes, in lane order."""
        lanes = self._generators("reset", tasks, episodes)
        return [int(rng.integers(2**31)) for _, _, rng in lanes]

    def normal(self, tasks: int, steps: int, episodes: int, size: int) -> np.ndarray:
        """Standard normal numbers (M, T, E, size), float32."""
        noise = np.empty((tasks, steps, episodes, size), np.float32)
        for task, episode, rng in self._generators("action", tasks, episodes):
            noise[task, :, episode] = rng.standard_normal((steps, size), np.float32)
        return noise

    def uniform(self, tasks: int, steps: int, episodes: int, size: int) -> np.ndarray:
        """Uniform numbers in [0, 1) of shape (M, T, E, size), float32."""
        noise = np.empty((tasks, steps, episodes, size), np.float32)
        for task, episode, rng in self._generators("action", tasks, episodes):
            noise[task, :, episode] = rng.random((steps, size), np.float32)
        return noise

    def _generators(self, what: str, tasks: int, episodes: int) -> Iterator[tuple[int, int, np.random.Generator]]:
        """Yield (task, episode, generator) for every lane. One generator is re-keyed, which is fast."""
        rng = keyed_generator(self.seed, f"{self.purpose}/{what}", self.iteration)
        state = rng.bit_generator.state
        for task in range(tasks):
            for episode in range(episodes):
                name = (0, self.first_episode + episode, self.first_task + task, self.iteration)
                state["state"]["counter"][:] = name
                rng.bit_generator.state = state
                yield task, episode, rng
