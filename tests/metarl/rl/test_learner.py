"""The learner as a whole: one data flow, keyed randomness, states that continue exactly, and learning."""

import copy
import math
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn

from metarl import (
    PPO,
    TRPO,
    Adam,
    Agent,
    CategoricalMLP,
    GaussianMLP,
    GradientDescent,
    LayerStepSizes,
    Learner,
    MetaSGD,
    Reptile,
    WithContext,
    keyed_generator,
)
from metarl.core.errors import NonFiniteError
from metarl.core.parallel import task_chunks
from metarl.core.parameters import parameters_of, ravel
from metarl.envs import AntVelocity, GymnasiumTasks, Navigation2D, choose_from
from metarl.rl.advantages import discounted_returns, estimate_advantages
from metarl.rl.episodes import to_samples
from metarl.rl.estimators import outcomes, score
from metarl.rl.evaluation import evaluate, held_out_tasks
from metarl.rl.objective import MetaObjective
from tests.probes import CorridorTasks


def navigation_learner(seed=0, horizon=20, **changes):
    distribution = Navigation2D(horizon)
    torch.manual_seed(0)
    policy = GaussianMLP(distribution.observation_space, distribution.action_space, (16,), "tanh")
    settings = {"tasks": 4, "episodes": 5, "rule": GradientDescent(0.5), "seed": seed}
    return Learner(distribution, policy, **{**settings, **changes})


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def without_times(figures):
    return {name: value for name, value in figures.items() if not name.startswith("seconds/")}


def test_an_iteration_moves_the_parameters_within_the_bound():
    learner = navigation_learner()
    before = learner.theta
    figures = learner.step()
    assert figures["accepted"] == 1
    assert 0 < figures["kl"] <= 0.01
    assert figures["loss_after"] < figures["loss_before"]
    assert figures["loss_before"] == pytest.approx(0, abs=1e-5)  # standardised advantages, ratios of one
    assert not same(before, learner.theta)
    assert (learner.iteration, figures["iteration"]) == (1, 1)
    assert figures["adaptation_gain"] == pytest.approx(figures["return/step_1"] - figures["return/step_0"])


def test_a_rejected_step_changes_nothing_and_is_logged(monkeypatch):
    learner = navigation_learner()
    before = learner.theta
    huge = torch.tensor(1e9)
    monkeypatch.setattr(MetaObjective, "evaluate", lambda self, vector: (huge, huge))
    figures = learner.step()
    assert figures["accepted"] == 0
    assert figures["line_search_steps"] == 15
    assert same(before, learner.theta)


def test_environment_steps_count_valid_steps_only():
    distribution = CorridorTasks()
    learner = Learner(
        distribution, CategoricalMLP(distribution.observation_space, distribution.action_space, (4,)), 3, 2
    )
    stages = learner.adapt({"length": np.array([2, 4, 8])}, steps=1, episodes=2)
    assert [stage.episodes.steps for stage in stages] == [2 * (2 + 4 + 6)] * 2
    learner.step()
    drawn = distribution.sample(3, keyed_generator(0, "train/tasks", 0))["length"]
    assert learner.env_steps == 2 * 2 * np.minimum(drawn, 6).sum()


def test_query_episodes_are_drawn_with_the_adapted_parameters():
    learner = navigation_learner()
    tasks = held_out_tasks(learner, 4)
    before, after = learner.adapt(tasks, steps=1)
    distance = sum(
        (after.parameters[n] - before.parameters[n]).flatten(1).square().sum(1) for n in learner.theta
    ).sqrt()
    torch.testing.assert_close(distance, 0.5 * after.gradient_norm, rtol=1e-4, atol=0)
    outputs = torch.stack(
        [
            torch.func.functional_call(
                learner.policy, {n: v[m] for n, v in after.parameters.items()}, (after.samples.observations[m],)
            )
            for m in range(4)
        ]
    )
    valid = after.samples.weights > 0
    torch.testing.assert_close(after.samples.distribution[valid], outputs[valid], rtol=1e-4, atol=1e-5)


