"""Who says which of two clips is better."""

from typing import NamedTuple

import torch
from torch import Tensor

from rl_lab.core.randomness import uniform
from rl_lab.core.settings import Unit


class Answers(NamedTuple):
    left: Tensor  # [n] float64: 1 left, 0 right, 1/2 the same
    given: Tensor  # [n] bool; False: cannot tell, and nothing is learned from it


class Oracle:
    """Prefers the clip of the larger true reward, and finds equal ones the same (section 2.2.3)."""

    def __init__(
        self,
        *,
        error: Unit,  # share of its preferences that are the wrong way round
        laziness: Unit,  # share of the pairs that it does not look at, and cannot tell
    ):
        self.error, self.laziness = error, laziness

    def __call__(self, left: Tensor, right: Tensor, rng: torch.Generator) -> Answers:
        """Of the clips' true sums [n]."""
        better = (left - right).sign().where((left - right).abs() > 1e-6, 0.0)
        better = better.where(uniform(better.shape, rng) >= self.error, -better)
        return Answers((1 + better.double()) / 2, uniform(better.shape, rng) >= self.laziness)
