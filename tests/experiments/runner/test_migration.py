"""Runs of the version before config.json had one: flat settings, former names, and states of checkpoints."""

import copy

import pytest
import torch

import metarl
from metarl.core.settings import SettingError
from metarl.experiments import navigation_2d, open_run
from metarl.experiments.runner import migration
from metarl.experiments.runner.config_file import VERSION, settings_of
from metarl.experiments.runner.flat_settings import to_flat
from metarl.runs import Run, load_checkpoint, save_checkpoint
from tests.experiments.runner.helpers import assert_same_parameters, parameters, resume, train

OLD = {  # as commit 2611d6a wrote them
    "seed": 3, "iterations": 20, "tasks": 7, "episodes": 5, "budget": "episodes", "horizon": 8, "discount": 0.99,
    "gae_lambda": 1.0, "support_lambda": None, "survival_bonus": 0.0, "bounds_penalty": 0.0, "bootstrap": False,
    "baseline": "linear", "weighting": "timestep", "inner_steps": 1, "inner_step_size": 0.5, "later_factor": 0.4,
    "order": "first", "estimator": "score", "initial_sampling": False, "multi_step": False, "adaptation": "maml",
    "context_size": 5, "outer": "trpo", "observe_task": False, "max_kl": 0.02, "product_fraction": 0.3,
    "outer_step_size": 0.001, "epochs": 5, "clip": 0.2, "inner_kl": 0.01, "reptile_step_size": 0.1,
    "hidden_sizes": [6], "activation": "relu", "max_failed": 0.1, "device": "auto", "threads": 1, "task_chunk": 0,
    "shrink_chunks": False, "checkpoint_every": 1, "evaluate_every": 0, "evaluation_tasks": 4,
    "evaluation_episodes": 3, "evaluation_steps": 2,
}  # fmt: skip


def migrated(settings=None, **config):
    content = {"experiment": "navigation_2d", "settings": {**OLD, **(settings or {})}, **config}
    return settings_of(navigation_2d.EXPERIMENT, content)


def test_every_old_setting_arrives_under_its_new_name():
    found = to_flat(migrated())
    renamed = {"tasks": "num_tasks", "episodes": "episodes_per_task", "later_factor": "extra_step_scale",
               "product_fraction": "hvp_sample_fraction", "order": "second_order"}  # fmt: skip
    without_effect = {"context_size", "outer_step_size", "epochs", "clip", "inner_kl", "reptile_step_size"}
    expected = {renamed.get(name, name): value for name, value in OLD.items() if name not in without_effect}
    expected |= {"second_order": False, "hidden_sizes": (6,)}
    new = {"inner_step_size_milestones": (), "milestone_step_sizes": ()}
    new |= {"method": "maml", "averaged_steps": False, "step_unit": "gradient", "lanes": 0}
    assert found == expected | new
    ppo = migrated({"outer": "ppo", "clip": 0.3, "order": "second"})
    assert (ppo.outer, ppo.rule.second_order) == (metarl.PPO(clip=0.3), True)


def test_what_an_older_file_does_not_name_is_the_papers():
    settings = {name: value for name, value in OLD.items() if name not in ("later_factor", "baseline", "multi_step")}
    found = settings_of(navigation_2d.EXPERIMENT, {"experiment": "navigation_2d", "settings": settings})
    assert (found.rule.extra_step_scale, found.advantages.baseline) == (0.5, "linear")


def test_other_step_sizes_of_resumed_runs_become_milestones():
    resumed = [
        {"iteration": 5, "commit": "a"},
        {"iteration": 7, "commit": "a", "changed": {"inner_step_size": [0.5, 0.2]}},
        {"iteration": 9, "commit": "b", "changed": {"inner_step_size": [0.2, 0.1]}},
    ]
    rule = migrated({"inner_step_size": 0.1}, resumed=resumed).rule
    assert [rule.at(iteration).step_size for iteration in (0, 6, 7, 8, 9, 20)] == [0.5, 0.5, 0.2, 0.2, 0.1, 0.1]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"speed": 3}, "setting speed"), ({"tasks": 0}, "--num-tasks = 0"), ({"outer": "sgd"}, "--outer = 'sgd'")],
)
def test_what_cannot_be_migrated_is_refused_by_name(change, message):
    with pytest.raises(SettingError, match=message):
        migrated(change)


@pytest.mark.parametrize("resumed", [3, [3], [{"changed": {"inner_step_size": [0.1, 0.2]}}]])
def test_notes_of_resuming_that_make_no_sense_are_refused(resumed):
    with pytest.raises(SettingError, match="resumed"):
        migrated(resumed=resumed)


def test_old_states_get_the_new_names():
    adam = {"count": torch.tensor(3.0), "mean": torch.ones(5), "square": torch.zeros(5), "penalties": torch.ones(1)}
    old = {"learner": {"theta": {}, "outer": adam}, "progress": {"best_return": -1.0, "best_iteration": 2}}
    before = copy.deepcopy(old)
    new = migration.checkpoint(old)
    assert new["progress"] == {"best_metric": -1.0, "best_iteration": 2}
    outer = new["learner"]["outer"]
    assert outer.keys() == {"adam", "penalties"}
    assert outer["adam"]["count"] == 3
    assert torch.equal(outer["adam"]["mean"]["theta"], torch.ones(5))
    assert torch.equal(outer["adam"]["square"]["theta"], torch.zeros(5))
    assert old.keys() == before.keys()
    assert old["progress"] == before["progress"]
    assert migration.checkpoint(new) == new


@pytest.mark.parametrize("outer", ["trpo", "adam", "ppo"])
def test_an_old_run_continues_as_if_it_were_new(tmp_path, outer):
    """A run of today is written in the old words, and resumed: it goes on as the one that was not."""
    flags = ["--seed", 3, "--num-tasks", 7, "--episodes-per-task", 5, "--no-second-order", "--extra-step-scale", 0.4,
             "--outer", outer]  # fmt: skip
    flags += ["--max-kl", 0.02, "--hvp-sample-fraction", 0.3] if outer == "trpo" else []
    for name in ("old", "new"):
        train("--iterations", 2, *flags, "--run-dir", tmp_path / name)
    state = load_checkpoint(tmp_path / "old" / "checkpoint.pt")
    state["progress"]["best_return"] = state["progress"].pop("best_metric")
    if outer != "trpo":
        adam = state["learner"]["outer"].pop("adam")
        moments = {name: adam[name]["theta"] for name in ("mean", "square")}
        state["learner"]["outer"] |= {"count": adam["count"], **moments}
    state["config"] = {"experiment": "navigation_2d", "commit": None, "settings": {**OLD, "outer": outer}}
    save_checkpoint(tmp_path / "old" / "checkpoint.pt", state)
    Run(tmp_path / "old").write_config(state["config"])
    for name in ("old", "new"):
        resume(tmp_path / name, "--iterations", 4)
    assert_same_parameters(parameters(tmp_path / "old"), parameters(tmp_path / "new"))
    assert Run(tmp_path / "old").config["version"] == VERSION
    assert open_run(tmp_path / "old")[2].iteration == 4