def test_every_stage_and_iteration_has_its_own_noise():
    learner = navigation_learner()
    tasks = held_out_tasks(learner, 4)
    first = learner.adapt(tasks, steps=1, purpose="train")
    learner.iteration = 1
    second = learner.adapt(tasks, steps=1, purpose="train")
    test = learner.adapt(tasks, steps=1)
    starts = [stages[k].episodes.actions[0, 0] for stages in (first, second, test) for k in (0, 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(starts) for b in starts[:i])


def test_a_share_of_the_test_tasks_has_the_same_first_episodes():
    learner = navigation_learner()
    tasks = held_out_tasks(learner, 4)
    whole = learner.adapt(tasks, steps=0)[0].episodes
    part = learner.adapt({"goal": tasks["goal"][:2]}, steps=0)[0].episodes
    assert torch.equal(part.rewards, whole.rewards[:2, : part.rewards.shape[1]])


def test_task_chunks_are_alike_and_as_many_as_threads_can_share():
    lengths = {
        (tasks, size, threads): [part.stop - part.start for part in task_chunks(tasks, size, threads)]
        for tasks, size, threads in [
            (20, 8, 1),
            (20, 8, 2),
            (20, 100, 2),
            (5, 1, 2),
            (1, 4, 2),
            (3, 2, 4),
            (5, 9, 4),
            (3, 9, 2),
        ]
    }
    assert list(lengths.values()) == [[6, 7, 7], [5, 5, 5, 5], [10, 10], [1] * 5, [1], [1, 2], [2, 3], [3]]


@pytest.mark.parametrize("chunk", [1, 3])
def test_task_chunks_change_nothing(chunk):
    whole, parts = navigation_learner(task_chunk=4), navigation_learner(task_chunk=chunk)
    figures = [without_times(learner.step()) for learner in (whole, parts)]
    for name in figures[0]:
        assert figures[1][name] == pytest.approx(figures[0][name], rel=1e-6, abs=1e-12), name
    for name, value in whole.theta.items():
        assert torch.equal(parts.theta[name], value), name


def test_the_same_seed_gives_the_same_run_and_another_one_does_not():
    runs = []
    for seed in (1, 1, 2):
        learner = navigation_learner(seed)
        runs.append(([without_times(learner.step()) for _ in range(2)], learner.theta))
    assert runs[0][0] == runs[1][0]
    assert same(runs[0][1], runs[1][1])
    assert not same(runs[0][1], runs[2][1])


def test_a_loaded_state_continues_bit_for_bit():
    unbroken = navigation_learner()
    unbroken.step()
    state = {**unbroken.state_dict(), "theta": {n: v.clone() for n, v in unbroken.theta.items()}}
    expected = [without_times(unbroken.step()) for _ in range(2)]
    resumed = navigation_learner()
    resumed.load_state_dict(state)
    assert [without_times(resumed.step()) for _ in range(2)] == expected
    assert same(resumed.theta, unbroken.theta)


class Features(nn.Module):
    """Fixed random features, in a buffer, and a scalar beside the weights that are learned."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.register_buffer("frequencies", torch.randn(2, 8))
        self.linear, self.gain = nn.Linear(8, 4), nn.Parameter(torch.tensor(0.5))

    def forward(self, observations):
        return self.gain * self.linear((observations @ self.frequencies).cos())


@pytest.mark.parametrize("rule", [GradientDescent(0.1), MetaSGD(0.1), LayerStepSizes(0.1)])
def test_a_state_holds_the_buffers_of_a_policy(rule):
    learners = [Learner(Navigation2D(20), Features(seed), tasks=3, episodes=4, rule=rule) for seed in (0, 1)]
    learners[0].step()
    learners[1].load_state_dict(learners[0].state_dict())
    assert torch.equal(learners[1].policy.frequencies, learners[0].policy.frequencies)
    figures = [without_times(learner.step()) for learner in learners]
    assert figures[0] == figures[1]
    assert same(learners[0].theta, learners[1].theta)


def test_frozen_parameters_stay_as_they_are():
    learner = navigation_learner(rule=GradientDescent(0.5, second_order=True))
    learner.policy.mean[0].requires_grad_(False)
    before = learner.policy.mean[0].weight.clone()
    learner = replace(learner, policy=learner.policy)
    assert learner.step()["accepted"] == 1
    assert set(learner.theta) == {"mean.2.weight", "mean.2.bias", "log_std"}
    assert torch.equal(learner.policy.mean[0].weight, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": "episode"}, "budget = 'episode'; allowed: episodes, steps"),
        ({"baseline": "cubic"}, "baseline = 'cubic'; allowed: linear, quadratic"),
        (
            {"baseline": "quadratic", "horizon": 3},
            "baseline = 'quadratic' with 9 features and 15 samples of a task; allowed: at least 18 samples",
        ),
        ({"weighting": "step"}, "weighting = 'step'; allowed: timestep, episode"),
        ({"discount": 1.5}, "discount = 1.5; allowed: 0 to 1"),
        ({"gae_lambda": -3.0}, "gae_lambda = -3.0; allowed: 0 to 1"),
        ({"support_lambda": 1.1}, "support_lambda = 1.1; allowed: 0 to 1"),
        ({"survival_bonus": float("nan")}, "survival_bonus = nan; allowed: at least 0"),
        ({"bounds_penalty": -0.1}, "bounds_penalty = -0.1; allowed: at least 0"),
        ({"seed": -1}, r"seed = -1; allowed: a whole number, 0 to 2\^64 - 1"),
        ({"seed": 2**64}, r"seed = 18446744073709551616; allowed: a whole number, 0 to 2\^64 - 1"),
        ({"tasks": 0}, "tasks = 0; allowed: a whole number, at least 1"),
        ({"episodes": 2.5}, "episodes = 2.5; allowed: a whole number, at least 1"),
        ({"task_chunk": -1}, "task_chunk = -1; allowed: a whole number, at least 1"),
    ],
)
def test_settings_out_of_bounds_get_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        navigation_learner(**changes)


def test_products_of_many_numbers_are_refused():
    ants = AntVelocity("paper")
    policy = GaussianMLP(ants.observation_space, ants.action_space, (4,))
    with pytest.raises(
        ValueError, match="baseline = 'quadratic' with observations of 125 numbers; allowed: at most 40"
    ):
        Learner(ants, policy, baseline="quadratic")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientDescent(steps=-1), "steps = -1; allowed: a whole number, at least 0"),
        (lambda: MetaSGD(steps=0.5), "steps = 0.5; allowed: a whole number, at least 0"),
        (lambda: TRPO(max_kl=-1.0), "max_kl = -1.0; allowed: more than 0"),
        (lambda: TRPO(max_kl=math.inf), "max_kl = inf; allowed: more than 0"),
        (lambda: GradientDescent(math.nan), "step_size = nan; allowed: more than 0"),
        (lambda: LayerStepSizes(0.0), "step_size = 0.0; allowed: more than 0"),
        (lambda: GradientDescent(later_factor=-0.5), "later_factor = -0.5; allowed: more than 0"),
        (lambda: Adam(-1.0), "step_size = -1.0; allowed: more than 0"),
        (lambda: PPO(inner_kl=0.0), "inner_kl = 0.0; allowed: more than 0"),
        (lambda: Reptile(0.0), "step_size = 0.0; allowed: more than 0"),
        (lambda: TRPO(product_fraction=0), "product_fraction = 0; allowed: more than 0, at most 1"),
        (lambda: PPO(epochs=0), "epochs = 0; allowed: a whole number, at least 1"),
        (lambda: PPO(clip=0.0), "clip = 0.0; allowed: more than 0"),
        (lambda: PPO(penalty=-1.0), "penalty = -1.0; allowed: at least 0"),
        (lambda: GradientDescent(adapted="mean.*"), r"adapted = 'mean.\*'; allowed: a tuple of patterns"),
        (
            lambda: GaussianMLP(Box(-1, 1, (2,)), Box(-1, 1, (2,)), initial_std=0.0),
            "initial_std = 0.0; allowed: more tha",
        ),
    ],
)
def test_parts_out_of_bounds_get_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_distribution_that_makes_another_number_of_lanes_is_refused():
    learner = navigation_learner()
    make = learner.distribution.make
    learner.distribution.make = lambda count, threads: make(8, threads)
    with pytest.raises(ValueError, match=r"lanes of make\(20\) = 8; allowed: 20"):
        learner.step()


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ({"outer": PPO()}, {"outer": Adam()}),
        ({}, {"outer": PPO()}),
        ({"outer": PPO()}, {"outer": PPO(), "rule": GradientDescent(0.5, steps=2)}),
    ],
)
def test_a_state_of_another_outer_optimiser_is_refused(then, now):
    learner = navigation_learner(**now)
    before = learner.theta
    state = {**navigation_learner(**then).state_dict(), "theta": {name: value + 1 for name, value in before.items()}}
    with pytest.raises(ValueError, match="the state holds the outer state"):
        learner.load_state_dict(state)
    assert same(learner.theta, before)


def test_an_estimator_gives_a_number_for_each_task():
    """A scalar would make the inner steps as many times too small as there are tasks."""
    learner = navigation_learner(estimator=lambda *of: score(*of).mean())
    with pytest.raises(ValueError, match=r"the estimator gives \(\) for (2|4) tasks; allowed: \((2|4),\)"):
        learner.step()


def test_tasks_may_be_lists_or_tensors():
    learner = navigation_learner()
    goals = [[0.1, 0.2], [-0.3, 0.4]]
    kinds = [goals, np.array(goals), torch.tensor(goals, dtype=torch.float64)]
    found = [learner.adapt({"goal": kind}, 1)[1].episodes.rewards for kind in kinds]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_state_of_another_policy_is_refused():
    state = navigation_learner().state_dict()
    state["theta"] = {name: value[..., :1] for name, value in state["theta"].items()}
    with pytest.raises(ValueError, match="the state holds the parameters"):
        navigation_learner().load_state_dict(state)


def test_training_and_test_tasks_come_from_different_streams():
    learner = navigation_learner()
    test = held_out_tasks(learner, 40)["goal"]
    train = [Navigation2D().sample(20, keyed_generator(0, "train/tasks", i))["goal"] for i in range(20)]
    distances = np.abs(np.concatenate(train)[:, None] - test[None]).sum(axis=-1)
    assert distances.min() > 1e-6


def test_evaluation_adapts_without_changing_the_learner():
    learner = navigation_learner()
    before = learner.state_dict()
    evaluation = evaluate(learner, 2, held_out_tasks(learner, 6), 3)
    assert same(learner.theta, before["theta"])
    assert (learner.iteration, learner.env_steps) == (0, 0)
    np.testing.assert_allclose(evaluation.returns[1], evaluation.stages[1].episodes.returns.mean(dim=1))
    np.testing.assert_allclose(evaluation.standard_error, evaluation.returns.std(axis=1, ddof=1) / 6**0.5)
    record = evaluation.to_json()
    assert record["return/step_2"]["mean"] == pytest.approx(np.mean(record["return/step_2"]["per_task"]))
    assert np.array(record["tasks"]["goal"]).shape == (6, 2)
    [alike, *_] = learner.adapt(held_out_tasks(learner, 6), 1, 3, purpose="train")
    assert not (alike.episodes.actions == evaluation.stages[0].episodes.actions).any(), "noise of training"


def test_first_order_and_second_order_learn_differently():
    second = navigation_learner()
    first = navigation_learner(rule=replace(second.rule, second_order=False))
    figures = [learner.step() for learner in (first, second)]
    assert figures[0]["return/step_1"] == figures[1]["return/step_1"]
    assert figures[0]["meta_gradient_norm"] != pytest.approx(figures[1]["meta_gradient_norm"], rel=1e-2)


def test_without_inner_steps_the_learner_is_plain_trpo():
    learner = navigation_learner(rule=GradientDescent(0.5, steps=0), outer=TRPO(product_fraction=1.0))
    tasks = held_out_tasks(learner, 40)
    before = evaluate(learner, 0, tasks, 5).mean
    figures = [learner.step() for _ in range(8)]
    assert "return/step_1" not in figures[0]
    assert evaluate(learner, 0, tasks, 5).mean > before + 0.5


@pytest.mark.parametrize(
    "rule",
    [
        MetaSGD(0.1, steps=2),
        LayerStepSizes(0.1, steps=2),
        GradientDescent(0.5, adapted=("mean.2.*", "log_std")),
        GradientDescent(0.5, steps=2, second_order=False, adapted=("context",), from_zero=True),
    ],
    ids=["meta-sgd", "layer step sizes", "head", "context"],
)
def test_every_adaptation_rule_learns_what_it_should_and_continues_exactly(rule):
    def make():
        learner = navigation_learner()
        policy = learner.policy
        if rule.from_zero:
            wide = Box(-1, 1, (4,))
            policy = WithContext(GaussianMLP(wide, learner.distribution.action_space, (16,), "tanh"), 2)
        return replace(learner, policy=policy, rule=rule)

    learner = make()
    start = learner.theta
    learner.step()
    moved = {name for name in start if not torch.equal(start[name], learner.theta[name])}
    assert moved == set(start) - {"context"}
    assert set(learner.adapt(held_out_tasks(learner, 2), 1)[-1].parameters) == set(parameters_of(learner.policy))
    resumed = make()
    resumed.load_state_dict(learner.state_dict())
    assert without_times(resumed.step()) == without_times(learner.step())


def test_any_module_serves_as_a_policy():
    class Bilinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(0.1 * torch.randn(2, 4))

        def forward(self, observations):
            return observations.tanh() @ self.weight

    distribution = Navigation2D(10)
    learner = Learner(distribution, Bilinear(), tasks=3, episodes=4, outer=TRPO(product_fraction=1.0))
    assert learner.step()["kl"] > 0


def test_a_policy_whose_output_does_not_fit_is_refused():
    distribution = Navigation2D(10)
    with pytest.raises(
        ValueError, match=r"\(2, 2\) to shape \(2, 3\); allowed: one tensor \(2, 4\), mean, then log st"
    ):
        Learner(distribution, nn.Linear(2, 3))
    with pytest.raises(
        ValueError, match=r"the policy maps observations \(2, 2\) to tuple; allowed: one tensor \(2, 4\)"
    ):
        Learner(distribution, Pair())


class Pair(nn.Module):
    """Returns mean and log standard deviation one by one."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, observations):
        return self.linear(observations), self.linear(observations)


@pytest.mark.parametrize(
    "policy",
    [
        nn.Sequential(nn.Linear(2, 4), nn.Dropout()),
        nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)),
        nn.GRU(2, 4),
        nn.Linear(2, 4).double(),
        nn.Linear(3, 4),
    ],
)
def test_a_policy_that_cannot_run_for_a_batch_of_tasks_is_refused(policy):
    kind = type(policy).__name__
    with pytest.raises(
        ValueError, match=rf"the policy {kind} cannot map observations \(2, 2\) for a batch of tasks \(.+\); all"
    ):
        Learner(Navigation2D(10), policy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "lvc"}, "estimator = 'lvc'; allowed: one such as metarl.rl.estimators.lvc"),
        ({"rule": 0.1}, r"rule = 0.1; allowed: one such as metarl.GradientDescent\(0.1\)"),
        ({"outer": TRPO}, r"outer = <class .*TRPO'>; allowed: one such as metarl.TRPO\(\)"),
        (
            {"initial_sampling": True, "outer": Reptile()},
            "initial_sampling = True without a gradient through inner steps; allowed: False",
        ),
        (
            {"initial_sampling": True, "rule": GradientDescent(0.1, steps=0)},
            "initial_sampling = True without a gradient through inner steps; allowed: False",
        ),
        (
            {"initial_sampling": True, "weighting": "episode"},
            "initial_sampling = True with weighting = 'episode'; allowed: timestep",
        ),
        ({"multi_step": True}, "multi_step = True without a gradient through two inner steps or more; allowed: False"),
        (
            {"multi_step": True, "rule": GradientDescent(0.1, steps=2), "outer": Reptile()},
            "multi_step = True without a gradient through two inner steps or more; allowed: False",
        ),
        (
            {"multi_step": True, "rule": GradientDescent(0.1, steps=2), "initial_sampling": True},
            "multi_step = True with initial_sampling = True; allowed: one of them",
        ),
        (
            {"outer": Reptile(), "rule": MetaSGD(0.1)},
            r"outer = Reptile\(step_size=0.1\) would leave step_size.log_std as it is; allowed: with a rule that",
        ),
        (
            {"outer": Reptile(), "rule": GradientDescent(0.1, steps=0)},
            r"outer = Reptile\(step_size=0.1\) learns nothing without inner steps; allowed: at least 1",
        ),
        (
            {"rule": LayerStepSizes(0.1, steps=0)},
            "rule.steps = 0 would leave step_size.log_std as it is; allowed: at least 1",
        ),
    ],
)
def test_parts_of_the_wrong_kind_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        navigation_learner(**changes)


