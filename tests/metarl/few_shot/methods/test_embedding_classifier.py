"""Classifiers of all training classes, from embeddings: batches, loss, and no support in training."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from metarl.core.parameters import expand_over_tasks
from metarl.few_shot.criteria import CLASSIFICATION
from metarl.few_shot.methods.centroids import SimpleShot
from metarl.few_shot.methods.meta_transfer import MetaTransfer
from metarl.few_shot.tasks import ImageEpisodes, Sine
from tests.metarl.few_shot.embedding_methods import BATCHES, CLASSES, embedding, make, numbered, training_tasks


@pytest.mark.parametrize("name", BATCHES)
def test_training_is_plain_classification_of_batches(name):
    method, theta = make(name)
    source = method.training_tasks(ImageEpisodes({"train": numbered()}, 3, 1, 1))
    assert (source.ways, source.size) == (CLASSES, 10)
    drawn = training_tasks(name, 2)
    rows = expand_over_tasks(theta, 2)
    assert method.adapt(rows, drawn.support) == {}
    _, loss, metric = method.gradient(rows, drawn, {})
    learned = {name: theta[name] for name, _ in method.module.named_parameters()}
    for task in range(2):
        found = functional_call(method.module, learned, (drawn.query.inputs[task],))
        logits = found @ theta["classifier.weight"].T + theta["classifier.bias"]
        torch.testing.assert_close(loss[task], F.cross_entropy(logits, drawn.query.targets[task]))
        assert metric[task] == (logits.argmax(dim=1) == drawn.query.targets[task]).double().mean()
    assert method.predict(rows, {}, drawn.query.inputs).shape[2] == CLASSES


@pytest.mark.parametrize(
    "make_one",
    [
        lambda: SimpleShot(embedding(), CLASSIFICATION, head=nn.Linear(4, 6)),
        lambda: MetaTransfer(embedding(), CLASSIFICATION, head=nn.Linear(4, 6), task_head=nn.Linear(4, 3)),
    ],
)
def test_tasks_without_images_are_refused(make_one):
    with pytest.raises(ValueError, match="task_distribution"):
        make_one().training_tasks(Sine())


def test_layers_of_the_embedding_must_not_be_named_as_a_part_of_the_method():
    module = torch.nn.Sequential()
    module.add_module("classifier", torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"module = 'classifier\.weight'; allowed: another name"):
        SimpleShot(module, CLASSIFICATION, head=torch.nn.Linear(3, 3))
