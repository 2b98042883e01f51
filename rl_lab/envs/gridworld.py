"""Gridworlds drawn as text: '#' wall, 'S' start, '.' floor, and letters that pay and end the episode."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch

from rl_lab.core.errors import UserError
from rl_lab.core.settings import Unit
from rl_lab.mdp import MDP, Layout

MOVES = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}
# Which moves a step may become, as turns clockwise from the one intended, with their share of the noise.
SLIPS = {"sideways": {1: 0.5, 3: 0.5}, "uniform": {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25}}


def gridworld(
    map: str,
    *,
    rewards: Mapping[str, float] | None = None,  # of the letters that end an episode
    living_reward: float = 0.0,
    noise: Unit = 0.0,  # probability that a step slips
    slip: Literal["sideways", "uniform"] = "sideways",
    convention: Literal["transition", "state"] = "transition",
) -> MDP:
    """An MDP of one state a free cell; walls and the rim stop a move.

    The two conventions of Russell and Norvig: `transition` pays a letter on entering it (4th edition); `state` pays
    each cell when it is left, the letters too, into one more state where all ends (3rd edition).
    Raises UserError where the map cannot be a world.
    """
    rewards = {"G": 1.0, "X": -1.0} if rewards is None else dict(rewards)
    rows = _rows(map, rewards)
    cells = [(y, x) for y, row in enumerate(rows) for x, glyph in enumerate(row) if glyph != "#"]
    glyphs = [rows[y][x] for y, x in cells]
    paid = np.array([rewards.get(g, living_reward) for g in glyphs])
    ends = np.array([g in rewards for g in glyphs])

    index = np.full((len(rows) + 2, len(rows[0]) + 2), -1)  # a rim of wall
    ys, xs = np.array(cells).T
    index[ys + 1, xs + 1] = np.arange(len(cells))
    neighbour = np.stack([index[ys + 1 + dy, xs + 1 + dx] for dy, dx in MOVES.values()], axis=1)  # [S, 4]
    neighbour = np.where(neighbour < 0, np.arange(len(cells))[:, None], neighbour)

    turns = {0: 1.0 - noise}
    for turn, share in SLIPS[slip].items():
        turns[turn] = turns.get(turn, 0.0) + noise * share
    directions = (np.arange(4)[:, None] + np.array(list(turns))) % 4  # [A, K]
    next_state = neighbour[:, directions]  # [S, A, K]
    if convention == "transition":
        reward = paid[next_state]
        next_state[ends], reward[ends] = np.flatnonzero(ends)[:, None, None], 0.0
        terminal = ends
    else:
        reward = np.broadcast_to(paid[:, None, None], next_state.shape).copy()
        next_state[ends] = len(cells)
        next_state = np.concatenate([next_state, np.full_like(next_state[:1], len(cells))])
        reward = np.concatenate([reward, np.zeros_like(reward[:1])])
        terminal = np.arange(len(cells) + 1) == len(cells)

    start = np.zeros(len(next_state))
    start[[i for i, g in enumerate(glyphs) if g == "S"]] = 1.0
    layout = Layout(
        tuple(rows), tuple(cells), {c: rewards[g] for c, g in zip(cells, glyphs, strict=True) if g in rewards}
    )
    probability = np.broadcast_to(np.array(list(turns.values())), next_state.shape).copy()
    return MDP(
        torch.from_numpy(next_state), torch.from_numpy(probability), torch.from_numpy(reward),
        torch.from_numpy(terminal), torch.from_numpy(start / start.sum()), tuple(MOVES), layout=layout,
    )  # fmt: skip


def _rows(map: str, rewards: dict[str, float]) -> list[str]:
    rows = map.split()
    if not rows or len({len(row) for row in rows}) > 1:
        raise UserError(f"env.mdp.map: its rows must be of one length, not {sorted({len(r) for r in rows})}")
    if unknown := set("".join(rows)) - set("#S.") - set(rewards):
        raise UserError(f"env.mdp.map: no meaning for {', '.join(sorted(unknown))}; give it one in env.mdp.rewards")
    if "S" not in "".join(rows):
        raise UserError("env.mdp.map: no start cell; mark at least one with S")
    return rows