@pytest.mark.parametrize("shape", [(), (3, 2)])
def test_observations_of_any_shape_reach_the_bundled_policies_flat(shape):
    space = Box(-1.0, 1.0, shape)
    inputs = torch.randn(5, *shape)
    for policy in (GaussianMLP(space, Box(-1.0, 1.0, (2,)), (4,)), CategoricalMLP(space, Discrete(3), (4,))):
        assert torch.equal(policy(inputs), policy(inputs.reshape(5, -1)))


def test_an_agent_acts_with_the_adapted_parameters_of_its_task():
    learner = navigation_learner()
    stage = learner.adapt({"goal": np.array([[0.4, 0.4], [-0.4, 0.1]])}, steps=2)[-1]
    observation = np.array([0.1, -0.2])
    actions = [learner.agent(stage, task)(observation) for task in (0, 1)]
    for task, action in enumerate(actions):
        own = {n: v[task] for n, v in stage.parameters.items()}
        output = torch.func.functional_call(learner.policy, own, (torch.tensor([[0.1, -0.2]]),))
        np.testing.assert_allclose(action, 0.1 * output[0, :2].detach().clamp(-1, 1), rtol=1e-5)
    assert not np.allclose(*actions)


def test_an_agent_needs_a_task_that_is_there():
    learner = navigation_learner()
    stages = learner.adapt(held_out_tasks(learner, 2), 1)
    with pytest.raises(ValueError, match="task = 2; allowed: 0 to 1"):
        learner.agent(stages[-1], task=2)


