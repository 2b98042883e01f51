"""Gridworlds from above: values as colours, the best actions as arrows, or the four Q-values of each cell."""

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import chain, zip_longest

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from rl_lab.envs.tabular.gridworld import MOVES
from rl_lab.envs.tabular.mdp import Layout
from rl_lab.looking import sprites
from rl_lab.looking.panels import AGENT, FAINT, INK, PAPER, SIZE, SMALLEST, figures, font, largest_font, number

WALL, FLOOR, GOAL, PIT = "#2B303B", "#EEF1F4", "#009E73", "#B5179E"
# Matplotlib's viridis: dark to bright in equal steps, for every kind of eye.
VIRIDIS = np.array([(68, 1, 84), (71, 45, 123), (59, 82, 139), (44, 114, 142), (33, 145, 140), (40, 174, 128),
                    (94, 201, 98), (173, 220, 48), (253, 231, 37)])  # fmt: skip
SHADES = np.stack([np.interp(np.linspace(0, 8, 256), range(9), x) for x in VIRIDIS.T], -1).round().astype(np.uint8)
MARKS = WALL, GOAL, PIT, INK, FAINT, AGENT  # what is drawn on paper
RIM, LEGEND = 3, 300  # pixels of wall around a gridworld; pixels across of the scale below it
DETAILED, LARGE = 50, 900  # cells a side that get arrows; pixels, about, that more of them share
ARROWS, NUMBERS = 18, 40  # pixels: the smallest cells that have them

Scale = tuple[float, float]  # the values of the darkest and of the brightest colour
Look = tuple[bytes, bytes, str, int]  # of a cell: its colour, its best actions, its number and the height of that


