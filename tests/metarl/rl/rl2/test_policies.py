"""Policies with a memory: the GRU's equations, sizes, and what they begin with."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from metarl.envs import BernoulliBandits, Navigation2D
from metarl.rl.action_distributions import Categorical
from metarl.rl.rl2.policies import RecurrentPolicy, input_size
from tests.metarl.rl.rl2.builders import recurrent


def gru(policy, inputs):
    """States (B, L, H) by the equations of Cho et al. (2014), as torch writes them, step by step from 0."""
    cell = dict(policy.gru.named_parameters())
    state, states = torch.zeros(len(inputs), policy.gru.hidden_size), []
    for step in range(inputs.shape[1]):
        from_input = inputs[:, step] @ cell["weight_ih_l0"].T + cell["bias_ih_l0"]
        from_state = state @ cell["weight_hh_l0"].T + cell["bias_hh_l0"]
        (reset, update, new), (reset_h, update_h, new_h) = (part.chunk(3, dim=-1) for part in (from_input, from_state))
        candidate = torch.tanh(new + torch.sigmoid(reset + reset_h) * new_h)
        keep = torch.sigmoid(update + update_h)
        state = (1 - keep) * candidate + keep * state
        states.append(state)
    return torch.stack(states, dim=1)


def test_inputs_are_observation_action_reward_and_flag():
    assert input_size(Box(-1, 1, (2, 3)), Discrete(4)) == 6 + 4 + 2
    assert input_size(Box(-1, 1, (5,)), Box(-1, 1, (3,), np.float64)) == 5 + 3 + 2


def test_outputs_are_linear_in_the_states_of_a_gru():
    policy, inputs = recurrent(BernoulliBandits(3)), torch.randn(4, 7, 6)
    dist_params, values, memory = policy(inputs)
    states = gru(policy, inputs)
    torch.testing.assert_close(dist_params, states @ policy.action.weight.T + policy.action.bias)
    torch.testing.assert_close(values, (states @ policy.value.weight.T + policy.value.bias).squeeze(-1))
    torch.testing.assert_close(memory, states[:, -1])


def test_layers_may_come_before_the_memory():
    policy, inputs = recurrent(BernoulliBandits(3), hidden_sizes=(5, 4), activation="relu"), torch.randn(2, 3, 6)
    first, _, second, _ = *policy.encoder[0], policy.encoder[1]
    encoded = torch.relu(second(torch.relu(first(inputs))))
    torch.testing.assert_close(policy(inputs)[2], gru(policy, encoded)[:, -1])


def test_a_memory_goes_on_where_it_was():
    policy, inputs = recurrent(Navigation2D()), torch.randn(3, 6, 6)
    whole = policy(inputs)
    first = policy(inputs[:, :2])
    rest = policy(inputs[:, 2:], first[2])
    for at in range(2):
        torch.testing.assert_close(torch.cat([first[at], rest[at]], dim=1), whole[at])
    torch.testing.assert_close(rest[2], whole[2])
    # and None is a memory of zeros
    torch.testing.assert_close(policy(inputs, torch.zeros(3, 6))[0], whole[0])


def test_a_gaussian_has_a_log_standard_deviation_of_its_own():
    policy = RecurrentPolicy(Box(-1, 1, (2,)), Box(-1, 1, (3,), np.float64), 4, initial_std=0.5)
    dist_params, _, _ = policy(torch.randn(2, 5, 7))
    assert dist_params.shape == (2, 5, 6)
    torch.testing.assert_close(dist_params[..., 3:].exp(), torch.full((2, 5, 3), 0.5))


def test_the_first_policy_hardly_prefers_any_action():
    policy = RecurrentPolicy(Box(-1, 1, (2,)), Discrete(3))
    dist_params, values, _ = policy(torch.randn(20, 5, 7))
    assert Categorical(Discrete(3)).entropy(dist_params).min() > 0.999 * np.log(3)
    assert values.abs().max() < 0.1
    recurrent_weights = policy.gru.weight_hh_l0
    torch.testing.assert_close(recurrent_weights.T @ recurrent_weights, torch.eye(128), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"memory_size": 0}, "memory_size"), ({"hidden_sizes": (0,)}, "hidden_sizes"), ({"initial_std": 0}, "initial_std"),
     ({"hidden_sizes": (3,), "activation": "rellu"}, "activation")],
)  # fmt: skip
def test_refusals_name_the_argument(settings, field):
    with pytest.raises(ValueError, match=f"{field} = "):
        RecurrentPolicy(Box(-1, 1, (2,)), Discrete(3), **settings)
