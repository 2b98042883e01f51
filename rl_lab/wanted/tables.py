"""Rewards as tables of states, and how alike two of them are."""

from typing import Literal

import torch
from torch import Tensor

from rl_lab.envs.tabular.mdp import MDP
from rl_lab.planning import Plan, policy_iteration
from rl_lab.planning.soft import Dynamics, dynamics, within

Form = Literal["state", "entered", "change"]
FAR = 0.99  # the gamma of plans where the world's is 1: what was learned may pay for never ending


def rewarded(mdp: MDP, table: Tensor, form: Form) -> MDP:
    """The world as it would be if it paid by the table [S]; a step out of a terminal state pays 0.

    state: r(s), on leaving s. entered: r(s'). change: r(s') - r(s).
    """
    here, there = table[:, None, None].expand(mdp.next_state.shape), table[mdp.next_state]
    reward = {"state": here, "entered": there, "change": there - here}[form]
    return mdp._replace(reward=reward.masked_fill(mdp.terminal[:, None, None], 0.0))


def expected(table: Tensor, form: Form, world: Dynamics) -> Tensor:
    """[S, A], what each action pays on average by the table [S]."""
    here = table[:, None].expand(world.ahead.shape[:2])
    if form == "state":
        return here * world.live[:, None]
    there = world.probability @ table
    return there if form == "entered" else there - here * world.live[:, None]


def paid(mdp: MDP) -> Tensor:
    """[S, A], what each action pays on average."""
    return (mdp.probability * mdp.reward).sum(-1)


def as_table(mdp: MDP, form: Form) -> Tensor:
    """The world's own reward as a table [S] of that form, where it is one; else the means of what it pays there."""
    if form == "state":
        return paid(mdp).mean(-1)
    live = mdp.probability * ~mdp.terminal[:, None, None]
    places, empty = mdp.next_state.flatten(), torch.zeros_like(mdp.start)
    total, often = (empty.index_add(0, places, x.flatten()) for x in (live * mdp.reward, live))
    return total / often.clamp(min=1e-12)


def exact_plan(mdp: MDP) -> Plan:
    """The best policy by the rewards of this world, which may be learned ones."""
    *_, plan = policy_iteration(mdp, gamma=below_one(mdp, FAR))
    return plan


def below_one(mdp: MDP, instead: float) -> float:
    """The world's gamma, or `instead` where that is 1."""
    own = float(mdp.gamma)
    return instead if own == 1 else own


def starc(one: MDP, other: MDP) -> float:
    """The distance of two rewards of one world, in [0, 1]; 0 under positive scale and under shaping that ends at 0.

    By the world's own gamma, or .95 where that is 1.

    Half the distance of the advantages of the uniformly random policy over live states, each divided by its norm, by
    Skalse et al. (2023; https://arxiv.org/abs/2309.15257).
    """
    a, b = (_advantages(mdp) for mdp in (one, other))
    return float((a - b).norm() / 2)


def _advantages(mdp: MDP) -> Tensor:
    """[S, A] of the random policy, of norm 1; zeros where all actions are worth the same."""
    world = dynamics(mdp, below_one(mdp, 0.95))
    reward = paid(mdp) * world.live[:, None]
    even = torch.full_like(reward, 1 / reward.shape[-1])
    v = torch.linalg.solve(within(world, even), reward.mean(-1))
    advantage = (reward + world.ahead @ v - v[:, None]) * world.live[:, None]
    norm = advantage.norm()
    return advantage / norm if norm > 1e-12 * (1 + v.abs().max()) else torch.zeros_like(advantage)
