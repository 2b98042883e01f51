"""Sheets of images as PNG files."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

GAP = 2  # pixels between images
GROUND = 96, 120, 160  # of neither black nor white images
WIDTH = 48  # pixels: smaller images are enlarged to about this, each pixel a square


def write_sheet(path: Path, images: Tensor, columns: int = 8) -> Path:
    """Writes images [N, C, H, W] in [0, 1], C = 1 or 3, in reading order; returns the path."""
    n, c, h, w = images.shape
    zoom = max(1, round(WIDTH / w))
    h, w, columns = h * zoom + GAP, w * zoom + GAP, min(columns, n)
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().expand(n, 3, -1, -1)
    pixels = pixels.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3).permute(0, 2, 3, 1).numpy()
    sheet = Image.new("RGB", (columns * w + GAP, -(-n // columns) * h + GAP), GROUND)
    for i, image in enumerate(pixels):
        sheet.paste(Image.fromarray(image), (GAP + i % columns * w, GAP + i // columns * h))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def side_by_side(left: Tensor, right: Tensor) -> Tensor:
    """Two [N, ...] as one [2 N, ...] of pairs."""
    return torch.stack([left, right], 1).flatten(0, 1)
