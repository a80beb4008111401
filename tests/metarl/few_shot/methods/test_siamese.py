"""Siamese networks, and the pairs that they are trained on."""

import pytest
import torch
from torch.func import functional_call

from metarl.core.parameters import expand_over_tasks
from metarl.core.randomness import keyed_generator
from metarl.few_shot.tasks import ImageEpisodes
from tests.metarl.few_shot.embedding_methods import features, fresh, make, numbered, predicted


def test_siamese_probabilities_are_means_over_each_class():
    method, theta = make("siamese")
    support, targets, query = features()
    found = predicted(method, theta, support, targets, query)
    for number, z in enumerate(query[0]):
        logits = (z - support[0]).abs() @ theta["comparison.weight"][0] + theta["comparison.bias"]
        means = torch.stack([logits[targets[0] == label].sigmoid().mean() for label in range(3)])
        torch.testing.assert_close(found[number].exp(), means / means.sum())


def test_siamese_training_minimises_the_cross_entropy_of_all_pairs():
    method, theta = make("siamese", "batch")
    drawn = method.training_tasks(ImageEpisodes({"train": numbered()}, 2, 3, 1)).sample(
        2, "train", keyed_generator(0, "pairs")
    )
    rows = expand_over_tasks({k: v.float() for k, v in theta.items()}, 2)
    loss, metric = fresh("siamese", "batch", dtype=torch.float32).loss(rows, drawn, {})
    embed = {k: v.float() for k, v in theta.items() if not k.startswith("comparison.")}
    weight, bias = theta["comparison.weight"].float()[0], theta["comparison.bias"].float()
    for task in range(2):
        first, second = (functional_call(method.module, embed, (o.inputs[task],)) for o in (drawn.support, drawn.query))
        losses, right = {True: [], False: []}, {True: [], False: []}
        for z, of_first in zip(first, drawn.support.targets[task], strict=True):
            for other, of_second in zip(second, drawn.query.targets[task], strict=True):
                same = bool(of_first == of_second)
                p = (((z - other).abs() * weight).sum() + bias).sigmoid()
                losses[same].append(-(p if same else 1 - p).log())
                right[same].append(bool(p > 0.5) == same)
        assert (len(losses[True]), len(losses[False])) == (4, 12)
        balanced = [torch.stack(losses[same]).mean() for same in (True, False)]
        torch.testing.assert_close(loss[task], sum(balanced) / 2)
        assert metric[task] == pytest.approx(sum(sum(right[same]) / len(right[same]) for same in (True, False)) / 2)


def test_a_training_task_has_two_images_of_each_of_its_classes():
    method, _ = make("siamese")  # of four classes
    given = ImageEpisodes({"train": numbered(), "test": numbered()}, 2, 3, 1)
    drawn = method.training_tasks(given).sample(50, "train", keyed_generator(0, "pairs"))
    for of in (drawn.support, drawn.query):
        assert torch.equal(of.targets.sort(dim=1).values, torch.arange(4).expand(50, 4))
    with pytest.raises(ValueError, match="pairs = 4; allowed: at most the 3 training classes"):
        method.training_tasks(ImageEpisodes({"train": numbered()[:3]}, 2, 3, 1))
