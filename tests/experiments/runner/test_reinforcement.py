"""What an experiment builds of its settings, and what it refuses before a run begins."""

from dataclasses import dataclass, replace

import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import nn

from metarl import CategoricalMLP, GaussianMLP, SettingError, WithContext
from metarl.envs import Navigation2D, ObservedTasks
from metarl.experiments import PolicySettings, ReinforcementExperiment, ReinforcementSettings, part, setting
from metarl.experiments.runner.recipes import Recipe
from metarl.experiments.runner.training import main
from tests.experiments.runner.helpers import TINY, error_of
from tests.probes import CorridorTasks

SIZES = {"horizon": 6, "num_tasks": 2, "episodes_per_task": 3, "threads": 1}


def experiment(tasks=lambda settings: Navigation2D(settings.environment.horizon), **changes):
    return ReinforcementExperiment("own", "Of one's own.", task_distribution=tasks, **changes)


def built(made, **changes):
    return made.build(made.configure(**{**SIZES, **changes}))


class Head(nn.Module):
    """A policy with a layer that anil can adapt."""

    last_layer = ("head.*",)

    def __init__(self, observations, actions, width):
        super().__init__()
        self.body, self.head = nn.Linear(observations, width), nn.Linear(width, 2 * actions)

    def forward(self, observations):
        return self.head(torch.tanh(self.body(observations)))


class Headless(Head):
    last_layer = None


@dataclass(frozen=True)
class Width(PolicySettings):
    width: int = setting(5, "width of the body", at_least=1)


@dataclass(frozen=True)
class OwnSettings(ReinforcementSettings):
    policy: Width = part(Width, "policy")


def with_head(kind=Head):
    def policy(settings, observations, actions):
        return kind(observations.shape[0], actions.shape[0], settings.policy.width)

    return experiment(settings=OwnSettings, policy=policy)


def test_the_policy_of_an_experiment_that_names_none_fits_its_actions():
    corridors = experiment(lambda settings: CorridorTasks(settings.environment.horizon, AutoresetMode.NEXT_STEP))
    assert isinstance(built(experiment()).policy, GaussianMLP)
    learner = built(corridors, hidden_sizes=(7,))
    assert isinstance(learner.policy, CategoricalMLP)
    assert learner.policy.logits[0].out_features == 7
    assert built(corridors, hidden_sizes=(7,), adaptation="anil").rule.adapted == ("logits.2.*",)


def test_a_policy_of_ones_own_gets_settings_and_spaces():
    assert built(with_head(), width=9).policy.body.weight.shape == (9, 2)
    context = built(with_head(), adaptation="cavia", context_size=3).policy
    assert isinstance(context, WithContext)
    assert context.module.body.in_features == 5


def test_anil_adapts_the_layer_that_a_policy_names():
    learner = built(with_head(), adaptation="anil")
    assert learner.rule.adapted_names(learner.theta) == ["head.weight", "head.bias"]
    assert built(experiment(), adaptation="anil", hidden_sizes=(4, 4, 4)).rule.adapted == ("mean.6.*", "log_std")
    with pytest.raises(SettingError, match=r"^--adaptation = anil, but the policy Headless .*last_layer"):
        built(with_head(Headless), adaptation="anil")


class Nameless(Navigation2D):
    name = dynamics = property()  # reading them raises AttributeError, as of attributes that are not there


@pytest.mark.parametrize(
    ("tasks", "start"),
    [
        (lambda settings: Navigation2D(20), "--horizon = 6, but episodes of the task distribution have 20 steps"),
        (
            lambda settings: Nameless(6),
            "the task distribution Nameless has no name, dynamics; runs of experiments need",
        ),
        (lambda settings: object(), "the task distribution object has no sample"),
    ],
    ids=["horizon", "name", "protocol"],
)
def test_what_a_run_would_miss_later_is_refused_before_it_begins(tasks, start, tmp_path, capsys):
    with pytest.raises(SettingError, match=f"^{start}"):
        built(experiment(tasks))
    flags = [*TINY, "--horizon", "6", "--run-dir", str(tmp_path / "run")]
    assert error_of(capsys, main, experiment(tasks), flags).startswith(f"error: {start}")
    assert not (tmp_path / "run").exists()


def test_an_oracle_has_all_that_a_run_needs():
    assert isinstance(built(experiment(), observe_task=True).task_distribution, ObservedTasks)


def test_messages_name_flags():
    with pytest.raises(SettingError, match=r"^--multi-step = True without"):
        built(experiment(), multi_step=True)
    with pytest.raises(
        SettingError, match=r"^--inner-step-size-milestones = \(5,\) with --milestone-step-sizes = \(\)"
    ):
        experiment().configure(inner_step_size_milestones=(5,))


def test_the_first_recipe_is_the_base_of_the_others_where_there_is_no_paper():
    own = replace(experiment(), recipes={"base": Recipe({"num_tasks": 7}), "more": Recipe({"inner_steps": 2})})
    assert (own.values()["num_tasks"], own.values("more")["num_tasks"], own.values("more")["inner_steps"]) == (7, 7, 2)
    assert own.recipe_name("") == own.recipe_name("paper") == "base"
    assert [own.shown_name(name) for name in own.recipes] == ["base", "more"]
    with pytest.raises(SettingError, match=r"allowed: 'base', 'more'; the nearest is more"):
        own.recipe_name("mor")
