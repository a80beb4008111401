"""Hand-written distributions against torch.distributions, and their Fisher matrices against autograd."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import MultivariateNormal, kl_divergence

from metarl.rl.action_distributions import Categorical, DiagonalGaussian, action_distribution_for

BOX = gymnasium.spaces.Box(np.array([-2.0, 0.0, -1.0]), np.array([2.0, 1.0, 3.0]), dtype=np.float64)


def gaussian(parameters):
    mean, log_std = parameters.chunk(2, -1)
    return MultivariateNormal(mean, torch.diag_embed((2 * log_std).exp()))


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def test_gaussian_log_prob_sums_over_action_dimensions():
    parameters, actions = draw(5, 4, 6), draw(5, 4, 3) * 2
    expected = gaussian(parameters).log_prob(actions)
    torch.testing.assert_close(DiagonalGaussian(BOX).log_prob(parameters, actions), expected)


def test_gaussian_kl_has_the_stated_direction():
    old, new = draw(5, 6), draw(5, 6) + 0.5
    expected = kl_divergence(gaussian(old), gaussian(new))
    torch.testing.assert_close(DiagonalGaussian(BOX).kl(old, new), expected)
    assert not torch.allclose(DiagonalGaussian(BOX).kl(new, old), expected)


def test_categorical_log_prob_and_kl():
    old, new, actions = draw(7, 4), draw(7, 4) * 2, torch.tensor([0, 3, 1, 2, 2, 0, 1])
    family = Categorical(gymnasium.spaces.Discrete(4))
    torch.testing.assert_close(family.log_prob(old, actions), TorchCategorical(logits=old).log_prob(actions))
    expected = kl_divergence(TorchCategorical(logits=old), TorchCategorical(logits=new))
    torch.testing.assert_close(family.kl(old, new), expected)


def test_an_action_that_a_logit_of_minus_infinity_forbids_plays_no_part():
    old, new = draw(7, 4), draw(7, 4) * 2
    blocked = torch.arange(4) == 2
    masked = [torch.where(blocked, -torch.inf, logits).requires_grad_() for logits in (old, new)]
    three, four = (Categorical(gymnasium.spaces.Discrete(n)) for n in (3, 4))
    expected = three.kl(old[:, ~blocked], new[:, ~blocked])
    found = four.kl(*masked)
    torch.testing.assert_close(found, expected)
    [gradient] = torch.autograd.grad(found.sum(), masked[1])
    assert gradient.isfinite().all()
    entropy = three.summary(old[:, ~blocked])["policy_entropy"]
    assert four.summary(masked[0].detach())["policy_entropy"] == pytest.approx(entropy)
    impossible = four.kl(old, masked[1].detach())  # what the old policy does, the new one cannot
    assert (impossible == torch.inf).all()


def test_entropies():
    parameters, logits = draw(5, 4, 6), draw(7, 4)
    torch.testing.assert_close(DiagonalGaussian(BOX).entropy(parameters), gaussian(parameters).entropy())
    expected = TorchCategorical(logits=logits).entropy()
    torch.testing.assert_close(Categorical(gymnasium.spaces.Discrete(4)).entropy(logits), expected)


def test_actions_as_inputs():
    actions = draw(2, 5, 3)
    assert torch.equal(DiagonalGaussian(BOX).encode(actions), actions)
    family = Categorical(gymnasium.spaces.Discrete(4, start=7))  # a policy's actions count from 0
    assert torch.equal(family.encode(torch.tensor([[3, 0]])), torch.eye(4)[None, [3, 0]])
    for space in (BOX, gymnasium.spaces.Discrete(4)):
        family = action_distribution_for(space)
        sampled = family.sample(torch.zeros(2, family.parameter_size), torch.rand(2, 3))
        assert family.encode(sampled).shape[-1] == family.encoded_size


@pytest.mark.parametrize("space", [BOX, gymnasium.spaces.Discrete(5)])
def test_fisher_product_is_the_hessian_of_kl(space):
    family = action_distribution_for(space)
    parameters, tangent = draw(family.parameter_size), draw(1, family.parameter_size)[0]
    hessian = torch.autograd.functional.hessian(lambda new: family.kl(parameters, new), parameters)
    torch.testing.assert_close(family.fisher_product(parameters, tangent), hessian @ tangent)


def test_gaussian_sample_is_mean_plus_std_times_noise():
    parameters = torch.tensor([1.0, -1.0, 0.5, 0.0, math.log(2), math.log(0.5)])
    sample = DiagonalGaussian(BOX).sample(parameters, torch.tensor([1.0, 2.0, -4.0]))
    torch.testing.assert_close(sample, torch.tensor([2.0, 3.0, -1.5]))


def test_categorical_sample_has_the_right_frequencies():
    family = Categorical(gymnasium.spaces.Discrete(3))
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(1000, 3)
    noise = (torch.arange(1000) + 0.5).unsqueeze(-1) / 1000
    counts = torch.bincount(family.sample(logits, noise), minlength=3)
    assert counts.tolist() == [200, 500, 300]


def test_categorical_sample_stays_in_range_at_the_edge_of_the_noise():
    family = Categorical(gymnasium.spaces.Discrete(3))
    edge = torch.tensor([[np.nextafter(np.float32(1), np.float32(0))]])
    assert family.sample(torch.zeros(1, 3), edge).item() == 2


def test_a_forbidden_first_action_is_not_taken_even_for_a_draw_of_exactly_0():
    """A logit of -inf has probability 0, and numbers in [0, 1) may be 0."""
    family = Categorical(gymnasium.spaces.Discrete(3))
    logits = torch.tensor([[-torch.inf, 0.0, 0.0], [-torch.inf, -torch.inf, 0.0], [0.0, 0.0, 0.0]])
    assert family.sample(logits, torch.zeros(3, 1)).tolist() == [1, 2, 0]


def test_actions_map_linearly_to_the_bounds_and_are_clipped():
    mapped = DiagonalGaussian(BOX).to_environment(np.array([[-1.0, 1.0, 0.0], [-3.0, 9.0, 0.5]]))
    np.testing.assert_allclose(mapped, [[-2.0, 1.0, 1.0], [-2.0, 1.0, 2.0]])


def test_actions_of_an_unbounded_space_stay_as_they_are():
    space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    assert DiagonalGaussian(space).to_environment(np.array([[7.0, -9.0]])).tolist() == [[7.0, -9.0]]


def test_actions_of_a_space_with_some_bounds_are_clipped_to_those():
    space = gymnasium.spaces.Box(np.array([0.0, -np.inf]), np.array([np.inf, 5.0]), dtype=np.float64)
    assert DiagonalGaussian(space).to_environment(np.array([[-3.0, 7.0], [9.0, -8.0]])).tolist() == [[0, 5], [9, -8]]


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (gymnasium.spaces.Box(np.array([-0.1, 0], np.float32), np.array([0.1, 150], np.float32)), [4 + 0.25, 0, 0.25]),
        (gymnasium.spaces.Box(np.array([-np.inf, -0.5], np.float32), np.array([2, np.inf], np.float32)), [1 + 1, 0, 0]),
        (gymnasium.spaces.Box(-np.inf, np.inf, (2,)), [0, 0, 0]),
    ],
)
def test_bound_violation_is_the_squared_distance_from_what_the_environment_gets(space, expected):
    actions = torch.tensor([[3, -1.5], [0.5, -0.5], [-1.5, 1]], dtype=torch.float64)
    torch.testing.assert_close(
        DiagonalGaussian(space).bound_violation(actions), torch.tensor(expected, dtype=torch.float64)
    )


def test_no_discrete_action_violates_bounds():
    distribution = action_distribution_for(gymnasium.spaces.Discrete(3))
    assert torch.equal(distribution.bound_violation(torch.tensor([[0, 1], [2, 2]])), torch.zeros(2, 2))


def test_discrete_actions_start_where_the_space_starts():
    assert Categorical(gymnasium.spaces.Discrete(3, start=5)).to_environment(np.array([0, 2])).tolist() == [5, 7]


def test_modes_and_summaries():
    family = DiagonalGaussian(BOX)
    parameters = torch.tensor([[1.0, 2.0, 3.0, 0.0, np.log(2.0), np.log(3.0)]])
    assert family.mode(parameters).tolist() == [[1.0, 2.0, 3.0]]
    assert family.summary(parameters) == pytest.approx({"policy_std": 2.0, "means_beyond_bounds": 2 / 3})
    parameters[0, :3] = torch.tensor([-1.0, 0.5, -1.1])
    assert family.summary(parameters)["means_beyond_bounds"] == pytest.approx(1 / 3)
    discrete = Categorical(gymnasium.spaces.Discrete(4))
    assert discrete.mode(torch.tensor([[0.0, 3.0, 1.0, 2.0]])).tolist() == [1]
    assert discrete.summary(torch.zeros(2, 4))["policy_entropy"] == pytest.approx(np.log(4))


def test_other_action_spaces_are_refused():
    for space in (gymnasium.spaces.MultiBinary(3), gymnasium.spaces.Box(0, 5, (1,), np.int64)):
        with pytest.raises(ValueError, match="action space"):
            action_distribution_for(space)
