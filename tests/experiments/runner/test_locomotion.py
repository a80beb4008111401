"""The MuJoCo experiments: whole small runs, videos, failures."""

import json
import re

import numpy as np
import pytest

from metarl.envs.mujoco_batch import MujocoBatch
from metarl.experiments import evaluate
from metarl.experiments.runner.experiment import find_experiment
from metarl.experiments.runner.training import main
from tests.experiments.runner.helpers import TINY, error_of, parameters, state_of

NAMES = ["half_cheetah_direction", "half_cheetah_velocity", "ant_velocity", "ant_direction", "ant_goal"]


ONLY_PEERS = ["walker_parameters", "hopper_parameters", "humanoid_direction"]
PEERS = ["half_cheetah_direction", "half_cheetah_velocity", "ant_direction", "ant_goal"]


@pytest.mark.parametrize(
    ("name", "dynamics"),
    [
        *((name, dynamics) for name in NAMES for dynamics in ("paper", "gymnasium")),
        *((name, "peers") for name in (*PEERS, *ONLY_PEERS)),
    ],
)
def test_every_experiment_runs_in_its_dynamics(name, dynamics, tmp_path):
    main(
        find_experiment(name), [*TINY, "--iterations", "1", "--dynamics", dynamics, "--run-dir", str(tmp_path / "run")]
    )
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (record["dynamics"], record["iteration"]) == (dynamics, 1)
    assert np.isfinite(record["return/step_2"]["mean"])


@pytest.mark.parametrize("name", PEERS)
def test_recommended_recipes_on_peers_bodies(name):
    """All that differs from the recommended recipe is what is played; an ant that never ends needs no bonus."""
    experiment = find_experiment(name)
    recipe, usual = experiment.values("recommended, peers"), experiment.values("recommended")
    changed = {setting: recipe[setting] for setting in recipe if recipe[setting] != usual[setting]}
    assert changed == {"dynamics": "peers", **({"survival_bonus": 0.0} if name == "ant_goal" else {})}
    assert recipe["horizon"] == 200


def test_unknown_dynamics_get_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = error_of(capsys, main, find_experiment("ant_goal"), ["--dynamics", "papre"])
    assert line == "error: --dynamics = 'papre'; allowed: paper, gymnasium, peers; the nearest is paper"
    line = error_of(capsys, main, find_experiment("ant_velocity"), ["--dynamics", "peers"])
    assert re.match(r"error: --dynamics = '?peers'?; allowed: '?paper'?, '?gymnasium'?$", line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        "half_cheetah_velocity --num-tasks 5 --horizon 120 --episodes-per-task 4 --baseline quadratic",
        "ant_velocity --num-tasks 3",
    ],
)
def test_the_number_of_threads_changes_nothing(tmp_path, words):
    """Not a bit, after two iterations, with more features in the baseline than a matrix is factored at a time."""
    name, *flags = words.split()
    runs = []
    for threads in ("1", "2"):
        directory = tmp_path / threads
        main(find_experiment(name), [*TINY, *flags, "--threads", threads, "--run-dir", str(directory)])
        runs.append({name: value.tolist() for name, value in parameters(directory).items()})
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
    assert state_of(tmp_path / "run")["iteration"] == 0


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
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra 'video'")

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
