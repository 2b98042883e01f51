"""What all planners share: the backup, what a sweep proves, and when that is enough.

Shapes are those of one MDP; a batch of them (`mdp.stack`) has a leading dimension B everywhere, [B, S, A].
"""

from functools import cached_property
from typing import Literal, TypeVar

import torch
from torch import Tensor

from rl_lab.envs.tabular.mdp import MDP

Rule = Literal["value", "policy", "span", "residual"]
World = TypeVar("World", bound=MDP)


class Discounted(MDP):
    """An MDP whose gamma is a float64 tensor, [] or [B]: what planners work on."""

    gamma: Tensor


class Backup:
    """q(s, a) = E[r + gamma v(s')] [S, A] of v [S] that is 0 in terminal states; indices alone, never S x S."""

    def __init__(self, mdp: Discounted):
        *batch, states, _, _ = mdp.next_state.shape
        self.shape = mdp.next_state.shape
        self.probability, self.gamma = mdp.probability, mdp.gamma[..., None, None]
        self.reward = (mdp.probability * mdp.reward).sum(-1)  # [S, A], the expected one
        offset = states * torch.arange(batch[0], device=mdp.start.device)[:, None, None, None] if batch else 0
        self.index = (mdp.next_state + offset).flatten()

    def __call__(self, v: Tensor) -> Tensor:
        successor = v.flatten().index_select(0, self.index).view(self.shape)
        return self.reward + self.gamma * (self.probability * successor).sum(-1)

    def weights(self) -> Tensor:
        """gamma p, one row for each state and action: [S A, K], or [B S A, K]."""
        return (self.gamma[..., None] * self.probability).flatten(end_dim=-2)


def backup(mdp: MDP, v: Tensor) -> Tensor:
    """q(s, a) = E[r + gamma v(s')] [S, A] of v [S], with no value beyond a terminal state."""
    return Backup(discounted(mdp))(v.masked_fill(mdp.terminal, 0.0))


class Plan:
    """What is known after a sweep.

    value [S], and `low` and `high` [] such that value + low <= v* <= value + high in every state that is not terminal
    (infinite where nothing is known); `residual` [] is the largest change of a value. What follows from the values,
    `q` [S, A] and the greedy `policy` [S], is computed on demand.
    """

    def __init__(
        self,
        mdp: Discounted,
        value: Tensor,
        residual: Tensor,
        *,
        low: Tensor | None = None,
        high: Tensor | None = None,
        q: Tensor | None = None,
        policy: Tensor | None = None,
    ):
        self.mdp, self.value, self.residual = mdp, value, residual
        self.low = torch.full_like(residual, -torch.inf) if low is None else low
        self.high = torch.full_like(residual, torch.inf) if high is None else high
        if q is not None:
            self.q = q
        if policy is not None:
            self.policy = policy

    @cached_property
    def q(self) -> Tensor:
        return backup(self.mdp, self.value)

    @cached_property
    def policy(self) -> Tensor:
        return self.q.argmax(-1)


def discounted(mdp: MDP, gamma: float | None = None) -> Discounted:
    """The MDP with gamma as a tensor: its own gamma, or the one given."""
    given = torch.as_tensor(mdp.gamma if gamma is None else gamma, dtype=torch.float64, device=mdp.start.device)
    return Discounted(*mdp._replace(gamma=given.expand(mdp.start.shape[:-1])))


FAR = 1 - 1e-4  # a gamma above it is so near 1 that what a sweep moves says little of how far its values are off


def tie(mdp: Discounted) -> Tensor:
    """[], by how much of 1 + |q| two action values may differ and count as the same: less than what a step costs."""
    return torch.where(mdp.gamma < 1, ((1 - mdp.gamma) / 100).clamp(1e-14, 1e-10), 1e-10)


def far_sighted(mdp: Discounted) -> bool:
    return bool((mdp.gamma > FAR).any())


def follow(mdp: World, policy: Tensor) -> World:
    """The world in which a policy makes all choices: one action. `policy` is actions [S] or probabilities [S, A].

    Planning in it means evaluating the policy.
    """
    if policy.dtype == torch.int64:
        taken = policy[..., None, None].expand(*policy.shape, 1, mdp.next_state.shape[-1])
        next_state, probability, reward = (x.gather(-2, taken) for x in (mdp.next_state, mdp.probability, mdp.reward))
        return mdp._replace(next_state=next_state, probability=probability, reward=reward, actions=("follow",))
    chosen = policy.to(mdp.probability.dtype)[..., None] * mdp.probability

    def merged(x: Tensor) -> Tensor:  # [S, A, K] -> [S, 1, A K]
        return x.flatten(-2)[..., None, :]

    return mdp._replace(
        next_state=merged(mdp.next_state), probability=merged(chosen), reward=merged(mdp.reward), actions=("follow",)
    )


def measured(mdp: Discounted, before: Tensor, after: Tensor, **known: Tensor) -> Plan:
    """A plan with MacQueen's bounds (1966), from a sweep that took v `before` to T v `after`."""
    change = after - before
    if (reach := mdp.gamma / (1 - mdp.gamma)).isfinite().all():
        known |= {"low": reach * change.min(-1).values, "high": reach * change.max(-1).values}
    return Plan(mdp, after, change.abs().max(-1).values, **known)


def converged(plan: Plan, rule: Rule, epsilon: float) -> bool:
    """Whether a full sweep that ended in this plan shows enough (Puterman, 1994, sections 6.3 and 6.6).

    value:    |v - v*| < epsilon; the greedy policy then loses less than 2 epsilon gamma / (1 - gamma)
    policy:   the greedy policy loses less than epsilon, and |v - v*| < epsilon / 2
    span:     the greedy policy loses less than epsilon; v itself may be far off by a constant
    residual: nothing moved by more than epsilon; the only rule for a far-sighted gamma, where it promises nothing
    """
    gamma = plan.mdp.gamma
    width = (1 - gamma) / gamma  # of one residual in terms of the error
    if rule == "residual" or far_sighted(plan.mdp):
        done = plan.residual <= epsilon
    elif rule == "span":
        done = plan.high - plan.low < epsilon
    else:
        done = plan.residual < epsilon * (width if rule == "value" else width / 2)
    return bool(done.all())


def centred(plan: Plan) -> Plan:
    """The plan with its values in the middle of MacQueen's bounds, if there are any: within half their width of v*."""
    if not (plan.low.isfinite() & plan.high.isfinite()).all():
        return plan
    shift = (plan.low + plan.high) / 2
    value = torch.where(plan.mdp.terminal, 0.0, plan.value + shift[..., None])
    return Plan(plan.mdp, value, plan.residual, low=plan.low - shift, high=plan.high - shift, policy=plan.policy)
