"""Sheets of images as PNG files, and films of sheets as GIF files."""

import warnings
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rl_lab.core import room
from rl_lab.core.errors import UserError
from rl_lab.core.files import opened, replacing

GAP = 2  # pixels between images
GROUND = 96, 120, 160  # of neither black nor white images
WIDTH = 48  # pixels: smaller images are enlarged to about this, each pixel a square
LETTERS = 11  # pixels high, of a caption
SIDE, POINT = 384, 3  # pixels of a plane, and of a point in it
FILM_FRAMES, FRAME_MS, SHEET_MS, LAST_MS = 240, 40, 250, 2_000  # frames at most; milliseconds


def sheet(images: Tensor, columns: int = 8, caption: str = "") -> Image.Image:
    """Images [N, C, H, W] in [0, 1], C = 1 or 3, in reading order; those of two values as points of a plane. The
    caption stands below them.
    """
    n, c, h, w = images.shape
    if c * h * w == 2:
        return captioned(plane(images), caption)
    zoom = max(1, round(WIDTH / w))
    room.memory(12 * n * (h * zoom + GAP) * (w * zoom + GAP), f"a sheet of {n:,} images")
    h, w, columns = h * zoom + GAP, w * zoom + GAP, min(columns, n)
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().expand(n, 3, -1, -1)
    pixels = pixels.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3).permute(0, 2, 3, 1)
    whole = Image.new("RGB", (columns * w + GAP, -(-n // columns) * h + GAP), GROUND)
    for i, image in enumerate(pixels.numpy()):
        whole.paste(Image.fromarray(image), (GAP + i % columns * w, GAP + i // columns * h))
    return captioned(whole, caption)


def captioned(picture: Image.Image, caption: str) -> Image.Image:
    """The picture with the caption below it, in as many lines as it needs."""
    if not caption:
        return picture
    font = ImageFont.load_default(LETTERS)
    lines, words = [""], caption.split(" ")
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= picture.width - 2 * GAP else [*lines, word]
    lines = [line for line in lines if line]
    whole = Image.new("RGB", (picture.width, picture.height + len(lines) * (LETTERS + 3) + GAP), (0, 0, 0))
    whole.paste(picture, (0, 0))
    ImageDraw.Draw(whole).multiline_text((GAP, picture.height), "\n".join(lines), (255, 255, 255), font, spacing=2)
    return whole


def plane(images: Tensor) -> Image.Image:
    """Images of two values [N, ...] in [0, 1] as points of a square: x to the right, y upwards."""
    x, y = (images.flatten(1).clamp(0, 1) * (SIDE - POINT)).round().long().cpu().unbind(1)
    pixels = torch.tensor(GROUND, dtype=torch.uint8).repeat(SIDE, SIDE, 1)
    for right, up in product(range(POINT), range(POINT)):
        pixels[SIDE - 1 - y - up, x + right] = 255
    return Image.fromarray(pixels.numpy())


def write_sheet(path: Path, images: Tensor, columns: int = 8, caption: str = "") -> Path:
    """Writes a sheet; returns the path."""
    return _saved(path, sheet(images, columns, caption))


def write_film(path: Path, frames: Iterable[Tensor], columns: int = 8, caption: str = "") -> Path:
    """Writes a gif of sheets of images [N, C, H, W] as they grow, the last of them held; returns the path."""
    return _write_gif(path, [_indexed(sheet(x, columns, caption), grey=x.shape[1] == 1) for x in frames], FRAME_MS)


def write_training_film(path: Path, sheets: Iterable[Path]) -> Path:
    """Writes a gif of sheets that were written as the model learned, the last of them held; returns the path."""
    pictures = [read_sheet(sheet) for sheet in sheets]
    return _write_gif(path, [_indexed(picture, grey=False) for picture in pictures], SHEET_MS)


def _write_gif(path: Path, pictures: list[Image.Image], milliseconds: int) -> Path:
    first, *rest = pictures
    durations = [milliseconds] * len(rest) + [LAST_MS]
    return _saved(path, first, save_all=True, append_images=rest, duration=durations, loop=0)


def _saved(path: Path, picture: Image.Image, **how) -> Path:
    """Written whole or not at all, never through a link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        picture.save(beside, **how)
    return path


def read_sheet(path: Path) -> Image.Image:
    """A sheet of a run folder, RGB; no link is followed, nothing but a PNG of a sheet's size read. Raises UserError."""
    try:
        with warnings.catch_warnings(), opened(path) as file:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file, formats=["PNG"]).convert("RGB")
    except UserError:
        raise
    except Exception as error:  # damaged files raise whatever their bytes led the decoder to
        raise UserError(f"{path} is not a sheet that can be read ({error}); delete it") from error


def _indexed(picture: Image.Image, grey: bool) -> Image.Image:
    """The 256 colours that a gif has room for, those of a colour sheet chosen quickly."""
    return picture.convert("L") if grey else picture.quantize(method=Image.Quantize.FASTOCTREE)


def thinned(frames: Iterable[Tensor], most: int = FILM_FRAMES) -> list[Tensor]:
    """Between half of `most` and `most` of any number of frames, evenly spaced from the first on, and the last one."""
    kept: list[Tensor] = []
    stride = 1
    for i, frame in enumerate(frames):
        if i % stride == 0:
            kept.append(frame)
        if len(kept) == most:
            kept, stride = kept[::2], 2 * stride
    return kept if kept[-1] is frame else [*kept, frame]


def side_by_side(*images: Tensor) -> Tensor:
    """K of [N, ...] as one [K N, ...] of pairs, triples, ..."""
    return torch.stack(images, 1).flatten(0, 1)


def in_rows(classes: int, count: int) -> tuple[Tensor | None, int]:
    """Labels [N] of about `count` images, a class a row, and the columns; without classes none, and 8."""
    if not 0 < classes <= count:
        return None, 8
    columns = count // classes
    return torch.arange(classes).repeat_interleave(columns), columns
