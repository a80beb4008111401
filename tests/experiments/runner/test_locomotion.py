"""The MuJoCo experiments: settings, whole small runs, videos, failures, benchmark."""

import json
import re
import shutil
import signal

import numpy as np
import pytest

from metarl.envs.mujoco_batch import MujocoBatch
from metarl.experiments import benchmark, evaluate, reproduce
from metarl.experiments.runner import experiment, plots, recipes, report, reproduction
from metarl.experiments.runner.experiment import find_experiment
from metarl.experiments.runner.training import main
from metarl.runs import load_checkpoint
from tests.experiments.runner.test_command_line import TINY, error_of

NAMES = ["half_cheetah_direction", "half_cheetah_velocity", "ant_velocity", "ant_direction", "ant_goal"]


def defaults(name):
    settings = find_experiment(name).settings()
    return (settings.tasks, settings.episodes, settings.horizon, settings.inner_step_size, settings.max_kl,
            settings.iterations, settings.evaluation_episodes, settings.dynamics)  # fmt: skip


def test_defaults_are_the_papers():
    assert defaults("half_cheetah_direction") == (40, 20, 200, 0.1, 0.02, 100, 20, "paper")
    assert defaults("half_cheetah_velocity") == (40, 10, 200, 0.1, 0.01, 475, 20, "paper")
    assert defaults("ant_velocity") == (40, 20, 200, 0.1, 0.01, 375, 20, "paper")
    assert defaults("ant_direction") == (40, 40, 200, 0.1, 0.01, 575, 40, "paper")
    assert defaults("ant_goal")[:5] == (40, 20, 200, 0.1, 0.01)


@pytest.mark.parametrize("dynamics", ["paper", "gymnasium"])
@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_runs_in_both_dynamics(name, dynamics, tmp_path):
    main(
        find_experiment(name), [*TINY, "--iterations", "1", "--dynamics", dynamics, "--run-dir", str(tmp_path / "run")]
    )
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (record["dynamics"], record["iteration"]) == (dynamics, 1)
    assert np.isfinite(record["return/step_2"]["mean"])


def test_unknown_dynamics_get_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = error_of(capsys, main, find_experiment("ant_goal"), ["--dynamics", "papre"])
    assert line == "error: --dynamics = 'papre'; allowed: paper, gymnasium; the nearest is paper"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    ["half_cheetah_velocity --tasks 5 --horizon 120 --episodes 4 --baseline quadratic", "ant_velocity --tasks 3"],
)
def test_the_number_of_threads_changes_nothing(tmp_path, words):
    """Not a bit, after two iterations, with more features in the baseline than a matrix is factored at a time."""
    name, *flags = words.split()
    runs = []
    for threads in ("1", "2"):
        directory = tmp_path / threads
        main(find_experiment(name), [*TINY, *flags, "--threads", threads, "--run-dir", str(directory)])
        state = load_checkpoint(directory / "checkpoint.pt")["learner"]
        runs.append({name: value.tolist() for name, value in state["theta"].items()})
    assert runs[0] == runs[1]


def blow_up(monkeypatch):
    """Make the simulator give up on four lanes of every batch."""
    step_lanes = MujocoBatch.step_lanes

    def unstable(batch, actions):
        observations, rewards, terminated, _ = step_lanes(batch, actions)
        blown_up = np.arange(batch.num_envs) < 4
        return observations, rewards, terminated | blown_up, {"blown_up": blown_up}

    monkeypatch.setattr(MujocoBatch, "step_lanes", unstable)


def test_too_many_failed_episodes_stop_the_run(tmp_path, monkeypatch, capsys):
    blow_up(monkeypatch)
    with pytest.raises(SystemExit) as leaving:
        main(find_experiment("half_cheetah_velocity"), [*TINY, "--run-dir", str(tmp_path / "run")])
    assert leaving.value.code == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: 8 of 24 episodes of iteration 1 blew up; allowed: a share of 0.1 (--max-failed)")
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["learner"]["iteration"] == 0


