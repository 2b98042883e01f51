"""Value Prediction Network (Oh, Singh and Lee, 2017; https://arxiv.org/abs/1707.03497).

Synchronous n-step Q-learning whose action values are planned: from rollouts of all envs the network learns to predict
reward, duration and value along the options taken; its own plan chooses what to do, the target network's plan says
what a rollout's end is worth. With a network that looks nowhere (baselines.ActionValue) it is the paper's DQN.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from rl_lab import losses, returns
from rl_lab.agents import exploration
from rl_lab.agents.vpn.planner import Level, widths
from rl_lab.agents.vpn.replay import Rollouts
from rl_lab.agents.vpn.unroll import PlanningNetwork, Sequences
from rl_lab.agents.vpn.walks import Walks, ended
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Decay, Learner, Metrics, OptimizerFn, build_optimizer, descend
from rl_lab.core.randomness import generator, integers, permutation, seeded
from rl_lab.core.settings import Count, Depth, Limit, Natural, Unit
from rl_lab.types import Spec, Transition, View


class VPN(Learner):
    """Its first `random_steps` decisions are random and kept; they count in the run's steps, but not in its own."""

    saved: tuple[str, ...] = "online", "target", "optimizer", "walks", "rng", "steps", "learns"
    memory = "walks"

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        network: Callable[[Spec], PlanningNetwork],
        optimizer: OptimizerFn,
        depth: Depth,  # of the plans while it learns
        eval_depth: Depth | None,  # of its greedy plans; None: the same
        branch: Count,  # options looked into at each of the first `branch_depth` depths; below, the best alone
        branch_depth: Depth,
        prediction_steps: Count | None,  # k of the loss; None: as deep as the plans
        rollout_length: Count,  # decisions of each env
        sequences_per_update: Count,  # rollouts of one env each, all if there are fewer
        random_steps: Natural,  # decisions taken at random before anything is learned; 0: no random walks
        walks_per_sequence: Count,  # random walks, as long, that are learned from beside each
        walks_cross_ends: bool,  # whether a walk continues into the next episode, with nothing predicted across
        replay: Callable[..., Rollouts] | None,  # None, the paper: a rollout is learned from once, and gone
        gamma: Unit,
        epsilon: Callable[[int], float],  # of decisions
        target_update_period: Count,  # decisions
        decay: Unit,  # of the learning rate, over a million decisions
        loss: Literal["huber", "squared"],
        max_abs_reward: Limit,  # rewards are clipped to this
        max_grad_norm: Limit,  # of a loss that sums over a sequence
        roots_at_once: Count,  # states planned from together: what bounds the memory of a plan
        bfloat16: bool,  # of learning and of the plans it learns by, not of greedy ones
    ):
        with seeded(seed, device):
            self.online, self.target = (network(spec).to(device) for _ in range(2))
        self.target.requires_grad_(False).load_state_dict(self.online.state_dict())
        if random_steps and not self.online.models:
            raise UserError("agent.random_steps is for a network that predicts rewards; set it to 0")
        self.optimizer, self.rng = build_optimizer(optimizer, self.online.parameters()), generator(seed, device)
        self.rates = Decay(self.optimizer)
        self.walks = Walks(random_steps, spec, device)
        self.rollouts = replay(device) if replay else None
        if replay:
            self.saved, self.memory = (*self.saved, "rollouts"), "rollouts"
        self.branches = widths(depth, branch, branch_depth)
        self.eval_branches = widths(eval_depth or depth, branch, branch_depth)
        self.prediction_steps, self.rollout_length = prediction_steps or depth, rollout_length
        self.sequences_per_update, self.target_update_period = sequences_per_update, target_update_period
        self.walks_per_sequence, self.walks_cross_ends = walks_per_sequence, walks_cross_ends
        self.gamma, self.epsilon, self.decay = gamma, epsilon, decay
        self.of_error = losses.huber if loss == "huber" else losses.half_square
        self.max_abs_reward, self.max_grad_norm = max_abs_reward, max_grad_norm
        self.roots_at_once, self.bfloat16 = roots_at_once, bfloat16
        self.num_actions, self.device = spec.num_actions, device
        self.learns = 0
        self._rollout: list[Transition] = []

    @property
    def settled(self) -> bool:
        return not self._rollout

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.rollouts and self.rollouts.columns:
            length = self.rollouts.columns["reward"].shape[1]
            if length != self.rollout_length:
                raise ValueError(
                    f"rollouts of {length} decisions do not fit agent.rollout_length={self.rollout_length}"
                )

    def announce(self, num_envs: int) -> str | None:
        """Raises UserError where the random walks would be too short."""
        if 0 < self.walks.decisions <= (least := (self.rollout_length + 1) * num_envs):
            raise UserError(
                f"agent.random_steps={self.walks.decisions} must be 0, or more than "
                f"{least}, (agent.rollout_length + 1) x env.num_envs"
            )
        if not self.walks.full:
            missing = self.walks.decisions - self.walks.rows * num_envs
            return f"the next {missing:,} steps are random play, which the model learns from later"
        return None

    @torch.no_grad()
    def act(self, obs: Tensor, greedy: bool = False) -> Tensor:
        if greedy:
            return self.q(self.online, obs, self.eval_branches).argmax(-1)
        if not self.walks.full:
            return integers(self.num_actions, (len(obs),), self.rng)
        with self.precision():
            q = self.q(self.online, obs, self.branches)
        return exploration.epsilon_greedy(q, self.epsilon(self.steps), self.rng)

    def probabilities(self, obs: Tensor) -> Tensor:
        return exploration.certain(self.act(obs, greedy=True), self.num_actions)

    def q(self, network: PlanningNetwork, obs: Tensor, branches: tuple[int, ...]) -> Tensor:
        """Planned action values [B, A], -inf of options not looked into at the root."""
        return torch.cat([network.q(part, branches, self.gamma) for part in obs.split(self.roots_at_once)])

    def update(self, transition: Transition) -> Metrics:
        if not self.walks.full:
            self.walks.add(transition)
            return {}
        self.steps += len(transition.reward)
        self._rollout.append(transition)
        if len(self._rollout) < self.rollout_length:
            return {}
        rollout, self._rollout = self._rollout, []
        for play in self.lessons(rollout):
            metrics = self.learn(play)
        before = self.steps - self.rollout_length * len(transition.reward)
        if self.steps // self.target_update_period > before // self.target_update_period:
            self.target.load_state_dict(self.online.state_dict())
        return {**metrics, "vpn/epsilon": self.epsilon(self.steps)}

    def lessons(self, rollout: list[Transition]) -> Iterator[Sequences]:
        """Yields what to take gradient steps from: parts of the rollout, or of the rollouts kept."""
        num_envs = len(rollout[0].reward)
        if self.rollouts is None:
            play = self.sequences(rollout)
            order = permutation(num_envs, self.rng)
            for part in order.split(self.sequences_per_update):
                yield Sequences(*(x.index_select(int(x.ndim > 1), part) for x in play))
        else:
            self.rollouts.add(rollout)
            for _ in range(-(-num_envs * self.rollouts.repeats // self.sequences_per_update)):
                yield self.sequences(self.rollouts.sample(self.sequences_per_update, self.rng))

    def sequences(self, rollout: list[Transition]) -> Sequences:
        """What T decisions of N envs were worth, [T, N, ...], by the target network's plan where they break off."""
        obs, option, reward, discount, last, next_obs, duration = map(torch.stack, zip(*rollout, strict=True))
        reward = reward.clamp(-self.max_abs_reward, self.max_abs_reward)
        value = self.beyond(next_obs, last & (discount > 0))
        returned = returns.discounted_returns(reward, returns.discounts(self.gamma, discount, duration), last, value)
        reached = torch.where(last, value, torch.cat([returned[1:], value[-1:]])) * (discount > 0)
        end = torch.stack([ended(t) for t in rollout])
        anywhere, valued = torch.ones_like(end), torch.ones_like(reward[0])
        return Sequences(obs, option, reward, duration, end, anywhere, returned, reached, valued, next_obs)

    @torch.no_grad()
    def beyond(self, next_obs: Tensor, truncated: Tensor) -> Tensor:
        """[T, N]: what the last successors are worth, and any where an episode was cut short; elsewhere 0.

        Whether there is any is the one question for which a rollout waits for the device.
        """
        value = torch.zeros(truncated.shape, device=truncated.device)
        with self.precision():
            value[-1] = self.q(self.target, next_obs[-1], self.branches).amax(-1)
            truncated = truncated[:-1]
            if truncated.any():
                value[:-1][truncated] = self.q(self.target, next_obs[:-1][truncated], self.branches).amax(-1)
        return value

    def learn(self, play: Sequences) -> Metrics:
        """One gradient step from B sequences [T, B, ...] and their random walks: the mean over B of the summed loss."""
        count = play.end.shape[1]
        if self.walks.decisions:
            play = joined(play, self.walk(count * self.walks_per_sequence))
        with self.precision():
            terms = self.online.losses(play, self.prediction_steps, self.of_error)
        terms = {name: term.sum() / count for name, term in terms.items()}
        self.rates.scale(self.decay ** (self.steps / 1e6))
        metrics: Metrics = {f"vpn/{name}_loss": term.detach() for name, term in terms.items()}
        metrics["vpn/grad_norm"] = descend(self.optimizer, sum(terms.values(), torch.zeros(())), self.max_grad_norm)
        self.learns += 1
        return metrics

    def walk(self, count: int) -> Sequences:
        """Random walks [T, count, ...] whose values are not known."""
        walk = self.walks.sample(count, self.rollout_length, self.rng, self.walks_cross_ends)
        walk["reward"] = walk["reward"].clamp(-self.max_abs_reward, self.max_abs_reward)
        unknown = torch.zeros_like(walk["reward"])
        return Sequences(**walk, returned=unknown, reached=unknown, valued=unknown[0])

    def precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def view(self, obs: Tensor) -> View:
        """Options that the plan did not look into are shown with the least value of those it did."""
        q = self.q(self.online, obs, self.eval_branches)
        least = q.masked_fill(q.isinf(), math.inf).amin(-1, keepdim=True)
        return View(torch.maximum(q, least), q.amax(-1), "action values")

    @torch.no_grad()
    def plan(self, obs: Tensor) -> tuple[Level, ...] | None:
        """The tree that its greedy action comes from; None for a network that does not look ahead."""
        return self.online.plan(obs, self.eval_branches, self.gamma)


def joined(play: Sequences, walk: Sequences) -> Sequences:
    return Sequences(*(torch.cat([x, y], int(x.ndim > 1)) for x, y in zip(play, walk, strict=True)))
