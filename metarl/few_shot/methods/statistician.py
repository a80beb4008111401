"""The neural statistician (Edwards and Storkey 2017): a generative model of sets, which learns without labels.

    a set D = {x_1, ..., x_n} of one class:    p(D) = int p(c) prod_i [ int p(x_i | z_i, c) p(z_i | c) dz_i ] dc
    its bound:    E_q [ sum_i log p(x_i | z_i, c) ] - KL(q(c | D) || p(c)) - sum_i E_q KL(q(z_i | x_i, c) || p(z_i | c))

with p(c) standard normal, all other distributions of c and z normal with diagonal covariances, and pixels that are ink
or paper. A query image is of the class whose context is most like that of the image alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.core.parameters import Parameters
from metarl.core.randomness import keyed_generator
from metarl.core.settings import setting
from metarl.core.validation import require
from metarl.few_shot.method import State
from metarl.few_shot.methods.centroids import class_means
from metarl.few_shot.methods.embedding import EmbeddingMethod, one_hot
from metarl.few_shot.tasks import Examples, FewShotDistribution, FewShotTasks, ImageEpisodes


@dataclass(frozen=True)
class NeuralStatistician(EmbeddingMethod):
    """Classifies by log P(k) = log softmax_k(-KL(q(c | D_k) || q(c | {x}))), as in the paper.

    Training sees sets of one to `set_size` images of `sets` classes, of which it uses no labels: what was learned of
    sets of one holds for query images. It minimises -(1 + a) reconstruction + KL / (1 + a), per image, where a is 1 at
    first and is halved every `halving` iterations; its metric is the accuracy on one further image of each set.

    Deviations: networks are smaller, and have batch norm in convolutions only; there is one latent variable per image.

    Attributes:
        module: the encoder, to vectors or maps.
        model: the networks of c, z and x, such as `StatisticianNet`.
    """

    model: nn.Module = field(kw_only=True)
    sets: int = setting(32, "sets of a training task", at_least=2, source="authors' code")
    set_size: int = setting(5, "images of a set at most", at_least=1, source="authors' code")
    halving: int = setting(500, "iterations in which the weight of the reconstruction falls by half", at_least=1)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The encoder, and the networks of the model, each by itself."""
        return {"": self.module, **{f"model.{name}.": child for name, child in self.model.named_children()}}

    def training_tasks(self, task_distribution: FewShotDistribution) -> FewShotDistribution:
        """Return sets of training images, with noise."""
        require(self.training_ways is None, "training_ways", self.training_ways, "None; `sets` says how many")
        require(isinstance(task_distribution, ImageEpisodes), "task_distribution", task_distribution, "ImageEpisodes")
        images = {"train": task_distribution.images["train"]}  # type: ignore[attr-defined]
        return ImageSets(images, self.sets, self.set_size, self.model.context, self.model.latent)  # type: ignore[arg-type]

    def schedule(self, iteration: int) -> dict[str, float]:
        """Return a, the further weight of the reconstruction."""
        return {"reconstruction": 0.5 ** (iteration / self.halving)}

    def learn(self, theta: Parameters, features: Tensor, members: Tensor) -> State:
        """Return mean and log-variance of q(c | D_k) of every class k, (M, ways, C) both."""
        before = self._apply("before", theta, features.flatten(2))
        return self._context(theta, class_means(before, members))

    def compare(self, theta: Parameters, state: State, features: Tensor) -> Tensor:
        """Return log-probabilities (M, Q, ways)."""
        alone = self._context(theta, self._apply("before", theta, features.flatten(2)))
        classes = {name: state[name].unsqueeze(1) for name in alone}
        queries = {name: value.unsqueeze(2) for name, value in alone.items()}
        return (-gaussian_kl(classes, queries)).log_softmax(dim=2)

    def training_pass(
        self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Parameters]:
        """Loss and metric of each task, (M,), and the statistics to be averaged; theta without running averages."""
        sets: Any = tasks.support
        shots = sets.targets.shape[1]
        features, seen = self.apply("", theta, (torch.cat([sets.inputs, tasks.query.inputs], dim=1),), {})
        own = features[:, :shots]
        state = self.learn(theta, own, one_hot(sets.targets))
        reconstruction, divergence, more = self.bound_terms(theta, sets, own, state)
        weight = 1 + schedule["reconstruction"]
        with torch.no_grad():
            outputs = self.compare(theta, state, features[:, shots:])
            metric = self.criterion.metric(outputs, tasks.query.targets)
        return divergence / weight - weight * reconstruction, metric, {**seen, **more}

    def bound_terms(
        self, theta: Parameters, sets: "NoisySets", features: Tensor, state: State
    ) -> tuple[Tensor, Tensor, Parameters]:
        """Return reconstruction and divergence per image, (M,) both, and statistics of batch norms.

        The bound per image is their difference, with the sets' noise for c and z.

        Args:
            theta: meta-parameters; with running averages, batch norms use those.
            sets: images, the set of each, and noise.
            features: of the images.
            state: mean and log-variance of every set's context.
        """
        members = one_hot(sets.targets).to(features.dtype)
        contexts = members @ sampled(state, sets.context_noise)  # of every image (M, N, C)
        latent = _normal(self._apply("inference", theta, features.flatten(2), contexts))
        prior = _normal(self._apply("prior", theta, contexts))
        drawn = sampled(latent, sets.latent_noise)
        logits, seen = self.apply("model.decoder.", theta, (drawn, contexts), self.statistics(theta, {}))
        ink = (sets.inputs > 0.5).to(logits.dtype)
        log_likelihood = -F.binary_cross_entropy_with_logits(logits, ink, reduction="none").flatten(2).sum(dim=2)
        standard = {name: torch.zeros_like(value) for name, value in state.items()}
        of_contexts = gaussian_kl(state, standard).sum(dim=1) / sets.targets.shape[1]
        return log_likelihood.mean(dim=1), of_contexts + gaussian_kl(latent, prior).mean(dim=1), seen

    @torch.no_grad()
    def further_metrics(
        self, theta: Parameters, tasks: FewShotTasks, statistics: Parameters | None = None
    ) -> dict[str, Tensor]:
        """Return the bound per image of the support sets, as `bound`, with noise that is always the same."""
        support = tasks.support
        sizes = (len(one_hot(support.targets)[0, 0]), self.model.context, self.model.latent)
        sets = with_noise(support, *sizes, keyed_generator(0, "statistician/bound"))  # type: ignore[arg-type]
        own = {name: value[0] for name, value in theta.items()}
        features, _ = self.apply("", own, (support.inputs,), self.statistics(own, {}))
        state = self.learn(own, features, one_hot(support.targets))
        reconstruction, divergence, _ = self.bound_terms(own, sets, features, state)
        return {"bound": reconstruction - divergence}

    def _context(self, theta: Parameters, pooled: Tensor) -> State:
        return _normal(self._apply("after", theta, pooled))

    def _apply(self, name: str, theta: Parameters, *inputs: Tensor) -> Tensor:
        """Apply a network without batch norm."""
        return self.apply_to_all(f"model.{name}.", theta, inputs)