def test_an_evaluation_of_failed_episodes_is_no_result(run, tmp_path, monkeypatch, capsys):
    """Their rewards are 0 from then on, which would look like a record."""
    blow_up(monkeypatch)
    line = error_of(capsys, evaluate.main, [str(run), "--output", str(tmp_path / "out")], status=1)
    assert re.match(r"error: \d+\.\d% of the episodes of an evaluation blew up; allowed: a share of 0\.1 \(--max", line)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "cheetah"
    main(find_experiment("half_cheetah_direction"), [*TINY, "--iterations", "1", "--run-dir", str(directory)])
    return directory


# imageio leaves the pipes of the reading process to the garbage collector
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_videos_before_and_after(run, tmp_path, capsys):
    imageio = pytest.importorskip("imageio.v3", reason="needs the extra 'video'")
    evaluate.main([str(run), "--video", "1", "--output", str(tmp_path)])
    shown = capsys.readouterr()
    if "no renderer" in shown.err:
        pytest.skip("no renderer on this machine; MUJOCO_GL=egl or osmesa may help")
    frames = [imageio.imread(tmp_path / f"video_task1_{label}.mp4", index=None) for label in ("before", "after")]
    for film in frames:
        assert film.shape == (4, 360, 480, 3)  # 8 steps of 0.01 s at 50 pictures a second
        assert film.std() > 10
    assert np.abs(frames[0].astype(float) - frames[1]).max() > 0


def test_no_renderer_gets_one_line_and_everything_else(run, tmp_path, capsys, monkeypatch):
    def fail(batch, lane):
        raise RuntimeError("no renderer (why)")

    monkeypatch.setattr(MujocoBatch, "render_lane", fail)
    evaluate.main([str(run), "--video", "--output", str(tmp_path)])
    assert capsys.readouterr().err.strip() == "no video: no renderer (why)"
    assert (tmp_path / "evaluation.json").exists()


def test_a_task_that_cannot_be_filmed(run, capsys, tmp_path):
    line = error_of(capsys, evaluate.main, [str(run), "--video", "4", "--output", str(tmp_path / "out")])
    assert line == "error: --video = 4; allowed: 0 to 3"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["navigation_2d", "ant_velocity"])
def test_benchmark_prints_what_it_promises(name, capsys):
    small = [
        "--tasks",
        "2",
        "--episodes",
        "3",
        "--horizon",
        "5",
        "--repeats",
        "2",
        "--threads",
        "1",
        "--json",
        "--dynamics",
        "paper",
    ]
    benchmark.main([name, *small])
    figures = json.loads(capsys.readouterr().out)
    expected = {"rollout_steps_per_s", "adapt_seconds", "update_seconds", "meta_iteration_seconds"}
    if name == "ant_velocity":
        expected |= {"physics_open_loop_steps_per_s", "batch_steps_per_s"}
    assert expected <= set(figures)
    for part in expected:
        assert 0 < figures[part]["min"] <= figures[part]["median"] <= figures[part]["max"]


def test_an_interrupt_ends_the_reproduction_and_keeps_nothing_half_done(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduction, "RESULTS", tmp_path / "results")
    methods = {"maml": recipes.Method(" ".join(TINY).replace("--iterations 2", "--iterations 3"))}
    monkeypatch.setattr(recipes, "FIGURES", {"navigation_2d": recipes.Reproduction(methods)})
    step, steps = experiment.step, []

    def interrupted(settings, learner):
        steps.append(learner.iteration)
        if len(steps) == 2:
            signal.raise_signal(signal.SIGINT)
        return step(settings, learner)

    monkeypatch.setattr(experiment, "step", interrupted)
    with pytest.raises(SystemExit) as stop:
        reproduce.main(["navigation_2d", "--seeds", "0", "1"])
    assert (stop.value.code, steps) == (130, [0, 1])
    assert not (tmp_path / "results").exists()
    reproduce.main(["navigation_2d", "--seeds", "0"])
    assert steps == [0, 1, 2]
    assert (tmp_path / "results" / "navigation_2d" / "maml" / "seed0" / "evaluation.json").exists()


