"""Inner losses in float64: derivatives for every estimator and adaptation rule, and which samples may be dropped."""

from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch

from metarl.core.parameters import call_per_task, expand_over_tasks, unravel
from metarl.core.rules import GradientDescent, LayerStepSizes, MetaSGD
from metarl.rl.episodes import Samples
from metarl.rl.estimators import clipped_surrogate, dice, lvc, outcomes, sampling_term, score, surrogate
from metarl.rl.objective import _thin, _thin_episodes
from tests.metarl.rl.problems import EPISODES, FAMILY, STEPS, TASKS, Problem
from tests.probes import finite_differences

ESTIMATORS = {"score": score, "likelihood ratio": surrogate, "lvc": lvc, "dice": dice}

RULES = {
    "gradient descent": GradientDescent(0.3, 2),
    "meta-sgd": MetaSGD(0.3, 2),
    "layer step sizes": LayerStepSizes(0.3, 2),
    "head": GradientDescent(0.3, 2, adapted=("out.*",)),
    "context": GradientDescent(0.3, 2, adapted=("hidden.bias",), from_zero=True),
}


def product_ratios(distribution, outputs, samples):
    """DiCE with importance weights in place of magic boxes: prod_{k<=t} r_k - prod_{k<t} r_k, one step at a time."""
    ratios = (distribution.log_prob(outputs, samples.actions) - samples.log_probs).exp().view(-1, STEPS, EPISODES)
    before, total = torch.ones_like(ratios[:, 0]), 0.0
    weighted = (samples.weights * samples.advantages).view(-1, STEPS, EPISODES)
    for t in range(STEPS):
        total = total - (weighted[:, t] * (before * ratios[:, t] - before)).sum(dim=1)
        before = before * ratios[:, t]
    return total


# Functions of the parameters whose second derivative is what the estimator must have where the samples were drawn.
IMPORTANCE = {score: score, surrogate: surrogate, lvc: surrogate, dice: product_ratios}


def kl_loss(distribution, outputs, samples):
    return (samples.weights * distribution.kl(samples.dist_params, outputs)).sum(dim=1)


CASES = [(rule, estimator) for rule in RULES for estimator in ESTIMATORS]


@pytest.mark.parametrize(("rule", "estimator"), CASES)
def test_meta_gradients_agree_with_finite_differences_of_the_importance_form(rule, estimator):
    problem = Problem(RULES[rule], ESTIMATORS[estimator])
    reference = problem.objective(IMPORTANCE[problem.estimator])
    expected = finite_differences(lambda v: reference.evaluate(v)[0], problem.vector)
    _, gradient = problem.objective().loss_and_gradient(problem.vector)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)
    assert gradient.norm() > 1e-3


