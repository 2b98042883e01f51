"""Sweeps in place, state after state, compiled by numba: what torch's whole-tensor operations cannot say.

next_state is uint32 [S, A, K], weight [S, A, K] gamma times the probability, reward [S, A] the expected one, value [S].
A batch of B MDPs is one world of B S states here.
"""

import numpy as np
from numba import njit


@njit(cache=True)
def tables(next_state, probability, reward, gamma):
    """next_state, weight and expected reward, from the tables [B, S, A, K] and gamma [B] of a batch in one pass."""
    batch, states, actions, successors = next_state.shape
    onto = np.empty((batch * states, actions, successors), np.uint32)
    weight, paid = np.empty(onto.shape), np.zeros(onto.shape[:2])
    for b in range(batch):
        for s in range(states):
            for a in range(actions):
                for k in range(successors):
                    onto[b * states + s, a, k] = b * states + next_state[b, s, a, k]
                    weight[b * states + s, a, k] = gamma[b] * probability[b, s, a, k]
                    paid[b * states + s, a] += probability[b, s, a, k] * reward[b, s, a, k]
    return onto, weight, paid


@njit(cache=True, fastmath={"nnan", "nsz", "contract", "reassoc"})
def relax(next_state, weight, reward, value, low, high, forward):
    """value(s) <- max_a q(s, a) from the newest values, for the states `low` to `high`; the largest change."""
    _, actions, successors = next_state.shape
    worst = 0.0
    for i in range(high - low):
        s = np.uint32(low + i if forward else high - 1 - i)
        onto, share, paid = next_state[s], weight[s], reward[s]
        best = -np.inf
        for a in range(actions):
            q = paid[a]
            for k in range(successors):
                q += share[a, k] * value[onto[a, k]]
            best = max(best, q)
        worst = max(worst, abs(best - value[s]))
        value[s] = best
    return worst


@njit(cache=True)
def readers(next_state, size):
    """bool [blocks, blocks]: whether the second block has a state with a successor in the first."""
    states, actions, successors = next_state.shape
    blocks = (states + size - 1) // size
    reads = np.zeros((blocks, blocks), np.bool_)
    for s in range(states):
        for a in range(actions):
            for k in range(successors):
                reads[next_state[s, a, k] // size, s // size] = True
    return reads


@njit(cache=True)
def relax_waiting(next_state, weight, reward, value, waiting, reads, size, tolerance, budget):
    """Relaxes the block on which the largest change waits, again and again: until none is above `tolerance`, or
    `budget` states were updated. waiting [blocks] bounds |T v - v| within each block, and is kept up to date.

    A block stays in the cache while it is relaxed to a tenth of what waited, forwards and backwards in turn.
    """
    states = len(value)
    before = np.empty(size)
    while budget > 0:
        block = waiting.argmax()
        if waiting[block] <= tolerance:
            return
        low, high = block * size, min(states, (block + 1) * size)
        before[: high - low] = value[low:high]
        enough = max(tolerance, 0.1 * waiting[block]) if waiting[block] < np.inf else tolerance
        for sweep in range(100):
            worst = relax(next_state, weight, reward, value, low, high, sweep % 2 == 0)
            budget -= high - low
            if worst <= enough:
                break
        moved = np.abs(value[low:high] - before[: high - low]).max()
        waiting[block] = worst
        for other in np.flatnonzero(reads[block]):
            if other != block:
                waiting[other] += moved
