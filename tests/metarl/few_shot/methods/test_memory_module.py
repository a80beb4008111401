"""The memory module: its update by hand, its loss, and a gradient that runs through queries and not through keys."""

import math

import pytest
import torch
import torch.nn.functional as F

from metarl.core.parameters import expand_over_tasks
from metarl.few_shot.methods.memory_module import margin_loss, written
from metarl.few_shot.tasks import ImageEpisodes
from tests.metarl.few_shot.embedding_methods import features, make, numbered, predicted, tasks

RIGHT, UP, LEFT = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]


def memory(keys, classes, ages, ways=3):
    """One task's memory; a class of None is an empty slot."""
    members = [[label == way for way in range(ways)] for label in classes]
    return {
        "keys": torch.tensor([keys], dtype=torch.float64),
        "classes": torch.tensor([members]),
        "ages": torch.tensor([ages]),
    }


def write(before, query, label):
    query = torch.tensor([query], dtype=torch.float64)
    return written(before, query, torch.tensor([[label == way for way in range(before["classes"].shape[2])]]))


def labels(found):
    return [of.index(True) if True in of else None for of in found["classes"][0].tolist()]


def test_a_hit_averages_the_key_and_makes_it_young():
    found = write(memory([RIGHT, LEFT, UP], [1, 2, 0], [5, 6, 7]), [0.8, 0.6], 1)  # nearest is slot 0, of class 1
    length = math.hypot(1.8, 0.6)
    expected = [[1.8 / length, 0.6 / length], LEFT, UP]
    torch.testing.assert_close(found["keys"][0], torch.tensor(expected, dtype=torch.float64))
    assert labels(found) == [1, 2, 0]
    assert found["ages"].tolist() == [[0, 7, 8]]


def test_a_miss_overwrites_the_oldest_slot():
    found = write(memory([RIGHT, LEFT, UP], [1, 2, 0], [5, 9, 7]), [0.8, 0.6], 0)  # nearest is of class 1, not 0
    torch.testing.assert_close(found["keys"][0], torch.tensor([RIGHT, [0.8, 0.6], UP], dtype=torch.float64))
    assert labels(found) == [1, 0, 0]
    assert found["ages"].tolist() == [[6, 0, 8]]


def test_empty_slots_are_never_nearest_and_are_filled_first():
    zeros = [0.0, 0.0]
    start = memory([zeros, zeros, zeros], [None, None, None], [0, 0, 0])
    first = write(start, RIGHT, 0)  # class 0 is a class like any other: an empty slot is no hit of it
    assert labels(first) == [0, None, None]
    second = write(first, LEFT, 1)  # an empty key has a larger cosine than slot 0, but is not looked up
    assert labels(second) == [0, 1, None]
    third = write(second, [-0.8, 0.6], 0)
    assert labels(third) == [0, 1, 0]
    assert third["ages"].tolist() == [[2, 1, 0]]
    fourth = write(third, UP, 2)  # full: the oldest one goes
    assert labels(fourth) == [2, 1, 0]
    torch.testing.assert_close(fourth["keys"][0, 0], torch.tensor(UP, dtype=torch.float64))


def test_a_miss_next_to_a_right_slot_that_is_not_the_nearest_is_a_miss():
    found = write(memory([RIGHT, UP], [0, 1], [3, 2]), [0.8, 0.6], 1)
    assert labels(found) == [1, 1]
    torch.testing.assert_close(found["keys"][0], torch.tensor([[0.8, 0.6], UP], dtype=torch.float64))


def test_the_loss_is_a_margin_between_the_nearest_wrong_and_the_nearest_right_slot():
    held = memory([RIGHT, UP, LEFT, [0.0, 0.0]], [0, 1, 0, None], [0] * 4)["classes"]
    cosines = torch.tensor([[0.5, 0.45, 0.9, 0.0]], dtype=torch.float64)

    def loss(label, classes=held, ways=3):
        return margin_loss(cosines, classes, torch.tensor([[label == way for way in range(ways)]]), 0.1).item()

    assert loss(0) == pytest.approx(-0.1)  # 0.45 - 0.9 + 0.1 is below 0
    assert loss(1) == pytest.approx(0.9 - 0.45)
    assert loss(2) == pytest.approx(0.9)  # no right slot
    assert loss(0, torch.zeros_like(held)) == pytest.approx(0)
    only = held.clone()
    only[0, [0, 2]] = False
    assert loss(1, only) == pytest.approx(-0.1)  # no wrong slot: 0 - 0.45 + 0.1 is below 0
    close = torch.tensor([[0.5, 0.45, 0.0, 0.0]], dtype=torch.float64)
    assert margin_loss(close, held, torch.tensor([[True, False, False]]), 0.1).item() == pytest.approx(-0.05)


