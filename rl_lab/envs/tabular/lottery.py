"""Draws from the rows of a table of probabilities, for many walkers at once."""

import math
from fractions import Fraction

import torch
from torch import Tensor

from rl_lab.core.randomness import Stream, integers, uniform

MOST_TICKETS = 2**26  # entries of an outcome table: half a gigabyte of successors


class Lottery:
    """R rows of probabilities [R, K]; `row`, a draw and `entry` lead to a place in a flat table of outcomes.

    Where all probabilities are multiples of 1/M, as in most worlds made by hand, a draw is one of M tickets and each
    outcome holds its share of them: no search, and exact. Elsewhere a draw is a number in [0, 1) to be found among
    the bounds of the row, in steps of 2^-24. A row without chance (M = 1) costs no random number.
    """

    def __init__(self, probability: Tensor):
        self.tickets = _tickets(probability)
        self.certain = self.tickets == 1  # nothing is left to chance
        self._zero = torch.zeros((), dtype=torch.int64, device=probability.device)
        if self.tickets:
            self._shares = (probability * self.tickets).round().long().flatten()
        else:
            # Row r covers [r, r + 1): its last bound, 1 but for rounding, lies above the largest draw.
            rows = torch.arange(len(probability), device=probability.device)
            self._bounds = (probability.cumsum(-1) + rows[:, None]).flatten()

    def table(self, values: Tensor) -> Tensor:
        """values [R, K] as the flat table that `entry` points into."""
        return values.flatten().repeat_interleave(self._shares) if self.tickets else values.flatten()

    def draw(self, count: int, rng: Stream) -> Tensor:
        """[count], or [] where it is certain."""
        if self.certain:
            return self._zero
        if self.tickets:
            return integers(self.tickets, (count,), rng)
        return uniform((count,), rng)

    def entry(self, row: Tensor | int, draw: Tensor) -> Tensor:
        if self.tickets:
            return torch.add(draw, row, alpha=self.tickets)
        return torch.searchsorted(self._bounds, row + draw.double(), right=True)


def _tickets(probability: Tensor) -> int | None:
    """The smallest M such that all probabilities are multiples of 1/M; None where the table would be too large."""
    values = (probability[:1] if probability.stride(0) == 0 else probability).unique()
    if len(values) > 1_000:
        return None
    shares = [Fraction(p).limit_denominator(100_000) for p in values.tolist()]
    tickets = math.lcm(*(share.denominator for share in shares))
    exact = all(abs(float(share) - p) < 1e-13 for share, p in zip(shares, values.tolist(), strict=True))
    return tickets if exact and tickets * len(probability) <= MOST_TICKETS else None
