"""Meta-transfer learning: what is frozen, what scales and shifts do, a task's last layer, and its two stages."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from metarl.core.adam import initial_adam_state
from metarl.core.parameters import expand_over_tasks
from metarl.few_shot.criteria import CLASSIFICATION
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.methods.embedding import one_hot
from metarl.few_shot.methods.meta_transfer import MetaTransfer, with_scales_and_shifts
from metarl.few_shot.networks import MLP
from metarl.few_shot.tasks import ImageBatches, ImageEpisodes
from tests.metarl.few_shot.embedding_methods import (
    CLASSES,
    FILTERS,
    MODES,
    features,
    fresh,
    make,
    numbered,
    outputs,
    tasks,
)

META_LEARNED = ("meta_scale.", "meta_shift.", "task_head.")


def as_at_first(theta):
    """Scales of 1 and shifts of 0."""
    return {n: torch.zeros_like(v) if n.startswith(("meta_scale.", "meta_shift.")) else v for n, v in theta.items()}


def meta_learned(theta):
    return {name: value for name, value in theta.items() if name.startswith(META_LEARNED)}


@pytest.mark.parametrize("batch_norm", MODES)
def test_with_scales_of_1_and_shifts_of_0_the_network_is_the_frozen_one(batch_norm):
    method, theta = make("mtl", batch_norm)
    drawn, theta = tasks(), as_at_first(theta)
    frozen = replace(method, scaled=False)
    without = {name: theta[name] for name in frozen.meta_parameters()}
    assert set(theta) - set(without) == {name for name in theta if name.startswith("meta_")}
    found, expected = (
        outputs(of, own, drawn.support, drawn.query.inputs) for of, own in ((method, theta), (frozen, without))
    )
    assert torch.equal(found, expected)
    moved = {**theta, "meta_shift.blocks.3.norm.shift": torch.ones(FILTERS, dtype=torch.float64)}
    assert not torch.allclose(outputs(method, moved, drawn.support, drawn.query.inputs), expected)


def test_a_scale_belongs_to_a_kernel_and_a_shift_to_a_filter():
    method, theta = make("mtl")
    kernel = method.meta_parameters()["meta_scale.blocks.1.weight"]
    assert torch.equal(kernel, torch.zeros(FILTERS, FILTERS))
    assert torch.equal(method.meta_parameters()["meta_shift.blocks.1.norm.shift"], torch.zeros(FILTERS))
    found = with_scales_and_shifts(theta, 0.25)
    for f in range(FILTERS):
        for c in range(FILTERS):
            expected = theta["blocks.1.weight"][f, c] * (1 + 0.25 * theta["meta_scale.blocks.1.weight"][f, c])
            assert torch.equal(found["blocks.1.weight"][f, c], expected)
        shift = theta["blocks.1.norm.shift"][f] + 0.25 * theta["meta_shift.blocks.1.norm.shift"][f]
        assert torch.equal(found["blocks.1.norm.shift"][f], shift)
    assert all(torch.equal(found[name], theta[name]) for name in ("blocks.1.norm.scale", "blocks.1.norm.mean"))
    drawn = tasks(1)
    parameters = {name: found[name] for name in found if name.startswith("blocks.")}
    expected = functional_call(method.module, parameters, (drawn.query.inputs[0],))
    method = replace(method, scale_rate=0.25)
    embedded, _ = method.apply("", theta, (drawn.query.inputs,), method.statistics(theta, {}))
    torch.testing.assert_close(embedded[0], expected)


def test_a_tasks_last_layer_descends_the_loss_of_its_support():
    method, theta = make("mtl")
    support, targets, query = features()
    layer = nn.Linear(FILTERS, 3).double()
    layer.load_state_dict({name: theta[f"task_head.{name}"] for name in ("weight", "bias")})
    optimiser = torch.optim.SGD(layer.parameters(), 0.5)
    for _ in range(3):
        optimiser.zero_grad()
        F.cross_entropy(layer(support[0]), targets[0]).backward()
        optimiser.step()
    state = method.learn(theta, support, one_hot(targets))
    torch.testing.assert_close(state["weight"][0], layer.weight.detach())
    torch.testing.assert_close(state["bias"][0], layer.bias.detach())
    torch.testing.assert_close(method.compare(theta, state, query)[0], layer(query[0]).log_softmax(dim=1).detach())


def test_stage_2_has_the_derivative_of_what_it_learns_and_none_of_what_is_frozen():
    method, theta = make("mtl")
    gradients, _, _ = method.gradient(expand_over_tasks(theta, 3), tasks(), {})
    assert all(bool(value.any()) == name.startswith(META_LEARNED) for name, value in gradients.items())
    first, theta = make("mtl-pretraining")
    drawn = tasks(2, ways=CLASSES)
    drawn = type(drawn)(type(drawn.support)(*(of[:, :0] for of in drawn.support.tensors)), drawn.query)
    gradients, _, _ = first.gradient(expand_over_tasks(theta, 2), drawn, {})
    assert not any(bool(value.any()) for value in meta_learned(gradients).values())
    assert gradients["blocks.0.weight"].any()


def learner(**settings):
    pictures = numbered()
    source = ImageEpisodes({"train": pictures, "test": pictures}, ways=3, shots=1, queries=2)
    return FewShotLearner(source, fresh("mtl-pretraining", dtype=torch.float32), num_tasks=2, **settings)


def test_the_frozen_network_keeps_every_bit_in_stage_2():
    made = learner()
    states = [made.state]
    for _ in range(5):
        made.step()
        states.append(made.state)
    start, pretrained, end = (states[iteration].theta for iteration in (0, 2, 5))
    for name in start:
        learned_late = name.startswith(META_LEARNED)
        assert torch.equal(pretrained[name], start[name]) == learned_late
        assert torch.equal(end[name], pretrained[name]) != learned_late
    assert [state.adam["count"].item() for state in states] == [0, 1, 2, 1, 2, 3]  # anew with stage 2
    moved = states[3].theta["task_head.bias"] - pretrained["task_head.bias"]
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 1e-3), rtol=1e-3, atol=1e-6)  # Adam's first step


def test_training_is_of_batches_and_then_of_episodes():
    made = learner()
    kinds = []
    for _ in range(4):
        kinds.append(type(made._training_tasks))
        made.step()
    assert kinds == [ImageBatches, ImageBatches, ImageEpisodes, ImageEpisodes]
    assert [made.method.at(iteration).pretraining_iterations for iteration in (0, 1, 2, 9)] == [2, 2, 0, 0]
    assert [made.method.begins_stage(iteration) for iteration in range(4)] == [False, False, True, False]
    without = replace(made.method, pretraining_iterations=0)
    assert without.at(5) is without
    assert not without.begins_stage(0)
    resumed = learner()
    resumed.load_state_dict({**made.state_dict(), "adam": initial_adam_state(made.state.adam["mean"])})
    assert type(resumed._training_tasks) is ImageEpisodes


def test_what_cannot_be_is_refused_by_name():
    heads = {"head": nn.Linear(4, 6), "task_head": nn.Linear(4, 3)}
    with pytest.raises(ValueError, match="module = "):
        MetaTransfer(MLP((256, 4)), CLASSIFICATION, **heads)
    MetaTransfer(MLP((256, 4)), CLASSIFICATION, scaled=False, **heads)
    for name, value in (("pretraining_iterations", -1), ("head_steps", -1), ("head_step_size", 0.0)):
        with pytest.raises(ValueError, match=f"^{name} = "):
            MetaTransfer(MLP((256, 4)), CLASSIFICATION, scaled=False, **heads, **{name: value})
    method, theta = make("mtl", ways=3)
    wide = tasks(1, ways=4)
    with pytest.raises(ValueError, match="ways = 4; allowed: at most 3"):
        outputs(method, theta, wide.support, wide.query.inputs)
