"""Actor-critic whose critic learns action values (Konda and Tsitsiklis, 2003; https://doi.org/10.1137/S0363012901385691).

The actor climbs grad log pi(a|s) Q(s, a), or its mean over all actions (Sutton et al., 2000, theorem 1); the critic
learns Q of the present policy by SARSA or expected SARSA.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from rl_lab import losses, returns
from rl_lab.agents import exploration
from rl_lab.core.devices import double
from rl_lab.core.learner import Learner, Metrics, OptimizerFn, build_optimizer, descend
from rl_lab.core.randomness import generator, seeded
from rl_lab.core.settings import Count, Limit, NonNegative, Unit
from rl_lab.networks.heads import Outputs, table
from rl_lab.networks.torsos import TorsoFn
from rl_lab.types import Spec, Transition, View


class ActorCritic(Learner):
    """Learns from each rollout of all envs, then forgets it; the actor's step uses the critic from before its update.

    Both losses are means over the rollout's samples. SARSA's next action is drawn from pi(.|s') for the update alone:
    the one then taken comes from the policy after it.
    """

    saved = "actor", "critic", "actor_optimizer", "critic_optimizer", "rng"
    parallel = True

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        actor: TorsoFn,
        critic: TorsoFn,
        actor_optimizer: OptimizerFn,
        critic_optimizer: OptimizerFn,
        target: Literal["sarsa", "expected_sarsa"],  # of the critic
        gradient: Literal["sampled", "all_actions"],  # of the actor: by the action taken, or the mean
        advantage: bool,  # subtract sum_a pi(a|s) Q(s, a): the same in the mean, with less noise
        rollout_length: Count,  # steps of each env
        gamma: Unit,
        lambda_: Unit,  # 0: one step; 1: to the end of the rollout
        entropy_coef: NonNegative,
        max_grad_norm: Limit,  # of each of the two
        max_abs_reward: Limit,  # rewards are clipped to this
        zero_heads: bool,  # start uniform and from Q = 0, without a bias: on one-hot observations, tables
        sampled_eval: bool,  # evaluate the policy itself, not its mode, which may be far worse
    ):
        head = table if zero_heads else nn.Linear
        with seeded(seed, device):
            self.actor = Outputs(spec, actor, spec.num_actions, head).to(device)
            self.critic = Outputs(spec, critic, spec.num_actions, head).to(device)
        self.actor_optimizer = build_optimizer(actor_optimizer, self.actor.parameters())
        self.critic_optimizer = build_optimizer(critic_optimizer, self.critic.parameters())
        self.rng, self.rollout_length = generator(seed, device), rollout_length
        self.target, self.sampled_eval = target, sampled_eval
        self.gradient, self.advantage = gradient, advantage
        self.gamma, self.lambda_, self.entropy_coef = gamma, lambda_, entropy_coef
        self.max_grad_norm, self.max_abs_reward = max_grad_norm, max_abs_reward
        self._rollout: list[tuple[Tensor, ...]] = []

    @property
    def settled(self) -> bool:
        return not self._rollout

    def log_probs(self, obs: Tensor) -> Tensor:
        """[B, A]."""
        return self.actor(obs).log_softmax(-1)

    def q(self, obs: Tensor) -> Tensor:
        """[B, A]."""
        return self.critic(obs)

    @torch.no_grad()
    def act(self, obs: Tensor, greedy: bool = False) -> Tensor:
        log_probs = self.log_probs(obs)
        return log_probs.argmax(-1) if greedy and not self.sampled_eval else exploration.sample(log_probs, self.rng)

    @torch.no_grad()
    def probabilities(self, obs: Tensor) -> Tensor:
        log_probs = double(self.log_probs(obs))
        return log_probs.exp() if self.sampled_eval else exploration.certain(log_probs.argmax(-1), log_probs.shape[-1])

    def update(self, transition: Transition) -> Metrics:
        obs, action, reward, discount, last, next_obs, duration = transition
        self._rollout.append((obs, action, reward, discount, last, duration, self.worth(next_obs)))
        if len(self._rollout) < self.rollout_length:
            return {}
        rollout, self._rollout = [torch.stack(x) for x in zip(*self._rollout, strict=True)], []
        return self.learn(*rollout)

    @torch.no_grad()
    def worth(self, next_obs: Tensor) -> Tensor:
        """The value [N] of the true successors."""
        log_probs, q = self.log_probs(next_obs), self.q(next_obs)
        if self.target == "sarsa":
            return losses.pick(q, exploration.sample(log_probs, self.rng))
        return (log_probs.exp() * q).sum(-1)

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
        """A gradient step each on a rollout [T, N, ...] whose successors are worth `value` [T, N]."""
        reward = reward.clamp(-self.max_abs_reward, self.max_abs_reward)
        discount = returns.discounts(self.gamma, discount, duration)
        g = returns.lambda_returns(reward, discount, last, value, self.lambda_).flatten()
        obs, action = obs.flatten(0, 1), action.flatten()
        log_probs, q = self.log_probs(obs), self.q(obs)
        actor_loss, entropy = self.actor_loss(log_probs, q, action).mean(), losses.entropy(log_probs).mean()
        error = g - losses.pick(q, action)
        critic_loss = losses.half_square(error).mean()
        actor_norm = descend(self.actor_optimizer, actor_loss - self.entropy_coef * entropy, self.max_grad_norm)
        critic_norm = descend(self.critic_optimizer, critic_loss, self.max_grad_norm)
        return {
            "actor_critic/actor_loss": actor_loss.detach(),
            "actor_critic/critic_loss": critic_loss.detach(),
            "actor_critic/td_error": error.detach().abs().mean(),
            "actor_critic/entropy": entropy.detach(),
            "actor_critic/actor_norm": actor_norm,
            "actor_critic/critic_norm": critic_norm,
        }

    def actor_loss(self, log_probs: Tensor, q: Tensor, action: Tensor) -> Tensor:
        """[B], from log_probs and q [B, A]: its gradient is the actor's, downhill."""
        q = q.detach()
        if self.advantage:
            q = q - (log_probs.detach().exp() * q).sum(-1, keepdim=True)
        if self.gradient == "sampled":
            return losses.policy_gradient(losses.pick(log_probs, action), losses.pick(q, action))
        return -(log_probs.exp() * q).sum(-1)

    def view(self, obs: Tensor) -> View:
        probabilities = self.log_probs(obs).exp()
        return View(probabilities, (probabilities * self.q(obs)).sum(-1), "probabilities")
