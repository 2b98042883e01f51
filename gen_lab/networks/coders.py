"""Encoders, images [B, C, H, W] to numbers [B, Z], and decoders, numbers to maps [B, P, H, W].

An encoder is built for the shape of what it sees and how many numbers it gives, a decoder for the shape of what it
gives and how many numbers it is given.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from rl_lab.core.errors import UserError
from rl_lab.core.settings import Count, Natural

Shape = tuple[int, int, int]
Activation = Literal["relu", "tanh", "gated"]
ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gated": partial(nn.GLU, 1),  # of units [B, F], of maps [B, C, H, W]
}


# -- fully connected


def mlp_encoder(
    shape: Shape, outputs: int, *, hidden: Count, layers: Count = 1, activation: Activation = "relu"
) -> nn.Module:
    """`layers` of `hidden` units; gated: each times the sigmoid of another (Dauphin et al., 2017, eq. 1)."""
    return nn.Sequential(
        nn.Flatten(), *_hidden(math.prod(shape), hidden, layers, activation), nn.Linear(hidden, outputs)
    )


def mlp_decoder(
    shape: Shape, inputs: int, *, hidden: Count, layers: Count = 1, activation: Activation = "relu"
) -> nn.Module:
    """`layers` of `hidden` units, as the encoder's."""
    pixels = nn.Linear(hidden, math.prod(shape))
    return nn.Sequential(*_hidden(inputs, hidden, layers, activation), pixels, nn.Unflatten(-1, shape))


def _hidden(inputs: int, hidden: int, layers: int, activation: Activation) -> list[nn.Module]:
    gates, act = _gates(activation)
    widths = pairwise([inputs] + [hidden] * layers)
    return [part for a, b in widths for part in (nn.Linear(a, gates * b), act())]


def _gates(activation: Activation) -> tuple[int, Callable[[], nn.Module]]:
    """How many units, or maps, make one of the next layer, and what makes it."""
    return 1 + (activation == "gated"), ACTIVATIONS[activation]


# -- convolutional


def conv_encoder(
    shape: Shape, outputs: int, *, channels: Count, hidden: Natural = 0, activation: Activation = "relu"
) -> nn.Module:
    """Two strided convolutions, of `channels` and twice as many maps, then `hidden` units unless that is 0."""
    c, h, w = _halved_twice(shape)
    gates, act = _gates(activation)
    maps = 2 * channels * h * w
    return nn.Sequential(
        nn.Conv2d(c, gates * channels, 4, 2, 1), act(),
        nn.Conv2d(channels, gates * 2 * channels, 4, 2, 1), act(),
        nn.Flatten(), *_hidden(maps, hidden, hidden > 0, activation), nn.Linear(hidden or maps, outputs),
    )  # fmt: skip


def conv_decoder(
    shape: Shape, inputs: int, *, channels: Count, hidden: Natural = 0, activation: Activation = "relu"
) -> nn.Module:
    """The encoder's mirror."""
    c, h, w = _halved_twice(shape)
    gates, act = _gates(activation)
    maps = gates * 2 * channels
    return nn.Sequential(
        *_hidden(inputs, hidden, hidden > 0, activation),
        nn.Linear(hidden or inputs, maps * h * w), nn.Unflatten(-1, (maps, h, w)), act(),
        nn.ConvTranspose2d(2 * channels, gates * channels, 4, 2, 1), act(),
        nn.ConvTranspose2d(channels, c, 4, 2, 1),
    )  # fmt: skip


def _halved_twice(shape: Shape) -> Shape:
    c, h, w = shape
    if h % 4 or w % 4:
        raise UserError(
            f"these convolutions halve images twice, and {h} x {w} cannot be; use "
            "model=vae_residual, which takes any size"
        )
    return c, h // 4, w // 4


# -- residual


class Residual(nn.Module):
    """x + f(x) of two 3 x 3 convolutions, the identity to begin with (He et al., 2016; no normalisation)."""

    def __init__(self, channels: int):
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1)
        for p in last.parameters():
            nn.init.zeros_(p)
        self.f = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


def residual_encoder(shape: Shape, outputs: int, *, channels: Count, blocks: Natural, halvings: Natural) -> nn.Module:
    """`blocks` at each size after the first; with each halving, rounded up, twice the maps. For images of any size."""
    c, h, w = shape
    layers: list[nn.Module] = [nn.Conv2d(c, channels, 3, padding=1)]
    for a, b in pairwise(channels * 2**i for i in range(halvings + 1)):
        layers += [nn.ReLU(), nn.Conv2d(a, b, 3, 2, 1), *(Residual(b) for _ in range(blocks))]
    h, w = _sizes(h, w, halvings)[-1]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(channels * 2**halvings * h * w, outputs))


def residual_decoder(shape: Shape, inputs: int, *, channels: Count, blocks: Natural, halvings: Natural) -> nn.Module:
    """The encoder's mirror; it grows by repeating pixels, which leaves no checkerboard (Odena et al., 2016)."""
    c, h, w = shape
    *larger, (h, w) = _sizes(h, w, halvings)
    maps = channels * 2**halvings
    layers: list[nn.Module] = [nn.Linear(inputs, maps * h * w), nn.Unflatten(-1, (maps, h, w))]
    for size in reversed(larger):
        layers += [*(Residual(maps) for _ in range(blocks)), nn.ReLU(), nn.Upsample(size)]
        layers += [nn.Conv2d(maps, maps // 2, 3, padding=1)]
        maps //= 2
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(maps, c, 3, padding=1))


def _sizes(h: int, w: int, halvings: int) -> list[tuple[int, int]]:
    """The first, and that after each halving."""
    return [(-(-h // 2**i), -(-w // 2**i)) for i in range(halvings + 1)]


# -- of World Models (Ha & Schmidhuber, 2018; https://arxiv.org/abs/1803.10122), appendix A.1


def world_models_encoder(shape: Shape, outputs: int) -> nn.Module:
    """Four strided convolutions of frames of 64 x 64."""
    _of_64(shape)
    maps = pairwise([shape[0], 32, 64, 128, 256])
    convolutions = [part for a, b in maps for part in (nn.Conv2d(a, b, 4, 2), nn.ReLU())]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1024, outputs))


def world_models_decoder(shape: Shape, inputs: int) -> nn.Module:
    """Four strided deconvolutions up from 1 x 1; what the paper's last sigmoid does is left to the likelihood."""
    _of_64(shape)
    return nn.Sequential(
        nn.Linear(inputs, 1024), nn.Unflatten(-1, (1024, 1, 1)),
        nn.ConvTranspose2d(1024, 128, 5, 2), nn.ReLU(),
        nn.ConvTranspose2d(128, 64, 5, 2), nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 6, 2), nn.ReLU(),
        nn.ConvTranspose2d(32, shape[0], 6, 2),
    )  # fmt: skip


def _of_64(shape: Shape) -> None:
    if shape[1:] != (64, 64):
        raise UserError(
            f"World Models' networks are for frames of 64 x 64, not {shape[1]} x {shape[2]}; use "
            "data.size=64, or model=vae_residual, which takes any size"
        )
