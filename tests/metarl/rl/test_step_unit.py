"""Inner steps in units of the policy's standard deviation, against exact values: on Gaussians, and on tabular tasks."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from metarl import GaussianMLP, GradientDescent, LayerStepSizes, Learner, Sampling, SettingError
from metarl.core.adaptation import adapt_step
from metarl.core.parameters import call_per_task, expand_over_tasks, parameters_of, ravel, unravel
from metarl.envs import Navigation2D
from metarl.experiments.studies import tabular, tabular_batches
from metarl.rl.action_distributions import Categorical, DiagonalGaussian
from metarl.rl.episodes import Samples
from metarl.rl.estimators import ESTIMATORS, PolicyModel, score
from metarl.rl.objective import MetaObjective
from tests.metarl.rl.test_estimators import IMPORTANCE
from tests.probes import TinyGaussian, finite_differences, random_samples, tiny_theta

FAMILY = DiagonalGaussian(gymnasium.spaces.Box(-1, 1, (2,)))
TASKS = 3


class Linear(nn.Module):
    """mean = W o, and a log standard deviation of its own, as the policies of the experiments have."""

    def __init__(self, stds):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.3, -0.2, 0.5], [0.1, 0.4, -0.6]], dtype=torch.float64))
        self.log_std = nn.Parameter(torch.tensor(stds, dtype=torch.float64).log())

    def forward(self, observations):
        mean = observations @ self.weight.T
        return torch.cat([mean, self.log_std.expand_as(mean)], dim=-1)


class Case:
    """A policy of some standard deviations, and samples with the same noise whatever they are."""

    def __init__(self, *stds, count=50):
        generator = torch.Generator().manual_seed(0)
        self.policy = Linear(stds)
        self.phi = expand_over_tasks(parameters_of(self.policy), TASKS)
        observations = torch.randn(TASKS, count, 3, dtype=torch.float64, generator=generator)
        outputs = call_per_task(self.policy, self.phi, observations).detach()
        self.noise = torch.randn(TASKS, count, 2, dtype=torch.float64, generator=generator)
        actions = FAMILY.sample(outputs, self.noise)
        weights = torch.rand(TASKS, count, dtype=torch.float64, generator=generator)
        weights[:, -2:] = 0  # as after the end of an episode
        self.samples = Samples(
            observations=observations,
            actions=actions,
            dist_params=outputs,
            log_probs=FAMILY.log_prob(outputs, actions),
            advantages=torch.randn(TASKS, count, dtype=torch.float64, generator=generator),
            weights=weights / weights.sum(dim=1, keepdim=True),
        )

    def model(self, unit="std"):
        return PolicyModel(self.policy, FAMILY, score, unit)

    def step(self, step_size, unit="std"):
        """What a step changes."""
        rule = GradientDescent(step_size)
        phi, _ = adapt_step(self.model(unit), rule, self.phi, self.phi, self.samples, 0)
        return {name: phi[name] - self.phi[name] for name in phi}

    def kl(self, change):
        """Of the policy with these changes, from that before them, (M,)."""
        moved = {name: self.phi[name] + change[name] for name in change}
        outputs = call_per_task(self.policy, moved, self.samples.observations)
        return (self.samples.weights * FAMILY.kl(self.samples.dist_params, outputs)).sum(dim=1)


def test_the_mean_moves_by_advantage_times_noise_whatever_the_std():
    """alpha sum_n w_n A_n z_n o_n', with nothing of sigma in it; in units of the gradient it is 1 / sigma of it."""
    samples, noise = Case(1.0, 1.0).samples, Case(1.0, 1.0).noise
    expected = 0.3 * torch.einsum(
        "mn,mn,mna,mno->mao", samples.weights, samples.advantages, noise, samples.observations
    )
    for std in (1.0, 0.4, 0.1):
        case = Case(std, std)
        torch.testing.assert_close(case.step(0.3)["weight"], expected)
        torch.testing.assert_close(case.step(0.3, "gradient")["weight"], expected / std)


def test_with_several_stds_the_direction_is_the_gradients_and_the_unit_their_geometric_mean():
    case = Case(0.8, 0.2)
    for name, change in case.step(0.3, "gradient").items():
        torch.testing.assert_close(case.step(0.3)[name], change * 0.4)  # sqrt(0.8 * 0.2)


