"""What is kept of runs: the files, their digest, and the tables, pictures and pages made from them."""

import dataclasses
import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from metarl.experiments.runner import report, results, tables
from metarl.experiments.runner.arrival import Arrival, arrival
from metarl.experiments.runner.digest import bootstrap_interval, digest, summarise
from metarl.experiments.runner.experiment import find_experiment
from metarl.experiments.runner.flat_settings import to_flat
from metarl.experiments.runner.method_table import FAMILIES, MethodEntry
from metarl.runs import RunError, load_checkpoint

METHODS = report.ROOT / "docs" / "guides" / "few_shot_methods.md"
PAGES = [report.ROOT / "docs" / "results.md", METHODS, results.FOLDER / "README.md"]


@pytest.fixture(scope="module")
def kept():
    return report.Report()


def seed_entry(seed, mean, **settings):
    metric = {"mean": mean, "standard_error": 0.5, "per_task": [mean - 1, mean + 1]}
    return {
        "seed": seed,
        "commit": "abc",
        "machine": "x86_64, 2 cores",
        "seconds": 10,
        "settings": {"iterations": 2, **settings},
        "last": {"iterations": 2, "env_steps": 100, "return/step_0": metric},
    }


def test_a_short_curve_stays_and_a_long_one_becomes_means_of_blocks():
    curve = {"iteration": list(range(1, 1001)), "return/step_1": [float(i) for i in range(1000)]}
    assert results.thin(curve, 1000) == curve
    thinned = results.thin(curve)
    assert len(thinned["iteration"]) == results.CURVE_POINTS
    assert thinned["iteration"][:2] == [5, 10]
    assert thinned["return/step_1"][:2] == [2.0, 7.0]
    ragged = results.thin({"iteration": [1, 2, 3], "mse/step_1": [1.0, 2.0, 5.0]}, 2)
    assert ragged == {"iteration": [2, 3], "mse/step_1": [1.5, 5.0]}


def test_a_row_is_written_with_its_lists_on_one_line_and_read_again(tmp_path):
    row = {"format": 1, "experiment": "e", "name": "n", "seeds": [seed_entry(0, 1.0)], "empty": {}, "none": None}
    path = tmp_path / "e" / "n.json"
    results.save_row(path, row)
    assert results.load_row(path) == row
    assert "[0.0,2.0]" in path.read_text()


@pytest.mark.parametrize(
    ("text", "named"), [("[", "not JSON"), ("{}", "not a row"), ('{"format": 2}', "not a row")], ids=str
)
def test_a_file_that_is_not_a_row_is_refused(tmp_path, text, named):
    (tmp_path / "n.json").write_text(text)
    with pytest.raises(RunError, match=named):
        results.load_row(tmp_path / "n.json")


def test_a_row_of_a_newer_format_is_refused(tmp_path):
    results.save_row(tmp_path / "n.json", {"format": 2, "experiment": "e", "name": "n", "seeds": []})
    with pytest.raises(RunError, match="format 2"):
        results.load_row(tmp_path / "n.json")


def test_seeds_are_sorted_replaced_and_share_their_settings():
    row = results.with_seed({"seeds": []}, seed_entry(1, 1.0, gae_lambda=1.0))
    row = results.with_seed(row, seed_entry(0, 2.0, gae_lambda=1.0, iterations=3))
    assert row["settings"] == {"gae_lambda": 1.0}
    assert [(of["seed"], of["settings"]) for of in row["seeds"]] == [(0, {"iterations": 3}), (1, {"iterations": 2})]
    row = results.with_seed(row, seed_entry(0, 5.0, gae_lambda=1.0))
    assert row["settings"] == {"gae_lambda": 1.0, "iterations": 2}
    assert [of["last"]["return/step_0"]["mean"] for of in row["seeds"]] == [5.0, 1.0]


def test_a_command_names_the_iterations_where_they_are_not_the_recipes():
    words = 'python experiments/e.py --recipe "a, b"'
    assert results.command("e", "a, b", {0: 5, 1: 5}, 5) == f"{words} --seed 0"
    expected = f"{words} --seed 0 --iterations 3 && {words} --seed 2"
    assert results.command("e", "a, b", {0: 3, 1: 3, 2: 5}, 5) == expected


