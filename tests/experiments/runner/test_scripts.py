"""Experiments of one's own: scripts in any folder, whose runs are evaluated, adapted, opened and resumed."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from metarl.experiments import adapt, evaluate, navigation_2d, open_run
from metarl.experiments.runner.experiment import find_experiment
from metarl.experiments.runner.scripts import entry_of, experiment_of_config
from metarl.experiments.runner.training import main
from metarl.runs import RunError
from tests.experiments.runner.helpers import TINY, error_of

SCRIPT = """
from metarl.envs import Navigation2D
from metarl.experiments import Recipe, ReinforcementExperiment, main

EXPERIMENT = ReinforcementExperiment(
    "plane",
    "Meta-train in the plane.",
    recipes={"default": Recipe({"inner_step_size": 0.3}), "short": Recipe({"iterations": 1})},
    task_distribution=lambda settings: Navigation2D(settings.environment.horizon),
)
main(EXPERIMENT)
"""
SMALL = [*TINY, "--iterations", "1"]


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """Neither the folders nor the modules of scripts stay with the next test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = {*sys.modules}
    yield
    for name in sys.modules.keys() - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith("/tmp"):
            del sys.modules[name]


def written(folder, text=SCRIPT, name="plane.py"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def loaded(script, name="plane"):
    return experiment_of_config({"experiment": name}, script.parent, script)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a script and a run of it."""
    folder = tmp_path_factory.mktemp("project")
    main(loaded(written(folder / "code")), [*SMALL, "--run-dir", str(folder / "runs" / "first")], evaluated=False)
    return folder


@pytest.fixture
def moved(project, tmp_path):
    """The same project in another folder, so that the absolute path of the script is another one."""
    shutil.copytree(project, tmp_path / "elsewhere")
    config = json.loads((tmp_path / "elsewhere/runs/first/config.json").read_text())
    config["script"]["path"] = str(tmp_path / "nowhere" / "plane.py")
    (tmp_path / "elsewhere/runs/first/config.json").write_text(json.dumps(config))
    return tmp_path / "elsewhere"


def test_a_run_names_its_script_and_its_recipe_with_the_settings_of_it(project):
    config = json.loads((project / "runs/first/config.json").read_text())
    script = {"path": str((project / "code/plane.py").resolve()), "relative": "../../code/plane.py", "module": None}
    assert config["script"] == script
    assert (config["experiment"], config["recipe"]) == ("plane", "default")
    assert config["settings"]["rule"]["step_size"] == 0.3


def test_its_runs_are_evaluated_adapted_and_opened(project, capsys, tmp_path, monkeypatch):
    run = project / "runs/first"
    monkeypatch.chdir(tmp_path)
    evaluate.main([str(run), "--tasks", "2", "--output", str(tmp_path / "evaluation")])
    assert "plane after iteration 1, 2 test tasks" in capsys.readouterr().out
    adapt.main([str(run), "--task", '{"goal": [0.1, 0.2]}', "--output", str(tmp_path / "agent.pt")])
    assert (tmp_path / "agent.pt").is_file()
    experiment, settings, learner = open_run(run)
    assert (experiment.name, settings.rule.step_size, learner.iteration) == ("plane", 0.3, 1)


def test_a_script_without_a_guard_starts_no_run_when_it_is_imported(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["plane.py"])
    assert loaded(project / "code" / "plane.py").name == "plane"
    assert not (tmp_path / "runs").exists()


def test_a_script_that_moved_with_its_runs_is_found(moved):
    experiment, _, learner = open_run(moved / "runs/first")
    assert Path(sys.modules[experiment.task_distribution.__module__].__file__) == (moved / "code/plane.py").resolve()
    assert learner.iteration == 1


def test_a_script_that_moved_alone_must_be_named(moved, capsys, tmp_path):
    (moved / "code/plane.py").rename(tmp_path / "later.py")
    run = str(moved / "runs/first")
    line = error_of(capsys, evaluate.main, [run])
    assert "nowhere/plane.py" in line
    assert "--script FILE" in line
    assert open_run(run, script=tmp_path / "later.py")[2].iteration == 1
    adapt.main([run, "--task", '{"goal": [0.1, 0.2]}', "--script", str(tmp_path / "later.py")])
    main(loaded(tmp_path / "later.py"), ["--resume", run, "--iterations", "2"], evaluated=False)
    assert open_run(run)[2].iteration == 2  # a resumed run notes where its script is now
    assert "does not exist" in error_of(capsys, evaluate.main, [run, "--script", str(tmp_path / "no.py")])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import numpy\nimport no_such_package\n", ["ModuleNotFoundError", "'no_such_package'", "line 2"]),
        ("def (:\n", ["SyntaxError"]),
        ("raise SystemExit(3)\n", ["SystemExit"]),
        (SCRIPT.replace('"plane"', '"other"'), ["has no experiment 'plane'", "found: other"]),
    ],
)
def test_what_fails_in_a_script_is_named(moved, capsys, text, words):
    written(moved / "code", text)
    line = error_of(capsys, evaluate.main, [str(moved / "runs/first")])
    assert all(word in line for word in ["code/plane.py", *words])


def test_a_built_in_script_that_cannot_be_imported_says_why(monkeypatch):
    monkeypatch.delitem(sys.modules, "metarl.experiments.sine", raising=False)
    monkeypatch.setitem(sys.modules, "metarl.experiments.runner.few_shot", None)
    with pytest.raises(RunError, match=r"'sine' cannot be imported: .*few_shot"):
        find_experiment("sine")
    for unknown in ("sin", "runner", "../sine", "evaluate"):
        with pytest.raises(RunError, match="is not known"):
            find_experiment(unknown)


@pytest.mark.parametrize("entry", ["plane.py", 3, {"path": 3}, {"path": ["plane.py"]}])
def test_an_entry_of_another_kind_is_refused(moved, capsys, entry):
    path = moved / "runs/first/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "script": entry}))
    assert f"{path}: script = " in error_of(capsys, evaluate.main, [str(path.parent)])


def test_experiments_of_this_package_need_no_script(tmp_path):
    assert entry_of(navigation_2d.EXPERIMENT, tmp_path) == {}


def test_an_experiment_of_a_notebook_is_found_where_it_is_and_needs_a_script_elsewhere(tmp_path, monkeypatch, project):
    experiment = loaded(project / "code/plane.py")
    held_by = sys.modules[experiment.task_distribution.__module__]
    monkeypatch.delitem(sys.modules, held_by.__name__)
    assert entry_of(experiment, tmp_path) == {"script": None}
    config = {"experiment": "plane", "script": None}
    with pytest.raises(RunError, match=r"names no script .* --script FILE"):
        experiment_of_config(config, tmp_path)
    monkeypatch.setattr(sys.modules["__main__"], "MINE", experiment, raising=False)
    assert experiment_of_config(config, tmp_path) is experiment


@pytest.mark.parametrize("file", ["mine/plane.py", "mine/plane/__init__.py"])
def test_a_module_of_a_package_is_imported_as_one(tmp_path, file):
    written(tmp_path / "mine", "", "__init__.py")
    written(tmp_path / "mine", "NAME = 'plane'\n", "names.py")
    script = tmp_path / file
    written(script.parent, "from mine.names import NAME\n" + SCRIPT.replace('"plane"', "NAME"), script.name)
    entry = {"path": str(script), "relative": file, "module": "mine.plane"}
    experiment = experiment_of_config({"experiment": "plane", "script": entry}, tmp_path)
    assert sys.modules["mine.plane"].EXPERIMENT is experiment
    assert entry_of(experiment, tmp_path)["script"] == entry
