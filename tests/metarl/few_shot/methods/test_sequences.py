"""Sequences: their order, the offset of labels, predictions from a copy of the state, accuracy by instance."""

from collections import Counter

import pytest
import torch
from torch import nn

from metarl.core.parameters import expand_over_tasks, ravel, unravel
from metarl.core.randomness import keyed_generator
from metarl.few_shot.criteria import CLASSIFICATION
from metarl.few_shot.evaluation import evaluate
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.methods.memory_networks import LSTMNet, MemoryNet
from metarl.few_shot.methods.sequences import SequenceClassifier, ShuffledEpisodes, instance_numbers
from metarl.few_shot.outer import OuterLoop
from metarl.few_shot.tasks import ImageEpisodes
from tests.metarl.few_shot.embedding_methods import numbered, outputs, tasks
from tests.metarl.few_shot.learners import images

NETS = {
    "mann": lambda ways: MemoryNet((16, 16, 1), ways, hidden=6, memory=(8, 4), reads=2, pixels=4),
    "lstm": lambda ways: LSTMNet((16, 16, 1), ways, hidden=6, pixels=4),
}
every = pytest.mark.parametrize("name", NETS)


def make(name, ways=3):
    torch.manual_seed(0)
    method = SequenceClassifier(NETS[name](ways).double(), CLASSIFICATION)
    theta = {key: value + 0.3 * torch.randn_like(value) for key, value in method.meta_parameters().items()}
    return method, theta


def source(ways=3, shots=2):
    return ShuffledEpisodes({"train": numbered(), "test": numbered()}, ways, shots, 1)


class Echo(nn.Module):
    """Says the previous label, and counts what it has read."""

    ways = 3

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs, previous, state=None):
        count = torch.zeros(len(inputs)) if state is None else state["count"]
        return self.scale * previous, {"count": count + inputs.shape[1]}


