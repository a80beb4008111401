"""MANN's memory against its equations, computed by hand, and the networks as sequences see them."""

import math

import pytest
import torch
from torch import nn

from metarl.few_shot.methods.memory_networks import LSTMNet, MemoryNet, cosines, least_used_slots, read_and_write

NETS = {
    "mann": lambda: MemoryNet((6, 6, 1), 3, hidden=5, memory=(7, 4), reads=2, pixels=3),
    "lstm": lambda: LSTMNet((6, 6, 1), 3, hidden=5, pixels=3),
}
every = pytest.mark.parametrize("name", NETS)


def net(name):
    torch.manual_seed(0)
    made = NETS[name]().double()
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.3 * torch.randn_like(value))
    return made


def sequences(count=3, length=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, length, 6, 6, 1, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (count, length), generator=generator)
    return images, nn.functional.one_hot(labels, 3).double()


def test_two_slots_and_one_head_by_hand():
    memory = torch.tensor([[[0.0, 2.0], [1.0, 0.0]]], dtype=torch.float64)
    key, gate = [3.0, 4.0], 0.25
    keys, gates = torch.tensor([[key]], dtype=torch.float64), torch.tensor([[gate]], dtype=torch.float64)
    before = torch.tensor([[[0.6, 0.4]]], dtype=torch.float64)
    usage = torch.tensor([[0.5, 0.1]], dtype=torch.float64)  # so slot 1 is used least
    found = read_and_write(memory, keys, gates, before, usage)
    write = [0.25 * 0.6, 0.25 * 0.4 + 0.75 * 1]
    expected = [[0 + write[0] * 3, 2 + write[0] * 4], [write[1] * 3, write[1] * 4]]  # what slot 1 held is gone
    torch.testing.assert_close(found["memory"], torch.tensor([expected], dtype=torch.float64))
    similar = [
        sum(a * b for a, b in zip(key, row, strict=True)) / math.sqrt(25 * (row[0] ** 2 + row[1] ** 2) + 1e-6)
        for row in expected
    ]
    weights = [math.exp(of) / sum(map(math.exp, similar)) for of in similar]
    torch.testing.assert_close(found["read_weights"], torch.tensor([[weights]], dtype=torch.float64))
    read = [sum(w * row[i] for w, row in zip(weights, expected, strict=True)) for i in range(2)]
    torch.testing.assert_close(found["read"], torch.tensor([[read]], dtype=torch.float64))
    new = [0.95 * u + w + r for u, w, r in zip((0.5, 0.1), write, weights, strict=True)]
    torch.testing.assert_close(found["usage"], torch.tensor([new], dtype=torch.float64))


def test_heads_share_the_memory_and_only_the_least_used_slot_is_erased():
    memory = torch.ones(1, 3, 2, dtype=torch.float64)
    keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    before = torch.zeros(1, 2, 3, dtype=torch.float64)
    usage = torch.tensor([[0.3, 0.1, 0.2]], dtype=torch.float64)
    found = read_and_write(memory, keys, torch.full((1, 2), 0.25, dtype=torch.float64), before, usage)
    expected = [[1.0, 1.0], [0.75, 0.0], [1.0, 1.75]]  # head 0 in slot 1, which was erased; head 1 in slot 2
    torch.testing.assert_close(found["memory"][0], torch.tensor(expected, dtype=torch.float64))


def test_least_used_slots_are_the_smallest_usages_in_order():
    usage = torch.tensor([[0.5, 0.2, 0.9, 0.1], [0.0, 0.0, 1.0, 0.0]])
    assert least_used_slots(usage, 2).argmax(dim=2).tolist() == [[3, 1], [0, 1]]
    assert least_used_slots(usage, 2).sum(dim=2).tolist() == [[1, 1], [1, 1]]


