"""Relation networks against their equations, task by task."""

import torch
import torch.nn.functional as F
from torch.func import functional_call

from metarl.core.parameters import expand_over_tasks
from tests.metarl.few_shot.embedding_methods import (
    make,
    tasks,
)


def test_relations_are_of_means_and_training_minimises_their_squared_error():
    method, theta = make("relation", "batch")
    rows, drawn = expand_over_tasks(theta, 3), tasks(shots=3)
    loss, metric = method.loss(rows, drawn, {})
    with torch.no_grad():
        found = method.predict(rows, method.adapt(rows, drawn.support), drawn.query.inputs)
    relation = {k.removeprefix("relation."): v for k, v in theta.items() if k.startswith("relation.")}
    embed = {k: v for k, v in theta.items() if not k.startswith("relation.")}
    for task in range(3):
        support, query = (  # two passes, as the authors' code: each with statistics of its own
            functional_call(method.module, embed, (of.inputs[task],)) for of in (drawn.support, drawn.query)
        )
        labels = drawn.support.targets[task]
        maps = torch.stack([support[labels == label].mean(dim=0) for label in range(3)])
        r = functional_call(method.relation, relation, (maps, query)).sigmoid()
        wanted = F.one_hot(drawn.query.targets[task], 3)
        torch.testing.assert_close(loss[task], ((r - wanted) ** 2).mean())
        torch.testing.assert_close(found[task].exp(), r / r.sum(dim=1, keepdim=True))
        right = (r.argmax(dim=1) == drawn.query.targets[task]).double().mean()
        assert metric[task] == right


def test_in_evaluation_relations_depend_on_no_other_query_and_statistics_are_no_last_batch():
    method, theta = make("relation")
    rows, drawn = expand_over_tasks(theta, 3), tasks()
    state = method.adapt(rows, drawn.support)
    together = method.predict(rows, state, drawn.query.inputs)
    torch.testing.assert_close(method.predict(rows, state, drawn.query.inputs[:, :1]), together[:, :1])
    gradients, _, _ = method.gradient(rows, drawn, {})
    for key in method.averages:
        moved = theta[key] - gradients[key][0] / 3
        assert not torch.allclose(0.9 * theta[key] + 0.1 * moved, moved, rtol=1e-3), key