def test_policies_of_float32_run_whatever_the_default_is():
    torch.set_default_dtype(torch.float64)
    try:
        navigation_learner()
    except ValueError as error:
        message = str(error)
    finally:
        torch.set_default_dtype(torch.float32)
    assert "allowed: what torch.func.vmap can do, in float32" in message


def test_a_discrete_agent_acts():
    distribution = CorridorTasks()
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (4,))
    theta = dict(policy.named_parameters())
    agent = Agent(policy, {n: v.detach() for n, v in theta.items()}, distribution.action_space, (2,))
    observation = np.array([0.5, 2.0])
    assert agent(observation) == policy(torch.tensor([[0.5, 2.0]])).argmax()


def test_discrete_actions_learn_what_pays():
    """The best action of a corridor is always 2; its return is known."""
    distribution = CorridorTasks()
    torch.manual_seed(0)
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (8,), "tanh")
    learner = Learner(distribution, policy, tasks=4, episodes=10, rule=GradientDescent(0.1), outer=TRPO(max_kl=0.1))
    for _ in range(40):
        figures = learner.step()
    lengths = np.minimum(distribution.sample(4, keyed_generator(0, "train/tasks", 39))["length"], 6)
    best = (2 * lengths * (lengths + 1) / 2).mean()
    assert figures["return/step_1"] > 0.9 * best


