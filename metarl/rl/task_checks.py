"""Examine a task distribution, with random actions and no learning, and say in plain words what is wrong."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from metarl.core.randomness import keyed_generator
from metarl.rl.quick_checks import (
    TASKS,
    close_batch,
    made_batch,
    quick_check,
    random_actions,
    step_defects,
    with_final,
)
from metarl.rl.task_distribution import Tasks, describe_error, protocol_defects, record_defects

_DRAWN = 200  # tasks whose values are looked at


@dataclass(frozen=True)
class Record:
    """What a batch returned in T steps; the first observations are those of the reset.

    Attributes:
        observations: (T + 1, N, ...).
        rewards, ends: (T, N).
        running: (T, N), steps up to the end of each lane's episode.
        error: what stopped it, or an empty text.
    """

    observations: np.ndarray
    rewards: np.ndarray
    ends: np.ndarray
    running: np.ndarray
    error: str


def check(distribution: Any) -> list[str]:
    """Return what is wrong with a task distribution, in plain words; an empty list for a sound one.

    It samples tasks, builds batches of 16 lanes, and plays some episodes with random actions. Once something is so
    wrong that the rest cannot be looked at, it stops there.
    """
    for count in (TASKS, _DRAWN):
        if defects := protocol_defects(distribution, count):
            return defects
    missing = record_defects(distribution, TASKS)
    for examine in (_task_defects, _batch_defects, _episode_defects, quick_check):
        if defects := examine(distribution):
            return [*defects, *missing]
    return missing


def _task_defects(distribution: Any) -> list[str]:
    """Values, variety and repetition of tasks."""
    defects = []
    for name in [name for name in ("sample", "sample_test", "sample_validation") if hasattr(distribution, name)]:
        tasks, again = (getattr(distribution, name)(_DRAWN, keyed_generator(0, "check/tasks")) for _ in range(2))
        for key, values in tasks.items():
            if not np.isfinite(values).all():
                defects.append(f"{name} gives tasks whose {key!r} is not finite: {values[~np.isfinite(values)][0]}")
        if not _equal(tasks, again):
            defects.append(f"{name} gives other tasks for the same generator; allowed: randomness from it alone")
        elif name == "sample" and len(_rows(tasks)) == 1:
            defects.append("sample gives the same task every time")
        for key, space in getattr(distribution, "task_space", {}).items():
            finite = [value for value in map(np.asarray, tasks.get(key, [])) if np.isfinite(value).all()]
            outside = [value for value in finite if not space.contains(value)]
            if outside:
                defects.append(f"{name} gives tasks whose {key!r} is outside its task_space {space}: {outside[0]}")
    if hasattr(distribution, "sample_test") and not defects:
        train, test = (
            _rows(getattr(distribution, name)(_DRAWN, keyed_generator(0, f"check/{name}")))
            for name in ("sample", "sample_test")
        )
        if shared := train & test:
            defects.append(
                f"{len(shared)} of {len(test)} test tasks are among the training tasks, such as {min(shared)}"
            )
    return defects


def _batch_defects(distribution: Any) -> list[str]:
    """What the batch is, and what it returns."""
    tasks = distribution.sample(TASKS, keyed_generator(0, "check/tasks"))
    batch, defects = made_batch(distribution, TASKS)
    return defects or [*step_defects(distribution, batch, tasks), *close_batch(batch)]


def _episode_defects(distribution: Any) -> list[str]:
    """What episodes with random actions show."""
    batches = [distribution.make(TASKS, 1) for _ in range(2)]
    defects = _played_defects(distribution, *batches)
    return [*defects, *(defect for batch in batches for defect in close_batch(batch))]


def _played_defects(distribution: Any, batch: Any, other: Any) -> list[str]:
    tasks = distribution.sample(TASKS, keyed_generator(0, "check/tasks"))
    actions, seeds = random_actions(distribution, distribution.horizon), list(range(TASKS))
    first = _play(batch, tasks, seeds, actions)
    if first.error:
        autoreset = batch.metadata.get("autoreset_mode")
        waits = " (autoreset is off, and lanes whose episode has ended cannot be stepped)"
        return [first.error + (waits if autoreset == AutoresetMode.DISABLED else "")]
    if wrong := _value_defects(distribution, first):
        return wrong
    defects = []
    again, elsewhere = _play(batch, tasks, seeds, actions), _play(other, tasks, seeds, actions)
    if error := again.error or elsewhere.error:
        return [f"in a second round of episodes {error}"]
    if not _same(first, again):
        defects.append(
            "the same seeds, tasks and actions give other episodes in the same batch: seeding does not repeat"
        )
    elif not _same(first, elsewhere):
        defects.append("the same seeds, tasks and actions give other episodes in a new batch: seeding does not repeat")
    if not first.ends.any(axis=0).all():
        lane = int(np.flatnonzero(~first.ends.any(axis=0))[0])
        defects.append(
            f"the episode of lane {lane} never ends: after horizon = {distribution.horizon} steps it is neither "
            "terminated nor truncated"
        )
    if hasattr(distribution, "sample_test"):
        test_tasks = distribution.sample_test(TASKS, keyed_generator(0, "check/tasks"))
        played = _play(batch, test_tasks, seeds, actions)
        wrong = [played.error] if played.error else _value_defects(distribution, played)
        defects += [f"with test tasks {defect}" for defect in wrong]
    defects += _autoreset_defects(batch, tasks, seeds, actions)
    if not defects:
        alike = _play(batch, tasks, [0] * TASKS, np.repeat(actions[:, :1], TASKS, axis=1))
        defects += _task_effect_defects(tasks, alike)
    return defects


def _value_defects(distribution: Any, record: Record) -> list[str]:
    defects, space = [], distribution.observation_space
    seen = np.concatenate([np.ones_like(record.running[:1]), record.running])
    observations = record.observations[seen]
    if not np.isfinite(observations).all():
        step, lane = np.argwhere(~np.isfinite(record.observations.reshape(*seen.shape, -1)).all(axis=2) & seen)[0]
        defects.append(f"the observation of lane {lane} after step {step} is not finite")
    if (outside := np.isfinite(observations) & ((observations < space.low) | (observations > space.high))).any():
        wrong = observations[outside]
        defects.append(f"observations leave their space {space}: a value of {wrong[0]:g}")
    if not np.isfinite(record.rewards[record.running]).all():
        step, lane = np.argwhere(~np.isfinite(record.rewards) & record.running)[0]
        defects.append(f"the reward of lane {lane} in step {step} is not finite")
    return defects


def _autoreset_defects(batch: Any, tasks: Tasks, seeds: list[int], actions: np.ndarray) -> list[str]:
    """Whether the last observation of an episode can still be had."""
    if batch.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
        return []
    batch.reset(seed=seeds, options={"tasks": tasks})
    for action in actions:
        *_, terminations, truncations, infos = batch.step(action)
        if (terminations | truncations).any():
            if "final_obs" in infos:
                return []
            return [
                "autoreset is in the way: a new episode replaces the last observation, and infos has no 'final_obs'"
            ]
    return []


def _task_effect_defects(tasks: Tasks, alike: Record) -> list[str]:
    """Whether tasks change anything, and whether they show, when seeds and actions are the same in all lanes."""
    first, observations = alike.observations[0], alike.observations.reshape(*alike.observations.shape[:2], -1)
    if len({(alike.observations[:, lane].tobytes(), alike.rewards[:, lane].tobytes()) for lane in range(TASKS)}) == 1:
        return ["tasks change nothing: with the same seed and actions, all of 16 tasks give the same episode"]
    if (first != first[0]).any():
        place = int(np.argwhere((observations[0] != observations[0, 0]).any(axis=0))[0][0])
        return [
            f"the task is visible in the observation: component {place} of the first one changes with the task alone"
        ]
    for name, values in tasks.items():
        for parameter in np.asarray(values, np.float64).reshape(TASKS, -1).T:
            shown = np.isclose(observations[-1], parameter[:, None], rtol=1e-6).all(axis=0)
            if shown.any() and np.ptp(parameter) > 0:
                place = int(np.flatnonzero(shown)[0])
                return [f"the task is visible in the observation: component {place} is the task's {name!r}"]
    return []


def _play(batch: Any, tasks: Tasks, seeds: list[int], actions: np.ndarray) -> Record:
    """Run all lanes for the length of the actions, or until every episode has ended."""
    try:
        observations, _ = batch.reset(seed=seeds, options={"tasks": tasks})
    except Exception as failure:
        none = np.empty((0, len(seeds)))
        return Record(none, none, none, none, f"a reset fails: {describe_error(failure)}")
    seen, rewards, ends, error = [np.array(observations)], [], [], ""
    running = [np.ones(len(seeds), bool)]
    for action in actions:
        try:
            observations, reward, terminations, truncations, infos = batch.step(action)
        except Exception as failure:
            error = f"a step fails: {describe_error(failure)}"
            break
        seen.append(with_final(observations, infos))
        rewards.append(np.array(reward))
        ends.append(running[-1] & (terminations | truncations))
        running.append(running[-1] & ~ends[-1])
        if not running[-1].any():
            break
    shape = (len(rewards), len(seeds))
    return Record(
        np.stack(seen), np.reshape(rewards, shape), np.reshape(ends, shape), np.stack(running)[: len(rewards)], error
    )


def _rows(tasks: Tasks) -> set[tuple[float, ...]]:
    columns = [np.asarray(tasks[name], np.float64) for name in sorted(tasks)]
    return {tuple(row) for row in np.concatenate([c.reshape(len(c), -1) for c in columns], axis=1).tolist()}


def _equal(a: Tasks, b: Tasks) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name], equal_nan=True) for name in a)


def _same(a: Record, b: Record) -> bool:
    """Whether episodes are the same up to the end of each."""
    if a.running.shape != b.running.shape or not np.array_equal(a.ends, b.ends):
        return False
    later = np.concatenate([np.ones_like(a.running[:1]), a.running])
    return np.array_equal(a.observations[later], b.observations[later]) and np.array_equal(
        a.rewards[a.running], b.rewards[a.running]
    )