def test_training_is_compared_over_a_window_of_environment_steps():
    curve = {"env_steps": [1, 2, 3, 4, 5, 6, 10, 60, 90, 100], "return/step_1": [float(i) for i in range(10)]}
    assert results.training_return(curve, [80, 100]) == 8.5
    assert results.training_return(curve, [50, 90]) == 7.5
    assert results.training_return(curve, [80, 101]) is None
    assert results.training_return({"env_steps": [1, 200], "return/step_0": [0.0, 0.0]}, [80, 100]) is None
    assert results.training_window([], 100) == [80, 100]
    kept = {"seeds": [{"training": {"env_steps": [8, 10]}}, {}]}
    assert results.training_window([{"seeds": [{}]}, kept], 100) == [8, 10]


def test_the_digest_has_means_over_seeds_and_their_standard_error():
    row = results.with_seed({"command": "c", "seeds": []}, seed_entry(0, 1.0))
    row = results.with_seed(row, {**seed_entry(1, 4.0), "resumed": [{"iteration": 7, "commit": "def"}]})
    entry = digest({"e": {"n": row}})["e"]["n"]
    expected = {"mean": 2.5, "standard_error": 1.5, "per_seed": [1.0, 4.0], "standard_error_over_tasks": [0.5, 0.5]}
    assert entry["return/step_0"] == {**expected, "bootstrap_95": None}
    assert (entry["seeds"], entry["iterations"], entry["env_steps"]) == ([0, 1], 2, 100)
    assert entry["commit"] == ["abc", "abc, def after 7"]


def test_the_bootstrap_interval_is_between_the_quantiles_of_all_resamples():
    values = [1.0, 2.0, 4.0, 9.0]
    means = [np.mean(drawn) for drawn in itertools.product(values, repeat=4)]
    assert bootstrap_interval(values) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.1)
    assert bootstrap_interval(values[:2]) is None


def arriving(returns, every=1):
    iterations = [every * (index + 1) for index in range(len(returns))]
    curve = {"iteration": iterations, "env_steps": [100 * i for i in iterations], "return/step_1": returns}
    return {"seconds": 600, "last": {"iterations": iterations[-1], "env_steps": 100 * iterations[-1]}, "curve": curve}


def test_a_seed_arrives_when_ten_iterations_on_average_exceed_the_level():
    returns = [0.0] * 10 + [1.0] * 10
    expected = Arrival(env_steps=1600, minutes=8.0)  # 16 of 20 iterations, the last six of them with a return of 1
    assert arrival(arriving(returns), 0.55) == expected
    assert arrival(arriving(returns, every=5), 0.4) == Arrival(env_steps=5500, minutes=5.5)  # two points of five each
    assert arrival(arriving(returns), 1.0) is None
    assert arrival(arriving(returns[-9:]), 0.0) is None
    without_steps = arriving(returns)
    del without_steps["curve"]["env_steps"]
    assert arrival(without_steps, 0.55) == expected
    assert arrival({"last": {}}, 0.0) is None


def test_the_table_of_arrivals_shows_the_median_and_seeds_that_never_arrive():
    made = tables.arrivals([("a_b", "row", [Arrival(2_000_000, 1.0), None, Arrival(4_000_000, 3.0)])])
    assert made.splitlines()[-1] == "| a b | row | 4.0 (2.0, never, 4.0) | 3.0 (1.0, never, 3.0) |"


def test_evaluations_on_validation_tasks_are_kept_with_their_iterations():
    lines = [{"iteration": 1, "env_steps": 10, "return/step_1": 2.0}]
    assert results.validation_of(lines) == {}
    lines.append({"iteration": 2, "env_steps": 20, "return/step_1": 3.0, "evaluation/return/step_1": 4.123456})
    assert results.validation_of(lines) == {"iteration": [2], "env_steps": [20], "return/step_1": [4.12346]}


