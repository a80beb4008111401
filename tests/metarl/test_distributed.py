"""Several processes give what one gives: equal episodes, the same decisions, parameters up to rounding."""

import os
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from envs import Navigation2D
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
from metarl import distributed as metarl_distributed
from metarl.distributed import ALONE, LostProcessError, Processes
from metarl.estimators import dice
from metarl.evaluation import evaluate, held_out_tasks
from metarl.models import MLP
from metarl.parameters import ravel
from tests.probes import CorridorTasks

TASKS = 5  # which no number of processes here divides


def navigation(**changes):
    distribution = Navigation2D(15)
    torch.manual_seed(0)
    policy = GaussianMLP(distribution.observation_space, distribution.action_space, (8,), "tanh")
    return Learner(distribution, policy, **{"tasks": TASKS, "episodes": 4, "rule": GradientDescent(0.5), **changes})


def corridor(**changes):
    """Episodes of different lengths, so that the shares of the processes differ in T."""
    distribution = CorridorTasks()
    torch.manual_seed(0)
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (8,), "tanh")
    return Learner(distribution, policy, **{"tasks": TASKS, "episodes": 4, **changes})


LEARNERS = {
    "trpo": navigation,
    "rejected": lambda: navigation(outer=TRPO(max_kl=1e-12)),
    "ppo": lambda: navigation(outer=PPO(step_size=0.01), rule=GradientDescent(0.5, steps=2)),
    "adam": lambda: navigation(outer=Adam(0.01), rule=MetaSGD(0.3)),
    "reptile": lambda: navigation(outer=Reptile()),
    "e-maml": lambda: navigation(initial_sampling=True, rule=LayerStepSizes(0.3)),
    "corridor": lambda: corridor(outer=TRPO(product_fraction=0.5)),
    "dice": lambda: corridor(estimator=dice, outer=TRPO(product_fraction=0.5)),
}
FEW_SHOT = {
    "few-shot": lambda: FewShotLearner(Sine(), MLP((1, 8, 1)), REGRESSION, tasks=TASKS),
    "few-shot reptile": lambda: FewShotLearner(
        Sine(), MLP((1, 8, 1)), REGRESSION, tasks=TASKS, meta_gradient=ReptileGradient()
    ),
}


def trained(name):
    """Three iterations: first episodes of all tasks, figures, parameters, and an evaluation."""
    torch.manual_seed(0)
    learner = {**LEARNERS, **FEW_SHOT}[name]()
    processes, found = learner.processes, {}
    if isinstance(learner, Learner):
        tasks = learner.distribution.sample(TASKS, learner._rng("train/tasks"))
        stages = learner.adapt(tasks, learner.rule.steps, purpose="train", processes=processes)
        for step, stage in enumerate(stages):
            for part in ("observations", "actions", "rewards", "valid"):
                whole = processes.join(getattr(stage.episodes, part).double(), TASKS)
                found[f"{part}/{step}"] = torch.where(processes.join(stage.episodes.valid.int(), TASKS) > 0, 1, 0)
                mask = found[f"{part}/{step}"].view(*whole.shape[:3], *[1] * (whole.ndim - 3))
                found[f"{part}/{step}"] = whole * mask  # padding may be anything
    figures = [learner.step() for _ in range(3)]
    if isinstance(learner, Learner):
        found["evaluation"] = torch.from_numpy(evaluate(learner, 2, held_out_tasks(learner, 6), 3).returns)
    vector = ravel([value.detach() for value in learner.theta.values()])
    assert len(set(processes.everyone(tuple(vector.tolist())))) == 1, "processes differ in their parameters"
    return found, figures, vector


def serve(rank, size, port, folder):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = metarl_distributed.start("cpu")
    assert processes == Processes(rank, size)
    results = {name: trained(name) for name in (*LEARNERS, *FEW_SHOT)}
    check_collectives(processes)
    if rank == 0:
        torch.save(results, folder / "results.pt")
    metarl_distributed.end()


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


@pytest.fixture(scope="module")
def alone():
    return {name: trained(name) for name in (*LEARNERS, *FEW_SHOT)}


@pytest.mark.parametrize(
    "size", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_any_number_of_processes_gives_the_same(size, alone, tmp_path):
    mp.spawn(serve, (size, free_port(), tmp_path), nprocs=size)
    results = torch.load(tmp_path / "results.pt")
    assert results.keys() == alone.keys()
    for name, (episodes, figures, vector) in alone.items():
        found, their_figures, theirs = results[name]
        for part, values in episodes.items():
            if part != "evaluation":
                assert torch.equal(found[part], values), f"{name}: {part}"
        torch.testing.assert_close(theirs, vector, rtol=2e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")
        for mine, other in zip(figures, their_figures, strict=True):
            assert mine.keys() == other.keys()
            for figure in mine.keys() - {"seconds/rollout", "seconds/adapt", "seconds/update"}:
                assert other[figure] == pytest.approx(mine[figure], rel=1e-2, abs=1e-4), f"{name}: {figure}"
            for exact in {"accepted", "line_search_steps", "env_steps", "failed_episodes"} & mine.keys():
                assert other[exact] == mine[exact], f"{name}: {exact}"


def test_the_cases_accept_and_reject(alone):
    assert [line["accepted"] for line in alone["trpo"][1]] == [1, 1, 1]
    assert 0 in [line["accepted"] for line in alone["rejected"][1]]


@pytest.mark.parametrize(("count", "size"), [(7, 3), (40, 16), (3, 3), (2, 5)])
def test_shares_are_even_and_cover_everything_once(count, size):
    shares = [Processes(rank, size).share(count) for rank in range(size)]
    assert [task for share in shares for task in range(count)[share]] == list(range(count))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_process_alone_needs_no_engine(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert metarl_distributed.start("cpu") == ALONE
    values = torch.randn(3)
    assert ALONE.sum(values) is values
    assert ALONE.first(values) is values
    assert (ALONE.most(4), ALONE.everyone("x")) == (4, ["x"])
    assert torch.equal(ALONE.join(values, 3), values)


def test_more_processes_than_tasks_are_refused():
    with pytest.raises(ValueError, match="tasks = 5 on 6 processes; allowed: one or more on each"):
        navigation(processes=Processes(0, 6))
    with pytest.raises(ValueError, match="tasks = 5 on 6 processes"):
        replace(FEW_SHOT["few-shot"](), processes=Processes(0, 6))


def test_gpus_without_nccl_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(ValueError, match="this PyTorch has no NCCL; allowed: the device cpu"):
        metarl_distributed.start("cuda:1")


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
