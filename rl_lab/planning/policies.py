"""Planners that evaluate a policy and improve it: Howard's policy iteration and its kin."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rl_lab.core.errors import UserError
from rl_lab.core.settings import Count, Natural, Positive, Unit
from rl_lab.mdp import MDP
from rl_lab.planning.plan import Backup, Plan, Rule, follow, judged, measured, proper_policy, settled


def evaluate_policy(mdp: MDP, policy: Tensor, gamma: float | None = None) -> Tensor:
    """v [S] of a fixed policy, exactly: solves (I - gamma P) v = r by sparse LU, on the CPU.

    `policy` is actions [S] or probabilities [S, A]. Raises UserError where it never ends and gamma is 1.
    """
    from scipy.sparse import csc_array, eye_array
    from scipy.sparse.linalg import splu

    try:
        chain = judged(follow(mdp, policy), gamma)
    except UserError as error:
        raise UserError("gamma=1: the policy to evaluate never ends, so its value may be infinite") from error
    step = Backup(chain)
    going_on = ~chain.terminal.flatten()
    weight = step.weights().where(going_on[:, None], 0.0)  # [S, A K]
    states, successors = weight.shape
    rows = np.repeat(np.arange(states), successors)
    ahead = csc_array((weight.flatten().cpu().numpy(), (rows, step.index.cpu().numpy())), shape=(states, states))
    ahead.eliminate_zeros()
    reward = step.reward.flatten().where(going_on, 0.0)
    v = splu(eye_array(states, format="csc") - ahead).solve(reward.cpu().numpy())
    return torch.from_numpy(v).to(mdp.start.device).view(mdp.start.shape)


def policy_iteration(mdp: MDP, *, gamma: Unit | None = None) -> Iterator[Plan]:
    """Evaluates the policy exactly, improves it where that is strictly better, until it is stable (Howard, 1960).

    A tie keeps the action, so that it cannot cycle. It begins with action 0, or without discount with a policy that
    ends. Raises UserError where gamma is 1 and it pays never to end.
    """
    mdp = judged(mdp, gamma)
    q_of, v, policy = Backup(mdp), torch.zeros_like(mdp.start), _first_policy(mdp)
    while True:
        new_v = evaluate_policy(mdp, policy)
        q = q_of(new_v)
        best = q.max(-1).values
        better = best > q.gather(-1, policy[..., None]).squeeze(-1) + 1e-10 * (1 + new_v.abs())
        plan = measured(mdp, new_v, best)
        policy = torch.where(better, q.argmax(-1), policy)
        yield Plan(mdp, new_v, (new_v - v).abs().max(-1).values, low=torch.zeros_like(plan.high),
                   high=(plan.high + plan.residual).clamp_min(0), q=q, policy=policy)  # fmt: skip
        if not better.any():
            return
        v = new_v


def _first_policy(mdp: MDP) -> Tensor:
    return proper_policy(mdp) if (mdp.gamma == 1).any() else torch.zeros_like(mdp.terminal, dtype=torch.int64)


def modified_policy_iteration(
    mdp: MDP,
    *,
    gamma: Unit | None = None,  # None: the world's own
    evaluation_sweeps: Natural = 20,
    epsilon: Positive = 1e-9,
    stop: Rule = "value",
    max_sweeps: Count = 100_000,  # improvements
) -> Iterator[Plan]:
    """One sweep that improves the policy, then some that only evaluate it (Puterman and Shin, 1978).

    The bounds and rules are those of the improving sweep. Raises UserError where the values do not settle.
    """
    mdp = judged(mdp, gamma)
    q_of, v = Backup(mdp), torch.zeros_like(mdp.start)
    for _ in range(max_sweeps):
        q = q_of(v)
        best, policy = q.max(-1)
        yield (plan := measured(mdp, v, best, q=q, policy=policy))
        if settled(plan, stop, epsilon):
            return
        v, of_policy = best, Backup(follow(mdp, policy)) if evaluation_sweeps else None
        for _ in range(evaluation_sweeps):
            v = of_policy(v).squeeze(-1)
    raise UserError(f"modified policy iteration still moves by {plan.residual.max():.3g} after {max_sweeps:,} "
                    "improvements: give it more (planner.max_sweeps), or a smaller planner.gamma")  # fmt: skip