def test_meta_learning_makes_one_gradient_step_worth_more():
    learner = navigation_learner(horizon=30, tasks=10, episodes=10)
    tasks = held_out_tasks(learner, 20)
    before = evaluate(learner, 1, tasks, 10).mean
    for _ in range(15):
        learner.step()
    after = evaluate(learner, 1, tasks, 10).mean
    assert after[1] > before[1] + 3
    assert after[1] - after[0] > before[1] - before[0] + 1


def test_success_stands_beside_the_return():
    """A corridor's episode succeeds from its fourth step on."""
    distribution = CorridorTasks(6, broken="tells success")
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (4,))
    learner = Learner(distribution, policy, tasks=5, episodes=2)
    figures = learner.step()
    lengths = distribution.sample(5, keyed_generator(0, "train/tasks", 0))["length"]
    assert figures["success/step_0"] == figures["success/step_1"] == (lengths >= 4).mean()
    evaluation = evaluate(learner, 1, {"length": np.array([2, 3, 4, 8])}, 3)
    assert evaluation.successes.tolist() == [[0, 0, 1, 1]] * 2
    assert evaluation.to_json()["success/step_1"] == {"mean": 0.5, "per_task": [0, 0, 1, 1]}
    returns = dict(zip(("return/step_0", "return/step_1"), evaluation.mean, strict=True))
    assert evaluation.figures == returns | {"success/step_0": 0.5, "success/step_1": 0.5}


