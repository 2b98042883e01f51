"""Drawings for films: a gridworld with its values and policy, the bars beside a picture, the words around it."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps

from rl_lab.envs.gridworld import MOVES
from rl_lab.mdp import Layout

PAPER, INK, FAINT, EDGE, WALL = "#FFFFFF", "#1F2328", "#6E7781", "#D0D7DE", "#2B303B"
AGENT, BAR, GROOVE = "#D55E00", "#9DB4CE", "#F0F2F5"  # the action that is taken has the agent's colour
GOAL, PIT = "#009E73", "#B5179E"
# Matplotlib's viridis: dark to bright in equal steps, for every kind of eye.
VIRIDIS = np.array([(68, 1, 84), (71, 45, 123), (59, 82, 139), (44, 114, 142), (33, 145, 140), (40, 174, 128),
                    (94, 201, 98), (173, 220, 48), (253, 231, 37)])  # fmt: skip
SIZE = 480  # pixels: pictures are enlarged to about this height
FINE = 4  # round and slanted things are drawn so many times larger, then averaged
RIM, LEGEND = 3, 300  # pixels of wall around a gridworld; pixels across of the scale below it
PANEL, TOP = 272, 150  # pixels: the panel's width, and where its bars begin


# -- words and pages


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def number(x: float) -> str:
    """Three digits, and whole numbers from a thousand on."""
    return f"{x:,.0f}" if abs(x) >= 999.5 else f"{x:#.3g}".rstrip(".")


def fitted(text: str, size: int, width: int) -> str:
    """As much of the text as `width` pixels hold."""
    while font(size).getlength(text) > width and len(text) > 1:
        text = text[:-2].rstrip() + "…"
    return text


def titled(picture: Image.Image, title: str, subtitle: str, margin: int = 16) -> Image.Image:
    """The picture on paper, under two lines."""
    page = Image.new("RGB", (picture.width + 2 * margin, picture.height + 56 + margin), PAPER)
    draw = ImageDraw.Draw(page)
    for y, text, size, ink in ((26, title, 18, INK), (45, subtitle, 13, FAINT)):
        draw.text((margin, y), fitted(text, size, picture.width), ink, font(size), "ls")
    page.paste(picture, (margin, 56))
    return page


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """From left to right, tops aligned, on paper of even width and height."""
    width, height = sum(p.width for p in pictures), max(p.height for p in pictures)
    page, x = Image.new("RGB", (width + width % 2, height + height % 2), PAPER), 0
    for picture in pictures:
        page.paste(picture, (x, 0))
        x += picture.width
    return page


def indexed(picture: Image.Image, before: Image.Image | None) -> Image.Image:
    """In 256 colours: those of the picture before it wherever they serve, which keeps a gif small."""
    if before:
        same = picture.quantize(palette=before, dither=Image.Dither.NONE)
        if max(high for _, high in ImageChops.difference(same.convert("RGB"), picture).getextrema()) <= 32:
            return same
    return picture.quantize(method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


# -- worlds


def enlarged(pixels: np.ndarray) -> Image.Image:
    """uint8 [H, W, 3] as a picture with a thin frame, each pixel a square."""
    height, width, _ = pixels.shape
    zoom = max(1, round(SIZE / height))
    picture = Image.fromarray(pixels).resize((zoom * width, zoom * height), Image.Resampling.NEAREST)
    return ImageOps.expand(picture, 1, EDGE)


class Board:
    """A gridworld with the value of each cell as its colour and the best actions as arrows; then the agent on it."""

    def __init__(self, layout: Layout, actions: Sequence[str], value: np.ndarray, bars: np.ndarray):
        """value [S] and bars [S, A] of the states, in the layout's order; actions that are no moves get no arrow."""
        rows, columns = len(layout.rows), len(layout.rows[0])
        self.layout, self.cell, inks = layout, min(96, max(24, SIZE // max(rows, columns))), {}
        free = [s for s, cell in enumerate(layout.cells) if cell not in layout.cell_reward]
        self.low, self.high = float(value[free].min()), float(value[free].max())
        unit = self.cell * FINE
        fine = Image.new("RGB", (columns * unit, rows * unit), WALL)
        draw = ImageDraw.Draw(fine)
        for s in free:
            y, x = layout.cells[s]
            ground = viridis((value[s] - self.low) / (self.high - self.low) if self.high > self.low else 0.5)
            inks[y, x] = INK if np.dot(ground, (0.299, 0.587, 0.114)) > 130 else PAPER
            draw.rectangle(_square(y, x, unit), ground)
            best, spread = bars[s].max(), np.ptp(bars[s])
            moves = [MOVES[a] for a, bar in zip(actions, bars[s], strict=True)
                     if a in MOVES and bar >= best - 1e-6 * spread - 1e-9 * abs(best)]  # fmt: skip
            for move in moves:
                _arrow(draw, (y + 0.5) * unit, (x + 0.5) * unit, unit, move, inks[y, x], len(moves) > 1)
        for (y, x), reward in layout.cell_reward.items():
            draw.rectangle(_square(y, x, unit), PAPER, GOAL if reward > 0 else PIT, unit // 12)
        board = ImageOps.expand(fine.reduce(FINE), RIM, WALL)
        self.picture = Image.new("RGB", (max(board.width, LEGEND), board.height + 34), PAPER)
        self.left = (self.picture.width - board.width) // 2 + RIM
        self.picture.paste(board, (self.left - RIM, 0))
        self._label(inks)
        self._disc = _disc(self.cell)

    def _label(self, inks: dict[tuple[int, int], str]) -> None:
        """Rewards, start cells, and the scale of the colours below."""
        draw, cell = ImageDraw.Draw(self.picture), self.cell
        for (y, x), reward in self.layout.cell_reward.items():
            text = f"{reward:+.3g}"
            size = next(s for s in range(int(0.42 * cell), 5, -1) if s == 6 or font(s).getlength(text) < 0.72 * cell)
            draw.text(self.centre(y, x), text, GOAL if reward > 0 else PIT, font(size), "mm")
        for (y, x), ink in inks.items():
            if self.layout.rows[y][x] == "S":
                corner = self.left + (x + 0.1) * cell + 1, RIM + (y + 0.07) * cell + 1
                draw.text(corner, "S", ink, font(max(9, cell // 4)), "lt")
        y, x, width = self.picture.height - 16, self.picture.width // 2 - 60, 120
        for i in range(width):
            draw.line((x + i, y, x + i, y + 9), viridis(i / (width - 1)))
        draw.text((x - 8, y + 9), f"value  {number(self.low)}", FAINT, font(12), "rs")
        draw.text((x + width + 8, y + 9), number(self.high), FAINT, font(12), "ls")

    def centre(self, y: int, x: int) -> tuple[int, int]:
        """Of a cell, in pixels (x, y) of the picture."""
        return self.left + int((x + 0.5) * self.cell), RIM + int((y + 0.5) * self.cell)

    def with_agent(self, state: int) -> Image.Image:
        """Without it where the state has no cell."""
        picture = self.picture.copy()
        if state < len(self.layout.cells):
            x, y = self.centre(*self.layout.cells[state])
            picture.paste(self._disc, (x - self._disc.width // 2, y - self._disc.height // 2), self._disc)
        return picture


def viridis(share: float) -> tuple[int, int, int]:
    """The colour at a share in [0, 1] of the scale."""
    at = share * (len(VIRIDIS) - 1)
    return tuple(round(float(np.interp(at, range(len(VIRIDIS)), channel))) for channel in VIRIDIS.T)


def _square(y: int, x: int, unit: int) -> tuple[int, int, int, int]:
    return x * unit + FINE, y * unit + FINE, (x + 1) * unit - FINE - 1, (y + 1) * unit - FINE - 1


def _arrow(draw: ImageDraw.ImageDraw, y: float, x: float, unit: int, move: tuple[int, int], ink: str, outwards: bool):
    """Through the middle (y, x) of a cell, or from it `outwards` to leave room for others."""
    tail, tip, head, half = (0.04, 0.36, 0.13, 0.09) if outwards else (-0.24, 0.28, 0.19, 0.13)
    dy, dx = (unit * d for d in move)

    def at(along: float, across: float) -> tuple[float, float]:
        return x + along * dx - across * dy, y + along * dy + across * dx

    draw.line((at(tail, 0), at(tip - head, 0)), ink, max(1, round(unit * 0.055)))
    draw.polygon((at(tip, 0), at(tip - head, half), at(tip - head, -half)), ink)


def _disc(cell: int) -> Image.Image:
    size = int(cell * 0.62) // 2 * 2 + 1
    fine, edge = Image.new("RGBA", (size * FINE, size * FINE)), size * FINE - 1
    for inset, colour in ((0, INK), (0.045, PAPER), (0.13, AGENT)):
        ImageDraw.Draw(fine).ellipse((inset * edge, inset * edge, (1 - inset) * edge, (1 - inset) * edge), colour)
    return fine.reduce(FINE)


# -- what the agent thinks


class Panel:
    """Facts as words, then a bar for each action.

    Probabilities are drawn from 0 to 1, action values from the least to the greatest that this panel has shown.
    """

    def __init__(self, facts: Sequence[str], actions: Sequence[str], kind: str, height: int):
        self.is_share = kind == "probabilities"
        self.low, self.high = (0.0, 1.0) if self.is_share else (np.inf, -np.inf)
        self.row = max(15, min(28, (height - TOP - 28) // len(actions)))
        self.size = min(14, self.row - 3)
        names = [fitted(a, self.size, 104) for a in actions]
        self.left = 28 + int(max(font(self.size).getlength(n) for n in names))
        self.right = PANEL - 58
        self.picture = Image.new("RGB", (PANEL, max(height, TOP + 28 + self.row * len(actions))), PAPER)
        draw = ImageDraw.Draw(self.picture)
        for i, fact in enumerate(facts):
            draw.text((18, 16 + 24 * i), fact, FAINT, font(14), "ls")
        draw.text((18, TOP - 14), kind, INK, font(15), "ls")
        for i, name in enumerate(names):
            draw.text((self.left - 10, TOP + (i + 0.5) * self.row), name, INK, font(self.size), "rm")

    def draw(self, facts: Sequence[str], note: str, bars: Sequence[float], action: int) -> Image.Image:
        """`note` stands above the numbers; the bar of `action` is the one in colour."""
        picture, thickness = self.picture.copy(), round(self.row * 0.62)
        draw = ImageDraw.Draw(picture)
        if not self.is_share:
            self.low, self.high = min(self.low, *bars), max(self.high, *bars)
        for i, fact in enumerate(facts):
            draw.text((PANEL - 8, 16 + 24 * i), fact, INK, font(14), "rs")
        draw.text((PANEL - 8, TOP - 14), note, AGENT, font(14), "rs")
        for i, bar in enumerate(bars):
            middle = TOP + (i + 0.5) * self.row
            top = round(middle - thickness / 2)
            filled = (self.right - self.left) * (bar - self.low) / (self.high - self.low or 1.0)
            for x, colour in ((self.right, GROOVE), (self.left + max(1, round(filled)), AGENT if i == action else BAR)):
                draw.rectangle((self.left, top, x, top + thickness - 1), colour)
            draw.text((PANEL - 8, middle), f"{bar:.2f}" if self.is_share else number(bar), INK, font(self.size), "rm")
        for x, end, anchor in ((self.left, self.low, "ls"), (self.right, self.high, "rs")):
            text = f"{end:g}" if self.is_share else number(end)
            draw.text((x, TOP + 14 + self.row * len(bars)), text, FAINT, font(11), anchor)
        return picture
