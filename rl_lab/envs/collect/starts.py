"""Where an episode of Collect begins: a maze from the pool in one of its symmetries, and cells for agent and goals."""

import numpy as np
import torch
from torch import Tensor

from rl_lab.envs.collect.mazes import SIDE, Pool

LOW32 = 2**32 - 1


class Starts:
    """The open cells of each maze lie in an order drawn at random; T things take one after another of them.

    A number decides all: which maze, which of its eight symmetries, and with which cell the things begin. The same
    numbers give the same starts on every device.
    """

    def __init__(self, made: Pool, width: int, things: int, device: torch.device):
        board = np.arange(SIDE**2).reshape(SIDE, SIDE)[:width, :width]
        images, to = np.zeros((len(made.sizes), 8, SIDE**2), bool), np.zeros((8, SIDE**2), np.int64)
        for symmetry in range(8):
            origin = np.rot90(board if symmetry < 4 else board.T, symmetry)
            images[:, symmetry, board.ravel()] = made.open.reshape(-1, SIDE**2)[:, origin.ravel()]
            to[symmetry, origin] = board
        ranks = np.arange(made.sizes.max() + things - 1)  # the first cells follow the last
        order = np.take_along_axis(made.order, ranks % made.sizes[:, None], 1)
        self._mazes, self._to, self._order, self._count = (
            torch.from_numpy(x).to(device) for x in (mask(images).ravel(), to.ravel(), order.ravel(), made.sizes)
        )
        self._ranks, self._things = len(ranks), torch.arange(things, device=device).unsqueeze(1)

    def draw(self, number: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [N] -> the masks [N] of open cells, and the cells [T, N] of the things."""
        share = hashed(number) * len(self._mazes)
        image, share = share >> 32, share & LOW32  # which maze and symmetry; what is left of the hash
        maze, symmetry = image >> 3, (image & 7).int() * SIDE**2
        first = (share * self._count.index_select(0, maze) >> 32) + maze * self._ranks
        cells = self._order.index_select(0, (first + self._things).flatten()).view(-1, len(number)) + symmetry
        return self._mazes.index_select(0, image), self._to.index_select(0, cells.flatten()).view(-1, len(number))


def mask(cells: np.ndarray) -> np.ndarray:
    """bool [..., 64] -> int64 [...]: cell c as bit c, the last as the sign."""
    return (cells.astype(np.int64) << np.arange(SIDE**2)).sum(-1)


def hashed(x: Tensor) -> Tensor:
    """int64 -> [0, 2^32), one to one for 32 bits; multipliers from https://github.com/skeeto/hash-prospector."""
    x = x & LOW32
    x = (x ^ x >> 16) * 0x21F0AAAD & LOW32
    x = (x ^ x >> 15) * 0x735A2D97 & LOW32
    return x ^ x >> 15
