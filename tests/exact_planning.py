"""Planning in rational numbers, by trying every deterministic policy: slow, tiny, and with no rounding at all."""

import itertools
import math
from fractions import Fraction

from rl_lab.envs.tabular.mdp import MDP

INFINITE, NO_SUM = math.inf, math.nan


def rational(mdp: MDP) -> list[list[list[tuple[Fraction, int, Fraction]]]]:
    """Of each state and action the outcomes (probability, successor, reward), the probabilities made to sum to 1."""
    rows = []
    for onto, chance, paid in zip(mdp.next_state.tolist(), mdp.probability.tolist(), mdp.reward.tolist(), strict=True):
        row = []
        for to, p, r in zip(onto, chance, paid, strict=True):
            shares = [Fraction(x).limit_denominator(10_000) for x in p]
            assert sum(shares) == 1
            row.append(
                [(x, s, Fraction(y).limit_denominator(10_000)) for x, s, y in zip(shares, to, r, strict=True) if x]
            )
        rows.append(row)
    return rows


def policy_values(mdp: MDP, policy: list[list[Fraction]], gamma: Fraction) -> list:
    """v of each state under probabilities [S][A]: Fractions, or +-inf, or NaN where there is no sum."""
    table, states = rational(mdp), range(len(mdp.start))
    ends = mdp.terminal.tolist()
    chance = [[Fraction(0) for _ in states] for _ in states]
    reward = [Fraction(0) for _ in states]
    for s in states:
        if ends[s]:
            continue
        for share, outcomes in zip(policy[s], table[s], strict=True):
            for p, to, r in outcomes:
                chance[s][to] += share * p
                reward[s] += share * p * r
    v = {s: Fraction(0) for s in states if ends[s]}
    if gamma == 1:
        v |= _closed(chance, reward, ends)
        for s in states:
            met = {str(v[t]) for t in _reach(chance, s) if t in v and not isinstance(v[t], Fraction)}
            if met:
                v[s] = float(met.pop()) if len(met) == 1 else NO_SUM
    rest = [s for s in states if s not in v]
    matrix = [[(s == t) - gamma * chance[s][t] for t in rest] for s in rest]
    known = [reward[s] + gamma * sum(chance[s][t] * v[t] for t in v if chance[s][t]) for s in rest]
    v |= dict(zip(rest, _solve(matrix, known), strict=True))
    return [v[s] for s in states]


def best_values(mdp: MDP, gamma: Fraction) -> list | None:
    """v* of each state over all deterministic policies that have a sum there; None where one is infinite."""
    actions = len(mdp.actions)
    free = [s for s, end in enumerate(mdp.terminal.tolist()) if not end]
    best = [-INFINITE] * len(mdp.start)
    for choice in itertools.product(range(actions), repeat=len(free)):
        policy = [[Fraction(int(a == 0)) for a in range(actions)] for _ in best]
        for s, a in zip(free, choice, strict=True):
            policy[s] = [Fraction(int(b == a)) for b in range(actions)]
        found = policy_values(mdp, policy, gamma)
        best = [b if x != x else max(b, x) for b, x in zip(best, found, strict=True)]
    return None if any(abs(b) == INFINITE for b in best) else best


def _reach(chance: list[list[Fraction]], s: int) -> set[int]:
    seen, left = {s}, [s]
    while left:
        here = left.pop()
        for t, p in enumerate(chance[here]):
            if p and t not in seen:
                seen.add(t)
                left.append(t)
    return seen


def _closed(chance: list[list[Fraction]], reward: list[Fraction], ends: list[bool]) -> dict:
    """What the states that are never left are worth."""
    v = {}
    for s in range(len(ends)):
        among = sorted(_reach(chance, s))
        if any(ends[t] for t in among) or any(s not in _reach(chance, t) for t in among):
            continue
        if all(reward[t] == 0 for t in among):
            v[s] = Fraction(0)
            continue
        matrix = [[chance[t][u] - (t == u) for t in among] for u in among[1:]] + [[Fraction(1)] * len(among)]
        share = _solve(matrix, [Fraction(0)] * (len(among) - 1) + [Fraction(1)])  # the stationary distribution
        mean = sum(x * reward[t] for x, t in zip(share, among, strict=True))
        v[s] = NO_SUM if mean == 0 else math.copysign(INFINITE, mean)
    return v


def _solve(matrix: list[list[Fraction]], known: list[Fraction]) -> list[Fraction]:
    rows = [[*row, x] for row, x in zip(matrix, known, strict=True)]
    for k in range(len(rows)):
        pivot = next(i for i in range(k, len(rows)) if rows[i][k])
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [x / rows[k][k] for x in rows[k]]
        for i in range(len(rows)):
            if i != k and rows[i][k]:
                rows[i] = [x - rows[i][k] * y for x, y in zip(rows[i], rows[k], strict=True)]
    return [row[-1] for row in rows]
