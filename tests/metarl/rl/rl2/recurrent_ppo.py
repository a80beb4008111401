"""Recurrent PPO on bandits, slow and obvious: one trial, one step at a time, with torch's own optimiser.

It shares no code with the library but the randomness that tasks, payoffs, actions and minibatches are named by.
"""

import numpy as np
import torch
from torch import nn

from metarl.core.randomness import RolloutKey, keyed_generator

_DISCOUNT, _LAMBDA, _CLIP, _ENTROPY, _VALUE, _NORM, _STEP = 0.9, 0.7, 0.2, 0.05, 0.4, 0.3, 0.01


class RecurrentPPO:
    """Plays one episode of T pulls on each of M bandits with k arms in an iteration, and learns from them.

    Args:
        cell, action, value: the policy: its GRU and its linear heads.
        tasks, arms, pulls: M, k, T.
        epochs, minibatches: of an iteration.
        seed: names all randomness.
    """

    def __init__(self, cell, action, value, tasks, arms, pulls, epochs, minibatches, seed):
        self.cell, self.action, self.value = cell, action, value
        self.tasks, self.arms, self.pulls = tasks, arms, pulls
        self.epochs, self.minibatches, self.seed = epochs, minibatches, seed
        self.parameters = [*cell.parameters(), *action.parameters(), *value.parameters()]
        self.adam = torch.optim.Adam(self.parameters, lr=_STEP)
        self.iteration, self.variance = 0, 0.0

    def step(self):
        """Do one iteration; return the mean return of its episodes."""
        key = RolloutKey(self.seed, "train", self.iteration)
        probabilities = keyed_generator(self.seed, "train/tasks", self.iteration).uniform(size=(self.tasks, self.arms))
        seeds = key.reset_seeds(self.tasks, 1)
        noise = key.uniform(self.tasks, self.pulls, 1, 1)[:, :, 0, 0]
        episodes = [self.play(probabilities[m], np.random.default_rng(seeds[m]), noise[m]) for m in range(self.tasks)]

        # values are in units of the standard deviation of the returns-to-go, of which a moving average is kept
        to_go = [[sum(_DISCOUNT**i * r for i, r in enumerate(rewards[t:])) for t in range(self.pulls)]
                 for _, _, _, rewards, _ in episodes]  # fmt: skip
        before = np.sqrt(self.variance / (1 - 0.9**self.iteration)) if self.iteration else np.std(to_go)
        self.variance = 0.9 * self.variance + 0.1 * np.var(to_go)
        now = np.sqrt(self.variance / (1 - 0.9 ** (self.iteration + 1)))

        advantages, targets = [], []
        for _, _, _, rewards, values in episodes:
            scaled, own = [before * value for value in values] + [0.0], [0.0] * (self.pulls + 1)
            for t in reversed(range(self.pulls)):
                delta = rewards[t] + _DISCOUNT * scaled[t + 1] - scaled[t]
                own[t] = delta + _DISCOUNT * _LAMBDA * own[t + 1]
            advantages.append(own[:-1])
            targets.append([(own[t] + scaled[t]) / now for t in range(self.pulls)])
        advantages = (np.array(advantages) - np.mean(advantages)) / np.std(advantages)

        rng = keyed_generator(self.seed, "train/minibatches", self.iteration)
        for _ in range(self.epochs):
            for chosen in np.array_split(rng.permutation(self.tasks), self.minibatches):
                self.adam.zero_grad()
                losses = [self.loss(episodes[m], advantages[m], targets[m]) for m in chosen]
                (sum(losses) / (len(chosen) * self.pulls)).backward()
                nn.utils.clip_grad_norm_(self.parameters, _NORM)
                self.adam.step()
        self.iteration += 1
        return np.mean([sum(rewards) for _, _, _, rewards, _ in episodes])

    @torch.no_grad()
    def play(self, probabilities, rng, noise):
        """Inputs, actions, log-probabilities, rewards and values of one episode."""
        draws, state, previous = rng.random(self.pulls), None, [0.0] * (self.arms + 2)
        steps = []
        for t in range(self.pulls):
            seen = torch.tensor([1.0, *previous], dtype=torch.float32)
            outputs, state = self.cell(seen.view(1, 1, -1), state)
            chances = torch.softmax(self.action(outputs[0, 0]), -1)
            action = int((chances.cumsum(-1)[:-1] <= noise[t]).sum())
            reward = float(draws[t] < probabilities[action])
            steps.append((seen, action, chances[action].log(), reward, float(self.value(outputs[0, 0]))))
            previous = [*np.eye(self.arms)[action], reward, 0.0]
        return tuple(zip(*steps, strict=True))

    def loss(self, episode, advantages, targets):
        """Sum over the steps of an episode, gone through from its beginning."""
        inputs, actions, log_probs, _, _ = episode
        state, total = None, 0.0
        for t in range(self.pulls):
            outputs, state = self.cell(inputs[t].view(1, 1, -1), state)
            logs = torch.log_softmax(self.action(outputs[0, 0]), -1)
            ratio = torch.exp(logs[actions[t]] - log_probs[t])
            clipped = torch.clamp(ratio, 1 - _CLIP, 1 + _CLIP)
            total = total - torch.minimum(ratio * advantages[t], clipped * advantages[t])
            total = total + _ENTROPY * (logs.exp() * logs).sum()
            total = total + _VALUE * 0.5 * (self.value(outputs[0, 0])[0] - targets[t]) ** 2
        return total
