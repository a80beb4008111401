"""Lanes against the same environments played one by one; what cannot be used gets one line."""

import time

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from torch import nn

import metarl
from metarl import envs
from metarl.check import check
from metarl.rl.evaluation import held_out_tasks
from metarl.rl.policies import DictObservations


def draw_cart_pole(count, rng):
    return {"length": rng.uniform(0.3, 1.5, count), "force": rng.choice([-10.0, 10.0], count)}


def set_cart_pole(cart_pole, task):
    cart_pole.length, cart_pole.force_mag = task["length"], task["force"]
    cart_pole.polemass_length = cart_pole.masspole * cart_pole.length


def draw_pendulum(count, rng):
    return {"gravity": rng.uniform(2.0, 15.0, count)}


def set_pendulum(pendulum, task):
    pendulum.g = task["gravity"]


CASES = [("CartPole-v1", draw_cart_pole, set_cart_pole), ("Pendulum-v1", draw_pendulum, set_pendulum)]


@pytest.mark.parametrize(("gym_id", "sample", "set_task"), CASES)
def test_lanes_equal_single_environments_and_wait_after_the_end(gym_id, sample, set_task):
    distribution = envs.GymnasiumTasks(gym_id, sample, set_task, horizon=40)
    assert (distribution.horizon, distribution.name, distribution.dynamics) == (40, gym_id, "gymnasium")
    tasks = distribution.sample(3, np.random.default_rng(0))
    batch = distribution.make(6)
    for round_ in range(2):
        seeds = [round_ * 10 + lane for lane in range(6)]
        observations, _ = batch.reset(seed=seeds, options={"tasks": tasks})
        singles = [gymnasium.make(gym_id, max_episode_steps=40) for _ in range(6)]
        for lane, single in enumerate(singles):
            set_task(single.unwrapped, {name: values[lane // 2] for name, values in tasks.items()})
            np.testing.assert_array_equal(observations[lane], single.reset(seed=seeds[lane])[0])
        batch.action_space.seed(round_)
        ended = np.zeros(6, bool)
        for _ in range(45):
            actions = batch.action_space.sample()
            before = observations
            observations, rewards, terminated, truncated, _ = batch.step(actions)
            for lane, single in enumerate(singles):
                if ended[lane]:
                    np.testing.assert_array_equal(observations[lane], before[lane])
                    assert rewards[lane] == 0.0
                    continue
                expected = single.step(actions[lane])
                np.testing.assert_array_equal(observations[lane], expected[0])
                assert (rewards[lane], terminated[lane], truncated[lane]) == expected[1:4]
                ended[lane] = expected[2] or expected[3]
        assert ended.all()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        (SyncVectorEnv, AutoresetMode.NEXT_STEP),
        (SyncVectorEnv, AutoresetMode.SAME_STEP),
        (AsyncVectorEnv, AutoresetMode.NEXT_STEP),
    ],
)
def test_anybodys_vector_environment_learns_the_same(kind, mode):
    def make_batch(num_envs):
        return kind([lambda: gymnasium.make("CartPole-v1")] * num_envs, autoreset_mode=mode)

    def set_tasks(batch, tasks):
        batch.set_attr("length", tasks["length"].tolist())
        batch.set_attr("force_mag", tasks["force"].tolist())
        batch.set_attr("polemass_length", (0.1 * tasks["length"]).tolist())

    theirs = envs.VectorTasks(make_batch, draw_cart_pole, set_tasks, horizon=15)
    ours = envs.GymnasiumTasks("CartPole-v1", draw_cart_pole, set_cart_pole, horizon=15)
    results = []
    for distribution in (theirs, ours):
        torch.manual_seed(0)
        policy = metarl.CategoricalMLP(distribution.observation_space, distribution.action_space, (8,))
        learner = metarl.Learner(distribution, policy, tasks=2, episodes=3)
        figures = [learner.step() for _ in range(2)]
        results.append([{k: v for k, v in line.items() if "seconds" not in k} for line in figures])
        for batch in learner._envs.values():
            batch.close()
    assert results[0] == results[1]
    assert results[0][0]["env_steps"] < 2 * 2 * 3 * 15  # some episodes ended early


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("horizon", [5, 40])  # poles stand for 8 to 60 steps
def test_a_vector_environment_without_a_limit_ends_at_the_horizon(mode, horizon):
    def make_batch(num_envs):
        return SyncVectorEnv([CartPoleEnv] * num_envs, autoreset_mode=mode)

    def set_tasks(batch, tasks):
        batch.set_attr("length", tasks["length"].tolist())

    distribution = envs.VectorTasks(make_batch, draw_cart_pole, set_tasks, horizon)
    assert check(distribution) == []
    batch = distribution.make(6)
    observations, _ = batch.reset(seed=list(range(6)), options={"tasks": draw_cart_pole(3, np.random.default_rng(0))})
    ended = np.zeros(6, bool)
    for step in range(horizon):
        assert step == 0 or not ended.all()
        observations, _, terminations, truncations, infos = batch.step(np.zeros(6, int) + step // 2 % 2)
        assert truncations.tolist() == [step == horizon - 1 and not over for over in terminations]
        if mode == AutoresetMode.SAME_STEP and step == horizon - 1:
            for lane in np.flatnonzero(truncations):
                np.testing.assert_array_equal(infos["final_obs"][lane], observations[lane])
        ended |= terminations | truncations
    assert ended.all()


class Parts(gymnasium.Env):
    """A dictionary of a picture, a number and a direction, all of which show the step; the task is a factor."""

    observation_space = Dict(
        {"way": Discrete(3), "picture": Box(0, 255, (2, 2), np.uint8), "place": Box(-9.0, 9.0, (), np.float64)}
    )
    action_space = Box(-1.0, 1.0, (1,), np.float32)
    factor = 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.place = 0, self.np_random.random()
        return self.observe(), {}

    def observe(self):
        picture = np.full((2, 2), 10 * self.steps, np.uint8)
        return {"picture": picture, "place": np.float64(self.place), "way": self.steps % 3}

    def step(self, action):
        self.steps += 1
        self.place = float(np.clip(self.place + action[0], -9, 9))
        return self.observe(), self.factor * self.place, False, self.steps == 4, {}


def draw_factor(count, rng):
    return {"factor": rng.choice([-1.0, 1.0], count)}


def set_factor(env, task):
    env.factor = task["factor"]


class PartsPolicy(nn.Module):
    """Uses every part of the dictionary by its name."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 2)

    def forward(self, parts):
        assert set(parts) == {"picture", "place", "way"}
        return self.linear(torch.cat([parts["picture"].flatten(-2) / 255, parts["place"], parts["way"]], dim=-1))


def test_a_dictionary_comes_flat_and_a_module_gets_its_parts():
    distribution = envs.GymnasiumTasks(Parts, draw_factor, set_factor, horizon=4)
    policy = DictObservations(PartsPolicy(), Parts.observation_space)
    learner = metarl.Learner(distribution, policy, tasks=2, episodes=3)
    episodes = learner.adapt({"factor": np.array([1.0, -1.0])}, 0)[0].episodes
    assert episodes.observations.shape == (2, 4, 3, 8)
    for step in range(4):
        parts = {"picture": np.full((2, 2), 10 * step, np.uint8), "place": np.float64(0), "way": step % 3}
        expected = gymnasium.spaces.flatten(Parts.observation_space, parts)
        flat = episodes.observations[0, step, 1].numpy()
        np.testing.assert_array_equal(np.delete(flat, 4), np.delete(expected, 4))  # place is number 4
    np.testing.assert_allclose(episodes.rewards[0, :-1], episodes.observations[0, 1:, :, 4], atol=1e-6)
    np.testing.assert_allclose(episodes.rewards[1, :-1], -episodes.observations[1, 1:, :, 4], atol=1e-6)
    flat = episodes.observations[0, 2]
    seen = torch.cat([flat[:, :4] / 255, flat[:, 4:]], dim=-1)
    torch.testing.assert_close(policy(flat), policy.module.linear(seen))
    assert np.isfinite(list(learner.step().values())).all()


class Picture(gymnasium.ObservationWrapper):
    """The numbers of a Pendulum as a small picture (1, 3, 1)."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = Box(-8.0, 8.0, (1, 3, 1), np.float32)

    def observation(self, observation):
        return observation.reshape(1, 3, 1)


def test_pictures_learn_what_their_numbers_in_a_row_would():
    results = []
    for wrap in (lambda env: env, Picture):
        distribution = envs.GymnasiumTasks(
            lambda wrap=wrap: wrap(gymnasium.make("Pendulum-v1")), draw_pendulum, set_pendulum, horizon=20
        )
        torch.manual_seed(0)
        policy = nn.Sequential(nn.Flatten(), nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        learner = metarl.Learner(distribution, policy, tasks=2, episodes=3, bootstrap=True)
        figures = [learner.step() for _ in range(2)]
        results.append([{k: v for k, v in line.items() if "seconds" not in k} for line in figures])
        assert learner.agent(learner.adapt(distribution.sample(1, np.random.default_rng(0)), 0)[0])(
            np.zeros(distribution.observation_space.shape)
        ).shape == (1,)
    assert results[0] == results[1]


def test_a_convolution_is_a_policy_too():
    distribution = envs.GymnasiumTasks(
        lambda: Picture(gymnasium.make("Pendulum-v1")), draw_pendulum, set_pendulum, horizon=10
    )
    policy = nn.Sequential(nn.Conv2d(1, 4, (2, 1)), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))
    learner = metarl.Learner(distribution, policy, tasks=2, episodes=3)
    before = learner.theta["0.weight"].clone()
    assert learner.step()["accepted"] == 1.0
    assert not torch.equal(learner.theta["0.weight"], before)


@pytest.mark.parametrize("tasks", [{}, {"gravity": []}, {"gravity": [1.0, 2.0], "mass": [1.0]}])
def test_a_finite_set_needs_tasks_of_equal_number(tasks):
    rows = {name: len(values) for name, values in tasks.items()}
    with pytest.raises(ValueError, match=rf"^tasks with rows {rows}; allowed: as many in all arrays, at least 1$"):
        envs.choose_from(tasks)


def test_a_setter_of_lanes_that_breaks_is_named():
    distribution = envs.VectorTasks(
        lambda count: SyncVectorEnv([CartPoleEnv] * count), draw_cart_pole, lambda batch, tasks: 1 / 0, 15
    )
    tasks = draw_cart_pole(2, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"^set_tasks fails: ZeroDivisionError: division by zero$"):
        distribution.make(2).reset(options={"tasks": tasks})


def test_test_tasks_come_from_their_own_sampler():
    train, test = {"gravity": np.arange(1.0, 6.0)}, {"gravity": np.array([20.0, 30.0])}
    distribution = envs.GymnasiumTasks(
        "Pendulum-v1", envs.choose_from(train), set_pendulum, sample_test=envs.choose_from(test)
    )
    for kind in (distribution, envs.ObservedTasks(distribution)):
        policy = metarl.GaussianMLP(kind.observation_space, kind.action_space, (4,))
        learner = metarl.Learner(kind, policy, tasks=5, episodes=1)
        assert sorted(held_out_tasks(learner, 4)["gravity"]) == [20, 20, 30, 30]
        assert sorted(kind.sample(5, np.random.default_rng(1))["gravity"]) == [1, 2, 3, 4, 5]
    observations, _ = envs.ObservedTasks(distribution).make(2).reset(seed=0, options={"tasks": test})
    assert observations[:, -1].tolist() == [20, 30]


class Nothing:
    pass


class NoStep(gymnasium.Env):
    observation_space = action_space = Box(0, 1, (1,))

    def reset(self, *, seed=None, options=None):
        return np.zeros(1), {}


class NoSpace(NoStep):
    action_space = None

    def step(self, action):
        return np.zeros(1), 0.0, False, False, {}


class OldReset(NoSpace):
    action_space, observation_space = Discrete(2), Box(0, 1, (2,))

    def reset(self):
        return np.zeros(2)


class Sequences(NoSpace):
    action_space, observation_space = Discrete(2), gymnasium.spaces.Sequence(Box(0, 1, (2,)))


def refuse_some(pendulum, task):
    if task["gravity"] > 10:
        raise RuntimeError("too\nheavy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Pendulum-v9", draw_pendulum, set_pendulum), r"^Pendulum-v9: Environment version"),
        ((Nothing, draw_pendulum, set_pendulum), r"^Nothing made a Nothing; allowed: a gymnasium.Env$"),
        ((NoStep, draw_pendulum, set_pendulum, 5), r"^a NoStep has no step; needed: reset, step, observation_space, a"),
        (
            (NoSpace, draw_pendulum, set_pendulum, 5),
            r"^a NoSpace has no action_space; needed: reset, step, observation",
        ),
        (
            (Sequences, draw_pendulum, set_pendulum, 5),
            r"^observation space Sequence.* is not supported; allowed: Box, Di",
        ),
        ((Parts, draw_factor, set_factor), r"^Parts has no time limit of its own; allowed: with horizon$"),
        (
            (lambda: gymnasium.make("Pendulum-v1"), draw_pendulum, set_pendulum, 300),
            r"^horizon = 300, but <lambda> ends after 200 steps; allowed: at most 200$",
        ),
        (
            ("Pendulum-v1", draw_pendulum, refuse_some),
            r"^set_task fails for the task \{'gravity': 10.2\d+\}, of lane 0: RuntimeError: too heavy$",
        ),
        (
            (
                "Pendulum-v1",
                lambda n, rng: {"gravity": np.ones(n)},
                refuse_some,
                None,
                lambda n, rng: {"gravity": 11.0 + np.zeros(n)},
            ),
            r"^set_task fails for the task \{'gravity': 11.0\}, of lane 0: RuntimeError: too heavy$",
        ),
        ((OldReset, draw_factor, set_factor, 5), r"^OldReset cannot be reset with a seed: TypeError: .*'seed'"),
        (
            ("Pendulum-v1", lambda count, rng: {"gravity": rng.random(3)}, set_pendulum),
            r"^the sampler returned 'gravity' with shape \(3,\) of float64; allowed for 2 tasks: \(2, ...\) of numbe",
        ),
        (
            ("Pendulum-v1", lambda count, rng: rng.random(count), set_pendulum),
            r"^the sampler returned a ndarray; allow",
        ),
        (
            ("Pendulum-v1", lambda count, rng: {"gravity": ["low"] * count}, set_pendulum),
            r"^the sampler returned 'gravity' with shape \(2,\) of <U3; allowed for 2 tasks",
        ),
    ],
)
def test_what_cannot_be_used_gets_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        envs.GymnasiumTasks(*arguments)
    assert len(str(caught.value).splitlines()) == 1


