"""Linear equations of a Markov chain, solved to full precision however seldom the chain ends."""

from typing import NamedTuple

import numpy as np
from numpy import ndarray
from scipy.sparse import csr_array, eye_array, vstack
from scipy.sparse.csgraph import breadth_first_order
from scipy.sparse.linalg import splu

from rl_lab.core.errors import UserError

TRUSTED = 2e4  # steps before the longest-lived state's end: LU loses as many units of rounding
BLOCK = 64  # states that are eliminated together
ROOM = 2**29  # numbers kept at most: 4 GiB


class Block(NamedTuple):
    """Eliminated states low to high: where each led to among them and later ones, [b, end - low]."""

    low: int
    high: int
    end: int
    ahead: ndarray
    leave: ndarray  # [b, 2], the chance to leave and the reward
    pivot: ndarray  # [b]
    solve: ndarray  # [b, b], (diag(pivot) - ahead among them)^-1


def solved(ahead: csr_array, leave: ndarray, reward: ndarray, going: ndarray) -> ndarray:
    """v of the `going` states: by sparse LU where that can be trusted, else by elimination without subtraction."""
    rows = ahead.multiply(going[:, None]).tocsc()
    rows.eliminate_zeros()
    try:
        lu = splu(eye_array(len(going), format="csc") - rows)
        time = lu.solve(going.astype(float))[going]
        if np.isfinite(time).all() and time.min() > 0 and time.max() <= TRUSTED:
            return lu.solve(reward)[going]
    except RuntimeError:  # singular
        pass
    among = ahead[going]
    out = np.asarray(among[:, ~going].sum(1)).ravel()
    return eliminated(among[:, going].tocsr(), leave[going] + out, reward[going], out > 0)


def eliminated(ahead: csr_array, leave: ndarray, reward: ndarray, near: ndarray) -> ndarray:
    """x [N] of x = reward + ahead x, where row i of `ahead` [N, N] and `leave` [N] sum to 1.

    Gaussian elimination without a subtraction (Grassmann, Taksar and Heyman, 1985; O'Cinneide, 1993): a pivot is the
    sum of what leads on, never 1 less what stays, so that each x is as exact as its inputs even where 1 - ahead is
    singular to rounding. The diagonal is not read. States far from those `near` [N] an end go first: each still has a
    way on when its turn comes, and few others are in reach. Raises UserError where that takes too much memory.
    """
    order = _outermost_first(ahead, near)
    ahead, count = ahead[order][:, order], len(order)
    ends, kept = np.stack([leave[order], reward[order]], 1), 0
    blocks: list[Block] = []
    for low in range(0, count, BLOCK):
        high = min(count, low + BLOCK)
        blocks.append(_eliminate(ahead[low:high], ends[low:high].copy(), low, blocks))
        kept += blocks[-1].ahead.size
        if kept > ROOM:
            raise UserError(
                f"gamma is too near 1 for a policy that hardly ever ends in a world of {count:,} states: "
                "its exact values would not fit the memory; choose a smaller gamma"
            )
    x = np.zeros(count)
    for low, high, end, row, of_end, pivot, _ in reversed(blocks):
        known = of_end[:, 1] + row[:, high - low :] @ x[high:end]
        for k in reversed(range(high - low)):
            x[low + k] = (known[k] + row[k, k + 1 : high - low] @ x[low + k + 1 : high]) / pivot[k]
    found = np.empty(count)
    found[order] = x
    return found


def _eliminate(rows: csr_array, of_end: ndarray, low: int, blocks: list[Block]) -> Block:
    """Rows [b, N] without the earlier blocks, and without one another; `of_end` [b, 2] goes along and is written."""
    size, high = rows.shape[0], low + rows.shape[0]
    first = min(low, int(rows.indices.min(initial=low))) // BLOCK * BLOCK
    met = blocks[first // BLOCK :]
    end = max(high, int(rows.indices.max(initial=0)) + 1, *(block.end for block in met))
    row = rows[:, first:end].toarray()
    for block in met:
        share = row[:, block.low - first : block.high - first]
        if share.any():
            share = share @ block.solve
            row[:, block.high - first : block.end - first] += share @ block.ahead[:, block.high - block.low :]
            of_end += share @ block.leave
    row = row[:, low - first :]
    end = low + max(size, int(row.any(0).nonzero()[0].max(initial=0)) + 1)
    row = row[:, : end - low].copy()
    pivot, solve = np.empty(size), np.eye(size)
    for k in range(size):
        pivot[k] = row[k, k + 1 :].sum() + of_end[k, 0]
        share = row[k + 1 :, k] / pivot[k]
        row[k + 1 :, k + 1 :] += share[:, None] * row[k, k + 1 :]
        of_end[k + 1 :] += share[:, None] * of_end[k]
        solve[:, k] = (solve[:, k] + solve[:, :k] @ row[:k, k]) / pivot[k]
    return Block(low, high, end, row, of_end, pivot, solve)


def _outermost_first(ahead: csr_array, near: ndarray) -> ndarray:
    """All states [N] int, breadth first from those that are near an end, turned round."""
    found = onward(ahead.T, near)
    beyond = np.ones(len(near), bool)
    beyond[found] = False
    return np.concatenate([np.flatnonzero(beyond), found[::-1]])


def onward(edges: csr_array, first: ndarray) -> ndarray:
    """The states that those in `first` [N] bool lead to by edges [N, N], these included, breadth first: int [n]."""
    count = len(first)
    edges = vstack([edges.tocsr(), csr_array(first[None].astype(float))]).tocsr()
    edges.resize(count + 1, count + 1)
    return breadth_first_order(edges, count, return_predecessors=False)[1:]
