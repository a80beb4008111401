"""Classifiers of images: like the method's own predictions, independent of other new images, and strict."""

import numpy as np
import pytest
import torch

from metarl.core.errors import NonFiniteError
from metarl.core.rules import GradientDescent
from metarl.few_shot.criteria import CLASSIFICATION
from metarl.few_shot.images.classifier import ImageClassifier
from metarl.few_shot.images.pictures import PictureForm
from metarl.few_shot.methods.gradient import MAML
from metarl.few_shot.methods.memory_networks import MemoryNet
from metarl.few_shot.methods.sequences import SequenceClassifier
from metarl.few_shot.networks import ConvNet
from metarl.few_shot.tasks import Examples
from tests.metarl.few_shot.embedding_methods import fresh, outputs

FORM = PictureForm(16, 16, channels=1)
GENERATOR = np.random.default_rng(0)
SUPPORT, QUERY = (GENERATOR.integers(0, 256, (count, 16, 16, 1), np.uint8) for count in (6, 4))
LABELS = ["b", "a", "b", "c", "a", "c"]


def of_method(method, form=FORM, **options):
    return ImageClassifier(method, method.meta_parameters(), form, **options)


def prototypes(batch_norm="running"):
    return fresh("prototypical", batch_norm, dtype=torch.float32)


def maml(ways=3):
    torch.manual_seed(0)
    return MAML(ConvNet(FORM.shape, ways, 4, strided=False), CLASSIFICATION, GradientDescent(0.3, 2))


def test_probabilities_are_those_of_the_method():
    method = prototypes()
    model = of_method(method)
    model.learn(SUPPORT, LABELS)
    assert model.classes == ("b", "a", "c")
    found = model.probabilities(QUERY)
    order = [0, 2, 1, 4, 3, 5]  # by class
    support = Examples(torch.from_numpy(SUPPORT[order])[None].float() / 255, torch.tensor([[0, 0, 1, 1, 2, 2]]))
    wanted = outputs(method, method.meta_parameters(), support, torch.from_numpy(QUERY)[None].float() / 255)[0].exp()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(4))


