"""Planners that sweep over all states: Bellman's value iteration in its several orders."""

from collections.abc import Iterator
from itertools import count
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rl_lab.core.errors import UserError
from rl_lab.core.settings import Count, Positive, Unit
from rl_lab.envs.tabular.mdp import MDP
from rl_lab.planning.arrival import arriving
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
)
from rl_lab.planning.policies import concluded, first_values, judged, waited


def value_iteration(
    mdp: MDP,
    *,
    gamma: Unit | None,  # None: the world's own
    epsilon: Positive,
    stop: Rule,  # what is to be within epsilon; see `converged`
    sweep: Literal["synchronous", "in_place", "symmetric"],
    initial: Literal["zero", "pessimistic"],
    max_sweeps: Count,
    check_every: Count,  # sweeps; a check waits for the device
) -> Iterator[Plan]:
    """Sweeps v <- max_a q (Bellman, 1957).

    A synchronous sweep reads the old values throughout, and may run on a GPU. `in_place` (Gauss-Seidel) reads the
    newest, in the order of the states; `symmetric` goes through them forwards and backwards in turn.
    Stopped by the span, the last plan's values are moved to the middle of MacQueen's bounds, within epsilon / 2 of v*.
    Raises UserError where the values do not converge.
    """
    mdp = judged(mdp, gamma)
    sweeps = (
        _synchronous(mdp, _first_values(mdp, initial)) if sweep == "synchronous" else _in_place(mdp, initial, sweep)
    )
    for number, plan in enumerate(sweeps, 1):
        checks = number % check_every == 0 or number == max_sweeps
        if done := (checks and converged(plan, stop, epsilon)) or waited(mdp, number):
            plan = concluded(centred(plan) if stop == "span" else plan)
        elif number == max_sweeps:
            raise UserError(
                f"value iteration has not converged: values change by {plan.residual.max():.3g} after {max_sweeps:,} "
                "sweeps; raise planner.max_sweeps or lower planner.gamma"
            )
        yield plan
        if done:
            return


def _synchronous(mdp: Discounted, v: Tensor) -> Iterator[Plan]:
    q_of = Backup(mdp)
    while True:
        q = q_of(v)
        yield measured(mdp, v, v := q.max(-1).values, q=q)


def _in_place(mdp: Discounted, initial: str, sweep: str) -> Iterator[Plan]:
    from rl_lab.planning.kernels import relax

    tables = _tables(mdp)
    v = _first_values(mdp, initial)
    flat = v.view(-1).numpy()
    for turn in count():
        worst = relax(*tables, flat, 0, len(flat), sweep == "in_place" or turn % 2 == 0)
        yield _bounded(mdp, v.clone(), worst)


def _bounded(mdp: Discounted, v: Tensor, change: float) -> Plan:
    """After a sweep in place that moved no value by more than `change`: it contracts by gamma, as a synchronous one."""
    error = mdp.gamma / (1 - mdp.gamma) * change
    return Plan(mdp, v, torch.full_like(mdp.gamma, change), low=-error, high=error)


def _first_values(mdp: Discounted, initial: str) -> Tensor:
    """v [S]: `first_values`, or what the least of the best expected rewards would sum to without end, 0 at most.

    The latter is never above v*, and no sweep lowers it: values rise to v* from below, and a sweep carries good news
    as far as its order allows. Without discount there is no such start. Raises UserError.
    """
    if initial == "zero":
        return first_values(mdp)
    if (mdp.gamma == 1).any():
        raise UserError("planner.initial=pessimistic needs gamma below 1; choose zero")
    least = Backup(mdp).reward.max(-1).values.min(-1).values.clamp(max=0.0) / (1 - mdp.gamma)
    return torch.where(mdp.terminal, 0.0, least[..., None])