def test_support_images_are_in_an_order_of_their_own_in_every_task():
    drawn = source(shots=3).sample(200, "train", keyed_generator(0, "order"))
    labels = drawn.support.targets
    assert (labels.sort(dim=1).values == torch.arange(3).repeat_interleave(3)).all()
    assert len({tuple(row) for row in labels.tolist()}) > 150
    first = Counter(labels[:, 0].tolist())
    assert min(first.values()) > 40  # no class comes first more often than the others
    numbers = (drawn.support.inputs[:, :, 0, 0, 0] * 255).round().long()
    assert len({tuple(row) for row in (numbers // 5).tolist()}) > 150  # nor do all tasks of a batch share their classes
    for task in range(3):  # every image has the label of its class still
        for label in range(3):
            assert len(set((numbers[task][labels[task] == label] // 5).tolist())) == 1
    with_plain = ImageEpisodes(source().images, 3, 3, 1).sample(200, "train", keyed_generator(0, "order"))
    assert torch.equal(with_plain.support.inputs.sum(dim=1), drawn.support.inputs.sum(dim=1))
    assert torch.equal(with_plain.query.inputs, drawn.query.inputs)


def test_labels_come_one_position_late():
    method = SequenceClassifier(Echo(), CLASSIFICATION)
    theta = expand_over_tasks(method.meta_parameters(), 2)
    drawn = source().sample(2, "train", keyed_generator(0, "late"))
    told, _ = method._read({"scale": torch.tensor(1.0)}, drawn.support)
    assert torch.equal(told[:, 0], torch.full((2, 3), 1 / 3).log())  # nothing is told at first
    assert torch.equal(told[:, 1:].argmax(dim=2), drawn.support.targets[:, :-1])
    state = method.adapt(theta, drawn.support)
    assert state["memory"]["count"].tolist() == [6.0, 6.0]
    found = method.predict(theta, state, drawn.query.inputs)
    assert torch.equal(found.argmax(dim=2), drawn.support.targets[:, -1:].expand(2, 3))
    loss, accuracy = method.loss(theta, drawn, {})
    chosen = told.gather(2, drawn.support.targets.unsqueeze(2))
    torch.testing.assert_close(loss, -chosen.mean(dim=(1, 2)))
    same = (drawn.support.targets[:, 1:] == drawn.support.targets[:, :-1]).sum(dim=1)
    torch.testing.assert_close(accuracy, (same + (drawn.support.targets[:, 0] == 0)) / 6)


def test_instances_are_counted_for_every_class():
    assert instance_numbers(torch.tensor([[0, 1, 0, 0, 2, 1]])).tolist() == [[0, 0, 1, 2, 0, 1]]


@every
def test_accuracy_by_instance_is_counted_by_hand(name):
    method, theta = make(name)
    drawn = tasks(4, ways=3, shots=3)
    rows = expand_over_tasks(theta, 4)
    found = method.further_metrics(rows, drawn)
    assert list(found) == ["instance_1", "instance_2", "instance_3"]
    right = method._read(theta, drawn.support)[0].argmax(dim=2) == drawn.support.targets
    for task, labels in enumerate(drawn.support.targets.tolist()):
        hits = {1: [], 2: [], 3: []}
        seen = Counter()
        for position, label in enumerate(labels):
            seen[label] += 1
            hits[seen[label]].append(float(right[task, position]))
        for number, values in hits.items():
            assert found[f"instance_{number}"][task].item() == pytest.approx(sum(values) / len(values))


@every
def test_query_examples_are_read_next_each_from_a_copy_of_the_state(name):
    method, theta = make(name)
    drawn = tasks(3)
    found = outputs(method, theta, drawn.support, drawn.query.inputs)
    torch.testing.assert_close(outputs(method, theta, drawn.support, drawn.query.inputs[:, 2:3]), found[:, 2:3])
    longer = type(drawn.support)(
        torch.cat([drawn.support.inputs, drawn.query.inputs[:, :1]], dim=1),
        torch.cat([drawn.support.targets, drawn.query.targets[:, :1]], dim=1),
    )
    torch.testing.assert_close(method._read(theta, longer)[0][:, -1], found[:, 0])
    torch.testing.assert_close(found.exp().sum(dim=2), torch.ones_like(found[:, :, 0]))


@every
def test_the_order_of_the_support_has_a_part(name):
    method, theta = make(name)
    drawn = tasks()
    turned = type(drawn.support)(drawn.support.inputs.flip(1), drawn.support.targets.flip(1))
    found, expected = (outputs(method, theta, of, drawn.query.inputs) for of in (turned, drawn.support))
    assert not torch.allclose(found, expected)


@every
def test_all_tasks_at_once_equal_one_by_one_and_the_gradient_is_a_derivative(name):
    method, theta = make(name)
    drawn = tasks()
    together = outputs(method, theta, drawn.support, drawn.query.inputs)
    whole, losses, metrics = method.gradient(expand_over_tasks(theta, 3), drawn, {})
    parts = []
    for task in range(3):
        one = drawn.of_tasks(slice(task, task + 1))
        torch.testing.assert_close(outputs(method, theta, one.support, one.query.inputs), together[task : task + 1])
        parts.append(method.gradient(expand_over_tasks(theta, 1), one, {}))
    torch.testing.assert_close(losses, torch.cat([loss for _, loss, _ in parts]))
    torch.testing.assert_close(metrics, torch.cat([metric for _, _, metric in parts]))
    for key, value in whole.items():
        torch.testing.assert_close(value, sum(gradient[key] for gradient, _, _ in parts))
    point, gradient = ravel(list(theta.values())), ravel([whole[key][0] for key in theta])

    def loss(vector):
        with torch.no_grad():
            return method.loss(expand_over_tasks(unravel(vector, theta), 3), drawn, {})[0].sum()

    for direction in torch.randn(3, len(point), dtype=torch.float64):
        slope = (loss(point + 1e-6 * direction) - loss(point - 1e-6 * direction)) / 2e-6
        torch.testing.assert_close(gradient @ direction, slope, rtol=1e-6, atol=1e-7)


@every
def test_an_untrained_network_knows_nothing(name):
    method, theta = make(name, ways=5)
    drawn = tasks(300, ways=5, shots=2, queries=3)
    right = method.criterion.metric(outputs(method, theta, drawn.support, drawn.query.inputs), drawn.query.targets)
    assert abs(right.mean() - 1 / 5) <= 3.5 * right.std() / len(right) ** 0.5


def test_what_cannot_be_is_refused():
    method, theta = make("mann")
    with pytest.raises(ValueError, match="task_distribution = 'ImageEpisodes'"):
        FewShotLearner(ImageEpisodes({"train": images()}, 3, 2, 1), method)
    drawn = tasks(2, ways=4)
    with pytest.raises(ValueError, match="classes 0 to 2"):
        method.adapt(expand_over_tasks(theta, 2), drawn.support)


@every
def test_it_learns_to_bind_labels_resumes_and_is_evaluated(name):
    """Two very different images: the labels, which are new in each task, must be kept with what they belong to."""
    pictures = torch.zeros(2, 6, 16, 16, 1, dtype=torch.uint8)
    pictures[1] = 255
    episodes = ShuffledEpisodes({"train": pictures, "test": pictures}, 2, 3, 1)
    networks = {
        "mann": lambda: MemoryNet((16, 16, 1), 2, hidden=20, memory=(8, 8), reads=1, pixels=1),
        "lstm": lambda: LSTMNet((16, 16, 1), 2, hidden=20, pixels=1),
    }

    def learner():
        torch.manual_seed(0)
        method = SequenceClassifier(networks[name](), CLASSIFICATION)
        return FewShotLearner(episodes, method, num_tasks=32, outer=OuterLoop(0.05))

    first, second = learner(), learner()
    for _ in range(2):
        first.step()
    second.load_state_dict(first.state_dict())
    assert first.step() == second.step()
    for _ in range(117):
        first.step()
    found = evaluate(first, 50, 0).metrics
    assert found["accuracy/instance_1"] == pytest.approx(0.75, abs=0.1)  # a guess, and then the label that is left
    assert found["accuracy/instance_2"] > 0.95
    assert found["accuracy/step_0"] > 0.9
