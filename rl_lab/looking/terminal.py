"""A screen in a terminal of 24-bit colours: pictures as half blocks, two pixels a character, and words beside them."""

import os
import re
import select
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest

import numpy as np
from PIL import Image, ImageColor

from rl_lab.core.errors import UserError
from rl_lab.core.interrupts import Stopped
from rl_lab.looking.panels import AGENT, BAR, FAINT, number

BESIDE, LEAST, GAP = 34, 16, 2  # characters: of the words, of a picture at least, between the two
KEY = re.compile(r"\x1b\[[\d;]*[A-Za-z~]|.", re.DOTALL)  # as a terminal sends it
NAMED = {"\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left", " ": "space", "\r": "enter",
         "\n": "enter", "\x1b": "escape"}  # fmt: skip
BLOCKS = " ▏▎▍▌▋▊▉█"


class Terminal:
    """Takes over the whole terminal while it is open, and restores it whatever happens."""

    fps = 10.0  # a picture is up to 125 kB

    def __init__(self, draw: Callable, *, keys: Mapping[str, Sequence[str]] | None = None):
        """`draw(player)` makes what draws the moments of a player, as a picture and lines of words; `keys` to press,
        by what they do.
        """
        self.draw, self.listens = draw, bool(keys)
        self.foot = "   ".join(f"{what}: {' '.join(names)}" for what, names in (keys or {}).items())
        self._lines: list[str] = []
        self._size: os.terminal_size | None = None
        self._typed = ""
        if not (sys.stdout.isatty() and (sys.stdin.isatty() or not self.listens)):
            raise UserError("view=terminal needs a terminal to draw in, not a pipe or a file; take view=browser")

    def __enter__(self) -> "Terminal":
        self._handlers = {s: signal.signal(s, _stop) for s in (signal.SIGTERM, signal.SIGHUP)}
        if self.listens:
            import termios  # here, as Windows has none
            import tty

            self._before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        _write("\x1b[?1049h\x1b[?25l\x1b[2J")  # a page of its own, no cursor
        return self

    def __exit__(self, *error) -> None:
        _write("\x1b[0m\x1b[?25h\x1b[?1049l")
        if self.listens:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, self._before)
        for number_, handler in self._handlers.items():
            signal.signal(number_, handler)

    def show(self, parts: Sequence[tuple[Image.Image, list[str]]]) -> None:
        """Side by side; only lines that have changed are written."""
        size = os.get_terminal_size(sys.stdout.fileno())
        if size != self._size:
            self._lines, self._size = [], size
            _write("\x1b[2J")
        columns = size.columns // len(parts)
        foot = textwrap.wrap(self.foot, size.columns - 1)
        rows = size.lines - 1 - len(foot)
        blocks = [block(picture, words, columns - 1, rows) for picture, words in parts]
        lines = [" ".join(row) for row in zip_longest(*blocks, fillvalue=" " * (columns - 1))]
        lines += [""] * (rows - len(lines)) + [coloured(line, FAINT) for line in foot]
        changed = [
            f"\x1b[{i};1H{line}\x1b[0m\x1b[K"
            for i, (line, old) in enumerate(zip_longest(lines, self._lines[: len(lines)]), 1)
            if line != old
        ]
        _write("".join(changed))
        self._lines = lines

    def key(self, seconds: float | None) -> str | None:
        """The next key pressed within the timeout; None: no timeout."""
        if not self._typed:
            if not select.select([sys.stdin], [], [], seconds)[0]:
                return None
            self._typed = os.read(sys.stdin.fileno(), 64).decode(errors="replace").replace("\x1bO", "\x1b[")
            if not self._typed:  # the terminal is gone
                raise Stopped(signal.SIGHUP)
        key = KEY.findall(self._typed)[0]
        self._typed = self._typed[len(key) :]
        return NAMED.get(key, key)


def _stop(number_: int, _frame) -> None:
    raise Stopped(number_)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


# -- lines of characters, with their colours


def block(picture: Image.Image, words: Sequence[str], columns: int, rows: int) -> list[str]:
    """A picture as large as fits, with the words to its right, or below where it is narrow; lines of that width."""
    below = columns < LEAST + GAP + BESIDE
    wide, high = (columns, max(1, rows - len(words))) if below else (columns - GAP - BESIDE, rows)
    scale = min(wide / picture.width, 2 * high / picture.height)
    width, height = max(1, int(scale * picture.width)), max(2, int(scale * picture.height) // 2 * 2)
    painted = half_blocks(np.asarray(picture.resize((width, height), Image.Resampling.BOX)))
    if below:
        return [padded(line, columns) for line in [*painted, *words][:rows]]
    beside = columns - width - GAP
    return [
        (left or " " * width) + " " * GAP + padded(right or "", beside)
        for left, right in zip_longest(painted, words[:rows])
    ]


def half_blocks(pixels: np.ndarray) -> list[str]:
    """uint8 [2 H, W, 3] -> H lines of W characters: the upper pixel is the ink, the lower one the paper."""
    lines = []
    for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        line, before = [], None
        for ink, paper in zip(upper, lower, strict=True):
            if (ink, paper) != before:
                line.append("\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*ink, *paper))
                before = ink, paper
            line.append("▀")
        lines.append("".join(line) + "\x1b[0m")
    return lines


def padded(text: str, width: int) -> str:
    """Of a text with colours, exactly `width` characters."""
    seen = re.sub(r"\x1b\[[\d;]*m", "", text)
    return text + " " * (width - len(seen)) if len(seen) <= width else seen[:width]


def coloured(text: str, colour: str) -> str:
    return "\x1b[38;2;{};{};{}m{}\x1b[0m".format(*ImageColor.getrgb(colour), text)


class Words:
    """Title, facts and a bar for each action, as `panels.Panel` draws them."""

    def __init__(self, name: str, below: str, actions: Sequence[str], kind: str):
        self.name, self.below, self.actions, self.kind = name, below, [a[:12] for a in actions], kind
        self.is_share = kind == "probabilities"
        self.low, self.high = (0.0, 1.0) if self.is_share else (float("inf"), -float("inf"))

    def draw(self, facts: dict[str, str], note: str, bars: Sequence[float], action: int) -> list[str]:
        if not self.is_share:
            self.low, self.high = min(self.low, *bars), max(self.high, *bars)
        lines = [*textwrap.wrap(self.name, BESIDE), coloured(self.below, FAINT), ""]
        lines += [coloured(f"{fact:<14}", FAINT) + f"{text:>{BESIDE - 14}}" for fact, text in facts.items()]
        lines += ["", f"{self.kind:<20}" + coloured(f"{note:>{BESIDE - 20}}", AGENT), *self._bars(bars, action)]
        return lines

    def _bars(self, bars: Sequence[float], action: int) -> Iterable[str]:
        left = max(map(len, self.actions))
        width = BESIDE - left - 10
        for i, (name, bar) in enumerate(zip(self.actions, bars, strict=True)):
            filled = round(8 * width * (bar - self.low) / (self.high - self.low or 1.0))
            text = "█" * (filled // 8) + BLOCKS[filled % 8].strip()
            figure = f"{bar:.2f}" if self.is_share else number(bar)
            yield f"{name:<{left}} " + coloured(f"{text:<{width}}", AGENT if i == action else BAR) + f"{figure:>9}"
