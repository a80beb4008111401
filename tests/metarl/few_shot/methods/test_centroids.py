"""Prototypical networks and SimpleShot against their equations, class by class and query by query."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from metarl.core.parameters import expand_over_tasks
from metarl.few_shot.criteria import CLASSIFICATION
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.methods.centroids import Prototypical, SimpleShot, class_means
from metarl.few_shot.methods.embedding import one_hot
from metarl.few_shot.methods.siamese import Siamese
from metarl.few_shot.networks import MLP
from metarl.few_shot.tasks import ImageEpisodes, Sine
from tests.metarl.few_shot.embedding_methods import (
    SIZE,
    embedding,
    features,
    make,
    predicted,
    training_tasks,
)


def test_prototypes_are_class_means_and_the_distance_is_squared():
    method, theta = make("prototypical")
    support, targets, query = features()
    found = predicted(method, theta, support, targets, query)
    for number, z in enumerate(query[0]):
        logits = []
        for label in range(3):
            members = [x for x, y in zip(support[0], targets[0], strict=True) if y == label]
            logits.append(-sum((z - sum(members) / len(members)) ** 2))
        torch.testing.assert_close(found[number], torch.stack(logits).log_softmax(dim=0))
    torch.testing.assert_close(predicted(method, theta, 2 * support, targets, 2 * query), (4 * found).log_softmax(1))


def test_simple_shot_centres_with_the_training_mean_and_normalises_both_sides():
    method, theta = make("simple-shot")
    support, targets, query = features()
    theta["centre"] = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    found = predicted(method, theta, support, targets, query)
    units = [
        torch.stack([(x - theta["centre"]) / (x - theta["centre"]).norm() for x in of[0]]) for of in (support, query)
    ]
    for number, u in enumerate(units[1]):
        logits = [-((u - units[0][targets[0] == label].mean(dim=0)) ** 2).sum() for label in range(3)]
        torch.testing.assert_close(found[number], torch.stack(logits).log_softmax(dim=0))


def test_simple_shot_averages_the_features_of_training():
    method, theta = make("simple-shot")
    drawn = training_tasks("simple-shot", 2)
    gradients, _, _ = method.gradient(expand_over_tasks(theta, 2), drawn, {})
    learned = {name: theta[name] for name, _ in method.module.named_parameters()}
    means = [functional_call(method.module, learned, (images,)).mean(dim=0) for images in drawn.query.inputs]
    torch.testing.assert_close(theta["centre"] - gradients["centre"][0] / 2, sum(means) / 2)
    with pytest.raises(ValueError, match="in_features"):
        SimpleShot(embedding(), CLASSIFICATION, head=nn.PReLU()).meta_parameters()


def test_class_means():
    maps = torch.arange(12.0).view(1, 3, 2, 2)
    found = class_means(maps, one_hot(torch.tensor([[0, 1, 0]])))
    assert torch.equal(found, torch.stack([(maps[0, 0] + maps[0, 2]) / 2, maps[0, 1]]).unsqueeze(0))


def test_prototypes_learn_what_noise_hides():
    generator = torch.Generator().manual_seed(3)
    base = torch.randint(0, 256, (12, 1, *SIZE), generator=generator)
    noise = torch.randint(0, 256, (12, 20, *SIZE), generator=generator)
    pictures = ((base + noise) // 2).to(torch.uint8)
    source = ImageEpisodes({"train": pictures[:8], "test": pictures[8:]}, ways=4, shots=1, queries=4)
    torch.manual_seed(0)
    method = Prototypical(embedding(), CLASSIFICATION, training_ways=8)
    learner = FewShotLearner(source, method, num_tasks=1)
    test = learner.sample(100, "test")
    lines = [learner.step() for _ in range(60)]
    assert np.mean([line["loss"] for line in lines[-10:]]) < 0.9 * np.mean([line["loss"] for line in lines[:10]])
    assert learner.metric(test, 0).mean() > 0.4


def test_episodes_of_other_kinds_are_refused_where_images_are_needed():
    for method in (
        Siamese(MLP((4, 2)), CLASSIFICATION, comparison=nn.Linear(2, 1)),
        Prototypical(MLP((4, 2)), CLASSIFICATION, training_ways=8),
    ):
        with pytest.raises(ValueError, match="task_distribution"):
            method.training_tasks(Sine())