def test_a_diverged_task_leaves_a_median():
    metric = {"mean": None, "standard_error": None, "per_task": [1.0, None, 3.0]}
    seed = {**seed_entry(0, 1.0), "last": {"iterations": 2, "shots": 5, "mse/step_0": metric}}
    entry = summarise({"command": "c", "seeds": [seed]})
    found = entry["mse/step_0"]
    assert (found["mean"], found["interval_95"], found["median"], found["diverged_tasks"]) == (None, None, 3, 1)
    assert "diverged" in tables.supervised({"n": entry}, "mse", [0], {})


def test_the_best_row_has_most_seeds_and_then_the_best_returns():
    def entry(seeds, value):
        return {"seeds": seeds, **{f"return/step_{step}": {"mean": value} for step in range(4)}}

    entries = {"a": entry([0, 1], 5), "b": entry([0, 1], 7), "c": entry([0], 9), "d": {"seeds": [0, 1, 2]}}
    assert tables.best_row(entries) == "b"
    assert tables.best_row({"d": entries["d"]}) is None


def test_every_file_that_is_kept_is_whole_and_small():
    rows = results.load_rows()
    assert sum(map(len, rows.values())) >= 75
    for name, row in ((name, row) for named in rows.values() for name, row in named.items()):
        assert results.row_path(row["experiment"], name).exists()
        for seed in row["seeds"]:
            for evaluation in (seed["last"], seed.get("best", {})):
                for metric in filter(results.is_metric, evaluation.values()):
                    mean = np.inf if metric["mean"] is None else metric["mean"]
                    assert np.mean(results.task_values(metric)) == pytest.approx(mean, abs=5e-3, rel=1e-5)
            assert {len(values) for values in seed.get("curve", {"": [0]}).values()} <= set(range(1, 201))
    files = [path for path in results.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1.5e7


def test_the_weights_that_are_kept_hold_no_optimiser():
    paths = sorted(results.FOLDER.rglob("*.pt"))
    assert len(paths) == len({path.parent for path in paths}) >= 7
    for path in paths:
        state = load_checkpoint(path)
        assert state["learner"].keys() <= {"theta", "constants", "iteration", "env_steps"}
        recipe, seed = state["config"]["recipe"], state["config"]["settings"]["run"]["seed"]
        row = find_experiment(path.parent.name).recipe_name(recipe)
        assert path.name == f"{results.slug(row)}_seed{seed}.pt"


def test_the_digest_that_is_kept_is_that_of_the_rows(kept):
    """Else `python experiments/reproduce.py --report` was not called after a row changed."""
    assert json.loads((results.FOLDER / "summary.json").read_text()) == kept.summary


@pytest.mark.parametrize("name", report.PAGES)
def test_the_tables_of_a_page_are_those_of_the_rows(kept, name):
    """Else `python experiments/reproduce.py --report` was not called after a row changed."""
    made, page = kept.tables(), (report.ROOT / name).read_text()
    assert set(re.findall(r"<!-- table: (.*?) -->", page)) <= made.keys()
    assert report.with_tables(page, made) == page


def test_every_table_is_shown_and_every_picture_exists(kept):
    page = (report.ROOT / "docs" / "results.md").read_text()
    shown = "".join((report.ROOT / name).read_text() for name in report.PAGES)
    assert set(re.findall(r"<!-- table: (.*?) -->", shown)) == kept.tables().keys()
    for path, figure in kept.pictures():
        assert (results.FOLDER / path).exists()
        assert path in page
        for legend in figure.legends:
            assert 0 < len(legend.texts) <= 6


def test_the_table_of_methods_has_every_method_that_a_script_takes():
    covered, offered = set(), set()
    for script in ("omniglot", "mini_imagenet", "images", "sine", "optimiser"):
        [part] = [of for of in dataclasses.fields(find_experiment(script).settings) if of.name == "method"]
        offered |= set(part.metadata["variants"])
    for entry in itertools.chain(*FAMILIES.values()):
        experiment = find_experiment(entry.script)
        assert not entry.recipe or entry.recipe in experiment.recipes
        assert bool(entry.recipe) != bool(entry.flag)
        covered.add(entry.flag or to_flat(experiment.configure(entry.recipe))["method"])
    assert offered - covered == {"pretrained", "oracle", "sgd", "momentum", "rmsprop", "adam"}  # baselines


def test_a_method_without_a_row_was_not_run_and_one_with_a_row_shows_its_judged_metric():
    score = {"mean": 0.973, "standard_error": None, "interval_95": 0.004, "per_seed": [0.973]}
    entries = {"accuracy/step_5": score, "seeds": [0]}
    method = MethodEntry("MAML++", "all", "phi", "omniglot", "5-way 1-shot, MAML++")
    known = ("gradient", method), ("gradient", replace(method, recipe="", flag="anil"))
    made = tables.few_shot_methods(
        [
            (*known[0], entries, "accuracy/step_5", (0.9947, 0.5)),
            (*known[0], None, "accuracy/step_5", ()),
            (*known[1], None, "accuracy/step_1", ()),
        ]
    )
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in made.splitlines()[2:]]
    assert [line[0] for line in lines] == ["gradient", "", ""]
    assert [line[4:] for line in lines] == [
        ['`omniglot.py --recipe "5-way 1-shot, MAML++"`', "accuracy, %", "99.47", "97.3 ± 0.4 (1 seed)"],
        ['`omniglot.py --recipe "5-way 1-shot, MAML++"`', "accuracy, %", "-", "not run"],
        ["`omniglot.py --method anil`", "accuracy, %", "-", "no recipe"],
    ]


