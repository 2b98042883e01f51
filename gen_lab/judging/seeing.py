"""What a feature net sees in images."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rl_lab.core.errors import UserError

FEATURES = 64
AT_ONCE = 256  # images

ToldFn = Callable[[int, int], None]  # now and then, of updates: done, in all


class Seen(NamedTuple):
    """The net's outputs for N images."""

    features: Tensor  # [N, F] float32
    classes: Tensor | None  # [N], as a classifier sees them

    def some(self, index: Tensor) -> "Seen":
        return Seen(self.features[index], None if self.classes is None else self.classes[index])


class Features(Protocol):
    name: str  # with the hash of the net's parameters: distances under different ones do not compare

    def __call__(self, x: Tensor) -> Seen: ...


class NoLabels(UserError):
    """A classifier cannot learn from images without labels."""


def seen(net: Features, batches: Iterable[Tensor]) -> Seen:
    """Of levels that come a few images at a time."""
    features, classes = zip(*map(net, batches), strict=True)
    return Seen(torch.cat(features), None if classes[0] is None else torch.cat(classes))
