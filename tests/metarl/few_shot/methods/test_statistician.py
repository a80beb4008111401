"""The neural statistician: divergences against torch's, the bound against Monte-Carlo and an exact likelihood."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from metarl.core.parameters import expand_over_tasks
from metarl.core.randomness import keyed_generator
from metarl.few_shot.criteria import CLASSIFICATION
from metarl.few_shot.methods.statistician import ImageSets, NeuralStatistician, gaussian_kl, sampled, with_noise
from metarl.few_shot.tasks import Examples, ImageEpisodes
from tests.metarl.few_shot.embedding_methods import make, numbered, outputs, scheduled, tasks, training_tasks


class Tiny(nn.Module):
    """Contexts and latent variables are numbers, and an image is one pixel, so that integrals can be computed."""

    context, latent = 1, 1

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Linear(1, 1), nn.Linear(1, 2)
        self.inference, self.prior, self.decoder = Inference(), Prior(), Pixel()


class Inference(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, features, contexts):
        return self.layer(torch.cat([features, contexts], dim=2))


class Prior(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 2)

    def forward(self, contexts):
        return self.layer(contexts)


class Pixel(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, latent, contexts):
        return self.layer(torch.cat([latent, contexts], dim=1)).view(-1, 1, 1, 1)


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, images):
        return self.layer(images.flatten(1))


def tiny():
    torch.manual_seed(3)
    method = NeuralStatistician(Flat().double(), CLASSIFICATION, model=Tiny().double())
    theta = method.meta_parameters()
    return method, {name: 0.2 * torch.randn_like(value) for name, value in theta.items()}


def one_set(count, copies):
    """The same set of black and white pixels in many tasks, each with noise of its own."""
    pixels = (torch.arange(count) % 2).double().view(1, count, 1, 1, 1).expand(copies, -1, -1, -1, -1)
    examples = Examples(pixels, torch.zeros(copies, count, dtype=torch.int64))
    return with_noise(examples, 1, 1, 1, keyed_generator(0, "test"))


def terms(method, theta, sets):
    features, _ = method.apply("", theta, (sets.inputs,), {})
    state = method.learn(theta, features, torch.ones(*sets.targets.shape, 1, dtype=torch.bool))
    return *method.bound_terms(theta, sets, features, state)[:2], state, features


def test_divergences_are_those_of_torch():
    generator = torch.Generator().manual_seed(0)
    first, second = (
        {key: torch.randn(4, 3, generator=generator, dtype=torch.float64) for key in ("mean", "log_variance")}
        for _ in range(2)
    )
    normal = [Normal(of["mean"], (of["log_variance"] / 2).exp()) for of in (first, second)]
    torch.testing.assert_close(gaussian_kl(first, second), kl_divergence(*normal).sum(dim=1))
    torch.testing.assert_close(gaussian_kl(first, first), torch.zeros(4, dtype=torch.float64))
    assert not torch.allclose(gaussian_kl(first, second), gaussian_kl(second, first))


def test_samples_have_the_mean_and_the_variance():
    noise = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = sampled({"mean": torch.tensor([2.0]), "log_variance": torch.tensor([np.log(9.0)])}, noise)
    assert drawn.mean().item() == pytest.approx(2, abs=0.03)
    assert drawn.var().item() == pytest.approx(9, abs=0.15)


def distributions(theta, features, state):
    """q(c | D), and functions of c that give q(z | x, c), p(z | c), and of z and c p(x | z, c)."""

    def layer(name, *inputs):
        return torch.cat(inputs, dim=-1) @ theta[f"model.{name}.layer.weight"].T + theta[f"model.{name}.layer.bias"]

    def normal(outputs):
        return Normal(outputs[..., :1], (outputs[..., 1:] / 2).exp())

    context = Normal(state["mean"][0, 0], (state["log_variance"][0, 0] / 2).exp())
    return (
        context,
        lambda c: normal(layer("inference", features[0].expand(*c.shape[:-2], -1, -1), c)),
        lambda c: normal(layer("prior", c)),
        lambda z, c: Bernoulli(logits=layer("decoder", z, c)),
    )


def test_the_bound_is_that_of_monte_carlo():
    method, theta = tiny()
    sets = one_set(3, 20_000)
    reconstruction, divergence, state, features = terms(method, theta, sets)
    context, inference, prior, decoder = distributions(theta, features, state)
    torch.manual_seed(1)
    c = context.sample((20_000, 1)).expand(-1, 3, -1)  # (draws, images, 1)
    z = inference(c).sample()
    log_p = decoder(z, c).log_prob(sets.inputs[0].flatten(1)).sum(dim=(1, 2)) + prior(c).log_prob(z).sum(dim=(1, 2))
    log_p = log_p + Normal(0.0, 1.0).log_prob(c[:, 0, 0])
    log_q = inference(c).log_prob(z).sum(dim=(1, 2)) + context.log_prob(c[:, 0]).squeeze(1)
    expected = (log_p - log_q) / 3
    found = reconstruction - divergence
    error = ((expected.var() + found.var()) / 20_000).sqrt()
    assert abs(found.mean() - expected.mean()) < 4 * error
    assert error < 0.02


def test_the_bound_is_below_the_likelihood():
    method, theta = tiny()
    sets = one_set(2, 5_000)
    reconstruction, divergence, state, features = terms(method, theta, sets)
    _, _, prior, decoder = distributions(theta, features, state)
    points = torch.linspace(-8, 8, 401, dtype=torch.float64)
    width = points[1] - points[0]
    c = points.view(-1, 1, 1)
    z = prior(c).mean + prior(c).stddev * points.view(1, -1, 1)  # (of c, of z, 1)
    density = Normal(0.0, 1.0).log_prob(points).exp() * width
    each = [
        (decoder(z, c.expand_as(z)).log_prob(pixel).exp().squeeze(2) * density).sum(dim=1)
        for pixel in sets.inputs[0].flatten()
    ]
    exact = (density * each[0] * each[1]).sum().log() / 2
    bound = (reconstruction - divergence).mean()
    assert bound < exact
    assert bound > exact - 1
    assert divergence.min() > 0


def test_the_training_loss_weighs_reconstruction_and_divergence():
    method, theta = make("statistician")
    drawn = training_tasks("statistician")
    own = {name: value for name, value in theta.items() if name not in method.averages}
    joined, _ = method.apply("", own, (torch.cat([drawn.support.inputs, drawn.query.inputs], dim=1),), {})
    features = joined[:, : drawn.support.targets.shape[1]]
    state = method.learn(own, features, drawn.support.targets.unsqueeze(2) == torch.arange(3))
    reconstruction, divergence, _ = method.bound_terms(own, drawn.support, features, state)
    assert [method.schedule(of)["reconstruction"] for of in (0, 5, 10, 30)] == [1.0, 0.5**0.5, 0.5, 0.125]
    rows = expand_over_tasks(theta, 3)
    for iteration, a in ((0, 1.0), (10, 0.5)):
        loss, _ = method.loss(rows, drawn, scheduled(method, iteration))
        torch.testing.assert_close(loss, -(1 + a) * reconstruction + divergence / (1 + a))


def test_a_query_is_of_the_class_with_the_least_divergence_from_its_own_context():
    method, theta = make("statistician")
    drawn = tasks(1)
    found = outputs(method, theta, drawn.support, drawn.query.inputs)[0]
    rows = expand_over_tasks(theta, 1)
    state = method.adapt(rows, drawn.support)
    alone = [
        method.adapt(rows, Examples(drawn.query.inputs[:, i : i + 1], torch.zeros(1, 1, dtype=torch.int64)))
        for i in range(6)
    ]
    for query, own in enumerate(alone):
        second = Normal(own["mean"][0, 0], (own["log_variance"][0, 0] / 2).exp())
        divergences = torch.stack(
            [
                kl_divergence(Normal(mean, (log_variance / 2).exp()), second).sum()
                for mean, log_variance in zip(state["mean"][0], state["log_variance"][0], strict=True)
            ]
        )
        torch.testing.assert_close(found[query], (-divergences).log_softmax(dim=0))


def test_training_uses_no_labels():
    method, theta = make("statistician")
    drawn = training_tasks("statistician", 1)
    rows, order = expand_over_tasks(theta, 1), torch.tensor([2, 0, 1])
    support = drawn.support
    renamed = type(support)(
        support.inputs, order[support.targets], support.context_noise[:, order.argsort()], support.latent_noise
    )
    plain, _ = method.loss(rows, drawn, scheduled(method))
    other, _ = method.loss(rows, type(drawn)(renamed, drawn.query), scheduled(method))
    torch.testing.assert_close(other, plain)


def test_sets_are_of_one_class_each_and_of_every_size():
    source = ImageSets({"train": numbered()}, 4, 3, 2, 5)
    sizes = set()
    for block in range(20):
        drawn = source.sample(2, "train", keyed_generator(0, "sets", block))
        size = drawn.support.targets.shape[1] // 4
        sizes.add(size)
        numbers = (drawn.support.inputs[:, :, 0, 0, 0] * 255).round().long() // 5
        assert all(len(set(of.tolist())) == 1 for of in numbers.view(8, size))
        assert len(set(numbers[0].tolist())) == 4
        assert drawn.support.context_noise.shape == (2, 4, 2)
        assert drawn.support.latent_noise.shape == (2, 4 * size, 5)
        assert drawn.query.targets.shape == (2, 4)
    assert sizes == {1, 2, 3}
    assert source.ways == 4
    with pytest.raises(ValueError, match="7 ways of 6 train"):
        ImageSets({"train": numbered()}, 7, 3, 2, 5)
    with pytest.raises(ValueError, match="5 support and 1 query"):
        ImageSets({"train": numbered()}, 4, 5, 2, 5)


def test_evaluations_report_the_bound():
    method, theta = make("statistician")
    drawn = tasks(2)
    found = method.further_metrics(expand_over_tasks(theta, 2), drawn)
    assert set(found) == {"bound"}
    assert torch.equal(found["bound"], method.further_metrics(expand_over_tasks(theta, 2), drawn)["bound"])
    assert (found["bound"] < 0).all()


def test_what_cannot_be_is_refused():
    method, _ = make("statistician")
    with pytest.raises(ValueError, match="task_distribution"):
        method.training_tasks(ImageSets({"train": numbered()}, 4, 3, 2, 5))
    made = method.training_tasks(ImageEpisodes({"train": numbered()}, 3, 1, 1))
    assert (made.ways, made.set_size, made.context, made.latent) == (4, 3, 3, 2)