def test_every_method_of_a_figure_has_a_colour_of_its_own():
    assert len(set(plots.COLORS)) == len(plots.COLORS)
    for recipe in recipes.FIGURES.values():
        assert max(len(recipe.paper), len(recipe.comparison)) + 1 <= len(plots.COLORS)


def test_reproduction_runs_keeps_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduction, "RESULTS", tmp_path / "results")
    small = " ".join(TINY)
    methods = {
        "maml": recipes.Method(small, (-40.0, -11.0)),
        "pretrained": recipes.Method(f"{small} --inner-steps 0"),
        "random": recipes.Method(small, trained=False),
        "oracle": recipes.Method(f"{small} --inner-steps 0 --observe-task --evaluation-steps 0"),
    }
    other = {"first-order": recipes.Method(f"{small} --order first")}
    monkeypatch.setattr(recipes, "FIGURES", {"navigation_2d": recipes.Reproduction(methods, other)})
    reproduce.main(["navigation_2d", "--seeds", "0", "1"])
    assert not (tmp_path / "results" / "navigation_2d" / "comparison.png").exists()
    table = capsys.readouterr().out
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())["navigation_2d"]
    assert set(summary) == set(methods)
    maml = summary["maml"]
    assert (maml["seeds"], maml["iterations"], maml["dynamics"]) == ([0, 1], 2, "paper")
    assert maml["command"] == (
        "python experiments/reproduce.py navigation_2d --methods 'maml' --seeds 0 1 --iterations 2"
    )
    assert maml["flags"] == small
    assert maml["best/iterations"] in (0, 1, [0, 1], [1, 0])
    kept = tmp_path / "results" / "navigation_2d" / "maml"
    per_seed = [
        json.loads((kept / f"seed{s}" / "evaluation.json").read_text())["return/step_1"]["mean"] for s in (0, 1)
    ]
    assert maml["return/step_1"]["mean"] == pytest.approx(np.mean(per_seed), abs=1e-3)
    assert maml["return/step_1"]["standard_error"] == pytest.approx(np.std(per_seed, ddof=1) / 2**0.5, abs=1e-3)
    errors = [json.loads((kept / f"seed{s}" / "evaluation.json").read_text())["return/step_1"] for s in (0, 1)]
    assert maml["return/step_1"]["standard_error_over_tasks"] == [error["standard_error"] for error in errors]
    assert "return/step_1" not in summary["oracle"]
    assert summary["random"]["iterations"] == 0
    assert f"{maml['return/step_1']['mean']:.1f} ± {maml['return/step_1']['standard_error']:.1f} (-11.0)" in table
    assert (tmp_path / "results" / "navigation_2d" / "adaptation.png").stat().st_size > 10_000
    evaluate.main([str(kept / "seed0"), "--output", str(tmp_path / "again")])
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    assert again == json.loads((kept / "seed0" / "evaluation.json").read_text())
    capsys.readouterr()
    with monkeypatch.context() as context:
        context.setattr(reproduce.evaluate, "main", None)  # nothing is evaluated twice
        reproduce.main(["navigation_2d", "--seeds", "0", "1"])
    assert table.endswith(capsys.readouterr().out)
    reproduce.main(["navigation_2d", "--seeds", "0", "--methods", "first-order"])
    tables = capsys.readouterr().out.split("| navigation_2d |")[1:]
    rows = [[line.split("|")[1].strip() for line in text.splitlines()[2:] if line.startswith("|")] for text in tables]
    names = ["maml", "pretrained", "random", "oracle"], ["maml", "first-order"]
    best = [
        [row for name in group for row in (name, f"{name}, best iterate") if row != "random, best iterate"]
        for group in names
    ]
    assert rows == best
    assert (tmp_path / "results" / "navigation_2d" / "comparison.png").stat().st_size > 10_000
    reproduce.main(["navigation_2d", "--seeds", "0", "--methods", "first-order", "--iterations", "3"])
    reproduce.main(["navigation_2d", "--seeds", "0", "--methods", "first-order"])  # no less for asking for less
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())["navigation_2d"]
    assert (summary["first-order"]["iterations"], summary["maml"]["iterations"]) == (3, 2)
    taken = min(summary["maml"]["env_steps"])  # of both seeds, less than first order's
    for name, seeds in (("first-order", 1), ("maml", 2)):  # training is compared over steps that both have taken
        lines = [
            (tmp_path / f"runs/reproduce/navigation_2d/{name}/seed{seed}/metrics.jsonl").read_text().splitlines()
            for seed in range(seeds)
        ]
        per_seed = [json.loads(run[1])["return/step_1"] for run in lines]
        training_return = summary[name]["training"]
        assert training_return["env_steps"] == [int(0.8 * taken), taken]
        assert training_return["per_seed"] == pytest.approx(per_seed, abs=2e-3)
        assert training_return["mean"] == pytest.approx(np.mean(per_seed), abs=2e-3)
    comparison = capsys.readouterr().out.split("| navigation_2d |")[-1]
    assert comparison.splitlines()[0].endswith("| hours | training, 0.0 to 0.0 million steps |")
    assert comparison.splitlines()[4].endswith(f"| {summary['first-order']['training']['mean']:.1f} |")
    first_order, run = (
        base / "navigation_2d" / "first-order" / "seed0" for base in (reproduction.RESULTS, reproduction.RUNS)
    )
    before = json.loads((first_order / "curve.json").read_text())
    steps = [json.loads(line)["env_steps"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert before["env_steps"] == steps
    before["seconds"] = 1000
    (first_order / "curve.json").write_text(json.dumps(before))
    shutil.rmtree(run)
    line = error_of(capsys, reproduce.main, ["navigation_2d", "--seeds", "0", "--methods", "first-order"])
    assert line == f"error: {first_order} holds 3 iterations; allowed: --iterations 3 or more"
    assert not run.exists()
    shutil.copytree(first_order, run)  # what is kept can be continued, elsewhere too, and without the best iterate
    (run / "best.pt").unlink()
    best = (first_order / "best_evaluation.json").read_text()
    reproduce.main(["navigation_2d", "--seeds", "0", "--methods", "first-order", "--iterations", "3"])
    assert json.loads((first_order / "curve.json").read_text()) == before
    assert (first_order / "best_evaluation.json").read_text() == best
    reproduce.main(["navigation_2d", "--seeds", "0", "--methods", "first-order", "--iterations", "4"])
    after = json.loads((first_order / "curve.json").read_text())
    [line] = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert line["iteration"] == 4
    assert after["return/step_1"] == [*before["return/step_1"], round(line["return/step_1"], 4)]
    assert after["env_steps"] == [*steps, line["env_steps"]]
    assert 1000 <= after["seconds"] < 1100
    assert json.loads((first_order / "evaluation.json").read_text())["iteration"] == 4
    capsys.readouterr()
    shutil.rmtree(kept)  # as long as nothing is known of maml its published numbers stand beside the others
    reproduce.main(["--report"])
    assert "| maml | (-40.0) | (-11.0) |  |  |  |  |  |  |  |\n| first-order | " in capsys.readouterr().out


def test_a_method_may_go_on_with_other_flags(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduction, "RESULTS", tmp_path / "results")
    then = (2, "--inner-step-size 0.2"), (3, "--later-factor 0.3"), (7, "--inner-step-size 0.1")
    method = recipes.Method(f"{' '.join(TINY)} --inner-step-size 0.4 --iterations 5", then=then)
    monkeypatch.setattr(recipes, "FIGURES", {"navigation_2d": recipes.Reproduction({"maml": method})})
    for iterations in ("1", "5"):  # stopped before the changes
        reproduce.main(["navigation_2d", "--seeds", "0", "--iterations", iterations])
    evaluated = [line for line in capsys.readouterr().out.splitlines() if line.startswith("results in")]
    assert len(evaluated) == 3  # the last iterate of each call, not before each change, and the best, which stayed
    config = json.loads((tmp_path / "results/navigation_2d/maml/seed0/config.json").read_text())
    [note] = config["resumed"]
    assert (note["iteration"], note["changed"]) == (2, {"inner_step_size": [0.4, 0.2]})
    assert (config["settings"]["inner_step_size"], config["settings"]["later_factor"]) == (0.2, 0.3)
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())["navigation_2d"]["maml"]
    changes = "; after iteration 2 --inner-step-size 0.2; after iteration 3 --later-factor 0.3"
    assert summary["flags"] == f"{' '.join(TINY)} --inner-step-size 0.4 --iterations 5{changes}"
    assert summary["iterations"] == 5


def test_training_is_compared_over_the_same_environment_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduction, "RESULTS", tmp_path)
    returns = [float(i) for i in range(10)]
    known = {"env_steps": [1, 2, 3, 4, 5, 6, 10, 60, 70, 100]}  # of 100, the last fifth is the last iteration
    for name, more in (("known", known), ("unknown", {})):
        (tmp_path / "figure" / name / "seed0").mkdir(parents=True)
        curve = {"return/step_0": returns, "return/step_1": returns, **more}
        (tmp_path / "figure" / name / "seed0" / "curve.json").write_text(json.dumps(curve))
    entries = {name: {"env_steps": 100, "iterations": 10} for name in ("known", "unknown")}
    report._compare_training("figure", entries)
    assert entries["known"]["training"] == {
        "env_steps": [80, 100],
        "mean": 9.0,
        "standard_error": None,
        "per_seed": [9.0],
    }
    assert entries["unknown"]["training"]["mean"] == 8.5


