"""Small learners in float64 that the few-shot tests share."""

from dataclasses import replace

import torch

from metarl.core.rules import GradientDescent, LayerStepSizes, MetaSGD
from metarl.few_shot.criteria import CLASSIFICATION, REGRESSION
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.methods.gradient import MAML
from metarl.few_shot.networks import ConvNet
from metarl.few_shot.tasks import Examples, FewShotTasks, ImageEpisodes, Sine

NOT_SHIFT = ("*weight", "*bias")
RULES = {
    "maml": GradientDescent(0.3, 2),
    "shared shift": GradientDescent(0.3, 2, adapted=NOT_SHIFT),
    "anil": GradientDescent(0.3, 2, adapted=("head*",)),
    "meta-sgd": MetaSGD(0.3, 2),
    "per layer and step": LayerStepSizes(0.3, 2),
}


class Doubled:
    """A distribution whose tasks are float64."""

    def __init__(self, inner):
        self.inner = inner
        if hasattr(inner, "ways"):
            self.ways = inner.ways
        if hasattr(inner, "images"):
            self.images = inner.images

    def sample(self, num_tasks, split, rng):
        drawn = self.inner.sample(num_tasks, split, rng)
        return FewShotTasks(*(Examples(_double(p.inputs), _double(p.targets)) for p in (drawn.support, drawn.query)))


def _double(tensor):
    return tensor.double() if tensor.is_floating_point() else tensor


def images(size=8, classes=6, channels=1):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (classes, 6, size, size, channels), generator=generator, dtype=torch.uint8)


class Smooth(torch.nn.Module):
    """A network with convolution and batch norm but no kinks, so that finite differences are exact."""

    def __init__(self):
        super().__init__()
        net = ConvNet((8, 8, 1), 3, filters=2)
        self.blocks, self.head = net.blocks, net.head

    def features(self, inputs):
        for block in self.blocks[:2]:
            inputs = torch.tanh(block.norm(block.convolution(inputs)))
        return inputs.mean(dim=(1, 2))

    def forward(self, inputs):
        return self.head(self.features(inputs))


class SmoothMLP(torch.nn.Module):
    """One hidden layer with tanh."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head = torch.nn.Linear(1, 5), torch.nn.Linear(5, 1)

    def forward(self, inputs):
        return self.head(torch.tanh(self.hidden(inputs)))


def image_tasks(shots=2, queries=2):
    return Doubled(ImageEpisodes({"train": images(), "test": images()}, ways=3, shots=shots, queries=queries))


def image_learner(rule=None, module=None, kind=MAML, more=(), **settings):
    torch.manual_seed(0)
    method = kind((module or Smooth()).double(), CLASSIFICATION, rule or GradientDescent(0.3, 1), *more)
    return FewShotLearner(image_tasks(), method, **{"num_tasks": 4, **settings})


def sine_learner(rule=None, module=None, kind=MAML, more=(), **settings):
    torch.manual_seed(0)
    method = kind((module or SmoothMLP()).double(), REGRESSION, rule or GradientDescent(0.3, 1), *more)
    return FewShotLearner(Doubled(Sine(4, 3)), method, **{"num_tasks": 4, **settings})


def rule_for(name, make):
    """The rule of a name, with all parameters adapted where the network has no batch norm."""
    rule = RULES[name]
    return replace(rule, adapted=("*",)) if name == "shared shift" and make is sine_learner else rule


def one_task(tasks, task):
    return tasks.of_tasks(slice(task, task + 1))