def test_the_kl_of_a_step_goes_with_one_over_sigma_squared_and_of_a_plain_one_with_its_square():
    """To second order in alpha, where the stds stay; the exact KL is |mean - mean'|^2 / (2 sigma^2) then."""
    for unit, power in (("std", -2), ("gradient", -4)):
        kls = []
        for std in (1.0, 0.5, 0.25):
            case = Case(std, std)
            change = case.step(1e-4, unit) | {"log_std": torch.zeros(TASKS, 2, dtype=torch.float64)}
            moved = torch.einsum("mao,mno->mna", change["weight"], case.samples.observations)
            expected = (case.samples.weights * (moved.square().sum(-1) / (2 * std**2))).sum(dim=1)
            torch.testing.assert_close(case.kl(change), expected, rtol=1e-6, atol=1e-16)
            kls.append(expected)
        torch.testing.assert_close(kls[1], kls[0] * 0.5**power)
        torch.testing.assert_close(kls[2], kls[0] * 0.25**power)


def test_the_noise_of_a_step_has_a_covariance_without_sigma():
    """Over all signs of the advantages, every covariance in the parameters of the mean is the same."""
    covariances = []
    for std in (1.0, 0.2):
        case = Case(std, std, count=6)
        signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6)  # (64, 6)
        rows = []
        for sign in signs:
            changed = replace(case.samples, advantages=sign.expand(TASKS, 6))
            phi, _ = adapt_step(case.model(), GradientDescent(0.1), case.phi, case.phi, changed, 0)
            rows.append((phi["weight"] - case.phi["weight"])[0].flatten())
        covariances.append(torch.stack(rows).T.cov(correction=0))
    torch.testing.assert_close(*covariances)
    case = Case(1.0, 1.0, count=6)
    jacobians = torch.einsum("na,no->nao", case.noise[0], case.samples.observations[0]).flatten(1)
    expected = 0.01 * torch.einsum("n,ni,nj->ij", case.samples.weights[0].square(), jacobians, jacobians)
    torch.testing.assert_close(covariances[0], expected)


def test_the_unit_is_that_of_the_policy_that_sampled_and_has_no_derivative():
    """Elsewhere the loss has the same factor: it is a part of the data, like the advantages."""
    case = Case(0.5, 0.5)
    elsewhere = {"weight": case.phi["weight"] + 0.1, "log_std": case.phi["log_std"] + 0.7}
    plain, scaled = case.model("gradient"), case.model("std")
    torch.testing.assert_close(scaled(elsewhere, case.samples), 0.5 * plain(elsewhere, case.samples))
    leaves = {name: value.clone().requires_grad_() for name, value in elsewhere.items()}
    gradients = [torch.autograd.grad(loss(leaves, case.samples).sum(), leaves["log_std"]) for loss in (plain, scaled)]
    torch.testing.assert_close(gradients[1][0], 0.5 * gradients[0][0])


class Problem:
    """Data of inner steps in units of the std, of a policy whose stds depend on the observation."""

    def __init__(self, rule, estimator=score):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        self.policy, self.rule, self.estimator = TinyGaussian(), rule, estimator
        self.theta, _ = tiny_theta(self.policy, TASKS)
        self.like = rule.meta_parameters(self.theta)
        self.vector = ravel(list(self.like.values()))
        rows = expand_over_tasks(self.like, TASKS)
        phi, self.supports = rule.start(rows), []
        for step in range(rule.inner_steps):
            drawn = random_samples(self.policy, FAMILY, phi, TASKS, 12, generator)
            self.supports.append(replace(drawn, time_steps=4))
            phi, _ = adapt_step(self.model(score), rule, rows, phi, self.supports[-1], step)
        self.query = random_samples(self.policy, FAMILY, phi, TASKS, 10, generator)

    def model(self, estimator, unit="std"):
        return PolicyModel(self.policy, FAMILY, estimator, unit)

    def objective(self, estimator=None, unit="std"):
        last = self.rule.inner_steps
        model = self.model(estimator or self.estimator, unit)
        queries, weights = {last: self.query}, {last: 1.0}
        return MetaObjective(model, self.rule, self.like, self.supports, queries, weights, chunk=TASKS)


RULES = {
    "one size": GradientDescent(0.5, 2),
    "averaged": GradientDescent(0.5, 2, averaged=True),
    "layer sizes": LayerStepSizes(0.5, 2),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_second_order_meta_gradients_are_derivatives_of_the_whole_inner_loop(rule, estimator):
    problem = Problem(RULES[rule], ESTIMATORS[estimator])
    reference = problem.objective(IMPORTANCE[problem.estimator])
    expected = finite_differences(lambda v: reference.evaluate(v)[0], problem.vector)
    _, gradient = problem.objective().loss_and_gradient(problem.vector)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)
    plain = problem.objective(unit="gradient").loss_and_gradient(problem.vector)[1]
    assert not torch.allclose(gradient, plain, rtol=1e-2)


