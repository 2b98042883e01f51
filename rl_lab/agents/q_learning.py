"""Q-learning without replay or target network, from many environments at once.

One file from the table to the convolutional network: with a rollout of one step and a linear network it is Watkins'
Q-learning (1989), SARSA or expected SARSA; with longer rollouts, lambda returns and layer norm it is PQN (Gallici et
al., 2024; https://arxiv.org/abs/2407.04811).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from rl_lab import exploration, losses, returns
from rl_lab.core.learner import Learner, Metrics, OptimizerFn, build_optimizer, descend, generator, seeded
from rl_lab.core.settings import Count, Natural, NonNegative, Positive, Unit
from rl_lab.networks import QNetwork, TorsoFn
from rl_lab.types import Spec, Transition, View


class QLearning(Learner):
    """Learns from each rollout of all envs, then forgets it."""

    saved = "network", "optimizer", "rng", "steps", "learns", "planned"

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        network: TorsoFn,
        optimizer: OptimizerFn,
        target: Literal["q_learning", "sarsa", "expected_sarsa"] = "q_learning",  # whose value stands for the future
        rollout_length: Count = 1,  # steps of each env
        epochs: Count = 1,  # times each rollout is learned from
        minibatches: Count = 1,  # gradient steps an epoch
        gamma: Unit,
        lambda_: Unit = 0.0,  # 0: one step; 1: to the end of the rollout
        epsilon: Callable[[int], float],  # of steps
        epsilon_spread: NonNegative = 0.0,  # over the envs, as in Ape-X; 0: the same in all
        loss: Literal["squared", "huber"] = "squared",
        max_abs_reward: Positive = math.inf,  # rewards are clipped to this
        max_grad_norm: Positive = math.inf,
        decay_steps: Natural = 0,  # the learning rate falls to 0 over so many steps; 0: it stays
        zero_head: bool = False,  # start from Q = 0, without a bias: on one-hot observations, a table
    ):
        with seeded(seed, device):
            self.network = QNetwork(spec, network, zero=zero_head).to(device)
        self.optimizer, self.rng = build_optimizer(optimizer, self.network.parameters()), generator(seed, device)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.target, self.rollout_length, self.epochs, self.minibatches = target, rollout_length, epochs, minibatches
        self.gamma, self.lambda_, self.epsilon, self.epsilon_spread = gamma, lambda_, epsilon, epsilon_spread
        self.of_error = losses.half_square if loss == "squared" else losses.huber
        self.max_abs_reward, self.max_grad_norm, self.decay_steps = max_abs_reward, max_grad_norm, decay_steps
        self.steps, self.learns, self._rollout = 0, 0, []
        self.planned = None  # of SARSA: the actions chosen ahead [N], and where they are void, the episode having ended

    @property
    def settled(self) -> bool:
        return not self._rollout

    def act(self, obs: Tensor, greedy: bool = False) -> Tensor:
        if greedy:
            return self.q(obs).argmax(-1)
        action = exploration.epsilon_greedy(self.q(obs), self.exploring(obs), self.rng)
        if self.planned is not None:
            planned, void = (x.to(action.device) for x in self.planned)
            action, self.planned = torch.where(void, action, planned), None
        return action

    def exploring(self, obs: Tensor) -> Tensor | float:
        """Epsilon now, for all envs or for each [N]."""
        epsilon = self.epsilon(self.steps)
        if self.epsilon_spread:
            return exploration.spread(epsilon, self.epsilon_spread, len(obs), obs.device)
        return epsilon

    def update(self, transition: Transition) -> Metrics:
        self.steps += len(transition.reward)
        self._rollout.append((transition, self.future(transition)))
        if len(self._rollout) < self.rollout_length:
            return {}
        transitions, values = zip(*self._rollout, strict=True)
        self._rollout = []
        stacked = Transition(*map(torch.stack, zip(*transitions, strict=True)))
        return {**self.learn(stacked, torch.stack(values)), "q/epsilon": self.epsilon(self.steps)}

    def future(self, transition: Transition) -> Tensor:
        """What the true successor is worth [N], by the policy that `target` names."""
        q, epsilon = self.q(transition.next_obs), self.exploring(transition.next_obs)
        if self.target == "sarsa":
            action = exploration.epsilon_greedy(q, epsilon, self.rng)
            self.planned = action, transition.last
            return losses.pick(q, action)
        if self.target == "expected_sarsa":
            return (exploration.greedy_probabilities(q, epsilon) * q).sum(-1)
        return q.max(-1).values

    def learn(self, rollout: Transition, value: Tensor) -> Metrics:
        """Gradient steps on a rollout [T, N] whose successors are worth `value` [T, N]."""
        reward = rollout.reward.clamp(-self.max_abs_reward, self.max_abs_reward)
        g = returns.lambda_returns(reward, self.gamma * rollout.discount, rollout.last, value, self.lambda_).flatten()
        obs, action = rollout.obs.flatten(0, 1), rollout.action.flatten()
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True) if self.decay_steps else ():
            group["lr"] = rate * max(0.0, 1 - self.steps / self.decay_steps)
        for _ in range(self.epochs):
            order = torch.randperm(len(g), generator=self.rng, device=g.device) if self.minibatches > 1 else None
            for part in order.chunk(self.minibatches) if order is not None else (slice(None),):
                error = g[part] - losses.pick(self.network(obs[part]).squeeze(-1), action[part])
                loss = self.of_error(error).mean()
                norm = descend(self.optimizer, loss, self.max_grad_norm)
                self.learns += 1
        return {"q/loss": loss.detach(), "q/td_error": error.detach().abs().mean(), "q/grad_norm": norm}

    @torch.no_grad()
    def q(self, obs: Tensor) -> Tensor:
        """[B, A]."""
        return self.network(obs).squeeze(-1)

    def view(self, obs: Tensor) -> View:
        q = self.q(obs)
        return View(q, q.max(-1).values, "action values")