def test_unsupported_actions_and_distributions_are_refused_before_training():
    class Many(Parts):
        action_space = gymnasium.spaces.MultiBinary(2)

    distribution = envs.GymnasiumTasks(Many, draw_factor, set_factor, horizon=4)
    with pytest.raises(
        ValueError, match=r"^action space MultiBinary\(2\) is not supported; allowed: Box of floating-point"
    ):
        metarl.Learner(distribution, nn.Linear(8, 2))
    with pytest.raises(
        ValueError, match=r"^the task distribution Nothing has no sample, make, horizon, observation_sp"
    ):
        metarl.Learner(Nothing(), nn.Linear(8, 2))


def test_lanes_need_tasks_that_fit():
    batch = envs.GymnasiumTasks("Pendulum-v1", draw_pendulum, set_pendulum).make(4)
    with pytest.raises(ValueError, match="the lanes have no tasks"):
        batch.reset(seed=0)
    with pytest.raises(ValueError, match="3 tasks for 4 lanes; allowed: a divisor of the lanes"):
        batch.reset(seed=0, options={"tasks": {"gravity": np.ones(3)}})
    with pytest.raises(ValueError, match="allowed: exactly"):
        batch.reset(seed=0, options={"tasks": {"length": np.ones(2)}})
    with pytest.raises(ValueError, match="make_batch returned a Parts; allowed: a gymnasium"):
        envs.VectorTasks(lambda num_envs: Parts(), draw_factor, set_factor, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("gym_id", "sample", "set_task"), CASES)
