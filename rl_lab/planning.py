"""Dynamic programming on a known MDP. A planner yields one Plan for each sweep until it is done."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rl_lab.core.errors import UserError
from rl_lab.core.settings import Positive, Unit
from rl_lab.mdp import MDP
from rl_lab.types import View


class Plan(NamedTuple):
    q: Tensor  # [S, A]
    policy: Tensor  # [S] int64, the action it would take
    residual: Tensor  # [] the largest change of a value in this sweep


def backup(mdp: MDP, v: Tensor, gamma: float) -> Tensor:
    """q(s, a) = E[r + gamma v(s')] [S, A] of v [S], with no value beyond a terminal state."""
    v = v.masked_fill(mdp.terminal, 0.0)
    return (mdp.probability * (mdp.reward + gamma * v[mdp.next_state])).sum(-1)


def value_iteration(mdp: MDP, *, gamma: Unit, tolerance: Positive = 1e-9, max_sweeps: int = 100_000) -> Iterator[Plan]:
    """Sweeps v <- max_a q until no value moves by more than `tolerance` (Bellman, 1957).

    Then v is within tolerance gamma / (1 - gamma) of the optimum. Raises UserError where it does not settle.
    """
    v = torch.zeros_like(mdp.start)
    for _ in range(max_sweeps):
        q = backup(mdp, v, gamma)
        new_v = q.max(-1).values
        residual = (new_v - v).abs().max()
        v = new_v
        yield Plan(q, q.argmax(-1), residual)
        if residual <= tolerance:
            return
    raise UserError(
        f"value_iteration moved by {residual:.3g} after {max_sweeps:,} sweeps; "
        f"planner.gamma={gamma:g} gives this world no finite values"
    )


def policy_iteration(mdp: MDP, *, gamma: Unit) -> Iterator[Plan]:
    """Evaluates the policy exactly, improves it where that is strictly better, until it is stable (Howard, 1960)."""
    states = torch.arange(len(mdp.start), device=mdp.start.device)
    v, policy, stable = torch.zeros_like(mdp.start), torch.zeros_like(states), False
    while not stable:
        new_v = evaluate_policy(mdp, policy, gamma)
        q = backup(mdp, new_v, gamma)
        better = q.max(-1).values > q[states, policy] + 1e-10 * (1 + new_v.abs())  # a tie keeps the action: no cycles
        policy, stable = torch.where(better, q.argmax(-1), policy), not better.any()
        yield Plan(q, policy, (new_v - v).abs().max())
        v = new_v


def evaluate_policy(mdp: MDP, policy: Tensor, gamma: float) -> Tensor:
    """v [S] of a fixed policy, exactly: solves (I - gamma P) v = r. `policy` is actions [S] or probabilities [S, A].

    Raises UserError where it never ends and gamma is 1.
    """
    if policy.dim() == 1:
        policy = torch.nn.functional.one_hot(policy, mdp.next_state.shape[1])
    weight = policy.to(mdp.probability.dtype)[..., None] * mdp.probability  # [S, A, K]
    weight = weight.masked_fill(mdp.terminal[:, None, None], 0.0)
    p = torch.zeros(len(mdp.start), len(mdp.start), dtype=weight.dtype, device=weight.device)
    p.scatter_add_(1, mdp.next_state.flatten(1), weight.flatten(1))
    system = torch.eye(len(p), dtype=p.dtype, device=p.device) - gamma * p * ~mdp.terminal
    v, info = torch.linalg.solve_ex(system, (weight * mdp.reward).sum((-1, -2)))
    if info or not v.isfinite().all() or v.abs().max() > 1e12:
        raise UserError(
            f"gamma={gamma:g}: the policy to evaluate never ends, so its value is infinite; "
            "lower planner.gamma or use value_iteration"
        )
    return v


class Planned:
    """A plan as a player: it reads the state from a one-hot observation and acts on q [S, A]."""

    def __init__(self, q: Tensor, policy: Tensor):
        self.q, self.policy = q, policy

    def act(self, obs: Tensor, greedy: bool = True) -> Tensor:
        return self.policy[obs.argmax(-1)]

    def view(self, obs: Tensor) -> View:
        q = self.q[obs.argmax(-1)]
        return View(q, q.max(-1).values, "action values")

    def state_dict(self) -> dict:
        return {"q": self.q, "policy": self.policy}

    def load_state_dict(self, state: dict) -> None:
        self.q, self.policy = state["q"], state["policy"]
