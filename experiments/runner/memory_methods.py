"""Few-shot methods that read a task's images as a sequence or a set, as variants of `--method`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from metarl.core.settings import SettingError, setting
from metarl.experiments.runner.embedding_methods import Convolved, Embedded, embedded_shape
from metarl.experiments.runner.settings import same_as
from metarl.few_shot.criteria import CLASSIFICATION
from metarl.few_shot.method import Method
from metarl.few_shot.methods.memory_module import MemoryModule
from metarl.few_shot.methods.memory_networks import LSTMNet, MemoryNet
from metarl.few_shot.methods.meta_networks import AugmentedNet, MetaNetworks, WeightLearners
from metarl.few_shot.methods.sequences import SequenceClassifier
from metarl.few_shot.methods.snail import SNAIL, SNAILNet
from metarl.few_shot.methods.statistician import NeuralStatistician, StatisticianNet
from metarl.few_shot.tasks import ImageEpisodes


@dataclass(frozen=True)
class Recurrent(Embedded):
    """An LSTM that reads images and the labels before them: the baseline of MANN."""

    shuffled: ClassVar[bool] = True
    fixed_ways: ClassVar[bool] = True
    batched: ClassVar[bool] = True

    hidden_size: int = setting(200, "units of the LSTM", at_least=1, source="paper")
    pixels: int = setting(20, "height and width to which images are averaged", at_least=1, source="paper")

    def network(self, size: Sequence[int], ways: int) -> nn.Module:
        """Return the network for images (H, W, C) and tasks of so many classes."""
        return LSTMNet(size, ways, self.hidden_size, self.pixels)

    def build(self, module: nn.Module, training: ImageEpisodes) -> Method:
        """As of any of them."""
        return SequenceClassifier(module, CLASSIFICATION)


@dataclass(frozen=True)
class MemoryAugmented(Recurrent):
    """MANN: an LSTM with a memory."""

    memory_slots: int = setting(128, "slots of the memory", at_least=1, source="paper")
    memory_width: int = setting(40, "numbers in a slot", at_least=1, source="paper")
    read_heads: int = setting(4, "read heads", at_least=1, source="paper")

    def network(self, size: Sequence[int], ways: int) -> nn.Module:
        """As of any of them."""
        memory = (self.memory_slots, self.memory_width)
        return MemoryNet(size, ways, self.hidden_size, memory, self.read_heads, self.pixels)


@dataclass(frozen=True)
class SequenceOfEmbeddings(Convolved):
    """What methods have in common that embed images, and then read them in random order."""

    shuffled: ClassVar[bool] = True
    batched: ClassVar[bool] = True

    strided: bool = same_as(Convolved, "strided", default=True)


@dataclass(frozen=True)
class Attentive(SequenceOfEmbeddings):
    """SNAIL, for tasks of the ways and shots of training."""

    fixed_ways: ClassVar[bool] = True

    def build(self, module: nn.Module, training: ImageEpisodes) -> Method:
        """As of any of them."""
        features = math.prod(embedded_shape(module, training))
        network = SNAILNet(features, training.ways, training.ways * training.shots + 1)
        return SNAIL(module, CLASSIFICATION, self.batch_norm, network=network)


@dataclass(frozen=True)
class RareEvents(SequenceOfEmbeddings):
    """The memory module of Kaiser et al."""

    key_size: int = setting(128, "numbers in a key", at_least=1, source="paper")
    slots: int = same_as(MemoryModule, "slots", flag="memory_slots")
    margin: float = same_as(MemoryModule, "margin")

    def build(self, module: nn.Module, training: ImageEpisodes) -> Method:
        """As of any of them."""
        projection = nn.Linear(math.prod(embedded_shape(module, training)), self.key_size, bias=False)
        chosen: dict[str, Any] = {"slots": self.slots, "margin": self.margin}
        return MemoryModule(module, CLASSIFICATION, self.batch_norm, projection=projection, **chosen)


@dataclass(frozen=True)
class Statistician(Convolved):
    """The neural statistician, trained on sets of images."""

    strided: bool = same_as(Convolved, "strided", default=True)
    sets: int = same_as(NeuralStatistician, "sets")
    set_size: int = same_as(NeuralStatistician, "set_size")
    halving: int = same_as(NeuralStatistician, "halving")
    context_size: int = setting(64, "size of a set's context", at_least=1)
    latent_size: int = setting(16, "size of an image's latent variable", at_least=1, source="authors' code")
    decoder_filters: int = setting(64, "filters of the decoder's convolutions, even", at_least=2)

    def build(self, module: nn.Module, training: ImageEpisodes) -> Method:
        """As of any of them."""
        if self.decoder_filters % 2:
            raise SettingError(f"--decoder-filters = {self.decoder_filters}; allowed: an even number")
        features = math.prod(embedded_shape(module, training))
        height, width, channels = training.image_shape
        sizes = {"context": self.context_size, "latent": self.latent_size, "filters": self.decoder_filters}
        model = StatisticianNet(features, (height, width, channels), **sizes)
        chosen: dict[str, Any] = {"sets": self.sets, "set_size": self.set_size, "halving": self.halving}
        return NeuralStatistician(module, CLASSIFICATION, self.batch_norm, model=model, **chosen)


@dataclass(frozen=True)
class FastWeights(Embedded):
    """Meta networks."""

    shuffled: ClassVar[bool] = True
    fixed_ways: ClassVar[bool] = True
    batched: ClassVar[bool] = True

    fast_filters: int = setting(32, "filters of each convolution", at_least=1)

    def network(self, size: Sequence[int], ways: int) -> nn.Module:
        """Return one of the two networks, for images (H, W, C) and tasks of so many classes."""
        return AugmentedNet(size, ways, self.fast_filters)

    def build(self, module: nn.Module, training: ImageEpisodes) -> Method:
        """As of any of them."""
        key = self.network(training.image_shape, training.ways)
        return MetaNetworks(module, CLASSIFICATION, key=key, learners=WeightLearners())


MEMORY_METHODS: dict[str, type[Embedded]] = {
    "mann": MemoryAugmented,
    "mann-lstm": Recurrent,
    "memory-module": RareEvents,
    "snail": Attentive,
    "metanet": FastWeights,
    "neural-statistician": Statistician,
}
