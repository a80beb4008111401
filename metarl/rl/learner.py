"""The meta-learner: one data flow per meta-iteration, from tasks to new meta-parameters.

    tasks        = task_distribution.sample(M)      a batch of M tasks
    support      = rollout(phi_0, tasks)            M x E episodes, before adaptation
    phi          = adapt(theta, support)            M parameter sets, one per task, all at once
    query        = rollout(phi, tasks)              M x E episodes, after adaptation
    theta        = outer_update(theta, support, query)

With S inner steps the second and third line are done S times, each from the parameters that the one before has left.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from metarl.core.adaptation import adapt_step
from metarl.core.ambient import in_standard_modes
from metarl.core.distributed import ALONE, Processes, current
from metarl.core.errors import NonFiniteError
from metarl.core.meta_gradient import query_weights
from metarl.core.parallel import parallel_map, task_chunks, workers
from metarl.core.parameters import (
    Parameters,
    expand_over_tasks,
    own_module,
    parameters_of,
    ravel,
    unravel,
)
from metarl.core.randomness import RolloutKey
from metarl.core.rules import AdaptationRule, GradientDescent
from metarl.core.settings import check_settings, setting
from metarl.core.timing import PhaseTimer
from metarl.core.validation import require, require_whole
from metarl.rl.action_distributions import action_distribution_for
from metarl.rl.adaptation_step import AdaptationStep, LearningView
from metarl.rl.advantages import Advantages
from metarl.rl.agent import Agent
from metarl.rl.episodes import Samples
from metarl.rl.estimators import EPISODIC, STEP_UNITS, Estimator, PolicyModel, outcomes, score
from metarl.rl.evaluation import ReturnEvaluation, evaluate, held_out_tasks
from metarl.rl.learner_base import PolicyLearner
from metarl.rl.learner_checks import (
    check_combination,
    check_finite_parameters,
    check_parts,
    check_policy,
    warn_of_defects,
)
from metarl.rl.learner_state import LearnerState
from metarl.rl.metrics import sampling_metrics, update_metrics
from metarl.rl.objective import MetaObjective
from metarl.rl.outer import TRPO, OuterOptimiser, UpdateOutcome
from metarl.rl.rollout import Rollout
from metarl.rl.sampler import Lanes, Sampler, Sampling, num_rows
from metarl.rl.task_distribution import TaskDistribution, Tasks

_CHUNK_SAMPLES = 16_384  # samples of one task chunk on a CPU: its activations stay in the cache


@dataclass(frozen=True, eq=False)
class Learner(PolicyLearner):
    """Meta-learns the parameters of a policy over a task distribution.

        learner = Learner(Navigation2D(), policy, Sampling(num_tasks=20, episodes_per_task=20))
        for _ in range(100):
            metrics = learner.step()

    The settings are fixed. The policy, the rule and the outer optimiser are copied, so that later changes of the
    caller's have no effect. What changes is `state`; `dataclasses.replace` makes a learner with other settings that
    continues from a copy of it, and refuses settings that the state does not fit. States are saved and environments
    closed as by any `metarl.rl.learner_base.PolicyLearner`.

    Attributes:
        task_distribution: samples tasks and builds environments.
        policy: maps observations (batch, O) to the parameters of an action distribution (batch, P).
        sampling: the numbers of tasks and episodes in a meta-batch.
        rule: the inner loop.
        outer: the outer optimiser.
        advantages: how advantages are estimated.
        estimator: the inner loss.
        threads: that step the physics.
        device: where adaptation and updates happen.
        task_chunk: tasks handled at a time; None chooses by the size of the cache. On a CPU it changes nothing, except
            that a task by itself may be rounded otherwise.
        processes: that divide the tasks of a meta-batch; by default all that torch.distributed knows. On CPUs their
            number changes nothing, with the same exception.
        state: to continue from; None starts with the policy's parameters.

    Raises:
        ValueError: in one line, what of the parts cannot be used.
    """

    task_distribution: TaskDistribution
    policy: nn.Module
    sampling: Sampling = Sampling()
    rule: AdaptationRule = GradientDescent()
    outer: OuterOptimiser = TRPO()
    advantages: Advantages = Advantages()
    estimator: Estimator = score
    step_unit: str = setting(
        "gradient",
        "what the inner step size multiplies: the gradient of the inner loss; or that times the standard deviation of "
        "the policy that sampled the data, so that one size suits all of training (std)",
        choices=STEP_UNITS,
    )
    initial_sampling: bool = setting(
        False, "add E-MAML's term for how the support data depend on the policy to the meta-gradient; with score"
    )
    multi_step: bool = setting(
        False, "let the policies after all inner steps count alike in the outer loss, as in MAML++, not the last alone"
    )
    seed: int = setting(0, "names all randomness of the run", at_least=0, at_most=2**64 - 1)
    threads: int = 1
    device: str = "cpu"
    task_chunk: int | None = None
    processes: Processes = field(default_factory=current)
    state: LearnerState = field(default=None, repr=False)  # type: ignore[assignment]  # None becomes a new state

    _model: PolicyModel = field(init=False, repr=False)
    _lanes: Lanes = field(init=False, repr=False)
    _sampler: Sampler = field(init=False, repr=False)
    _view: LearningView = field(init=False, repr=False)

    @in_standard_modes
    def __post_init__(self) -> None:
        check_settings(self)
        check_parts(self)
        policy = own_module(self.policy, self.device)
        self._set(policy=policy, rule=copy.deepcopy(self.rule), outer=copy.deepcopy(self.outer))
        family = action_distribution_for(self.task_distribution.action_space)
        rollout = Rollout(policy, family, self.task_distribution.horizon)
        self._set(_model=PolicyModel(policy, family, self.estimator, self.step_unit))
        self._set(_view=LearningView(self.advantages, family, self.estimator in EPISODIC))
        self._set(_lanes=Lanes(self.task_distribution, self.threads, self.sampling.lanes))
        self._set(_sampler=Sampler(self._lanes, rollout, self.sampling.budget))
        theta = self.rule.meta_parameters(parameters_of(policy))
        check_combination(self, theta)
        check_policy(self, family, theta)
        given, outer = self.state, self.outer.start(ravel(list(theta.values())), self.rule.inner_steps)
        self._set(state=LearnerState(theta, outer))
        if given is not None:
            self._continue_from(given)
        elif self.processes.rank == 0:
            warn_of_defects(self.task_distribution)

    @in_standard_modes
    def step(self) -> dict[str, float]:
        """Do one meta-iteration: sample tasks, adapt to each, and improve the meta-parameters.

        Returns:
            metrics of the iteration by name, as `metrics.jsonl` and TensorBoard show them.
        """
        timer, key = PhaseTimer(self.device), RolloutKey(self.seed, "train", self.state.iteration)
        tasks = self._sample_tasks()
        path = self._adapt(tasks, self.rule.inner_steps, key, self.processes, timer)
        with timer.phase("update"):
            outcome = self._outer_update(self.objective(path))
        sampled = sampling_metrics(path, self._model.action_distribution, self.sampling.num_tasks, self.processes)
        self.state.env_steps += int(sampled["env_steps"])
        return {
            "iteration": self.state.iteration,
            **sampled,
            "env_steps": self.state.env_steps,
            **update_metrics(outcome),
            **{f"seconds/{phase}": seconds for phase, seconds in timer.seconds.items()},
        }

    @in_standard_modes
    def adapt(
        self,
        tasks: Tasks,
        inner_steps: int,
        episodes_per_task: int | None = None,
        purpose: str = "test",
        iteration: int = 0,
    ) -> list[AdaptationStep]:
        """Sample with theta, take an inner step for every task, sample again, and so on; the learner stays as it is.

        Args:
            tasks: dict of arrays (M, ...).
            inner_steps: S; beyond the trained number the rule decides on their size.
            episodes_per_task: E, before and after each inner step; None takes the learner's own.
            purpose, iteration: name the randomness; `train` and an iteration give the episodes of training.

        Returns:
            S + 1 adaptation steps, the last one without an inner step after it.
        """
        key = RolloutKey(self.seed, purpose, iteration)
        return self._adapt(tasks, inner_steps, key, ALONE, PhaseTimer(self.device), episodes_per_task)

    @in_standard_modes
    def adapt_shard(self, tasks: Tasks, inner_steps: int, episodes_per_task: int | None = None) -> list[AdaptationStep]:
        """As `adapt`, for this process's shard of the tasks. Collective: every rank must call it."""
        key = RolloutKey(self.seed, "test", 0)
        return self._adapt(tasks, inner_steps, key, self.processes, PhaseTimer(self.device), episodes_per_task)

    def evaluate(self, tasks: Tasks | int, inner_steps: int, episodes_per_task: int | None = None) -> ReturnEvaluation:
        """Adapt to held-out tasks, with fresh episodes after each gradient step; the learner stays as it is.

            evaluation = learner.evaluate(40, inner_steps=3)
            print(evaluation.mean, evaluation.standard_error)  # returns after 0, 1, 2 and 3 gradient steps

        Collective: the learner's processes divide the tasks.

        Args:
            tasks: dict of arrays (M, ...); or a number, for as many held-out test tasks of the learner's seed, see
                `metarl.rl.evaluation.held_out_tasks`.
            inner_steps: S, gradient steps.
            episodes_per_task: E, after each step; None takes the learner's own.
        """
        if isinstance(tasks, int):
            require_whole("tasks", tasks)
            tasks = held_out_tasks(self, tasks)
        return evaluate(self, tasks, inner_steps, episodes_per_task)

    @in_standard_modes
    def objective(self, path: Sequence[AdaptationStep]) -> MetaObjective:
        """The meta-objective of the adaptation steps of training tasks, as `adapt` returns them."""
        *supports, query = path
        weights = query_weights(len(supports), float(self.multi_step))
        queries = {s: self._view.as_query(path[s], self.processes) for s in weights if s < len(supports)}
        return MetaObjective(
            model=self._model,
            rule=self._rule(),
            like=self.state.theta,
            supports=[support.samples for support in supports],
            queries={**queries, len(supports): query.samples},
            weights=weights,
            chunk=self._chunk(query.samples),
            outcomes=self._outcomes(query) if self.initial_sampling else None,
            processes=self.processes,
            adapted=[at.parameters for at in path[1:]],
        )

    def agent(self, adapted: AdaptationStep, task: int = 0) -> Agent:
        """The policy of one task after adaptation, ready to act."""
        num_tasks = len(adapted.samples.weights)
        require(task in range(num_tasks), "task", task, f"0 to {num_tasks - 1}")
        parameters = {name: value[task] for name, value in adapted.parameters.items()}
        shape = self.task_distribution.observation_space.shape or ()
        return Agent(self.policy, parameters, self.task_distribution.action_space, shape)

    def _adapt(
        self,
        tasks: Tasks,
        inner_steps: int,
        key: RolloutKey,
        processes: Processes,
        timer: PhaseTimer,
        episodes_per_task: int | None = None,
    ) -> list[AdaptationStep]:
        """The adaptation steps of this process's shard of the tasks."""
        episodes_per_task = self.sampling.episodes_per_task if episodes_per_task is None else episodes_per_task
        require_whole("episodes_per_task", episodes_per_task)
        require_whole("inner_steps", inner_steps, at_least=0)
        shard = processes.shard(num_rows(tasks))
        tasks = {name: np.asarray(values)[shard] for name, values in tasks.items()}
        num_tasks, sampler = shard.stop - shard.start, self._sampler.of(processes)

        # phi_0; then S times: sample with phi_k, take an inner step; and at last sample with phi_S
        phi, norm = self.rule.start(expand_over_tasks(self.state.theta, num_tasks)), torch.zeros(num_tasks)
        path: list[AdaptationStep] = []
        for inner_step in range(inner_steps + 1):
            with timer.phase("rollout"):
                episodes = sampler.sample(phi, tasks, episodes_per_task, key.of_step(inner_step, shard.start))
            with timer.phase("adapt"):
                support = inner_step < inner_steps
                path.append(self._view.step(phi, episodes, norm, support, processes, shard.start))
                if support:
                    phi, norm = self.inner_step(phi, path[-1].samples, inner_step)
                    check_finite_parameters(phi, inner_step, shard.start)
        return path

    @in_standard_modes
    def inner_step(self, phi: Parameters, samples: Samples, inner_step: int) -> tuple[Parameters, Tensor]:
        """Take inner step number `inner_step` for every task, without a graph, in task chunks.

        Args:
            phi: parameters of M tasks, (M, ...).
            samples: of the same tasks.
            inner_step: counted from 0.

        Returns:
            the parameters after it, and the norm of each task's inner gradient, (M,).
        """
        rule = self._rule()

        def of_chunk(task_slice: slice) -> tuple[Parameters, Tensor]:
            part = {name: value[task_slice] for name, value in phi.items()}
            theta = expand_over_tasks(self.state.theta, task_slice.stop - task_slice.start)
            return adapt_step(self._model, rule, theta, part, samples.of_tasks(task_slice), inner_step)

        chunks = task_chunks(len(samples.weights), self._chunk(samples), workers(self.device))
        adapted, norms = zip(*parallel_map(of_chunk, chunks, self.device), strict=True)
        return {name: torch.cat([part[name] for part in adapted]) for name in phi}, torch.cat(norms)

    def _outer_update(self, objective: MetaObjective) -> UpdateOutcome:
        """Improve theta, and count the iteration."""
        theta, iteration = self.state.theta, self.state.iteration
        vector, outer, outcome = self.outer.update(
            objective, ravel(list(theta.values())), self._generator("train/products"), self.state.outer
        )
        if not torch.isfinite(vector).all():
            raise NonFiniteError(f"the meta-parameters after iteration {iteration + 1} are not finite")
        self.state.theta = unravel(self.processes.broadcast(vector), theta)  # machines may differ in how they round
        self.state.outer, self.state.iteration = outer, iteration + 1
        return outcome

    def _outcomes(self, query: AdaptationStep) -> Tensor:
        count = self.sampling.num_tasks
        own = (self._view.returns(query.episodes), query.episodes.lengths, query.advantage_std)
        return outcomes(*(self.processes.all_gather(of, count) for of in own))[self.processes.shard(count)]

    def _rule(self) -> AdaptationRule:
        return self.rule.at(self.state.iteration)

    def _chunk(self, samples: Samples) -> int:
        num_tasks, per_task = samples.weights.shape
        if self.task_chunk is not None or samples.weights.is_cuda:
            return self.task_chunk or num_tasks
        return max(1, _CHUNK_SAMPLES // per_task)

    def _constants_restored(self) -> None:
        rollout = replace(self._sampler.rollout)  # recordings hold the constants that they were made with
        self._set(_sampler=replace(self._sampler, rollout=rollout))
