"""metrics.jsonl: one row a line, only ever appended to, and a mark by which later changes to it are found."""

import hashlib
import io
import json
import math
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from rl_lab.core import files

NAME = "metrics.jsonl"
LARGEST = 2**29  # bytes of a file that is read
PLACES = 8  # damaged lines that are named one by one
PER_SECOND, AT_ONCE = 10, 1_000  # rows that a run may write


Row = dict[str, float]  # step, seconds and metrics
Line = tuple[int, bytes, Row]  # number, from 1, text and what it says


class Mark(NamedTuple):
    """Where the file stood when a checkpoint or a summary was written; None: not noted by earlier versions."""

    bytes: int = 0
    count: int | None = None  # type: ignore[assignment]  # of rows; a tuple has a method of that name
    step: float | None = None  # of the last row
    sha256: str | None = None  # of all those bytes

    @classmethod
    def of(cls, state: object) -> "Mark | None":
        """From a checkpoint or a summary; None where it holds none, or a damaged one."""
        state = state if isinstance(state, dict) else {}
        size, count, step, digest = (state.get(name) for name in cls._fields)
        known = type(count) is int and isinstance(digest, str) and (step is None or type(step) in (int, float))
        return cls(size, *((count, step, digest) if known else ())) if type(size) is int and size >= 0 else None


class Rows:
    """The file of a run that writes it. Of what it holds, the rows up to the mark stay; others are cut off.

    Where those are not as they were written, the ones that are whole stay, and `fault` says in words what is wrong.
    """

    def __init__(self, folder: Path | None, mark: Mark = Mark()):
        """Nothing is written yet; without a folder nothing ever is."""
        self._folder = folder
        self._file: BinaryIO = io.BytesIO()
        data = content(files.inside(folder, NAME)) if folder else b""
        kept, self.fault = whole(data, mark)
        self.kept = kept  # until it is opened
        self._hash, self._bytes, self._count = hashlib.sha256(kept), len(kept), kept.count(b"\n")
        self._step = parsed(kept)[0][-1][2]["step"] if kept else None
        self._mended = None if data.startswith(kept) else kept

    def open(self) -> None:
        """Raises UserError or OSError."""
        if self._folder:
            path = files.inside(self._folder, NAME)
            if self._mended is not None:
                files.write(path, self._mended)
            self._file, self._mended = files.appending(path, self._bytes), None
        self.kept = b""

    @property
    def mark(self) -> Mark:
        return Mark(self._bytes, self._count, self._step, self._hash.hexdigest())

    def add(self, row: Row) -> None:
        """Raises OSError; the mark then stays where it was."""
        line = json.dumps(row).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._hash.update(line)
        self._bytes += len(line)
        self._count += 1
        self._step = row["step"]

    def close(self) -> None:
        with suppress(OSError):  # what could not be written was said when it was
            self._file.close()


class Allowance:
    """How many rows a run may write: 1,000 at once, and 10 a second after that."""

    def __init__(self) -> None:
        self._left, self._since = float(AT_ONCE), time.monotonic()

    def take(self, always: bool) -> bool:
        """Whether one more row is written; `always`: it is, and still counts."""
        now = time.monotonic()
        self._left, self._since = min(AT_ONCE, self._left + (now - self._since) * PER_SECOND), now
        if self._left < 1 and not always:
            return False
        self._left -= 1
        return True


def content(path: Path) -> bytes:
    """The bytes of a file, none where it is missing. Raises UserError where it is a link, no file or too large."""
    try:
        with files.opened(path, LARGEST) as file:
            return file.read()
    except FileNotFoundError:
        return b""


def parsed(data: bytes) -> tuple[list[Line], list[int]]:
    """The lines that are rows, each with its number from 1 and its text; and the numbers of the other lines."""
    lines, broken = [], []
    for number, line in enumerate(data.splitlines(), 1):
        line, row = line + b"\n", _row(line)
        lines.append((number, line, row)) if row else broken.append(number)
    return lines, broken