def test_the_overview_shows_the_best_method_beside_the_published_one():
    def entry(*returns, seeds=2):
        means = {f"return/step_{step}": {"mean": mean, "standard_error": 0.5} for step, mean in enumerate(returns)}
        return {**means, "iterations": [90, 100], "env_steps": 7_000, "seeds": list(range(seeds))}

    methods = {"maml": entry(-30.0, -9.0, -8.0, -7.0), "first-order": entry(-40.0, -12.0, -3.0, -2.0)}
    methods["one seed, be it the luckiest"] = entry(-30.0, -2.0, -1.0, -1.0, seeds=1)
    summary = {"navigation_2d": {**methods, "oracle": {"return/step_0": {"mean": -0.5}}}, "sine": {}}
    row = "| navigation 2d | first-order | -12.0 ± 0.5 (-11.7) | -3.0 ± 0.5 (-3.3) | -2.0 ± 0.5 (-3.2) |"
    assert report.overview(summary).splitlines()[2:] == [f"{row} 90 to 100 | 2 | 7,000 |"]


def test_seeds_that_came_unequally_far_have_a_command_each():
    said = reproduction.command("reproduce", "ant_goal", "maml", [0, 1, 2], [7, 5, 7])
    start = "python experiments/reproduce.py ant_goal --methods 'maml' --seeds"
    assert said == f"{start} 0 2 --iterations 7 && {start} 1 --iterations 5"
    assert reproduction.command("reproduce", "ant_goal", "random", [0, 1], []) == (
        "python experiments/reproduce.py ant_goal --methods 'random' --seeds 0 1"
    )


def test_reproduce_refuses_what_it_does_not_know(capsys):
    assert error_of(capsys, reproduce.main, []).startswith(
        "error: nothing to do; allowed: either a figure (navigation_2d"
    )
    line = error_of(capsys, reproduce.main, ["navigation_2d", "--report"])
    assert line.startswith("error: a figure's runs end with a report; allowed: either a figure (navigation_2d")
    line = error_of(capsys, reproduce.main, ["navigation_2d", "--methods", "mamml"])
    assert line.startswith("error: --methods = 'mamml'; allowed: 'maml', 'pretrained'")
