"""Proto-MAML: before its first inner step a prototypical network, and after that MAML."""

import pytest
import torch
from torch import nn

from metarl.core.parameters import expand_over_tasks, ravel, unravel
from metarl.core.rules import GradientDescent
from metarl.few_shot.criteria import CLASSIFICATION
from metarl.few_shot.methods.gradient import MAML, call_features
from metarl.few_shot.methods.proto_maml import ProtoMAML
from metarl.few_shot.networks import MLP
from metarl.few_shot.tasks import Examples, FewShotTasks
from tests.probes import finite_differences

SIZE, WAYS, SHOTS, COUNT = 3, 4, 2, 3


class Smooth(nn.Module):
    """One hidden layer with tanh, in float64."""

    def __init__(self, ways=WAYS):
        super().__init__()
        self.hidden, self.head = nn.Linear(SIZE, 5).double(), nn.Linear(5, ways).double()

    def features(self, inputs):
        return self.hidden(inputs).tanh()

    def forward(self, inputs):
        return self.head(self.features(inputs))


def method(inner_steps=2, second_order=True):
    torch.manual_seed(0)
    return ProtoMAML(Smooth(), CLASSIFICATION, GradientDescent(0.2, inner_steps, second_order))


def tasks(ways=WAYS, seed=1):
    torch.manual_seed(seed)
    sets = [torch.randn(COUNT, ways * count, SIZE, dtype=torch.float64) for count in (SHOTS, 3)]
    numbers = [torch.arange(ways).repeat_interleave(count).expand(COUNT, -1) for count in (SHOTS, 3)]
    return FewShotTasks(*(Examples(*of) for of in zip(sets, numbers, strict=True)))


def rows(theta):
    return {name: value.requires_grad_() for name, value in expand_over_tasks(theta, COUNT).items()}


def numbers(of):
    return {step: torch.tensor(weight, dtype=torch.float64) for step, weight in of.schedule(0).items()}


def test_before_the_first_step_it_is_a_prototypical_network():
    own, drawn = method(), tasks()
    theta = rows(own.meta_parameters())
    start = own.states(theta, drawn.support, 2)[0]
    found = own.predict(theta, start, drawn.query.inputs).log_softmax(dim=2)
    features = call_features(own.module, theta, drawn.support.inputs)
    prototypes = features.view(COUNT, WAYS, SHOTS, -1).mean(dim=2)
    apart = call_features(own.module, theta, drawn.query.inputs).unsqueeze(2) - prototypes.unsqueeze(1)
    torch.testing.assert_close(found, (-apart.square().sum(dim=3)).log_softmax(dim=2))


def test_its_inner_steps_are_those_of_maml_from_there():
    own, drawn = method(), tasks()
    theta = rows(own.meta_parameters())
    states = own.states(theta, drawn.support, 2)
    plain = MAML(own.module, CLASSIFICATION, own.rule)
    for found, expected in zip(states, plain.states(states[0], drawn.support, 2), strict=True):
        torch.testing.assert_close(ravel(list(found.values())), ravel(list(expected.values())))
    assert all(value.grad_fn is None for phi in states for value in phi.values())


def test_its_meta_gradient_runs_through_the_prototypes_and_the_steps():
    own, drawn = method(), tasks()
    theta = own.meta_parameters()
    assert set(theta) == {"hidden.weight", "hidden.bias"}
    gradients, losses, _ = own.gradient(rows(theta), drawn, numbers(own))
    found = ravel([value.sum(dim=0) for value in gradients.values()])

    def total(vector):
        of = expand_over_tasks(unravel(vector, theta), COUNT)
        state = own.states(of, drawn.support, 2)[-1]
        return CLASSIFICATION.loss(own.predict(of, state, drawn.query.inputs), drawn.query.targets).sum().detach()

    point = ravel(list(theta.values())).detach()
    torch.testing.assert_close(losses.sum(), total(point))
    torch.testing.assert_close(found, finite_differences(total, point), rtol=1e-6, atol=1e-8)


def test_without_second_order_it_still_runs_through_the_prototypes():
    own, drawn = method(second_order=False), tasks()
    theta = own.meta_parameters()
    found = own.gradient(rows(theta), drawn, numbers(own))[0]
    leaves = rows(theta)
    phi = own._with_prototypes(leaves, drawn.support)
    steps = own.states(rows(theta), drawn.support, 2)[-1]
    moved = {name: phi[name] + (steps[name] - phi[name]).detach() for name in phi}
    loss = CLASSIFICATION.loss(own.predict(leaves, moved, drawn.query.inputs), drawn.query.targets).sum()
    expected = torch.autograd.grad(loss, list(leaves.values()))
    torch.testing.assert_close(ravel(list(found.values())), ravel(expected))


def test_tasks_may_have_any_number_of_classes_and_are_learned_each_by_itself():
    own, drawn = method(), tasks(ways=6)
    theta = rows(own.meta_parameters())
    together = own.predict(theta, own.adapt(theta, drawn.support), drawn.query.inputs)
    assert together.shape == (COUNT, 18, 6)
    one = {name: value[:1] for name, value in theta.items()}
    support = Examples(drawn.support.inputs[1:2], drawn.support.targets[1:2])
    alone = own.predict(one, own.adapt(one, support), drawn.query.inputs[1:2])
    torch.testing.assert_close(together[1:2], alone)


def test_permuted_labels_permute_outputs():
    own, drawn = method(), tasks()
    theta, order = rows(own.meta_parameters()), torch.tensor([2, 0, 3, 1])
    expected = own.predict(theta, own.adapt(theta, drawn.support), drawn.query.inputs)
    renamed = Examples(drawn.support.inputs, order[drawn.support.targets])
    found = own.predict(theta, own.adapt(theta, renamed), drawn.query.inputs)
    torch.testing.assert_close(found[:, :, order], expected)


def test_a_module_without_a_linear_head_is_refused():
    for module in (nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))):
        with pytest.raises(ValueError, match="module"):
            ProtoMAML(module, CLASSIFICATION)
    assert ProtoMAML(MLP((2, 3, 2)), CLASSIFICATION).inner_steps == 1
