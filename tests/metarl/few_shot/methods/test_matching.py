"""Matching networks against their equations, query by query, without and with full context embeddings."""

import math

import pytest
import torch
from torch import nn

from metarl.core.parameters import expand_over_tasks
from metarl.few_shot.criteria import CLASSIFICATION
from metarl.few_shot.methods.embedding import one_hot
from metarl.few_shot.methods.matching import ContextEmbeddings, Matching
from tests.metarl.few_shot.embedding_methods import (
    FILTERS,
    embedding,
    features,
    make,
    predicted,
    tasks,
)


@pytest.mark.parametrize("batch_norm", ["running", "support", "batch"])
def test_matching_with_squared_distances_and_one_shot_is_prototypical(batch_norm):
    drawn = tasks(shots=1)
    found = []
    for name in ("matching", "prototypical"):
        method, theta = make(name, batch_norm)
        rows = expand_over_tasks(theta, 3)
        found.append(method.predict(rows, method.adapt(rows, drawn.support), drawn.query.inputs))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(("distance", "scale"), [("squared", 1.0), ("squared", 0.3), ("cosine", 1.0), ("cosine", 10.0)])
def test_matching_is_attention_over_all_support_images(distance, scale):
    method = Matching(embedding(), CLASSIFICATION, distance=distance, scale=scale)
    support, targets, query = features()
    found = predicted(method, {}, support, targets, query)
    for number, z in enumerate(query[0]):
        if distance == "cosine":
            scores = [z @ x / math.sqrt((z @ z) * (x @ x)) for x in support[0]]
        else:
            scores = [-((z - x) @ (z - x)) for x in support[0]]
        attention = (scale * torch.stack(scores)).softmax(dim=0)
        for label in range(3):
            torch.testing.assert_close(found[number, label].exp(), attention[targets[0] == label].sum())


def test_the_cosine_is_of_both_and_without_a_scale_probabilities_are_bounded():
    support, targets, query = features()
    method = Matching(embedding(), CLASSIFICATION, distance="cosine", scale=10.0)
    plain = predicted(method, {}, support, targets, query)
    torch.testing.assert_close(predicted(method, {}, support, targets, 3 * query), plain)
    torch.testing.assert_close(predicted(method, {}, 5 * support, targets, query), plain)
    for ways, bound in ((5, 0.405), (20, 0.125)):
        corners = torch.eye(ways, dtype=torch.float64).unsqueeze(0)
        unscaled = Matching(embedding(), CLASSIFICATION, distance="cosine")
        certain = predicted(unscaled, {}, corners, torch.arange(ways).unsqueeze(0), corners)
        assert certain.diagonal().exp().max() == pytest.approx(bound, abs=5e-4)


def test_matching_stays_finite_far_from_everything():
    support, targets, query = (part.float() if part.is_floating_point() else part for part in features())
    found = predicted(Matching(embedding(), CLASSIFICATION), {}, support, targets, 1e4 * query)
    assert found.isfinite().all()


def test_full_context_embeddings_are_their_equations():
    torch.manual_seed(0)
    context = ContextEmbeddings(FILTERS, reads=3).double()
    support, _, query = features()
    g = context(support)
    reference = {}
    for direction, steps in (("", range(7)), ("_reverse", reversed(range(7)))):
        weights = {k: v for k, v in context.support.named_parameters() if k.endswith("_l0" + direction)}
        cell = nn.LSTMCell(FILTERS, FILTERS).double()
        cell.load_state_dict({k.removesuffix("_l0" + direction): v for k, v in weights.items()})
        state = (torch.zeros(FILTERS).double(), torch.zeros(FILTERS).double())
        for step in steps:
            state = cell(support[0, step], state)
            reference[step] = reference.get(step, support[0, step]) + state[0]
    torch.testing.assert_close(g[0], torch.stack([reference[step] for step in range(7)]))
    found = context(g, query)
    for number, z in enumerate(query[0]):
        h, c, r = torch.zeros_like(z), torch.zeros_like(z), g[0].mean(dim=0)
        for _ in range(3):
            h, c = context.query(torch.cat([z, r]), (h, c))
            h = h + z
            r = (g[0] @ h).softmax(dim=0) @ g[0]
        torch.testing.assert_close(found[0, number], h)
    assert torch.equal(context(g, query), found)  # its first states are zeros, not random


def test_full_context_sees_the_other_support_images_but_no_other_query():
    method, theta = make("matching-fce")
    support, targets, query = features()
    plain = predicted(method, theta, support, targets, query)
    changed = support.clone()
    changed[0, -1] += 1
    state, moved = (method.learn(theta, of, one_hot(targets)) for of in (support, changed))
    assert not torch.allclose(state["features"][0, 0], moved["features"][0, 0])
    torch.testing.assert_close(predicted(method, theta, support, targets, query[:, 2:3]), plain[2:3])
