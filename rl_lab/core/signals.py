"""What asks a process to stop, and what is left of a terminal that was closed."""

import os
import signal


def heard() -> list[signal.Signals]:
    """Those that a run answers: by Ctrl-C, by another process, and by a terminal that closes, unless under nohup."""
    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *[signal.SIGHUP] * (not nohup)]


def terminals() -> list[int]:
    """Which of standard output and error are one."""
    return [number for number in (1, 2) if os.isatty(number)]


def leave(outputs: list[int]) -> None:
    """Of terminals that are there no longer: what is said into them would fail."""
    for number in outputs:
        if not os.isatty(number):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


def insists(number: int, received: list[int]) -> bool:
    """Whether a signal says once more what one said before. A terminal that closes says so twice by itself, and a
    launcher passes on, as SIGTERM, what all processes of a terminal have heard already.
    """
    return number in received and number != signal.SIGHUP
