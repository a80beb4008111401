"""Several processes give what one gives: equal episodes, the same decisions, the same parameters."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from metarl import (
    MAML,
    PPO,
    REGRESSION,
    TRPO,
    Adam,
    FewShotLearner,
    FewShotReptile,
    GradientDescent,
    LayerStepSizes,
    Learner,
    MetaSGD,
    NonFiniteError,
    Reptile,
    Sine,
    keyed_generator,
)
from metarl.core.distributed import Processes
from metarl.core.parameters import ravel
from metarl.few_shot.networks import MLP
from metarl.rl.estimators import dice
from metarl.rl.evaluation import evaluate, held_out_tasks
from tests.builders import corridor_learner, navigation_learner, without_times
from tests.processes import run_in_processes

TASKS = 5  # which no number of processes here divides


def navigation(**changes):
    sizes = {"horizon": 15, "hidden_sizes": (8,), "num_tasks": TASKS, "episodes_per_task": 4}
    return navigation_learner(**{**sizes, **changes})


def corridor(broken="", **changes):
    """Episodes of different lengths, so that the shards of the processes differ in T."""
    return corridor_learner(broken, (8,), **{"num_tasks": TASKS, "episodes_per_task": 4, **changes})


def sine(method):
    return FewShotLearner(Sine(), method(MLP((1, 8, 1)), REGRESSION), num_tasks=2 * TASKS)


LEARNERS = {
    "trpo": navigation,
    "rejected": lambda: navigation(outer=TRPO(max_kl=1e-20)),
    "ppo": lambda: navigation(outer=PPO(step_size=0.01), rule=GradientDescent(0.5, inner_steps=2)),
    "adam": lambda: navigation(outer=Adam(0.01), rule=MetaSGD(0.3)),
    "reptile": lambda: navigation(outer=Reptile()),
    "e-maml": lambda: navigation(initial_sampling=True, rule=LayerStepSizes(0.3)),
    "corridor": lambda: corridor(outer=TRPO(hvp_sample_fraction=0.5)),
    "multi-step": lambda: corridor(multi_step=True, rule=LayerStepSizes(0.3, inner_steps=2), support_lambda=0.5),
    "success": lambda: corridor("reports success alone", seed=35),
    "steps": lambda: corridor(budget="steps", outer=TRPO(hvp_sample_fraction=0.5)),
    "dice": lambda: corridor(budget="steps", estimator=dice, outer=TRPO(hvp_sample_fraction=0.5)),
    "few-shot": lambda: sine(MAML),
    "few-shot reptile": lambda: sine(FewShotReptile),
}


def trained(name):
    """Episodes of all tasks in the first iteration, an evaluation, and metrics and parameters after two iterations."""
    torch.manual_seed(0)
    learner = LEARNERS[name]()
    processes, episodes, evaluated = learner.processes, {}, None
    if isinstance(learner, Learner):
        evaluation = evaluate(learner, held_out_tasks(learner, 6), 2, 3)
        evaluated = evaluation.to_json()
        episodes = first_episodes(learner)
    metrics = [without_times(learner.step()) for _ in range(2)]
    vector = ravel([value.detach() for value in learner.theta.values()])
    assert len(set(processes.all_gather_objects(tuple(vector.tolist())))) == 1, "processes differ in their parameters"
    return episodes, metrics, vector, evaluated


def first_episodes(learner):
    """Of all processes, as they are sampled for the test of `evaluate`."""
    found, processes = {}, learner.processes
    tasks = learner.task_distribution.sample(TASKS, keyed_generator(0, "train/tasks"))
    for step, at in enumerate(learner.adapt_shard(tasks, learner.rule.inner_steps)):
        for part in ("observations", "actions", "rewards"):
            values, valid = getattr(at.episodes, part), at.episodes.valid
            valid = valid.view(*valid.shape, *[1] * (values.ndim - 3))
            found[f"{part}/{step}"] = processes.all_gather(torch.where(valid, values, 0), TASKS)
    return found


def work(processes, names, path):
    results = {name: trained(name) for name in names}
    if processes.rank == 0:
        torch.save(results, path)


ALL = tuple(LEARNERS)


@pytest.mark.parametrize(
    ("size", "names"),
    [
        (2, ("steps", "success", "ppo", "few-shot")),
        pytest.param(2, ALL, marks=pytest.mark.slow),
        pytest.param(3, ALL, marks=pytest.mark.slow),
        pytest.param(4, ALL, marks=pytest.mark.slow),
    ],
)
def test_any_number_of_processes_gives_the_same(size, names, tmp_path):
    run_in_processes(size, work, names, tmp_path / "results.pt")
    results = torch.load(tmp_path / "results.pt")
    for name in names:
        episodes, metrics, vector, evaluated = trained(name)
        found, their_metrics, theirs, their_evaluated = results[name]
        assert found.keys() == episodes.keys()
        for part, values in episodes.items():
            assert torch.equal(found[part], values), f"{name}: {part}"
        assert torch.equal(theirs, vector), name
        assert their_evaluated == evaluated, name
        for mine, other in zip(metrics, their_metrics, strict=True):
            assert other == pytest.approx(mine, rel=1e-6, abs=1e-12), name
    if "rejected" in names:
        assert 0 in [line["accepted"] for line in results["rejected"][1]]
        assert 1 in [line["accepted"] for line in results["trpo"][1]]


def test_more_processes_than_tasks_are_refused():
    with pytest.raises(ValueError, match=r"^num_tasks = 5 on 6 processes"):
        navigation(processes=Processes(0, 6))
    with pytest.raises(ValueError, match=r"^num_tasks = 10 on 11 processes"):
        replace(sine(MAML), processes=Processes(0, 11))


class Silent(Processes):
    """One of several processes, with nobody to talk to."""

    def all_reduce_max(self, value):
        return value


def test_what_breaks_in_a_shard_names_the_task_of_the_whole():
    learner = corridor("reward", processes=Silent(1, 2))  # lane 3 of the shard, episode 3 of its first task
    with pytest.raises(NonFiniteError, match="task 2, episode 3, step 1"):
        learner.adapt_shard({"length": np.full(TASKS, 6)}, 0)
