"""Signals that ask a process to stop, and what is left of a terminal that was closed."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper


class Stopped(KeyboardInterrupt):
    """A signal stopped the run, after its checkpoint was written and its files were whole."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Halted(Stopped):
    """The same, in the middle of work that changes nothing of the run: it is left undone."""


class Interrupts:
    """Answers signals while a run lasts: the first one asks it to stop, the same one again stops it at once."""

    def __init__(self, say: Callable[[str], None], numbers: Sequence[int] | None = None):
        """`numbers` are the signals to answer; None: those of `heard`."""
        self._say, self._numbers = say, numbers
        self._received: list[int] = []
        self._readily = False
        self._handlers: dict[int, signal._HANDLER] = {}
        self._terminals: list[int] = []

    @property
    def asked(self) -> int | None:
        """The signal that asked the run to stop, if one did."""
        return self._received[0] if self._received else None

    def listen(self) -> None:
        self._terminals = terminals()
        if threading.current_thread() is threading.main_thread():
            numbers = heard() if self._numbers is None else self._numbers
            self._handlers = {number: signal.signal(number, self._on_signal) for number in numbers}

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, the first signal stops too: for long work that changes nothing of the run; one that lies in another
        ends both. Raises Halted.
        """
        self._readily = True
        try:
            if self.asked:
                raise Halted(self.asked)
            yield
        finally:
            self._readily = False

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Signals act as before the run; only SIGHUP is ignored until the files are closed."""
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else handler)
        try:
            yield
        finally:
            if signal.SIGHUP in self._handlers:
                signal.signal(signal.SIGHUP, self._handlers[signal.SIGHUP])

    def _on_signal(self, number: int, _frame: object) -> None:
        if insists(number, self._received):
            raise Stopped(number)
        self._received.append(number)
        leave(self._terminals)
        if self._readily:
            raise Halted(number)
        self._say("stopping at the next whole step; the same signal again stops at once")


def stopped(number: int, _frame: object) -> None:
    """A handler under which a signal ends the process as Ctrl-C does: what was begun is cleared away."""
    raise Stopped(number)


def heard() -> list[signal.Signals]:
    """The signals that a run answers: Ctrl-C, SIGTERM, those that a batch system sends before a time limit (`sbatch
    --signal=USR1@120`) and, unless under nohup, SIGHUP of a terminal that closes.
    """
    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, *[signal.SIGHUP] * (not nohup)]


def terminals() -> list[int]:
    """Which of standard output and error are terminals."""
    return [number for number in (1, 2) if os.isatty(number)]


def leave(outputs: list[int]) -> None:
    """Redirects output to nowhere where its terminal no longer exists: writing to it would fail."""
    for number in outputs:
        if not os.isatty(number):
            to_nowhere(number)


def to_nowhere(number: int) -> None:
    """Of standard output or error: what is written to it from here on is lost, and nothing fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


class Lasting(TextIOWrapper):
    """Standard error that fails nobody who writes to it: its reader may be gone, as `tee` is at Ctrl-C, or the disk be
    full on which it is kept. What is written from then on is lost.
    """

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            to_nowhere(2)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            to_nowhere(2)


def lasting_errors() -> None:
    """Makes standard error such a one, for as long as the process lives."""
    if isinstance(sys.stderr, TextIOWrapper):
        sys.stderr = Lasting(sys.stderr.buffer, sys.stderr.encoding, "backslashreplace", line_buffering=True)


def insists(number: int, received: list[int]) -> bool:
    """Whether a signal repeats an earlier one on purpose. A closing terminal sends SIGHUP twice by itself, and a
    launcher forwards, as SIGTERM, what all processes of a terminal have received already.
    """
    return number in received and number != signal.SIGHUP
