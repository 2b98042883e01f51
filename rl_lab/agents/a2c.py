"""Advantage actor-critic, synchronous (Mnih et al., 2016; https://arxiv.org/abs/1602.01783)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rl_lab import exploration, losses, returns
from rl_lab.core.learner import Learner, Metrics, OptimizerFn, build_optimizer, descend, generator, seeded
from rl_lab.core.settings import Count, NonNegative, Positive, Unit
from rl_lab.networks import Heads, TorsoFn
from rl_lab.types import Spec, Transition, View


class Acted(NamedTuple):
    """What the forward that chose the actions computed, its graph still attached; [N], or [T, N] stacked."""

    log_prob: Tensor
    entropy: Tensor
    value: Tensor


class A2C(Learner):
    """One gradient step for each rollout of all envs; one torso, a head of A logits and one of the value.

    The parameters do not change within a rollout, so the forward that acts is the forward that learns.
    """

    saved = "network", "optimizer", "rng"

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        network: TorsoFn,
        optimizer: OptimizerFn,
        rollout_length: Count,  # steps of each env
        gamma: Unit,
        lambda_: Unit,
        value_coef: NonNegative,
        entropy_coef: NonNegative,
        max_grad_norm: Positive,
        max_abs_reward: Positive = math.inf,  # rewards are clipped to this
        orthogonal_heads: bool = True,  # gains .01 and 1; else torch's own start
    ):
        with seeded(seed, device):
            gains = [0.01, 1.0] if orthogonal_heads else None
            self.network = Heads(spec, network, [spec.num_actions, 1], gains).to(device)
        self.optimizer = build_optimizer(optimizer, self.network.parameters())
        self.rng, self.rollout_length, self._rollout = generator(seed, device), rollout_length, []
        self.gamma, self.lambda_, self.max_grad_norm, self.max_abs_reward = (
            gamma,
            lambda_,
            max_grad_norm,
            max_abs_reward,
        )
        self.value_coef, self.entropy_coef = value_coef, entropy_coef

    @property
    def settled(self) -> bool:
        return not self._rollout

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """obs [B, ...] -> log-probabilities [B, A], value [B]."""
        logits, value = self.network(obs)
        return logits.log_softmax(-1), value.squeeze(-1)

    def act(self, obs: Tensor, greedy: bool = False) -> Tensor:
        if greedy:
            with torch.no_grad():
                return self.forward(obs)[0].argmax(-1)
        log_probs, value = self.forward(obs)
        action = exploration.sample(log_probs.detach(), self.rng)
        self._acted = Acted(losses.pick(log_probs, action), losses.entropy(log_probs), value)
        return action

    def update(self, transition: Transition) -> Metrics:
        self._rollout.append((self._acted, transition))
        if len(self._rollout) < self.rollout_length:
            return {}
        acted, transitions = zip(*self._rollout, strict=True)
        self._rollout = []
        return self.learn(Acted(*map(torch.stack, zip(*acted, strict=True))), transitions)

    def learn(self, acted: Acted, transitions: tuple[Transition, ...]) -> Metrics:
        """One gradient step from T transitions of N envs and what was computed on the way, [T, N]."""
        reward, discount, last = (
            torch.stack([getattr(t, name) for t in transitions]) for name in ("reward", "discount", "last")
        )
        reward = reward.clamp(-self.max_abs_reward, self.max_abs_reward)
        next_value = self.next_values(acted.value.detach(), discount, last, [t.next_obs for t in transitions])
        g = returns.lambda_returns(reward, self.gamma * discount, last, next_value, self.lambda_)
        advantage = (g - acted.value).detach()
        policy_loss = losses.policy_gradient(acted.log_prob, advantage).mean()
        value_loss = (g - acted.value).square().mean()
        entropy = acted.entropy.mean()
        loss = policy_loss + self.value_coef * value_loss - self.entropy_coef * entropy
        norm = descend(self.optimizer, loss, self.max_grad_norm)
        return {"a2c/policy_loss": policy_loss.detach(), "a2c/value_loss": value_loss.detach(),
                "a2c/entropy": entropy.detach(), "a2c/grad_norm": norm}  # fmt: skip

    @torch.no_grad()
    def next_values(self, value: Tensor, discount: Tensor, last: Tensor, next_obs: list[Tensor]) -> Tensor:
        """[T, N] of the true successors: within an episode the value of the next step, already computed.

        Where an episode was truncated the next step belongs to another one, and its successor is valued anew; the
        question whether there is any such step is the one place where a rollout waits for the device.
        """
        next_value = torch.cat([value[1:], self.forward(next_obs[-1])[1][None]])
        truncated = last & (discount > 0)
        truncated[-1] = False
        if truncated.any():
            next_value[truncated] = self.forward(torch.stack(next_obs)[truncated])[1]
        return next_value

    @torch.no_grad()
    def view(self, obs: Tensor) -> View:
        log_probs, value = self.forward(obs)
        return View(log_probs.exp(), value, "probabilities")
