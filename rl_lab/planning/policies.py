"""Planners that evaluate and improve a policy: Howard's policy iteration and its kin; and how every planner ends."""

from collections.abc import Iterator
from itertools import count

import numpy as np
import torch
from torch import Tensor

from rl_lab.core.errors import UserError
from rl_lab.core.settings import Count, Natural, Positive, Unit
from rl_lab.envs.tabular.mdp import MDP
from rl_lab.planning.arrival import Graph, arriving
from rl_lab.planning.evaluation import values
from rl_lab.planning.plan import (
    Backup,
    Discounted,
    Plan,
    Rule,
    centred,
    converged,
    discounted,
    far_sighted,
    follow,
    measured,
    tie,
)

PATIENCE = 1_000  # sweeps at least, and as many as there are states, before policy iteration takes over


def judged(mdp: MDP, gamma: float | None = None) -> Discounted:
    """The MDP with gamma as a float64 tensor. Raises UserError where gamma is 1 and some v* infinite."""
    mdp = discounted(mdp, gamma)
    if (mdp.gamma == 1).any():
        settling_policy(mdp)
        _check_bounded(mdp)
    return mdp


def settling_policy(mdp: Discounted) -> Tensor:
    """Actions [S] that rest for ever where that costs and pays nothing, and elsewhere lead to rest or to an end, fast.

    Their value is at most v*, and 0 where one can rest: from there policies and sweeps only rise to v*.
    Where gamma is not next to 1, action 0. Raises UserError that names a state from which there is neither rest nor end
    without discount.
    """
    graph = Graph(mdp)
    everything = np.ones(graph.reward.shape, bool)
    rest = graph.resting(everything)
    resting = rest.any(-1)
    settles, nearer = graph.surely(everything, resting | ~graph.far)
    if (stuck := ~settles & graph.endless).any():
        state = int(np.flatnonzero(stuck)[0]) % mdp.start.shape[-1]
        raise UserError(
            f"gamma=1 needs an end that every state can reach, and state {state} reaches none: "
            "its value may be infinite; choose a gamma below 1"
        )
    policy = np.where(resting, rest.argmax(-1), np.where(graph.far & settles, nearer, 0))
    return torch.from_numpy(policy).to(mdp.start.device).view(mdp.start.shape)


def _check_bounded(mdp: Discounted) -> None:
    """Raises UserError where it would pay, without discount, never to end."""
    graph = Graph(mdp)
    stays, component = graph.staying(graph.endless[:, None] & np.ones(graph.reward.shape, bool))
    if not stays.any():
        return
    least, most = np.full(len(component), np.inf), np.full(len(component), -np.inf)
    inside = np.broadcast_to(component[:, None], stays.shape)[stays]
    np.minimum.at(least, inside, graph.reward[stays])
    np.maximum.at(most, inside, graph.reward[stays])
    if ((least >= 0) & (most > 0)).any():
        raise _infinite(((least >= 0) & (most > 0))[component] & stays.any(-1), mdp)
    if ((least < 0) & (most > 0)).any():
        for _ in improvements(mdp, settling_policy(mdp)):
            pass


def _infinite(states: np.ndarray, mdp: Discounted) -> UserError:
    state = int(np.flatnonzero(states)[0]) % mdp.start.shape[-1]
    return UserError(
        f"gamma=1: in state {state} it pays never to end, so its value is infinite; choose a gamma below 1"
    )


def first_values(mdp: Discounted) -> Tensor:
    """v [S] from which sweeps converge to v*: zeros, unless gamma is 1, one may rest and rewards have both signs.

    There zeros may settle above v*: who waits for ever beside a reward that is paid for later would count it.
    """
    graph = Graph(mdp)
    if graph.endless.any() and (graph.reward[graph.endless] > 0).any() and (graph.reward[graph.endless] < 0).any():
        stays, _ = graph.staying(graph.endless[:, None] & np.ones(graph.reward.shape, bool))
        if (graph.reward[stays] >= 0).any():
            return values(mdp, settling_policy(mdp))
    return torch.zeros_like(mdp.start)


def policy_iteration(mdp: MDP, *, gamma: Unit | None) -> Iterator[Plan]:
    """Evaluates the policy exactly, improves it where that is strictly better, until it is stable (Howard, 1960).

    A tie keeps the action, so that it cannot cycle. It begins with action 0, or for a gamma next to 1 with a policy
    that ends or rests. Raises UserError where gamma is 1 and it pays never to end.
    """
    mdp = judged(mdp, gamma)
    yield from improvements(mdp, settling_policy(mdp))


