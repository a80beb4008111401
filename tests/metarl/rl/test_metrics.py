"""The metrics of a meta-iteration: means over tasks and sums over episodes, against loops."""

from dataclasses import replace

import pytest
import torch

from metarl.core.distributed import ALONE
from metarl.rl.action_distributions import action_distribution_for
from metarl.rl.metrics import reports_success, sampling_metrics, update_metrics
from metarl.rl.outer import UpdateOutcome
from metarl.rl.sampler import Sampler
from tests.builders import corridor_learner, navigation_learner

LENGTHS = torch.tensor([2, 4, 8]).numpy()


def test_sampling_metrics_are_those_of_loops_over_tasks_and_episodes():
    learner = corridor_learner()
    path = learner.adapt({"length": LENGTHS}, 1)
    found = sampling_metrics(path, action_distribution_for(learner.task_distribution.action_space), 3, ALONE)
    steps, episodes = 2 * (2 + 4 + 6), 3 * 2
    for step, at in enumerate(path):
        returns = [at.episodes.rewards[m, :, e].sum().item() for m in range(3) for e in range(2)]
        assert found[f"return/step_{step}"] == pytest.approx(sum(returns) / 6)
    assert found["adaptation_gain"] == pytest.approx(found["return/step_1"] - found["return/step_0"])
    assert (found["env_steps"], found["episodes"]) == (2 * steps, 2 * episodes)
    assert found["episode_length"] == steps / episodes
    assert found["failed_episodes"] == 0
    assert found["inner_gradient_norm"] == pytest.approx(path[1].gradient_norm.mean().item())
    assert found["explained_variance"] == pytest.approx(path[1].values.explained_variance.mean().item())
    logits = path[1].episodes.dist_params[path[1].episodes.valid]
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(dim=1).mean()
    assert found["policy_entropy"] == pytest.approx(entropy.item())
    assert not any(name.startswith("success") for name in found)


def test_success_is_reported_where_any_episode_reports_it():
    silent = corridor_learner().adapt({"length": LENGTHS}, 1)
    reporting = corridor_learner("reports success").adapt({"length": LENGTHS}, 1)
    assert not reports_success(silent, ALONE)
    assert reports_success([silent[0], reporting[1]], ALONE)
    family = action_distribution_for(corridor_learner().task_distribution.action_space)
    found = sampling_metrics(reporting, family, 3, ALONE)
    assert found["success/step_0"] == found["success/step_1"] == pytest.approx(2 / 3)  # from the fourth step on


def test_failed_episodes_count_after_every_inner_step(monkeypatch):
    learner, sample = navigation_learner(), Sampler.sample

    def failing(self, parameters, tasks, episodes_per_task, key):
        failed = torch.tensor([[True] * 5, [False] * 5, [True, False] * 2 + [False], [False] * 5])
        episodes = sample(self, parameters, tasks, episodes_per_task, key)
        return replace(episodes, failed=failed if key.purpose == "train/step_0" else failed.roll(1, 0))

    monkeypatch.setattr(Sampler, "sample", failing)
    assert learner.step()["failed_episodes"] == 14


def test_the_explained_variance_is_that_of_the_last_episodes():
    learner = navigation_learner()
    tasks = learner.task_distribution.sample(4, learner._generator("train/tasks"))
    *_, last = learner.adapt(tasks, 1, purpose="train")
    assert learner.step()["explained_variance"] == pytest.approx(last.values.explained_variance.mean().item())


@pytest.mark.parametrize(("status", "accepted"), [("accepted", 1.0), ("rejected", 0.0), ("stationary", 0.0)])
def test_update_metrics_say_what_the_optimiser_said(status, accepted):
    outcome = UpdateOutcome(status, 0.5, 0.25, 0.01, 2.0, {"line_search_steps": 3.0})
    assert update_metrics(outcome) == {
        "kl": 0.01,
        "line_search_steps": 3.0,
        "accepted": accepted,
        "loss_before": 0.5,
        "loss_after": 0.25,
        "meta_gradient_norm": 2.0,
    }
