"""The meta-learner: one data flow per meta-iteration, from tasks to new meta-parameters."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from metarl.core.adaptation import AdaptationRule, GradientDescent, adapt_step
from metarl.core.distributed import ALONE, Processes, current
from metarl.core.errors import NonFiniteError
from metarl.core.parallel import parallel_map, task_chunks, workers
from metarl.core.parameters import (
    Parameters,
    call_per_task,
    constants_of,
    expand_over_tasks,
    parameters_of,
    ravel,
    require_alike,
    restore_constants,
    unravel,
)
from metarl.core.randomness import RolloutKey, keyed_generator
from metarl.core.validation import require, require_one_of, require_part, require_seed, require_share, require_whole
from metarl.rl.action_distributions import distribution_for
from metarl.rl.advantages import discounted_returns, estimate_advantages, require_baseline
from metarl.rl.agent import Agent
from metarl.rl.episodes import WEIGHTINGS, Episodes, Samples, to_samples
from metarl.rl.estimators import EPISODIC, WITH_SAMPLING, Estimator, outcomes, policy_loss, score
from metarl.rl.objective import MetaObjective
from metarl.rl.outer import TRPO, OuterOptimiser, Reptile, State, UpdateOutcome
from metarl.rl.rollout import collect, rollout
from metarl.rl.task_distribution import TaskDistribution, Tasks, protocol_defects

_CHUNK_SAMPLES = 16_384  # samples of one task chunk on a CPU: its activations stay in the cache


@dataclass(frozen=True)
class Stage:
    """Parameters, and what they did: stage k follows k inner steps.

    Attributes:
        parameters: phi_k, leading axis of M tasks.
        episodes: sampled with them.
        samples: the same with advantages, as losses take them.
        explained_variance: of the baseline, (M,).
        advantage_deviation: what the advantages were divided by, (M,).
        gradient_norm: Euclidean norm of the inner gradient that led here, (M,); 0 at stage 0.
    """

    parameters: Parameters
    episodes: Episodes
    samples: Samples
    explained_variance: Tensor
    advantage_deviation: Tensor
    gradient_norm: Tensor


@dataclass
class Learner:
    """Meta-learns the parameters of a policy over a task distribution.

    Attributes:
        distribution: samples tasks and builds environments.
        policy: maps observations (batch, O) to the parameters of an action distribution (batch, P).
        tasks: M, tasks in a meta-batch.
        episodes: E, episodes per task before and after each inner step (the paper's K).
        rule: the inner loop.
        estimator: the inner loss.
        outer: the outer optimiser.
        initial_sampling: whether E-MAML's term for the sampling of the support data joins the meta-gradient; for
            estimators that lack it.
        multi_step: whether the policies after every inner step count in the meta-objective, all alike, or the last ones
            alone. The support data of a later step are an earlier policy's query data, so this costs no episodes.
        discount, gae_lambda, bootstrap, baseline: see `metarl.rl.advantages.estimate_advantages`.
        support_lambda: in place of `gae_lambda` for the support data; None for the same. An inner gradient comes from
            the few episodes of one task and is mostly noise, which a smaller lambda reduces; the meta-gradient
            averages over all tasks, and keeps the larger one's smaller bias.
        survival_bonus: added to the reward of every step that learning sees; returns are told without it. Where an
            episode can end early and rewards are negative, ending it pays, and that is what is learned first. Where
            all episodes last the whole horizon it changes next to nothing, for the baseline predicts it.
        bounds_penalty: taken from the rewards that learning sees, times the squared distance of each action from the
            bounds that it is clipped to. Beyond a bound actions do not differ, so nothing but this penalty brings a
            policy back, and its gradients there are noise.
        weighting: of the steps within a task, see `metarl.rl.episodes.to_samples`.
        budget: `episodes`: E episodes per task; `steps`: as many whole ones as it takes to have E times the horizon
            in steps, see `metarl.rl.rollout.collect`.
        seed: names all randomness of a run.
        threads: that step the physics.
        device: where adaptation and updates happen.
        task_chunk: tasks handled at a time; None chooses by the size of the cache. On a CPU it changes nothing, except
            that a task by itself may be rounded otherwise.
        processes: that divide the tasks of a meta-batch; by default all that torch.distributed knows. On CPUs their
            number changes nothing, with the same exception.
        theta: meta-parameters.
        iteration: meta-iterations done.
        env_steps: environment steps taken in training.
    """

    distribution: TaskDistribution
    policy: nn.Module
    tasks: int = 20
    episodes: int = 20
    rule: AdaptationRule = field(default_factory=GradientDescent)
    estimator: Estimator = score
    outer: OuterOptimiser = field(default_factory=TRPO)
    initial_sampling: bool = False
    multi_step: bool = False
    discount: float = 0.99
    gae_lambda: float = 1.0
    support_lambda: float | None = None
    survival_bonus: float = 0.0
    bounds_penalty: float = 0.0
    bootstrap: bool = False
    baseline: str = "linear"
    weighting: str = "timestep"
    budget: str = "episodes"
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    task_chunk: int | None = None
    processes: Processes = field(default_factory=current)

    def __post_init__(self) -> None:
        for name in ("tasks", "episodes", "threads"):
            require_whole(name, getattr(self, name))
        require_seed(self.seed)
        require_share("discount", self.discount)
        require_share("gae_lambda", self.gae_lambda)
        if self.support_lambda is not None:
            require_share("support_lambda", self.support_lambda)
        require(0 <= self.survival_bonus < math.inf, "survival_bonus", self.survival_bonus, "at least 0")
        require(0 <= self.bounds_penalty < math.inf, "bounds_penalty", self.bounds_penalty, "at least 0")
        require_one_of(WEIGHTINGS, "weighting", self.weighting)
        require_one_of(("episodes", "steps"), "budget", self.budget)
        require_part("rule", self.rule, "meta_parameters", "metarl.GradientDescent(0.1)")
        require_part("outer", self.outer, "update", "metarl.TRPO()")
        require_part("estimator", self.estimator, "__call__", "metarl.rl.estimators.lvc")
        if self.task_chunk is not None:
            require_whole("task_chunk", self.task_chunk)
        if defects := protocol_defects(self.distribution, self.tasks):
            raise ValueError(defects[0])
        if self.tasks < self.processes.size:
            raise ValueError(f"tasks = {self.tasks} on {self.processes.size} processes; allowed: one or more on each")
        numbers = int(np.prod(self.distribution.observation_space.shape or ()))
        require_baseline(self.baseline, numbers, self.episodes * self.distribution.horizon)
        self.policy.to(self.device)
        self.actions = distribution_for(self.distribution.action_space)
        self.inner_loss = policy_loss(self.policy, self.actions, self.estimator)
        self.theta = self.rule.meta_parameters(parameters_of(self.policy))
        self.outer_state: State = self.outer.start(ravel(list(self.theta.values())), self.rule.steps)
        self.iteration = 0
        self.env_steps = 0
        self._check_combination()
        self._envs: dict[int, VectorEnv] = {}
        self._check_policy_output()

    def step(self) -> dict[str, float]:
        """Do one meta-iteration: sample tasks, adapt to each, and improve the meta-parameters.

        Returns:
            figures of the iteration by name, as `metrics.jsonl` and TensorBoard show them.
        """
        clock = Clock(self.device)
        tasks = self.distribution.sample(self.tasks, self._rng("train/tasks"))
        stages = self.adapt(tasks, self.rule.steps, purpose="train", clock=clock, processes=self.processes)
        with clock.phase("update"):
            objective = self.objective(stages)
            vector, self.outer_state, outcome = self.outer.update(
                objective, ravel(list(self.theta.values())), self._rng("train/products"), self.outer_state
            )
            if not torch.isfinite(vector).all():
                raise NonFiniteError(f"the meta-parameters after iteration {self.iteration + 1} are not finite")
        self.theta = unravel(self.processes.first(vector), self.theta)  # machines may differ in how they round
        self.iteration += 1
        return self._figures(stages, outcome, clock)

    def adapt(
        self,
        tasks: Tasks,
        steps: int,
        episodes: int | None = None,
        purpose: str = "test",
        clock: "Clock | None" = None,
        processes: Processes = ALONE,
    ) -> list[Stage]:
        """Sample with theta, take an inner step for every task, sample again, and so on.

        Args:
            tasks: dict of arrays (M, ...).
            steps: S, inner steps; beyond the trained number the rule's later step size holds.
            episodes: E per task and stage; None takes the learner's own.
            purpose: names the randomness, together with the iteration in training.
            clock: adds up seconds per phase.
            processes: that divide the tasks; each gets the stages of its share.

        Returns:
            S + 1 stages, the last one without a step after it.
        """
        clock = clock or Clock(self.device)
        episodes = self.episodes if episodes is None else episodes
        require_whole("episodes", episodes)
        require_whole("steps", steps, at_least=0)
        rows = {name: np.shape(values)[:1] for name, values in tasks.items()}
        if not rows or () in rows.values() or len(set(rows.values())) > 1:
            raise ValueError(f"tasks = {tasks}; allowed: a dict of arrays, a row per task")
        [count] = next(iter(rows.values()))
        share = processes.share(count)
        tasks = {name: np.asarray(values)[share] for name, values in tasks.items()}
        count = share.stop - share.start
        envs = self._lanes(count * episodes)
        iteration = self.iteration if purpose == "train" else 0
        phi = self.rule.start(expand_over_tasks(self.theta, count))
        norm = torch.zeros(count)
        support_lambda = self.gae_lambda if self.support_lambda is None else self.support_lambda
        stages = []
        for step in range(steps + 1):
            key = RolloutKey(self.seed, f"{purpose}/step_{step}", iteration, share.start)
            with clock.phase("rollout"):
                sampled = self._sample(envs, phi, tasks, key, processes)
            with clock.phase("adapt"):
                gae_lambda = support_lambda if step < steps else self.gae_lambda
                advantages, explained, deviation = self._advantages(sampled, gae_lambda, share.start)
                samples = self._samples(sampled, advantages, processes)
                stages.append(Stage(phi, sampled, samples, explained, deviation, norm))
                if step < steps:
                    phi, norm = self.inner_step(phi, samples, step)
                    _check_finite(phi, step, share.start)
        return stages

    def objective(self, stages: Sequence[Stage]) -> MetaObjective:
        """The meta-objective of an iteration's stages, as `adapt` returns them."""
        *supports, query = [stage.samples for stage in stages]
        earlier = [self._as_query(stage) for stage in stages[1:-1]] if self.multi_step else []
        return MetaObjective(
            self.policy,
            self.actions,
            self.estimator,
            self.rule,
            self.theta,
            supports,
            query,
            self._chunk(query),
            self._outcomes(stages[-1]) if self.initial_sampling else None,
            self.processes,
            [stage.parameters for stage in stages[1:]],
            earlier,
        )

    def agent(self, stage: Stage, task: int = 0) -> Agent:
        """The policy of one task after adaptation, ready to act."""
        tasks = len(stage.samples.weights)
        require(task in range(tasks), "task", task, f"0 to {tasks - 1}")
        parameters = {name: value[task] for name, value in stage.parameters.items()}
        shape = self.distribution.observation_space.shape or ()
        return Agent(self.policy, parameters, self.distribution.action_space, shape)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later iteration depends on, beside the settings."""
        return {
            "theta": self.theta,
            "constants": constants_of(self.policy),
            "outer": self.outer_state,
            "iteration": self.iteration,
            "env_steps": self.env_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; ValueError if names or shapes in it are others."""
        require_alike("parameters", state["theta"], self.theta)
        outer = state.get("outer")
        if outer is None:  # in early files without updates
            outer = self.outer_state
        require_alike("outer state", outer, self.outer_state)
        restore_constants(self.policy, state.get("constants"))
        self.theta = {name: state["theta"][name].to(self.device) for name in self.theta}
        self.outer_state = {name: value.to(self.device) for name, value in outer.items()}
        self.iteration, self.env_steps = state["iteration"], state["env_steps"]

    def inner_step(self, phi: Parameters, samples: Samples, step: int) -> tuple[Parameters, Tensor]:
        """One inner step for all tasks, in chunks, and the norms of their gradients (M,)."""

        def of_chunk(tasks: slice) -> tuple[Parameters, Tensor]:
            part = {name: value[tasks] for name, value in phi.items()}
            theta = expand_over_tasks(self.theta, tasks.stop - tasks.start)
            return adapt_step(self.inner_loss, self.rule, theta, part, samples.of_tasks(tasks), step)

        chunks = task_chunks(len(samples.weights), self._chunk(samples), workers(self.device))
        adapted, norms = zip(*parallel_map(of_chunk, chunks, self.device), strict=True)
        return {name: torch.cat([part[name] for part in adapted]) for name in phi}, torch.cat(norms)

    def _sample(
        self, envs: VectorEnv, phi: Parameters, tasks: Tasks, key: RolloutKey, processes: Processes
    ) -> Episodes:
        horizon = self.distribution.horizon
        if self.budget == "episodes":
            return rollout(envs, self.policy, self.actions, phi, tasks, horizon, key, processes)
        steps = envs.num_envs // len(next(iter(tasks.values()))) * horizon
        return collect(envs, self.policy, self.actions, phi, tasks, horizon, key, steps, processes)

    def _advantages(self, episodes: Episodes, gae_lambda: float, first_task: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        return estimate_advantages(
            self._as_learned_from(episodes), self.discount, gae_lambda, self.bootstrap, self.baseline, first_task
        )

    def _samples(self, episodes: Episodes, advantages: Tensor, processes: Processes) -> Samples:
        samples = to_samples(episodes, advantages, self.weighting)
        return samples if self.estimator in EPISODIC else samples.packed(processes)

    def _as_query(self, stage: Stage) -> Samples:
        """The samples of a stage that an inner step has followed, with the advantages of the meta-gradient."""
        if self.support_lambda is None:
            return stage.samples
        advantages, _, _ = self._advantages(stage.episodes, self.gae_lambda)
        return self._samples(stage.episodes, advantages, self.processes)

    def _as_learned_from(self, episodes: Episodes) -> Episodes:
        return episodes.with_bonus(self.survival_bonus - self.bounds_penalty * self.actions.excess(episodes.actions))

    def _outcomes(self, query: Stage) -> Tensor:
        rewards = self._as_learned_from(query.episodes).rewards
        returns = discounted_returns(rewards, self.discount)[:, 0]
        own = (returns, query.episodes.lengths, query.advantage_deviation)
        return outcomes(*(self.processes.join(of, self.tasks) for of in own))[self.processes.share(self.tasks)]

    def _lanes(self, count: int) -> VectorEnv:
        if count not in self._envs:
            envs = self.distribution.make(count, self.threads)
            require(envs.num_envs == count, f"lanes of make({count})", envs.num_envs, str(count))
            self._envs[count] = envs
        return self._envs[count]

    def _rng(self, purpose: str) -> np.random.Generator:
        return keyed_generator(self.seed, purpose, self.iteration)

    def _chunk(self, samples: Samples) -> int:
        tasks, per_task = samples.weights.shape
        if self.task_chunk is not None or samples.weights.is_cuda:
            return self.task_chunk or tasks
        return max(1, _CHUNK_SAMPLES // per_task)

    def _check_combination(self) -> None:
        if self.initial_sampling and self.estimator in WITH_SAMPLING:
            raise ValueError(
                f"initial_sampling = True with the estimator {self.estimator.__name__}, which holds part of that term; "
                "allowed: score"
            )
        if self.initial_sampling and self.weighting != "timestep":
            raise ValueError(f"initial_sampling = True with weighting = {self.weighting!r}; allowed: timestep")
        if self.initial_sampling and (isinstance(self.outer, Reptile) or not self.rule.steps):
            raise ValueError("initial_sampling = True without a gradient through inner steps; allowed: False")
        if self.multi_step and (isinstance(self.outer, Reptile) or self.rule.steps < 2):
            raise ValueError("multi_step = True without a gradient through two inner steps or more; allowed: False")
        if self.multi_step and self.initial_sampling:
            raise ValueError("multi_step = True with initial_sampling = True; allowed: one of them")
        if not self.rule.steps:
            if isinstance(self.outer, Reptile):
                raise ValueError(f"outer = {self.outer} learns nothing without inner steps; allowed: at least 1")
            if unused := set(self.theta).difference(self.rule.start(expand_over_tasks(self.theta, 1))):
                raise ValueError(f"rule.steps = 0 would leave {min(unused)} as it is; allowed: at least 1")
        if isinstance(self.outer, Reptile):
            adapted = self.rule.adapted_names(self.rule.start(expand_over_tasks(self.theta, 1)))
            if fixed := set(self.theta).difference(adapted):
                raise ValueError(
                    f"outer = {self.outer} would leave {min(fixed)} as it is; allowed: with a rule that adapts all, "
                    "such as metarl.GradientDescent(0.1)"
                )

    def _check_policy_output(self) -> None:
        shape = self.distribution.observation_space.shape
        seen = (2, *(shape or ()))
        inputs = torch.zeros(1, *seen, device=self.device, dtype=torch.float32)
        expected = f"{(2, self.actions.parameter_size)}, {self.actions.meaning}"
        try:
            with torch.no_grad():
                output = call_per_task(self.policy, self.rule.start(expand_over_tasks(self.theta, 1)), inputs)
        except Exception as error:  # whatever a stranger's module does
            kind, reason = type(self.policy).__name__, str(error).strip().split("\n")[0]
            raise ValueError(
                f"the policy {kind} cannot map observations {seen} for a batch of tasks ({reason}); allowed: "
                f"what torch.func.vmap can do, in float32, without chance, and one tensor {expected}"
            ) from error
        if not isinstance(output, Tensor) or output.shape != (1, 2, self.actions.parameter_size):
            found = f"shape {tuple(output.shape[1:])}" if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"the policy maps observations {seen} to {found}; allowed: one tensor {expected}")

    def _figures(self, stages: list[Stage], outcome: UpdateOutcome, clock: "Clock") -> dict[str, float]:
        query = stages[-1]
        per_task = {f"return/step_{step}": stage.episodes.mean_returns for step, stage in enumerate(stages)}
        if tells_success(stages, self.processes):
            per_task |= {f"success/step_{step}": stage.episodes.success_rates for step, stage in enumerate(stages)}
        per_task["inner_gradient_norm"] = query.gradient_norm
        per_task["explained_variance"] = query.explained_variance
        steps = query.episodes.steps
        summary = self.actions.summary(query.episodes.distribution[query.episodes.valid])
        total = self._over_processes(
            {name: float(values.double().sum()) for name, values in per_task.items()}
            | {name: value * steps for name, value in summary.items()}
            | {"query_steps": steps, "query_episodes": int(query.episodes.valid.any(dim=1).sum())}
            | {"env_steps": sum(stage.episodes.steps for stage in stages)}
            | {"episodes": sum(int(stage.episodes.valid.any(dim=1).sum()) for stage in stages)}
            | {"failed_episodes": sum(int(stage.episodes.failed.sum()) for stage in stages)}
        )
        means = {name: total[name] / self.tasks for name in per_task}
        self.env_steps += int(total["env_steps"])
        return {
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            **means,
            "adaptation_gain": means[f"return/step_{len(stages) - 1}"] - means["return/step_0"],
            "episode_length": total["query_steps"] / total["query_episodes"],
            "episodes": int(total["episodes"]),
            "failed_episodes": int(total["failed_episodes"]),
            "kl": outcome.kl,
            **outcome.details,
            "accepted": float(outcome.status == "accepted"),
            "loss_before": outcome.loss_before,
            "loss_after": outcome.loss_after,
            "meta_gradient_norm": outcome.gradient_norm,
            **{name: total[name] / total["query_steps"] for name in summary},
            **{f"seconds/{phase}": seconds for phase, seconds in clock.seconds.items()},
        }

    def _over_processes(self, figures: dict[str, float]) -> dict[str, float]:
        """Each figure summed."""
        summed = self.processes.sum(torch.tensor(list(figures.values()), dtype=torch.float64))
        return dict(zip(figures, summed.tolist(), strict=True))


def tells_success(stages: Sequence[Stage], processes: Processes) -> bool:
    """Whether the environment has told of `success` in any of the stages, in any process."""
    return processes.most(int(any(stage.episodes.succeeded is not None for stage in stages))) > 0


def _check_finite(phi: Parameters, step: int, first_task: int) -> None:
    finite = torch.stack([value.reshape(len(value), -1).isfinite().all(dim=1) for value in phi.values()]).all(dim=0)
    if not finite.all():
        task = first_task + int(finite.logical_not().nonzero()[0])
        raise NonFiniteError(f"the parameters of task {task} after inner step {step + 1} are not finite")


class Clock:
    """Adds up wall time per phase; waits for the device at both ends of a phase."""

    def __init__(self, device: str):
        self._device = torch.device(device)
        self.seconds = dict.fromkeys(("rollout", "adapt", "update"), 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the body of a with statement."""
        start = self._now()
        yield
        self.seconds[name] += self._now() - start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
