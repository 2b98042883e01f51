"""Advantage actor-critic, synchronous (Mnih et al., 2016; https://arxiv.org/abs/1602.01783)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rl_lab import losses
from rl_lab.agents import exploration
from rl_lab.core import distributed, graphs
from rl_lab.core.learner import Decay, Learner, Metrics, OptimizerFn, build_optimizer, descend
from rl_lab.core.randomness import generator, seeded
from rl_lab.core.settings import Count, Limit, Natural, NonNegative, Unit
from rl_lab.memory.rollouts import back, samples, value_targets
from rl_lab.networks.heads import PolicyValue
from rl_lab.networks.torsos import TorsoFn, gather, steps_to_gather
from rl_lab.types import Spec, Transition, View


class Acted(NamedTuple):
    """What the forward pass that chose the actions computed, its graph still attached; [N], or [T, N] stacked."""

    log_prob: Tensor
    entropy: Tensor
    value: Tensor


Rollout = Sequence[tuple[Acted, Transition]]


class A2C(Learner):
    """One gradient step for each rollout of all envs; one torso, a head of A logits and one of the value.

    The parameters do not change within a rollout, so the forward that acts is the forward that learns; `forward_again`
    spares small networks, whose graphs cost more than their sums, one graph a step.
    """

    saved = "network", "optimizer", "rng", "steps"
    captures = parallel = True

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
        lambda_: Unit,  # 1: n-step returns; below it, generalised advantage estimation
        value_coef: NonNegative,
        entropy_coef: NonNegative,
        max_grad_norm: Limit,
        max_abs_reward: Limit,  # rewards are clipped to this
        bootstrap: bool,  # the value stands for what a time limit cut off; else the episode counts as over
        standardise: bool,  # the advantages of each rollout
        decay_steps: Natural,  # the learning rate falls to 0 over this many steps; 0: it stays
        decay_entropy: bool,  # and `entropy_coef` with it
        separate_value: bool,  # a torso of its own
        orthogonal_heads: bool,  # gains .01 and 1; else torch's own start
        forward_again: bool,  # learn from a second forward, of the whole rollout at once
        gather_steps: Natural,  # first steps, of which networks that standardise their inputs take the statistics
    ):
        with seeded(seed, device):
            self.network = PolicyValue(spec, network, separate=separate_value, orthogonal=orthogonal_heads).to(device)
        self.optimizer, self.rng = build_optimizer(optimizer, self.network.parameters()), generator(seed, device)
        self.decay, self.rollout_length = Decay(self.optimizer, decay_steps), rollout_length
        self.gamma, self.lambda_, self.bootstrap = gamma, lambda_, bootstrap
        self.value_coef, self.standardise = value_coef, standardise
        self.entropy_coef, self.decay_entropy = entropy_coef, decay_entropy
        self.max_grad_norm, self.max_abs_reward, self.num_actions = max_grad_norm, max_abs_reward, spec.num_actions
        self.gather_steps = steps_to_gather(self.network, gather_steps)
        self.forward_again = forward_again or graphs.chosen()  # what autograd keeps stays within one CUDA graph
        self._choose = graphs.Captured(lambda obs: self.choose(obs, self.rng), self.rng)
        self._improve = graphs.Captured(self.improve)
        self._rollout: list[tuple[Acted, Transition]] = []

    @property
    def settled(self) -> bool:
        return not self._rollout

    @property
    def bonus(self) -> float:
        """What a nat of entropy counts now."""
        return self.entropy_coef * (self.decay.share(self.steps) if self.decay_entropy else 1.0)

    def act(self, obs: Tensor, greedy: bool = False) -> Tensor:
        if greedy:
            with torch.no_grad():
                return self.network(obs)[0].argmax(-1)
        action, self._acted = self._choose(obs)
        return action

    def choose(self, obs: Tensor, rng: torch.Generator) -> tuple[Tensor, Acted]:
        """Actions [N] drawn for obs [N, ...], and what learning from them will need."""
        with torch.set_grad_enabled(not self.forward_again):
            log_probs, value = self.network(obs)
            action = exploration.sample(log_probs.detach(), rng)
            return action, Acted(losses.pick(log_probs, action), losses.entropy(log_probs), value)

    def improve(self, bonus: float, obs: Tensor, action: Tensor, target: Tensor) -> Metrics:
        """As `learn`, of T steps [T, N, ...] whose target values [T, N] are known."""
        loss, metrics = self.objective(self.again(obs, action), target, bonus)
        return {**metrics, "a2c/grad_norm": descend(self.optimizer, loss, self.max_grad_norm)}

    def again(self, obs: Tensor, action: Tensor) -> Acted:
        """As `choose` computed for each of T steps, [T, N], in one forward."""
        seeds = action.ndim - 2
        log_probs, value = (back(x, action.shape) for x in self.network(samples(obs, seeds)))
        return Acted(losses.pick(log_probs, action), losses.entropy(log_probs), value)

    def probabilities(self, obs: Tensor) -> Tensor:
        return exploration.certain(self.act(obs, greedy=True), self.num_actions)

    def update(self, transition: Transition) -> Metrics:
        self._rollout.append((self._acted, transition))
        if len(self._rollout) < self.rollout_length:
            return {}
        rollout, self._rollout = self._rollout, []
        return self.learn(rollout)

    def learn(self, rollout: Rollout) -> Metrics:
        """One gradient step from T transitions of N envs and what was computed on the way."""
        self.decay.to(self.steps)
        found: Metrics = {}
        if self.steps < self.gather_steps:
            gather(self.network, torch.cat([t.obs for _, t in rollout]))
        else:
            found = self.step(rollout)
        self.count_steps(len(rollout) * rollout[0][0].value.shape[-1])
        return found

    def step(self, rollout: Rollout) -> Metrics:
        """One gradient step, as `learn` has it."""
        if graphs.chosen():
            kept, transitions = zip(*rollout, strict=True)
            target = self.targets(transitions, torch.stack([acted.value for acted in kept]))
            return self._improve(self.bonus, *taken(transitions), target)
        loss, metrics = self.loss(rollout)
        return {**metrics, "a2c/grad_norm": descend(self.optimizer, loss, self.max_grad_norm)}

    def loss(self, rollout: Rollout) -> tuple[Tensor, Metrics]:
        """-log pi(a|s) A + value_coef (G - V)^2 - bonus H, the mean over the rollout []."""
        kept, transitions = zip(*rollout, strict=True)
        if self.forward_again:
            acted = self.again(*taken(transitions))
        else:
            acted = Acted(*map(torch.stack, zip(*kept, strict=True)))
        return self.objective(acted, self.targets(transitions, acted.value), self.bonus)

    def targets(self, transitions: Sequence[Transition], value: Tensor) -> Tensor:
        """The targets [T, N], from the values [T, N] of what was acted on."""
        return value_targets(
            transitions,
            value,
            self.network.values,
            self.gamma,
            self.lambda_,
            bootstrap=self.bootstrap,
            max_abs_reward=self.max_abs_reward,
        )

    def objective(self, acted: Acted, g: Tensor, bonus: float) -> tuple[Tensor, Metrics]:
        """The loss [], from what was computed when acting and the targets g, [T, N]."""
        over = (0, -1)  # T and N
        advantage = g - acted.value
        if self.standardise:
            advantage = distributed.standardised(advantage, over)
        policy_loss = losses.policy_gradient(acted.log_prob, advantage).mean(over)
        value_loss = (g - acted.value).square().mean(over)
        entropy = acted.entropy.mean(over)
        loss = policy_loss + self.value_coef * value_loss - bonus * entropy
        return loss, {
            "a2c/policy_loss": policy_loss.detach(),
            "a2c/value_loss": value_loss.detach(),
            "a2c/entropy": entropy.detach(),
        }

    def view(self, obs: Tensor) -> View:
        log_probs, value = self.network(obs)
        return View(log_probs.exp(), value, "probabilities")


def taken(transitions: Sequence[Transition]) -> tuple[Tensor, Tensor]:
    """The observations [T, N, ...] and the actions taken there [T, N]."""
    return torch.stack([t.obs for t in transitions]), torch.stack([t.action for t in transitions])
