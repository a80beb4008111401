"""Classes of unequal size: every image can be drawn, none but those of its class, and equal ones as before."""

import numpy as np
import pytest
import torch

from metarl.core.randomness import keyed_generator
from metarl.few_shot.images.image_classes import ImageClasses, classes_of
from metarl.few_shot.tasks import ImageBatches, ImageEpisodes, draw_distinct

SIZES = (3, 7, 4, 5)
OWNERS = torch.arange(4).repeat_interleave(torch.tensor(SIZES))


def unequal(names=("ant", "bee", "cat", "dog")):
    """Images full of their number among all, (19, 2, 2, 1)."""
    numbers = torch.arange(sum(SIZES), dtype=torch.uint8)
    return ImageClasses(numbers.view(-1, 1, 1, 1).expand(-1, 2, 2, 1).contiguous(), SIZES, names)


def numbers_of(inputs):
    return (inputs[..., 0, 0, 0] * 255).round().long()


def test_episodes_of_unequal_classes_draw_every_image_of_each_class_alone():
    drawn = ImageEpisodes({"train": unequal()}, 3, 2, 1).sample(300, "train", keyed_generator(0, "a"))
    support, query = numbers_of(drawn.support.inputs), numbers_of(drawn.query.inputs)
    assert set(support.flatten().tolist()) == set(query.flatten().tolist()) == set(range(19))
    owners = OWNERS[torch.cat([support, query], dim=1)]
    labels = torch.cat([drawn.support.targets, drawn.query.targets], dim=1)
    for own, label in zip(owners, labels, strict=True):
        pairs = set(zip(own.tolist(), label.tolist(), strict=True))
        assert len(pairs) == 3 == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert all(len(set(row.tolist())) == 9 for row in torch.cat([support, query], dim=1))
    counts = torch.bincount(torch.cat([support, query], dim=1).flatten(), minlength=19).double()
    per_class = torch.stack([counts[number == OWNERS].sum() for number in range(4)]) / counts.sum()
    torch.testing.assert_close(per_class, torch.full((4,), 0.25, dtype=torch.float64), atol=0.03, rtol=0)
    within = counts[OWNERS == 1]
    assert within.min() > 0.7 * within.mean()


def test_batches_of_unequal_classes():
    batch = ImageBatches({"train": unequal()}, 500).sample(2, "train", keyed_generator(0, "a"))
    found = numbers_of(batch.query.inputs)
    assert torch.equal(OWNERS[found], batch.query.targets)
    assert set(found.flatten().tolist()) == set(range(19))


@pytest.mark.parametrize("make", [lambda im: ImageEpisodes(im, 3, 1, 2), lambda im: ImageBatches(im, 5)])
def test_classes_of_equal_size_draw_as_a_tensor_does(make):
    images = torch.randint(0, 256, (4, 5, 2, 2, 3), dtype=torch.uint8)
    as_classes = ImageClasses(images.flatten(0, 1), (5,) * 4)
    one, other = (make({"train": of}).sample(3, "train", keyed_generator(1, "b")) for of in (images, as_classes))
    assert all(torch.equal(a, b) for a, b in zip(one.tensors, other.tensors, strict=True))


def test_draws_of_unequal_totals_are_those_of_their_own_rows():
    totals = np.array([2, 5, 3])
    drawn = draw_distinct(keyed_generator(0, "a"), 3, totals, 2)
    keys = keyed_generator(0, "a").random((3, 5), np.float32)
    expected = [np.argsort(row[:total])[:2].tolist() for row, total in zip(keys, totals, strict=True)]
    assert drawn.tolist() == expected


def test_a_class_with_too_few_images_is_refused_by_name():
    with pytest.raises(ValueError, match="3 support and 1 query images of 3 in train class ant; allowed: at most 3"):
        ImageEpisodes({"train": unequal()}, 2, 3, 1)
    with pytest.raises(ValueError, match="of 3 in a train class"):
        ImageEpisodes({"train": unequal(())}, 2, 3, 1)
    empty = ImageClasses(torch.zeros(2, 2, 2, 1, dtype=torch.uint8), (2, 0), ("a", "b"))
    with pytest.raises(ValueError, match="train class b"):
        ImageBatches({"train": empty}, 3)


def test_drawn_images_go_from_0_to_1():
    images = ImageClasses(torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1), (1, 2))
    drawn = images.drawn(np.array([0, 1, 1]), np.array([0, 0, 1]))
    torch.testing.assert_close(drawn.flatten(), torch.tensor([0, 0.2, 1.0]), atol=0, rtol=0)


def test_sizes_and_names_must_fit_the_images():
    images = torch.zeros(5, 2, 2, 1, dtype=torch.uint8)
    with pytest.raises(ValueError, match="sizes = "):
        ImageClasses(images, (2, 2))
    with pytest.raises(ValueError, match="names = "):
        ImageClasses(images, (2, 3), ("a",))
    assert len(ImageClasses(images, (2, 3)).to("cpu")) == 2


@pytest.mark.parametrize(
    ("images", "line"),
    [
        ({"train": ImageClasses(torch.zeros(5, 2, 2, 1), (2, 3))}, "train images are torch.float32 with 4 axes"),
        ({"train": ImageClasses(torch.zeros(5, 3, 4, 4, dtype=torch.uint8), (2, 3))}, "channels first"),
        ({"train": torch.zeros(2, 2, 1, 28, 28, dtype=torch.uint8)}, "channels first"),
        ({"train": np.zeros((2, 2, 8, 8, 1), np.uint8)}, "train images are a ndarray; allowed: a tensor"),
        (torch.zeros(2, 2, 8, 8, 1, dtype=torch.uint8), "images = a Tensor"),
        ({"train": unequal(), "test": torch.zeros(2, 2, 3, 2, 1, dtype=torch.uint8)}, "images have the sizes"),
    ],
)
def test_other_images_are_refused(images, line):
    with pytest.raises(ValueError, match=line) as refused:
        classes_of(images)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("shape", [(2, 2, 1, 2, 1), (2, 2, 3, 3, 3), (2, 2, 8, 8, 4), (2, 2, 28, 28, 1)])
def test_channels_last_are_taken(shape):
    assert len(classes_of({"train": torch.zeros(shape, dtype=torch.uint8)})["train"]) == 2
