"""Q-learning without replay or target network, from many environments at once.

One file from the table to the convolutional network: with a rollout of one step and a linear network it is Watkins'
Q-learning (1989), SARSA or expected SARSA; with longer rollouts, lambda returns and layer norm it is PQN (Gallici et
al., 2024; https://arxiv.org/abs/2407.04811).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_lab import losses, returns
from rl_lab.agents import exploration
from rl_lab.core import distributed, graphs
from rl_lab.core.devices import double
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Decay, Learner, Metrics, OptimizerFn, build_optimizer, descend
from rl_lab.core.randomness import generator, seeded
from rl_lab.core.settings import Count, Limit, Natural, NonNegative, Positive, Unit
from rl_lab.memory.rollouts import check_minibatches, minibatches, samples, take
from rl_lab.networks.heads import Outputs, table
from rl_lab.networks.torsos import TorsoFn, gather, steps_to_gather
from rl_lab.types import Spec, Transition, View


class QLearning(Learner):
    """Learns from each rollout of all envs, then forgets it."""

    saved = "network", "optimizer", "rng", "steps", "planned"
    captures = parallel = True

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        network: TorsoFn,
        optimizer: OptimizerFn,
        target: Literal["q_learning", "sarsa", "expected_sarsa"],  # whose value stands for the future
        rollout_length: Count,  # steps of each env
        epochs: Count,  # times each rollout is learned from
        minibatches: Count,  # gradient steps an epoch
        gamma: Unit,
        lambda_: Unit,  # 0: one step; 1: to the end of the rollout
        epsilon: Callable[[int], float],  # of steps
        epsilon_spread: NonNegative,  # over the envs, as in Ape-X; 0: the same in all
        eval_epsilon: Unit,  # of the greedy policy
        loss: Literal["squared", "huber"],
        max_abs_reward: Limit,  # rewards are clipped to this
        reward_scale: Positive,  # and then multiplied by this
        max_grad_norm: Limit,
        decay_steps: Natural,  # the learning rate falls to 0 over this many steps; 0: it stays
        normalise: bool,  # of a linear network: the learning rate is alpha, whatever the features and the envs
        zero_head: bool,  # start from Q = 0, without a bias: on one-hot observations, a table
        gather_steps: Natural,  # first steps, of which networks that standardise their inputs take the statistics
    ):
        with seeded(seed, device):
            self.network = Outputs(spec, network, spec.num_actions, table if zero_head else nn.Linear).to(device)
        if normalise and any(True for _ in self.network.torso.parameters()):
            raise UserError("agent.normalise is for linear networks: set it to false, or choose agent/network=linear")
        self.optimizer, self.rng = build_optimizer(optimizer, self.network.parameters()), generator(seed, device)
        self.decay = Decay(self.optimizer, decay_steps)
        self.target, self.gamma, self.lambda_ = target, gamma, lambda_
        self.rollout_length, self.epochs, self.minibatches = rollout_length, epochs, minibatches
        self.epsilon, self.epsilon_spread, self.eval_epsilon = epsilon, epsilon_spread, eval_epsilon
        self.of_error = losses.half_square if loss == "squared" else losses.huber
        self.max_abs_reward, self.reward_scale = max_abs_reward, reward_scale
        self.max_grad_norm, self.normalise = max_grad_norm, normalise
        self.num_actions = spec.num_actions
        self.gather_steps = steps_to_gather(self.network, gather_steps)
        self._rollout: list[tuple[Tensor, ...]] = []
        self._explore, self._q = graphs.Captured(self.explore, self.rng), graphs.Captured(self.q)
        self._improve = graphs.Captured(self.improve)
        # Of SARSA: the actions chosen ahead [N], and the observations they were chosen for.
        self.planned: tuple[Tensor, Tensor] | None = None

    @property
    def settled(self) -> bool:
        return not self._rollout

    def announce(self, num_envs: int) -> None:
        """Raises UserError where a rollout cannot fill its minibatches."""
        check_minibatches(self.minibatches, self.rollout_length, num_envs)

    def act(self, obs: Tensor, greedy: bool = False) -> Tensor:
        if greedy:
            q = self.q(obs)
            return exploration.epsilon_greedy(q, self.eval_epsilon, self.rng) if self.eval_epsilon else q.argmax(-1)
        action = self._explore(obs, self.epsilon(self.steps))
        if self.planned is None:
            return action
        planned, foreseen = (x.to(obs.device) for x in self.planned)
        return torch.where((obs == foreseen).flatten(action.ndim).all(-1), planned, action)

    def probabilities(self, obs: Tensor) -> Tensor:
        q = self.q(obs)
        if self.eval_epsilon:
            return exploration.epsilon_greedy_probabilities(double(q), self.eval_epsilon)
        return exploration.certain(q.argmax(-1), self.num_actions)

    def explore(self, obs: Tensor, epsilon: float) -> Tensor:
        q = self.q(obs)
        return exploration.epsilon_greedy(q, exploration.spread(epsilon, self.epsilon_spread, q), self.rng)

    def update(self, transition: Transition) -> Metrics:
        if not self._rollout:
            self.decay.to(self.steps)
            self._gathers = self.steps < self.gather_steps
        self.count_steps(transition.reward.shape[-1])
        obs, action, reward, discount, last, next_obs, duration = transition
        self._rollout.append((obs, action, reward, discount, last, duration, self.worth(next_obs)))
        if len(self._rollout) < self.rollout_length:
            return {}
        rollout, self._rollout = [torch.stack(x) for x in zip(*self._rollout, strict=True)], []
        if self._gathers:
            gather(self.network, rollout[0].flatten(0, 1))
            return {}
        return {**self.learn(*rollout), "q/epsilon": self.epsilon(self.steps)}

    def worth(self, next_obs: Tensor) -> Tensor:
        """The value [N] of the true successors, by the policy that `target` names."""
        q = self._q(next_obs)
        epsilon = exploration.spread(self.epsilon(self.steps), self.epsilon_spread, q)
        if self.target == "sarsa":
            action = exploration.epsilon_greedy(q, epsilon, self.rng)
            self.planned = action, next_obs
            return losses.pick(q, action)
        if self.target == "expected_sarsa":
            return (exploration.epsilon_greedy_probabilities(q, epsilon) * q).sum(-1)
        return q.max(-1).values

    def learn(
        self,
        obs: Tensor,
        action: Tensor,
        reward: Tensor,
        discount: Tensor,
        last: Tensor,
        duration: Tensor,
        value: Tensor,
    ) -> Metrics:
        """Gradient steps on a rollout [T, N, ...] whose successors are worth `value` [T, N]."""
        reward = reward.clamp(-self.max_abs_reward, self.max_abs_reward) * self.reward_scale
        discount = returns.discounts(self.gamma, discount, duration)
        g = returns.lambda_returns(reward, discount, last, value, self.lambda_)
        rollout = [samples(x, g.ndim - 2) for x in (obs, action, g)]
        for part in minibatches(rollout[-1].shape[-1], self.minibatches, self.epochs, self.rng):
            metrics = self._improve(*(take(x, part) for x in rollout))
        return metrics

    def improve(self, obs: Tensor, action: Tensor, target: Tensor) -> Metrics:
        """One gradient step on a minibatch [B, ...]."""
        error = target - losses.pick(self.network(obs), action)
        weight = self.shares(obs, action) if self.normalise else 1 / error.shape[-1]
        loss = (weight * self.of_error(error)).sum(-1)
        norm = descend(self.optimizer, loss, self.max_grad_norm)
        return {"q/loss": loss.detach(), "q/td_error": error.detach().abs().mean(-1), "q/grad_norm": norm}

    @torch.no_grad()
    def shares(self, obs: Tensor, action: Tensor) -> Tensor:
        """[B], of each sample 1 / sum_j |phi|.|phi_j| over all that took the same action: in a table 1 / its visits.

        So a step of 1 takes each pair of a table to the mean of its targets, and never overshoots with any features.
        See Haykin (2002), chapter 6, for one sample at a time: normalised least mean squares.
        """
        phi = self.network.torso(obs).abs()
        taken = F.one_hot(action, self.num_actions).to(phi.dtype)
        among = distributed.mean(phi.mT @ taken)  # as gradients are
        return 1 / losses.pick(phi @ among, action).clamp_min(1e-8)

    @torch.no_grad()
    def q(self, obs: Tensor) -> Tensor:
        """[B, A]."""
        return self.network(obs)

    def view(self, obs: Tensor) -> View:
        q = self.network(obs)
        return View(q, q.max(-1).values, "action values")
