"""Siamese networks, and the pairs that they are trained on."""

import pytest
import torch
from torch.func import functional_call

from metarl.core.parameters import expand_over_tasks
from metarl.core.randomness import keyed_generator
from metarl.few_shot.methods.siamese import ImagePairs
from tests.metarl.few_shot.embedding_methods import features, fresh, make, numbered, predicted


def test_siamese_probabilities_are_means_over_each_class():
    method, theta = make("siamese")
    support, targets, query = features()
    found = predicted(method, theta, support, targets, query)
    for number, z in enumerate(query[0]):
        logits = (z - support[0]).abs() @ theta["comparison.weight"][0] + theta["comparison.bias"]
        means = torch.stack([logits[targets[0] == label].sigmoid().mean() for label in range(3)])
        torch.testing.assert_close(found[number].exp(), means / means.sum())


def test_siamese_training_minimises_the_cross_entropy_of_pairs():
    method, theta = make("siamese", "batch")
    source = ImagePairs({"train": numbered()}, 6)
    drawn = source.sample(2, "train", keyed_generator(0, "pairs"))
    rows = expand_over_tasks({k: v.float() for k, v in theta.items()}, 2)
    loss, metric = fresh("siamese", "batch", dtype=torch.float32).loss(rows, drawn, {})
    embed = {k: v.float() for k, v in theta.items() if not k.startswith("comparison.")}
    for task in range(2):
        first, second = (functional_call(method.module, embed, (o.inputs[task],)) for o in (drawn.support, drawn.query))
        same = (drawn.support.targets[task] == drawn.query.targets[task]).float()
        weight, bias = theta["comparison.weight"].float()[0], theta["comparison.bias"].float()
        p = ((first - second).abs() @ weight + bias).sigmoid()
        torch.testing.assert_close(loss[task], -(same * p.log() + (1 - same) * (1 - p).log()).mean())
        assert metric[task] == ((p > 0.5) == same.bool()).float().mean()


def test_pairs_are_balanced_distinct_and_of_the_classes_they_say():
    drawn = ImagePairs({"train": numbered()}, 6).sample(50, "train", keyed_generator(0, "pairs"))
    numbers = [(of.inputs[:, :, 0, 0, 0] * 255).round().long() for of in (drawn.support, drawn.query)]
    same = drawn.support.targets == drawn.query.targets
    assert torch.equal(same, numbers[0] // 5 == numbers[1] // 5)
    assert (same.sum(dim=1) == 3).all()
    assert not (numbers[0] == numbers[1]).any()  # never the same image twice
    assert 0.3 < same[:, 0].double().mean() < 0.7  # in random order
    assert torch.equal(drawn.support.targets, torch.arange(6).expand(50, 6))
    assert torch.equal(numbers[0].gather(1, drawn.query.targets) // 5, numbers[1] // 5)
    assert all(len(set(row.tolist())) == 6 for row in numbers[0] // 5)
    with pytest.raises(ValueError, match="pairs = 7"):
        ImagePairs({"train": numbered()}, 7)
    with pytest.raises(ValueError, match="2 images of 1 in a train class"):
        ImagePairs({"train": numbered()[:, :1]}, 6)
