"""R2-D2 against its equations, and ridge regression against its objective."""

import math

import numpy as np
import pytest
import torch

from metarl.few_shot.criteria import CLASSIFICATION
from metarl.few_shot.methods.ridge import RidgeRegression, ridge_weights
from tests.metarl.few_shot.embedding_methods import (
    embedding,
    features,
    make,
    predicted,
)


@pytest.mark.parametrize("count", [3, 5, 9])  # fewer, as many and more than F + 1
def test_ridge_regression_is_the_least_of_its_objective(count):
    torch.manual_seed(count)
    z, y = torch.randn(2, count, 5, dtype=torch.float64), torch.randn(2, count, 3, dtype=torch.float64)
    weights = ridge_weights(z, y, 0.7).requires_grad_()
    (((z @ weights - y) ** 2).sum() / count + 0.7 * (weights**2).sum()).backward()
    torch.testing.assert_close(weights.grad, torch.zeros_like(weights))


def test_r2d2_is_its_equation():
    method, theta = make("r2-d2")
    support, targets, query = features()
    found = predicted(method, theta, support, targets, query)
    z = np.hstack([support[0].numpy(), np.ones((7, 1))]) / math.sqrt(7)
    y = np.eye(3)[targets[0].numpy()] / math.sqrt(7)
    weights = z.T @ np.linalg.inv(z @ z.T + 0.5 * np.eye(7)) @ y
    logits = theta["ridge.scale"].item() * np.hstack([query[0].numpy(), np.ones((5, 1))]) @ weights
    torch.testing.assert_close(found, torch.from_numpy(logits).log_softmax(dim=1))
    initial = RidgeRegression(embedding(), CLASSIFICATION).meta_parameters()["ridge.scale"]
    assert initial.item() == 10
