"""Where something counts, as a glow over a picture."""

from typing import NamedTuple

import numpy as np
from PIL import Image

# From clear over red and orange to a pale yellow: seen on dark games and on pale mazes.
GLOW = np.array([(150, 0, 60), (225, 30, 20), (255, 140, 0), (255, 245, 170)], float)
DIM = 0.6  # how far the picture below goes towards grey
COVER = 0.8  # how far the brightest hides it


class Box(NamedTuple):
    """A part of a picture, in pixels."""

    left: int
    top: int
    width: int
    height: int


def glowing(picture: Image.Image, heat: np.ndarray, box: Box, smooth: bool) -> Image.Image:
    """The picture in faint colours, and over the box the heat [H, W], from clear at 0 to bright at its greatest.

    `smooth` for heat of pixels; that of a map's cells fills them.
    """
    share = heat / heat.max() if heat.max() > 0 else np.zeros_like(heat)
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    layer = Image.fromarray(share.astype(np.float32)).resize((box.width, box.height), how)
    glow = np.asarray(layer).clip(0, 1)[..., None]
    below = np.asarray(picture, float)
    below = (1 - DIM) * below + DIM * below.mean(-1, keepdims=True)
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    below[rows, columns] += COVER * glow * (_colour(glow[..., 0]) - below[rows, columns])
    return Image.fromarray(below.round().astype(np.uint8))


def _colour(share: np.ndarray) -> np.ndarray:
    """[...] from 0 to 1 -> [..., 3]."""
    return np.stack([np.interp(share, np.linspace(0, 1, len(GLOW)), column) for column in GLOW.T], -1)
