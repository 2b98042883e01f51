"""What is shown during a run: a bar on a terminal, plain lines elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from rl_lab.core.metrics import is_shown

LINE_EVERY = 10.0  # seconds between plain lines


class Progress:
    """Rate, step, newest return and remaining time."""

    def __init__(self, name: str, quiet: bool = False):
        self.name, self.console = name, Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self._said: set[str] = set()
        self._shown: dict[str, float] = {}
        self._bar: Bar | None = None
        self._drawn = 0.0

    def begin(self, total: int, unit: str, step: int) -> None:
        self._total, self._unit, self._first = total, unit, step
        self._start = self._drawn = time.monotonic()
        if self.console.is_terminal and not self.console.quiet:
            columns = "[bold]{task.description}", BarColumn(), "{task.fields[text]}", TimeRemainingColumn()
            self._bar = Bar(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task(self.name, total=total, completed=step, text="")
            self._bar.start()

    def advance(self, step: int, now: float) -> None:
        """Cheap enough for every step: it draws ten times a second at most."""
        if self._bar and now - self._drawn > 0.1:
            self._drawn = now
            self._bar.update(self._task, completed=step, text=self._line(step, now))
        elif not self._bar and now - self._drawn > LINE_EVERY:
            self._drawn = now
            self.say(f"{self.name}: {self._line(step, now)}")

    def _line(self, step: int, now: float) -> str:
        rate = (step - self._first) / max(now - self._start, 1e-9)
        left = (self._total - step) / rate if rate else float("inf")
        words = [f"{step:,}/{self._total:,} {self._unit}", f"{rate:,.0f}/s"]
        words += [
            f"{name.split('/', 1)[-1] if name.startswith('episode') else name} {x:.4g}"
            for name, x in self._shown.items()
        ]
        return " · ".join(words) + ("" if self._bar else f" · {left:,.0f} s left")

    def show(self, values: dict[str, float], step: int) -> None:
        self._shown |= {k: v for k, v in values.items() if is_shown(k)}

    def say(self, text: str, once: bool = False) -> None:
        if not (once and text in self._said):
            self.console.print(text, markup=False)
        self._said.add(text)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
