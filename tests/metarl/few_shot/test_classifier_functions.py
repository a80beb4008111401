"""Losses of small classifiers as functions: their images, classes and values, and what is refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metarl.core.randomness import keyed_generator
from metarl.few_shot.classifier_functions import CLASSIFIER_LOSS, ClassifierFunctions
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.methods.learned_optimisers import CoordinateLSTM, LearnedOptimiser, TunedOptimiser


def images(classes=4, examples=5, size=8):
    """Each image is full of a number of its own."""
    numbers = torch.arange(classes * examples, dtype=torch.uint8).view(classes, examples, 1, 1, 1)
    return numbers.expand(classes, examples, size, size, 1).contiguous()


def functions(pixels=2, **numbers):
    return ClassifierFunctions({"train": images(), "test": images() + 100}, **{"ways": 3, "shots": 4, **numbers},
                               pixels=pixels)  # fmt: skip


def test_a_function_is_of_images_of_its_own_classes_and_has_no_others_as_queries():
    made = functions()
    drawn = made.sample(2, "test", keyed_generator(0, "functions"))
    assert drawn.query is drawn.support
    assert drawn.support.inputs.shape == (2, 12, made.size)
    assert made.size == 4
    numbers = (drawn.support.inputs[:, :, 0] * 255).round().int()
    assert numbers.min() >= 100
    assert drawn.support.targets.tolist() == [[0] * 4 + [1] * 4 + [2] * 4] * 2
    for task in range(2):
        classes = (numbers[task] - 100) // 5
        assert len(set(classes[::4].tolist())) == 3
        assert torch.equal(classes, classes[::4].repeat_interleave(4))


def test_images_are_averaged():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (1, 2, 4, 4, 1), generator=generator, dtype=torch.uint8)
    made = ClassifierFunctions({"train": pictures}, ways=1, shots=1, pixels=2)
    found = made.sample(1, "train", np.random.default_rng(0)).support.inputs[0, 0]
    blocks = pictures[0].float().view(2, 2, 2, 2, 2).mean(dim=(2, 4)).flatten(1) / 255
    assert min((found - of).abs().max() for of in blocks) < 1e-6


def test_the_metric_is_the_loss_that_is_minimised():
    torch.manual_seed(0)
    outputs, targets = torch.randn(2, 5, 3), torch.randint(0, 3, (2, 5))
    loss, metric = CLASSIFIER_LOSS(outputs, targets)
    torch.testing.assert_close(loss, metric)
    torch.testing.assert_close(loss[1], F.cross_entropy(outputs[1], targets[1]))
    assert not CLASSIFIER_LOSS.higher_is_better


def test_optimisers_descend_it():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 4), nn.Sigmoid(), nn.Linear(4, 3))
    made = functions(pixels=4)
    tuned = TunedOptimiser(module, CLASSIFIER_LOSS, algorithm="adam", step_size=0.1)
    curve = FewShotLearner(made, tuned).metric(made.sample(4, "test", np.random.default_rng(0)), 0)
    assert curve.shape == (1, 4)
    learner = FewShotLearner(made, tuned)
    curve = learner.metric(learner.sample(4, "test"), 60).mean(dim=1)
    assert curve[60] < 0.8 * curve[0]
    lstm = LearnedOptimiser(module, CLASSIFIER_LOSS, 6, 3, optimiser=CoordinateLSTM(3, log_scale=10.0))
    learned = FewShotLearner(made, lstm, num_tasks=2)
    assert learned.step()["cross_entropy/step_6"] == pytest.approx(np.log(3), rel=0.3)


@pytest.mark.parametrize(
    ("numbers", "line"),
    [
        ({"pixels": 0}, "pixels = 0"),
        ({"ways": 9}, "9 ways of 4 train classes"),
        ({"shots": 5}, "5 support and 1 query"),
    ],
)
def test_what_the_images_do_not_allow_is_refused(numbers, line):
    with pytest.raises(ValueError, match=line):
        functions(**numbers)
