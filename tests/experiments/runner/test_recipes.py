"""Recipes are settings of their experiment, under the names that results have."""

import json
from pathlib import Path

import pytest

from metarl.core.settings import SettingError
from metarl.experiments import navigation_2d
from metarl.experiments.runner.experiment import find_experiment
from metarl.experiments.runner.training import main
from metarl.runs import Run
from tests.experiments.runner.helpers import TINY, parameters, state_of
from tests.experiments.runner.test_command_line import SCRIPTS

SUMMARY = json.loads((Path(navigation_2d.__file__).parent / "results" / "summary.json").read_text())


def values(name, recipe=""):
    return find_experiment(name).values(recipe)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_recipe_can_be_configured_and_every_published_row_is_one(name):
    experiment = find_experiment(name)
    for recipe in experiment.recipes:
        experiment.configure(recipe)
    assert set(SUMMARY.get(name, {})) <= set(experiment.recipes)


def test_recipes_that_share_their_training_differ_in_test_tasks_alone():
    experiment = find_experiment("omniglot")
    shared = {name: recipe.trained_as for name, recipe in experiment.recipes.items() if recipe.trained_as}
    assert shared["20-way 5-shot, r2-d2"] == "5-way 5-shot, r2-d2"
    assert shared["20-way 5-shot, siamese"] == "5-way 1-shot, siamese"
    for name, trained in shared.items():
        own, other = experiment.values(name), experiment.values(trained)
        differing = {of for of in own if own[of] != other.get(of)}
        if own["method"] in ("siamese", "simple-shot"):  # which see no episodes in training
            assert differing <= {"ways", "shots"}
        else:
            by_ways = own["method"] == "proto-maml"  # trained on tasks like its own
            assert differing == ({"ways", "training_ways"} if by_ways else {"ways"})
            assert own["training_ways"] == (other["ways"] if by_ways else other["training_ways"])
            assert own["training_ways"]


def test_the_papers_settings():
    names = ("num_tasks", "episodes_per_task", "horizon", "inner_step_size", "max_kl", "iterations",
             "evaluation_episodes", "extra_step_scale")  # fmt: skip
    found = {
        name: tuple(values(name, "paper")[of] for of in names) for name in (*SCRIPTS[:6], "meta_world")
    }  # others have another paper
    assert found == {
        "navigation_2d": (20, 20, 100, 0.5, 0.01, 100, 40, 0.5),
        "half_cheetah_direction": (40, 20, 200, 0.1, 0.02, 100, 20, 0.5),
        "half_cheetah_velocity": (40, 10, 200, 0.1, 0.01, 475, 20, 0.5),
        "ant_velocity": (40, 20, 200, 0.1, 0.01, 375, 20, 0.5),
        "ant_direction": (40, 40, 200, 0.1, 0.01, 575, 40, 0.01),
        "ant_goal": (40, 20, 200, 0.1, 0.01, 500, 20, 0.5),
        "meta_world": (20, 10, 500, 0.1, 0.01, 100, 10, 0.5),
    }
    assert values("ant_goal", "paper")["dynamics"] == "paper"


def test_paper_is_another_name_of_the_papers_recipe():
    experiment = find_experiment("half_cheetah_direction")
    assert experiment.recipe_name("paper") == experiment.recipe_name("maml") == "maml"
    assert "paper" not in experiment.recipes
    assert experiment.values("paper") == experiment.values("maml")
    with pytest.raises(SettingError, match=r"--recipe = 'mamml'.*the nearest is maml"):
        experiment.recipe_name("mamml")


def test_recipes_change_the_papers_settings_and_flags_change_recipes():
    promp = values("half_cheetah_direction", "ProMP")
    assert (promp["outer"], promp["clip"], promp["num_tasks"]) == ("ppo", 0.2, 40)
    assert "max_kl" not in promp  # of the paper's recipe, whose optimiser is another one
    experiment = find_experiment("half_cheetah_direction")
    assert experiment.values("ProMP", {"clip": 0.3})["clip"] == 0.3
    back = experiment.values("ProMP", {"outer": "trpo", "max_kl": 0.5})
    assert (back["max_kl"], "clip" in back) == (0.5, False)


def test_schedules_are_milestones():
    found = values("ant_direction", "first-order, small batches, two tasks, bounds penalty")
    assert found["inner_step_size_milestones"] == (200, 300, 420, 560, 800)
    assert found["milestone_step_sizes"] == (0.06, 0.04, 0.03, 0.02, 0.015)
    assert (found["bounds_penalty"], found["survival_bonus"], found["num_tasks"]) == (0.05, 2.0, 2)


def test_a_recipe_is_run_by_its_script_and_recorded(tmp_path):
    run = tmp_path / "run"
    main(navigation_2d.EXPERIMENT, [*TINY, "--recipe", "Meta-SGD", "--run-dir", str(run)])
    config = Run.open(run).config
    assert config["recipe"] == "Meta-SGD"
    assert config["settings"]["rule"]["variant"] == "meta-sgd"
    assert any(name.startswith("step_size.") for name in parameters(run))


def test_an_untrained_policy_is_evaluated(tmp_path):
    run, sizes = tmp_path / "run", [word for word in TINY if word != "--iterations"]
    sizes.remove("2")
    main(navigation_2d.EXPERIMENT, [*sizes, "--recipe", "random", "--run-dir", str(run)])
    assert state_of(run)["iteration"] == 0
    record = json.loads((run / "evaluation.json").read_text())
    assert (record["iteration"], len(record["return/step_2"]["per_task"])) == (0, 4)
    assert not (run / "metrics.jsonl").exists()


def test_the_scale_of_extra_steps_is_refused_where_steps_are_averaged():
    experiment = find_experiment("half_cheetah_direction")
    with pytest.raises(SettingError, match="--extra-step-scale has no effect with --averaged-steps"):
        experiment.configure("recommended", extra_step_scale=0.3)
    assert experiment.configure("paper", extra_step_scale=0.3).rule.extra_step_scale == 0.3


def test_imaml_has_no_order_of_derivatives():
    with pytest.raises(SettingError, match="--second-order has no effect with --method imaml"):
        find_experiment("omniglot").configure("5-way 1-shot, iMAML", second_order=False)
