"""Every defect that the checker names, planted in a sound distribution; sound ones pass without a word."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from metarl import envs
from metarl.rl.task_checks import check
from tests.envs.examples import CASES, Parts, draw_factor, set_factor
from tests.probes import Corridor


class Lanes(VectorEnv):
    """N points on a line, drawn to a place that the task gives; actions push. One array in, one out."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, distribution, num_envs):
        self.distribution, self.num_envs = distribution, num_envs
        self.single_observation_space, self.single_action_space = Sound.observation_space, Sound.action_space

    def reset(self, *, seed=None, options=None):
        goals = options["tasks"]["goal"]
        self.goals = np.repeat(goals, self.num_envs // len(goals))
        self.x = np.array([np.random.default_rng(s).uniform(-1, 1) for s in seed])
        self.steps = 0
        return self.observe(), {}

    def observe(self):
        return np.stack([self.x, np.full(self.num_envs, self.steps / 10)], axis=1)

    def step(self, actions):
        self.steps += 1
        self.x = np.clip(self.x + 0.1 * actions[:, 0], -5, 5)
        ended = np.full(self.num_envs, self.steps >= 6)
        return self.observe(), -np.abs(self.x - self.goals), np.zeros(self.num_envs, bool), ended, {}


class Sound:
    """A task distribution in which nothing is wrong."""

    name, dynamics, horizon = "line", "own", 6
    observation_space, action_space = Box(-5.0, 5.0, (2,), np.float64), Box(-1.0, 1.0, (1,), np.float64)
    task_space = {"goal": Box(-2.0, 2.0, (), np.float64)}  # noqa: RUF012
    lanes = Lanes

    def sample(self, count, rng):
        return {"goal": rng.uniform(-2, 2, count)}

    def make(self, num_envs, threads=1):
        return self.lanes(self, num_envs)


def sound_but(**changes):
    return type("Planted", (Sound,), changes)()


def lanes_but(**changes):
    """A sound distribution whose batch has other methods."""
    return sound_but(lanes=type("PlantedLanes", (Lanes,), changes))


def after(method, change):
    """The method of the batch, with its result changed."""
    return lambda self, *args, **kwargs: change(self, getattr(Lanes, method)(self, *args, **kwargs))


def changed_step(number, value):
    """A step whose result has another value in one place."""
    return lanes_but(step=after("step", lambda self, r: (*r[:number], value(self, r[number]), *r[number + 1 :])))


def changed_reset(value):
    return lanes_but(reset=after("reset", lambda self, r: (value(self, r[0]), r[1])))


def spoilt(values, lane, value):
    values = np.array(values, float)
    values[lane] = value
    return values


def unseeded(self, *, seed=None, options=None):
    return Lanes.reset(self, seed=np.random.default_rng().integers(1000, size=self.num_envs), options=options)


def counted(self, *, seed=None, options=None):
    """Every batch of this kind starts elsewhere, but always at the same place."""
    type(self).made = getattr(type(self), "made", 0) + (not hasattr(self, "first"))
    self.first = getattr(self, "first", type(self).made)
    return Lanes.reset(self, seed=[s + self.first for s in seed], options=options)


def raising(self, *args, **kwargs):
    raise KeyError("no such\nthing")


def just_once(self, *, seed=None, options=None):
    if hasattr(self, "x"):
        raise KeyError("again")
    return Lanes.reset(self, seed=seed, options=options)


def near(self, *, seed=None, options=None):
    if (options["tasks"]["goal"] > 2).any():
        raise KeyError("too far")
    return Lanes.reset(self, seed=seed, options=options)


class Hasty(Lanes):
    """Starts the next episode in the step that ends one, and keeps the last observation to itself."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012


class Shortsighted(Lanes):
    """Cannot see where the goal is at 2."""

    def observe(self):
        return np.where(self.goals[:, None] == 2, np.nan, super().observe())


def plain_corridor(mode):
    """Gymnasium's own vector environment, whose lanes may not go on without autoreset."""

    class Corridors:
        name, dynamics, task_space = "corridor", "own", {"length": Box(2, 8, (), np.int64)}
        horizon, observation_space, action_space = 10, Corridor.observation_space, Corridor.action_space

        def sample(self, count, rng):
            return {"length": rng.integers(2, 9, count)}

        def make(self, num_envs, threads=1):
            makers = [lambda lane=lane: Corridor(lane, num_envs) for lane in range(num_envs)]
            return SyncVectorEnv(makers, autoreset_mode=mode)

    return Corridors()


def split(train, test):
    def sampler(values):
        return lambda self, count, rng: {"goal": rng.choice(values, count)}

    return sound_but(sample=sampler(train), sample_test=sampler(test))


class NoDistribution:
    sample = horizon = None


DEFECTS = [
    (
        NoDistribution(),
        "the task distribution NoDistribution has no make, observation_space, action_space; needed: sam",
    ),
    (sound_but(horizon=0), "horizon = 0; allowed: a whole number of steps, at least 1"),
    (sound_but(horizon=2.5), "horizon = 2.5; allowed: a whole number of steps, at least 1"),
    (sound_but(observation_space=Discrete(3)), "observation space Discrete(3) is not supported; allowed: Box (gymnas"),
    (sound_but(action_space=gymnasium.spaces.MultiBinary(2)), "action space MultiBinary(2) is not supported; allowed:"),
    (sound_but(sample=raising), "sample(16) fails: KeyError: 'no such\\nthing'"),
    (sound_but(sample_test=raising), "sample_test(16) fails: KeyError: "),
    (sound_but(sample_validation=raising), "sample_validation(16) fails: KeyError: "),
    (
        sound_but(sample=lambda self, n, rng: rng.random(n)),
        "sample(16) returned a ndarray; allowed: a dict of arrays (",
    ),
    (
        sound_but(sample=lambda self, n, rng: {"goal": rng.random(3)}),
        "sample(16) returned 'goal' (3,) of float64; allowed: (16, ...) of numbers",
    ),
    (
        sound_but(sample=lambda self, n, rng: {"goal": np.array(["left"] * n)}),
        "sample(16) returned 'goal' (16,) of <U4; allowed: (16, ...) of numbers",
    ),
    (
        sound_but(sample=lambda self, n, rng: {"goal": [0.0] * n}),
        "sample(16) returned 'goal' as a list; allowed: (16, ...) of numbers",
    ),
    (
        sound_but(sample=lambda self, n, rng: {"goal": spoilt(rng.random(n), 3, np.nan)}),
        "sample gives tasks whose 'goal' is not finite: nan",
    ),
    (
        sound_but(sample=lambda self, n, rng: {"goal": np.random.default_rng().random(n)}),
        "sample gives other tasks for the same generator; allowed: randomness from it alone",
    ),
    (sound_but(sample=lambda self, n, rng: {"goal": np.ones(n)}), "sample gives the same task every time"),
    (
        sound_but(sample=lambda self, n, rng: {"goal": rng.uniform(-2, 3, n)}),
        "sample gives tasks whose 'goal' is outside its task_space Box(-2.0, 2.0, (), float64): 2",
    ),
    (split([0.0, 1.0, 2.0], [-1.0, 1.0]), "1 of 2 test tasks are among the training tasks, such as (1.0,)"),
    (
        sound_but(sample=lambda self, n, rng: {"goal": rng.choice(np.linspace(-2, 2, 50), n, replace=False)}),
        "sample(200) fails: ValueError: Cannot take a larger sample than population",
    ),
    (
        sound_but(sample_test=lambda self, n, rng: {"goal": rng.random(n)[:40]}),
        "sample_test(200) returned 'goal' (40,) of float64; allowed: (200, ...) of numbers",
    ),
    (lanes_but(close=raising), "the batch cannot be closed: KeyError: "),
    (lanes_but(reset=just_once), "in a second round of episodes a reset fails: KeyError: 'again'"),
    (
        sound_but(
            task_space={"goal": Box(-9.0, 9.0, (), np.float64)},
            sample_test=lambda self, n, rng: {"goal": rng.uniform(3, 4, n)},
            lanes=type("Near", (Lanes,), {"reset": near}),
        ),
        "with test tasks a reset fails: KeyError: 'too far'",
    ),
    (sound_but(make=raising), "make(16, 1) fails: KeyError: "),
    (sound_but(make=lambda self, n: Lanes(self, n)), "make(16, 1) fails: TypeError: "),
    (sound_but(make=lambda self, n, threads: 3), "make(16, 1) returned a int; allowed: a gymnasium.vector.VectorEnv"),
    (sound_but(make=lambda self, n, threads: Lanes(self, 4)), "make(16, 1) returned 4 lanes"),
    (
        sound_but(action_space=Box(-2.0, 2.0, (1,), np.float64)),
        "the batch has the single_action_space Box(-1.0, 1.0, (1,), float64), the distribution the action_space Box(-2",
    ),
    (lanes_but(reset=raising), "the batch fails with tasks set: KeyError: "),
    (lanes_but(step=raising), "the batch fails with tasks set: KeyError: "),
    (
        changed_reset(lambda self, o: o[:, :1]),
        "reset returned observations (16, 1) of float64; allowed: (16, 2) of num",
    ),
    (changed_reset(lambda self, o: o.tolist()), "reset returned observations as a list; allowed: (16, 2) of numbers"),
    (
        changed_reset(lambda self, o: o.astype(object)),
        "reset returned observations (16, 2) of object; allowed: (16, 2)",
    ),
    (
        changed_step(0, lambda self, o: o.T),
        "step returned observations (2, 16) of float64; allowed: (16, 2) of numbers",
    ),
    (
        changed_step(1, lambda self, r: r[:, None]),
        "step returned rewards (16, 1) of float64; allowed: (16,) of numbers",
    ),
    (changed_step(2, lambda self, e: e * 1.0), "step returned terminations (16,) of float64; allowed: (16,) of bool"),
    (changed_step(3, lambda self, e: e.tolist()), "step returned truncations as a list; allowed: (16,) of bool"),
    (
        changed_step(0, lambda self, o: spoilt(o, (3, 1), np.nan if self.steps == 4 else 0)),
        "the observation of lane 3 after step 4 is not finite",
    ),
    (
        changed_step(1, lambda self, r: spoilt(r, 5, np.inf if self.steps == 3 else 0)),
        "the reward of lane 5 in step 2 is not finite",
    ),
    (
        changed_step(0, lambda self, o: o + 20 * (self.steps == 2)),
        "observations leave their space Box(-5.0, 5.0, (2,), ",
    ),
    (lanes_but(reset=unseeded), "give other episodes in the same batch: seeding does not repeat"),
    (lanes_but(reset=counted), "give other episodes in a new batch: seeding does not repeat"),
    (
        sound_but(sample_test=lambda self, n, rng: {"goal": np.full(n, 2.0)}, lanes=Shortsighted),
        "with test tasks the observation of lane 0 after step 0 is not finite",
    ),
    (
        changed_step(3, lambda self, e: e & (np.arange(self.num_envs) != 7)),
        "the episode of lane 7 never ends: after horizon = 6 steps it is neither terminated nor truncated",
    ),
    (
        sound_but(lanes=Hasty),
        "autoreset is in the way: a new episode replaces the last observation, and infos has no 'fi",
    ),
    (
        plain_corridor(AutoresetMode.DISABLED),
        "(autoreset is off, and lanes whose episode has ended cannot be stepped)",
    ),
    (
        changed_step(1, lambda self, r: self.x),
        "tasks change nothing: with the same seed and actions, all of 16 tasks gi",
    ),
    (
        changed_reset(lambda self, o: np.stack([o[:, 0], abs(self.x - self.goals)], axis=1)),
        "the task is visible in the observation: component 1 of the first one changes with the task alone",
    ),
    (
        changed_step(0, lambda self, o: np.stack([o[:, 0], self.goals], axis=1)),
        "the task is visible in the observation: component 1 is the task's 'goal'",
    ),
]


@pytest.mark.parametrize(("distribution", "defect"), DEFECTS, ids=[defect[-40:] for _, defect in DEFECTS])
def test_a_planted_defect_is_found_and_nothing_else(distribution, defect):
    [found] = check(distribution)
    assert defect.replace("\\n", chr(92) + "n") in found
    assert len(found.splitlines()) == 1


SOUND = [
    Sound(),
    split([0.0, 1.0, 2.0], [-1.0, 1.5]),
    plain_corridor(AutoresetMode.NEXT_STEP),
    plain_corridor(AutoresetMode.SAME_STEP),
    envs.Navigation2D(),
    *(envs.GymnasiumTasks(*case, horizon=30) for case in CASES),
    envs.GymnasiumTasks(Parts, draw_factor, set_factor, horizon=4),
    *(
        kind(dynamics, horizon=10)
        for kind in (
            envs.HalfCheetahDirection, envs.HalfCheetahVelocity, envs.AntVelocity, envs.AntDirection, envs.AntGoal
        )
        for dynamics in ("paper", "gymnasium")
    ),
]  # fmt: skip


@pytest.mark.parametrize("distribution", SOUND, ids=lambda it: getattr(it, "name", type(it).__name__))
def test_a_sound_distribution_passes_without_a_word(distribution, capsys):
    assert check(distribution) == []
    assert capsys.readouterr() == ("", "")
