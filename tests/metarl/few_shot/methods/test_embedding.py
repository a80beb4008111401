"""What holds for every method that embeds: symmetries, independence, gradients, batch norm's statistics."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from metarl.core.parameters import expand_over_tasks, ravel, unravel
from metarl.core.randomness import keyed_generator
from metarl.few_shot.criteria import CLASSIFICATION, accuracy
from metarl.few_shot.evaluation import evaluate
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.method import Method
from metarl.few_shot.methods.centroids import Prototypical
from metarl.few_shot.methods.embedding import class_logsumexp, negative_squared_distances, one_hot
from metarl.few_shot.methods.sequences import ShuffledEpisodes
from metarl.few_shot.networks import MLP
from metarl.few_shot.normalisation import observed
from metarl.few_shot.tasks import Examples, ImageEpisodes
from tests.metarl.few_shot.embedding_methods import (
    CLASSES,
    LEARNED_OUTPUTS,
    MAKERS,
    MODES,
    ORDERED,
    SIZE,
    fresh,
    make,
    outputs,
    scheduled,
    tasks,
    training_tasks,
)
from tests.metarl.few_shot.learners import images

every = pytest.mark.parametrize("name", MAKERS)
everywhere = pytest.mark.parametrize("batch_norm", MODES)


def is_frozen(name, key):
    """Whether a parameter is frozen, so that its gradient is 0 although the loss depends on it."""
    return name == "mtl" and not key.startswith(("meta_", "task_head."))


@every
@everywhere
def test_the_order_of_the_support_has_no_part(name, batch_norm):
    method, theta = make(name, batch_norm)
    drawn = tasks()
    order = torch.randperm(drawn.support.targets.shape[1])
    permuted = Examples(*(tensor[:, order] for tensor in drawn.support.tensors))
    found, expected = (outputs(method, theta, of, drawn.query.inputs) for of in (permuted, drawn.support))
    assert torch.allclose(found, expected) != (name in ORDERED)


@every
def test_permuted_labels_permute_log_probabilities(name):
    method, theta = make(name)
    drawn, order = tasks(), torch.tensor([2, 0, 1])
    renamed = Examples(drawn.support.inputs, order[drawn.support.targets])
    found, expected = (outputs(method, theta, of, drawn.query.inputs) for of in (renamed, drawn.support))
    assert torch.allclose(found[:, :, order], expected) != (name in LEARNED_OUTPUTS)
    assert not torch.allclose(found, expected, rtol=1e-7, atol=1e-7)


@every
@everywhere
def test_no_query_depends_on_another_but_with_statistics_of_the_batch(name, batch_norm):
    method, theta = make(name, batch_norm)
    drawn = tasks()
    together = outputs(method, theta, drawn.support, drawn.query.inputs)
    alone = outputs(method, theta, drawn.support, drawn.query.inputs[:, :1])
    assert torch.allclose(alone, together[:, :1]) != (batch_norm == "batch")


@every
@everywhere
def test_all_tasks_at_once_equal_one_by_one(name, batch_norm):
    method, theta = make(name, batch_norm)
    drawn = tasks()
    together = outputs(method, theta, drawn.support, drawn.query.inputs)
    for task in range(3):
        one = drawn.of_tasks(slice(task, task + 1))
        torch.testing.assert_close(outputs(method, theta, one.support, one.query.inputs), together[task : task + 1])
    training = training_tasks(name)
    schedule = scheduled(method)
    whole, losses, metrics = method.gradient(expand_over_tasks(theta, 3), training, schedule)
    ones = [training.of_tasks(slice(task, task + 1)) for task in range(3)]
    parts = [method.gradient(expand_over_tasks(theta, 1), one, schedule) for one in ones]
    torch.testing.assert_close(losses, torch.cat([loss for _, loss, _ in parts]))
    torch.testing.assert_close(metrics, torch.cat([metric for _, _, metric in parts]))
    for key, value in whole.items():
        torch.testing.assert_close(value, sum(gradient[key] for gradient, _, _ in parts))


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "memory-module"])  # whose keys have no gradient
@everywhere
def test_the_gradient_is_the_derivative_of_the_summed_loss(name, batch_norm):
    method, theta = make(name, batch_norm)
    drawn, averages, schedule = training_tasks(name), method.averages, scheduled(method)
    gradients, _, _ = method.gradient(expand_over_tasks(theta, 3), drawn, schedule)
    learned = {key: value for key, value in theta.items() if key not in averages and not is_frozen(name, key)}
    gradient = ravel([gradients[key][0] for key in learned])

    def loss(vector):
        moved = {**theta, **unravel(vector, learned)}
        with torch.no_grad():
            return method.loss(expand_over_tasks(moved, 3), drawn, schedule)[0].sum()

    point = ravel(list(learned.values()))
    for direction in torch.randn(4, len(point), dtype=torch.float64).unbind():
        step = 3e-8 * direction  # so small that no maximum and no ReLU changes sides
        slope = (loss(point + step) - loss(point - step)) / 6e-8
        torch.testing.assert_close(gradient @ direction, slope, rtol=1e-5, atol=1e-6)
    rows, _, _ = Method.gradient(
        method, {k: v.requires_grad_() for k, v in expand_over_tasks(theta, 3).items()}, drawn, schedule
    )
    for key in learned:
        torch.testing.assert_close(rows[key].sum(dim=0), gradients[key][0])


@every
def test_any_number_of_ways_and_shots(name):
    for ways, shots in ((2, 1), (5, 3), (9, 2)):
        method, theta = make(name, ways=ways)
        drawn = tasks(2, ways, shots)
        found = outputs(method, theta, drawn.support, drawn.query.inputs)
        assert found.shape == (2, 2 * ways, ways)
        torch.testing.assert_close(found.exp().sum(dim=2), torch.ones_like(found[:, :, 0]))  # log-probabilities


@every
def test_the_criterion_is_minus_the_log_probability_of_the_class(name):
    method, theta = make(name)
    drawn = tasks()
    found = outputs(method, theta, drawn.support, drawn.query.inputs)
    chosen = found.gather(2, drawn.query.targets.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(method.criterion.loss(found, drawn.query.targets), -chosen.mean(dim=1))


@every
def test_an_untrained_network_knows_nothing_of_images_of_noise(name):
    method, theta = make(name, ways=5)
    drawn = tasks(300, ways=5, shots=2, queries=3, ordered=name not in ORDERED)
    right = accuracy(outputs(method, theta, drawn.support, drawn.query.inputs), drawn.query.targets)
    error = right.std() / len(right) ** 0.5
    assert abs(right.mean() - 1 / 5) <= 3.5 * error + 1e-12


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in ORDERED])
def test_what_is_shown_twice_counts_once(name):
    """So that another number of shots than in training is nothing new to a method."""
    method, theta = make(name, ways=3)
    drawn = tasks(2, ways=3, ordered=True)
    twice = drawn.support.joined(drawn.support)
    found, expected = (outputs(method, theta, support, drawn.query.inputs) for support in (twice, drawn.support))
    torch.testing.assert_close(found, expected)


@every
def test_a_method_that_sees_no_difference_scores_by_chance(name):
    method, theta = make(name, ways=4)
    drawn = tasks(3, ways=4)
    blank = torch.ones_like(drawn.support.inputs)
    for targets in (drawn.query.targets, drawn.query.targets.sort(dim=1).values):
        found = outputs(method, theta, Examples(blank, drawn.support.targets), torch.ones_like(drawn.query.inputs))
        if name not in ("matching-fce", *LEARNED_OUTPUTS):  # the first of which sees the order of the support images
            torch.testing.assert_close(found.exp(), torch.full_like(found, 1 / 4))
        torch.testing.assert_close(accuracy(found, targets), torch.full((3,), 1 / 4, dtype=torch.float64))


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "mtl"])  # which has frozen them
def test_running_averages_move_by_a_tenth_towards_the_training_batch(name):
    method, theta = make(name)
    drawn, averages = training_tasks(name), method.averages
    rows = {key: value.requires_grad_() for key, value in expand_over_tasks(theta, 3).items()}
    gradients, _, _ = method.gradient(rows, drawn, scheduled(method))
    assert not any(value.requires_grad for value in gradients.values())
    moved = {key: theta[key] - 0.1 / 3 * gradients[key][0] for key in averages}
    first = method.module.blocks[0]
    pictures = torch.cat([drawn.support.inputs, drawn.query.inputs], dim=1)
    seen = torch.nn.functional.conv2d(
        pictures.flatten(0, 1).permute(0, 3, 1, 2), theta["blocks.0.weight"], padding=first.padding
    ).unflatten(0, pictures.shape[:2])  # (M, N, F, H, W)
    mean = seen.mean(dim=(1, 3, 4)).mean(dim=0)
    variance = seen.var(dim=(1, 3, 4), correction=0).mean(dim=0)
    torch.testing.assert_close(moved["blocks.0.norm.mean"], 0.9 * theta["blocks.0.norm.mean"] + 0.1 * mean)
    torch.testing.assert_close(moved["blocks.0.norm.variance"], 0.9 * theta["blocks.0.norm.variance"] + 0.1 * variance)
    norms = sum(1 for part in method.parts.values() for key in part.state_dict() if key.endswith("norm.scale"))
    assert len(averages) == 2 * norms + (name == "simple-shot")


@everywhere
def test_statistics_are_used_as_their_name_says(batch_norm):
    method, theta = make("matching", batch_norm)
    drawn = tasks(1)
    rows = expand_over_tasks(theta, 1)
    state = method.adapt(rows, drawn.support)
    found, _ = method.apply("", theta, (drawn.query.inputs,), method.statistics(theta, state))
    learned = {key: value for key, value in theta.items() if key not in method.averages}
    fixed = {}
    if batch_norm == "running":
        fixed = {key: theta[key] for key in method.averages}
    if batch_norm == "support":
        with observed(method.module) as seen:
            functional_call(method.module, learned, (drawn.support.inputs[0],))
        for key, [moments] in seen.items():
            fixed |= {f"{key}.mean": moments.mean, f"{key}.variance": moments.variance}
    assert len(fixed) == (0 if batch_norm == "batch" else 8)
    torch.testing.assert_close(found[0], functional_call(method.module, {**learned, **fixed}, (drawn.query.inputs[0],)))
    joined, _ = method.apply("", learned, (drawn.support.joined(drawn.query).inputs,), {})
    shots = drawn.support.targets.shape[1]
    if batch_norm == "running":  # training normalises support and query images together
        expected = method.compare(
            theta, method.learn(theta, joined[:, :shots], one_hot(drawn.support.targets)), joined[:, shots:]
        )
    else:  # training is what is done afterwards
        expected = outputs(method, theta, drawn.support, drawn.query.inputs)
    torch.testing.assert_close(method.loss(rows, drawn, {})[0], method.criterion.loss(expected, drawn.query.targets))


def test_support_images_as_queries_are_embedded_as_the_support():
    for batch_norm in MODES:
        method, theta = make("matching", batch_norm)
        drawn = tasks(2, shots=1)
        rows = expand_over_tasks(theta, 2)
        state = method.adapt(rows, drawn.support)
        features, _ = method.apply("", theta, (drawn.support.inputs,), method.statistics(theta, state))
        torch.testing.assert_close(features, state["features"])


@pytest.mark.parametrize("batch_norm", ["support", "batch"])
def test_other_networks_of_ours_will_do(batch_norm):
    module = MLP((16 * 16, 8, 4), normalised=True)
    method, theta = make("prototypical", batch_norm, module)
    drawn = tasks()
    together = outputs(method, theta, drawn.support, drawn.query.inputs)
    alone = outputs(method, theta, drawn.support, drawn.query.inputs[:, :1])
    assert torch.allclose(alone, together[:, :1]) == (batch_norm == "support")
    method.gradient(expand_over_tasks(theta, 3), drawn, {})


def test_torchs_batch_norm_is_refused_unless_it_uses_the_batch_at_hand():
    module = nn.Sequential(nn.Flatten(), nn.Linear(256, 4), nn.BatchNorm1d(4, track_running_stats=False))
    Prototypical(module, CLASSIFICATION, batch_norm="batch")
    with pytest.raises(ValueError, match=r"batch_norm = 'running'.* 2 "):
        Prototypical(module, CLASSIFICATION)


@pytest.mark.parametrize(("name", "value"), [("batch_norm", "eval"), ("training_ways", 1)])
def test_a_setting_out_of_bounds_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} = {value!r}"):
        Prototypical(MLP((4, 2)), CLASSIFICATION, **{name: value})


def test_training_episodes_are_wider_than_those_of_the_test():
    source = ImageEpisodes({"train": images(classes=9), "test": images()}, ways=3, shots=2, queries=2)
    method = Prototypical(MLP((64, 4)), CLASSIFICATION, training_ways=8)
    drawn = method.training_tasks(source).sample(2, "train", keyed_generator(0, "wide"))
    assert drawn.support.targets.shape == (2, 16)
    assert drawn.query.targets.shape == (2, 16)
    assert drawn.query.targets.max() == 7
    assert Prototypical(MLP((64, 4)), CLASSIFICATION).training_tasks(source) is source
    with pytest.raises(ValueError, match="10 ways of 9 train"):
        Prototypical(MLP((64, 4)), CLASSIFICATION, training_ways=10).training_tasks(source)


def test_a_class_without_support_is_refused():
    with pytest.raises(ValueError, match=r"task 1 .* class 1"):
        one_hot(torch.tensor([[0, 1, 2], [0, 0, 2]]))
    with pytest.raises(ValueError, match="float64"):
        one_hot(torch.zeros(2, 3, dtype=torch.float64))
    assert one_hot(torch.tensor([[1, 0, 1]])).tolist() == [[[False, True], [True, False], [False, True]]]


def test_distances_and_sums_over_classes():
    torch.manual_seed(0)
    features, others = torch.randn(2, 4, 3), torch.randn(2, 5, 3)
    found = negative_squared_distances(features, others) - features.square().sum(dim=2, keepdim=True)
    torch.testing.assert_close(found, -torch.cdist(features, others).square(), rtol=1e-4, atol=1e-4)
    members = one_hot(torch.tensor([[0, 1, 1, 2, 0], [2, 2, 1, 1, 0]]))
    scores = torch.randn(2, 4, 5)
    expected = (scores.exp() @ members.float()).log()
    torch.testing.assert_close(class_logsumexp(scores, members), expected)
    far = class_logsumexp(scores - torch.tensor([0.0, 500, 500, 900, 0]), members)
    assert far.isfinite().all()
    assert far[0].max(dim=1).values.min() > -10


@pytest.mark.parametrize(
    "name",
    [
        "prototypical",
        "simple-shot",
        "siamese",
        "relation",
        "mtl",
        "mtl-pretraining",
        "snail",
        "memory-module",
        "statistician",
    ],
)
def test_learners_train_resume_and_evaluate(name):
    generator = torch.Generator().manual_seed(3)
    base = torch.randint(0, 256, (CLASSES, 1, *SIZE), generator=generator)
    noise = torch.randint(0, 256, (CLASSES, 8, *SIZE), generator=generator)
    pictures = ((base + noise) // 2).to(torch.uint8)
    kind = ShuffledEpisodes if name in ORDERED else ImageEpisodes
    source = kind({"train": pictures, "test": pictures}, ways=3, shots=1, queries=2)

    def learner():
        return FewShotLearner(source, fresh(name, dtype=torch.float32), num_tasks=2)

    straight, first, second = learner(), learner(), learner()
    start = straight.theta
    drawn = straight._training_tasks.sample(2, "train", keyed_generator(0, "train/few_shot", 0))
    gradient, _, _ = straight.meta_gradient(drawn)
    unbroken = [straight.step()]
    for key in straight.method.averages:
        torch.testing.assert_close(straight.theta[key], start[key] - 0.1 * gradient[key])
    unbroken += [straight.step() for _ in range(3)]
    assert not any(value.requires_grad for value in straight.theta.values())  # a graph would grow with every iteration
    lines = [first.step() for _ in range(2)]
    second.load_state_dict(first.state_dict())
    assert lines + [second.step() for _ in range(2)] == unbroken
    assert all(torch.equal(second.theta[key], value) for key, value in straight.theta.items())
    found = evaluate(straight, 30, 0)
    assert found.per_task.shape == (1, 30)
    assert set(straight.state.adam["mean"]) == set(straight.theta) - set(straight.method.averages)