def _row(line: bytes) -> Row | None:
    """Step, seconds and other numbers, as `Run.log` writes them; None for anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not {"step", "seconds"} <= row.keys():
        return None
    numbers = all(type(x) is float or (type(x) is int and abs(x) <= sys.float_info.max) for x in row.values())
    known = numbers and math.isfinite(row["step"]) and math.isfinite(row["seconds"])
    return row if known and all(name.isprintable() for name in row) else None


def whole(data: bytes, mark: Mark) -> tuple[bytes, str]:
    """Of what the file holds, the rows as they were at the mark; and what is wrong with them, "" if nothing."""
    for text in (data, data.replace(b"\r\n", b"\n")):  # an editor, or git, may have changed the ends of lines
        head = text[: mark.bytes]
        if len(head) == mark.bytes and _is_as_written(head, mark):
            return head, ""
    lines, broken = parsed(text if mark.count else head)
    if mark.step is not None:  # later rows come again
        strange = [n for n, _, row in lines if row["step"] > mark.step]
        lines = [line for line in lines if line[2]["step"] <= mark.step][: mark.count]
        broken += [n for n in strange if lines and n < lines[-1][0]]
    kept = b"".join(line for _, line, _ in lines)
    last = max([mark.count or 0, *(n for n, _, _ in lines)])
    broken = sorted(n for n in broken if n <= last or mark.count is None)
    return kept, "; ".join(filter(None, [_named(broken), _lacking(lines, kept, bool(broken), mark)]))


def _is_as_written(head: bytes, mark: Mark) -> bool:
    if mark.sha256:
        return hashlib.sha256(head).hexdigest() == mark.sha256
    return head[-1:] in (b"", b"\n") and not parsed(head)[1]


def _named(broken: list[int]) -> str:
    """In words."""
    names = ", ".join(f"{n:,}" for n in broken[:PLACES]) + f" and {len(broken) - PLACES:,} more" * (
        len(broken) > PLACES
    )
    return f"row{'s' * (len(broken) > 1)} {names} {'are' if len(broken) > 1 else 'is'} damaged" if broken else ""


def _lacking(lines: list[Line], kept: bytes, broken: bool, mark: Mark) -> str:
    """In words."""
    there, last = len(lines), lines[-1][2]["step"] if lines else None
    if mark.count is None:
        short = 0 if broken else mark.bytes - len(kept)
        return f"it ends after row {there:,} (step {last or 0:,}), {short:,} bytes early" if short > 0 else ""
    if not (lost := mark.count - there):
        return "" if _is_as_written(kept, mark) else f"a figure in rows 1 to {there:,} was changed (by their checksum)"
    if broken or last == mark.step:
        return f"{lost:,} of {mark.count:,} rows {'are' if lost > 1 else 'is'} lost"
    return f"rows {there + 1:,} to {mark.count:,} are lost" if lost > 1 else f"row {mark.count:,} is lost"


class Read(NamedTuple):
    """What the file of a run says."""

    rows: list[Row]
    fault: str  # "" if nothing is wrong


def read(folder: Path, mark: Mark | None, ended: bool) -> Read:
    """The rows that are whole. `mark` is the summary's; a run that has not `ended` may have written more since, and its
    last line may be cut short. Raises UserError where the file cannot be read.
    """
    data = content(folder / NAME)
    if mark and mark.sha256:
        kept, fault = whole(data, mark)
        if ended:
            more = not fault and len(data.replace(b"\r\n", b"\n")) > len(kept)
            fault = f"lines after row {mark.count:,}, which was the last, are not the run's" if more else fault
            return Read([row for _, _, row in parsed(kept)[0]], fault)
        data = kept + (data[len(kept) :] if data.startswith(kept) and not fault else b"")
    else:
        fault = ""
    lines, broken = parsed(data)
    count = data.count(b"\n") + (not data.endswith(b"\n"))
    if broken and not fault and (ended or broken != [count] or data.endswith(b"\n")):
        fault = _named(broken)
    return Read([row for _, _, row in lines], fault)


def last_values(rows: Iterable[Row]) -> dict[str, float]:
    """The newest of each metric."""
    final: Row = {}
    for row in rows:
        final |= row
    return {name: x for name, x in final.items() if name not in ("step", "seconds")}