def test_empty_slots_are_like_nothing_and_have_a_gradient():
    keys = torch.tensor([[[0.3, 0.4]]], dtype=torch.float64, requires_grad=True)
    memory = torch.tensor([[[0.0, 0.0], [1e-6, 1e-6], [3.0, 4.0]]], dtype=torch.float64, requires_grad=True)
    found = cosines(keys, memory)
    torch.testing.assert_close(found, torch.tensor([[[0.0, 0.0, 1.0]]], dtype=torch.float64), atol=1e-3, rtol=0)
    gradients = torch.autograd.grad(found.sum(), [keys, memory])
    assert all(of.isfinite().all() for of in gradients)


def test_the_first_state_is_as_the_paper_has_it():
    made = net("mann")
    state = made.first_state(torch.zeros(2, 1, dtype=torch.float64))
    assert torch.equal(state["memory"], torch.full((2, 7, 4), 1e-6, dtype=torch.float64))
    assert state["usage"].tolist() == [[1.0] + [0.0] * 6] * 2
    assert state["read_weights"].tolist() == [[[1.0] + [0.0] * 6] * 2] * 2
    assert not state["hidden"].any()
    assert not state["cell"].any()
    assert not state["read"].any()


def test_the_sizes_of_the_paper():
    paper = MemoryNet((28, 28, 1), 5)
    heads, lstm = 4 * (200 * 40 + 40) + 4 * 201, 800 * (400 + 5) + 800 + 800 * (200 + 160)
    assert sum(value.numel() for value in paper.parameters()) == heads + lstm + 5 * (200 + 160) + 5
    assert (paper.slots, paper.width, paper.reads, paper.pixels) == (128, 40, 4, 20)


def test_the_controller_sees_what_was_read_and_the_output_too():
    made = net("mann")
    images, labels = sequences()
    _, state = made(images, labels)
    for changed in (made.recurrent, made.output):
        other = {**state, "read": state["read"] + 1} if changed is made.recurrent else state
        with torch.no_grad():
            found = made(images[:, :1], labels[:, :1], other)[0]
            kept = changed.weight.clone()
            changed.weight[:, 5:] = 0  # what belongs to the vectors read
            without = made(images[:, :1], labels[:, :1], other)[0]
            changed.weight.copy_(kept)
        assert not torch.allclose(found, without)


@every
def test_a_sequence_in_parts_is_the_sequence(name):
    made, (images, labels) = net(name), sequences()
    whole, state = made(images, labels)
    first, middle = made(images[:, :2], labels[:, :2])
    second, end = made(images[:, 2:], labels[:, 2:], middle)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    for key, value in state.items():
        torch.testing.assert_close(end[key], value)


@every
def test_no_position_sees_a_later_image_or_its_own_label_but_all_earlier_ones(name):
    made, (images, labels) = net(name), sequences(count=1)
    images.requires_grad_()
    labels.requires_grad_()
    logits, _ = made(images, labels)
    for position in range(6):
        of_images, of_labels = torch.autograd.grad(
            logits[0, position].square().sum(), [images, labels], retain_graph=True
        )
        seen = of_images[0].flatten(1).abs().sum(dim=1) > 0
        assert seen.tolist() == [other <= position for other in range(6)]
        assert (of_labels[0].abs().sum(dim=1) > 0).tolist() == [other <= position for other in range(6)]


@every
def test_no_task_reaches_another(name):
    made, (images, labels) = net(name), sequences()
    images.requires_grad_()
    logits, state = made(images, labels)
    kept = [logits[1], *(value[1] for value in state.values() if value.requires_grad)]
    for of_task in kept:
        [gradient] = torch.autograd.grad(of_task.square().sum(), images, retain_graph=True)
        assert gradient[1].any()
        assert not gradient[[0, 2]].any()


def test_there_are_no_more_heads_than_slots():
    with pytest.raises(ValueError, match="reads = 3; allowed: at most the 2 slots"):
        MemoryNet((4, 4, 1), 3, memory=(2, 4), reads=3)
