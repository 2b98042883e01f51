"""Hand-made features, for linear functions of observations that are not a table's states."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rl_lab.core.errors import UserError
from rl_lab.core.settings import Count
from rl_lab.types import Spec

MOST = 2**20  # features


class Tiles(nn.Module):
    """obs [B, D] -> float32 [B, tilings (tiles + 1)^D]: in each tiling a 1 at the one tile that holds the point.

    Each tiling spans the box from `low` to `high` by `tiles` tiles a dimension, and one more for its displacement:
    tiling i lies off by i (1, 3, 5, ...) / tilings of a tile's width, modulo 1, which leaves no diagonal along which
    all tilings agree. What lies outside counts as on the border. See Sutton and Barto (2018), section 9.5.4.
    """

    low: Tensor
    width: Tensor
    shift: Tensor
    stride: Tensor
    first: Tensor

    def __init__(self, low: Tensor, high: Tensor, tilings: int, tiles: int):
        super().__init__()
        dims = len(low)
        shift = torch.arange(tilings)[:, None] * (2 * torch.arange(dims) + 1) % tilings / tilings
        self.tiles, self.count = tiles, tilings * (tiles + 1) ** dims
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("width", (high - low) / tiles, persistent=False)
        self.register_buffer("shift", shift, persistent=False)  # [tilings, D], in tiles
        self.register_buffer("stride", (tiles + 1) ** torch.arange(dims), persistent=False)
        self.register_buffer("first", torch.arange(tilings) * (tiles + 1) ** dims, persistent=False)

    def index(self, obs: Tensor) -> Tensor:
        """obs [B, D] -> int64 [B, tilings]: the features that are 1, one a tiling."""
        place = ((obs - self.low) / self.width).clamp(0, self.tiles)
        tile = (place.unsqueeze(-2) + self.shift).floor().long()
        return self.first + (tile * self.stride).sum(-1)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.zeros(len(obs), self.count, device=obs.device).scatter_(1, self.index(obs), 1.0)


def tiles(
    spec: Spec,
    *,
    low: Sequence[float],  # of each dimension of an observation
    high: Sequence[float],
    tilings: Count,
    tiles: Count,  # along each dimension
) -> nn.Module:
    """Tile coding as a torso: under a linear head, a learning rate of alpha / tilings mends alpha of an error."""
    dims = len(low)
    if len(spec.obs_shape) != 1:
        raise UserError(f"agent/network=tiles is for observations of one row of numbers, not {spec.obs_shape}; choose "
                        "agent/network=mlp, or leave out env.frame_stack")  # fmt: skip
    if spec.obs_shape != (dims,) or len(high) != dims:
        raise UserError(
            f"agent.network.low and high must each list {math.prod(spec.obs_shape)} numbers, one for each "
            f"of observations {spec.obs_shape}, not {dims} and {len(high)}"
        )
    for i, (a, b) in enumerate(zip(low, high, strict=True)):
        if not (a < b and math.isfinite(b - a)):
            raise UserError(f"agent.network.low[{i}]={a} must be below high[{i}]={b}, both of them finite")
    if (count := tilings * (tiles + 1) ** dims) > MOST:
        raise UserError(
            f"{tilings} tilings of {tiles} tiles in {dims} dimensions are {count:,} features, above the "
            f"{MOST:,} allowed; lower agent.network.tiles, or take rl_lab.networks.torsos.mlp"
        )
    return Tiles(torch.tensor([float(x) for x in low]), torch.tensor([float(x) for x in high]), tilings, tiles)


class Constant(nn.Module):
    """obs [B, ...] -> 1 [B, 1], whatever is seen."""

    def forward(self, obs: Tensor) -> Tensor:
        return torch.ones(len(obs), 1, device=obs.device)


def constant(spec: Spec) -> nn.Module:
    """A torso that cannot tell states apart: the features of Sutton and Barto's short corridor (example 13.1)."""
    return Constant()
