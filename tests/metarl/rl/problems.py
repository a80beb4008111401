"""Meta-objectives of a few numbers, in float64, that finite differences can check."""

from collections.abc import Sequence
from dataclasses import replace

import gymnasium
import torch
from torch import Tensor
from torch.func import functional_call

from metarl.core.adaptation import adapt_step
from metarl.core.parameters import Parameters, expand_over_tasks, ravel, unravel
from metarl.core.rules import AdaptationRule, GradientDescent
from metarl.rl.action_distributions import DiagonalGaussian
from metarl.rl.episodes import Samples
from metarl.rl.estimators import Estimator, PolicyModel, score
from metarl.rl.objective import MetaObjective
from tests.probes import TinyGaussian, random_samples, tiny_theta

FAMILY = DiagonalGaussian(gymnasium.spaces.Box(-1, 1, (1,)))

PLANE = DiagonalGaussian(gymnasium.spaces.Box(-1, 1, (2,)))
TASKS, STEPS, EPISODES = 2, 4, 3  # of `Problem`
NUM_TASKS = 3  # of `StepProblem`


def make_objective(
    model: PolicyModel,
    rule: AdaptationRule,
    like: Parameters,
    supports: Sequence[Samples],
    query: Samples,
    chunk: int,
    outcomes: Tensor | None = None,
) -> MetaObjective:
    """The objective in which the policies after the last inner step alone count."""
    last = len(supports)
    return MetaObjective(model, rule, like, supports, {last: query}, {last: 1.0}, chunk, outcomes)


class Problem:
    """Data of all inner steps of a rule, drawn where they should be: M = 2 tasks, T = 4 time steps, E = 3 episodes."""

    def __init__(self, rule: AdaptationRule, estimator: Estimator = score):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        self.policy, self.rule, self.estimator = TinyGaussian(2, 1, 3), rule, estimator
        theta, _ = tiny_theta(self.policy, TASKS)
        self.like = rule.meta_parameters(theta)
        self.vector = ravel(list(self.like.values()))
        theta = expand_over_tasks(self.like, TASKS)
        phi, self.supports = rule.start(theta), []
        for inner_step in range(rule.inner_steps):
            self.supports.append(self.draw(phi, generator))
            phi, _ = adapt_step(self.model(score), rule, theta, phi, self.supports[-1], inner_step)
        self.query = self.draw(phi, generator)

    def draw(self, phi: Parameters, generator: torch.Generator) -> Samples:
        """Whole episodes as if drawn with phi."""
        samples = random_samples(self.policy, FAMILY, phi, TASKS, STEPS * EPISODES, generator)
        return replace(samples, time_steps=STEPS)

    def model(self, estimator: Estimator) -> PolicyModel:
        return PolicyModel(self.policy, FAMILY, estimator)

    def objective(
        self, estimator: Estimator | None = None, chunk: int = TASKS, outcomes: Tensor | None = None
    ) -> MetaObjective:
        return make_objective(
            self.model(estimator or self.estimator), self.rule, self.like, self.supports, self.query, chunk, outcomes
        )


class StepProblem:
    """Support and query samples that were drawn with theta and with the parameters adapted on the support."""

    def __init__(self, steps=1, step_size=0.3, second_order=True, chunk=NUM_TASKS, seed=0):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        self.policy = TinyGaussian()
        self.theta, phi = tiny_theta(self.policy, NUM_TASKS)
        self.rule = GradientDescent(step_size, steps, second_order)
        self.model = PolicyModel(self.policy, PLANE, score)
        self.supports = []
        for _ in range(steps):
            self.supports.append(random_samples(self.policy, PLANE, phi, NUM_TASKS, 12, generator))
            phi = self.slow_step(phi, self.supports[-1])
        self.query = random_samples(self.policy, PLANE, phi, NUM_TASKS, 10, generator)
        self.vector = ravel(list(self.theta.values()))
        self.objective = self.make(chunk)

    def make(self, chunk=NUM_TASKS, supports=None, query=None):
        """The objective of these data, or of others in their place."""
        supports, query = self.supports if supports is None else supports, query or self.query
        return make_objective(self.model, self.rule, self.theta, supports, query, chunk)

    def slow_step(self, phi, samples):
        """One task at a time."""
        rows = [self.slow_task_step({n: v[m] for n, v in phi.items()}, samples, m, False) for m in range(NUM_TASKS)]
        return {name: torch.stack([row[name] for row in rows]).detach() for name in phi}

    def slow_task_step(self, own, samples, task, differentiable):
        own = {n: v if v.requires_grad else v.clone().requires_grad_() for n, v in own.items()}
        output = functional_call(self.policy, own, (samples.observations[task],))
        log_probs = PLANE.log_prob(output, samples.actions[task])
        loss = -(samples.weights[task] * samples.advantages[task] * log_probs).sum()
        gradients = torch.autograd.grad(loss, list(own.values()), create_graph=differentiable)
        return {n: v - self.rule.step_size * g for (n, v), g in zip(own.items(), gradients, strict=True)}

    def slow_loss_and_kl(self, vector):
        """The definition of L and KL, one task at a time, differentiable in the vector."""
        loss, kl = 0.0, 0.0
        for task in range(NUM_TASKS):
            own = unravel(vector, self.theta)
            for samples in self.supports:
                own = self.slow_task_step(own, samples, task, True)
            output = functional_call(self.policy, own, (self.query.observations[task],))
            ratios = (PLANE.log_prob(output, self.query.actions[task]) - self.query.log_probs[task]).exp()
            loss = loss - (self.query.weights[task] * self.query.advantages[task] * ratios).sum()
            divergence = PLANE.kl(self.query.dist_params[task], output)
            kl = kl + (self.query.weights[task] * divergence).sum()
        return loss / NUM_TASKS, kl / NUM_TASKS
