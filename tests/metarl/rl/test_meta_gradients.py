"""Every estimator's expected meta-gradient against the exact one, over all trajectories of tiny tabular tasks.

The objective is the expected return after S inner steps, J_S(theta) = E J(phi(theta, support)), the support data being
E episodes per step that follow the policy at hand: their distribution depends on theta. `E = None` is the limit of
infinitely many episodes, phi = theta + alpha grad J(theta). Expectations are enumerations, exact to rounding, except
where a test says Monte Carlo.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from metarl.core.parameters import ravel
from metarl.core.rules import GradientDescent, LayerStepSizes, MetaSGD
from metarl.experiments.studies import tabular, tabular_batches
from metarl.rl.estimators import dice, lvc, score, surrogate

ALPHA = 1.5
# (estimator, second order, E-MAML's sampling term)
VARIANTS = {
    "score": (score, True, False),
    "score with the sampling term": (score, True, True),
    "likelihood ratio": (surrogate, True, False),
    "lvc": (lvc, True, False),
    "dice": (dice, True, False),
    "first order": (score, False, False),
    "first order, likelihood ratio": (surrogate, False, False),
    "first order, lvc": (lvc, False, False),
    "first order, dice": (dice, False, False),
    "first order with the sampling term": (score, False, True),
}
FINITE = [(1, 1), (2, 1), (1, 2), (1, 3)]  # (E, S)
INFINITE = [(None, 1), (None, 2), (None, 3)]  # here the sampling term, a sum over episodes, means nothing
CASES = [(v, *data) for v, (_, _, sampling) in VARIANTS.items() for data in FINITE + (INFINITE if not sampling else [])]


@cache
def exact(episodes, steps):
    return tabular.exact_gradient(ALPHA, steps, episodes)


@cache
def found(variant, episodes, steps, alpha=ALPHA):
    estimator, second_order, sampling = VARIANTS[variant]
    rule = GradientDescent(alpha, steps, second_order)
    return tabular_batches.enumerated(rule, episodes).meta_gradient(estimator, rule, sampling)


def bias(variant, episodes, steps):
    truth = exact(episodes, steps)
    return np.linalg.norm(found(variant, episodes, steps) - truth) / np.linalg.norm(truth)


@pytest.mark.parametrize(("variant", "episodes", "steps"), CASES)
def test_the_expectation_is_what_theory_says(variant, episodes, steps):
    estimator, second_order, sampling = VARIANTS[variant]
    expected = tabular.theoretical_gradient(ALPHA, steps, episodes, estimator if second_order else None, sampling)
    np.testing.assert_allclose(found(variant, episodes, steps), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("episodes", "steps"), FINITE)
def test_score_with_the_sampling_term_is_unbiased_for_any_number_of_episodes(episodes, steps):
    np.testing.assert_allclose(
        found("score with the sampling term", episodes, steps), exact(episodes, steps), rtol=1e-10, atol=1e-14
    )


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_dice_is_unbiased_with_infinitely_many_episodes(steps):
    np.testing.assert_allclose(found("dice", None, steps), exact(None, steps), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_other_estimators_are_biased_however_many_episodes(steps):
    biases = {variant: bias(variant, None, steps) for variant in ("score", "lvc", "likelihood ratio", "first order")}
    assert min(biases.values()) > 0.05, biases
    assert biases["lvc"] == pytest.approx(biases["likelihood ratio"])
    assert biases["lvc"] < min(biases["score"], biases["first order"])


def test_the_bias_of_dice_is_of_second_order_in_the_step_size_and_that_of_the_others_of_first():
    ratios = {}
    for variant in ("dice", "lvc", "score", "first order"):
        errors = [
            np.linalg.norm(found(variant, 2, 1, alpha) - tabular.exact_gradient(alpha, 1, 2)) for alpha in (0.02, 0.01)
        ]
        ratios[variant] = errors[0] / errors[1]
    assert ratios["dice"] == pytest.approx(4, abs=0.2)
    for variant in ("lvc", "score", "first order"):
        assert ratios[variant] == pytest.approx(2, abs=0.1)


def test_the_bias_of_dice_is_inversely_proportional_to_the_number_of_episodes_for_small_steps():
    errors = [np.linalg.norm(found("dice", e, 1, 0.02) - tabular.exact_gradient(0.02, 1, e)) for e in (1, 2, 3)]
    assert errors[1] / errors[0] == pytest.approx(1 / 2, rel=0.02)
    assert errors[2] / errors[0] == pytest.approx(1 / 3, rel=0.02)


def test_the_baseline_moves_the_expectation_of_score_alone(monkeypatch):
    """In the limit of many episodes: with few, a baseline changes phi's distribution, and so the objective itself."""
    before = {variant: found(variant, None, 1) for variant in ("score", "lvc", "dice")}
    moved = tuple(replace(task, baseline=task.baseline + np.array([[1.0, 0.0], [-2.0, 0.5]])) for task in tabular.TASKS)
    monkeypatch.setattr(tabular_batches, "TASKS", moved)
    rule = GradientDescent(ALPHA)
    after = {v: tabular_batches.enumerated(rule, None).meta_gradient(VARIANTS[v][0], rule) for v in before}
    np.testing.assert_allclose(after["dice"], before["dice"], rtol=1e-10)
    np.testing.assert_allclose(after["lvc"], before["lvc"], rtol=1e-10)
    assert np.linalg.norm(after["score"] - before["score"]) > 0.1 * np.linalg.norm(before["score"])


