"""Proximal policy optimisation, the clipped form (Schulman et al., 2017; https://arxiv.org/abs/1707.06347)."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rl_lab import losses
from rl_lab.agents import exploration
from rl_lab.core import distributed, graphs
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Decay, Learner, Metrics, OptimizerFn, build_optimizer, descend
from rl_lab.core.randomness import Stream, generator, seeded
from rl_lab.core.settings import Count, Limit, Natural, NonNegative, Positive, Unit
from rl_lab.memory.rollouts import back, check_minibatches, minibatches, samples, take, value_targets
from rl_lab.networks.heads import PolicyValue
from rl_lab.networks.torsos import TorsoFn, gather, steps_to_gather
from rl_lab.types import Spec, Transition, View


class Acted(NamedTuple):
    """What the forward pass that chose the actions took and computed; [N, ...]."""

    obs: Tensor  # as `torsos.prepared` made it: it is learned from in every epoch
    log_prob: Tensor
    value: Tensor


Rollout = Sequence[tuple[Acted, Transition]]


class Minibatch(NamedTuple):
    """[B, ...]; the proximal policy is the one that the ratio is held near (Hilton et al., 2022, section 3)."""

    obs: Tensor
    action: Tensor
    acting_log_prob: Tensor
    proximal_log_prob: Tensor
    proximal_value: Tensor
    target: Tensor  # of the value
    advantage: Tensor


class PPO(Learner):
    """Several epochs of minibatches over each rollout of all envs, the policy held near the one that acted."""

    saved = "network", "optimizer", "rng", "steps", "pace"
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
        epochs: Count,  # times each rollout is learned from
        minibatches: Count,  # gradient steps an epoch
        gamma: Unit,
        lambda_: Unit,
        clip: Limit,  # how far from 1 a probability ratio still counts
        value_clip: Limit,  # how far a value may move from what it was when it acted
        value_coef: NonNegative,
        entropy_coef: NonNegative,
        max_grad_norm: Limit,
        target_kl: Positive | None,  # no more epochs of a rollout once the policy has moved further [nats]; None: all
        adaptive_kl: Positive | None,  # the learning rate falls while updates move the policy further [nats]
        max_abs_reward: Limit,  # rewards are clipped to this
        bootstrap: bool,  # the value stands for what a time limit cut off; else the episode counts as over
        standardise: bool,  # the advantages
        standardise_over: Literal["minibatch", "rollout"],  # of which mean and deviation are taken
        decay_steps: Natural,  # the learning rate falls to 0 over this many steps; 0: it stays
        decay_floor: Unit,  # but no further than to this share of the first one
        decay_clip: bool,  # and `clip` with it
        decay_entropy: bool,  # and `entropy_coef` with it
        decoupled: bool,  # clip around the policy from before this learning, which in loop=overlapped did not act
        separate_value: bool,  # a torso of its own
        orthogonal_heads: bool,  # gains .01 and 1; else torch's own start
        gather_steps: Natural,  # first steps, of which networks that standardise their inputs take the statistics
    ):
        with seeded(seed, device):
            self.network = PolicyValue(spec, network, separate=separate_value, orthogonal=orthogonal_heads).to(device)
        self.optimizer, self.rng = build_optimizer(optimizer, self.network.parameters()), generator(seed, device)
        self.decay = Decay(self.optimizer, decay_steps, decay_floor)
        self.rollout_length, self.epochs, self.minibatches = rollout_length, epochs, minibatches
        self.gamma, self.lambda_ = gamma, lambda_
        self.bootstrap = bootstrap
        self.standardise = standardise_over if standardise else None
        if decay_clip and math.isinf(clip):
            raise UserError(
                "agent.decay_clip=true has nothing to lessen, as agent.clip=inf; leave it out, or choose a clip"
            )
        self.clip, self.value_clip, self.decay_clip = clip, value_clip, decay_clip
        self.value_coef, self.entropy_coef, self.decay_entropy = value_coef, entropy_coef, decay_entropy
        self.adaptive_kl, self.pace = adaptive_kl, 1.0  # the share of the learning rate that it leaves
        self.max_grad_norm, self.max_abs_reward, self.num_actions = max_grad_norm, max_abs_reward, spec.num_actions
        self.gather_steps = steps_to_gather(self.network, gather_steps)
        self.target_kl, self.decoupled = target_kl, decoupled
        self._rollout: list[tuple[Acted, Transition]] = []
        self._choose: graphs.Captured[tuple[Tensor, Acted]] = graphs.Captured(
            lambda obs: choose(obs, self.network, self.rng), self.rng
        )
        self._improve = graphs.Captured(self.improve)

    @property
    def settled(self) -> bool:
        return not self._rollout

    def announce(self, num_envs: int) -> None:
        """Raises UserError where a rollout cannot fill its minibatches."""
        check_minibatches(self.minibatches, self.rollout_length, num_envs)

    @torch.no_grad()
    def act(self, obs: Tensor, greedy: bool = False) -> Tensor:
        if greedy:
            return self.network(obs)[0].argmax(-1)
        action, self._acted = self._choose(obs)
        return action

    def probabilities(self, obs: Tensor) -> Tensor:
        return exploration.certain(self.act(obs, greedy=True), self.num_actions)

    def update(self, transition: Transition) -> Metrics:
        self._rollout.append((self._acted, transition))
        if len(self._rollout) < self.rollout_length:
            return {}
        rollout, self._rollout = self._rollout, []
        return self.learn(rollout)

    def learn(self, rollout: Rollout) -> Metrics:
        """Gradient steps from T transitions of N envs and what was computed on the way."""
        kept, transitions = zip(*rollout, strict=True)
        log_prob, value = (torch.stack(x) for x in ([a.log_prob for a in kept], [a.value for a in kept]))
        action = torch.stack([t.action for t in transitions])
        share, seeds = self.decay.to(self.steps), action.ndim - 2
        self.decay.scale(share * self.pace)
        bonus = self.entropy_coef * (share if self.decay_entropy else 1.0)
        gathers = self.steps < self.gather_steps
        self.count_steps(len(value) * value.shape[-1])
        if gathers:
            gather(self.network, torch.cat([t.obs for t in transitions]))
            return {}
        clip = self.clip * (share if self.decay_clip else 1.0)
        obs, proximal = torch.cat([acted.obs for acted in kept], seeds), log_prob
        if self.decoupled:
            with torch.no_grad():
                log_probs, value = (back(x, action.shape) for x in self.network(obs))
                proximal = losses.pick(log_probs, action)
        g = value_targets(
            transitions,
            value,
            self.network.values,
            self.gamma,
            self.lambda_,
            bootstrap=self.bootstrap,
            max_abs_reward=self.max_abs_reward,
        )
        moved: list[Tensor] = []
        advantage = samples(g - value, seeds)
        if self.standardise == "rollout":
            advantage = distributed.standardised(advantage, (-1,))
        every = obs, *(samples(x, seeds) for x in (action, log_prob, proximal, value, g)), advantage
        for number, part in enumerate(self.parts(advantage.shape[-1]), 1):
            metrics = self._improve(clip, bonus, *(take(x, part) for x in every))
            moved.append(metrics["ppo/kl"])
            if number % self.minibatches == 0 and self.has_moved_far(metrics["ppo/kl"]):
                break
        if self.adaptive_kl:
            kl = distributed.mean(torch.stack(moved[-self.minibatches :]).mean())
            self.pace = paced(self.pace, float(kl), self.adaptive_kl)
        return {**metrics}

    def improve(self, clip: float, bonus: float, *of: Tensor) -> dict[str, Tensor]:
        """One gradient step on a minibatch."""
        loss, metrics = self.loss(Minibatch(*of), clip, bonus)
        return {**metrics, "ppo/grad_norm": descend(self.optimizer, loss, self.max_grad_norm)}

    def has_moved_far(self, kl: Tensor) -> bool:
        return self.target_kl is not None and bool(distributed.mean(kl) > self.target_kl)

    def loss(self, of: Minibatch, clip: float, bonus: float) -> tuple[Tensor, dict[str, Tensor]]:
        """[]. Without `decoupled` the proximal policy is the one that acted, and the weights are 1."""
        log_probs, value = self.network(of.obs)
        log_prob, advantage = losses.pick(log_probs, of.action), of.advantage
        if self.standardise == "minibatch":
            advantage = distributed.standardised(advantage, (-1,))
        weight = (of.proximal_log_prob - of.acting_log_prob).exp()
        surrogate = losses.clipped_policy_gradient(log_prob, of.proximal_log_prob, advantage, clip)
        policy_loss = (weight * surrogate).mean(-1)
        value_loss = losses.clipped_value(value, of.proximal_value, of.target, self.value_clip).mean(-1)
        entropy = losses.entropy(log_probs).mean(-1)
        loss = policy_loss + self.value_coef * value_loss - bonus * entropy
        with torch.no_grad():
            log_ratio = log_prob - of.proximal_log_prob
            metrics = {
                "ppo/policy_loss": policy_loss,
                "ppo/value_loss": value_loss,
                "ppo/entropy": entropy,
                "ppo/kl": (log_ratio.exp() - 1 - log_ratio).mean(-1),
                "ppo/clipped": ((log_ratio.exp() - 1).abs() > clip).float().mean(-1),
            }
        return loss, {name: x.detach() for name, x in metrics.items()}

    def parts(self, size: int) -> Iterator[Tensor | slice]:
        """Which of `size` samples make each minibatch of each epoch."""
        return minibatches(size, self.minibatches, self.epochs, self.rng)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({"pace": 1.0} | state)  # which older checkpoints lack

    def view(self, obs: Tensor) -> View:
        log_probs, value = self.network(obs)
        return View(log_probs.exp(), value, "probabilities")


def paced(pace: float, kl: float, target: float) -> float:
    """The share of the learning rate that the next rollout is learned at, where the last epoch of this one was at `kl`.

    Schulman et al. (2017), section 4, move the weight of a penalty so; rl_games moves the learning rate.
    """
    if kl > target:
        return max(pace / 1.2, 0.05)
    return min(pace * 1.2, 1.0) if kl < target / 1.5 else pace


@torch.no_grad()
def choose(obs: Tensor, network: PolicyValue, rng: Stream) -> tuple[Tensor, Acted]:
    """Actions [N] drawn for obs [N, ...], and what learning from them will need."""
    obs = network.prepared(obs)
    log_probs, value = network(obs)
    action = exploration.sample(log_probs, rng)
    return action, Acted(obs, losses.pick(log_probs, action), value)
