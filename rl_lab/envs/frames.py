"""Turns whatever `render()` returns into a picture: floats, greys, lists of frames, text."""

import math
import re
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rl_lab.core.errors import UserError
from rl_lab.core.style import INK, PAPER

FPS, SLOWEST, FASTEST = 30, 0.1, 240  # frames a second: where a world declares none, and the bounds
CELL, LINES, COLUMNS = (9, 18), 60, 160  # of text: pixels across and down, and as much of it as is shown


def speed(fps: Any) -> float:
    """Frames a second, from what a world declares."""
    is_valid = isinstance(fps, int | float | np.number) and math.isfinite(fps) and SLOWEST <= fps <= FASTEST
    return fps if is_valid else FPS


def as_picture(frame: Any, id: str) -> np.ndarray:
    """uint8 [H, W, 3]. Raises UserError where it is no picture."""
    if isinstance(frame, list | tuple) and frame and not isinstance(frame[-1], list | tuple):
        frame = frame[-1]  # render modes that end in _list give all frames since they were asked last
    if isinstance(frame, str):
        return lettered(frame)
    if hasattr(frame, "getvalue"):  # a StringIO, of old text worlds
        return lettered(str(frame.getvalue()))
    x = np.asarray(frame)
    if x.ndim == 3 and x.shape[0] in (1, 3, 4) and x.shape[2] not in (1, 3, 4):
        x = x.transpose(1, 2, 0)
    if x.ndim == 2:
        x = x[..., None]
    if x.ndim != 3 or x.shape[2] not in (1, 3, 4) or not x.size or x.dtype.kind not in "biuf":
        what = "nothing" if frame is None else f"a {type(frame).__name__} of shape {np.shape(x)}"
        raise UserError(f"env.id={id} cannot be drawn: its render() returns {what}, not an image [H, W, 3]")
    x = as_bytes(x)
    return np.repeat(x, 3, 2) if x.shape[2] == 1 else np.ascontiguousarray(x[..., :3])


def as_bytes(x: np.ndarray) -> np.ndarray:
    """uint8, from booleans, from shares up to 1, or from numbers up to 255."""
    if x.dtype == np.uint8:
        return x
    x = np.nan_to_num(x.astype(np.float64), posinf=255.0, neginf=0.0)
    return np.rint((x * 255 if x.max() <= 1 else x).clip(0, 255)).astype(np.uint8)


def lettered(text: str) -> np.ndarray:
    """uint8 [H, W, 3]: the text, each of its characters in a cell of its own, without the colours of a terminal."""
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).expandtabs(4).splitlines()[:LINES] or [""]
    width, height = CELL
    size = (width * (2 + min(COLUMNS, max(map(len, lines)))), height * (1 + len(lines)))
    page = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for y, line in enumerate(lines):
        for x, letter in enumerate(line[:COLUMNS]):
            draw.text(((x + 1.5) * width, (y + 1) * height), letter, INK, font, "mm")
    return np.asarray(page)
