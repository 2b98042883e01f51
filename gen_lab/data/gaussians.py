"""Points on a plane, drawn from Gaussians on a circle: what a model forgets is seen at once (Metz et al., 2017)."""

import math
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from gen_lab.data.images import CPU, Images
from gen_lab.types import Spec
from rl_lab.core import room
from rl_lab.core.randomness import generator, stream
from rl_lab.core.settings import Bound, Count, Natural, Positive

LEVELS = 256
SPEC = Spec((1, 1, 2), LEVELS)


def gaussian_ring(
    *,
    modes: Count,
    radius: Annotated[float, Bound(0, above=True), Bound(high=1e6)],
    sigma: Positive,
    train: Count,  # points
    test: Count,
    seed: Natural,
) -> Images:
    """A point is an image of 1 x 1 x 2: its x and its y, each one of 256 levels; its label is the Gaussian it is from.

    For the usual ring levels are 0.017 apart.
    """
    room.memory(64.0 * max(train, test) + 64.0 * modes, f"data.train={train}, data.test={test} and data.modes={modes}")
    ring = Ring(modes, radius, sigma)

    def drawn(count: int, name: str) -> tuple[Tensor, Tensor]:
        rng = generator(stream(seed, name), CPU)
        label = torch.randint(modes, (count,), generator=rng)
        return ring.images(ring.centres[label] + sigma * torch.randn(count, 2, generator=rng)), label

    def covered(x: Tensor) -> dict[str, Tensor]:
        modes, share = modes_covered(ring.places(x.cpu()), ring.centres, ring.near)
        return {"modes_covered": modes.float(), "near_a_mode": share}

    (shown, label), (held_out, its_label) = drawn(train, "train"), drawn(test, "test")
    name = f"gaussian_ring-{modes}-{radius:g}-{sigma:g}"
    return Images(name, shown, held_out, LEVELS, label, its_label, modes, measure=covered)


class Ring(NamedTuple):
    """Where the Gaussians are, and the square from -extent to extent that levels cover."""

    modes: int = 8
    radius: float = 2.0
    sigma: float = 0.02

    @property
    def centres(self) -> Tensor:
        """[K, 2], anticlockwise from (radius, 0)."""
        angle = torch.arange(self.modes) * (2 * math.pi / self.modes)
        return self.radius * torch.stack([angle.cos(), angle.sin()], 1)

    @property
    def extent(self) -> float:
        return self.radius + 10 * self.sigma

    @property
    def near(self) -> float:
        """3 standard deviations, of the Gaussian and of rounding to levels together."""
        step = 2 * self.extent / (LEVELS - 1)
        return 3 * math.sqrt(self.sigma**2 + step**2 / 12)

    def images(self, place: Tensor) -> Tensor:
        """Places [N, 2] to levels [N, 1, 1, 2] uint8."""
        return SPEC.nearest((place / self.extent + 1) / 2).view(-1, 1, 1, 2)

    def places(self, x: Tensor) -> Tensor:
        """Levels [N, 1, 1, 2] to places [N, 2]."""
        return SPEC.centred(x.flatten(1)) * self.extent


class Covered(NamedTuple):
    modes: Tensor  # [] how many have their samples
    share: Tensor  # [] of the samples that are near some mode


def modes_covered(place: Tensor, centres: Tensor, near: float, enough: float = 0.1) -> Covered:
    """Of samples [N, 2] and modes [K, 2]: covered is a mode near which lie `enough` of its fair share of N / K."""
    distance, mode = torch.cdist(place, centres).min(1)
    counts = torch.bincount(mode[distance <= near], minlength=len(centres))
    return Covered((counts >= enough * len(place) / len(centres)).sum(), counts.sum() / len(place))