def test_each_step_goes_on_from_a_tasks_own_parameters_and_later_ones_are_half_as_long():
    learner = navigation_learner()
    stages = learner.adapt(held_out_tasks(learner, 4), 3)
    for before, after, size in zip(stages, stages[1:], (0.5, 0.25, 0.25), strict=False):
        moved = [(after.parameters[n] - before.parameters[n]).flatten(1).square().sum(dim=1) for n in learner.theta]
        torch.testing.assert_close(sum(moved).sqrt(), size * after.gradient_norm, rtol=1e-3, atol=0)


def test_several_trained_steps_lead_to_the_policies_that_sampled():
    learner = navigation_learner(rule=GradientDescent(0.5, steps=2))
    stages = learner.adapt(held_out_tasks(learner, 4), 2)
    loss, kl = learner.objective(stages).evaluate(ravel(list(learner.theta.values())))
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert kl.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("support_lambda", [None, 0.5])
def test_multi_step_judges_every_stage_with_the_advantages_of_the_meta_gradient(support_lambda):
    learner = navigation_learner(
        rule=GradientDescent(0.5, steps=3), multi_step=True, gae_lambda=0.9, support_lambda=support_lambda
    )
    stages = learner.adapt(held_out_tasks(learner, 4), 3)
    objective = learner.objective(stages)
    for stage, found in zip(stages[1:], objective.queries, strict=True):
        expected = to_samples(stage.episodes, estimate_advantages(stage.episodes, 0.99, 0.9)[0]).packed()
        assert torch.equal(found.advantages, expected.advantages)
        assert torch.equal(found.log_probs, expected.log_probs)
    for stage, found in zip(stages[:-1], objective.supports, strict=True):
        assert found is stage.samples
    figures = learner.step()
    assert 0 < figures["kl"] <= 0.01
    assert figures["accepted"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"discount": 0.9, "gae_lambda": 0.7, "weighting": "episode"},
        {"gae_lambda": 0.9, "support_lambda": 0.0},
        {"bootstrap": True},
        {"baseline": "quadratic"},
    ],
)
def test_samples_are_made_as_the_settings_say(changes):
    learner = navigation_learner(**changes)
    settings = {"discount": 0.99, "gae_lambda": 1.0, "weighting": "timestep", **changes}
    weighting = settings.pop("weighting")
    support = settings.pop("support_lambda", settings["gae_lambda"])
    for stage, gae_lambda in zip(learner.adapt(held_out_tasks(learner, 4), 2), [support, support, None], strict=True):
        own = settings if gae_lambda is None else {**settings, "gae_lambda": gae_lambda}
        advantages, explained, deviation = estimate_advantages(stage.episodes, **own)
        expected = to_samples(stage.episodes, advantages, weighting).packed()
        assert torch.equal(stage.samples.advantages, expected.advantages)
        assert torch.equal(stage.samples.weights, expected.weights)
        assert torch.equal(stage.explained_variance, explained)
        assert torch.equal(stage.advantage_deviation, deviation)