def prioritised_sweeping(
    mdp: MDP,
    *,
    gamma: Unit | None,  # None: the world's own
    epsilon: Positive,  # of every value
    initial: Literal["zero", "pessimistic"],
    block: Count,  # states that are relaxed together
    every: Count,  # sweeps' worth of updates between two plans
    max_sweeps: Count,
) -> Iterator[Plan]:
    """In place, and always where the largest change waits (Moore and Atkeson, 1993), by blocks that fit the cache.

    The last plan's values are within epsilon of v*, since what waits bounds |T v - v|. Raises UserError.
    """
    from rl_lab.planning.kernels import readers, relax_waiting

    mdp = judged(mdp, gamma)
    tables = _tables(mdp)
    v = _first_values(mdp, initial if (mdp.gamma < 1).all() else "zero")
    flat = v.view(-1).numpy()
    states = v.shape[-1]
    size = min(states, max(block, len(flat) // 8_192))
    reads, waiting = readers(tables[0], size), np.full(-(-len(flat) // size), np.inf)
    tolerance = epsilon * (1.0 if far_sighted(mdp) else float((1 - mdp.gamma).min()))
    for number in range(1, max_sweeps + 1):
        relax_waiting(*tables, flat, waiting, reads, size, tolerance, every * len(flat))
        residual = torch.full_like(mdp.gamma, waiting.max())
        error = residual / (1 - mdp.gamma)
        plan = Plan(mdp, v.clone(), residual, low=-error, high=error)
        if waiting.max() <= tolerance or waited(mdp, number * every):
            yield concluded(plan)
            return
        yield plan
    raise UserError(
        f"prioritised sweeping has not converged: values change by {waiting.max():.3g} after {max_sweeps:,} rounds; "
        "raise planner.max_sweeps or lower planner.gamma"
    )


def _tables(mdp: Discounted) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays that the kernels read. Raises UserError on a GPU, where sweeps in place make no sense."""
    from rl_lab.planning.kernels import tables

    if mdp.start.is_cuda:
        raise UserError("sweeps in place run on the CPU only: choose device=cpu, or planner.sweep=synchronous")
    shape = -1, *mdp.next_state.shape[-3:]
    next_state, probability, reward = (x.view(shape).numpy() for x in (mdp.next_state, mdp.probability, mdp.reward))
    return tables(next_state, probability, reward, np.atleast_1d(mdp.gamma.numpy()))


def q_iteration(mdp: MDP, *, gamma: Unit | None, epsilon: Positive, max_sweeps: Count) -> Iterator[Plan]:
    """Sweeps q <- E[r + gamma max_b q(s', b)], until every q is within epsilon of q*. Raises UserError."""
    mdp = judged(mdp, gamma)
    q_of, q = Backup(mdp), first_values(mdp)[..., None].expand(mdp.next_state.shape[:-1])
    for number in range(1, max_sweeps + 1):
        new_q = q_of(q.max(-1).values)
        plan = measured(mdp, q.flatten(-2), new_q.flatten(-2))
        q = new_q
        plan = Plan(mdp, q.max(-1).values, plan.residual, low=plan.low, high=plan.high, q=q)
        if converged(plan, "value", epsilon) or waited(mdp, number):
            yield concluded(plan)
            return
        yield plan
    raise UserError(
        f"Q-iteration has not converged: values change by {plan.residual.max():.3g} after {max_sweeps:,} sweeps; "
        "raise planner.max_sweeps or lower planner.gamma"
    )


def finite_horizon(mdp: MDP, *, horizon: Count, gamma: Unit | None) -> Iterator[Plan]:
    """Backward induction: the plan number k is exact for k steps to go, and its policy is that of its first step."""
    sweeps = _synchronous(discounted(mdp, gamma), torch.zeros_like(mdp.start))
    for left in reversed(range(horizon)):
        plan = next(sweeps)
        plan = Plan(plan.mdp, plan.value, plan.residual, q=plan.q)
        if not left:
            plan.policy = arriving(plan)
        yield plan


def policy_evaluation(
    mdp: MDP,
    *,
    gamma: Unit | None,  # None: the world's own
    policy: Literal["random"] | list,  # or an action a state
    epsilon: Positive,
    stop: Rule,
    sweep: Literal["synchronous", "in_place", "symmetric"],
    max_sweeps: Count,
) -> Iterator[Plan]:
    """The values of a policy, sweep by sweep; each plan's `policy` is the greedy one, its improvement.

    Raises UserError where they do not converge.
    """
    states, actions = mdp.next_state.shape[-3:-1]
    if policy == "random":
        chosen = torch.full((*mdp.start.shape, actions), 1 / actions, dtype=torch.float64, device=mdp.start.device)
    else:
        if len(policy) != states or not all(isinstance(a, int) and 0 <= a < actions for a in policy):
            raise UserError(
                f"planner.policy must be `random`, or one of the actions 0 to {actions - 1} for each of {states} states"
            )
        chosen = torch.tensor(policy, device=mdp.start.device)
    of_policy = value_iteration(
        follow(mdp, chosen),
        gamma=gamma,
        epsilon=epsilon,
        stop=stop,
        sweep=sweep,
        initial="zero",
        max_sweeps=max_sweeps,
        check_every=1,
    )
    world = discounted(mdp, gamma)
    plans = (Plan(world, plan.value, plan.residual, low=plan.low, high=plan.high) for plan in of_policy)
    last = next(plans)
    for plan in plans:
        yield last
        last = plan
    last.policy = arriving(last)
    yield last
