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
    """Three digits, and whole numbers from a thousand on; - where it is not known."""
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


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """From left to right, tops aligned, on paper of even width and height."""
    width, height = sum(p.width for p in pictures), max(p.height for p in pictures)
    page, x = Image.new("RGB", (width + width % 2, height + height % 2), PAPER), 0
    for picture in pictures:
        page.paste(picture, (x, 0))
        x += picture.width
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
    """Facts as words, then a bar for each action.

    Probabilities are drawn from 0 to 1, action values from the least to the greatest that this panel has shown.
    """

    def __init__(self, facts: Sequence[str], actions: Sequence[str], kind: str, height: int):
        self.is_share = kind == "probabilities"
        self.low, self.high = (0.0, 1.0) if self.is_share else (np.inf, -np.inf)
        self.row = max(15, min(28, (height - TOP - 28) // len(actions)))
        self.size = min(14, self.row - 3)
        names = [shortened(a, self.size, 104) for a in actions]
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