@pytest.mark.parametrize("sampling", [False, True])
def test_learning_sees_a_bonus_for_survival_that_returns_do_not_tell(sampling):
    lengths = (2, 4, 6)
    distribution = CorridorTasks(6)
    torch.manual_seed(0)
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (4,))
    learner = Learner(distribution, policy, 3, 5, survival_bonus=2.0, initial_sampling=sampling)
    stages = learner.adapt({"length": np.array(lengths)}, 1)
    for stage in stages:
        told = (stage.episodes.actions * torch.arange(1, 7).view(1, 6, 1) * stage.episodes.valid).sum(dim=1)
        assert torch.equal(stage.episodes.returns, told.to(stage.episodes.returns.dtype))
        seen = stage.episodes.rewards.clone()
        for task, length in enumerate(lengths):
            seen[task, :length] += 2.0
        advantages, explained, deviation = estimate_advantages(replace(stage.episodes, rewards=seen))
        assert torch.equal(stage.samples.advantages, to_samples(stage.episodes, advantages).packed().advantages)
        assert torch.equal(stage.explained_variance, explained)
        assert torch.equal(stage.advantage_deviation, deviation)
    if sampling:
        returns = discounted_returns(seen, 0.99)[:, 0]
        expected = outcomes(returns, stages[-1].episodes.lengths, stages[-1].advantage_deviation)
        torch.testing.assert_close(learner.objective(stages).outcomes, expected)


def test_learning_sees_a_penalty_for_actions_beyond_their_bounds_that_returns_do_not_tell():
    learner = navigation_learner(bounds_penalty=0.5, survival_bonus=0.25)
    for stage in learner.adapt(held_out_tasks(learner, 4), 1):
        told = stage.episodes.rewards.sum(dim=1).double()
        torch.testing.assert_close(stage.episodes.returns.double(), told)
        beyond = (stage.episodes.actions.abs() - 1).clamp(min=0) ** 2
        seen = stage.episodes.rewards + stage.episodes.valid * (0.25 - 0.5 * (beyond[..., 0] + beyond[..., 1]))
        advantages, explained, _ = estimate_advantages(replace(stage.episodes, rewards=seen))
        expected = to_samples(stage.episodes, advantages).packed().advantages
        torch.testing.assert_close(stage.samples.advantages, expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(stage.explained_variance, explained, rtol=1e-4, atol=1e-4)


class Indifferent(gymnasium.Env):
    """All actions are worth the same."""

    observation_space, action_space = Box(0, 1, (1,)), Box(-2, 4, (1,))

    def reset(self, *, seed=None, options=None):
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize(("penalty", "within"), [(0.0, False), (1.0, True)])
def test_a_penalty_brings_a_policy_back_within_the_bounds_of_its_actions(penalty, within):
    distribution = GymnasiumTasks(Indifferent, choose_from({"task": np.arange(2)}), lambda env, task: None, horizon=4)
    torch.manual_seed(0)
    policy = GaussianMLP(distribution.observation_space, distribution.action_space, (4,), "tanh")
    with torch.no_grad():
        dict(policy.named_parameters())["mean.2.bias"].fill_(3)
    rule, outer = GradientDescent(0.01), TRPO(max_kl=0.1, product_fraction=1.0)
    learner = Learner(distribution, policy, 2, 50, rule=rule, outer=outer, bounds_penalty=penalty)
    [[before, _]] = torch.func.functional_call(policy, learner.theta, torch.ones(1))
    for _ in range(20):
        learner.step()
    [[mean, _]] = torch.func.functional_call(policy, learner.theta, torch.ones(1))
    assert before > 2
    assert mean < 1 if within else mean == before


class Toil(gymnasium.Env):
    """Every step costs 1; action 1 ends the episode."""

    observation_space, action_space = Box(0, 1, (1,)), Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), -1.0, bool(action == 1), False, {}


@pytest.mark.parametrize(("bonus", "longest"), [(0.0, False), (2.0, True)])
def test_a_bonus_for_survival_makes_ending_an_episode_early_unattractive(bonus, longest):
    distribution = GymnasiumTasks(Toil, choose_from({"task": np.arange(2)}), lambda env, task: None, horizon=8)
    torch.manual_seed(0)
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (4,), "tanh")
    learner = Learner(distribution, policy, 2, 20, outer=TRPO(max_kl=0.1), survival_bonus=bonus)
    for _ in range(40):
        figures = learner.step()
    assert figures["return/step_1"] == pytest.approx(-figures["episode_length"])
    assert figures["episode_length"] > 7 if longest else figures["episode_length"] < 1.2


