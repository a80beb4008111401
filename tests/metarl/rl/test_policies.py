"""The policies that come with the library: what they put out, where they start, and how they are made again."""

import json

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, flatten

from metarl.core.parameters import (
    call_per_task,
    expand_over_tasks,
    parameters_of,
)
from metarl.rl.policies import CategoricalMLP, DictObservations, GaussianMLP, WithContext, describe, from_description
from tests.probes import CorridorTasks


def test_gaussian_policy_starts_as_the_paper_has_it():
    space = CorridorTasks.observation_space
    policy = GaussianMLP(space, space, hidden_sizes=(50, 40), initial_std=0.5)
    output = policy(torch.zeros(3, 2))
    torch.testing.assert_close(output, torch.tensor([[0.0, 0.0, -0.6931472, -0.6931472]] * 3))
    weight = policy.mean[2].weight
    assert weight.shape == (40, 50)
    bound = (6 / 90) ** 0.5  # Xavier-uniform
    assert 0.9 * bound < weight.abs().max() <= bound


def test_minimum_standard_deviation():
    space = CorridorTasks.observation_space
    policy = GaussianMLP(space, space, minimum_std=0.1)
    with torch.no_grad():
        policy.log_std.fill_(-50)
    assert policy(torch.zeros(1, 2))[0, 2:].exp().tolist() == pytest.approx([0.1, 0.1])


def test_categorical_policy_gives_one_logit_per_action():
    policy = CategoricalMLP(CorridorTasks.observation_space, CorridorTasks.action_space, (8,))
    observations = torch.randn(5, 2)
    expected = policy.logits[2](torch.relu(policy.logits[0](observations)))
    assert torch.equal(policy(observations), expected)


def test_misfitting_spaces_and_activations_are_refused():
    tasks = CorridorTasks()
    with pytest.raises(ValueError, match=r"Discrete\(3\).*Box"):
        GaussianMLP(tasks.observation_space, tasks.action_space)
    with pytest.raises(ValueError, match=r"^activation = 'gelu'"):
        CategoricalMLP(tasks.observation_space, tasks.action_space, activation="gelu")


def test_a_module_reads_its_context_beside_its_inputs():
    module = WithContext(torch.nn.Linear(5, 2), size=2)
    theta = parameters_of(module)
    assert (theta["context"] == 0).all()
    phi = expand_over_tasks(theta, 3) | {"context": torch.randn(3, 2)}
    inputs = torch.randn(3, 4, 3)
    joined = torch.cat([inputs, phi["context"].unsqueeze(1).expand(3, 4, 2)], dim=-1)
    torch.testing.assert_close(call_per_task(module, phi, inputs), module.module(joined))


@pytest.mark.parametrize("shape", [(), (3, 2)])
def test_observations_of_any_shape_reach_the_bundled_policies_flat(shape):
    space = Box(-1.0, 1.0, shape)
    inputs = torch.randn(5, *shape)
    for policy in (GaussianMLP(space, Box(-1.0, 1.0, (2,)), (4,)), CategoricalMLP(space, Discrete(3), (4,))):
        assert torch.equal(policy(inputs), policy(inputs.reshape(5, -1)))


@pytest.mark.parametrize("field", ["initial_std", "minimum_std"])
def test_standard_deviations_are_positive(field):
    with pytest.raises(ValueError, match=rf"^{field} = 0.0"):
        GaussianMLP(Box(-1, 1, (2,)), Box(-1, 1, (2,)), **{field: 0.0})


PLANE, PUSH = Box(-1.0, 1.0, (2,)), Box(-1.0, 1.0, (3,))


@pytest.mark.parametrize(
    ("policy", "actions"),
    [
        (GaussianMLP(PLANE, PUSH, (7, 6), "tanh", minimum_std=0.1), PUSH),
        (CategoricalMLP(PLANE, Discrete(4), (5,)), Discrete(4)),
        (WithContext(GaussianMLP(Box(-1.0, 1.0, (5,)), PUSH, (4,)), 3), PUSH),
        (WithContext(WithContext(CategoricalMLP(Box(-1.0, 1.0, (5,)), Discrete(4), (4,)), 1), 2), Discrete(4)),
    ],
    ids=["gaussian", "categorical", "context", "two contexts"],
)
def test_a_description_makes_the_same_policy_again(policy, actions):
    description = json.loads(json.dumps(describe(policy)))  # plain data
    again = from_description(description, PLANE, actions)
    again.load_state_dict(policy.state_dict())
    inputs = torch.randn(4, 2)
    assert torch.equal(again(inputs), policy(inputs))
    assert describe(again) == describe(policy)


def test_another_module_has_a_name_alone():
    assert describe(torch.nn.Linear(2, 2)) == {"kind": "Linear"}
    with pytest.raises(ValueError, match="Linear"):
        from_description({"kind": "Linear"}, PLANE, PUSH)


def test_parts_of_a_dictionary_come_in_their_own_shapes():
    space = Dict({"way": Discrete(3), "picture": Box(0, 255, (2, 2), np.uint8), "place": Box(-9.0, 9.0, ())})
    flat = torch.stack([torch.from_numpy(flatten(space, space.sample()).astype(np.float32)) for _ in range(5)])
    parts = DictObservations(torch.nn.Identity(), space)(flat)
    assert {name: tuple(part.shape) for name, part in parts.items()} == {
        "picture": (5, 2, 2),
        "place": (5, 1),
        "way": (5, 3),
    }
    assert torch.equal(torch.cat([part.flatten(1) for part in parts.values()], dim=1), flat)
