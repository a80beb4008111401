"""Several processes give what one gives: equal episodes, the same decisions, parameters up to rounding."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from metarl import (
    PPO,
    REGRESSION,
    TRPO,
    Adam,
    CategoricalMLP,
    FewShotLearner,
    GaussianMLP,
    GradientDescent,
    LayerStepSizes,
    Learner,
    MetaSGD,
    NonFiniteError,
    Reptile,
    ReptileGradient,
    Sine,
)
from metarl.core import distributed
from metarl.core.distributed import ALONE, LostProcessError, Processes
from metarl.core.parameters import ravel
from metarl.envs import Navigation2D
from metarl.few_shot.networks import MLP
from metarl.rl.estimators import dice
from metarl.rl.evaluation import evaluate, held_out_tasks
from tests.probes import CorridorTasks

TASKS = 5  # which no number of processes here divides


def navigation(**changes):
    distribution = Navigation2D(15)
    torch.manual_seed(0)
    policy = GaussianMLP(distribution.observation_space, distribution.action_space, (8,), "tanh")
    return Learner(distribution, policy, **{"tasks": TASKS, "episodes": 4, "rule": GradientDescent(0.5), **changes})


def corridor(broken="", **changes):
    """Episodes of different lengths, so that the shares of the processes differ in T."""
    distribution = CorridorTasks(broken=broken)
    torch.manual_seed(0)
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (8,), "tanh")
    return Learner(distribution, policy, **{"tasks": TASKS, "episodes": 4, **changes})


LEARNERS = {
    "trpo": navigation,
    "rejected": lambda: navigation(outer=TRPO(max_kl=1e-20)),
    "ppo": lambda: navigation(outer=PPO(step_size=0.01), rule=GradientDescent(0.5, steps=2)),
    "adam": lambda: navigation(outer=Adam(0.01), rule=MetaSGD(0.3)),
    "reptile": lambda: navigation(outer=Reptile()),
    "e-maml": lambda: navigation(initial_sampling=True, rule=LayerStepSizes(0.3)),
    "corridor": lambda: corridor(outer=TRPO(product_fraction=0.5)),
    "multi-step": lambda: corridor(multi_step=True, rule=LayerStepSizes(0.3, steps=2), support_lambda=0.5),
    "success": lambda: corridor("tells of success alone", seed=35),
    "steps": lambda: corridor(budget="steps", outer=TRPO(product_fraction=0.5)),
    "dice": lambda: corridor(budget="steps", estimator=dice, outer=TRPO(product_fraction=0.5)),
    "few-shot": lambda: FewShotLearner(Sine(), MLP((1, 8, 1)), REGRESSION, tasks=2 * TASKS),
    "few-shot reptile": lambda: FewShotLearner(
        Sine(), MLP((1, 8, 1)), REGRESSION, tasks=2 * TASKS, meta_gradient=ReptileGradient()
    ),
}


def trained(name):
    """Episodes of all tasks in the first iteration, figures and parameters after two; returns, successes in a test."""
    torch.manual_seed(0)
    learner = LEARNERS[name]()
    processes, episodes, returns = learner.processes, {}, None
    if isinstance(learner, Learner):
        tasks = learner.distribution.sample(TASKS, learner._rng("train/tasks"))
        stages = learner.adapt(tasks, learner.rule.steps, purpose="train", processes=processes)
        for step, data in enumerate(stage.episodes for stage in stages):
            for part in ("observations", "actions", "rewards"):
                values = getattr(data, part)
                valid = data.valid.view(*data.valid.shape, *[1] * (values.ndim - 3))
                episodes[f"{part}/{step}"] = processes.join(torch.where(valid, values, 0), TASKS)
        evaluation = evaluate(learner, 2, held_out_tasks(learner, 6), 3)
        successes = evaluation.successes
        returns = evaluation.returns.tolist(), None if successes is None else successes.tolist()
    figures = [learner.step() for _ in range(2)]
    timeless = [{name: value for name, value in line.items() if "seconds" not in name} for line in figures]
    vector = ravel([value.detach() for value in learner.theta.values()])
    assert len(set(processes.everyone(tuple(vector.tolist())))) == 1, "processes differ in their parameters"
    return episodes, timeless, vector, returns


def serve(rank, size, port, names, path):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = distributed.start("cpu")
    assert processes == Processes(rank, size)
    check_collectives(processes)
    results = {name: trained(name) for name in names}
    if rank == 0:
        torch.save(results, path)
    distributed.end()
    threads = [name.read_text() for name in Path("/proc/self/task").glob("*/comm")]  # where there is a /proc
    assert not [name for name in threads if "gloo" in name], "the group's threads live on"


def check_collectives(processes):
    rank, size = processes.rank, processes.size
    values = torch.randn(1000, generator=torch.Generator().manual_seed(rank))
    everyone = [torch.randn(1000, generator=torch.Generator().manual_seed(r)) for r in range(size)]
    total = processes.sum(values)
    torch.testing.assert_close(total, torch.stack(everyone).sum(0))
    assert len(set(processes.everyone(tuple(total.tolist())))) == 1
    assert torch.equal(processes.sum(values), total)
    assert torch.equal(values, everyone[rank])
    assert processes.most(10 - rank) == 10
    assert torch.equal(processes.first(values), everyone[0])
    own = torch.arange(TASKS)[processes.share(TASKS)].float().exp()
    assert torch.equal(processes.join(own, TASKS), torch.arange(TASKS).float().exp())
    assert processes.everyone({"rank": rank}) == [{"rank": r} for r in range(size)]
    assert processes.sum(torch.zeros(0)).shape == (0,)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


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
    mp.spawn(serve, (size, free_port(), names, tmp_path / "results.pt"), nprocs=size)
    results = torch.load(tmp_path / "results.pt")
    for name in names:
        episodes, figures, vector, returns = trained(name)
        found, their_figures, theirs, their_returns = results[name]
        for part, values in episodes.items():
            assert torch.equal(found[part], values), f"{name}: {part}"
        assert torch.equal(theirs, vector), name
        assert their_returns == returns, name
        for mine, other in zip(figures, their_figures, strict=True):
            assert other == pytest.approx(mine, rel=1e-6, abs=1e-12), name
    if "rejected" in names:
        assert 0 in [line["accepted"] for line in results["rejected"][1]]
        assert 1 in [line["accepted"] for line in results["trpo"][1]]


@pytest.mark.parametrize(("count", "size"), [(7, 3), (40, 16), (3, 3), (2, 5)])
def test_shares_are_even_and_cover_everything_once(count, size):
    shares = [Processes(rank, size).share(count) for rank in range(size)]
    assert [task for share in shares for task in range(count)[share]] == list(range(count))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_process_alone_needs_no_engine(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.start("cpu") == ALONE
    values = torch.randn(3)
    assert ALONE.sum(values) is values
    assert ALONE.first(values) is values
    assert (ALONE.most(4), ALONE.everyone("x")) == (4, ["x"])
    assert torch.equal(ALONE.join(values, 3), values)


def test_more_processes_than_tasks_are_refused():
    with pytest.raises(ValueError, match="tasks = 5 on 6 processes; allowed: one or more on each"):
        navigation(processes=Processes(0, 6))
    with pytest.raises(ValueError, match="tasks = 10 on 11 processes"):
        replace(LEARNERS["few-shot"](), processes=Processes(0, 11))


def test_gpus_without_nccl_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(ValueError, match="this PyTorch has no NCCL; allowed: the device cpu"):
        distributed.start("cuda:1")


def test_what_breaks_in_a_share_names_the_task_of_the_whole():
    learner = corridor(processes=Processes(1, 2))
    learner.distribution = CorridorTasks(broken="reward")  # lane 3 of a share, which is episode 3 of its first task
    with pytest.raises(NonFiniteError, match="task 2, episode 3, step 1"):
        learner.adapt({"length": np.full(TASKS, 6)}, 0, processes=replace_size(learner.processes))


def replace_size(processes):
    """The share of one of several processes, with nobody to talk to."""

    class Silent(Processes):
        def most(self, value):
            return value

    return Silent(processes.rank, processes.size)


def test_a_lost_process_is_one_line(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("Connection closed by peer\nmore")

    monkeypatch.setattr(torch.distributed, "all_reduce", broken)
    with pytest.raises(LostProcessError, match=r"^process 1 of 2 lost another one: Connection closed by peer$"):
        Processes(1, 2).sum(torch.zeros(2))
