"""Reproduction: runs are trained, continued, evaluated and kept, once, and what is kept is what the digest says."""

import dataclasses
import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from metarl.experiments import mini_imagenet, navigation_2d, reproduce, sine
from metarl.experiments.runner import reinforcement, report, reproduction, results, training
from metarl.experiments.runner.experiment import find_experiment
from metarl.experiments.runner.recipes import ORACLE, Recipe
from metarl.runs import Run, load_checkpoint
from tests.experiments.runner.few_shot_runs import make_photographs

TINY = {
    "num_tasks": 2,
    "episodes_per_task": 3,
    "horizon": 5,
    "iterations": 2,
    "hidden_sizes": (8,),
    "threads": 1,
    "evaluate_every": 0,
    "evaluation_tasks": 3,
    "evaluation_episodes": 2,
}
RECIPES = {
    "maml": Recipe(TINY, (-40.0, -11.0)),
    "random": Recipe({"iterations": 0}, (-80.0,)),
    "oracle": Recipe(ORACLE),
    "first-order": Recipe({"second_order": False}),
    "maml, four test tasks": Recipe({"evaluation_tasks": 4}, trained_as="maml"),
}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A tiny navigation experiment, with an empty folder of results and a page that asks for its tables."""
    experiment = dataclasses.replace(navigation_2d.EXPERIMENT, recipes=RECIPES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(navigation_2d, "EXPERIMENT", experiment)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report.Report, "pictures", lambda self: [])  # test_results draws them
    (tmp_path / "docs").mkdir()
    page = (
        "before\n<!-- table: overview -->\nold\n<!-- end -->\n<!-- table: navigation_2d comparison -->\n<!-- end -->\n"
    )
    (tmp_path / "docs" / "results.md").write_text(page)
    return tmp_path


def summary(folder):
    return json.loads((folder / "results" / "summary.json").read_text())["navigation_2d"]


def run(*words):
    reproduce.main(["navigation_2d", *words])


def test_seeds_that_are_kept_at_the_same_time_are_all_kept(tiny, monkeypatch):
    run("--recipes", "maml", "--seeds", "0", "1")
    results.row_path("navigation_2d", "maml").unlink()

    def slowly(row, seed, real=results.with_seed):
        time.sleep(0.2)
        return real(row, seed)

    def keep(seed):
        directory = reproduction.RUNS / "navigation_2d" / "maml" / f"seed{seed}"
        reproduction.keep_run(navigation_2d.EXPERIMENT, "maml", directory)

    monkeypatch.setattr(results, "with_seed", slowly)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(keep, (0, 1)))
    kept = results.load_row(results.row_path("navigation_2d", "maml"))["seeds"]
    assert [of["seed"] for of in kept] == [0, 1]


def test_runs_are_trained_evaluated_kept_and_reported(tiny):
    run("--recipes", "maml", "first-order", "--seeds", "0", "1")
    maml = summary(tiny)["maml"]
    assert (maml["seeds"], maml["iterations"], maml["dynamics"]) == ([0, 1], 2, "paper")
    assert maml["command"] == 'python experiments/navigation_2d.py --recipe "maml" --seed 0'
    row = results.load_row(results.row_path("navigation_2d", "maml"))
    assert row["settings"]["num_tasks"] == 2
    assert not row["settings"].keys() & {"seed", "threads", "device"}
    kept = [seed["last"]["return/step_1"] for seed in row["seeds"]]
    assert all(np.mean(of["per_task"]) == pytest.approx(of["mean"], abs=5e-3) for of in kept)
    means = [of["mean"] for of in kept]
    assert maml["return/step_1"]["mean"] == pytest.approx(np.mean(means), abs=1e-3)
    assert maml["return/step_1"]["standard_error"] == pytest.approx(np.std(means, ddof=1) / 2**0.5, abs=1e-3)
    assert maml["best/iterations"] in (0, 1, [0, 1], [1, 0])
    curve, lines = row["seeds"][0]["curve"], Run.open(reproduction.RUNS / "navigation_2d" / "maml" / "seed0").metrics()
    assert curve["env_steps"] == [line["env_steps"] for line in lines]
    assert curve["return/step_1"] == pytest.approx([line["return/step_1"] for line in lines], abs=6e-3)
    page = (tiny / "docs" / "results.md").read_text()
    assert page.startswith("before\n<!-- table: overview -->\n\n| environment |")
    assert f"| {maml['return/step_1']['mean']:.1f} ± {maml['return/step_1']['standard_error']:.1f} (-11.0) |" in page
    assert "| first-order |" in page


def test_what_is_done_is_not_done_again_and_what_was_stopped_goes_on(tiny, monkeypatch):
    trained = []
    main = training.main

    def counted(experiment, words, evaluated):
        trained.append(words)
        main(experiment, words, evaluated)

    monkeypatch.setattr(training, "main", counted)
    run("--recipes", "maml", "--seeds", "0", "--iterations", "1")
    run("--recipes", "maml", "--seeds", "0")
    run("--recipes", "maml", "--seeds", "0", "--iterations", "1")
    assert [words[0] for words in trained] == ["--recipe", "--resume"]
    assert summary(tiny)["maml"]["iterations"] == 2
    run("--recipes", "maml", "--seeds", "1", "--iterations", "3")
    assert summary(tiny)["maml"]["command"].endswith('--seed 0 && python experiments/navigation_2d.py --recipe "maml" '
                                                     "--seed 1 --iterations 3")  # fmt: skip


def test_recipes_that_are_trained_alike_share_a_run(tiny, monkeypatch):
    run("--recipes", "maml", "--seeds", "0")
    monkeypatch.setattr(training, "main", None)
    run("--recipes", "maml, four test tasks", "--seeds", "0")
    rows = [results.load_row(results.row_path("navigation_2d", name)) for name in ("maml", "maml, four test tasks")]
    assert [row["settings"]["evaluation_tasks"] for row in rows] == [3, 4]
    assert [len(row["seeds"][0]["last"]["return/step_1"]["per_task"]) for row in rows] == [3, 4]
    assert rows[1]["command"] == 'python experiments/navigation_2d.py --recipe "maml, four test tasks" --seed 0'
    assert rows[0]["seeds"][0]["curve"] == rows[1]["seeds"][0]["curve"]


def test_the_weights_of_the_leading_row_give_its_numbers_again(tiny):
    run("--recipes", "maml", "first-order", "--seeds", "0")
    [path] = (tiny / "results").rglob("*.pt")
    assert path.name == "maml_seed0.pt"
    state = load_checkpoint(path)["learner"]
    assert "outer" not in state
    experiment = find_experiment("navigation_2d")
    settings = experiment.configure("maml")
    learner = experiment.build(settings)
    learner.load_state_dict({**learner.state_dict(), **state})
    row = results.load_row(results.row_path("navigation_2d", "maml"))
    [kept] = [seed["last"]["return/step_2"]["mean"] for seed in row["seeds"]]
    assert experiment.evaluate(settings, learner, "test").mean[2] == pytest.approx(kept)


def test_without_arguments_every_row_and_its_command_are_listed(tiny, capsys, monkeypatch):
    monkeypatch.setattr(results, "EXPERIMENTS", ("navigation_2d",))
    run("--recipes", "random", "oracle", "--seeds", "0")
    assert summary(tiny)["random"]["iterations"] == 0
    assert "return/step_1" not in summary(tiny)["oracle"]
    capsys.readouterr()
    reproduce.main([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "navigation_2d"
    assert lines[1:3] == ["  maml: no results", '    python experiments/navigation_2d.py --recipe "maml" --seed 0']
    assert lines[3].startswith(f"  random: return {summary(tiny)['random']['return/step_0']['mean']:.1f} / ")
    assert len(lines) == 1 + 2 * len(RECIPES)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["navigation_2d", "--recipes", "mamm"], "--recipe = 'mamm'"),
        (["navigation_2d", "--seeds", "-1"], "--seeds = -1"),
        (["navigation_2d", "--data", "images"], "--data means nothing in navigation_2d"),
        (["navigation_2d", "--compile"], "--compile means nothing in navigation_2d"),
        (["navigation_2d", "--report"], "--report with navigation_2d"),
        (["navigation_2d", "--merge", "results"], "--merge with navigation_2d"),
        (["--merge", "elsewhere"], "elsewhere holds no rows"),
        (["--merge", "elsewhere", "--seeds", "1"], "--seeds without NAME"),
        (["navigation"], "navigation"),
        (["--recipes", "maml"], "--recipes without NAME"),
        (["--report", "--seeds", "1"], "--seeds without NAME"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(tiny, capsys, words, named):
    with pytest.raises(SystemExit) as stop:
        reproduce.main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert named in error
    assert error.count("\n") == 1
    assert not (tiny / "runs").exists()


def test_a_run_that_is_kept_is_not_replaced_by_a_shorter_one(tiny, capsys):
    run("--recipes", "maml", "--seeds", "0")
    (tiny / "runs").rename(tiny / "elsewhere")
    with pytest.raises(SystemExit) as stop:
        run("--recipes", "maml", "--seeds", "0", "--iterations", "1")
    assert stop.value.code == 2
    assert "--iterations = 1; allowed: at least 2" in capsys.readouterr().err
    assert not (tiny / "runs").exists()


def test_seeds_of_another_machine_are_merged(tiny, capsys):
    run("--recipes", "maml", "--seeds", "0", "1")
    path = results.row_path("navigation_2d", "maml")
    both = results.load_row(path)
    path.unlink()
    run("--recipes", "maml", "random", "--seeds", "1")
    (tiny / "results").rename(tiny / "elsewhere")
    run("--recipes", "maml", "--seeds", "0")
    capsys.readouterr()
    reproduce.main(["--merge", "elsewhere"])
    assert capsys.readouterr().out == "navigation_2d/maml.json: seeds 1\nnavigation_2d/random.json: seeds 1\n"
    assert results.load_row(path) == both
    assert summary(tiny)["random"]["seeds"] == [1]
    before = {of: of.read_bytes() for of in (tiny / "results").rglob("*.json")}
    reproduce.main(["--merge", "elsewhere"])  # once more: nothing is new
    assert capsys.readouterr().out == ""
    assert {of: of.read_bytes() for of in (tiny / "results").rglob("*.json")} == before


@pytest.mark.parametrize(
    "broken", ["{", '{"seeds": 0}', '{"experiment": "walking"}', '{"dynamics": "gymnasium"}', '{"name": "of old"}']
)
def test_a_folder_that_cannot_be_merged_changes_nothing(tiny, capsys, broken):
    run("--recipes", "maml", "random", "--seeds", "0", "1")
    path = results.row_path("navigation_2d", "random")
    (tiny / "elsewhere" / "navigation_2d").mkdir(parents=True)
    for of in path.parent.glob("*.json"):
        (tiny / "elsewhere" / "navigation_2d" / of.name).write_text(of.read_text())
    row = results.load_row(path)
    other = broken if broken in ("{", '{"seeds": 0}') else json.dumps({**row, **json.loads(broken)})
    (tiny / "elsewhere" / "navigation_2d" / path.name).write_text(other)
    results.row_path("navigation_2d", "maml").unlink()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        reproduce.main(["--merge", "elsewhere"])
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert not results.row_path("navigation_2d", "maml").exists()
    assert results.load_row(path) == row


def test_an_interrupt_ends_the_reproduction_and_keeps_nothing_half_done(tiny, monkeypatch):
    step, steps = reinforcement.step, []

    def interrupted(settings, learner, num_tasks):
        steps.append(learner.iteration)
        if len(steps) == 1:
            signal.raise_signal(signal.SIGINT)
        return step(settings, learner, num_tasks)

    monkeypatch.setattr(reinforcement, "step", interrupted)
    with pytest.raises(SystemExit) as stop:
        run("--recipes", "maml", "--seeds", "0", "1")
    assert (stop.value.code, steps) == (130, [0])
    assert not (tiny / "results").exists()
    run("--recipes", "maml", "--seeds", "0")
    assert steps == [0, 1]
    assert summary(tiny)["maml"]["iterations"] == 2


def test_a_supervised_run_is_evaluated_with_every_number_of_shots(tiny, monkeypatch):
    small = {
        "iterations": 4,
        "num_tasks": 3,
        "record_every": 2,
        "checkpoint_every": 2,
        "evaluate_every": 0,
        "threads": 1,
    }
    small |= {"hidden_sizes": (6,), "inner_step_size": 0.01, "evaluation_tasks": 5, "evaluation_steps": 2}
    shots = {"": {"evaluation_shots": 5}, "shots_10/": {"evaluation_shots": 10}}
    recipes = {"maml": Recipe(small, (0.67,), evaluations=shots)}
    monkeypatch.setattr(sine, "EXPERIMENT", dataclasses.replace(sine.EXPERIMENT, recipes=recipes))
    (tiny / "docs" / "results.md").write_text("<!-- table: sine -->\n<!-- end -->\n")
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled.append(function) or function)
    reproduce.main(["sine", "--recipes", "maml", "--seeds", "0", "1", "--iterations", "2"])
    assert not compiled
    reproduce.main(["sine", "--recipes", "maml", "--seeds", "0", "--compile"])
    assert len(compiled) == 1
    entry = json.loads((tiny / "results" / "summary.json").read_text())["sine"]["maml"]
    assert (entry["seeds"], entry["iterations"], entry["shots"], entry["evaluation_tasks"]) == ([0, 1], [4, 2], 5, 5)
    words = 'python experiments/sine.py --recipe "maml" --seed'
    assert entry["command"] == f"{words} 0 && {words} 1 --iterations 2"
    [seed, _] = results.load_row(results.row_path("sine", "maml"))["seeds"]
    assert seed["curve"]["iteration"] == [2, 4]
    for name in ("mse/step_2", "shots_10/mse/step_2"):
        kept = seed["last"][name]
        assert np.mean(kept["per_task"]) == pytest.approx(kept["mean"], abs=1e-5)
        assert entry[name]["per_seed"][0] == pytest.approx(kept["mean"], abs=1e-5)
        assert entry[name]["diverged_tasks"] == 0
    assert entry["mse/step_2"]["per_seed"] != entry["shots_10/mse/step_2"]["per_seed"]
    page = (tiny / "docs" / "results.md").read_text()
    assert f"| maml, K = 5 | {entry['mse/step_0']['mean']:.3f} ± " in page
    assert "| maml, K = 10 |" in page
    assert "| 0.67 |" in page


def test_a_run_on_images_keeps_its_curves_and_has_a_table(tiny, monkeypatch):
    make_photographs(tiny / "images")
    small = {"method": "prototypical", "ways": 2, "training_ways": 3, "queries": 1, "filters": 4, "iterations": 1}
    small |= {"record_every": 1, "checkpoint_every": 1, "evaluate_every": 0, "threads": 1, "evaluation_tasks": 3}
    recipes = {"5-way 1-shot": Recipe(), "prototypical": Recipe({**small, "shots": 1})}
    experiment = dataclasses.replace(mini_imagenet.EXPERIMENT, recipes=recipes)
    monkeypatch.setattr(mini_imagenet, "EXPERIMENT", experiment)
    (tiny / "docs" / "results.md").write_text("<!-- table: mini_imagenet -->\n<!-- end -->\n")
    words = ["--data", str(tiny / "images"), "--cache", str(tiny / "cache")]
    reproduce.main(["mini_imagenet", "--recipes", "prototypical", "--seeds", "0", *words])
    entry = json.loads((tiny / "results" / "summary.json").read_text())["mini_imagenet"]["prototypical"]
    [seed] = results.load_row(results.row_path("mini_imagenet", "prototypical"))["seeds"]
    assert {name: curve["counts"] for name, curve in seed["last"]["curves"].items()} == {
        "shots": [1, 2, 3],
        "ways": [2],
    }
    assert entry["accuracy/step_0"]["mean"] == pytest.approx(seed["last"]["accuracy/step_0"]["mean"], abs=1e-5)
    assert (
        f"| prototypical | {100 * entry['accuracy/step_0']['mean']:.1f} ± "
        in (tiny / "docs" / "results.md").read_text()
    )
