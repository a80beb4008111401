"""Meta networks: their fast weights by hand, weights of their own for every query, and a gradient with constants."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from metarl.core.parameters import expand_over_tasks, ravel, unravel
from metarl.core.randomness import keyed_generator
from metarl.few_shot.criteria import CLASSIFICATION
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.methods.learned_optimisers import log_and_sign
from metarl.few_shot.methods.meta_networks import AugmentedNet, MetaNetworks, WeightLearners
from metarl.few_shot.methods.sequences import ShuffledEpisodes
from metarl.few_shot.outer import OuterLoop
from metarl.few_shot.tasks import ImageEpisodes
from tests.metarl.few_shot.embedding_methods import SIZE, numbered, outputs, tasks


def make(ways=3):
    torch.manual_seed(0)
    nets = [AugmentedNet(SIZE, ways, filters=3, hidden=4).double() for _ in range(2)]
    method = MetaNetworks(nets[0], CLASSIFICATION, key=nets[1], learners=WeightLearners(5).double())
    theta = {name: value + 0.2 * torch.randn_like(value) for name, value in method.meta_parameters().items()}
    return method, theta


def part(theta, prefix, module):
    return {name: theta[prefix + name] for name, _ in module.named_parameters()}


def plain(slow, fast, images):
    """Logits and comparison of one image (1, H, W, C) with weights of its own, layer by layer."""

    def apply(name, inputs, after):
        return sum(after(inputs @ weights[name]) for weights in (slow, fast) if weights is not None)

    hidden, net = images, AugmentedNet(SIZE, 3, filters=3, hidden=4).double()
    for number, convolution in enumerate(net.convolutions):
        patches = convolution.patches(hidden)
        hidden = apply(
            f"convolutions.{number}.weight", patches, lambda out: F.relu(F.layer_norm(out[0], out.shape[1:]))[None]
        )
    compared = apply("first", hidden.flatten(1), lambda out: out)
    return apply("last", apply("first", hidden.flatten(1), F.relu), lambda out: out)[0], compared[0]


def test_fast_weights_are_made_of_gradients_coordinate_by_coordinate():
    method, theta = make()
    drawn = tasks(2, shots=1)
    rows = expand_over_tasks(theta, 2)
    state = method.adapt(rows, drawn.support)
    slow, key = (part(theta, prefix, net) for prefix, net in (("", method.module), ("key.", method.key)))
    made = part(theta, "learners.", method.learners)
    for task in range(2):
        examples = zip(drawn.support.inputs[task], drawn.support.targets[task], strict=True)
        of_key = []
        for number, (image, label) in enumerate(examples):
            found = []
            for weights in (key, slow):
                own = {name: value.clone().requires_grad_() for name, value in weights.items()}
                F.cross_entropy(plain(own, None, image[None])[0][None], label[None]).backward()
                found.append({name: value.grad for name, value in own.items()})
            of_key.append(found[0])
            for name, kind in (("convolutions.1.weight", "convolutions"), ("first", "linear"), ("last", "linear")):
                hidden = log_and_sign(found[1][name], 7.0)
                for layer in (0, 2, 4):
                    prefix = f"networks.{kind}.{layer}."
                    hidden = hidden @ made[prefix + "weight"].T + made[prefix + "bias"]
                    hidden = F.relu(hidden) if layer < 4 else hidden
                torch.testing.assert_close(state["fast"][name][task, number], hidden.squeeze(-1))
        for name, kind in (("convolutions.0.weight", "convolutions"), ("last", "linear")):
            cell = {n: made[f"cells.{kind}.{n}"] for n, _ in method.learners.cells[kind].named_parameters()}
            memory = None
            for gradients in of_key:  # one support image in each of three parts
                values = log_and_sign(gradients[name], 7.0).flatten(0, 1)
                memory = functional_call(method.learners.cells[kind], cell, (values, memory))
            head = memory[0] @ made[f"heads.{kind}.weight"].T + made[f"heads.{kind}.bias"]
            torch.testing.assert_close(state["key_fast"][name][task], head.view_as(key[name]))


def test_every_query_has_weights_of_its_own_by_attention():
    method, theta = make()
    drawn = tasks(2)
    rows = expand_over_tasks(theta, 2)
    state = method.adapt(rows, drawn.support)
    found = method.predict(rows, state, drawn.query.inputs)
    slow, key = (part(theta, prefix, net) for prefix, net in (("", method.module), ("key.", method.key)))
    for task in range(2):
        of_key = {name: value[task] for name, value in state["key_fast"].items()}
        r = torch.stack([plain(key, of_key, image[None])[1] for image in drawn.support.inputs[task]])
        torch.testing.assert_close(state["keys"][task], r)
        for number, image in enumerate(drawn.query.inputs[task]):
            own = plain(key, of_key, image[None])[1]
            a = F.cosine_similarity(own[None], r).softmax(dim=0)
            fast = {name: torch.tensordot(a, value[task], dims=1) for name, value in state["fast"].items()}
            expected = plain(slow, fast, image[None])[0].log_softmax(dim=0)
            torch.testing.assert_close(found[task, number], expected)


def test_the_support_is_cut_into_at_most_five_parts():
    method, theta = make()
    drawn = tasks(1, shots=4)  # twelve images: parts of 3, 3, 2, 2 and 2
    gradients = [method.example_gradients(prefix, theta, drawn.support) for prefix in ("key.", "")]
    seen = []
    handle = method.learners.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    method.learn(theta, drawn.support.inputs, *gradients)
    handle.remove()
    assert seen[0][1] is True
    assert seen[0][0]["last"].shape == (5, 1, 4, 3)
    torch.testing.assert_close(seen[0][0]["last"][0, 0], gradients[0]["last"][0, :3].mean(dim=0))


def test_all_tasks_at_once_equal_one_by_one_and_no_query_depends_on_another():
    method, theta = make()
    drawn = tasks()
    together = outputs(method, theta, drawn.support, drawn.query.inputs)
    torch.testing.assert_close(outputs(method, theta, drawn.support, drawn.query.inputs[:, :1]), together[:, :1])
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
    torch.testing.assert_close(together.exp().sum(dim=2), torch.ones_like(together[:, :, 0]))


def test_the_gradient_takes_those_of_the_support_as_constants():
    method, theta = make()
    drawn = tasks(2)
    found, _, _ = method.gradient(expand_over_tasks(theta, 2), drawn, {})
    gradient, point = ravel([found[name][0] for name in theta]), ravel(list(theta.values()))
    constants = [method.example_gradients(prefix, theta, drawn.support) for prefix in ("key.", "")]

    def loss(vector, kept):
        moved = unravel(vector, theta)
        with torch.no_grad():
            of_support = (
                constants if kept else [method.example_gradients(p, moved, drawn.support) for p in ("key.", "")]
            )
            state = method.learn(moved, drawn.support.inputs, *of_support)
            predicted = method.predict(expand_over_tasks(moved, 2), state, drawn.query.inputs)
            return method.criterion.loss(predicted, drawn.query.targets).sum()

    for direction in torch.randn(3, len(point), dtype=torch.float64):
        step = 1e-7 * direction
        slopes = [(loss(point + step, kept) - loss(point - step, kept)) / 2e-7 for kept in (True, False)]
        torch.testing.assert_close(gradient @ direction, slopes[0], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(gradient @ direction, slopes[1], rtol=1e-3)


def test_an_untrained_network_knows_nothing():
    method, theta = make(ways=5)
    drawn = tasks(300, ways=5, shots=1, queries=2)
    right = method.criterion.metric(outputs(method, theta, drawn.support, drawn.query.inputs), drawn.query.targets)
    assert abs(right.mean() - 1 / 5) <= 3.5 * right.std() / len(right) ** 0.5


def test_it_learns_and_is_resumed():
    generator = torch.Generator().manual_seed(3)
    base = torch.randint(0, 256, (6, 1, *SIZE), generator=generator)
    noise = torch.randint(0, 256, (6, 8, *SIZE), generator=generator)
    pictures = ((3 * base + noise) // 4).to(torch.uint8)
    source = ShuffledEpisodes({"train": pictures, "test": pictures}, ways=2, shots=1, queries=2)

    def learner():
        torch.manual_seed(0)
        nets = [AugmentedNet(SIZE, 2, filters=8, hidden=8) for _ in range(2)]
        method = MetaNetworks(nets[0], CLASSIFICATION, key=nets[1], learners=WeightLearners(8))
        return FewShotLearner(source, method, num_tasks=8, outer=OuterLoop(0.005))

    first, second = learner(), learner()
    for _ in range(2):
        first.step()
    second.load_state_dict(first.state_dict())
    assert first.step() == second.step()
    lines = [first.step() for _ in range(70)]
    assert sum(line["accuracy/step_0"] for line in lines[-10:]) / 10 > 0.8


def test_what_cannot_be_is_refused():
    method, _ = make()
    with pytest.raises(ValueError, match="task_distribution = 'ImageEpisodes'"):
        method.training_tasks(ImageEpisodes({"train": numbered()}, 3, 1, 1))
    drawn = ShuffledEpisodes({"train": numbered()}, 3, 1, 1).sample(2, "train", keyed_generator(0, "two"))
    assert drawn.support.targets.shape == (2, 3)
