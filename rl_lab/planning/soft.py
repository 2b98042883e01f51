"""Planning with entropy: v = alpha ln sum_a exp(q / alpha); its policy prefers better actions without being certain.

See Ziebart (2010), chapter 9. Shapes: S states, A actions; everything is float64 and dense.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl_lab.core.errors import UserError
from rl_lab.envs.tabular.mdp import MDP

ROUNDS = 200  # of Newton's method, which needs ten where there is a solution


class Dynamics(NamedTuple):
    """Where actions lead, without what they pay."""

    ahead: Tensor  # [S, A, S] gamma p(s' | s, a); zeros in terminal states, beyond which there is nothing
    live: Tensor  # [S] bool, not terminal
    start: Tensor  # [S] the distribution of first states
    gamma: float

    @property
    def probability(self) -> Tensor:
        return self.ahead / self.gamma


class SoftPlan(NamedTuple):
    value: Tensor  # [S], 0 in terminal states
    q: Tensor  # [S, A]
    policy: Tensor  # [S, A] probabilities


def dynamics(mdp: MDP, gamma: float) -> Dynamics:
    ahead = torch.zeros(*mdp.next_state.shape[:2], len(mdp.start), dtype=torch.float64)
    ahead.scatter_add_(-1, mdp.next_state, gamma * mdp.probability.contiguous())
    return Dynamics(ahead * ~mdp.terminal[:, None, None], ~mdp.terminal, mdp.start, gamma)


def soft_plan(reward: Tensor, world: Dynamics, alpha: float) -> SoftPlan:
    """The plan for the expected reward [S, A] of each action. Raises UserError where entropy pays more than ending."""
    value = soft_values(reward, world, alpha)
    q = reward + world.ahead @ value
    return SoftPlan(value, q, (q / alpha).softmax(-1))


def soft_values(reward: Tensor, world: Dynamics, alpha: float) -> Tensor:
    """v [S] of reward [S, A], with a gradient: dv = (I - gamma P_pi)^-1 sum_a pi dr. Raises UserError."""
    v: Tensor = _SoftValues.apply(reward, world, alpha)
    return v


class _SoftValues(torch.autograd.Function):
    """Newton's method on v - T v: evaluate the soft policy with its entropy, and repeat."""

    @staticmethod
    def forward(ctx: Any, reward: Tensor, world: Dynamics, alpha: float) -> Tensor:
        v = torch.zeros_like(world.start)
        for _ in range(ROUNDS):
            log_policy = ((reward + world.ahead @ v) / alpha).log_softmax(-1)
            policy = log_policy.exp()
            earned = (policy * (reward - alpha * log_policy)).sum(-1)  # with alpha times the entropy
            try:
                before, v = v, torch.linalg.solve(within(world, policy), earned * world.live)
            except torch.linalg.LinAlgError:  # gamma is 1, and some state is never left
                break
            if (v - before).abs().max() <= 1e-11 * (1 + v.abs().max()):
                ctx.save_for_backward(policy)
                ctx.world = world
                return v
        raise UserError(f"alpha={alpha:g} is too large for gamma={world.gamma:g}: drawing actions for ever is worth "
                        "more than any end; choose a smaller alpha, or gamma below 1")  # fmt: skip

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (policy,) = ctx.saved_tensors
        visits = torch.linalg.solve(within(ctx.world, policy).T, gradients[0] * ctx.world.live)
        return visits[:, None] * policy, None, None


def within(world: Dynamics, policy: Tensor) -> Tensor:
    """I - gamma P_pi [S, S] of the policy [S, A]."""
    return torch.eye(len(policy), dtype=torch.float64) - torch.einsum("sa,sat->st", policy, world.ahead)


def visits(world: Dynamics, policy: Tensor, start: Tensor | None = None) -> Tensor:
    """d [S] = (I - gamma P_pi)^-T start: how often each state is acted in, discounted; 0 in terminal states."""
    begin = world.start if start is None else start
    d: Tensor = torch.linalg.solve(within(world, policy).T, begin * world.live)
    return d * world.live