def test_the_derivative_of_an_inner_step_is_the_numeric_one():
    problem = Problem(GradientDescent(0.5, 1))

    def adapted(vector):
        rows = expand_over_tasks(unravel(vector, problem.like), TASKS)
        phi, _ = adapt_step(problem.model(score), problem.rule, rows, rows, problem.supports[0], 0)
        return ravel(list(phi.values()))

    expected = finite_differences(adapted, problem.vector)
    product = problem.objective()
    theta = product._leaves(problem.vector, slice(0, TASKS))
    path = product._path(theta, product.supports, slice(0, TASKS))[-1]
    end = ravel(list(path.values()))
    rows = [torch.autograd.grad(value, list(theta.values()), retain_graph=True) for value in end]
    found = torch.stack([ravel([part.sum(dim=0) for part in row]) for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_first_order_meta_gradients_are_those_at_the_adapted_parameters():
    problem = Problem(GradientDescent(0.5, 1, second_order=False))
    rows = expand_over_tasks(problem.like, TASKS)
    phi, _ = adapt_step(problem.model(score), problem.rule, rows, rows, problem.supports[0], 0)
    leaves = {name: value.clone().requires_grad_() for name, value in phi.items()}
    outputs = call_per_task(problem.policy, leaves, problem.query.observations)
    ratios = (FAMILY.log_prob(outputs, problem.query.actions) - problem.query.log_probs).exp()
    total = -(problem.query.weights * problem.query.advantages * ratios).sum() / TASKS
    expected = ravel([gradient.sum(dim=0) for gradient in torch.autograd.grad(total, list(leaves.values()))])
    torch.testing.assert_close(problem.objective().loss_and_gradient(problem.vector)[1], expected)


@pytest.mark.parametrize("second_order", [False, True])
def test_on_the_tabular_tasks_the_unit_is_one_and_the_meta_gradient_the_exact_one(second_order):
    """Logits have no width; what theory says of `score` with two episodes holds unchanged."""
    rule = GradientDescent(0.7, 1, second_order)
    objective = tabular_batches.enumerated(rule, 2).objective(score, rule)
    scaled = replace(objective, model=replace(objective.model, step_unit="std"))
    vector = ravel(list(objective.like.values()))
    found = -scaled.loss_and_gradient(vector)[1].numpy()
    expected = tabular.theoretical_gradient(0.7, 1, 2, score if second_order else None)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert torch.equal(scaled.loss_and_gradient(vector)[1], objective.loss_and_gradient(vector)[1])


def test_stds_of_the_families():
    dist_params = torch.tensor([[0.5, -2.0, 0.0, -1.0]])
    torch.testing.assert_close(FAMILY.std(dist_params), torch.tensor([-0.5]).exp())
    assert Categorical(gymnasium.spaces.Discrete(4)).std(dist_params).tolist() == [1.0]


def test_a_learner_takes_the_unit_and_refuses_an_unknown_one():
    distribution = Navigation2D(10)
    policy = GaussianMLP(distribution.observation_space, distribution.action_space, (4,), initial_std=0.5)
    sizes = Sampling(num_tasks=2, episodes_per_task=2)
    goals = {"goal": np.array([[0.3, 0.1]])}
    moved = []
    for unit in ("gradient", "std"):
        learner = Learner(distribution, policy, sizes, step_unit=unit)
        before, after = (at.parameters["mean.0.weight"] for at in learner.adapt(goals, 1))
        moved.append(after - before)
    torch.testing.assert_close(moved[1], 0.5 * moved[0], rtol=1e-3, atol=1e-6)
    with pytest.raises(SettingError, match="step_unit"):
        Learner(distribution, policy, sizes, step_unit="metre")


def test_averaging_steps_lead_to_the_mean_of_what_whole_steps_lead_to():
    """|phi - x_s|^2 / 2 with step size 1: a whole step leads to x_s, and step s goes 1 / s of the way."""
    targets = torch.tensor([[3.0, -1.0], [0.5, 7.0], [2.0, 2.0], [-4.0, 0.0]])
    rule, phi = GradientDescent(1.0, 2, averaged=True), {"x": torch.full((1, 2), 9.0)}
    for step, target in enumerate(targets):
        phi, _ = adapt_step(lambda p, x: 0.5 * (p["x"] - x).square().sum(dim=1), rule, phi, phi, target, step)
        torch.testing.assert_close(phi["x"], targets[: step + 1].mean(dim=0, keepdim=True))
