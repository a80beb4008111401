"""Few-shot tasks: what is drawn, that it is drawn by key, and that nothing leaks."""

import numpy as np
import pytest
import torch

from metarl.core.randomness import keyed_generator
from metarl.few_shot.tasks import (
    ImageBatches,
    ImageEpisodes,
    Sine,
    draw_distinct,
    split_classes,
    tasks_per_chunk,
    with_rotations,
)
from tests.metarl.few_shot.embedding_methods import numbered


def named_images(classes=7, examples=6):
    """Images whose two pixels say which class and which example they are."""
    images = torch.zeros(classes, examples, 1, 2, 1, dtype=torch.uint8)
    images[:, :, 0, 0, 0] = torch.arange(classes)[:, None]
    images[:, :, 0, 1, 0] = torch.arange(examples)
    return images


def test_sine_curves_are_the_papers():
    tasks = Sine(5, 200).sample(300, "train", keyed_generator(0, "a"))
    assert tasks.support.inputs.shape == (300, 5, 1)
    assert tasks.query.targets.shape == (300, 200, 1)
    assert tasks.query.inputs.abs().max() <= 5
    assert 4.5 < tasks.query.targets.abs().max() <= 5
    oracle = Sine(5, 200, oracle=True).sample(300, "train", keyed_generator(0, "a"))
    for part in (oracle.support, oracle.query):
        x, amplitude, phase = part.inputs.unbind(2)
        torch.testing.assert_close(amplitude * torch.sin(x - phase), part.targets[:, :, 0], atol=1e-5, rtol=1e-5)
        assert 0.1 <= amplitude.min() < 0.2 < 4.9 < amplitude.max() <= 5
        assert 0 <= phase.min() < 0.1 < 3 < phase.max() <= np.pi
        assert (phase == phase[:, :1]).all()
    torch.testing.assert_close(oracle.support.inputs[:, :, :1], tasks.support.inputs)


def test_episodes_have_the_right_labels_and_disjoint_queries():
    episodes = ImageEpisodes({"train": named_images()}, ways=3, shots=2, queries=4)
    tasks = episodes.sample(50, "train", keyed_generator(0, "a"))
    assert tasks.support.inputs.shape == (50, 6, 1, 2, 1)
    assert tasks.query.inputs.shape == (50, 12, 1, 2, 1)
    for task in range(50):
        images, owner = set(), {}
        for part in (tasks.support, tasks.query):
            named = (part.inputs[task, :, 0, :, 0] * 255).round().int().tolist()
            for (image_class, example), label in zip(named, part.targets[task].tolist(), strict=True):
                assert owner.setdefault(label, image_class) == image_class
                images.add((image_class, example))
        assert len(set(owner.values())) == len(owner) == 3
        assert len(images) == 18  # support and query share none
    assert tasks.support.targets[0].tolist() == [0, 0, 1, 1, 2, 2]
    assert tasks.support.inputs.max() <= 1


def test_labels_do_not_tell_the_class():
    """Every class gets every label equally often, though a partition has an order of its own."""
    drawn = draw_distinct(keyed_generator(0, "a"), 20_000, 10, 4)
    counts = np.stack([np.bincount(drawn[:, label], minlength=10) for label in range(4)])
    assert abs(counts / 20_000 - 0.1).max() < 0.01
    assert all(len(set(row)) == 4 for row in drawn[:100])
    assert (np.sort(draw_distinct(keyed_generator(0, "a"), 5, 4, 4), axis=1) == np.arange(4)).all()


def test_the_same_key_draws_the_same_tasks():
    episodes = ImageEpisodes({"train": named_images()}, 3, 1, 1)
    a, b, c = (episodes.sample(4, "train", keyed_generator(0, "train", i)).query.inputs for i in (5, 5, 6))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((8, 1, 1), "8 ways of 7 train classes; allowed: at most 7"),
        ((2, 5, 2), "5 support and 2 query images of 6 in a train class; allowed: at most 6 together"),
        ((0, 1, 1), "ways = 0"),
        ((2, -1, 1), "shots = -1"),
        ((2, 1, 0), "queries = 0"),
        ((2.5, 1, 1), "ways = 2.5"),
    ],
)
def test_impossible_episodes_are_refused(arguments, line):
    with pytest.raises(ValueError, match=line):
        ImageEpisodes({"train": named_images()}, *arguments)