def test_the_most_probable_class_is_that_of_the_nearest_key():
    method, theta = make("memory-module")
    support, targets, query = features(count=9)
    found = predicted(method, theta, support, targets, query)
    state = method.learn(theta, support, F.one_hot(targets).bool())
    q = F.normalize(query[0] @ theta["projection.weight"].T, dim=1)
    cosines = (q @ state["keys"][0].T).masked_fill(~state["classes"][0].any(dim=1), -9)
    nearest = state["classes"][0][cosines.argmax(dim=1)].int().argmax(dim=1)
    assert torch.equal(found.argmax(dim=1), nearest)
    assert (state["classes"][0].any(dim=1)).sum() <= 9
    assert torch.allclose(state["keys"].norm(dim=2)[state["classes"].any(dim=2)], torch.ones((), dtype=torch.float64))
    for slot, label in enumerate(nearest):
        best = [cosines[slot][state["classes"][0, :, way]].max() for way in range(3)]
        torch.testing.assert_close(found[slot], (method.scale * torch.stack(best)).log_softmax(dim=0))
        assert label == torch.stack(best).argmax()
    assert method.scale == pytest.approx(math.log(0.2 * 20) / 0.1)


def test_support_examples_are_written_one_after_the_other_and_memories_are_apart():
    method, theta = make("memory-module")
    drawn = tasks(3)
    rows = expand_over_tasks(theta, 3)
    together = method.adapt(rows, drawn.support)
    values, _ = method.apply("", theta, (drawn.support.inputs,), method.statistics(theta, {}))
    queries = F.normalize(values @ theta["projection.weight"].T, dim=2)
    for task in range(3):
        state = memory([[0.0] * 5] * 20, [None] * 20, [0] * 20)
        for query, label in zip(queries[task].tolist(), drawn.support.targets[task].tolist(), strict=True):
            state = write(state, query, label)
        for key, value in state.items():
            torch.testing.assert_close(together[key][task], value[0])


def test_gradients_run_through_queries_and_not_through_keys():
    method, theta = make("memory-module", "batch")
    drawn = tasks(2, shots=3)
    rows = expand_over_tasks(theta, 2)
    gradients, losses, _ = method.gradient(rows, drawn, {})

    def slow(projection, kept):
        """The mean loss at all look-ups, with the memory that other parameters wrote."""
        total = []
        for task in range(2):
            one = drawn.of_tasks(slice(task, task + 1))
            both = [method.apply("", theta, (of.inputs,), {})[0][0] for of in (one.support, one.query)]
            now, then = ([F.normalize(z @ w.T, dim=1) for z in both] for w in (projection, kept))
            state, found = memory([[0.0] * 5] * 20, [None] * 20, [0] * 20), []
            for query, key, label in zip(now[0], then[0], one.support.targets[0].tolist(), strict=True):
                wanted = torch.tensor([[label == way for way in range(3)]])
                found.append(margin_loss((state["keys"][0] @ query)[None], state["classes"], wanted, 0.1))
                state = write(state, key.tolist(), label)
            for query, label in zip(now[1], one.query.targets[0].tolist(), strict=True):
                wanted = torch.tensor([[label == way for way in range(3)]])
                found.append(margin_loss((state["keys"][0] @ query)[None], state["classes"], wanted, 0.1))
            total.append(torch.stack(found).mean())
        return torch.stack(total)

    weight = theta["projection.weight"]
    torch.testing.assert_close(losses, slow(weight, weight))
    for direction in torch.randn(3, *weight.shape, dtype=torch.float64):
        slope = (slow(weight + 1e-6 * direction, weight) - slow(weight - 1e-6 * direction, weight)).sum() / 2e-6
        torch.testing.assert_close((gradients["projection.weight"][0] * direction).sum(), slope)


def test_what_cannot_be_is_refused():
    method, _ = make("memory-module")
    with pytest.raises(ValueError, match="task_distribution = 'ImageEpisodes'"):
        method.training_tasks(ImageEpisodes({"train": numbered()}, 3, 1, 1))
    with pytest.raises(ValueError, match="slots = 0"):
        type(method)(method.module, method.criterion, projection=method.projection, slots=0)
