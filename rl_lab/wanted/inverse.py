"""Inverse reinforcement learning in a known world: from demonstrations to a reward that explains them."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rl_lab.core.errors import UserError
from rl_lab.core.settings import NonNegative, Positive, Unit
from rl_lab.envs.tabular.mdp import MDP
from rl_lab.planning.soft import Dynamics, dynamics, soft_plan, visits, within
from rl_lab.wanted.demonstrations import Expert, Found, Walks, features, first_states, left_off
from rl_lab.wanted.imitation import cloned
from rl_lab.wanted.tables import Form, below_one, expected, rewarded


def likelihood(reward: Tensor, world: Dynamics, alpha: float, counts: Tensor) -> Tensor:
    """-sum N(s, a) ln pi(a | s) [], by reward [S, A] and how often each action was taken, counts [S, A].

    It looks at what was chosen, not at where that led: the luck of a slip says nothing of what is wanted.
    """
    plan = soft_plan(reward, world, alpha)
    return -(counts * (plan.q - plan.value[:, None])).sum() / alpha


def dual(reward: Tensor, paid: Tensor, world: Dynamics, alpha: float, start: Tensor, end: Tensor) -> Tensor:
    """(v(start) - what the demonstrations were paid - v(end)) / alpha [], convex in the reward [S, A].

    Its gradient is the features expected of the soft policy less those demonstrated: Ziebart et al. (2008). `paid` [],
    `start` and `end` [S]: see `first_states` and `left_off`.
    """
    value = soft_plan(reward, world, alpha).value
    return ((start - end) @ value - paid) / alpha


def maximum_entropy(
    mdp: MDP,
    expert: Expert,
    *,
    fit: Literal["likelihood", "features"],  # of the actions; or by matching discounted features
    form: Form,  # what the table of rewards is of
    alpha: Positive,  # in units of the reward: how much better an action is that is e times as likely
    gamma: Unit | None,  # None: the world's own, .95 where that is 1
    penalty: NonNegative,  # half of it times the squared rewards
) -> Found:
    """Maximum causal entropy, exact (Ziebart et al., 2008; Ziebart, 2010). Raises UserError."""
    world = dynamics(mdp, _gamma(mdp, gamma))
    walks, states = expert.walks, len(mdp.start)
    counts, demonstrated = walks.counts(mdp), features(walks, world, form)
    start, end = first_states(walks, states), left_off(walks, world)

    def loss(table: Tensor) -> Tensor:
        reward = expected(table, form, world)
        if fit == "likelihood":
            misfit = likelihood(reward, world, alpha, counts)
        else:
            misfit = dual(reward, table @ demonstrated, world, alpha, start, end)
        return misfit + penalty / 2 * table.square().sum()

    table, least = minimised(loss, states)
    plan = soft_plan(expected(table, form, world), world, alpha)
    gap = _entries(visits(world, plan.policy, start - end), plan.policy, world, form) - demonstrated
    metrics = {"wanted/loss": least, "wanted/feature_gap": float(gap.abs().max())}
    return Found(None, rewarded(mdp, table, form), metrics)


def _entries(visited: Tensor, policy: Tensor, world: Dynamics, form: Form) -> Tensor:
    """[S], how often each entry of the table is paid under a policy that visits states as often as `visited` [S]."""
    entered = torch.einsum("s,sa,sat->t", visited, policy, world.probability)
    return {"state": visited, "entered": entered, "change": entered - visited}[form]


def minimised(loss: Callable[[Tensor], Tensor], size: int) -> tuple[Tensor, float]:
    """The table [size] of least loss, found by L-BFGS from zeros; and that loss."""
    from scipy.optimize import minimize

    def both(x: np.ndarray) -> tuple[float, np.ndarray]:
        table = torch.from_numpy(x).requires_grad_()
        value = loss(table)
        (gradient,) = torch.autograd.grad(value, table)
        return float(value.detach()), gradient.numpy()

    found = minimize(both, np.zeros(size), jac=True, method="L-BFGS-B",
                     options={"maxiter": 2_000, "maxfun": 4_000, "ftol": 1e-14, "gtol": 1e-8})  # fmt: skip
    return torch.from_numpy(found.x), float(found.fun)


def linear_programme(
    mdp: MDP,
    expert: Expert,
    *,
    gamma: Unit | None,  # None: the world's own, .95 where that is 1
    penalty: NonNegative,  # on the sum of |R|: the larger, the fewer states pay
) -> Found:
    """Ng and Russell (2000): rewards under which deviating from the expert costs as much as possible. Raises UserError.

    It needs to know what the expert does in every state, and asks. A recording answers only for the states in it:
    elsewhere the expert is taken to act at random, and what is inferred is not reliable.
    """
    world = dynamics(mdp, _gamma(mdp, gamma))
    policy, seen = expert.policy, world.live
    if policy is None:
        counts = expert.walks.counts(mdp)
        policy, seen = cloned(counts), counts.sum(-1) > 0
    table, objective, tied = rationalised(world, policy, seen, penalty)
    if not table.any():
        raise UserError(f"planner.penalty={penalty:g} leaves no reward at all; choose a smaller one")
    reward = rewarded(mdp, table, "entered")._replace(gamma=world.gamma)  # for which the expert's way is the best one
    return Found(None, reward, {"wanted/objective": objective, "wanted/tied_states": tied})


def rationalised(world: Dynamics, policy: Tensor, seen: Tensor, penalty: float) -> tuple[Tensor, float, float]:
    """The R [S] that maximises sum_s min_{a != pi(s)} (P_pi - P_a)(s) (I - gamma P_pi)^-1 R - penalty |R|_1.

    All differences are at least 0 and |R| at most 1; the sum is over states `seen` [S] bool, of `policy` [S, A].
    Returns R, the maximum, and in how many of those states another action is as good: R = 0 satisfies everything.
    """
    from scipy.optimize import linprog

    # R of a state is paid there, so that of a terminal one once: as if each were paid on being entered.
    states, actions = policy.shape
    values = torch.linalg.inv(within(world, policy))  # [S, S]: v = values R
    chosen, rows = policy.argmax(-1), (seen & world.live).nonzero().squeeze(-1)
    others = torch.ones(states, actions, dtype=torch.bool).scatter_(1, chosen[:, None], False)[rows]  # [N, A]
    moves = world.probability[rows]
    lost = ((moves[torch.arange(len(rows)), chosen[rows], None] - moves) @ values)[others]  # [N (A - 1), S]
    which = torch.arange(len(rows))[:, None].expand(-1, actions)[others]
    margin = torch.zeros(len(lost), len(rows), dtype=torch.float64).scatter_(1, which[:, None], 1.0)
    eye, none = np.eye(states), np.zeros
    above = np.block([  # of R, of the least difference in each state, of |R|
        [-lost.numpy(), margin.numpy(), none((len(lost), states))],
        [-lost.numpy(), none(margin.shape), none((len(lost), states))],
        [eye, none((states, len(rows))), -eye],
        [-eye, none((states, len(rows))), -eye],
    ])  # fmt: skip
    cost = np.concatenate([np.zeros(states), -np.ones(len(rows)), np.full(states, penalty)])
    bounds = [(-1, 1)] * states + [(0, None)] * len(rows) + [(0, 1)] * states
    found = linprog(cost, above, np.zeros(len(above)), bounds=bounds, method="highs")
    table = torch.from_numpy(found.x[:states].round(12))
    least = torch.full((len(rows),), torch.inf, dtype=torch.float64)
    least = least.scatter_reduce(0, which, lost @ table, "amin")
    return table, -float(found.fun), float((least < 1e-9).sum())


def _gamma(mdp: MDP, gamma: float | None) -> float:
    found = below_one(mdp, 0.95) if gamma is None else gamma
    if not found:
        raise UserError("with gamma 0 no action has a consequence, and nothing can be inferred; set planner.gamma")
    return found


def check_walks(walks: Walks, mdp: MDP) -> None:
    """Raises UserError where a step leads where none of this world's does: it was recorded in another one."""
    if (highest := int(torch.cat([walks.state, walks.successor]).max())) >= len(mdp.start):
        raise UserError(f"the demonstrations are of another world: they reach state {highest}, and this world has "
                        f"states 0 to {len(mdp.start) - 1}")  # fmt: skip
    led = mdp.next_state[walks.state, walks.action]
    possible = ((led == walks.successor[:, None]) & (mdp.probability[walks.state, walks.action] > 0)).any(-1)
    if not possible.all():
        at = int((~possible).nonzero()[0])
        state, action, led_to = (int(x[at]) for x in (walks.state, walks.action, walks.successor))
        raise UserError(f"the demonstrations are of another world: {mdp.actions[action]} leads from state {state} to "
                        f"{led_to}, and here it cannot")  # fmt: skip
