"""Adaptation: whose parameters sample which episodes, and what each inner step and the objective make of them."""

import numpy as np
import pytest
import torch

from metarl import GradientDescent, keyed_generator
from metarl.core.parameters import ravel
from metarl.rl.advantages import discounted_returns
from metarl.rl.episodes import to_samples
from metarl.rl.estimators import outcomes
from metarl.rl.evaluation import held_out_tasks
from tests.builders import corridor_learner, estimate_advantages, navigation_learner, same


def test_query_episodes_are_drawn_with_the_adapted_parameters():
    learner = navigation_learner()
    tasks = held_out_tasks(learner, 4)
    before, after = learner.adapt(tasks, inner_steps=1)
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
    torch.testing.assert_close(after.samples.dist_params[valid], outputs[valid], rtol=1e-4, atol=1e-5)


def test_every_step_and_iteration_has_its_own_noise():
    learner = navigation_learner()
    tasks = held_out_tasks(learner, 4)
    paths = [learner.adapt(tasks, 1, purpose="train", iteration=iteration) for iteration in (0, 1)]
    starts = [at.episodes.actions[0, 0] for path in (*paths, learner.adapt(tasks, 1)) for at in path]
    assert all(not torch.equal(a, b) for i, a in enumerate(starts) for b in starts[:i])


def test_a_part_of_the_test_tasks_has_the_same_first_episodes():
    learner = navigation_learner()
    tasks = held_out_tasks(learner, 4)
    whole = learner.adapt(tasks, inner_steps=0)[0].episodes
    part = learner.adapt({"goal": tasks["goal"][:2]}, inner_steps=0)[0].episodes
    assert torch.equal(part.rewards, whole.rewards[:2, : part.rewards.shape[1]])


def test_tasks_may_be_lists_or_tensors():
    learner = navigation_learner()
    goals = [[0.1, 0.2], [-0.3, 0.4]]
    kinds = [goals, np.array(goals), torch.tensor(goals, dtype=torch.float64)]
    found = [learner.adapt({"goal": kind}, 1)[1].episodes.rewards for kind in kinds]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_each_step_goes_on_from_a_tasks_own_parameters_and_later_ones_are_half_as_long():
    learner = navigation_learner()
    path = learner.adapt(held_out_tasks(learner, 4), 3)
    for before, after, size in zip(path, path[1:], (0.5, 0.25, 0.25), strict=False):
        moved = [(after.parameters[n] - before.parameters[n]).flatten(1).square().sum(dim=1) for n in learner.theta]
        torch.testing.assert_close(sum(moved).sqrt(), size * after.gradient_norm, rtol=1e-3, atol=0)


def test_several_trained_steps_lead_to_the_policies_that_sampled():
    learner = navigation_learner(rule=GradientDescent(0.5, inner_steps=2))
    path = learner.adapt(held_out_tasks(learner, 4), 2)
    loss, kl = learner.objective(path).evaluate(ravel(list(learner.theta.values())))
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert kl.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("support_lambda", [None, 0.5])
def test_multi_step_judges_every_step_with_the_advantages_of_the_meta_gradient(support_lambda):
    learner = navigation_learner(
        rule=GradientDescent(0.5, inner_steps=3), multi_step=True, gae_lambda=0.9, support_lambda=support_lambda
    )
    path = learner.adapt(held_out_tasks(learner, 4), 3)
    objective = learner.objective(path)
    assert list(objective.queries) == [1, 2, 3]
    assert objective.weights == pytest.approx(dict.fromkeys((1, 2, 3), 1 / 3))
    for at, found in zip(path[1:], objective.queries.values(), strict=True):
        expected = to_samples(at.episodes, estimate_advantages(at.episodes, 0.99, 0.9)[0]).packed()
        assert torch.equal(found.advantages, expected.advantages)
        assert torch.equal(found.log_probs, expected.log_probs)
    for at, found in zip(path[:-1], objective.supports, strict=True):
        assert found is at.samples
    metrics = learner.step()
    assert 0 < metrics["kl"] <= 0.01
    assert metrics["accepted"] == 1


def test_emaml_weighs_the_support_by_what_came_after():
    learner = navigation_learner(initial_sampling=True)
    path = learner.adapt(held_out_tasks(learner, 4), 1)
    query = path[-1].episodes
    returns = discounted_returns(query.rewards, 0.99)[:, 0]
    expected = outcomes(returns, query.lengths, path[-1].advantage_std)
    torch.testing.assert_close(learner.objective(path).outcomes, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes_per_task": 0}, "episodes_per_task = 0"),
        ({"inner_steps": -1}, "inner_steps = -1"),
        ({"tasks": {}}, "tasks = "),
        ({"tasks": {"goal": 0.3}}, "tasks = "),
        ({"tasks": {"goal": [[0.0, 0.0]], "b": [1, 2]}}, "tasks = "),
    ],
)
def test_arguments_that_cannot_be_are_named(changes, message):
    learner = navigation_learner()
    with pytest.raises(ValueError, match=message):
        learner.adapt(**{"tasks": held_out_tasks(learner, 2), "inner_steps": 1, **changes})


def test_a_budget_of_steps_is_spent():
    learner = corridor_learner(budget="steps")
    [at] = learner.adapt(held_out_tasks(learner, 3), 0)
    assert (at.episodes.lengths.sum(dim=1) >= 2 * learner.task_distribution.horizon).all()


def test_training_plays_the_episodes_of_its_purpose_and_iteration():
    """`adapt` with the purpose of training gives the very episodes that `step` learns from."""
    learner = navigation_learner()
    learner.step()
    tasks = learner.task_distribution.sample(4, keyed_generator(0, "train/tasks", 1))
    path = learner.adapt(tasks, 1, purpose="train", iteration=1)
    metrics = learner.step()
    for step, at in enumerate(path):
        assert metrics[f"return/step_{step}"] == pytest.approx(
            at.episodes.mean_returns.double().mean().item(), rel=1e-6
        )


def test_an_inner_step_is_that_of_the_rule():
    learner = navigation_learner()
    before, after = learner.adapt(held_out_tasks(learner, 4), 1)
    phi, norm = learner.inner_step(before.parameters, before.samples, 0)
    assert same(phi, after.parameters)
    assert torch.equal(norm, after.gradient_norm)
    later, _ = learner.inner_step(before.parameters, before.samples, 1)  # half as long, beyond the trained one
    for name, start in before.parameters.items():
        torch.testing.assert_close(later[name] - start, 0.5 * (phi[name] - start), rtol=1e-3, atol=1e-6)


def test_adapting_leaves_the_learner_as_it_was():
    learner = navigation_learner()
    before, theta = learner.state, {name: value.clone() for name, value in learner.theta.items()}
    learner.adapt(held_out_tasks(learner, 2), 2)
    assert learner.state is before
    assert same(learner.theta, theta)
    assert (learner.iteration, learner.env_steps) == (0, 0)
