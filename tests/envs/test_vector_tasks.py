"""Batches of anybody's vector environment as task distributions."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import metarl
from metarl import envs
from metarl.check import check
from tests.builders import make_learner, without_times
from tests.envs.examples import draw_cart_pole, set_cart_pole


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
        learner = make_learner(distribution, policy, num_tasks=2, episodes_per_task=3)
        metrics = [learner.step() for _ in range(2)]
        results.append([without_times(line) for line in metrics])
        learner.close()
    assert results[0] == results[1]
    assert results[0][0]["env_steps"] < 2 * 2 * 3 * 15  # some episodes ended early


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("horizon", [5, 40])  # poles stand for 8 to 60 steps
def test_a_vector_environment_without_a_limit_ends_at_the_horizon(mode, horizon):
    def make_batch(num_envs):
        return SyncVectorEnv([CartPoleEnv] * num_envs, autoreset_mode=mode)

    def draw_length(count, rng):
        return {"length": draw_cart_pole(count, rng)["length"]}

    def set_tasks(batch, tasks):
        batch.set_attr("length", tasks["length"].tolist())

    distribution = envs.VectorTasks(make_batch, draw_length, set_tasks, horizon)
    assert check(distribution) == []
    batch = distribution.make(6)
    observations, _ = batch.reset(seed=list(range(6)), options={"tasks": draw_length(3, np.random.default_rng(0))})
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


def test_a_setter_of_lanes_that_breaks_is_named():
    distribution = envs.VectorTasks(
        lambda count: SyncVectorEnv([CartPoleEnv] * count), draw_cart_pole, lambda batch, tasks: 1 / 0, 15
    )
    tasks = draw_cart_pole(2, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"^set_tasks fails: ZeroDivisionError: division by zero$"):
        distribution.make(2).reset(options={"tasks": tasks})
