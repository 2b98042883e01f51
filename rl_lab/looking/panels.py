"""What stands around a picture: words, pages, and the panel of what an agent thinks of the moment."""

import re
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps

from rl_lab.core.style import INK, PAPER

FAINT, EDGE = "#6E7781", "#D0D7DE"
AGENT, BAR, GROOVE = "#D55E00", "#9DB4CE", "#F0F2F5"  # the action that is taken has the agent's colour
SIZE = 480  # pixels: pictures are enlarged to about this height
SMALLEST = 9  # pixels: of a font that can be read
PANEL, TOP = 272, 150  # pixels: the panel's width, and where its bars begin


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def number(x: float) -> str:
    """Three digits, and whole numbers from a thousand on; - where it is nan."""
    return "-" if x != x else f"{x:,.0f}" if abs(x) >= 999.5 else f"{x:#.3g}".rstrip(".")


def shortened(text: str, size: int, width: int) -> str:
    """As much of the text as `width` pixels hold."""
    while font(size).getlength(text) > width and len(text) > 1:
        text = text[:-2].rstrip() + "…"
    return text


def figures(x: np.ndarray, width: float, height: int, zero: str = "0") -> tuple[list[str], int]:
    """The numbers with as many decimals as `width` pixels hold, three digits at most; and the height of their font.

    `zero` is what stands before the point where nothing else does. None where not even two digits fit.
    """
    greatest = float(np.abs(x).max(initial=0.0))
    before = len(f"{greatest:.0f}") if greatest >= 0.9995 else 0
    for decimals in range(max(0, 3 - before), max(0, 2 - before) - 1, -1):
        texts = [_written(v, decimals, zero) for v in x.tolist()]
        longest = max(texts, key=len, default="")
        for size in range(max(height, SMALLEST), SMALLEST - 1, -1):
            if font(size).getlength(longest) <= width:
                return texts, size
    return [], 0


def _written(x: float, decimals: int, zero: str) -> str:
    text = f"{x:.{decimals}f}"
    if not float(text):
        text = text.removeprefix("-")
    return re.sub(r"^(-?)0\.", rf"\g<1>{zero}.", text)


@cache
def largest_font(text: str, width: float, size: int) -> int:
    """Pixels: of the largest font in which the text is no wider."""
    return next((s for s in range(size, 6, -1) if font(s).getlength(text) <= width), 6)


def titled(picture: Image.Image, title: str, subtitle: str, margin: int = 16) -> Image.Image:
    """The picture on paper, under two lines."""
    page = Image.new("RGB", (picture.width + 2 * margin, picture.height + 56 + margin), PAPER)
    draw = ImageDraw.Draw(page)
    for y, text, size, ink in ((26, title, 18, INK), (45, subtitle, 13, FAINT)):
        draw.text((margin, y), shortened(text, size, picture.width), ink, font(size), "ls")
    page.paste(picture, (margin, 56))
    return page


def captioned(picture: Image.Image, left: str, right: str) -> Image.Image:
    """The picture, and below it two words of what it shows."""
    page = Image.new("RGB", (picture.width + 12, picture.height + 30), PAPER)
    page.paste(picture, (0, 0))
    draw = ImageDraw.Draw(page)
    draw.text((0, picture.height + 18), left, INK, font(15), "ls")
    draw.text((picture.width, picture.height + 18), right, FAINT, font(15), "rs")
    return page


def noted(picture: Image.Image, words: str, margin: int = 16) -> Image.Image:
    """The picture over a line of words."""
    page = Image.new("RGB", (picture.width, picture.height + 26), PAPER)
    page.paste(picture, (0, 0))
    ImageDraw.Draw(page).text((margin, picture.height + 14), words, FAINT, font(14), "ls")
    return page


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """From left to right, tops aligned, on paper of even width and height."""
    width, height = sum(p.width for p in pictures), max(p.height for p in pictures)
    page, x = Image.new("RGB", (width + width % 2, height + height % 2), PAPER), 0
    for picture in pictures:
        page.paste(picture, (x, 0))
        x += picture.width
    return page


def above(picture: Image.Image, panel: Image.Image, gap: int = 12) -> Image.Image:
    """The picture, and the panel below it."""
    page = Image.new("RGB", (max(picture.width, panel.width), picture.height + gap + panel.height), PAPER)
    page.paste(picture, (0, 0))
    page.paste(panel, (0, picture.height + gap))
    return page


