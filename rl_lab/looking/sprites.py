"""Shapes for the cells of a gridworld, as masks of `cell` pixels a side, with smooth edges."""

from collections.abc import Mapping
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

FINE = 4  # round and slanted things are drawn this many times larger, then averaged
Place = tuple[int, int]  # (y, x) of a cell


@cache
def arrows(cell: int, moves: tuple[Place, ...], raised: bool) -> Image.Image:
    """One through the middle of the cell, or several from it outwards; `raised` leaves room for a line below."""
    unit = cell * FINE
    fine, scale = Image.new("L", (unit, unit)), unit * (0.84 if raised else 1.0)
    draw, middle = ImageDraw.Draw(fine), (0.5 * unit, (0.41 if raised else 0.5) * unit)
    tail, tip, head, half = (0.05, 0.38, 0.16, 0.11) if len(moves) > 1 else (-0.26, 0.30, 0.21, 0.15)
    for dy, dx in moves:

        def at(along: float, across: float, dy: int = dy, dx: int = dx) -> tuple[float, float]:
            return (middle[0] + scale * (along * dx - across * dy), middle[1] + scale * (along * dy + across * dx))

        draw.line((at(tail, 0), at(tip - head, 0)), 255, max(round(1.4 * FINE), round(scale * 0.06)))
        draw.polygon((at(tip, 0), at(tip - head, half), at(tip - head, -half)), 255)
    return fine.reduce(FINE)


@cache
def disc(size: int, *colours: str) -> Image.Image:
    """RGBA: a rim, a gap and the filling in three colours; `size` pixels across."""
    fine, edge = Image.new("RGBA", (size * FINE, size * FINE)), size * FINE - 1
    for inset, colour in zip((0, 0.045, 0.13), colours, strict=True):
        ImageDraw.Draw(fine).ellipse((inset * edge, inset * edge, (1 - inset) * edge, (1 - inset) * edge), colour)
    return fine.reduce(FINE)


@cache
def quarters(cell: int) -> np.ndarray:
    """int64 [cell, cell]: which side a pixel is nearest to: 0 above, then clockwise."""
    y, x = np.indices((cell, cell)) - (cell - 1) / 2
    upright = abs(y) > abs(x)
    return np.where(upright & (y < 0), 0, np.where(upright, 2, np.where(x > 0, 1, 3)))


@cache
def diagonals(cell: int) -> Image.Image:
    fine, edge = Image.new("L", (cell * FINE, cell * FINE)), cell * FINE - 1
    for line in ((0, 0, edge, edge), (0, edge, edge, 0)):
        ImageDraw.Draw(fine).line(line, 255, FINE)
    return fine.reduce(FINE)


@cache
def outline(cell: int, side: int) -> Image.Image:
    """Just inside the triangle on a side, counted as in `quarters`."""
    edge = cell * FINE - 1
    width = max(FINE, round(0.028 * edge))
    fine = Image.new("L", (cell * FINE, cell * FINE))
    gap = 1.6 * FINE + width / 2  # from the line between the cells, and from the diagonals
    base, top = (gap * 2.4, gap), edge / 2 - 1.4 * gap
    corners = [base, (edge - base[0], base[1]), (edge / 2, top)]  # of the upper one
    for _ in range(side):
        corners = [(edge - y, x) for x, y in corners]  # a quarter turn clockwise
    ImageDraw.Draw(fine).line([*corners, *corners[:2]], 255, width, joint="curve")
    return fine.reduce(FINE)


def draw_curves(board: Image.Image, ways: Mapping[Place, Place], cell: int, ink: str, halo: str) -> None:
    """A bowed arrow from each cell to another, past their middles; dark in a bright seam, to be seen on all."""
    for colour, seam in ((halo, 1.2 * FINE), (ink, 0.0)):
        fine = Image.new("L", (board.width * FINE, board.height * FINE))
        for way in ways.items():
            if way[0] != way[1]:
                _draw_curve(ImageDraw.Draw(fine), np.add(way, 0.5)[:, ::-1] * cell * FINE, cell * FINE, seam)
        board.paste(colour, (0, 0), fine.reduce(FINE))


def _draw_curve(draw: ImageDraw.ImageDraw, ends: np.ndarray, unit: int, seam: float) -> None:
    """A parabola between two points (x, y); all in pixels, `seam` of them added on each side."""
    start, stop = ends
    length = np.linalg.norm(stop - start)
    dx, dy = (stop - start) / length
    across = np.array([dy, -dx])
    start, stop = ends + 0.36 * unit * across
    bow = (start + stop) / 2 + across * (0.06 * length + 0.12 * unit)
    t = np.linspace(0, 1, 60)[:, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bow + t**2 * stop
    along = (stop - bow) / np.linalg.norm(stop - bow)
    side, head = np.array([-along[1], along[0]]) * (0.055 * unit + 1.6 * seam), along * 0.15 * unit
    draw.line([tuple(p) for p in points[:-4]], 255, round(max(1.5 * FINE, 0.025 * unit) + 2 * seam), joint="curve")
    corners = stop + 2 * seam * along, stop - head - seam * along + side, stop - head - seam * along - side
    draw.polygon([tuple(corner) for corner in corners], 255)
