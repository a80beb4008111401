"""What a few lanes of a task distribution show in a step or two: the part of `check` that takes milliseconds."""

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv

from metarl.core.randomness import keyed_generator
from metarl.rl.action_distributions import action_distribution_for
from metarl.rl.task_distribution import Tasks, describe_array, describe_error

_STEPS = 50  # of episodes that are the same, before a parameter is said to change nothing
TASKS = 16  # of which two with other values of a parameter are looked for


def quick_check(distribution: Any) -> list[str]:
    """Return what is wrong with a batch, or else which task parameters change nothing, in plain words.

    A parameter changes nothing where `set_task` sets a misspelt attribute. Lane k + 1 has the task of lane 0, but for
    its parameter number k, and the same seed and actions. The lanes are stepped until all differ from lane 0, which
    mostly takes one step, or the episode of lane 0 ends; after a short one further episodes begin, for chance may have
    made it the same. Random numbers come from generators of its own.
    """
    names, tasks = _varied(distribution.sample(TASKS, keyed_generator(0, "check/tasks")))
    if not names:
        return ["sample gives the same task every time"]
    lanes = len(names) + 1
    batch, defects = made_batch(distribution, lanes)
    if defects:
        return defects
    if defects := step_defects(distribution, batch, tasks):
        return [*defects, *close_batch(batch)]
    same, steps, seed = np.ones(lanes, bool), 0, 0
    try:
        while same[1:].any() and (steps < _STEPS or seed == 0):
            steps += _compare(distribution, batch, tasks, seed, same)
            seed += 1
    except Exception as error:
        return [f"the batch fails with tasks set: {describe_error(error)}"]
    idle = [name for name, of in zip(names, same[1:], strict=True) if of]
    return [
        *(f"the task parameter {name!r} changes nothing: with the same seed and actions, {steps} steps are the same "
          "for two values of it" for name in idle),
        *close_batch(batch),
    ]  # fmt: skip


def _compare(distribution: Any, batch: Any, tasks: Tasks, seed: int, same: np.ndarray) -> int:
    """Play an episode, until all lanes differ from lane 0; note in `same` which do not, and return its steps."""
    lanes = len(same)
    observations, _ = batch.reset(seed=[seed] * lanes, options={"tasks": tasks})
    same &= [_alike(observation, observations[0]) for observation in observations]
    for steps, action in enumerate(random_actions(distribution, distribution.horizon, 1)):
        if not same[1:].any():
            return steps
        observations, rewards, *ends, infos = batch.step(np.repeat(action, lanes, axis=0))
        ended = ends[0] | ends[1]
        seen = with_final(observations, infos)
        same &= [_alike(observation, seen[0]) for observation in seen]
        same &= [_alike(reward, rewards[0]) for reward in rewards] & (ended == ended[0])
        if ended[0]:
            break
    return steps + 1


def _varied(tasks: Tasks) -> tuple[list[str], Tasks]:
    """The parameters that differ between tasks, and 1 + P tasks, each after the first with another value of one."""
    others = {name: [value for value in of if not _alike(value, of[0])] for name, of in tasks.items()}
    names = [name for name, of in others.items() if of]
    varied = {name: np.repeat(of[:1], len(names) + 1, axis=0) for name, of in tasks.items()}
    for lane, name in enumerate(names, start=1):
        varied[name][lane] = others[name][0]
    return names, varied


def _alike(a: Any, b: Any) -> bool:
    return np.array_equal(a, b, equal_nan=True)


def made_batch(distribution: Any, lanes: int) -> tuple[Any, list[str]]:
    """A new batch, and what is wrong with it before its first reset."""
    try:
        batch = distribution.make(lanes, 1)
    except Exception as error:
        return None, [f"make({lanes}, 1) fails: {describe_error(error)}"]
    if not isinstance(batch, VectorEnv):
        return batch, [f"make({lanes}, 1) returned a {type(batch).__name__}; allowed: a gymnasium.vector.VectorEnv"]
    defects = []
    if batch.num_envs != lanes:
        defects.append(f"make({lanes}, 1) returned {batch.num_envs} lanes")
    for name in ("observation_space", "action_space"):
        ours, theirs = getattr(distribution, name), getattr(batch, f"single_{name}")
        if ours != theirs:
            defects.append(f"the batch has the single_{name} {theirs}, the distribution the {name} {ours}")
    return batch, defects


def step_defects(distribution: Any, batch: Any, tasks: Tasks) -> list[str]:
    """What a reset and a step return."""
    lanes = batch.num_envs
    try:
        observations, _ = batch.reset(seed=list(range(lanes)), options={"tasks": tasks})
        defects = _observation_defects(distribution, observations, lanes, "reset")
        if defects:
            return defects
        observations, rewards, terminations, truncations, _ = batch.step(random_actions(distribution, 1, lanes)[0])
        defects = _observation_defects(distribution, observations, lanes, "step")
    except Exception as error:
        return [f"the batch fails with tasks set: {describe_error(error)}"]
    for name, values, kinds in (
        ("rewards", rewards, "fiu"),
        ("terminations", terminations, "b"),
        ("truncations", truncations, "b"),
    ):
        if not isinstance(values, np.ndarray) or values.shape != (lanes,) or values.dtype.kind not in kinds:
            allowed = f"({lanes},) of {'bool' if kinds == 'b' else 'numbers'}"
            defects.append(f"step returned {name} {describe_array(values)}; allowed: {allowed}")
    return defects


def _observation_defects(distribution: Any, observations: Any, lanes: int, call: str) -> list[str]:
    space = distribution.observation_space
    expected = (lanes, *space.shape)
    if (
        not isinstance(observations, np.ndarray)
        or observations.shape != expected
        or observations.dtype.kind not in "fiub"
    ):
        return [f"{call} returned observations {describe_array(observations)}; allowed: {expected} of numbers"]
    if not np.can_cast(observations.dtype, space.dtype, "same_kind"):
        return [f"{call} returned observations of {observations.dtype}; their space says {space.dtype}"]
    return []


def close_batch(batch: Any) -> list[str]:
    """Close a batch; what is wrong if that fails."""
    try:
        batch.close()
    except Exception as error:
        return [f"the batch cannot be closed: {describe_error(error)}"]
    return []


def random_actions(distribution: Any, steps: int, lanes: int = TASKS) -> np.ndarray:
    """Random actions (T, N, ...) as a policy would give them."""
    rng, space = keyed_generator(0, "check/actions"), distribution.action_space
    family = action_distribution_for(space)
    if isinstance(space, Box):
        return family.to_environment(rng.standard_normal((steps, lanes, int(np.prod(space.shape))), np.float32))
    return family.to_environment(rng.integers(space.n, size=(steps, lanes)))


def with_final(observations: np.ndarray, infos: dict[str, Any]) -> np.ndarray:
    """Observations after a step, those that ended an episode in place of those of the next one."""
    last = infos.get("final_obs", [None] * len(observations))
    return np.stack([now if end is None else end for now, end in zip(observations, last, strict=True)])
