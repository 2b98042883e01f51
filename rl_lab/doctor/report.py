"""What the probes find: a line each, a summary, and the exit code."""

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from rl_lab.core.errors import brief

PASS, FAIL, NONE, LATE = "pass", "FAIL", "-", "late"  # not applicable; left out, as time was up
SLACK = 3  # times as many seconds on the clock as of the processor, where other programs use it, too
STYLES = {PASS: "green", FAIL: "bold red", NONE: "dim", LATE: "yellow"}


class Finding(NamedTuple):
    """`words` say what was found and, for a fault, what it does to a learner; all on one line."""

    outcome: str
    words: str


Probe = Callable[[Any], Finding]


def passed(words: str) -> Finding:
    return Finding(PASS, words)


def failed(words: str) -> Finding:
    return Finding(FAIL, words)


def not_applicable(words: str) -> Finding:
    return Finding(NONE, words)


def late(words: str) -> Finding:
    return Finding(LATE, words)


def cut_short(probe: Probe, world: Any) -> Finding | None:
    """The same probe in a world whose episodes end sooner; None where that cannot be set."""
    if world.shorter is None:
        return None
    finding = probe(world.shorter)
    return finding._replace(words=f"with a limit of a few steps, as none ended: {finding.words}")


def name(probe: Probe) -> str:
    """The name of its function, in words."""
    return getattr(probe, "__name__", "probe").replace("_", " ")


def probed(probe: Probe, subject: Any, seconds: float = math.inf) -> Finding:
    """A probe that raises has found a fault; one that takes longer than `seconds` is left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _at_most(seconds):
                return probe(subject)
        except TimeIsUp:
            return late(f"left out: it takes more than {seconds:.1f} s")
        except (Exception, SystemExit) as error:
            return failed(f"raises {raised(error)}; nothing can be learned like that")


class TimeIsUp(BaseException):
    """Not an Exception, since an environment's own code may catch those."""


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises TimeIsUp within, even in code that never returns, once it has used this much processor time.

    Other programs do not make a probe late, unless it takes SLACK times as long.
    """
    if not math.isfinite(seconds) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: object) -> None:
        raise TimeIsUp

    clocks = (signal.ITIMER_PROF, signal.SIGPROF, 1), (signal.ITIMER_REAL, signal.SIGALRM, SLACK)
    before = [signal.signal(number, stop) for _, number, _ in clocks]
    try:
        for clock, _, times in clocks:
            signal.setitimer(clock, max(seconds, 1e-3) * times)
        yield
    finally:
        for (clock, number, _), handler in zip(clocks, before, strict=True):
            signal.setitimer(clock, 0)
            signal.signal(number, handler)


def raised(error: BaseException) -> str:
    return f"{type(error).__name__}: {brief(error)}"


def examined(title: str, probes: Sequence[Probe], subject: Any, seconds: float = math.inf) -> int:
    """Prints what each probe finds; if the first one fails, the others are not tried.

    Together they use about `seconds` of processor time at most, each no more than half of what is left. Returns the
    exit code.
    """
    console, begun, found = Console(), (time.monotonic(), time.process_time()), dict[str, Finding]()
    width = max(len(name(probe)) for probe in probes)
    console.print(Text(title), soft_wrap=True)
    for probe in probes:
        left = seconds - max((time.monotonic() - begun[0]) / SLACK, time.process_time() - begun[1])
        with console.status(name(probe)):
            if found and next(iter(found.values())).outcome != PASS:
                finding = not_applicable(f"not tried: {next(iter(found))} fails")
            else:
                finding = probed(probe, subject, max(left, 0.0) / 2)
        if not found and finding.outcome == LATE:
            finding = failed(f"a few steps take more than {left / 2:.1f} s: nothing can be learned like that")
        found[name(probe)] = finding
        line = Text(f"  {finding.outcome:<5}", STYLES[finding.outcome])
        console.print(line + Text(f"{name(probe):<{width}}  {finding.words}", ""), soft_wrap=True)
    print(summary(found, time.monotonic() - begun[0], seconds))
    return int(any(finding.outcome == FAIL for finding in found.values()))


def summary(found: dict[str, Finding], seconds: float, allowed: float) -> str:
    outcomes = [finding.outcome for finding in found.values()]
    faults, late = (", ".join(name for name, x in found.items() if x.outcome == kind) for kind in (FAIL, LATE))
    return (
        f"{len(found)} probes in {seconds:.1f} s: {outcomes.count(PASS)} pass, {outcomes.count(NONE)} not applicable, "
        + (f"{outcomes.count(LATE)} left out for time ({late}; seconds={3 * allowed:g} gives more), " if late else "")
        + f"{outcomes.count(FAIL)} fail{f' ({faults})' if faults else ''}"
    )
