"""What came of a study's jobs, as the file of each notes it: jobs/3.json."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from rl_lab.core import files
from rl_lab.core.folders import LARGEST

STATES = "finished", "running", "waiting", "interrupted", "mistake", "crashed"
KINDS: dict[str, type | tuple[type, ...]] = {
    "folder": str,
    "state": str,
    "seconds": (int, float),
    "value": list,
    "reason": str,
    "process": list,
}  # of notes


class Job(NamedTuple):
    """One of a study's jobs, and what came of it so far."""

    number: int
    overrides: list[str]
    state: str = "waiting"  # one of STATES
    folder: str | None = None  # of its run, seen from the study's folder
    seconds: float | None = None  # of the last time it ran
    value: list[Any] | None = None  # name and number: what a search optimises
    reason: str | None = None  # of a mistake or a crash, in one line
    process: list[Any] | None = None  # host and process id


def noted(path: Path) -> dict[str, Any]:
    """Nothing where that was not written, or is damaged: the job is then done again."""
    try:
        with files.opened(path, LARGEST) as file:
            found = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return {}
    found = {name: x for name, x in found.items() if name in KINDS} if isinstance(found, dict) else {}
    return files.printable(found) if _is_sound(found) else {}


def _is_sound(note: dict[str, Any]) -> bool:
    return (
        all(x is None or isinstance(x, KINDS[name]) for name, x in note.items())
        and all(_is_pair(note.get(name)) for name in ("value", "process"))
        and 0 <= (note.get("seconds") or 0) < 1e12
        and note.get("state", "waiting") in STATES
    )


def _is_pair(found: list[Any] | None) -> bool:
    """A name and a number, or nothing."""
    if not found:
        return True
    named = len(found) == 2 and isinstance(found[0], str)
    return named and type(found[1]) in (int, float) and abs(found[1]) < 1e300