@pytest.mark.parametrize(
    "make", [maml, lambda: prototypes("running"), lambda: prototypes("support"), lambda: prototypes("batch")]
)
def test_no_new_image_depends_on_another(make):
    model = of_method(make(), inner_steps=2)
    model.learn(SUPPORT, LABELS)
    together = model.probabilities(QUERY)
    alone = torch.cat([model.probabilities(QUERY[number : number + 1]) for number in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_gradient_steps_are_taken_and_what_was_learned_before_is_forgotten():
    model = of_method(maml(), inner_steps=20)
    model.learn(SUPPORT, LABELS)
    assert model.probabilities(SUPPORT).argmax(dim=1).tolist() == [0, 1, 0, 2, 1, 2]
    model.learn(SUPPORT[:2], [7, 8])
    assert (model.classes, model.probabilities(QUERY).shape) == ((7, 8), (4, 2))
    torch.testing.assert_close(model.probabilities(QUERY).sum(dim=1), torch.ones(4))
    untrained = of_method(maml(), inner_steps=0)
    untrained.learn(SUPPORT, LABELS)
    assert untrained.probabilities(SUPPORT).argmax(dim=1).tolist() != [0, 1, 0, 2, 1, 2]


def test_images_may_be_tensors_lists_of_other_sizes_and_colours():
    model = of_method(prototypes())
    model.learn(SUPPORT, LABELS)
    expected = model.probabilities(QUERY)
    assert torch.equal(model.probabilities(torch.from_numpy(QUERY)), expected)
    in_colour = np.repeat(QUERY, 3, axis=3)
    assert torch.equal(model.probabilities(in_colour), expected)
    larger = [np.kron(image, np.ones((2, 2, 1), np.uint8)) for image in QUERY]
    mixed = [larger[0], *QUERY[1:]]
    assert model.probabilities(mixed).shape == expected.shape
    assert torch.equal(model.probabilities(mixed)[1:], expected[1:])
    model.learn(list(SUPPORT), torch.tensor([1, 0, 1, 2, 0, 2]))
    assert model.classes == (1, 0, 2)


def test_many_new_images_go_in_parts(monkeypatch):
    model = of_method(prototypes())
    model.learn(SUPPORT, LABELS)
    expected = model.probabilities(QUERY)
    monkeypatch.setattr("metarl.few_shot.images.classifier._TOGETHER", 3)
    torch.testing.assert_close(model.probabilities(QUERY), expected)


def test_ambient_state_changes_nothing():
    model = of_method(maml(), inner_steps=2)
    model.learn(SUPPORT, LABELS)
    expected = model.probabilities(QUERY)
    with torch.no_grad():
        model.learn(SUPPORT, LABELS)
    assert torch.equal(model.probabilities(QUERY), expected)
    assert not expected.requires_grad


@pytest.mark.parametrize(
    ("images", "line"),
    [
        (SUPPORT[0], r"images have the shape \(16, 16, 1\); allowed: \(N, H, W, C\)"),
        (SUPPORT[None], r"images have the shape \(1, 6, 16, 16, 1\)"),
        (SUPPORT / 255, r"images\[0\] is of type float64; allowed: uint8"),
        (torch.from_numpy(SUPPORT).float(), r"images\[0\] is of type float32"),
        (SUPPORT.transpose(0, 3, 1, 2), "channels first"),
        (SUPPORT.repeat(2, axis=3), r"images\[0\] has the shape \(16, 16, 2\)"),
        (SUPPORT[:0], "images are none"),
        ("a.png", "images are a str"),
        (["a.png"] * 6, r"images\[0\] is of type str"),
        (7, "images are a int"),
        ([SUPPORT[0, :, :, 0]] * 6, r"images\[0\] has the shape \(16, 16\)"),
    ],
)
def test_other_images_are_refused(images, line):
    model = of_method(prototypes())
    with pytest.raises(ValueError, match=line):
        model.learn(images, LABELS)
    model.learn(SUPPORT, LABELS)
    with pytest.raises(ValueError, match=line):
        model.probabilities(images)


def test_labels_that_cannot_be_are_refused():
    model = of_method(maml(), most_classes=3)
    with pytest.raises(ValueError, match="classes = "):
        model.probabilities(QUERY)
    for labels, line in (
        (LABELS[:5], "labels are 5 for 6 images"),
        (["a"] * 6, r"classes = \('a',\); allowed: two or more"),
        (list("abcdab"), "labels have 4 classes; allowed: at most 3"),
        (np.zeros((6, 1), int), r"labels\[0\] is \[0\]; allowed: a name or a number"),
        ([1.0, float("nan"), 1.0, 2.0, 2.0, 2.0], r"labels\[1\] is nan"),
        ({1, 2, 3, 4, 5, 6}, "labels are a set"),
        (None, "labels are a NoneType"),
    ):
        with pytest.raises(ValueError, match=line):
            model.learn(SUPPORT, labels)
    with pytest.raises(ValueError, match="parameters"):
        ImageClassifier(maml(), {}, FORM)


def test_outputs_that_are_not_finite_are_refused():
    method = maml()
    theta = {name: torch.full_like(value, torch.nan) for name, value in method.meta_parameters().items()}
    model = ImageClassifier(method, theta, FORM)
    model.learn(SUPPORT, LABELS)
    with pytest.raises(NonFiniteError, match="image 0"):
        model.probabilities(QUERY)


@pytest.mark.parametrize("name", ["snail", "memory-module", "mann"])
def test_methods_that_read_in_order_see_the_images_in_a_random_one(name):
    torch.manual_seed(0)
    network = MemoryNet(FORM.shape, 4, hidden=5, memory=(6, 3), reads=1)
    method = SequenceClassifier(network, CLASSIFICATION) if name == "mann" else fresh(name, dtype=torch.float32, ways=4)
    model = of_method(method, most_classes=4)
    seen = []

    class Watched(type(method)):
        def adapt(self, theta, support):
            seen.append(support.targets[0].tolist())
            return super().adapt(theta, support)

    model._method = Watched(**vars(method))
    model.learn(SUPPORT, LABELS)  # three classes, where the network has outputs for four
    assert sorted(seen[0]) == [0, 0, 1, 1, 2, 2]
    assert seen[0] != sorted(seen[0])
    found = model.probabilities(QUERY)
    assert found.shape == (4, 3)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(4))
    torch.testing.assert_close(found, torch.cat([model.probabilities(QUERY[i : i + 1]) for i in range(4)]))


def test_labels_may_be_scalars_of_torch():
    model = of_method(maml())
    numbers = [0, 0, 1, 1, 2, 2]
    model.learn(SUPPORT, numbers)
    expected = model.probabilities(QUERY)
    model.learn(SUPPORT, list(torch.tensor(numbers)))
    assert model.classes == (0, 1, 2)
    assert torch.equal(model.probabilities(QUERY), expected)
