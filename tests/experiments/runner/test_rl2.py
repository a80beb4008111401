"""`--method rl2`: what is built, recorded, resumed and evaluated, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from metarl import RecurrentAgent, RL2Learner, SettingError
from metarl.core.evaluation import Evaluation
from metarl.envs import TaskBatch
from metarl.experiments import adapt, bandits, evaluate, half_cheetah_direction, navigation_2d, random_mdps
from metarl.experiments.runner import videos
from metarl.experiments.runner.experiment import find_experiment
from metarl.experiments.runner.start import open_run
from metarl.experiments.runner.training import main, table
from metarl.experiments.studies import meta_gradients
from metarl.rl.evaluation import held_out_tasks
from metarl.rl.rl2.policies import RecurrentPolicy
from metarl.runs import Run
from tests.experiments.runner.helpers import assert_same_run, error_of, timeless_metrics

SIZES = ["--num-tasks", "4", "--memory-size", "5", "--evaluation-tasks", "3", "--threads", "1", "--evaluate-every", "1"]
NAVIGATION = ["--method", "rl2", "--horizon", "6", "--hidden-sizes", "4", "--evaluation-episodes", "2", *SIZES]
BANDITS = ["--arms", "3", "--pulls", "4", *SIZES]


def run(experiment, directory, *arguments, evaluated=True):
    main(experiment, [*arguments, "--run-dir", str(directory)], evaluated)
    return directory


@pytest.fixture(scope="module")
def navigation(tmp_path_factory):
    """A run of two iterations."""
    directory = tmp_path_factory.mktemp("runs") / "navigation"
    return run(navigation_2d.EXPERIMENT, directory, *NAVIGATION, "--iterations", "2")


def test_a_run_has_the_same_files_as_any_other(navigation):
    names = {path.name.split(".")[0] for path in navigation.iterdir()}
    assert {"config", "metrics", "checkpoint", "best", "evaluation", "adaptation", "paths", "events"} <= names
    config = Run.open(navigation).config
    assert config["recipe"] == "rl2"  # without being named
    assert config["settings"]["method"]["variant"] == "rl2"
    lines = timeless_metrics(navigation)
    assert [line["iteration"] for line in lines] == [1, 2]
    assert lines[-1]["env_steps"] == 2 * 4 * 2 * 6
    for name in (
        "return/step_1",
        "return/trial",
        "evaluation/return/step_1",
        "evaluation/return/trial",
        "kl",
        "entropy",
    ):
        assert name in lines[-1]


def test_an_evaluation_is_that_of_the_learner(navigation):
    record = json.loads((navigation / "evaluation.json").read_text())
    _, settings, learner = open_run(navigation)
    assert isinstance(learner, RL2Learner)
    with learner:
        expected = learner.evaluate(held_out_tasks(learner, 3), episodes=2, trials_per_task=2)
    assert record["return/step_1"]["per_task"] == pytest.approx(expected.per_task[1].tolist())
    assert record["return/trial"]["per_task"] == pytest.approx(expected.others["trial"].tolist())
    assert (record["method"], record["env_steps"], record["dynamics"]) == ("rl2", 96, "paper")
    assert settings.evaluation.inner_steps == 1


def test_a_resumed_run_is_one_that_never_stopped(navigation, tmp_path):
    stopped = run(navigation_2d.EXPERIMENT, tmp_path / "run", *NAVIGATION, "--iterations", "1", evaluated=False)
    main(navigation_2d.EXPERIMENT, ["--resume", str(stopped), "--iterations", "2"], evaluated=False)
    assert_same_run(stopped, navigation)


def test_the_best_iterate_is_that_of_the_largest_return_of_a_trial(navigation):
    returns = [line["return/trial"] for line in timeless_metrics(navigation)]
    _, _, best = open_run(navigation, "best.pt")
    assert best.iteration == int(np.argmax(returns))


def test_more_episodes_may_be_evaluated_than_were_trained(navigation, capsys):
    evaluate.main([str(navigation), "--steps", "3", "--tasks", "2", "--episodes", "1"])
    lines = capsys.readouterr().out.splitlines()
    heading = next(i for i, line in enumerate(lines) if "return" in line)
    assert lines[heading].split() == ["episodes", "return", "±", "se"]
    assert [line.split()[0] for line in lines[heading + 1 : heading + 6]] == ["0", "1", "2", "3", "trial"]


def test_steps_have_their_name_in_tables():
    evaluation = Evaluation("return", np.array([[1.0, 3.0], [2.0, 5.0]]))
    assert table(evaluation).splitlines()[0].split() == ["steps", "return", "±", "se"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--method rl2 --inner-steps 2", "--inner-steps has no effect with --method rl2"),
        ("--method rl2 --adaptation anil", "--adaptation has no effect with --method rl2"),
        ("--method rl2 --max-kl 0.1", "--max-kl has no effect with --method rl2"),
        ("--method rl2 --estimator lvc", "--estimator has no effect with --method rl2"),
        ("--method rl2 --lanes 3", "--lanes has no effect with --method rl2"),
        ("--method rl2 --baseline quadratic", "--baseline has no effect with --method rl2"),
        ("--method rl2 --memory-size 0", "--memory-size = 0; allowed: a whole number, at least 1"),
        ("--method rl2 --rl2-clip 2", "--rl2-clip = 2.0; allowed:"),
        ("--method rl22", "--method = 'rl22'; allowed: maml, rl2; the nearest is rl2"),
        ("--rl2-epochs 3", "--rl2-epochs has no effect with --method maml; allowed with: rl2"),
    ],
)
def test_bad_input_gets_one_line(arguments, line, capsys, tmp_path):
    words = [*arguments.split(), "--run-dir", str(tmp_path / "run")]
    assert line in error_of(capsys, main, navigation_2d.EXPERIMENT, words)
    assert not (tmp_path / "run").exists()


def test_an_adapted_agent_is_one_that_remembers_the_episodes_it_has_played(navigation, tmp_path, capsys):
    path, words = tmp_path / "agent.pt", ["--task", '{"goal": [0.3, -0.2]}', "--steps", "2", "--episodes", "3"]
    adapt.main([str(navigation), *words, "--output", str(path)])
    lines = capsys.readouterr().out.splitlines()
    _, _, learner = open_run(navigation)
    with learner:
        evaluation = learner.evaluate({"goal": np.array([[0.3, -0.2]])}, 3, 3)
        agent, fresh = learner.agent(evaluation.path[-1]), learner.agent()
    assert lines[:3] == [
        f"{k} earlier episodes: return {value:.2f}, mean of 3 episodes" for k, value in enumerate(evaluation.mean)
    ]
    assert f"agent = metarl.RecurrentAgent.load({str(path)!r})" in lines[3]
    observation = np.array([0.1, 0.2])
    action = RecurrentAgent.load(path)(observation)
    np.testing.assert_array_equal(action, agent(observation))
    assert not np.array_equal(action, fresh(observation))


def test_films_show_the_first_and_the_last_episode_of_a_trial(navigation, tmp_path, capsys, monkeypatch):
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra 'video'")
    monkeypatch.setattr(TaskBatch, "render_lane", lambda batch, lane: np.zeros((64, 64, 3), np.uint8))
    titles, actions = [], []

    def recorded(learner, agent, task, title):
        titles.append(title)
        actions.append(agent(np.array([0.1, 0.2])))
        agent.begin_trial()
        return film(learner, agent, task, title)

    film = videos.film
    monkeypatch.setattr(videos, "film", recorded)
    evaluate.main([str(navigation), "--video", "1", "--output", str(tmp_path)])
    assert [title.split(", ")[-1] for title in titles] == ["0 earlier episodes", "1 earlier episodes"]
    assert not np.array_equal(*actions)
    assert {path.name for path in tmp_path.glob("*.mp4")} == {"video_task1_before.mp4", "video_task1_after.mp4"}


def test_scripts_that_need_gradient_steps_refuse_its_runs(navigation, capsys):
    for script, *arguments in (
        (evaluate.main, "--extra-step-scale", "0.5", "--steps", "3"),
        (meta_gradients.main,),
    ):
        assert "allowed" in error_of(capsys, script, [str(navigation), *arguments])


def test_the_recipe_of_the_method_is_the_default_where_there_is_one():
    direction = half_cheetah_direction.EXPERIMENT
    found = direction.values("", {"method": "rl2"})
    assert found == direction.values("rl2")
    assert (found["num_tasks"], found["episodes_per_task"], found["evaluation_steps"]) == (160, 2, 1)
    assert direction.values("", {"method": "maml"}) == direction.values()
    assert direction.values("paper", {"method": "rl2"})["num_tasks"] == 40
    assert find_experiment("meta_world").values("", {"method": "rl2"})["episodes_per_task"] == 10
    with pytest.raises(SettingError, match="--inner-step-size has no effect"):
        direction.values("rl2", {"inner_step_size": 0.1})


@pytest.mark.parametrize("name", ["half_cheetah_direction", "half_cheetah_velocity"])
@pytest.mark.parametrize("dynamics", ["", ", gymnasium", ", peers"])
def test_the_recipes_take_as_many_environment_steps_as_the_recommended_ones(name, dynamics):
    experiment = find_experiment(name)
    ours, theirs = (experiment.values(recipe + dynamics) for recipe in ("rl2", "recommended"))
    steps = [
        values["num_tasks"] * values["episodes_per_task"] * values["horizon"] * values["iterations"] * rollouts
        for values, rollouts in ((ours, 1), (theirs, 1 + theirs["inner_steps"]))
    ]
    assert steps[0] == steps[1]
    assert ours["dynamics"] == theirs["dynamics"]


def test_bandits_and_decision_processes_are_built_as_their_settings_say():
    made = bandits.EXPERIMENT.build(bandits.EXPERIMENT.configure(arms=4, pulls=7, num_tasks=5, threads=1))
    assert (made.task_distribution.action_space.n, made.task_distribution.horizon) == (4, 7)
    assert made.policy.gru.hidden_size == 64
    assert made.advantages.gae_lambda == 0.3
    large = bandits.EXPERIMENT.values("rl2, 10 arms, 100 pulls")
    assert (large["arms"], large["pulls"]) == (10, 100)
    made = random_mdps.EXPERIMENT.build(random_mdps.EXPERIMENT.configure(states=4, actions=3, num_tasks=5, threads=1))
    assert made.task_distribution.task_space["transitions"].shape == (4, 3, 4)
    assert made.sampling.episodes_per_task == 10
    with pytest.raises(SettingError, match="--arms = 1"):
        bandits.EXPERIMENT.configure(arms=1)


def test_a_run_on_bandits(tmp_path):
    directory = run(bandits.EXPERIMENT, tmp_path / "run", *BANDITS, "--iterations", "1")
    record = json.loads((directory / "evaluation.json").read_text())
    assert record["return/step_0"]["per_task"] == record["return/trial"]["per_task"]
    assert np.shape(record["tasks"]["probabilities"]) == (3, 3)


def test_bandits_can_be_learned_by_gradient_steps_too():
    changes = {"method": "maml", "num_tasks": 2, "episodes_per_task": 3, "hidden_sizes": (4,), "threads": 1}
    learner = bandits.EXPERIMENT.build(bandits.EXPERIMENT.configure(**changes))
    with learner:
        assert learner.step()["env_steps"] == 2 * 2 * 3 * 10


def test_an_experiment_may_have_a_policy_with_a_memory_of_its_own():
    def policy(settings, observations, actions):
        return RecurrentPolicy(observations, actions, 3, initial_std=0.5)

    own = replace(navigation_2d.EXPERIMENT, memory_policy=policy)
    learner = own.build(own.configure(method="rl2", num_tasks=2, threads=1))
    assert learner.policy.gru.hidden_size == 3
