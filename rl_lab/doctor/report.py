"""What probes find: a line each, a summary, and the exit code."""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

PASS, FAIL, NONE = "pass", "FAIL", "-"  # the last: not applicable
STYLES = {PASS: "green", FAIL: "bold red", NONE: "dim"}


class Finding(NamedTuple):
    """`words` say what was found and, of a fault, what it does to a learner; all on one line."""

    outcome: str
    words: str


Probe = Callable[[Any], Finding]


def passed(words: str) -> Finding:
    return Finding(PASS, words)


def failed(words: str) -> Finding:
    return Finding(FAIL, words)


def not_applicable(words: str) -> Finding:
    return Finding(NONE, words)


def cut_short(probe: Probe, world: Any) -> Finding | None:
    """The same probe where episodes end sooner; None where that cannot be set."""
    if world.shorter is None:
        return None
    finding = probe(world.shorter)
    return finding._replace(words=f"with a limit of a few steps, as none ended: {finding.words}")


def name(probe: Probe) -> str:
    """That of its function, in words."""
    return getattr(probe, "__name__", "probe").replace("_", " ")


def probed(probe: Probe, subject: Any) -> Finding:
    """A probe that raises has found a fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return probe(subject)
        except Exception as error:
            return failed(f"raises {raised(error)}; nothing can be learned like that")


def raised(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def examined(title: str, probes: Sequence[Probe], subject: Any) -> int:
    """Prints what each probe finds, the first one first: where that fails, no other is asked. Returns the exit code."""
    console, begun, found = Console(), time.monotonic(), dict[str, Finding]()
    width = max(len(name(probe)) for probe in probes)
    console.print(Text(title), soft_wrap=True)
    for probe in probes:
        stopped = found and next(iter(found.values())).outcome == FAIL
        with console.status(name(probe)):
            finding = not_applicable(f"not tried: {next(iter(found))} fails") if stopped else probed(probe, subject)
        found[name(probe)] = finding
        line = Text(f"  {finding.outcome:<5}", STYLES[finding.outcome])
        console.print(line + Text(f"{name(probe):<{width}}  {finding.words}", ""), soft_wrap=True)
    print(summary(found, time.monotonic() - begun))
    return int(any(finding.outcome == FAIL for finding in found.values()))


def summary(found: dict[str, Finding], seconds: float) -> str:
    outcomes = [finding.outcome for finding in found.values()]
    faults = ", ".join(name for name, finding in found.items() if finding.outcome == FAIL)
    return (
        f"{len(found)} probes in {seconds:.1f} s: {outcomes.count(PASS)} pass, {outcomes.count(NONE)} not applicable, "
        f"{outcomes.count(FAIL)} fail{f' ({faults})' if faults else ''}"
    )
