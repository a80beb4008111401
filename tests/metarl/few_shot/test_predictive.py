"""Mixtures of Gaussians against torch's own, and the two ways to judge an ensemble."""

from dataclasses import replace

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from metarl.core.errors import NonFiniteError
from metarl.core.rules import GradientDescent
from metarl.few_shot.criteria import REGRESSION
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.methods.gradient import MAML
from metarl.few_shot.networks import MLP
from metarl.few_shot.predictive import Mixture, predictive_metrics, sample_variance
from metarl.few_shot.tasks import Sine


def mixture(features=2):
    torch.manual_seed(0)
    means = torch.randn(2, 3, 4, features, dtype=torch.float64)
    return Mixture(means, torch.rand(2, 3, dtype=torch.float64) + 0.1), torch.randn(2, 4, features, dtype=torch.float64)


@pytest.mark.parametrize("features", [1, 2])
def test_density_mean_and_deviation_are_those_of_torchs_mixture(features):
    found, targets = mixture(features)
    std = found.variance.sqrt().view(2, 1, 3, 1).expand(2, 4, 3, features)
    parts = Independent(Normal(found.means.transpose(1, 2), std), 1)
    expected = MixtureSameFamily(Categorical(torch.ones(2, 4, 3, dtype=torch.float64)), parts)
    torch.testing.assert_close(found.log_density(targets), expected.log_prob(targets))
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.std, expected.variance.sqrt())
    metrics = predictive_metrics(found, targets)
    torch.testing.assert_close(metrics["nll"], -expected.log_prob(targets).mean(dim=1))


def test_the_error_of_the_mean_is_below_the_mean_of_the_errors():
    found, targets = mixture()
    metrics = predictive_metrics(found, targets)
    errors = torch.stack([(found.means[:, s] - targets).square().mean(dim=(1, 2)) for s in range(3)], dim=1)
    torch.testing.assert_close(metrics["members"], errors.mean(dim=1))
    torch.testing.assert_close(metrics["best_member"], errors.min(dim=1).values)
    assert ((found.mean - targets).square().mean(dim=(1, 2)) < metrics["members"]).all()


def test_one_component_with_fixed_noise_is_a_gaussian():
    means = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)  # (1, 1, 2)
    found = Mixture(means, sample_variance(means, 0.5))
    targets = torch.tensor([[1.5, 2.0]], dtype=torch.float64)
    expected = Normal(means[0], 0.5).log_prob(targets)
    torch.testing.assert_close(found.log_density(targets), expected)
    torch.testing.assert_close(found.std, torch.full((1, 2), 0.5, dtype=torch.float64))


def test_metrics_of_the_method_have_the_step_size_of_the_iteration():
    rule = GradientDescent(0.001, milestones=(1,), milestone_step_sizes=(0.1,))
    learner = FewShotLearner(Sine(), MAML(MLP((1, 10, 1)), replace(REGRESSION, noise_std=0.3), rule), num_tasks=2)
    learner.step()
    tasks = learner.sample(3, "test")
    members = learner.further_metrics(tasks)["members"]
    torch.testing.assert_close(members, learner.metric(tasks, 1)[1])


def test_metrics_that_are_not_finite_are_refused():
    learner = FewShotLearner(Sine(), MAML(MLP((1, 10, 1)), replace(REGRESSION, noise_std=1e-30)), num_tasks=2)
    with pytest.raises(NonFiniteError, match="the metric nll of task 7 is not finite"):
        learner.further_metrics(learner.sample(2, "test"), first_task=7)
