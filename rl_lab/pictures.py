"""Drawings for videos: a gridworld with its values and policy, the bars beside a picture, the words around it."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps

from rl_lab.envs.gridworld import MOVES
from rl_lab.envs.mdp import Layout

PAPER, INK, FAINT, EDGE, WALL = "#FFFFFF", "#1F2328", "#6E7781", "#D0D7DE", "#2B303B"
AGENT, BAR, GROOVE = "#D55E00", "#9DB4CE", "#F0F2F5"  # the action that is taken has the agent's colour
GOAL, PIT = "#009E73", "#B5179E"
VIRIDIS = ["#440154", "#472D7B", "#3B528B", "#2C728E", "#21918C", "#28AE80", "#5EC962", "#ADDC30", "#FDE725"]
PANEL = 272  # pixels across
FINE = 4  # round things are drawn so many times larger, then averaged
RIM, LEGEND = 3, 272  # pixels of wall around a gridworld; pixels across of the scale below it
SIZE = 480  # pixels: small pictures are enlarged to about this height


# -- words


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
    width = picture.width
    page = Image.new("RGB", (width + 2 * margin, picture.height + 56 + margin), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((margin, 26), fitted(title, 18, width), INK, font(18), "ls")
    draw.text((margin, 45), fitted(subtitle, 13, width), FAINT, font(13), "ls")
    page.paste(picture, (margin, 56))
    return page


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """From left to right, tops aligned, on paper of even width and height."""
    width, height = sum(p.width for p in pictures), max(p.height for p in pictures)
    page = Image.new("RGB", (width + width % 2, height + height % 2), PAPER)
    x = 0
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
        self.layout, self.cell = layout, min(96, max(24, SIZE // max(rows, columns)))
        free = [s for s, cell in enumerate(layout.cells) if cell not in layout.cell_reward]
        self.low, self.high = (float(f(value[free])) for f in (np.min, np.max))
        unit = self.cell * FINE
        fine = Image.new("RGB", (columns * unit, rows * unit), WALL)
        draw = ImageDraw.Draw(fine)
        for s in free:
            y, x = layout.cells[s]
            ground = viridis((value[s] - self.low) / (self.high - self.low) if self.high > self.low else 0.5)
            draw.rectangle((x * unit + FINE, y * unit + FINE, (x + 1) * unit - FINE - 1, (y + 1) * unit - FINE - 1), ground)
            best = bars[s] > bars[s].max() - 1e-6 * max(1.0, np.ptp(bars))
            moves = [MOVES[a] for a, is_best in zip(actions, best, strict=True) if is_best and a in MOVES]
            for move in moves:
                _arrow(draw, (x + 0.5) * unit, (y + 0.5) * unit, move, unit, len(moves) > 1, _ink_on(ground))
        for (y, x), reward in layout.cell_reward.items():
            colour = GOAL if reward > 0 else PIT
            box = (x * unit + FINE, y * unit + FINE, (x + 1) * unit - FINE - 1, (y + 1) * unit - FINE - 1)
            draw.rectangle(box, PAPER, colour, unit // 12)
        board = ImageOps.expand(fine.reduce(FINE), RIM, WALL)
        self.picture = Image.new("RGB", (max(board.width, LEGEND), board.height + 34), PAPER)
        self.left = (self.picture.width - board.width) // 2 + RIM
        self.picture.paste(board, (self.left - RIM, 0))
        self._label()
        self._disc = _disc(self.cell)

    def _label(self) -> None:
        """Rewards, start cells, and the scale of the colours below."""
        draw, cell = ImageDraw.Draw(self.picture), self.cell
        for (y, x), reward in self.layout.cell_reward.items():
            colour, text = GOAL if reward > 0 else PIT, f"{reward:+.3g}"
            size = next(s for s in range(int(0.42 * cell), 5, -1) if font(s).getlength(text) < 0.72 * cell or s == 6)
            draw.text(self.centre(y, x), text, colour, font(size), "mm")
        for y, x in self.layout.cells:
            if self.layout.rows[y][x] == "S":
                cx, cy = self.centre(y, x)
                value_ink = _ink_on(self.picture.getpixel((cx, cy + cell // 2 - 3)))
                draw.text((cx - cell // 2 + cell // 10 + 1, cy - cell // 2 + cell // 14 + 1), "S", value_ink, font(max(9, cell // 4)), "lt")
        y, x, width = self.picture.height - 16, self.picture.width // 2 - 60, 120
        for i in range(width):
            draw.line((x + i, y, x + i, y + 9), viridis(i / (width - 1)))
        draw.text((x - 8, y + 9), f"value  {number(self.low)}", FAINT, font(12), "rs")
        draw.text((x + width + 8, y + 9), number(self.high), FAINT, font(12), "ls")

    def centre(self, y: int, x: int) -> tuple[int, int]:
        """In pixels (x, y) of the picture."""
        return self.left + int((x + 0.5) * self.cell), RIM + int((y + 0.5) * self.cell)

    def with_agent(self, state: int) -> Image.Image:
        """Without it where the state has no cell."""
        picture = self.picture.copy()
        if state < len(self.layout.cells):
            x, y = self.centre(*self.layout.cells[state])
            picture.paste(self._disc, (x - self._disc.width // 2, y - self._disc.height // 2), self._disc)
        return picture


def viridis(share: float) -> tuple[int, int, int]:
    """Dark to bright, in equal steps for every kind of eye; share in [0, 1]."""
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in VIRIDIS])
    at = np.clip(share, 0.0, 1.0) * (len(stops) - 1)
    return tuple(int(round(np.interp(at, range(len(stops)), stops[:, i]))) for i in range(3))


def _ink_on(ground: tuple[int, int, int]) -> str:
    r, g, b = ground
    return INK if 0.299 * r + 0.587 * g + 0.114 * b > 130 else PAPER


def _arrow(draw: ImageDraw.ImageDraw, x: float, y: float, move: tuple[int, int], unit: int, is_one_of_many: bool, colour: str) -> None:
    """Through the middle of the cell, or outwards from it where there are several."""
    dy, dx = move
    tail, tip, head, half = (0.04, 0.36, 0.13, 0.09) if is_one_of_many else (-0.24, 0.28, 0.19, 0.13)
    at = lambda along, across: (x + unit * (along * dx - across * dy), y + unit * (along * dy + across * dx))  # noqa: E731
    draw.line((at(tail, 0), at(tip - head, 0)), colour, max(1, round(unit * 0.055)))
    draw.polygon((at(tip, 0), at(tip - head, half), at(tip - head, -half)), colour)


def _disc(cell: int) -> Image.Image:
    size = int(cell * 0.62) // 2 * 2 + 1
    fine = Image.new("RGBA", (size * FINE, size * FINE))
    draw, edge = ImageDraw.Draw(fine), size * FINE - 1
    for inset, colour in ((0, INK), (0.045, PAPER), (0.13, AGENT)):
        draw.ellipse((inset * edge, inset * edge, (1 - inset) * edge, (1 - inset) * edge), colour)
    return fine.reduce(FINE)


# -- what the agent thinks


class Panel:
    """Episode, step, reward so far and value as words, then a bar for each action.

    Probabilities are drawn from 0 to 1, action values from the least to the greatest seen so far.
    """

    def __init__(self, actions: Sequence[str], kind: str, height: int):
        self.actions, self.kind = actions, kind
        self.row = max(15, min(28, (height - 178) // len(actions)))
        self.size = min(14, self.row - 3)
        self.height = max(height, 178 + self.row * len(actions))
        names = [fitted(a, self.size, 104) for a in actions]
        self.left = 18 + int(max(font(self.size).getlength(n) for n in names)) + 10
        self.right = PANEL - 58
        self.low, self.high = (0.0, 1.0) if kind == "probabilities" else (np.inf, -np.inf)
        self.picture = Image.new("RGB", (PANEL, self.height), PAPER)
        draw = ImageDraw.Draw(self.picture)
        for i, text in enumerate(("episode", "step", "reward so far", "value")):
            draw.text((18, 16 + 24 * i), text, FAINT, font(14), "ls")
        draw.text((18, 136), kind, INK, font(15), "ls")
        for i, name in enumerate(names):
            draw.text((self.left - 10, self._middle(i)), name, INK, font(self.size), "rm")

    def _middle(self, i: int) -> float:
        return 150 + (i + 0.5) * self.row

    def draw(self, facts: Sequence[str], note: str, bars: Sequence[float], action: int) -> Image.Image:
        """facts: episode, step, reward so far and value as text; note: why the episode is over, or ""."""
        picture = self.picture.copy()
        draw = ImageDraw.Draw(picture)
        if self.kind != "probabilities":
            self.low, self.high = min(self.low, *bars), max(self.high, *bars)
        for i, text in enumerate(facts):
            draw.text((PANEL - 8, 16 + 24 * i), text, INK, font(14), "rs")
        draw.text((PANEL - 8, 136), note, AGENT, font(14), "rs")
        for i, bar in enumerate(bars):
            y, thickness = self._middle(i), round(self.row * 0.62)
            top = round(y - thickness / 2)
            width = self.right - self.left
            draw.rectangle((self.left, top, self.right, top + thickness - 1), GROOVE)
            filled = round(width * (bar - self.low) / (self.high - self.low or 1.0))
            draw.rectangle((self.left, top, self.left + max(1, filled), top + thickness - 1), AGENT if i == action else BAR)
            draw.text((PANEL - 8, y), f"{bar:.2f}" if self.kind == "probabilities" else number(bar), INK, font(self.size), "rm")
        y = 150 + self.row * len(bars) + 14
        draw.text((self.left, y), number(self.low) if self.kind != "probabilities" else "0", FAINT, font(11), "ls")
        draw.text((self.right, y), number(self.high) if self.kind != "probabilities" else "1", FAINT, font(11), "rs")
        return picture
