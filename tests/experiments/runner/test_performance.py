"""The measurements of the page on performance: kept whole or not at all, and tables of them."""

import json
import subprocess

import pytest

from metarl.experiments import benchmark
from metarl.experiments.runner import performance, results
from metarl.experiments.runner.command_line import read
from metarl.experiments.runner.experiment import find_experiment
from tests.experiments.runner.helpers import error_of

SCRIPT = """import json, sys
value = lambda median: {"median": median, "min": median / 2, "max": 2 * median, "share_of_floor": 0.25}
name = sys.argv[1]
found = {"sizes": f"sizes of {name}", "machine": "a machine", "matrix_product_flops": value(2e11)}
if name in ("sine", "omniglot"):
    found |= {"5_steps/seconds": value(0.5), "5_steps/task_by_task_seconds": value(2.0), "relation/seconds": value(0.1)}
else:
    found |= {part: value(3.0) for part in ("meta_iteration_seconds", "adapt_seconds", "update_seconds")}
    found |= {"rollout_steps_per_s": value(123456.0)}
if name == FAILING:
    sys.exit(3)
print(json.dumps(found))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    return tmp_path


def script(folder, failing=""):
    path = folder / "script.py"
    path.write_text(SCRIPT.replace("FAILING", repr(failing)))
    return path


def test_all_cases_are_kept_and_shown(folder):
    told = []
    performance.measure_all(script(folder), told.append)
    assert len(told) == len(performance.CASES)
    kept = json.loads((folder / "performance.json").read_text())
    assert list(kept["cases"]) == list(performance.CASES)
    made = performance.performance_tables()
    [_, _, *rows] = made["performance"].splitlines()
    assert rows[0] == "| 2D navigation | 3 (1.5 to 6) | 0.25 | 3 (1.5 to 6) | 3 (1.5 to 6) | 0.25 | 200 |"
    assert len(rows) == len(performance.REINFORCEMENT)
    [_, _, first, *_] = made["rollout performance"].splitlines()
    assert first == "| 2D navigation | 123,000 (61,700 to 247,000) |  |  |  |"
    [_, _, *rows] = made["few-shot performance"].splitlines()
    assert rows[:2] == [
        "| Omniglot, 5 inner steps | 0.5 (0.25 to 1) | 0.25 | 2 (1 to 4) | 4.00 |",
        "| Omniglot, relation | 0.1 (0.05 to 0.2) | 0.25 |  |  |",
    ]
    assert "| sine | sizes of sine | `benchmark.py sine --threads 1 --repeats 60` |" in made["performance commands"]


def test_nothing_is_kept_where_a_case_fails(folder):
    assert performance.performance_tables() == {}
    with pytest.raises(subprocess.CalledProcessError):
        performance.measure_all(script(folder, failing="sine"), lambda line: None)
    assert not (folder / "performance.json").exists()


@pytest.mark.parametrize("words", performance.CASES.values())
def test_every_case_can_be_configured(words):
    parser_words = words.split()
    name, flags = parser_words[0], [w for w in parser_words[1:] if w != "--json"]
    if "--repeats" in flags:
        at = flags.index("--repeats")
        del flags[at : at + 2]
    experiment = find_experiment(name)
    request = read(experiment, flags)
    experiment.configure(request.recipe, **request.given)


def test_flags_beside_all_are_refused(capsys):
    assert "--threads has no effect with all" in error_of(capsys, benchmark.main, ["all", "--threads", "1"])
    assert "--repeats has no effect with all" in error_of(capsys, benchmark.main, ["--repeats", "1", "all"])
