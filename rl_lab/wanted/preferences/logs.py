"""Append-only files, one JSON row a line, each written by one process."""

import json
import os
from pathlib import Path
from typing import Any

from rl_lab.core import files, locks
from rl_lab.core.errors import UserError
from rl_lab.core.rows import content

Row = dict[str, Any]


class Log:
    """A row is on disk before `add` returns."""

    def __init__(self, path: Path):
        """Removes a last line that was cut off by a kill. Raises UserError where another process writes the file, or
        where a line is damaged.
        """
        self.path, self._file = path, files.appending(path)
        try:
            held = locks.lock(self._file, locks.ALONE)
        except OSError:  # a disk without locks
            held = True
        if not held:
            self._file.close()
            raise UserError(f"{path} is being written by another process; stop that one first")
        self.rows = read(path)
        os.ftruncate(self._file.fileno(), content(path).rfind(b"\n") + 1)

    def add(self, row: Row) -> None:
        """Raises OSError."""
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.append(row)

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[Row]:
    """The rows, without a last line that is still incomplete. Raises UserError where another one is damaged."""
    data = content(path)
    found = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is damaged; take it out, and the others stay")
        found.append(row)
    return found
