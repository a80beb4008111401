"""Few-shot runs from the command line: what they write, that they continue exactly, how they are evaluated."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarl import FewShotLearner, Sine
from metarl.core.distributed import Processes
from metarl.experiments import benchmark, evaluate, mini_imagenet, omniglot, reproduce_few_shot, sine
from metarl.experiments.runner import few_shot, reproduction
from metarl.experiments.runner.configuration import SettingError
from metarl.experiments.runner.few_shot import LEARNERS, FewShotEvaluation, over_blocks
from metarl.experiments.runner.starting import open_run
from metarl.experiments.runner.training import main
from metarl.runs import load_checkpoint, save_checkpoint
from tests.experiments.runner.test_command_line import error_of
from tests.experiments.runner.test_training import assert_same_run, timeless_metrics

_SIZES = {"iterations": 6, "tasks": 3, "hidden-sizes": 5, "threads": 1, "record-every": 2, "checkpoint-every": 2}
_SIZES |= {"evaluate-every": 4, "evaluation-tasks": 30, "evaluation-steps": 2}
TINY = [word for name, size in _SIZES.items() for word in (f"--{name}", str(size))]


def train(*arguments):
    main(sine.EXPERIMENT, [*TINY, *map(str, arguments)])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "unbroken"
    train("--run-dir", directory)
    return directory


def test_a_run_writes_what_it_promises(unbroken):
    names = {path.name for path in unbroken.iterdir() if not path.name.startswith("events")}
    assert names == {
        "config.json", "metrics.jsonl", "checkpoint.pt", "best.pt", "evaluation.json", "adaptation.png", "curves.png"
    }  # fmt: skip
    lines = timeless_metrics(unbroken)
    assert [line["iteration"] for line in lines] == [2, 4, 6]
    assert {"mse/step_1", "loss", "meta_gradient_norm"} <= set(lines[0])
    assert [f"evaluation/mse/step_{k}" in lines[1] for k in range(4)] == [True, True, True, False]
    record = json.loads((unbroken / "evaluation.json").read_text())
    assert (record["iteration"], record["shots"], record["evaluation_tasks"]) == (6, 5, 30)
    assert record["mse/step_2"]["interval_95"] > 0


@pytest.mark.parametrize("stop", [2, 4])
def test_stopped_and_resumed_equals_never_stopped(unbroken, tmp_path, stop):
    directory = tmp_path / "run"
    train("--iterations", stop, "--run-dir", directory)
    main(sine.EXPERIMENT, ["--resume", str(directory), "--iterations", "6"])
    assert_same_run(directory, unbroken)


def test_evaluate_counts_steps_and_shots(unbroken, tmp_path, capsys):
    evaluate.main([str(unbroken), "--output", str(tmp_path / "same")])
    assert (tmp_path / "same" / "evaluation.json").read_text() == (unbroken / "evaluation.json").read_text()
    evaluate.main([str(unbroken), "--best", "--steps", "4", "--shots", "20", "--output", str(tmp_path / "other")])
    other = json.loads((tmp_path / "other" / "evaluation.json").read_text())
    assert (other["shots"], other["iteration"]) == (20, 4)
    assert f"{other['mse/step_4']['mean']:.4f}" in capsys.readouterr().out
    evaluate.main([str(unbroken), "--best", "--steps", "4"])  # beside the run's own record
    assert f"results in {unbroken / 'evaluation-best-steps_4'}" in capsys.readouterr().out
    assert "mse/step_4" in json.loads((unbroken / "evaluation-best-steps_4" / "evaluation.json").read_text())
    assert "mse/step_4" not in json.loads((unbroken / "evaluation.json").read_text())
    evaluate.main([str(unbroken), "--later-factor", "0.3"])
    shorter = json.loads((unbroken / "evaluation-later_factor_0.3" / "evaluation.json").read_text())
    own = json.loads((unbroken / "evaluation.json").read_text())
    assert [shorter[f"mse/step_{k}"] == own[f"mse/step_{k}"] for k in range(3)] == [True, True, False]
    line = error_of(capsys, evaluate.main, [str(unbroken), "--later-factor", "0.3", "--steps", "1"])
    assert line == "error: --later-factor with --steps 1; allowed: with more steps than in training"
    resumed = ["--resume", str(unbroken), "--iterations", "8", "--inner-step-size", "0.2"]
    line = error_of(capsys, main, sine.EXPERIMENT, resumed)
    assert line == "error: --inner-step-size = 0.2 cannot change in a resumed run; allowed: 0.01"
    line = error_of(capsys, evaluate.main, [str(unbroken), "--later-factor", "0"])
    assert line == "error: --later-factor = 0.0; allowed: more than 0"
    line = error_of(capsys, evaluate.main, [str(unbroken), "--episodes", "3"])
    assert line == "error: --episodes means nothing in sine; allowed: without it"
    line = error_of(capsys, evaluate.main, [str(unbroken), "--video"])
    assert line == "error: --video means nothing in sine; allowed: without it"
    line = error_of(
        capsys, evaluate.main, [str(unbroken), "--statistics", "per-step", "--output", str(tmp_path / "no")]
    )
    assert line == "error: --statistics = per-step of a network without batch norm; allowed: batch"


def test_an_evaluation_is_of_as_many_tasks_as_asked_for(unbroken):
    _, settings, learner = open_run(unbroken)
    evaluation = sine.EXPERIMENT.evaluate(settings, learner, "test")
    judge = replace(learner, distribution=Sine(5, 100))
    judge.theta = learner.theta
    blocks = [judge.scores(judge.sample(size, "test", number), 2) for number, size in enumerate((25, 5))]
    np.testing.assert_array_equal(evaluation.per_task, torch.cat(blocks, dim=1))
    assert len(np.unique(evaluation.per_task[0])) == 30


def test_processes_divide_the_blocks_of_an_evaluation(unbroken, monkeypatch):
    _, settings, learner = open_run(unbroken)
    monkeypatch.setattr(Processes, "sum", lambda self, values: values)

    def measured(rank, size):
        learner.processes = Processes(rank, size)
        return over_blocks(settings, learner, "test", lambda block: learner.scores(block, 0), 1)[0]

    first, second, whole = measured(0, 2), measured(1, 2), measured(0, 1)
    assert not first[25:].any()
    assert not second[:25].any()
    np.testing.assert_array_equal(first + second, whole)


def test_statistics_per_step_are_those_of_training_tasks(monkeypatch):
    settings = sine.SineSettings(threads=1, hidden_sizes=(4,), evaluation_tasks=2, evaluation_steps=1)
    learner, splits = sine.build(settings), []
    monkeypatch.setattr(FewShotLearner, "step_statistics", lambda self, tasks, steps: [{} for _ in range(steps + 1)])
    sample = FewShotLearner.sample

    def noted(self, tasks, split, iteration=0):
        splits.append((tasks, split))
        return sample(self, tasks, split, iteration)

    monkeypatch.setattr(FewShotLearner, "sample", noted)
    sine.EXPERIMENT.evaluate(replace(settings, evaluation_statistics="per-step"), learner, "test")
    assert splits == [(100, "train"), (2, "test"), (2, "test")]


def test_statistics_that_a_network_has_not_are_refused_before_training(tmp_path, capsys):
    line = error_of(capsys, train, "--evaluation-statistics", "per-step", "--run-dir", tmp_path / "run")
    assert line == "error: --evaluation-statistics = per-step of a network without batch norm; allowed: batch"
    assert not (tmp_path / "run").exists()


def test_the_best_iterate_is_that_of_the_validation_score_after_the_trained_steps():
    settings = sine.SineSettings(inner_steps=2, evaluation_steps=3)
    errors = {f"evaluation/mse/step_{step}": value for step, value in enumerate((9.0, 7.0, 5.0, 6.0))}
    rates = {f"evaluation/accuracy/step_{step}": value for step, value in enumerate((0.2, 0.4, 0.8, 0.6))}
    merit = sine.EXPERIMENT.merit
    assert merit(settings, {"mse/step_2": 1.0, **errors}) == -5
    assert merit(settings, {"accuracy/step_2": 1.0, **rates}) == 0.8
    assert merit(replace(settings, evaluation_steps=1), {"accuracy/step_2": 1.0, **rates}) == 0.4
    assert merit(settings, {"mse/step_2": 1.0}) == -np.inf


def test_a_record_is_the_mean_of_its_iterations(monkeypatch):
    settings = sine.SineSettings(threads=1, hidden_sizes=(4,), record_every=4, iterations=6)
    learner = sine.build(settings)

    def step(settings, learner):
        learner.iteration += 1
        return {"mse/step_1": float(learner.iteration**2)}

    monkeypatch.setattr(few_shot, "step", step)
    records = [sine.EXPERIMENT.advance(settings, learner) for _ in range(2)]
    assert [record["mse/step_1"] for record in records] == [7.5, 30.5]
    assert [record["iteration"] for record in records] == [4, 6]


def test_a_task_that_diverges_leaves_no_figure_and_no_warning():
    scores = np.array([[1.0, 2.0], [1.0, np.inf]])
    record = FewShotEvaluation("mse", scores, None, None).to_json()
    assert record["mse/step_0"] == {"mean": 1.5, "interval_95": pytest.approx(0.98), "per_task": [1, 2]}
    assert record["mse/step_1"] == {"mean": None, "interval_95": None, "per_task": [1, None]}
    name, half = FewShotEvaluation("mse", scores, None, None).uncertainty
    assert (name, half[0]) == ("95 %", pytest.approx(0.98))
    assert FewShotEvaluation("mse", scores[:, :1], None, None).to_json()["mse/step_0"]["interval_95"] is None


@pytest.mark.parametrize("learner", [*LEARNERS, "pretrained", "oracle"])
def test_every_learner_trains_and_is_evaluated(learner):
    small = sine.SineSettings(
        tasks=2, hidden_sizes=(4,), learner=learner, inner_steps=2, threads=1, evaluation_tasks=3, evaluation_steps=2
    )
    built = sine.build(small)
    before = built.state_dict()["theta"]["head.weight"].clone()
    for _ in range(2):
        built.step()
    assert not torch.equal(built.theta["head.weight"].detach(), before)
    evaluation = sine.EXPERIMENT.evaluate(small, built, "test")
    assert evaluation.per_task.shape == (3, 3)
    assert (evaluation.mean[1:] != evaluation.mean[0]).all()


def test_records_must_fit_checkpoints(capsys, tmp_path):
    line = error_of(capsys, train, "--checkpoint-every", 3, "--run-dir", tmp_path / "run")
    assert line == "error: --checkpoint-every = 3; allowed: a multiple of --record-every = 2"
    with pytest.raises(SettingError, match="--evaluate-every = 3"):
        sine.build(sine.SineSettings(evaluate_every=3))


def test_the_defaults_are_the_papers():
    s, o, m = sine.SineSettings(), omniglot.OmniglotSettings(), mini_imagenet.MiniImagenetSettings()
    assert (s.tasks, s.shots, s.inner_step_size, s.inner_steps, s.iterations) == (25, 10, 0.01, 1, 70_000)
    assert (o.tasks, o.shots, o.inner_step_size, o.inner_steps, o.iterations, o.filters) == (32, 1, 2.0, 1, 60_000, 64)
    assert [a.training_queries for a in (s, o, omniglot.OmniglotSettings(shots=5))] == [10, 1, 5]
    assert (m.tasks, m.queries, m.inner_step_size, m.inner_steps, m.clip, m.filters) == (4, 15, 0.05, 5, 10.0, 32)


def test_mini_imagenet_from_a_folder(tmp_path, capsys, monkeypatch):
    for split in ("train", "val", "test"):
        for name in range(3):
            folder = tmp_path / "data" / split / f"n{name}"
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (90, 84), (80 * name, 60 * number, 5)).save(folder / f"{number}.png")
    sizes = {"ways": 2, "queries": 2, "filters": 4, "inner-steps": 1, "evaluation-tasks": 2, "tasks": 2, "threads": 1}
    sizes |= {"iterations": 2, "record-every": 1, "evaluation-steps": 1}
    arguments = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    places = ["--data", tmp_path / "data", "--cache", tmp_path / "cache", "--run-dir", tmp_path / "run"]
    main(mini_imagenet.EXPERIMENT, [*arguments, *map(str, places)])
    _, _, learner = open_run(tmp_path / "run")
    assert learner.distribution.images["train"].shape == (3, 4, 84, 84, 3)
    assert "accuracy/step_1" in json.loads((tmp_path / "run" / "evaluation.json").read_text())
    evaluate.main([str(tmp_path / "run"), "--statistics", "per-step", "--output", str(tmp_path / "fixed")])
    assert (tmp_path / "fixed" / "evaluation.json").read_text() != (tmp_path / "run/evaluation.json").read_text()
    assert "preparing mini imagenet for later starts" in capsys.readouterr().err
    line = error_of(capsys, evaluate.main, [str(tmp_path / "run"), "--statistics", "steps"])
    assert line == "error: --statistics = 'steps'; allowed: batch, per-step; the nearest is per-step"

    places[-1] = tmp_path / "baseline"
    main(mini_imagenet.EXPERIMENT, [*arguments, *map(str, places), "--learner", "classifier"])
    _, settings, classifier = open_run(tmp_path / "baseline")
    assert classifier.theta["head.weight"].shape[0] == 3  # all training classes
    assert classifier.sample(1, "train").query.inputs.shape[1] == 2 * 2 * 2  # tasks, ways, queries
    with monkeypatch.context() as context:
        context.setattr("metarl.experiments.runner.few_shot_images.current", lambda: Processes(0, 2))
        with pytest.raises(SettingError, match="--learner = classifier on 2 processes; allowed: one process"):
            mini_imagenet.build(settings)
    judged = mini_imagenet.EXPERIMENT.judged(settings, classifier)
    assert not judged.theta["head.weight"].any()
    assert judged.theta["head.weight"].shape[0] == 2
    assert torch.equal(judged.theta["blocks.0.norm.shift"], classifier.theta["blocks.0.norm.shift"])
    record = json.loads((tmp_path / "baseline" / "evaluation.json").read_text())
    assert record["accuracy/nearest_neighbour"]["mean"] == 1  # classes are of one colour each
    shown = capsys.readouterr().out.splitlines()
    assert "nearest neighbour 1.0000" in shown
    assert next(line for line in shown if line.startswith("steps")).split() == ["steps", "accuracy", "±", "95", "%"]
    scalars = EventAccumulator(str(tmp_path / "baseline")).Reload().Scalars("test/accuracy/nearest_neighbour")
    assert [scalar.value for scalar in scalars] == [1]
    assert record["accuracy/step_0"]["mean"] == 0.5

    for flag, message in (
        (["--ways", "9"], "--ways = 9, --shots = 1: 9 ways of 3 validation classes; allowed: at most 3"),
        (["--shots", "3"], "--ways = 2, --shots = 3: 3 support and 3 query images of 4 in a validation class; "
         "allowed: at most 4 together"),
    ):  # fmt: skip
        line = error_of(capsys, main, mini_imagenet.EXPERIMENT, [*map(str, [*arguments, *places, *flag])])
        assert line == f"error: {message}"
    line = error_of(capsys, evaluate.main, [str(tmp_path / "run"), "--shots", "4"])
    assert line.startswith("error: --ways = 2, --shots = 4: 4 support and 4 query images")
    line = error_of(capsys, evaluate.main, [str(tmp_path / "run"), "--data", str(tmp_path / "none")])
    assert "none; put train/, val/ and test/" in line
    line = error_of(capsys, evaluate.main, [str(tmp_path / "run"), "--output", "/proc/none"])
    assert line.startswith("error: /proc/none cannot be used")

    line = error_of(capsys, main, mini_imagenet.EXPERIMENT, ["--data", str(tmp_path / "none")])
    assert "put train/, val/ and test/" in line


def test_benchmark_counts_time_and_operations(capsys):
    benchmark.main(["omniglot", "--tasks", "1", "--repeats", "1", "--threads", "1", "--json"])
    figures = json.loads(capsys.readouterr().out)
    one, five = (figures[f"{steps}_steps/flops"] for steps in (1, 5))
    forward = 2 * 64 * (196 * 9 + (49 + 16 + 4) * 576)  # of an image, all but the linear layer
    assert 3 * 75 * forward < one < 1.1 * (3 * 75 + 9 * 5) * forward
    assert 4 * 8 * 5 * forward < five - one < 1.1 * 4 * 9 * 5 * forward
    assert figures["1_steps/processor_seconds"] > 0
    assert figures["5_steps/task_by_task_seconds"]["median"] > figures["1_steps/task_by_task_seconds"]["median"] > 0


def test_reproduction_keeps_what_its_tables_show(tmp_path, monkeypatch, capsys):
    methods = {
        "maml": reproduce_few_shot.Method(" ".join(TINY), shots=(5, 10)),
        "shorter": reproduce_few_shot.Method(" ".join(TINY), shots=(5,), evaluation="--later-factor 0.3", run="maml"),
        "oracle": reproduce_few_shot.Method(" ".join([*TINY, "--learner", "oracle", "--evaluation-steps", "0"])),
    }
    monkeypatch.setattr(reproduce_few_shot, "FIGURES", {"sine": methods})
    monkeypatch.setattr(reproduction, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(reproduction, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(reproduce_few_shot, "_draw", lambda methods: Figure())
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "summary.json").write_text('{"other": 1}')
    reproduce_few_shot.main(["sine", "--methods", "maml", "--seeds", "0", "1", "--iterations", "4"])
    reproduce_few_shot.main(["sine", "--seeds", "0"])
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert summary["other"] == 1
    maml, kept = summary["sine"]["maml"], tmp_path / "results" / "sine" / "maml"
    assert (maml["seeds"], maml["iterations"], maml["shots"]) == ([0, 1], [6, 4], 5)
    start = "python experiments/reproduce_few_shot.py sine --methods 'maml' --seeds"
    assert maml["command"] == f"{start} 0 --iterations 6 && {start} 1 --iterations 4"
    for prefix, shots in (("", 5), ("shots_10/", 10)):
        records = [json.loads((kept / f"seed{i}/evaluation_{shots}_shots.json").read_text()) for i in (0, 1)]
        found = maml[f"{prefix}mse/step_2"]
        assert found["per_seed"] == pytest.approx([r["mse/step_2"]["mean"] for r in records], abs=2e-5)
        assert found["mean"] == pytest.approx(np.mean(found["per_seed"]), abs=2e-5)
        assert found["diverged_tasks"] == 0
    shorter = summary["sine"]["shorter"]
    assert shorter["flags"].endswith(" (evaluated with --later-factor 0.3)")
    per_seed = [of[f"mse/step_{k}"]["per_seed"][0] for k in (1, 2) for of in (maml, shorter)]
    assert per_seed[0] == per_seed[1] != per_seed[2] != per_seed[3]
    assert not (tmp_path / "runs" / "sine" / "shorter").exists()
    assert f"| oracle | {summary['sine']['oracle']['mse/step_0']['mean']:.3f}" in capsys.readouterr().out
    _, _, learner = open_run(kept / "seed0")
    assert learner.iteration == 6  # continued
    seed, run = kept / "seed0", tmp_path / "runs" / "sine" / "maml" / "seed0"
    curve = json.loads((seed / "curve.json").read_text())
    shutil.copytree(run, tmp_path / "whole")
    main(sine.EXPERIMENT, ["--resume", str(tmp_path / "whole"), "--iterations", "8"])
    for iterations in ("6", "8"):  # from what is kept, with nothing to do and with something
        shutil.rmtree(run)
        shutil.copytree(seed, run)
        reproduce_few_shot.main(["sine", "--methods", "maml", "--seeds", "0", "--iterations", iterations])
        found = json.loads((seed / "curve.json").read_text())
        assert found["iteration"] == [2, 4, 6, 8][: int(iterations) // 2]
        assert found["mse/step_1"][:3] == curve["mse/step_1"]
    (_, _, learner), (_, _, whole) = open_run(seed), open_run(tmp_path / "whole")
    assert all(torch.equal(learner.theta[name], value) for name, value in whole.theta.items())
    state = load_checkpoint(run / "checkpoint.pt")
    state["learner"]["adam"] = {}
    save_checkpoint(run / "checkpoint.pt", state)
    capsys.readouterr()
    line = error_of(capsys, main, sine.EXPERIMENT, ["--resume", str(run), "--iterations", "10"])
    assert line == "error: this checkpoint holds parameters alone, without Adam's moments; allowed: to evaluate it"
    assert json.loads((run / "config.json").read_text())["settings"]["iterations"] == 8
    line = error_of(capsys, reproduce_few_shot.main, ["sine", "--methods", "mamm"])
    assert line == "error: --methods = 'mamm'; allowed: 'maml', 'shorter', 'oracle'"


def test_a_diverged_task_leaves_a_median():
    records = [{"mean": None, "interval_95": None, "per_task": [1.0, None, 3.0]}]
    found = reproduce_few_shot._over_seeds(records)
    assert (found["mean"], found["interval_95"], found["median"], found["diverged_tasks"]) == (None, None, 3, 1)
    assert reproduce_few_shot._cell(found, 1) == "diverged"