def improvements(mdp: Discounted, policy: Tensor) -> Iterator[Plan]:
    """Policy iteration from a policy on; for a gamma next to 1, one worth 0 or more where one can rest."""
    q_of, v = Backup(mdp), torch.zeros_like(mdp.start)
    rises: Tensor | bool = True
    for number in count():
        new_v = values(mdp, policy)
        if not new_v.isfinite().all():
            raise _infinite((~new_v.isfinite()).flatten().cpu().numpy(), mdp)
        if number:
            rises = (new_v > v + 1e-13 * (1 + v.abs())).any()
        q = q_of(new_v)
        best = q.max(-1).values
        better = rises & (best > q.gather(-1, policy[..., None]).squeeze(-1) + tie(mdp)[..., None] * (1 + new_v.abs()))
        plan = measured(mdp, new_v, best)
        policy = torch.where(better, q.argmax(-1), policy)
        plan = Plan(
            mdp,
            new_v,
            (new_v - v).abs().max(-1).values,
            low=torch.zeros_like(plan.high),
            high=(plan.high + plan.residual).clamp_min(0),
            q=q,
            policy=policy,
        )
        if not better.any():
            yield _proven(plan)
            return
        yield plan
        v = new_v


def _proven(plan: Plan) -> Plan:
    """The plan with the policy that the rule chooses, if that is worth as much."""
    policy = arriving(plan)
    if (policy != plan.policy).any():
        worth = values(plan.mdp, policy)
        if (worth >= plan.value - 1e-9 * (1 + plan.value.abs())).all():
            plan.policy = policy
    return plan


def concluded(plan: Plan) -> Plan:
    """A planner's last plan, its policy by the rule; for a far-sighted gamma proven, or improved until it is."""
    policy = arriving(plan)
    if far_sighted(plan.mdp):
        return optimal(plan.mdp, policy)
    plan.policy = policy
    return plan


def optimal(mdp: Discounted, policy: Tensor) -> Plan:
    """The exact plan, by policy iteration from a policy that is already good."""
    resting = may_rest(mdp)
    v = values(mdp, policy)
    if not (v.isfinite() & ((v >= -1e-9) | ~resting)).all():
        policy = settling_policy(mdp)
    *_, plan = improvements(mdp, policy)
    return plan


def may_rest(mdp: Discounted) -> Tensor:
    """Where [S] bool one can stay for ever without discount, and neither pay nor be paid."""
    graph = Graph(mdp)
    rest = graph.resting(np.ones(graph.reward.shape, bool)).any(-1)
    return torch.from_numpy(rest).to(mdp.start.device).view(mdp.start.shape)


def waited(mdp: Discounted, sweeps: int) -> bool:
    """Whether there have been enough sweeps to leave the rest to `concluded`."""
    return far_sighted(mdp) and sweeps >= max(PATIENCE, mdp.start.shape[-1])


def modified_policy_iteration(
    mdp: MDP,
    *,
    gamma: Unit | None,  # None: the world's own
    evaluation_sweeps: Natural,
    epsilon: Positive,
    stop: Rule,
    max_sweeps: Count,  # improvements
) -> Iterator[Plan]:
    """One sweep that improves the policy, then some that only evaluate it (Puterman and Shin, 1978).

    The bounds and rules are those of the improving sweep. Stopped by the span, the last plan's values are moved to the
    middle of the bounds, within epsilon / 2 of v*. Raises UserError where the values do not converge.
    """
    mdp = judged(mdp, gamma)
    q_of, v = Backup(mdp), first_values(mdp)
    for number in range(1, max_sweeps + 1):
        q = q_of(v)
        best, policy = q.max(-1)
        plan = measured(mdp, v, best, q=q, policy=policy)
        if converged(plan, stop, epsilon) or waited(mdp, number * (1 + evaluation_sweeps)):
            yield concluded(centred(plan) if stop == "span" else plan)
            return
        yield plan
        v = best
        if evaluation_sweeps:
            of_policy = Backup(follow(mdp, policy))
            for _ in range(evaluation_sweeps):
                v = of_policy(v).squeeze(-1)
    raise UserError(
        f"modified policy iteration has not converged: values change by {plan.residual.max():.3g} after {max_sweeps:,} "
        "improvements; raise planner.max_sweeps or lower planner.gamma"
    )