def in_rows(pages: Sequence[Image.Image], width: int) -> Image.Image:
    """In rows of equal length, as few as `width` pixels allow."""
    across = max(1, width // max(p.width for p in pages))
    rows = -(-len(pages) // across)
    across = -(-len(pages) // rows)
    lines = [side_by_side(pages[i : i + across]) for i in range(0, len(pages), across)]
    page, y = Image.new("RGB", (max(line.width for line in lines), sum(line.height for line in lines)), PAPER), 0
    for line in lines:
        page.paste(line, (0, y))
        y += line.height
    return page


def indexed(picture: Image.Image, before: Image.Image | None, palette: Image.Image | None = None) -> Image.Image:
    """In 256 colours: of the palette, or those of the picture before it where they serve, which keeps a gif small."""
    if palette:
        return picture.quantize(palette=palette, dither=Image.Dither.NONE)
    if before:
        same = picture.quantize(palette=before, dither=Image.Dither.NONE)
        red, green, blue = ImageChops.difference(same.convert("RGB"), picture).split()
        off = ImageChops.lighter(ImageChops.lighter(red, green), blue).histogram()  # pixels by their largest error
        if not any(off[65:]) and sum(off[9:]) <= 0.01 * sum(off):  # the edges of letters may be off, a surface may not
            return same
    return picture.quantize(method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)  # keeps shades near white apart


def enlarged(pixels: np.ndarray) -> Image.Image:
    """uint8 [H, W, 3] as a picture with a thin frame, each pixel a square."""
    height, width, _ = pixels.shape
    zoom = max(1, round(SIZE / max(height, width)) if width > 2 * height else round(SIZE / height))
    picture = Image.fromarray(pixels).resize((zoom * width, zoom * height), Image.Resampling.NEAREST)
    return ImageOps.expand(picture, 1, EDGE)


class Panel:
    """Facts as words, then a bar for each action, on one axis: probabilities from 0 to 1, action values as `axis` says.

    Beside a picture it is narrow and as high as it; below, with a `width`, as wide, the facts in two columns. Bars
    begin at 0 where 0 is on the axis. Elsewhere dots stand for them: from another number a bar measures nothing.
    """

    def __init__(
        self,
        facts: Sequence[str],
        actions: Sequence[str],
        kind: str,
        height: int = 0,
        width: int | None = None,
        limits: tuple[float, float] | None = None,  # of all action values to be shown; None: of those shown so far
    ):
        self.is_share = kind == "probabilities"
        self.low, self.high = (0.0, 1.0) if self.is_share else (np.inf, -np.inf)
        if limits and not self.is_share:
            self.low, self.high = limits
        self.columns, self.width = (1, PANEL) if width is None else (2, width)
        self.top = TOP if width is None else TOP - 24 * (len(facts) // 2)
        self.row = max(15, min(28, (height - TOP - 28) // len(actions))) if width is None else 24
        self.size = min(14, self.row - 3)
        names = [shortened(a, self.size, 104) for a in actions]
        self.margin = 18 if width is None else 4
        self.left = self.margin + 10 + int(max(font(self.size).getlength(n) for n in names))
        self.right = self.width - (58 if width is None else 72)
        self.picture = Image.new("RGB", (self.width, max(height, self.top + 28 + self.row * len(actions))), PAPER)
        draw = ImageDraw.Draw(self.picture)
        for i, fact in enumerate(facts):
            draw.text((self._at(i)[0], self._at(i)[2]), fact, FAINT, font(14), "ls")
        draw.text((self.margin, self.top - 14), kind, INK, font(15), "ls")
        for i, name in enumerate(names):
            draw.text((self.left - 10, self.top + (i + 0.5) * self.row), name, INK, font(self.size), "rm")

    def _at(self, i: int) -> tuple[int, int, int]:
        """Left, right and base of the i-th fact."""
        wide = (self.width - self.margin - 8) // self.columns
        left = self.margin + i % self.columns * wide
        return left, left + wide - 24 * (self.columns - 1 - i % self.columns), 16 + 24 * (i // self.columns)

    def draw(self, facts: Sequence[str], note: str, bars: Sequence[float], action: int) -> Image.Image:
        """`note` stands above the numbers; the bar of `action` is the one in colour."""
        picture, thickness = self.picture.copy(), round(self.row * 0.62)
        draw = ImageDraw.Draw(picture)
        if not self.is_share:
            self.low, self.high = min(self.low, *bars), max(self.high, *bars)
        low, high = axis(self.low, self.high)
        place = lambda x: self.left + round((self.right - self.left) * (x - low) / (high - low or 1.0))
        for i, fact in enumerate(facts):
            draw.text(self._at(i)[1:], fact, INK, font(14), "rs")
        draw.text((self.width - 8, self.top - 14), note, AGENT, font(14), "rs")
        has_zero = low <= 0 <= high
        for i, bar in enumerate(bars):
            middle, colour = self.top + (i + 0.5) * self.row, AGENT if i == action else BAR
            top, end = round(middle - thickness / 2), place(bar)
            draw.rectangle((self.left, top, self.right, top + thickness - 1), GROOVE)
            if has_zero:
                start, end = sorted((place(0.0), end))
                draw.rectangle((start, top, max(end, start + 1), top + thickness - 1), colour)
            else:
                radius = thickness // 2
                box = (end - radius, middle - radius, end + radius, middle + radius)
                draw.ellipse(box, colour)
            text = f"{bar:.2f}" if self.is_share else number(bar)
            draw.text((self.width - 8, middle), text, INK, font(self.size), "rm")
        bottom = self.top + self.row * len(bars)
        if has_zero and low < 0 < high:
            draw.line((place(0.0), self.top, place(0.0), bottom), FAINT)
        for x, end, anchor in ((self.left, low, "ls"), (self.right, high, "rs")):
            draw.text(
                (x, bottom + 14), f"{end:g}" if self.is_share or not end else number(end), FAINT, font(12), anchor
            )
        if has_zero and self.left + 52 < place(0.0) < self.right - 52:
            draw.text((place(0.0), bottom + 14), "0", FAINT, font(12), "ms")
        return picture


def axis(low: float, high: float) -> tuple[float, float]:
    """From `low` to `high`, on to 0 where that leaves them at least half of the axis."""
    if 0 < low <= high / 2:
        return 0.0, high
    return (low, 0.0) if low / 2 <= high < 0 else (low, high)
