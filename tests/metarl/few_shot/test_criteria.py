"""Losses and metrics of tasks, by hand."""

import copy

import pytest
import torch

from metarl.few_shot.criteria import (
    CLASSIFICATION,
    REGRESSION,
    Criterion,
    accuracy,
    cross_entropy,
    nearest_neighbour,
    squared_error,
)


def test_cross_entropy_is_the_mean_over_examples_of_each_task():
    outputs, targets = torch.randn(2, 4, 3), torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1]])
    expected = [-outputs[m, range(4), targets[m]].sub(outputs[m].logsumexp(1)).mean() for m in range(2)]
    torch.testing.assert_close(cross_entropy(outputs, targets), torch.stack(expected))


def test_squared_error_is_the_mean_over_all_numbers_of_each_task():
    outputs, targets = torch.zeros(2, 2, 1), torch.tensor([[[1.0], [3.0]], [[2.0], [0.0]]])
    assert squared_error(outputs, targets).tolist() == [5, 2]
    with pytest.raises(ValueError, match="must be alike"):
        squared_error(outputs, targets[:, :, 0])


def test_accuracy_is_the_share_of_the_largest_logits():
    outputs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[3.0, 2.0], [5.0, 4.0]]])
    assert accuracy(outputs, torch.tensor([[0, 1], [0, 1]])).tolist() == [1, 0.5]


def test_a_criterion_gives_loss_and_metric_and_no_graph_for_the_metric():
    outputs = torch.randn(2, 3, 4, requires_grad=True)
    loss, metric = CLASSIFICATION(outputs, torch.zeros(2, 3, dtype=torch.long))
    assert loss.requires_grad
    assert not metric.requires_grad
    assert CLASSIFICATION.higher_is_better
    assert not REGRESSION.higher_is_better


def test_the_nearest_neighbour_gives_the_class():
    support = torch.tensor([[[0.0, 0.0], [3.0, 0.0]], [[1.0, 1.0], [0.0, 5.0]]])
    query = torch.tensor([[[1.0, 1.0], [2.0, 0.0]], [[0.0, 4.0], [0.0, 0.0]]])
    assert nearest_neighbour(support, torch.tensor([[4, 7], [1, 2]]), query).tolist() == [[4, 7], [2, 1]]


def test_a_copy_shares_nothing_that_can_change():
    weight = torch.tensor(2.0)

    def loss(outputs, targets, *, scale=1.0):
        return scale * weight * squared_error(outputs, targets)

    criterion = Criterion("weighted", loss, squared_error)
    copied = copy.deepcopy(criterion)
    weight.fill_(5)
    outputs, targets = torch.ones(1, 2, 1), torch.zeros(1, 2, 1)
    assert criterion(outputs, targets)[0].item() == 5
    assert copied(outputs, targets)[0].item() == 2
    assert copy.deepcopy(REGRESSION) == REGRESSION
