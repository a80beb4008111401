"""Meta-learning in PyTorch: reinforcement learning with MAML policy gradients, and few-shot supervised learning.

The names below are imported when they are first used, so that `import metarl` is fast and has no side effects.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metarl.classify import open_classifier
    from metarl.core.errors import NonFiniteError, SimulationError
    from metarl.core.randomness import keyed_generator
    from metarl.core.rules import GradientDescent, LayerStepSizes, MetaSGD
    from metarl.core.settings import SettingError
    from metarl.few_shot.classifier_functions import CLASSIFIER_LOSS, ClassifierFunctions
    from metarl.few_shot.criteria import CLASSIFICATION, REGRESSION, Criterion, nearest_neighbour
    from metarl.few_shot.curves import Curves, FixedTasks
    from metarl.few_shot.embedding_networks import EmbeddingNet
    from metarl.few_shot.images.classifier import ImageClassifier
    from metarl.few_shot.images.image_classes import ImageClasses
    from metarl.few_shot.learner import FewShotLearner
    from metarl.few_shot.learner_state import FewShotState
    from metarl.few_shot.method import Method
    from metarl.few_shot.methods.centroids import Prototypical, SimpleShot
    from metarl.few_shot.methods.embedding import EmbeddingMethod
    from metarl.few_shot.methods.gradient import MAML, Classifier, FewShotReptile
    from metarl.few_shot.methods.implicit import IMAML
    from metarl.few_shot.methods.laplace import Llama
    from metarl.few_shot.methods.learned_optimisers import CoordinateLSTM, LearnedOptimiser, TunedOptimiser
    from metarl.few_shot.methods.matching import ContextEmbeddings, FullContextMatching, Matching
    from metarl.few_shot.methods.memory_module import MemoryModule
    from metarl.few_shot.methods.memory_networks import LSTMNet, MemoryNet
    from metarl.few_shot.methods.meta_lstm import GateLSTM, MetaLSTM
    from metarl.few_shot.methods.meta_networks import AugmentedNet, MetaNetworks, WeightLearners
    from metarl.few_shot.methods.meta_transfer import MetaTransfer
    from metarl.few_shot.methods.particles import BMAML, EMAML
    from metarl.few_shot.methods.platipus import Platipus
    from metarl.few_shot.methods.proto_maml import ProtoMAML
    from metarl.few_shot.methods.relation import Relation, RelationNet
    from metarl.few_shot.methods.ridge import RidgeRegression
    from metarl.few_shot.methods.sequences import SequenceClassifier, ShuffledEpisodes
    from metarl.few_shot.methods.siamese import Siamese
    from metarl.few_shot.methods.snail import SNAIL, SNAILNet
    from metarl.few_shot.methods.statistician import NeuralStatistician, StatisticianNet
    from metarl.few_shot.methods.subspaces import MaskedDescent, MTNet, TransformedMLP
    from metarl.few_shot.outer import OuterLoop
    from metarl.few_shot.predictive import Mixture
    from metarl.few_shot.quadratics import QUADRATIC, Quadratics
    from metarl.few_shot.tasks import Examples, FewShotTasks, ImageBatches, ImageEpisodes, Sine
    from metarl.rl.adaptation_step import AdaptationStep
    from metarl.rl.advantages import Advantages
    from metarl.rl.agent import Agent
    from metarl.rl.learner import Learner
    from metarl.rl.learner_state import LearnerState
    from metarl.rl.outer import PPO, TRPO, Adam, Reptile
    from metarl.rl.policies import CategoricalMLP, DictObservations, GaussianMLP, WithContext
    from metarl.rl.rl2.agent import RecurrentAgent
    from metarl.rl.rl2.learner import RL2Learner
    from metarl.rl.rl2.policies import RecurrentPolicy
    from metarl.rl.rl2.ppo import TrialPPO
    from metarl.rl.sampler import Sampling

__version__ = "0.2.0"

_EXPORTS = {
    "metarl.classify": ("open_classifier",),
    "metarl.core.rules": ("GradientDescent", "LayerStepSizes", "MetaSGD"),
    "metarl.core.errors": ("NonFiniteError", "SimulationError"),
    "metarl.core.randomness": ("keyed_generator",),
    "metarl.core.settings": ("SettingError",),
    "metarl.few_shot.methods.centroids": ("Prototypical", "SimpleShot"),
    "metarl.few_shot.images.classifier": ("ImageClassifier",),
    "metarl.few_shot.classifier_functions": ("CLASSIFIER_LOSS", "ClassifierFunctions"),
    "metarl.few_shot.criteria": ("CLASSIFICATION", "REGRESSION", "Criterion", "nearest_neighbour"),
    "metarl.few_shot.methods.embedding": ("EmbeddingMethod",),
    "metarl.few_shot.embedding_networks": ("EmbeddingNet",),
    "metarl.few_shot.methods.gradient": ("MAML", "Classifier", "FewShotReptile"),
    "metarl.few_shot.images.image_classes": ("ImageClasses",),
    "metarl.few_shot.curves": ("Curves", "FixedTasks"),
    "metarl.few_shot.methods.implicit": ("IMAML",),
    "metarl.few_shot.methods.laplace": ("Llama",),
    "metarl.few_shot.methods.learned_optimisers": ("CoordinateLSTM", "LearnedOptimiser", "TunedOptimiser"),
    "metarl.few_shot.methods.meta_lstm": ("GateLSTM", "MetaLSTM"),
    "metarl.few_shot.methods.meta_transfer": ("MetaTransfer",),
    "metarl.few_shot.methods.particles": ("BMAML", "EMAML"),
    "metarl.few_shot.methods.platipus": ("Platipus",),
    "metarl.few_shot.methods.proto_maml": ("ProtoMAML",),
    "metarl.few_shot.predictive": ("Mixture",),
    "metarl.few_shot.quadratics": ("QUADRATIC", "Quadratics"),
    "metarl.few_shot.methods.subspaces": ("MaskedDescent", "MTNet", "TransformedMLP"),
    "metarl.few_shot.learner": ("FewShotLearner",),
    "metarl.few_shot.learner_state": ("FewShotState",),
    "metarl.few_shot.methods.matching": ("ContextEmbeddings", "FullContextMatching", "Matching"),
    "metarl.few_shot.methods.memory_module": ("MemoryModule",),
    "metarl.few_shot.methods.memory_networks": ("LSTMNet", "MemoryNet"),
    "metarl.few_shot.methods.meta_networks": ("AugmentedNet", "MetaNetworks", "WeightLearners"),
    "metarl.few_shot.method": ("Method",),
    "metarl.few_shot.outer": ("OuterLoop",),
    "metarl.few_shot.methods.relation": ("Relation", "RelationNet"),
    "metarl.few_shot.methods.ridge": ("RidgeRegression",),
    "metarl.few_shot.methods.sequences": ("SequenceClassifier", "ShuffledEpisodes"),
    "metarl.few_shot.methods.siamese": ("Siamese",),
    "metarl.few_shot.methods.snail": ("SNAIL", "SNAILNet"),
    "metarl.few_shot.methods.statistician": ("NeuralStatistician", "StatisticianNet"),
    "metarl.few_shot.tasks": ("Examples", "FewShotTasks", "ImageBatches", "ImageEpisodes", "Sine"),
    "metarl.rl.adaptation_step": ("AdaptationStep",),
    "metarl.rl.advantages": ("Advantages",),
    "metarl.rl.agent": ("Agent",),
    "metarl.rl.learner": ("Learner",),
    "metarl.rl.learner_state": ("LearnerState",),
    "metarl.rl.outer": ("PPO", "TRPO", "Adam", "Reptile"),
    "metarl.rl.rl2.agent": ("RecurrentAgent",),
    "metarl.rl.rl2.learner": ("RL2Learner",),
    "metarl.rl.rl2.policies": ("RecurrentPolicy",),
    "metarl.rl.rl2.ppo": ("TrialPPO",),
    "metarl.rl.sampler": ("Sampling",),
    "metarl.rl.policies": ("CategoricalMLP", "DictObservations", "GaussianMLP", "WithContext"),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [*_MODULE_OF, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'metarl' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
