"""Inverse reward design: a written reward is evidence of what was meant, in the world it was written for.

See Hadfield-Menell et al. (2017; https://arxiv.org/abs/1711.02827). Rewards are linear, w . phi, and phi counts the
letters of a map that are entered, discounted. W hypotheses, L letters, S states, A actions.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl_lab.core.errors import UserError
from rl_lab.core.settings import Count, NonNegative
from rl_lab.envs.tabular.mdp import MDP
from rl_lab.planning.soft import Dynamics, dynamics, visits

MOST = 1_000_000  # hypotheses


class Belief(NamedTuple):
    """What is believed about the true weights after seeing the proxy."""

    weights: Tensor  # [W, L]
    behaviour: Tensor  # [W, L] phi~: the features of the best policy for each, in the training world
    log_posterior: Tensor  # [W]
    proxy: Tensor  # [L] phi~ of the proxy

    @property
    def posterior(self) -> Tensor:
        return self.log_posterior.exp()


class Design(NamedTuple):
    """How to act in another world."""

    policy: Tensor  # [S, A] probabilities
    belief: Belief
    metrics: dict[str, float]


def letter_features(mdp: MDP, letters: Sequence[str], floor: str) -> Tensor:
    """phi [S, A, L]: the chance to enter a cell of each letter; S and . are floor, and count as that letter.

    Raises UserError where the world has no map.
    """
    if mdp.layout is None:
        raise UserError("planner=reward_design reads features off a map, and this world has none; use env=lavaland")
    rows = mdp.layout.rows
    at = [floor if rows[y][x] in "S." else rows[y][x] for y, x in mdp.layout.cells]
    if strange := sorted({*at} - {*letters}):
        raise UserError(f"planner.proxy gives {strange[0]} no weight, and the map shows it; add {strange[0]}: 0")
    table = torch.zeros(len(mdp.start), len(letters), dtype=torch.float64)
    table[range(len(at)), [letters.index(glyph) for glyph in at]] = 1.0
    entered: Tensor = (mdp.probability[..., None] * table[mdp.next_state]).sum(-2)
    return entered * ~mdp.terminal[:, None, None]


def hypotheses(values: Sequence[float], letters: int) -> Tensor:
    """[W, L]: every choice of a value for each letter, once. Raises UserError where there are too many."""
    values = [*dict.fromkeys(map(float, values))]
    if len(values) ** letters > MOST:
        raise UserError(f"planner.weights: {len(values)} values of {letters} letters make {len(values)**letters:,} "
                        f"hypotheses, and {MOST:,} are the most; give fewer values")  # fmt: skip
    return torch.tensor([*product(values, repeat=letters)], dtype=torch.float64)


def best_policies(phi: Tensor, weights: Tensor, world: Dynamics) -> Tensor:
    """[W, S, A]: for each w the uniform choice among its best actions, by policy iteration of all at once."""
    reward = torch.einsum("sal,wl->wsa", phi, weights)
    eye, v = torch.eye(len(world.start), dtype=torch.float64), torch.zeros(len(weights), len(world.start)).double()
    policy, moving = torch.zeros_like(reward), torch.arange(len(weights))
    while len(moving):
        q = reward[moving] + torch.einsum("sat,wt->wsa", world.ahead, v[moving])
        best = (q >= q.max(-1, keepdim=True).values - 1e-9 * (1 + q.abs().max())).double()
        policy[moving] = chosen = best / best.sum(-1, keepdim=True)
        chain = eye - torch.einsum("wsa,sat->wst", chosen, world.ahead)
        after = torch.linalg.solve(chain, (chosen * reward[moving]).sum(-1))
        change = (after - v[moving]).abs().max(-1).values
        v[moving] = after
        moving = moving[change > 1e-10 * (1 + after.abs().max())]
    return policy


def behaviours(phi: Tensor, weights: Tensor, world: Dynamics) -> Tensor:
    """phi~ [W, L]: the discounted features of the best policy for each w, from the start."""
    parts = []
    for some in weights.split(2_048):
        policy = best_policies(phi, some, world)
        chain = torch.eye(len(world.start), dtype=torch.float64) - torch.einsum("wsa,sat->wst", policy, world.ahead)
        start = (world.start * world.live).expand(len(some), -1)
        visited = torch.linalg.solve(chain.transpose(1, 2), start)
        parts.append(torch.einsum("ws,wsa,sal->wl", visited * world.live, policy, phi))
    return torch.cat(parts)


def log_normalisers(weights: Tensor, behaviour: Tensor, beta: float) -> Tensor:
    """ln Z(w) [W], Z(w) = sum over proxies w' of exp(beta w . phi~(w')): what else could have been written."""
    different, times = distinct(behaviour)
    return (beta * weights @ different.T + times.log()).logsumexp(-1)


def distinct(behaviour: Tensor) -> tuple[Tensor, Tensor]:
    """The behaviours [N, L] that differ by more than rounding, and how many hypotheses [N] have each."""
    different, times = behaviour.round(decimals=7).unique(dim=0, return_counts=True)
    return different, times


def believe(weights: Tensor, behaviour: Tensor, proxy: Tensor, beta: float) -> Belief:
    """ln P(w | proxy) [W] = beta w . phi~(proxy) - ln Z(w) - const, with a uniform prior. `proxy` [L] is in W.

    Raises UserError where it is not.
    """
    same = (weights - proxy).abs().max(-1).values < 1e-9
    if not same.any():
        raise UserError(f"planner.proxy={proxy.tolist()} is none of the hypotheses: add its values to planner.weights")
    (shown,) = behaviour[same]
    score = beta * weights @ shown - log_normalisers(weights, behaviour, beta)
    return Belief(weights, behaviour, score.log_softmax(-1), shown)


def maximin(phi: Tensor, weights: Tensor, base: Tensor, world: Dynamics) -> tuple[Tensor, float]:
    """The policy [S, A] of the greatest min_i (w_i . phi(pi) - b_i), and that; weights [M, L], base [M].

    One linear programme over occupancies mu(s, a) >= 0 whose flow is conserved. It may draw its actions.
    """
    from scipy.optimize import linprog

    states, actions, _ = phi.shape
    pays = torch.einsum("sal,ml->msa", phi, weights).flatten(1).numpy()  # [M, S A]
    leaving = np.repeat(np.eye(states), actions, 1)  # [S, S A]
    flow = leaving - world.ahead.flatten(0, 1).T.numpy()
    going = world.live.numpy()
    flow, begin = flow[going], world.start.numpy()[going]
    found = linprog(
        np.append(np.zeros(states * actions), -1.0),
        np.hstack([-pays, np.ones((len(pays), 1))]),
        -base.numpy(),
        np.hstack([flow, np.zeros((len(flow), 1))]),
        begin,
        bounds=[(0, None)] * (states * actions) + [(None, None)],
        method="highs",
    )
    occupancy = torch.from_numpy(found.x[:-1]).view(states, actions).clamp(min=0)
    total = occupancy.sum(-1, keepdim=True)
    return torch.where(total > 1e-9, occupancy / total.clamp(min=1e-9), 1 / actions), float(found.x[-1])


def reward_design(
    mdp: MDP,
    seed: int,
    *,
    training: MDP,  # the world that the reward was written for
    proxy: Mapping[str, float],  # that reward: weights by letter
    floor: str,  # the letter that S and . count as
    weights: Sequence[float],  # that a letter may truly have
    beta: NonNegative,  # how well the designer chose, in 1 / value
    plan: Literal["maximin", "mean", "literal"],
    samples: Count,  # of the posterior, for maximin
    base: Literal["training", "none"],  # what maximin measures from: the worth of what was done in training
) -> Design:
    """Plans in `mdp` for what may have been meant by a reward that was written for `training`. Raises UserError."""
    letters = [str(letter) for letter in proxy]
    if float(training.gamma) == 1 or float(mdp.gamma) != float(training.gamma):
        raise UserError("planner=reward_design needs one gamma below 1 in both worlds; set env.mdp.gamma")
    home, away = (dynamics(world, float(world.gamma)) for world in (training, mdp))
    choices = hypotheses(weights, len(letters))
    told = torch.tensor([float(proxy[letter]) for letter in proxy], dtype=torch.float64)
    belief = believe(choices, behaviours(letter_features(training, letters, floor), choices, home), told, beta)
    phi = letter_features(mdp, letters, floor)
    metrics = {"wanted/behaviours": float(len(distinct(belief.behaviour)[0]))}
    if plan == "maximin":
        rng = torch.Generator().manual_seed(seed)
        drawn = choices[torch.multinomial(belief.posterior, samples, replacement=True, generator=rng)]
        measured = drawn @ belief.proxy if base == "training" else torch.zeros(samples, dtype=torch.float64)
        policy, worst = maximin(phi, drawn, measured, away)
        metrics["wanted/worst_case"] = worst
    else:
        policy = best_policies(phi, (told if plan == "literal" else belief.posterior @ choices)[None], away)[0]
    return Design(policy, belief, metrics)


def entered(policy: Tensor, phi: Tensor, world: Dynamics) -> Tensor:
    """[L], the discounted features of a policy [S, A]."""
    return torch.einsum("s,sa,sal->l", visits(world, policy), policy, phi)
