"""Deep Q-Network (Mnih et al., 2015; https://www.nature.com/articles/nature14236)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rl_lab import exploration, losses
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Learner, Metrics, OptimizerFn, build_optimizer, descend, generator, seeded
from rl_lab.core.settings import Count, Natural, NonNegative, Positive, Unit
from rl_lab.memory import Replay
from rl_lab.networks import Heads, TorsoFn
from rl_lab.types import Spec, Transition, View


class DQN(Learner):
    """Q-learning from replay, against a target network that follows in jumps."""

    saved = "online", "target", "optimizer", "replay", "rng", "steps", "learns", "owed"
    memory = "replay"

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        network: TorsoFn,
        optimizer: OptimizerFn,
        replay: Callable[..., Replay],
        batch_size: Count,
        replay_ratio: NonNegative,  # samples learned from, per step taken
        learning_starts: Natural,  # steps
        target_update_period: Count,  # gradient steps
        gamma: Unit,
        epsilon: Callable[[int], float],  # of steps
        max_abs_reward: Positive = math.inf,  # rewards are clipped to this
        max_grad_norm: Positive = math.inf,
        double: bool = False,  # van Hasselt et al. (2016)
        zero_head: bool = False,  # start from Q = 0, without a bias: on one-hot observations, a table
    ):
        with seeded(seed, device):
            gains = [0.0] if zero_head else None
            self.online, self.target = (Heads(spec, network, [spec.num_actions], gains).to(device) for _ in range(2))
        self.target.requires_grad_(False).load_state_dict(self.online.state_dict())
        self.optimizer = build_optimizer(optimizer, self.online.parameters())
        self.rng, self.replay = generator(seed, device), replay(seed=seed + 1, device=device)
        if batch_size > self.replay.capacity:
            raise UserError(
                f"agent.batch_size={batch_size} is impossible: above agent.replay.capacity={self.replay.capacity}"
            )
        self.batch_size, self.replay_ratio, self.learning_starts = batch_size, replay_ratio, learning_starts
        self.target_update_period, self.gamma, self.epsilon = target_update_period, gamma, epsilon
        self.max_abs_reward, self.max_grad_norm, self.double = max_abs_reward, max_grad_norm, double
        self.steps, self.learns, self.owed = 0, 0, 0.0

    @torch.no_grad()
    def act(self, obs: Tensor, greedy: bool = False) -> Tensor:
        (q,) = self.online(obs)
        return q.argmax(-1) if greedy else exploration.epsilon_greedy(q, self.epsilon(self.steps), self.rng)

    def update(self, transition: Transition) -> Metrics:
        n, metrics = len(transition.reward), {}
        self.replay.add(transition)
        self.steps += n
        if self.replay.size >= max(self.learning_starts, 1):
            self.owed += n * self.replay_ratio / self.batch_size  # gradient steps that these steps pay for
        while self.owed >= 1:
            metrics = self.learn(self.replay.sample(self.batch_size))
            self.owed -= 1
        return metrics and {**metrics, "dqn/epsilon": self.epsilon(self.steps)}

    def learn(self, batch: Transition) -> Metrics:
        """One gradient step."""
        td = self.td_error(batch)
        loss = losses.huber(td).mean()
        norm = descend(self.optimizer, loss, self.max_grad_norm)
        self.learns += 1
        if self.learns % self.target_update_period == 0:
            self.target.load_state_dict(self.online.state_dict())
        return {"dqn/loss": loss.detach(), "dqn/td_error": td.detach().abs().mean(), "dqn/grad_norm": norm}

    def td_error(self, batch: Transition) -> Tensor:
        """[B], from a batch of transitions."""
        (q_tm1,) = self.online(batch.obs)
        with torch.no_grad():
            (q_t,) = self.target(batch.next_obs)
            selector = self.online(batch.next_obs)[0] if self.double else q_t
        reward = batch.reward.clamp(-self.max_abs_reward, self.max_abs_reward)
        return losses.double_q_learning(q_tm1, batch.action, reward, self.gamma * batch.discount, q_t, selector)

    @torch.no_grad()
    def view(self, obs: Tensor) -> View:
        (q,) = self.online(obs)
        return View(q, q.max(-1).values, "action values")
