"""The README's examples run as printed, only shorter; the slow test runs one as it is, with three seeds."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import metarl
from metarl.check import check
from metarl.experiments import reproduce_few_shot
from metarl.experiments.runner import report, reproduction
from metarl.experiments.runner.configuration import from_json
from metarl.experiments.runner.experiment import find_experiment
from metarl.rl.evaluation import evaluate, held_out_tasks

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DETAILS = (reproduction.RESULTS / "README.md").read_text()
FIRST, CART_POLE, OTHERS, FEW_SHOT, CURVES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(example: str) -> dict:
    names: dict = {}
    exec(example, names)
    return names


def test_the_first_example_learns_adapts_and_acts(capsys):
    assert len([line for line in FIRST.splitlines() if line.strip() and not line.startswith("import")]) < 15
    names = run(FIRST.replace("range(100)", "range(2)").replace("tasks=20, episodes=20", "tasks=3, episodes=4"))
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert len(names["stages"]) == 4
    assert names["distribution"].action_space.contains(names["action"].astype(np.float64))


def test_the_own_environment_learns_adapts_and_acts(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len([line for line in CART_POLE.splitlines() if line.strip()]) <= 30
    names = run(CART_POLE.replace("range(40)", "range(2)").replace("tasks=10, episodes=10", "tasks=3, episodes=4"))
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert names["action"] == names["learner"].agent(names["after"])(np.zeros(4))
    assert check(names["distribution"]) == []


def test_the_other_examples_are_sound_and_learn():
    names = run(OTHERS)
    for name, kind in (("pendulum", metarl.GaussianMLP), ("grid", metarl.CategoricalMLP)):
        distribution = names[name]
        assert check(distribution) == []
        policy = kind(distribution.observation_space, distribution.action_space, (8,))
        learner = metarl.Learner(distribution, policy, tasks=2, episodes=3)
        assert np.isfinite(list(learner.step().values())).all()
    assert held_out_tasks(learner, 2)["goal"].tolist() == [[4, 4], [4, 4]]


def test_the_few_shot_example_learns_and_predicts(capsys):
    lines = [line for line in FEW_SHOT.splitlines() if line.strip() and not line.startswith("import")]
    assert len(lines) < 20
    names = run(FEW_SHOT.replace("range(1000)", "range(2)"))
    assert names["logits"].shape == (100, 75, 5)
    accuracy = (names["logits"].argmax(dim=2) == names["tasks"].query.targets).float().mean()
    assert accuracy.item() == pytest.approx(names["learner"].scores(names["tasks"], 2)[2].mean().item())


def test_the_example_of_curves_learns(capsys):
    assert len([line for line in CURVES.splitlines() if line.strip() and not line.startswith("import")]) < 20
    learner = run(CURVES.replace("range(1000)", "range(100)"))["learner"]
    capsys.readouterr()
    errors = learner.scores(learner.sample(100, "test"), steps=5).mean(dim=1)
    assert errors[5] < 0.7 * errors[0]


def test_its_tables_of_results_are_those_of_the_summary():
    summary = json.loads((reproduction.RESULTS / "summary.json").read_text())
    tables = [(README, report.overview(summary))]
    tables += [(README, reproduce_few_shot.table(figure, summary[figure])) for figure in ("sine", "omniglot")]
    texts = {"adaptation": README, "comparison": DETAILS}
    tables += [(texts[group], report.table(figure, group, of)) for figure, group, of in report.groups(summary)]
    assert len(tables) > 5
    for text, table in tables:
        assert table in text


def test_what_its_results_link_to_exists():
    for folder, text in ((ROOT, README), (reproduction.RESULTS, DETAILS)):
        links = re.findall(r"\]\(([^)#]+)", text)
        assert links
        assert all((folder / link).exists() for link in links if not link.startswith("http"))


def test_the_settings_of_every_run_that_is_kept_are_those_of_today():
    kept = sorted(reproduction.RESULTS.rglob("config.json"))
    assert len(kept) > 100
    for path in kept:
        config = json.loads(path.read_text())
        from_json(find_experiment(config["experiment"]).settings, config["settings"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_own_environment_learns_to_adapt(seed, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    learner = run(CART_POLE.replace("seed(0)", f"seed({seed})").replace("seed=0", f"seed={seed}"))["learner"]
    evaluation = evaluate(learner, 2, held_out_tasks(learner, 40), 10)
    with capsys.disabled():
        print(f"\nseed {seed}: {evaluation.mean.round(1)} ± {evaluation.standard_error.round(1)}")
    assert evaluation.mean[1] > evaluation.mean[0] + 15


@pytest.mark.parametrize("script", sorted(set(re.findall(r"experiments/(\w+)\.py", README + DETAILS))))
def test_every_script_it_names_exists(script):
    assert (ROOT / "experiments" / f"{script}.py").exists()