class Board:
    """A gridworld with the value of each cell as its colour and the best actions as arrows; then the agent on it.

    Actions that are no moves are written by their names. Without values it is plain; beyond 50 cells a side it is an
    image of a few pixels a cell, the ends and the start ringed.
    """

    def __init__(
        self,
        layout: Layout,
        actions: Sequence[str] = (),
        value: np.ndarray | None = None,  # [S]
        bars: np.ndarray | None = None,  # [S, A], greatest for the best action
        *,
        scale: Scale | None = None,  # None: from the least to the greatest value
        size: int = SIZE,  # pixels, about
        known: np.ndarray | None = None,  # [S] bool: others are pale, and count in no scale; None: all
        word: str = "value",  # of what the colours are
    ):
        self.layout, self.actions, self.grid, self.word = layout, actions, Grid(layout, size, largest=96), word
        self.cell, self.scale = self.grid.cell, scale
        self.known = np.ones(len(self.grid.free), bool) if known is None else known[self.grid.free]
        self.limits: Scale = (0.0, 0.0)  # of the values that are shown
        self._looks: list[Look] = []
        self.show(value, bars)
        self._disc = sprites.disc(max(9, int(self.cell * 0.62) // 2 * 2 + 1), INK, PAPER, AGENT)

    def show(self, value: np.ndarray | None, bars: np.ndarray | None) -> bool:
        """Other values and actions: the cells that look different are drawn anew. Whether any does."""
        grid, height, scale = self.grid, 0, self.scale
        texts = [""] * len(grid.free)
        shades = np.full((len(grid.free), 3), _rgb(FLOOR), np.uint8)
        if value is not None:
            self.limits = limits(value[grid.free][self.known])
            scale = scale or self.limits
            shades = np.where(self.known[:, None], viridis(value[grid.free], *scale), shades)
            if grid.cell >= NUMBERS:
                found, height = figures(value[grid.free], 0.84 * grid.cell, min(17, grid.cell // 5))
                texts = [text if known else "" for text, known in zip(found or texts, self.known, strict=True)]
        large = grid.cell >= ARROWS
        good = best(bars[grid.free]) if bars is not None and large else np.zeros((len(grid.free), 0), bool)
        good = good & self.known[:, None]
        cells = zip(map(bytes, shades), map(bytes, good), texts, strict=True)
        looks = [(*look, height) for look in cells] if large else [(bytes(shades), b"", "", 0)]
        changed = [i for i, (look, before) in enumerate(zip_longest(looks, self._looks)) if look != before]
        if self._looks and not changed:
            return False
        if not (self._looks and large):
            self._bare = grid.painted(shades)
        else:
            grid.paint(self._bare, changed, shades)
        if good.size:
            _draw_policy(self._bare, grid, changed, shades, self.actions, good, bool(height))
        for i in changed if height else ():
            y, x = (grid.places[i] * grid.cell).tolist()
            self._bare.paste(ink(shades[i]), (x, y), _written(texts[i], grid.cell, height))
        self._looks = looks
        board = self._bare.copy()
        grid.mark(board)
        pale = "" if scale is None or self.known.all() else "pale: never visited"
        self.picture, self.left = framed(board, scale, self.word, pale)
        return True

    def centre(self, y: int, x: int) -> tuple[int, int]:
        """Of a cell, in pixels (x, y) of the picture."""
        return self.left + int((x + 0.5) * self.cell), RIM + int((y + 0.5) * self.cell)

    def with_agent(self, cell: tuple[int, int] | None) -> Image.Image:
        """The picture with the agent in its cell; without it where that is None, off the map."""
        picture = self.picture.copy()
        if cell:
            x, y = self.centre(*cell)
            picture.paste(self._disc, (x - self._disc.width // 2, y - self._disc.height // 2), self._disc)
        return picture


class Grid:
    """The cells of a layout as squares of a picture, and what is drawn in them whatever their values."""

    def __init__(self, layout: Layout, size: int, *, largest: int):
        self.layout, self.height, self.width = layout, len(layout.rows), len(layout.rows[0])  # cells
        longest = max(self.height, self.width)
        if longest > DETAILED:
            self.cell = max(1, LARGE // longest)
        else:
            self.cell = min(largest, max(ARROWS, min(size // self.height, 8 * size // 5 // self.width)))
        places = np.fromiter(chain.from_iterable(layout.cells), np.int64).reshape(-1, 2)
        ends = np.zeros((self.height, self.width), bool)
        for place in layout.ends:
            ends[place] = True
        self.most = max((layout.cell_reward.get(place, 0.0) for place in layout.ends), default=0.0)
        self.free = np.flatnonzero(~ends[tuple(places.T)])  # [F] the states that have a value to show
        self.places = places[self.free]  # [F, 2] their (y, x)

    def painted(self, shades: np.ndarray) -> Image.Image:
        """Free cells in their uint8 colours, [F, 3] or pixel by pixel [F, cell, cell, 3]; lines between large ones."""
        cell, detailed = self.cell, self.cell >= ARROWS
        tiles = np.full((self.height, self.width, cell, cell, 3), _rgb(WALL), np.uint8)
        tiles[tuple(self.places.T)] = shades.reshape(len(shades), *shades.shape[1:-1] or (1, 1), 3)
        for place in self.layout.ends:
            tiles[place] = _rgb(PAPER if detailed else self._colour(place))
        if detailed:
            tiles[:, :, 0] = tiles[:, :, :, 0] = _rgb(WALL)
        return Image.fromarray(tiles.swapaxes(1, 2).reshape(self.height * cell, self.width * cell, 3))

    def paint(self, board: Image.Image, which: Sequence[int], shades: np.ndarray) -> None:
        """Large cells anew, within their lines."""
        draw, cell = ImageDraw.Draw(board), self.cell
        for (y, x), shade in zip(self.places[which].tolist(), shades[which].tolist(), strict=True):
            box = x * cell + 1, y * cell + 1, (x + 1) * cell - 1, (y + 1) * cell - 1
            draw.rectangle(box, tuple(shade))

    def mark(self, board: Image.Image) -> None:
        """Ends, rewards, starts and jumps."""
        draw, rows = ImageDraw.Draw(board), self.layout.rows
        starts = [(y, x) for y, row in enumerate(rows) for x, glyph in enumerate(row) if glyph == "S"]
        if self.cell < ARROWS:
            few = [(p, AGENT) for p in starts if len(starts) == 1] + [(p, self._colour(p)) for p in self.layout.ends]
            for place, colour in few[: 2 * DETAILED]:
                _ring(draw, place, self.cell, colour)
            return
        for place in self.layout.ends:
            _mark_end(draw, place, self.cell, self.layout.cell_reward.get(place, 0.0), self._colour(place))
        for place in self.layout.cell_reward.keys() - self.layout.ends:
            _tag(draw, place, self.cell, f"{self.layout.cell_reward[place]:+.3g}", self._colour(place))
        if self.layout.jumps:
            sprites.draw_curves(board, self.layout.jumps, self.cell, INK, PAPER)
        for y, x in starts if self.cell >= 30 and 2 * len(starts) < len(self.free) else ():
            _tag(draw, (y, x), self.cell, "S", INK)

    def _colour(self, place: tuple[int, int]) -> str:
        """An end that pays as much as any is a goal, whatever it pays."""
        reward = self.layout.cell_reward.get(place, 0.0)
        is_goal = reward > 0 or (place in self.layout.ends and reward == self.most)
        return GOAL if is_goal else PIT if reward < 0 else FAINT


# -- colours and numbers


def limits(x: np.ndarray) -> Scale:
    return (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)


def viridis(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 [..., 3]: the colours of x on the scale from low to high; the middle one where they differ by rounding."""
    differ = high - low > 1e-9 * max(abs(low), abs(high))
    share = (x - low) / (high - low) if differ else np.full(np.shape(x), 0.5)
    return SHADES[np.rint(255 * np.clip(share, 0, 1)).astype(np.int64)]


@cache
def palette() -> Image.Image:
    """The colours of a gif of boards: shades to within one of 256, and how what is drawn on them fades at its edges.

    It is chosen once for all: looking for the colours of a frame takes longer than drawing it.
    """
    fade = np.linspace(0, 0.8, 5)[:, None]
    written = [(1 - fade[1:]) * _rgb(ink(shade)) + fade[1:] * shade for shade in SHADES[4::9]]
    on_paper = [(1 - fade) * _rgb(colour) + fade * _rgb(PAPER) for colour in MARKS]
    colours = np.concatenate([SHADES[::3], *written, *on_paper, [_rgb(FLOOR), _rgb(PAPER)]]).round().astype(np.uint8)
    image = Image.new("P", (1, 1))
    image.putpalette(colours.tobytes())
    return image


def ink(shade: np.ndarray) -> str:
    """What can be read on it."""
    return INK if shade @ (0.299, 0.587, 0.114) > 130 else PAPER


def best(bars: np.ndarray) -> np.ndarray:
    """bool [..., A]: the greatest of each row, and what differs from it by rounding only."""
    top = bars.max(-1, keepdims=True)
    return bars >= top - 1e-6 * np.ptp(bars, -1, keepdims=True) - 1e-9 * abs(top)


# -- parts of a picture


def _draw_policy(
    board: Image.Image,
    grid: Grid,
    which: Sequence[int],
    shades: np.ndarray,
    actions: Sequence[str],
    good: np.ndarray,
    raised: bool,
) -> None:
    """Arrows to where the best actions, `good` [F, A], lead; where none of them is a move, the name of the first."""
    draw, cell = ImageDraw.Draw(board), grid.cell
    height = (0.41 if raised else 0.5) * cell
    for (y, x), shade, row in zip(grid.places[which].tolist(), shades[which], good[which], strict=True):
        names = [actions[a] for a in np.flatnonzero(row).tolist()]
        if not names:
            continue
        if moves := tuple(MOVES[name] for name in names if name in MOVES):
            board.paste(ink(shade), (x * cell, y * cell), sprites.arrows(cell, moves, raised))
        else:
            size = largest_font(names[0], 0.84 * cell, int((0.3 if raised else 0.46) * cell))
            draw.text(((x + 0.5) * cell, y * cell + height), names[0], ink(shade), font(size), "mm")


@lru_cache(1024)
def _written(text: str, cell: int, height: int) -> Image.Image:
    """What is written in a cell, as a mask of it."""
    mask = Image.new("L", (cell, cell))
    ImageDraw.Draw(mask).text((0.5 * cell, 0.85 * cell), text, 255, font(height), "mm")
    return mask


def _mark_end(draw: ImageDraw.ImageDraw, place: tuple[int, int], cell: int, reward: float, colour: str) -> None:
    y, x = place
    draw.rectangle(((x * cell + 1, y * cell + 1), ((x + 1) * cell - 1, (y + 1) * cell - 1)), PAPER, colour, cell // 12)
    text = f"{reward:+.3g}" if reward else "0"
    size = largest_font(text, 0.72 * cell, int(0.42 * cell))
    draw.text(((x + 0.5) * cell + 0.5, (y + 0.5) * cell + 0.5), text, colour, font(size), "mm")


def _tag(draw: ImageDraw.ImageDraw, place: tuple[int, int], cell: int, text: str, colour: str) -> None:
    """A few letters on paper, in the upper right corner of a cell; a mere dot in a small one."""
    right, top = (place[1] + 1) * cell - 2, place[0] * cell + 3
    if cell < 30:
        draw.rectangle((right - 5, top, right, top + 5), colour, PAPER)
        return
    letters = font(max(SMALLEST, cell // 7))
    left, _, _, bottom = draw.textbbox((right - 3, top + 2), text, letters, "rt")
    draw.rounded_rectangle((left - 3, top, right, bottom + 2), 3, PAPER)
    draw.text((right - 3, top + 2), text, colour, letters, "rt")


def _ring(draw: ImageDraw.ImageDraw, place: tuple[int, int], cell: int, colour: str) -> None:
    y, x, radius = (place[0] + 0.5) * cell, (place[1] + 0.5) * cell, cell / 2 + 6
    for extra, line, width in ((1, PAPER, 4), (0, colour, 2)):
        box = (x - radius - extra, y - radius - extra, x + radius + extra, y + radius + extra)
        draw.ellipse(box, None, line, width)


def framed(board: Image.Image, scale: Scale | None, word: str, note: str = "") -> tuple[Image.Image, int]:
    """The board in a rim of wall, the scale of its colours below, with a note; and where its cells begin."""
    board = ImageOps.expand(board, RIM, WALL)
    if scale is None:
        return board, RIM
    page = Image.new("RGB", (max(board.width, LEGEND), board.height + 34 + 20 * bool(note)), PAPER)
    left, draw = (page.width - board.width) // 2, ImageDraw.Draw(page)
    page.paste(board, (left, 0))
    y, x, width = board.height + 18, page.width // 2 - 60, 120
    page.paste(Image.fromarray(viridis(np.linspace(0, 1, width), 0, 1)[None].repeat(10, 0)), (x, y))
    draw.text((x - 8, y + 10), f"{word}  {number(scale[0])}", FAINT, font(14), "rs")
    draw.text((x + width + 8, y + 10), number(scale[1]), FAINT, font(14), "ls")
    draw.text((page.width // 2, y + 30), note, FAINT, font(14), "ms")
    return page, left + RIM


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))
