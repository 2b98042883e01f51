"""Deep Q-Network (Mnih et al., 2015; https://www.nature.com/articles/nature14236), and the variants that joined it in
Rainbow (Hessel et al., 2018; https://arxiv.org/abs/1710.02298), each a setting."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rl_lab import returns
from rl_lab.agents import exploration
from rl_lab.agents.values import Categorical, Mean, Value
from rl_lab.core import graphs
from rl_lab.core.devices import double
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Decay, Learner, Metrics, OptimizerFn, build_optimizer, descend
from rl_lab.core.randomness import generator, seeded
from rl_lab.core.settings import Count, Limit, Natural, NonNegative, Unit
from rl_lab.memory import Replay
from rl_lab.networks.heads import Dueling, QNetwork, draw_noise, layers, table
from rl_lab.networks.torsos import TorsoFn, gather, prepared, steps_to_gather
from rl_lab.types import Spec, Transition, View


class DQN(Learner):
    """Q-learning from replay, against a target network that is updated in jumps, or steadily."""

    saved = "online", "target", "optimizer", "replay", "rng", "steps", "learns", "owed"
    memory = "replay"
    captures = True

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        network: TorsoFn,
        optimizer: OptimizerFn,
        replay: Callable[..., Replay],  # n_step and priorities are settings of its own
        value: Value | None,  # what is predicted of the return; None: its mean, by the Huber loss
        batch_size: Count,
        replay_ratio: NonNegative,  # samples learned from, per step taken
        learning_starts: Natural,  # steps
        target_update_period: Count,  # gradient steps
        target_mix: Unit,  # how far the target goes towards the online network; 1: all the way
        gamma: Unit,
        epsilon: Callable[[int], float],  # of steps
        epsilon_spread: NonNegative,  # over the envs, as in Ape-X; 0: the same in all
        eval_epsilon: Unit,  # of the greedy policy
        max_abs_reward: Limit,  # rewards are clipped to this
        max_grad_norm: Limit,
        double: bool,  # van Hasselt et al. (2016)
        dueling: bool,  # Wang et al. (2016)
        stream_units: Natural,  # one more layer in each stream above the torso
        noisy: NonNegative,  # sigma_0 of noisy layers above the torso (Fortunato et al., 2018)
        decay_steps: Natural,  # the learning rate falls to 0 over this many steps; 0: it stays
        zero_head: bool,  # start from Q = 0, without a bias: on one-hot observations, a table
        gather_steps: Natural,  # first steps, of which networks that standardise their inputs take the statistics
    ):
        if zero_head and (noisy or stream_units):
            raise UserError("agent.zero_head is one plain layer: set agent.noisy and agent.stream_units to 0")
        self.value = value or Mean(loss="huber")
        if isinstance(self.value, Categorical):
            self.value.on(device)
        kind, head = Dueling if dueling else QNetwork, partial(layers, hidden=stream_units, noisy=noisy)
        with seeded(seed, device):
            self.online, self.target = (
                kind(spec, network, self.value.outputs, table if zero_head else head).to(device) for _ in range(2)
            )
        self.target.requires_grad_(False).load_state_dict(self.online.state_dict())
        self.optimizer, self.rng = build_optimizer(optimizer, self.online.parameters()), generator(seed, device)
        self.decay = Decay(self.optimizer, decay_steps)
        self.replay = replay(seed=seed + 1, device=device, frame_stack=spec.frame_stack)
        capacity = self.replay.capacity
        for name, size in {"batch_size": batch_size, "learning_starts": learning_starts}.items():
            if size > capacity:
                raise UserError(f"agent.{name}={size} must be at most agent.replay.capacity={capacity}")
        self.spec, self.double, self.noisy = spec, double, noisy
        self.batch_size, self.replay_ratio, self.learning_starts = batch_size, replay_ratio, learning_starts
        self.target_update_period, self.target_mix, self.gamma = target_update_period, target_mix, gamma
        self.epsilon, self.epsilon_spread, self.eval_epsilon = epsilon, epsilon_spread, eval_epsilon
        self.max_abs_reward, self.max_grad_norm = max_abs_reward, max_grad_norm
        self.gather_steps = steps_to_gather(self.online, gather_steps)
        self.steps, self.learns, self.owed = 0, 0, 0.0
        self._explore = graphs.Captured(self.explore, self.rng)
        self._improve = graphs.Captured(self.improve, self.rng)

    def announce(self, num_envs: int) -> str:
        """The memory it will take, in words. Raises UserError where there is not enough."""
        return self.replay.announce(self.spec, num_envs)

    @torch.no_grad()
    def act(self, obs: Tensor, greedy: bool = False) -> Tensor:
        if greedy:
            q = self.q(obs)
            return exploration.epsilon_greedy(q, self.eval_epsilon, self.rng) if self.eval_epsilon else q.argmax(-1)
        return self._explore(obs, self.epsilon(self.steps))

    def explore(self, obs: Tensor, epsilon: float) -> Tensor:
        if self.noisy:
            draw_noise(self.online, self.rng)
        q = self.value.mean(self.online(obs))
        return exploration.epsilon_greedy(q, exploration.spread(epsilon, self.epsilon_spread, q), self.rng)

    @torch.no_grad()
    def probabilities(self, obs: Tensor) -> Tensor:
        q = self.q(obs)
        if self.eval_epsilon:
            return exploration.epsilon_greedy_probabilities(double(q), self.eval_epsilon)
        return exploration.certain(q.argmax(-1), q.shape[-1])

    def update(self, transition: Transition) -> Metrics:
        n, metrics = transition.reward.shape[-1], Metrics()
        self.replay.add(transition)
        if gathers := self.steps < self.gather_steps:
            for network in (self.online, self.target):
                gather(network, transition.obs)
        self.steps += n
        if not gathers and self.replay.size >= max(self.learning_starts, 1):
            self.owed += n * self.replay_ratio / self.batch_size  # gradient steps that these steps pay for
        self.decay.to(self.steps)
        while self.owed >= 1:
            slots, weight = self.replay.draw(self.batch_size, self.steps)
            metrics, error = self.learn(self.replay.read(slots, self.gamma, self.max_abs_reward), weight)
            self.replay.update_priorities(slots, error)
            self.owed -= 1
        return metrics and {**metrics, "dqn/epsilon": self.epsilon(self.steps)}

    def learn(self, batch: Transition, weight: Tensor | float = 1.0) -> tuple[Metrics, Tensor]:
        """One gradient step; also the errors [B] that set the priorities of a replay."""
        metrics, error = self._improve(weight, *batch)
        self.learns += 1
        if self.learns % self.target_update_period == 0:
            self.follow()
        return metrics, error

    def improve(self, weight: Tensor | float, *batch: Tensor) -> tuple[Metrics, Tensor]:
        """One gradient step on the fields of a batch of transitions, and the errors [B]."""
        if self.noisy:
            draw_noise(self.online, self.rng)
            draw_noise(self.target, self.rng)
        loss, error = self.loss(Transition(*batch))
        loss = (weight * loss if isinstance(weight, Tensor) else loss).mean(-1)
        norm = descend(self.optimizer, loss, self.max_grad_norm)
        return {"dqn/loss": loss.detach(), "dqn/td_error": error.mean(-1), "dqn/grad_norm": norm}, error

    def loss(self, batch: Transition) -> tuple[Tensor, Tensor]:
        """The loss [B] and the size of the error [B] of a batch of transitions."""
        now = pick(self.online(batch.obs), batch.action)
        with torch.no_grad():
            next_obs = prepared(self.online.torso, batch.next_obs)  # frames are made floats once for both
            then = self.target(next_obs)
            selector = self.online(next_obs) if self.double else then
            then = pick(then, self.value.mean(selector).argmax(-1))
        discount = returns.discounts(self.gamma, batch.discount, batch.duration)
        return self.value.loss(now, batch.reward, discount, then)

    @torch.no_grad()
    def follow(self) -> None:
        """theta- <- theta- + mix (theta - theta-)."""
        for target, online in zip(self.target.parameters(), self.online.parameters(), strict=True):
            target.lerp_(online, self.target_mix)

    def q(self, obs: Tensor) -> Tensor:
        """[B, A], without noise."""
        if not self.noisy:
            return self.value.mean(self.online(obs))
        self.online.eval()
        q = self.value.mean(self.online(obs))
        self.online.train()
        return q

    def view(self, obs: Tensor) -> View:
        q = self.q(obs)
        return View(q, q.max(-1).values, "action values")


def pick(x: Tensor, action: Tensor) -> Tensor:
    """x [..., A, Z] at action [...] -> [..., Z]."""
    return x.take_along_dim(action[..., None, None], -2).squeeze(-2)