@pytest.mark.parametrize(("rule", "estimator"), CASES)
def test_products_agree_with_finite_differences_of_the_gradient_of_kl(rule, estimator):
    problem = Problem(RULES[rule], ESTIMATORS[estimator])
    v = torch.randn_like(problem.vector)
    reference = problem.objective(IMPORTANCE[problem.estimator])
    ends = [reference.loss_and_gradient(problem.vector + h * v, kl_loss)[1] for h in (1e-5, -1e-5)]
    product = problem.objective().kl_products(problem.vector, 1.0, np.random.default_rng(0))
    torch.testing.assert_close(product(v), (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("rule", "estimator"), CASES)
def test_one_task_at_a_time_gives_the_same(rule, estimator):
    problem = Problem(RULES[rule], ESTIMATORS[estimator])
    whole, single = problem.objective(), problem.objective(chunk=1)
    v = torch.randn_like(problem.vector)
    for fraction in (1.0, 0.4):
        products = [o.kl_products(problem.vector, fraction, np.random.default_rng(0))(v) for o in (whole, single)]
        torch.testing.assert_close(*products)
    elsewhere = problem.vector + 0.1 * v
    for found, expected in zip(single.loss_and_gradient(elsewhere), whole.loss_and_gradient(elsewhere), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rule", RULES)
def test_the_sampling_term_is_part_of_loss_and_gradient_and_chunks_change_nothing(rule):
    problem, weights = Problem(RULES[rule]), torch.tensor([0.7, -1.3]).double()
    objective = problem.objective(outcomes=weights)
    elsewhere = problem.vector + 0.05 * torch.randn_like(problem.vector)
    loss, gradient = objective.loss_and_gradient(elsewhere)
    expected = finite_differences(lambda v: objective.evaluate(v)[0], elsewhere)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(objective.evaluate(elsewhere)[0], loss)
    torch.testing.assert_close(problem.objective(chunk=1, outcomes=weights).loss_and_gradient(elsewhere)[1], gradient)
    assert abs(loss - problem.objective().evaluate(elsewhere)[0]) > 1e-3


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_all_estimators_have_the_policy_gradient_where_the_samples_were_drawn(estimator):
    problem = Problem(RULES["gradient descent"])
    samples = problem.supports[0]
    outputs = call_per_task(
        problem.policy, problem.rule.start(expand_over_tasks(problem.like, TASKS)), samples.observations
    )
    gradients = []
    for loss in (ESTIMATORS[estimator], score):
        leaf = outputs.detach().requires_grad_()
        gradients.append(torch.autograd.grad(loss(FAMILY, leaf, samples).sum(), leaf)[0])
    torch.testing.assert_close(*gradients)


def hessian(estimator, problem, samples):
    def loss(vector):
        theta = {name: value.unsqueeze(0) for name, value in unravel(vector, problem.like).items()}
        return problem.model(estimator)(theta, samples.of_tasks(slice(0, 1))).sum()

    return torch.autograd.functional.hessian(loss, problem.vector)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_padding_plays_no_part(estimator):
    problem = Problem(RULES["gradient descent"])
    samples = problem.supports[0]

    def pad(values):
        """Two more steps of nonsense at the end of every episode."""
        return torch.cat([values, torch.randn_like(values[:, : 2 * EPISODES])], dim=1)

    longer = Samples(
        *(pad(v) for v in (samples.observations, samples.actions, samples.dist_params, samples.log_probs)),
        advantages=pad(samples.advantages),
        weights=torch.cat([samples.weights, torch.zeros(TASKS, 2 * EPISODES)], dim=1),
        time_steps=STEPS + 2,
    )
    loss = ESTIMATORS[estimator]
    torch.testing.assert_close(hessian(loss, problem, longer), hessian(loss, problem, samples))
    returns = torch.arange(1.0, TASKS + 1)
    terms = [sampling_term(FAMILY, [of.dist_params + 0.1], [of], returns) for of in (samples, longer)]
    torch.testing.assert_close(*terms)


def test_dice_of_episodes_of_one_step_is_lvc():
    problem = Problem(RULES["gradient descent"])
    samples = replace(problem.supports[0], time_steps=1)
    torch.testing.assert_close(hessian(dice, problem, samples), hessian(lvc, problem, samples))
    assert not torch.allclose(hessian(dice, problem, problem.supports[0]), hessian(lvc, problem, samples), rtol=1e-2)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_average_over_all_subsamples_is_the_hessian_of_all_samples(estimator):
    """With equal weights: by single steps for most estimators, by whole episodes for dice."""
    problem = Problem(RULES["gradient descent"])
    loss = ESTIMATORS[estimator]
    samples = replace(problem.supports[0], weights=torch.full_like(problem.supports[0].weights, 1 / 12))
    if loss is dice:
        parts = [samples.of_episodes(torch.tensor(chosen)) for chosen in combinations(range(EPISODES), 2)]
    else:
        parts = [samples.at(torch.tensor(chosen)) for chosen in combinations(range(12), 2)]
    mean = torch.stack([hessian(loss, problem, part) for part in parts]).mean(dim=0)
    torch.testing.assert_close(mean, hessian(loss, problem, samples))


def test_subsamples_of_products_keep_whole_episodes_for_dice_alone():
    samples = Problem(RULES["gradient descent"]).supports[0]
    rng = np.random.default_rng(0)
    thinned = _thin_episodes(samples, 0.7, rng)
    assert thinned.time_steps == STEPS
    assert thinned.weights.shape == (TASKS, STEPS * 2)
    grid, kept = (s.advantages[0].view(STEPS, -1) for s in (samples, thinned))
    assert all(any(torch.equal(column, other) for other in grid.T) for column in kept.T)
    outputs = torch.zeros(TASKS, 8, 2)
    with pytest.raises(ValueError, match="dice got single steps"):
        dice(FAMILY, outputs, _thin(samples, 0.7, rng))
    with pytest.raises(ValueError, match="these samples are single steps"):
        _thin(samples, 0.7, rng).of_episodes(torch.tensor([0]))


def test_clipping_stops_what_pays_beyond_the_bound_and_nothing_else():
    ratios, advantages = [0.5, 0.9, 1.5, 0.5, 1.5], [1.0, 1.0, 1.0, -1.0, -1.0]
    outputs = torch.zeros(1, 5, 2, dtype=torch.float64)
    actions = torch.zeros(1, 5, 1, dtype=torch.float64)
    now = FAMILY.log_prob(outputs, actions)
    samples = Samples(
        outputs, actions, outputs, now - torch.tensor([ratios]).log(), torch.tensor([advantages]), torch.ones(1, 5)
    )
    found = clipped_surrogate(FAMILY, outputs, samples, clip=0.2)
    assert found.item() == pytest.approx(-(0.5 + 0.9 + 1.2 - 0.8 - 1.5))
    wide = partial(clipped_surrogate, clip=9.0)
    torch.testing.assert_close(wide(FAMILY, outputs, samples), surrogate(FAMILY, outputs, samples))


def test_outcomes_rank_tasks_by_their_mean_return_in_one_unit():
    returns = torch.tensor([[2.0, 4.0], [1.0, 0.0], [0.0, 8.0]])
    lengths = torch.tensor([[3, 1], [1, 0], [2, 8]])  # the second task has one episode
    found = outcomes(returns, lengths, torch.tensor([1.0, 0.5, 4.5]))
    unit = 15 / 5 * 2.0
    torch.testing.assert_close(found, torch.tensor([3 - 2.5, 1 - 3.5, 4 - 2.0]) / unit, atol=1e-6, rtol=0)


def test_a_goal_reached_early_is_a_better_outcome_than_one_never_reached():
    lengths = torch.tensor([[10], [100]])
    early, never = outcomes(torch.tensor([[-2.5], [-5.0]]), lengths, torch.tensor([1.0, 1.0]))
    assert early > 0 > never  # per step of its own it would be the worse one
    bad, worse = outcomes(torch.tensor([[-40.0], [-400.0]]), lengths, torch.tensor([5.0, 100.0]))
    assert bad > 0 > worse  # and so it would be in units of its own standard deviation
