"""Random maps by seed and size, as text that `gridworld` reads."""

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array, csgraph

from rl_lab.core.errors import UserError
from rl_lab.core.settings import Natural, Side, Unit


def maze(height: Side, width: Side, seed: Natural) -> str:
    """A perfect maze: one way, and one only, between any two cells; from S to G in the opposite corner.

    Corridors are one cell wide, rooms lie at odd places, and the sizes count walls too. It is the minimum spanning
    tree of the rooms under random weights (Kruskal's algorithm). Raises UserError.
    """
    for name, size in {"height": height, "width": width}.items():
        if size % 2 == 0 or size < 3:
            raise UserError(
                f"env.mdp.map.{name}={size} must be odd and at least 3, as walls and corridors alternate from wall to "
                f"wall; take {max(3, size + 1)}"
            )
    if height == width == 3:
        raise UserError("env.mdp.map: a maze of 3 x 3 has one room, and needs two; take a width of 5")
    room = np.arange((height // 2) * (width // 2)).reshape(height // 2, width // 2)
    here = np.concatenate([room[:, :-1].ravel(), room[:-1].ravel()])  # doors to the right, then doors down
    there = np.concatenate([room[:, 1:].ravel(), room[1:].ravel()])
    weight = np.random.default_rng(seed).permutation(len(here)) + 1.0
    doors = csgraph.minimum_spanning_tree(coo_array((weight, (here, there)), shape=(room.size, room.size))).tocoo()

    grid = np.full((height, width), "#")
    grid[1::2, 1::2] = "."
    ys, xs = np.divmod(np.stack([doors.row, doors.col]), width // 2)  # [2, D]: of the rooms on both sides
    grid[ys.sum(0) + 1, xs.sum(0) + 1] = "."
    grid[1, 1], grid[-2, -2] = "S", "G"
    return _text(grid)


def scattered(size: Side, seed: Natural, *, walls: Unit) -> str:
    """size x size cells, each a wall with probability `walls`, and of the rest the largest connected part.

    S is its first cell, row by row, and G its last. Raises UserError where it has less than two.
    """
    free = np.random.default_rng(seed).random((size, size)) >= walls
    parts, _ = ndimage.label(free)  # 0 for walls
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    if sizes.max() < 2:
        raise UserError(f"env.mdp.map: no two free cells touch at size={size}, walls={walls:g}; lower walls")
    grid = np.where(parts == sizes.argmax(), ".", "#")
    cells = np.argwhere(grid == ".")
    grid[tuple(cells[0])], grid[tuple(cells[-1])] = "S", "G"
    return _text(grid)


def _text(grid: np.ndarray) -> str:
    return "\n".join("".join(row) for row in grid)
