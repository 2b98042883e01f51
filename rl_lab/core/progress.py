"""What is shown during a run: a bar on a terminal, plain lines elsewhere; neither is wider than 80 columns."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from rl_lab.core.metrics import Metric, is_shown

WIDTH, NAME, BAR = 80, 26, 12  # columns of a line, and at most of the name in it; of the bar on a terminal
TOLD_EVERY = 10.0  # seconds
SOONEST, LATEST = 5.0, 60.0  # seconds between plain lines: a twentieth of the time so far, within these


class Progress:
    """Step, remaining time, newest return and rate."""

    def __init__(self, name: str, quiet: bool = False):
        self.name, self.console = name, Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self.an_epoch: float | None = None  # its steps, where it is known what an epoch is
        self.opening: list[str] = []  # lines that come before any other, or when the run begins
        self.holds = False  # all that is said back, for the opening: it may be that there is nothing to do
        self._said: set[str] = set()
        self._shown: dict[str, float] = {}
        self._bar: Bar | None = None
        self._drawn = 0.0

    def begin(self, total: int | None, unit: str, step: int) -> None:
        self._open()
        self._total, self._unit, self._first = total, unit, step
        self._start = self._drawn = time.monotonic()
        if self.console.is_terminal and not self.console.quiet:
            columns = [TextColumn("{task.description}", style="bold", markup=False), BarColumn(BAR)]
            columns += [TextColumn("{task.fields[text]}", markup=False)]
            self._bar = Bar(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task(shortened(self.name, NAME), total=total, completed=step, text="")
            self._bar.start()

    def advance(self, step: int, now: float) -> None:
        """Cheap enough for every step: it draws ten times a second at most."""
        if self._bar and now - self._drawn > 0.1:
            self._drawn = now
            room = min(WIDTH, self.console.width) - min(len(self.name), NAME) - BAR - 2
            self._bar.update(self._task, completed=step, text=self._line("", step, now, room))
        elif not self._bar and now - self._drawn > min(LATEST, max(SOONEST, (now - self._start) / 20)):
            self._drawn = now
            self.say(self._line(f"{shortened(self.name, NAME)}: ", step, now, WIDTH))

    def _line(self, words: str, step: int, now: float, room: int) -> str:
        """`words`, and what else there is room for, most important first; the first steps predict nothing."""
        done = step - self._first
        rate = done / max(now - self._start, 1e-9)
        words += f"{step:,}{'' if self._total is None else f'/{self._total:,}'} {self._unit}"
        parts = []
        if self._total and done * 1_000 >= self._total:
            parts.append(f"{duration(max(0, self._total - step) / rate)} left")
        if self.an_epoch:
            parts.append(f"epoch {step / self.an_epoch:,.1f}")
        for name, x in self._shown.items():
            stage, quantity, _ = Metric.of(name)
            parts.append(f"{quantity if stage == 'episode' else f'{stage}/{quantity}'} {x:.4g}")
        for part in [*parts, f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"]:
            words += f" · {part}" * (len(words) + len(part) + 3 <= room)
        return words

    def show(self, values: dict[str, float]) -> None:
        self._shown |= {k: v for k, v in values.items() if is_shown(k)}

    def say(self, text: str, once: bool = False) -> None:
        if self.holds:
            self.opening.append(text)
        else:
            self.say_now(text, once)

    def say_now(self, text: str, once: bool = False) -> None:
        """After the opening, and even while that is held back."""
        self._open()
        if not (once and text in self._said):
            self._print(text)
        self._said.add(text)

    def _open(self) -> None:
        opening, self.opening = self.opening, []
        for line in opening:
            self._print(line)

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()


class Told:
    """Reports now and then how far some work has come that no step counts, such as an evaluation."""

    def __init__(self, say: Callable[[str], None], what: str, unit: str = "images"):
        self.say, self.what, self.unit, self.begun = say, what, unit, time.monotonic()
        self.said = self.begun

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if 0 < done < total and now - self.said > TOLD_EVERY:
            self.said, left = now, (now - self.begun) * (total - done) / done
            self.say(f"{self.what}: {done:,} of {total:,} {self.unit}, about {duration(left)} left")


@contextmanager
def explained(say: Callable[[str], None], words: str) -> Iterator[None]:
    """Says the words of what takes longer than one would wait without a line, and of which nothing can be counted."""
    waiting = threading.Timer(TOLD_EVERY, say, [words])
    waiting.daemon = True
    waiting.start()
    try:
        yield
    finally:
        waiting.cancel()


def duration(seconds: float) -> str:
    """As one would say it: 4.2 s, 42 s, 17 min, 3.5 h, 22 days."""
    for unit, size, most, digits in (("s", 1, 10, 1), ("s", 1, 100, 0), ("min", 60, 100, 0), ("h", 3_600, 48, 1)):
        if (number := seconds / size) < most:
            return f"{number:.{digits}f} {unit}"
    return f"{seconds / 86_400:,.0f} days"


def shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
