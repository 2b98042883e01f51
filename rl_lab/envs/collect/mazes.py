"""The mazes of Collect (Oh, Singh and Lee, 2017): corridors one cell wide, carved depth first, and a few holes.

Cells are counted within the border: W x W of them, W at most 8, in the upper left corner of a board of 8 x 8.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy import ndarray

SIDE = 8  # cells a side of the board
DY, DX = (-1, 0, 1, 0), (0, 1, 0, -1)  # up, right, down, left


class Pool(NamedTuple):
    """P mazes, each with its open cells in an order drawn at random."""

    open: ndarray  # [P, 8, 8] bool
    order: ndarray  # [P, 64] uint8: the open cells, as 8 y + x, come first
    sizes: ndarray  # [P] int64, how many open cells


@lru_cache(8)
def pool(width: int, holes: int, mazes: int, seed: int) -> Pool:
    open, order = np.zeros((mazes, SIDE, SIDE), np.bool_), np.zeros((mazes, SIDE**2), np.uint8)
    made = Pool(open, order, np.zeros(mazes, np.int64))
    _fill(*made, width, holes, np.random.default_rng(seed))
    return made


@njit(cache=True)
def _fill(open, order, count, width, holes, rng):
    for maze, cells in enumerate(order):
        within = open[maze, :width, :width]
        carve(within, rng)
        for _ in range(holes):
            if not pierce(within, rng):
                break
        found = np.flatnonzero(open[maze])
        count[maze] = len(found)
        for i in range(len(found) - 1, 0, -1):  # Fisher and Yates
            j = int(rng.random() * (i + 1))
            found[i], found[j] = found[j], found[i]
        cells[: len(found)] = found


@njit(cache=True)
def carve(open, rng):
    """Opens cells of a solid [W, W], going on from the newest that still can.

    A cell is opened if that joins it to one open cell only. After a bend a corridor goes straight: no zig-zag.
    """
    width = len(open)
    path = np.empty((width**2, 3), np.int64)  # y, x and the direction by which the cell was entered
    path[0] = int(rng.random() * width), int(rng.random() * width), 0
    open[path[0, 0], path[0, 1]] = True
    length, allowed = 1, np.empty(4, np.int64)
    while length:
        y, x, entered = path[length - 1]
        bent = length > 2 and entered != path[length - 2, 2]
        choices = 0
        for move in range(4):
            if not (bent and move != entered) and _can_open(open, y + DY[move], x + DX[move]):
                allowed[choices] = move
                choices += 1
        if not choices:
            length -= 1
            continue
        move = allowed[int(rng.random() * choices)]
        path[length] = y + DY[move], x + DX[move], move
        open[y + DY[move], x + DX[move]] = True
        length += 1


@njit(cache=True)
def _can_open(open, y, x):
    if not (0 <= y < len(open) and 0 <= x < len(open)) or open[y, x]:
        return False
    beside = 0
    for move in range(4):
        beside += _is_open(open, y + DY[move], x + DX[move])
    return beside == 1


@njit(cache=True)
def _is_open(open, y, x):
    return bool(0 <= y < len(open) and 0 <= x < len(open) and open[y, x])  # of Python, where nothing compiles this


@njit(cache=True)
def pierce(open, rng):
    """Opens one of the walls that part two open cells in a straight line; False where there is none."""
    walls = np.empty((open.size, 2), np.int64)
    found = 0
    for y in range(len(open)):
        for x in range(len(open)):
            across = _is_open(open, y, x - 1) + _is_open(open, y, x + 1)
            upright = _is_open(open, y - 1, x) + _is_open(open, y + 1, x)
            if not open[y, x] and abs(across - upright) == 2:
                walls[found] = y, x
                found += 1
    if not found:
        return False
    y, x = walls[int(rng.random() * found)]
    open[y, x] = True
    return True