def test_steps_per_second_against_gymnasium(gym_id, sample, set_task, capsys):
    """The same 64 lanes, actions and seeds, while no episode has ended; medians of turns, in time of the processor."""
    distribution = envs.GymnasiumTasks(gym_id, sample, set_task)
    ours, theirs = distribution.make(64), SyncVectorEnv([lambda: gymnasium.make(gym_id)] * 64)
    tasks = {"tasks": {name: np.repeat(v[:1], 64, axis=0) for name, v in sample(1, np.random.default_rng(0)).items()}}
    discrete = isinstance(distribution.action_space, Discrete)
    actions = [np.full(64, t % 2) if discrete else np.zeros((64, 1), np.float32) for t in range(10)]

    def seconds(batch, options):
        batch.reset(seed=0, options=options)
        start = time.process_time()
        for action in actions:
            *_, terminated, truncated, _ = batch.step(action)
            assert not (terminated | truncated).any()
        return time.process_time() - start

    turns = np.array([(seconds(ours, tasks), seconds(theirs, None)) for _ in range(60)])
    ratio = np.median(turns[:, 1]) / np.median(turns[:, 0])
    with capsys.disabled():
        print(f"\n{gym_id}: {ratio:.2f} of SyncVectorEnv's steps per second")
    assert ratio >= 0.9