def test_trials_show_their_first_and_last_episode_and_their_sum():
    def value(mean, error=None):
        return {"mean": mean, "standard_error": error, "per_seed": [mean]}

    two = {"return/step_0": value(1.0, 0.5), "return/step_1": value(2.0, 0.5), "return/trial": value(3.0, 0.7)}
    one = {"return/step_0": value(66.7), "return/trial": value(66.7)}
    effort = {"iterations": 60, "seeds": [0], "env_steps": 1000}
    made = tables.trials([("random_mdps", "rl2", {**two, **effort}, ()), ("bandits", "a", {**one, **effort}, (65.0,))])
    assert made.splitlines()[2:] == [
        "| random mdps | rl2 | 2 | 1.00 ± 0.50 | 2.00 ± 0.50 | 3.00 ± 0.70 |  | 60 | 1 | 1,000 |",
        "| bandits | a | 1 | 66.7 | 66.7 | 66.7 | 65.0 | 60 | 1 | 1,000 |",
    ]


def test_rows_of_rl2_are_in_no_table_of_gradient_steps(monkeypatch):
    rows = results.load_rows()
    both = {"maml": rows["half_cheetah_direction"]["maml"], "rl2": rows["bandits"]["rl2"]}
    monkeypatch.setattr(results, "load_rows", lambda: {"half_cheetah_direction": both, "bandits": rows["bandits"]})
    made = report.Report()
    assert made.leading("half_cheetah_direction") == "maml"
    tables_of_steps = {name: text for name, text in made.tables().items() if "half_cheetah" in name}
    assert "maml" in tables_of_steps["half_cheetah_direction paper"]
    assert not any("rl2" in text for text in [*tables_of_steps.values(), made.tables()["overview"]])
    assert "| half cheetah direction | rl2 |" in made.tables()["trials"]
    assert "bandits" not in made.tables()["overview"]


def test_accuracy_by_instance_stands_beside_what_was_published():
    def value(mean):
        return {"mean": mean, "standard_error": 0.01, "per_seed": [mean, mean]}

    row = {"accuracy/instance_1": value(0.3), "accuracy/instance_5": value(0.9)}
    made = tables.instances({"a": row}, (1, 5), {"a": (0.364, 0.949), "b": (0.244, 0.636)})
    assert made.splitlines()[2:] == [
        "| a | 30.0 ± 1.0 | 90.0 ± 1.0 |",
        "| a, published | 36.4 | 94.9 |",
        "| b | not run | not run |",
        "| b, published | 24.4 | 63.6 |",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: f"{path.parent.name}_{path.stem}")
def test_what_a_page_links_to_exists(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    assert links
    assert not [link for link in links if not (page.parent / link).exists()]