class StatisticianNet(nn.Module):
    """The networks of the model.

    `before` and `after` make q(c | D): after the encoder a layer for each image, the mean over the set, and layers that
    give means and log-variances. `inference` is q(z | x, c), `prior` p(z | c), and `decoder` p(x | z, c).

    Args:
        features: F, of an encoded image.
        size: (H, W, channels) of the images.
        context: C, size of c.
        latent: size of z.
        hidden: width of the layers.
        filters: of the decoder's convolutions.
    """

    def __init__(
        self,
        features: int,
        size: tuple[int, int, int],
        context: int = 64,
        latent: int = 16,
        hidden: int = 256,
        filters: int = 64,
    ):
        super().__init__()
        self.context, self.latent = context, latent
        self.before = nn.Sequential(nn.Linear(features, hidden), nn.ELU())
        self.after = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU(), nn.Linear(hidden, 2 * context)
        )
        self.inference = _Joint((features, context), hidden, 2 * latent)
        self.prior = _Joint((context,), hidden, 2 * latent)
        self.decoder = Decoder((latent, context), size, hidden, filters)

    def forward(self, *_: Any) -> Tensor:
        """Refuse: the method calls the networks one by one."""
        raise NotImplementedError


class Decoder(nn.Module):
    """Latent variables and contexts to an image: logits of ink, at four times the size of the first map."""

    def __init__(self, sizes: tuple[int, ...], size: tuple[int, int, int], hidden: int, filters: int):
        super().__init__()
        self.size, self.filters = size, filters
        self.first = (-(-size[0] // 4), -(-size[1] // 4))
        self.vectors = _Joint(sizes, hidden, self.first[0] * self.first[1] * filters)
        self.larger = nn.ConvTranspose2d(filters, filters, 2, stride=2)
        self.middle = nn.Conv2d(filters, filters, 3, padding=1)
        self.largest = nn.ConvTranspose2d(filters, filters // 2, 2, stride=2)
        self.last = nn.Conv2d(filters // 2, size[2], 3, padding=1)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Vectors (N, ...) to logits (N, H, W, channels)."""
        maps = F.elu(self.vectors(*inputs)).view(-1, self.filters, *self.first)
        maps = F.elu(self.middle(F.elu(self.larger(maps))))
        logits = self.last(F.elu(self.largest(maps)))
        return logits[:, :, : self.size[0], : self.size[1]].permute(0, 2, 3, 1)


class _Joint(nn.Module):
    """Vectors of several kinds to one vector: a layer for each kind, their sum, a residual layer, and a last layer."""

    def __init__(self, sizes: tuple[int, ...], hidden: int, outputs: int):
        super().__init__()
        self.kinds = nn.ModuleList([nn.Linear(size, hidden) for size in sizes])
        self.residual, self.last = nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        hidden = F.elu(torch.stack([layer(of) for layer, of in zip(self.kinds, inputs, strict=True)]).sum(dim=0))
        return self.last(F.elu(hidden + self.residual(hidden)))


@dataclass(frozen=True)
class NoisySets(Examples):
    """Images whose targets say which set each is in, with standard normal noise.

    Attributes:
        context_noise: for every set (M, sets, C).
        latent_noise: for every image (M, N, latent).
    """

    context_noise: Tensor
    latent_noise: Tensor


class ImageSets:
    """Sets of images of one class each, of one size in a draw, from 1 to `set_size`; and one further image of each.

    As tasks they are episodes of as many ways as there are sets, with as many shots as the sets have images.
    """

    def __init__(self, images: Mapping[str, Tensor], sets: int, set_size: int, context: int, latent: int):
        ImageEpisodes(images, sets, set_size, 1)  # refuses what cannot be
        self.images, self.ways, self.set_size = dict(images), sets, set_size
        self.context, self.latent = context, latent

    def sample(self, num_tasks: int, split: str, rng: np.random.Generator) -> FewShotTasks:
        """Draw tasks: support inputs (M, sets * size, H, W, C) with noise, query inputs (M, sets, H, W, C)."""
        size = int(rng.integers(1, self.set_size + 1))
        drawn = ImageEpisodes(self.images, self.ways, size, 1).sample(num_tasks, split, rng)
        return FewShotTasks(with_noise(drawn.support, self.ways, self.context, self.latent, rng), drawn.query)


def with_noise(examples: Examples, sets: int, context: int, latent: int, rng: np.random.Generator) -> NoisySets:
    """Return examples with noise for as many sets."""
    inputs, (tasks, count) = examples.inputs, examples.targets.shape
    noise = [rng.standard_normal(shape) for shape in ((tasks, sets, context), (tasks, count, latent))]
    return NoisySets(inputs, examples.targets, *(torch.from_numpy(of).to(inputs) for of in noise))


def sampled(normal: State, noise: Tensor) -> Tensor:
    """Return mean + standard deviation * noise."""
    return normal["mean"] + (normal["log_variance"] / 2).exp() * noise


def gaussian_kl(first: State, second: State) -> Tensor:
    """Return KL(first || second) of normal distributions with diagonal covariances, summed over the last axis.

    sum of [log v2 - log v1 + (v1 + (m1 - m2)^2) / v2 - 1] / 2 for means m and variances v, which are broadcast.
    """
    apart = second["log_variance"] - first["log_variance"]
    squares = (first["mean"] - second["mean"]).square() * (-second["log_variance"]).exp()
    return (apart + (-apart).exp() + squares - 1).sum(dim=-1) / 2


def _normal(outputs: Tensor) -> State:
    mean, log_variance = outputs.chunk(2, dim=-1)
    return {"mean": mean, "log_variance": log_variance}
