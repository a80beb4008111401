"""The learner of RL^2: a recurrent policy that learns a task by remembering what it has seen of it (Duan et al. 2016).

    tasks      = task_distribution.sample(M)         a batch of M tasks
    episodes   = rollout(theta, tasks)               a trial of each: E episodes, memory kept from one to the next
    trials     = to_trials(episodes)                 as sequences of steps
    advantages = trial_advantages(trials)            over the whole trial
    theta      = ppo_update(theta, trials)           gradients through all steps of the trial

There is no inner loop: parameters are the same for all tasks, and adapting to a task is what the memory does.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from metarl.core.adam import initial_adam_state
from metarl.core.ambient import in_standard_modes
from metarl.core.distributed import Processes, current
from metarl.core.parallel import parallel_map
from metarl.core.parameters import Parameters, own_module, parameters_of
from metarl.core.randomness import RolloutKey
from metarl.core.settings import check_settings, setting
from metarl.core.timing import PhaseTimer
from metarl.core.validation import require, require_whole
from metarl.rl.action_distributions import action_distribution_for
from metarl.rl.adaptation_step import LearningView
from metarl.rl.advantages import Advantages, discounted_returns, explained_variance
from metarl.rl.episodes import Episodes
from metarl.rl.evaluation import held_out_tasks
from metarl.rl.learner_base import PolicyLearner
from metarl.rl.learner_checks import warn_of_defects
from metarl.rl.learner_state import LearnerState
from metarl.rl.metrics import update_metrics
from metarl.rl.rl2.agent import RecurrentAgent
from metarl.rl.rl2.evaluation import TrialEvaluation, TrialStep, evaluate, trial_metrics
from metarl.rl.rl2.learner_checks import check_parts, check_policy
from metarl.rl.rl2.ppo import TrialObjective, TrialPPO, update
from metarl.rl.rl2.trial_rollout import TrialRollout
from metarl.rl.rl2.trials import standardised, to_trials, trial_advantages
from metarl.rl.sampler import Lanes, Sampling, num_rows
from metarl.rl.task_distribution import TaskDistribution, Tasks

_CHUNK_SAMPLES, _SMALLEST_CHUNK = 8_192, 16  # steps differentiated together; trials, for few rows are slow
_SCALE_DECAY = 0.9  # of the moving average of the returns' variance, an iteration


@dataclass(frozen=True, eq=False)
class RL2Learner(PolicyLearner):
    """Meta-learns the parameters of a policy with a memory over a task distribution.

        tasks = BernoulliBandits(arms=5, horizon=10)
        policy = RecurrentPolicy(tasks.observation_space, tasks.action_space)
        learner = RL2Learner(tasks, policy, Sampling(num_tasks=100, episodes_per_task=1))
        for _ in range(100):
            metrics = learner.step()

    The settings are fixed, and the policy is copied. What changes is `state`; `dataclasses.replace` makes a learner
    with other settings that continues from a copy of it. States are saved and environments closed as by any
    `metarl.rl.learner_base.PolicyLearner`.

    Attributes:
        task_distribution: samples tasks and builds environments.
        policy: see `metarl.rl.rl2.policies`.
        sampling: the number of tasks, and of episodes in a trial; `budget` and `lanes` must be as they are by default.
        ppo: the outer loop.
        advantages: discount, lambda, survival bonus and bounds penalty; the others must be as they are by default.
        seed: names all randomness.
        threads: that step the physics.
        device: where the policy acts and learns.
        task_chunk: trials that are differentiated together; None for some 8,000 steps of them. Another
            number rounds otherwise.
        processes: there must be one.
        state: to continue from; None starts with the policy's parameters.

    Raises:
        ValueError: in one line, what of the parts cannot be used.
    """

    task_distribution: TaskDistribution
    policy: nn.Module
    sampling: Sampling = Sampling(num_tasks=100, episodes_per_task=2)
    ppo: TrialPPO = TrialPPO()
    advantages: Advantages = Advantages(gae_lambda=0.95)
    seed: int = setting(0, "names all randomness of the run", at_least=0, at_most=2**64 - 1)
    threads: int = 1
    device: str = "cpu"
    task_chunk: int | None = None
    processes: Processes = field(default_factory=current)
    state: LearnerState = field(default=None, repr=False)  # type: ignore[assignment]  # None becomes a new state

    _rollout: TrialRollout = field(init=False, repr=False)
    _lanes: Lanes = field(init=False, repr=False)
    _view: LearningView = field(init=False, repr=False)

    @in_standard_modes
    def __post_init__(self) -> None:
        check_settings(self)
        check_parts(self)
        self._set(policy=own_module(self.policy, self.device))
        family = action_distribution_for(self.task_distribution.action_space)
        self._set(_rollout=TrialRollout(self.policy, family, self.task_distribution.horizon))
        self._set(_view=LearningView(self.advantages, family, whole_episodes=True))
        self._set(_lanes=Lanes(self.task_distribution, self.threads))
        check_policy(self, family)
        theta = parameters_of(self.policy)
        returns = {name: torch.zeros((), device=self.device) for name in ("count", "variance")}
        given, outer = self.state, {"adam": initial_adam_state(theta), "returns": returns}
        self._set(state=LearnerState(theta, outer))
        if given is not None:
            self._continue_from(given)
        else:
            warn_of_defects(self.task_distribution)

    @in_standard_modes
    def step(self) -> dict[str, float]:
        """Do one meta-iteration: sample tasks, play a trial of each, and improve the policy.

        Returns:
            metrics of the iteration by name: `return/step_k`, the return of a trial's episode after k earlier ones;
            `return/trial`, their sum; and figures of the update.
        """
        timer, iteration = PhaseTimer(self.device), self.state.iteration
        key = RolloutKey(self.seed, "train", iteration)
        tasks = self._sample_tasks()
        with timer.phase("rollout"):
            episodes, values = self._play(tasks, self.sampling.episodes_per_task, key)
        with timer.phase("update"):
            objective, returns, explained = self._objective(episodes, values)
            theta, adam, outcome = update(objective, self.state.outer["adam"], self._generator("train/minibatches"))
        self.state.theta, self.state.outer = theta, {"adam": adam, "returns": returns}
        self.state.iteration, self.state.env_steps = iteration + 1, self.state.env_steps + episodes.env_steps
        return {
            "iteration": self.state.iteration,
            **trial_metrics(episodes, self._rollout.action_distribution),
            "explained_variance": explained,
            "env_steps": self.state.env_steps,
            **update_metrics(outcome),
            **{f"seconds/{phase}": seconds for phase, seconds in timer.seconds.items()},
        }

    @in_standard_modes
    def play(
        self, tasks: Tasks, episodes: int | None = None, purpose: str = "test", iteration: int = 0
    ) -> tuple[Episodes, Tensor]:
        """Play a trial of each task; the learner stays as it is.

        Args:
            tasks: dict of arrays (M, ...).
            episodes: E of each trial; None for as many as in training.
            purpose, iteration: name the randomness; `train` and an iteration give the trials of training.

        Returns:
            M x E episodes, and the policy's values in each step, (M, T, E), in the unit that its output has.
        """
        episodes = self.sampling.episodes_per_task if episodes is None else episodes
        require_whole("episodes", episodes)
        return self._play(tasks, episodes, RolloutKey(self.seed, purpose, iteration))

    def evaluate(self, tasks: Tasks | int, episodes: int | None = None, trials_per_task: int = 1) -> TrialEvaluation:
        """Play trials of held-out tasks; the learner stays as it is.

            evaluation = learner.evaluate(40, episodes=2)
            print(evaluation.mean)  # returns in the first and in the second episode

        Args:
            tasks: dict of arrays (M, ...); or a number, for as many held-out test tasks of the learner's seed.
            episodes: E of each trial; None for as many as in training.
            trials_per_task: trials of each task, whose returns are averaged.
        """
        if isinstance(tasks, int):
            require_whole("tasks", tasks)
            tasks = held_out_tasks(self, tasks)
        return evaluate(self, tasks, episodes, trials_per_task)

    def agent(self, at: TrialStep | None = None, task: int = 0) -> RecurrentAgent:
        """The policy, ready to act in a task.

            evaluation = learner.evaluate({"velocity": [1.3]}, episodes=3)
            agent = learner.agent(evaluation.path[2])  # remembers two episodes with this velocity

        Args:
            at: an element of an evaluation's `path`, whose earlier episodes of a task the agent remembers; None for
                an agent that remembers nothing.
            task: number of the task in that evaluation.
        """
        shape = self.task_distribution.observation_space.shape or ()
        agent = RecurrentAgent(self.policy, self.theta, self.task_distribution.action_space, shape)
        if at is not None:
            num_tasks = len(at.trial.valid)
            require(task in range(num_tasks), "task", task, f"0 to {num_tasks - 1}")
            for episode in range(at.number):
                agent.remember(at.trial, task, episode)
        return agent

    def _play(self, tasks: Tasks, episodes: int, key: RolloutKey) -> tuple[Episodes, Tensor]:
        """Play a trial of each task with the present parameters."""
        self.policy.load_state_dict(self.state.theta, strict=False)
        envs = self._lanes.of(num_rows(tasks))
        tasks = {name: np.asarray(values) for name, values in tasks.items()}
        # on one core as learning is, because products of matrices may be rounded otherwise on several
        [played] = parallel_map(lambda of: self._rollout(envs, tasks, of, episodes, self.device), [key], self.device)
        return played

    def _objective(self, episodes: Episodes, values: Tensor) -> tuple[TrialObjective, Parameters, float]:
        """The loss of some episodes, the moments of returns, and the share of their variance that values explain.

        The policy's values are in units of the standard deviation of the discounted returns-to-go, a moving average
        over iterations, so that the critic's weight does not depend on the size of rewards.
        """
        rewards, family = self._view.rewarded(episodes).rewards, self._rollout.action_distribution
        settings, before = self.advantages, self.state.outer["returns"]
        trials = to_trials(episodes, rewards, values, family)
        to_go = discounted_returns(trials.rewards.unsqueeze(-1), settings.discount).squeeze(-1)
        now = _moved_average(before, to_go[trials.valid].var(correction=0))
        scale = _scale(before if before["count"] else now)
        trials = replace(trials, values=trials.values * scale)
        advantages, returns = trial_advantages(trials, settings.discount, settings.gae_lambda)
        explained = explained_variance(*(of.T.unsqueeze(0) for of in (trials.values, returns, trials.valid)))
        objective = TrialObjective(
            self.policy,
            family,
            trials,
            standardised(advantages, trials.valid),
            returns / _scale(now),
            self.ppo,
            self.task_chunk or max(_SMALLEST_CHUNK, _CHUNK_SAMPLES // trials.valid.shape[1]),
        )
        return objective, now, float(explained)


def _moved_average(before: Parameters, variance: Tensor) -> Parameters:
    """A moving average with one more value, 0 being that of none."""
    moved = _SCALE_DECAY * before["variance"] + (1 - _SCALE_DECAY) * variance
    return {"count": before["count"] + 1, "variance": moved}


def _scale(average: Parameters) -> Tensor:
    """The standard deviation that belongs to an average variance of at least one value; 1 where nothing varies."""
    variance = average["variance"] / (1 - _SCALE_DECAY ** average["count"])
    return torch.where(variance > 0, variance, 1).sqrt()