def test_a_budget_of_steps_is_spent():
    distribution = CorridorTasks()
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (4,))
    learner = Learner(distribution, policy, tasks=3, episodes=2, budget="steps")
    [stage] = learner.adapt(held_out_tasks(learner, 3), 0)
    assert (stage.episodes.lengths.sum(dim=1) >= 2 * distribution.horizon).all()


def test_emaml_weighs_the_support_by_what_came_after():
    learner = navigation_learner(initial_sampling=True)
    stages = learner.adapt(held_out_tasks(learner, 4), 1)
    query = stages[-1].episodes
    returns = discounted_returns(query.rewards, 0.99)[:, 0]
    expected = outcomes(returns, query.lengths, stages[-1].advantage_deviation)
    torch.testing.assert_close(learner.objective(stages).outcomes, expected)


def test_every_iteration_takes_its_share_of_other_samples_for_its_products(monkeypatch):
    learner, drawn = navigation_learner(outer=TRPO(product_fraction=0.3)), []
    products = MetaObjective.kl_products

    def noted(self, vector, fraction, rng):
        drawn.append((fraction, copy.deepcopy(rng).random()))
        return products(self, vector, fraction, rng)

    monkeypatch.setattr(MetaObjective, "kl_products", noted)
    for _ in range(3):
        learner.step()
    assert len(set(drawn)) == 3
    assert {fraction for fraction, _ in drawn} == {0.3}


def test_failed_episodes_count_at_every_stage_and_explained_variance_is_that_of_the_last(monkeypatch):
    learner, sample = navigation_learner(), Learner._sample

    def failing(self, envs, phi, tasks, key, processes):
        episodes = sample(self, envs, phi, tasks, key, processes)
        failed = torch.tensor([[True] * 5, [False] * 5, [True, False] * 2 + [False], [False] * 5])
        return replace(episodes, failed=failed if key.purpose == "train/step_0" else failed.roll(1, 0))

    monkeypatch.setattr(Learner, "_sample", failing)
    *_, last = learner.adapt(learner.distribution.sample(4, learner._rng("train/tasks")), 1, purpose="train")
    figures = learner.step()
    assert figures["failed_episodes"] == 14
    assert figures["explained_variance"] == pytest.approx(last.explained_variance.mean().item())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 0}, "episodes = 0; allowed: a whole number, at least 1"),
        ({"steps": -1}, "steps = -1; allowed: a whole number, at least 0"),
        ({"tasks": {}}, r"tasks = \{\}; allowed: a dict of arrays, a row per task"),
        ({"tasks": {"goal": 0.3}}, r"tasks = \{'goal': 0.3\}; allowed: a dict of arrays, a row per task"),
        ({"tasks": {"goal": [[0.0, 0.0]], "b": [1, 2]}}, r"tasks = .*; allowed: a dict of arrays, a row per task"),
    ],
)
def test_adapting_to_nothing_gets_one_line(changes, message):
    learner = navigation_learner()
    with pytest.raises(ValueError, match=message):
        learner.adapt(**{"tasks": held_out_tasks(learner, 2), "steps": 1, **changes})


def test_every_iteration_has_new_tasks(monkeypatch):
    learner, seen = navigation_learner(), []
    sample = learner.distribution.sample
    monkeypatch.setattr(Navigation2D, "sample", lambda self, count, rng: seen.append(sample(count, rng)) or seen[-1])
    learner.step()
    learner.step()
    assert not np.isin(seen[0]["goal"], seen[1]["goal"]).any()


def test_parameters_that_are_not_finite_name_step_and_task():
    learner = navigation_learner(rule=GradientDescent(1e300))
    with pytest.raises(NonFiniteError, match="the parameters of task 0 after inner step 1 are not finite"):
        evaluate(learner, 2, held_out_tasks(learner, 2), 3)


def test_meta_parameters_that_are_not_finite_are_not_taken():
    learner = navigation_learner(outer=Adam(1e300))
    before = learner.theta
    with pytest.raises(NonFiniteError, match="the meta-parameters after iteration 1 are not finite"):
        learner.step()
    assert same(before, learner.theta)
    assert learner.iteration == 0


def test_a_compiled_policy_learns_as_the_plain_one():
    plain = navigation_learner()
    compiled = navigation_learner()
    compiled = replace(compiled, policy=torch.compile(compiled.policy, backend="aot_eager"))
    figures = [without_times(learner.step()) for learner in (plain, compiled)]
    assert figures[0] == figures[1]
    assert all(torch.equal(*pair) for pair in zip(plain.theta.values(), compiled.theta.values(), strict=True))