@pytest.mark.parametrize(("kind", "episodes", "steps"), [(MetaSGD, 1, 2), (MetaSGD, None, 2), (LayerStepSizes, 1, 2)])
def test_the_meta_gradient_of_learned_step_sizes_is_exact(kind, episodes, steps):
    rule = kind(ALPHA, steps)
    batch = tabular_batches.enumerated(rule, episodes)
    gradient = batch.meta_gradient(*((dice, rule, False) if episodes is None else (score, rule, True)))
    np.testing.assert_allclose(gradient[:4], exact(episodes, steps), rtol=1e-10, atol=1e-14)

    def adapted_return(sizes):
        returns = [tabular.adapted_return(task, tabular.TABLE, sizes, steps, episodes) for task in tabular.TASKS]
        return sum(returns) / len(returns)

    by_element = tabular.complex_step(adapted_return, np.full((2, 2), ALPHA))
    if kind is MetaSGD:
        np.testing.assert_allclose(gradient[4:], by_element, rtol=1e-10, atol=1e-14)
    else:  # one number per step, of which all elements share the sum
        assert gradient[4:].shape == (steps,)
        assert gradient[4:].sum() == pytest.approx(by_element.sum(), rel=1e-10)
        assert gradient[4] != pytest.approx(gradient[5], rel=0.01)


@cache
def draws_of_a_learner():
    rng = np.random.default_rng(5)
    return [tabular_batches.sampled(GradientDescent(ALPHA), 3, 500, rng, query=3) for _ in range(30)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_sampled_episodes_give_that_expectation(variant):
    """Monte Carlo, support and query of 3 episodes as a learner draws them; 30 groups of 500 repetitions.

    All four components within 5 standard errors: by chance a correct estimator fails for less than one seed in 10,000
    (Student's t with 29 degrees of freedom; two of the components are minus the other two).
    """
    estimator, second_order, sampling = VARIANTS[variant]
    rule = GradientDescent(ALPHA, 1, second_order)
    groups = np.stack([batch.meta_gradient(estimator, rule, sampling) for batch in draws_of_a_learner()])
    expected = tabular.theoretical_gradient(ALPHA, 1, 3, estimator if second_order else None, sampling)
    error = groups.std(axis=0, ddof=1) / np.sqrt(len(groups))
    assert (np.abs(groups.mean(axis=0) - expected) < 5 * error).all()
    if variant in ("score", "first order"):  # and the test can tell a biased estimator from the truth
        assert (np.abs(groups.mean(axis=0) - exact(3, 1)) > 5 * error).any()


def test_lvc_and_likelihood_ratio_part_where_the_parameters_have_moved():
    rule = GradientDescent(ALPHA)
    batch = tabular_batches.enumerated(rule, 1)
    gradients = {}
    for estimator in (lvc, surrogate, score):
        objective = batch.objective(estimator, rule)
        moved = ravel(list(objective.like.values())) + torch.tensor([0.3, -0.1, 0.2, 0.4]).double()
        gradients[estimator] = objective.loss_and_gradient(moved)[1]
    assert not torch.allclose(gradients[lvc], gradients[surrogate], rtol=1e-2)
    assert not torch.allclose(gradients[lvc], gradients[score], rtol=1e-2)


def test_the_truth_agrees_with_itself():
    """Two derivatives of one function, and the policy gradient theorem, tie the oracle's parts together."""
    task, table = tabular.TASKS[0], tabular.TABLE
    assert task.probabilities(table).sum() == pytest.approx(1)
    gradient = tabular.complex_step(task.expected_return, table)
    np.testing.assert_allclose(task.probabilities(table) @ tabular.inner_gradients(task, table), gradient, rtol=1e-12)
    hessian = np.einsum("n,nij->ij", task.probabilities(table), tabular.curvatures(task, table, dice))
    steps = 1e-6 * np.eye(4).reshape(4, 2, 2)
    columns = [
        tabular.complex_step(task.expected_return, table + step)
        - tabular.complex_step(task.expected_return, table - step)
        for step in steps
    ]
    np.testing.assert_allclose(hessian, np.array(columns) / 2e-6, atol=1e-9)
