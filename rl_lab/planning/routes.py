"""Ways through mazes from goal to goal, compiled by numba: the nearest goal first, or the order that pays most.

A batch is walls [N, H, W] bool within a closed border, agent [N] and goals [N, H, W] bool; cell y W + x is numbered
so. Moves are up, right, down, left, as anywhere. Chances [N, 4] are those of the first move.
"""

import numpy as np
from numba import njit
from numpy import ndarray

FAR = 1 << 20  # moves: of what cannot be reached
MOST_GOALS = 16


@njit(cache=True)
def nearest(walls: ndarray, agent: ndarray, goals: ndarray) -> ndarray:
    """Chances [N, 4] of the moves that lead to the nearest goal; goals, then moves, share alike where several do."""
    chance = np.zeros((len(walls), 4))
    for i in range(len(walls)):
        wall = walls[i].ravel()
        ways = _distances(wall, walls.shape[2], np.flatnonzero(goals[i]))
        here = ways[:, agent[i]]
        for way in ways[here == here.min()]:
            _share(chance[i], wall, way, agent[i], walls.shape[2])
    return chance


@njit(cache=True)
def best_order(
    walls: ndarray,
    agent: ndarray,
    goals: ndarray,
    left: ndarray,  # [N] int64, moves before the time is up
    goal_reward: float,  # of a move that takes a goal; any other pays living_reward, at most 0
    living_reward: float,
    earliest: bool,  # of the sets of goals that pay most only those collected first; else any of them
) -> tuple[ndarray, ndarray]:
    """Chances [N, 4] of the first moves of best routes, and what is collected by these, [N].

    Exact where nothing moves but the agent: a dynamic programme over all sets of goals, of moves between them as
    breadth-first search counts them. An episode ends with its last goal, or when no moves are left.
    """
    chance, value = np.zeros((len(walls), 4)), np.empty(len(walls))
    for i in range(len(walls)):
        wall, width = walls[i].ravel(), walls.shape[2]
        places = np.flatnonzero(goals[i])
        ways = _distances(wall, width, places)
        rest = _tours(ways[:, places])
        sets = 1 << len(places)
        pay, tour = np.full(sets, -np.inf), np.empty(sets, np.int64)
        for chosen in range(sets):
            tour[chosen] = _tour(chosen, ways[:, agent[i]], rest)
            if tour[chosen] <= left[i]:
                count = _count(chosen)
                moves = tour[chosen] if chosen == sets - 1 else left[i]
                pay[chosen] = goal_reward * count + living_reward * (moves - count)
        value[i] = pay.max()
        wanted = pay >= value[i] - 1e-9
        if earliest:
            wanted &= tour == tour[wanted].min()
        for best in np.flatnonzero(wanted):
            way = np.empty(len(wall), np.int64)
            for cell in _around(agent[i], width):
                way[cell] = _tour(best, ways[:, cell], rest)
            way[agent[i]] = tour[best] if best else 1  # with nothing to collect any move will do
            _share(chance[i], wall, way, agent[i], width)
    return chance, value


@njit(cache=True)
def _around(cell, width):
    return np.array([cell - width, cell + 1, cell + width, cell - 1])


@njit(cache=True)
def _share(chance, wall, way, cell, width):
    """Adds equal chances, one in sum, for the moves after which one move less is to go."""
    leads = np.zeros(4)
    for move, there in enumerate(_around(cell, width)):
        leads[move] = not wall[there] and way[there] == way[cell] - 1
    chance += leads / max(1.0, leads.sum())


@njit(cache=True)
def _distances(wall, width, goals):
    """[G, H * W] moves from each cell to each goal."""
    ways = np.full((len(goals), len(wall)), FAR)
    queue = np.empty(len(wall), np.int64)
    for i, goal in enumerate(goals):
        way = ways[i]
        way[goal], queue[0] = 0, goal
        head, tail = 0, 1
        while head < tail:
            cell = queue[head]
            head += 1
            for there in (cell - width, cell + 1, cell + width, cell - 1):
                if not wall[there] and way[there] == FAR:
                    way[there] = way[cell] + 1
                    queue[tail] = there
                    tail += 1
    return ways


@njit(cache=True)
def _tours(apart):
    """[2^G, G] the fewest moves that visit a set of goals from a goal outside it (Held and Karp, 1962)."""
    goals = len(apart)
    rest = np.zeros((1 << goals, goals), np.int64)
    for chosen in range(1, 1 << goals):
        for start in range(goals):
            rest[chosen, start] = _tour(chosen, apart[:, start], rest)
    return rest


@njit(cache=True)
def _tour(chosen, way, rest):
    """The fewest moves that visit a set of goals, from where the goals are `way` [G] moves off."""
    if not chosen:
        return 0
    fewest = FAR
    for goal in range(len(way)):
        if chosen >> goal & 1:
            fewest = min(fewest, way[goal] + rest[chosen ^ (1 << goal), goal])
    return fewest


@njit(cache=True)
def _count(chosen):
    count = 0
    while chosen:
        chosen &= chosen - 1
        count += 1
    return count
