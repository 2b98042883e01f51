"""Collect drawn by hand, and the players that know it best: what its tests share."""

import torch
from collect_reference import Board
from stated import stated

from rl_lab.envs.collect.world import Collect, Walkers

Optimal = stated("agent/optimal_collector")

UP, RIGHT, DOWN, LEFT = range(4)
WORLD = {"time_limit": 20, "goal_reward": 2.0, "living_reward": -0.2}
SMALL = {"mazes": 500}  # a quick pool
STOCHASTIC = {"slip": 0.3, "drift": 0.3}


def place(cell: int) -> tuple[int, int] | None:
    """(y, x) on the map, border included, of a cell of the board."""
    return None if cell == 64 else (cell // 8 + 1, cell % 8 + 1)


def cell(y: int, x: int) -> int:
    return 8 * (y - 1) + x - 1


def board_of(env: Collect, walkers: Walkers, i: int) -> Board:
    open, width = int(walkers.open[i]), env.width
    rows = ["#" * env.size, *(f"#{''.join('#.'[open >> 8 * y + x & 1] for x in range(width))}#" for y in range(width))]
    if env.drift:
        goals = [place(c) for c in walkers.places[i].tolist()]
    else:
        goals = [place(c) for c in range(64) if int(walkers.goals[i]) >> c & 1]
    return Board([*rows, rows[0]], place(int(walkers.agent[i])), goals, int(walkers.left[i]))


def walkers_of(env: Collect, *maps: str, left: int = 20) -> Walkers:
    """'#' wall, 'A' agent, 'g' goal, '.' floor; rows apart by blanks, without the border."""
    open, agent, goals = [], [], []
    for text in maps:
        cells = {(y, x): glyph for y, row in enumerate(text.split(), 1) for x, glyph in enumerate(row, 1)}
        masks = [sum(1 << cell(*at) for at, g in cells.items() if g in glyphs) for glyphs in (".Ag", "g")]
        signed = [mask - (mask >> 63 << 64) for mask in masks]
        open, goals = [*open, signed[0]], [*goals, signed[1]]
        agent.append(next(cell(*at) for at, g in cells.items() if g == "A"))
    open, agent, goals = (torch.tensor(x) for x in (open, agent, goals))
    places = [[c for c in range(64) if mask >> c & 1] for mask in goals.tolist()]
    places = torch.tensor([(row + [64] * env.goals)[: env.goals] for row in places])
    zeros = torch.zeros_like(agent)
    return Walkers(open, agent, goals, places if env.drift else places[:, :0], zeros + left, zeros)


def optimal(spec, device, seed, ties="earliest"):
    return Optimal(spec, device, seed, ties=ties, **WORLD)


def any_tie(spec, device, seed):
    return optimal(spec, device, seed, "any")


def drawn(board: Board) -> list[str]:
    things = {goal: "G" for goal in board.goals if goal} | {board.agent: "@"}
    return ["".join(things.get((y, x), glyph) for x, glyph in enumerate(row)) for y, row in enumerate(board.rows)]
