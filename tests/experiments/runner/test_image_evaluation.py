"""What a picture of predictions marks, and what accuracy is measured with other shots and ways."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from metarl.experiments.runner import image_evaluation
from metarl.experiments.runner.image_evaluation import ImageEvaluation, accuracy_curves, draw_curves, draw_predictions
from metarl.few_shot.criteria import CLASSIFICATION
from metarl.few_shot.evaluation import evaluate
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.methods.centroids import Prototypical
from metarl.few_shot.methods.sequences import ShuffledEpisodes
from metarl.few_shot.tasks import Examples, ImageEpisodes


class Brightness(torch.nn.Module):
    """An embedding that is an image's mean."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.scale * images.flatten(1).mean(dim=1, keepdim=True)


def shades(classes=6, examples=7):
    """Classes of one shade of grey each, (classes, examples, 8, 8, 1), which cannot be mistaken."""
    levels = torch.arange(classes, dtype=torch.uint8).view(-1, 1, 1, 1, 1) * 40
    return levels.expand(classes, examples, 8, 8, 1).contiguous()


@pytest.fixture(scope="module")
def learner():
    images = {"train": shades(), "test": shades()}
    method = Prototypical(Brightness(), CLASSIFICATION, batch_norm="running")
    return FewShotLearner(ImageEpisodes(images, 3, 2, 2), method, num_tasks=1)


def of(learner, **changes):
    return ImageEvaluation(**{**vars(evaluate(learner, 4, 0)), "curves": {}, **changes})


def test_curves_go_as_far_as_the_images_do(learner):
    curves = accuracy_curves(learner, 3, any_ways=True)
    assert curves["shots"].counts == (1, 2, 3, 5)  # of seven images, two are queries
    assert curves["ways"].counts == (2, 3, 5)  # of six classes
    assert all(curve.mean == (1.0,) * len(curve.counts) for curve in curves.values())
    recorded = of(learner, curves=curves).to_json()["curves"]
    assert recorded["ways"] == {"counts": [2, 3, 5], "mean": [1.0] * 3, "standard_error": [0.0] * 3}
    assert "curves" not in of(learner).to_json()
    panels = draw_curves(of(learner, curves=curves)).axes
    assert [axes.get_xlabel() for axes in panels] == ["shots (3 ways)", "ways (2 shots)"]
    assert panels[1].lines[-1].get_ydata().tolist() == [1 / 2, 1 / 3, 1 / 5]


def test_a_method_of_fixed_ways_has_a_curve_of_shots_alone(learner):
    curves = accuracy_curves(learner, 3, any_ways=False)
    assert {name: curve.counts for name, curve in curves.items()} == {"shots": (1, 2, 3, 5)}
    [panel] = draw_curves(of(learner, curves=curves)).axes
    assert panel.get_xlabel() == "shots (3 ways)"


def test_tasks_of_a_curve_are_of_the_learners_own_kind(learner, monkeypatch):
    seen = []

    def metric(self, tasks, inner_steps, statistics=None, first_task=0):
        seen.append(tasks.support.targets)
        return torch.zeros(1, len(tasks))

    monkeypatch.setattr(FewShotLearner, "metric", metric)
    shuffled = replace(learner, task_distribution=ShuffledEpisodes({"test": shades(), "train": shades()}, 3, 2, 2))
    for made, in_order in ((learner, True), (shuffled, False)):
        seen.clear()
        accuracy_curves(made, 12, any_ways=True)
        assert len(seen) == 2 * 7
        assert all(torch.equal(targets, targets.sort(dim=1).values) for targets in seen) == in_order


def test_points_of_a_curve_are_of_tasks_of_their_own(learner, monkeypatch):
    seen = []

    def metric(self, tasks, inner_steps, statistics=None, first_task=0):
        seen.append((tasks.support.targets.shape[1], tasks.query.targets.shape[1], len(tasks), first_task))
        return torch.zeros(1, len(tasks))

    monkeypatch.setattr(FewShotLearner, "metric", metric)
    accuracy_curves(learner, 12, any_ways=True)
    assert seen[:2] == [(3, 6, 10, 0), (3, 6, 2, 10)]
    assert len(seen) == 2 * 7


def test_wrong_predictions_are_marked_with_the_class_they_were_taken_for(learner):
    evaluation = of(learner)
    query = evaluation.tasks.query
    swapped = query.targets.clone()
    swapped[0, :2] = 1  # images of class 0, said to be of class 1
    wrong = of(learner, tasks=type(evaluation.tasks)(evaluation.tasks.support, Examples(query.inputs, swapped)))
    for drawn, titles, marks in (
        (draw_predictions(evaluation), "task 0: 6 of 6 right", []),
        (draw_predictions(wrong), "task 0: 4 of 6 right", ["0", "0"]),
    ):
        axes = drawn.axes[0]
        assert axes.get_title() == titles
        assert [text.get_text() for text in axes.texts] == marks
        canvas = axes.images[0].get_array()
        red = (np.abs(canvas - image_evaluation._WRONG).max(axis=2) < 0.01).any()
        assert red == bool(marks)
    assert len(drawn.axes) == 3  # tasks for which there is room
    assert [label.get_text() for label in axes.get_yticklabels()] == ["class 0", "class 1", "class 2"]


def test_a_picture_shows_each_image_in_the_row_of_its_class(learner):
    axes = draw_predictions(of(learner)).axes[0]
    canvas, tasks = np.asarray(axes.images[0].get_array()), of(learner).tasks
    side = canvas.shape[0] // 3
    assert canvas.shape == (3 * side, 5 * side, 3)  # two support images, a gap, two queries
    middles = canvas[side // 2 :: side, side // 2 :: side, 0]
    shade = tasks.support.inputs[0, ::2, 0, 0, 0].numpy()
    np.testing.assert_allclose(middles, np.stack([shade, shade, np.ones(3), shade, shade], axis=1), atol=1e-6)