@pytest.mark.parametrize(
    ("images", "line"),
    [
        ({"train": named_images().float()}, "torch.float32 with 5 axes"),
        ({"train": named_images()[0]}, "torch.uint8 with 4 axes"),
        ({"train": named_images().numpy()}, "train images are a ndarray"),
        ({"train": named_images(), "test": named_images().permute(0, 1, 3, 2, 4)}, "images have the sizes"),
        ({"train": named_images().permute(0, 1, 4, 2, 3)}, r"train images have the shape .*, channels first"),
        ({}, "images = {}"),
    ],
)
@pytest.mark.parametrize(
    "make", [lambda images: ImageEpisodes(images, 2, 1, 1), lambda images: ImageBatches(images, 3)]
)
def test_images_of_another_kind_are_refused(make, images, line):
    with pytest.raises(ValueError, match=line):
        make(images)


def test_a_split_that_is_not_there_is_refused_by_name():
    for distribution in (ImageEpisodes({"train": named_images()}, 2, 1, 1), ImageBatches({"train": named_images()}, 3)):
        with pytest.raises(ValueError, match="split 'test' is not there; allowed: train"):
            distribution.sample(1, "test", keyed_generator(0, "a"))


@pytest.mark.parametrize(("settings", "name"), [((0, 1), "shots"), ((1, -2), "queries"), ((1.5, 1), "shots")])
def test_curves_without_points_are_refused(settings, name):
    with pytest.raises(ValueError, match=f"^{name} = "):
        Sine(*settings)


def test_batches_hold_images_of_all_classes_with_their_numbers():
    batches = ImageBatches({"train": named_images()}, 200)
    tasks = batches.sample(2, "train", keyed_generator(0, "a"))
    assert tasks.support.inputs.shape == (2, 0, 1, 2, 1)
    named = (tasks.query.inputs[:, :, 0, 0, 0] * 255).round().long()
    assert torch.equal(named, tasks.query.targets)
    assert len(tasks.query.targets.unique()) == batches.ways == 7


def test_tasks_are_cut_joined_and_rebuilt():
    tasks = Sine(2, 3).sample(4, "train", keyed_generator(0, "a"))
    assert len(tasks) == 4
    part = tasks.of_tasks(slice(1, 3))
    assert torch.equal(part.query.targets, tasks.query.targets[1:3])
    joined = tasks.support.joined(tasks.query)
    assert torch.equal(joined.inputs, torch.cat([tasks.support.inputs, tasks.query.inputs], dim=1))
    rebuilt = part.like(tasks.tensors)
    assert all(torch.equal(a, b) for a, b in zip(rebuilt.tensors, tasks.tensors, strict=True))
    assert tasks_per_chunk(tasks.support) == 31_500


def test_rotations_are_classes_of_their_own():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4, 1)
    turned = with_rotations(images)
    assert turned.shape == (8, 3, 4, 4, 1)
    assert torch.equal(turned[:2], images)
    assert turned[2, 0, :, 0, 0].tolist() == images[0, 0, 0, :, 0].flip(0).tolist()
    assert torch.equal(turned[4:6], images.flip(2, 3))


def test_splits_are_disjoint_and_keyed():
    sizes = {"train": 5, "validation": 2, "test": 3}
    splits = split_classes(11, sizes, keyed_generator(0, "split"))
    assert {name: len(found) for name, found in splits.items()} == sizes
    assert len(set(np.concatenate(list(splits.values())))) == 10
    again = split_classes(11, sizes, keyed_generator(0, "split"))
    assert all((splits[name] == again[name]).all() for name in sizes)
    with pytest.raises(ValueError, match="splits of 10 classes; allowed: at most the 9"):
        split_classes(9, sizes, keyed_generator(0, "split"))


def test_classes_are_numbered_in_random_order():
    drawn = ImageEpisodes({"train": numbered()}, 6, 1, 1).sample(200, "train", keyed_generator(0, "episodes"))
    numbers = (drawn.query.inputs[:, :, 0, 0, 0] * 255).round().long() // 5
    of_first = drawn.query.targets[numbers == 0]
    assert torch.bincount(of_first, minlength=6).min() > 15  # of 200, 33 expected
