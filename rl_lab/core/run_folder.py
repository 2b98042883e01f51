"""The folder of one run, as the process that trains in it writes it."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rl_lab.core import checkpoint, files, folders, locks, ownership
from rl_lab.core.errors import FULL, UserError
from rl_lab.core.rows import Mark, Rows, last_values, parsed


class Position(NamedTuple):
    """Where a run stands: what its checkpoint says of it."""

    step: int = 0
    seconds: float = 0.0  # spent so far
    mark: Mark = Mark()  # where metrics.jsonl stood
    fault: str = ""  # what was found wrong with its rows so far
    final: dict[str, float] = {}  # the newest value of each metric

    @classmethod
    def of(cls, saved: dict[str, Any]) -> "Position | None":
        """Read from a checkpoint, {} for the start; None where the checkpoint does not say it."""
        rows, final = saved.get("written", {"bytes": saved.get("bytes", 0)}), saved.get("final", {})
        step, seconds, mark = saved.get("step", 0), saved.get("seconds", 0.0), Mark.of(rows)
        known = isinstance(final, dict) and all(isinstance(key, str) for key in final) and isinstance(rows, dict)
        if not known or not all(type(x) in (int, float) for x in (*final.values(), step)):
            return None
        fault = rows.get("fault", "")
        if mark is None or not isinstance(fault, str) or step < 0 or not 0 <= seconds < math.inf:
            return None
        return cls(step, seconds, mark, fault, dict(final))


class RunFolder:
    """config.yaml, metrics.jsonl (a row a line: step, seconds, values), summary.json, checkpoint.pt, pictures, videos.

    Nothing is written before `open`: a mistake found before then leaves the files as they are.
    """

    def __init__(self, dir: Path, written: str, lock: int | None = None, places: Mapping[str, str] | None = None):
        """`written` is what config.yaml will hold; `lock`: of the folder, where the caller holds it already.

        `places`: of the modules in no package that it imports; None: nothing in it is for this user alone, and it is
        not sealed as this user's.
        """
        self.dir, self.written, self.places = dir, written, places
        self._held_by_caller = lock is not None
        self._lock: int | None = None
        self.before = folders.summary(dir)  # of the run's last session
        self.rows: Rows | None = None  # until `open`
        self.fault, self._mark = "", Mark()

    def path(self, name: str) -> Path:
        """The place of a file of the folder, "pictures/values.png" say. Raises UserError where a link is in the way."""
        return files.inside(self.dir, name)

    def found(self, pattern: str) -> list[Path]:
        """Files of the folder, "pictures/samples_*.png" say, sorted."""
        return files.found(self.dir, pattern)

    def checkpoint(self) -> dict[str, Any]:
        """Empty where there is none. Raises UserError where it is damaged."""
        return checkpoint.read(self.path("checkpoint.pt")) if self.path("checkpoint.pt").exists() else {}

    def keep_rows(self) -> None:
        """Raises UserError where a finished run lacks its checkpoint: to train it again would write over its rows."""
        if self.before.get("state") == "finished" and not self.path("checkpoint.pt").exists():
            raise UserError(
                f"{os.path.relpath(self.dir)} has finished, and its checkpoint.pt is not there: training it again "
                "would write over its rows; bring the file back, or delete summary.json and metrics.jsonl to do so"
            )

    def position(self, saved: dict[str, Any]) -> Position:
        """Where the run stood when `saved` was written. Raises UserError where it does not say that."""
        if (position := Position.of(saved)) is None:
            raise UserError(f"{self.path('checkpoint.pt')} is damaged: it does not say where the run stood; "
                            f"bring back a whole copy, {checkpoint.ANEW}")  # fmt: skip
        self._mark, self.fault = position.mark, position.fault
        return position

    def hold(self) -> None:
        """Raises UserError where another process trains in this folder."""
        if not self._held_by_caller:
            self._lock = locks.of_run(self.dir)

    def let_go(self) -> None:
        if self._lock is not None:
            locks.let_go(self._lock)
            self._lock = None

    def read(self, position: Position, with_rows: bool) -> tuple[Rows, str]:
        """The rows up to `position`, those after it will come again; and what is newly found wrong with them."""
        found = Rows(self.dir if with_rows else None, position.mark)
        self.fault = "; ".join(filter(None, [position.fault, found.fault]))
        return found, found.fault

    def open(self, rows: Rows, summary: dict[str, Any]) -> None:
        """From here on the folder knows of the run."""
        if self.places is not None:  # first: who looks on while this run learns finds both
            path = self.path("config.yaml")
            ownership.seal(self.dir, self.written, self.places, path.read_bytes() if path.exists() else b"")
        files.write(self.path("config.yaml"), self.written)
        self.rows = rows
        self.write_summary(summary)  # of rows that are there already: it holds before the others are cut off and after
        rows.open()

    def note_rows_in_checkpoint(self) -> None:
        """Records where the rows stand now that the damaged ones are gone."""
        if saved := self.checkpoint():
            checkpoint.write(self.path("checkpoint.pt"), saved | self.noted())

    def noted(self) -> dict[str, Any]:
        """Where the rows stand, for a checkpoint."""
        rows = self.about_rows()
        return {"bytes": rows["bytes"], "written": rows}

    def about_rows(self) -> dict[str, Any]:
        """The same, for the summary."""
        mark = self._mark if self.rows is None else self.rows.mark
        return {**mark._asdict(), "fault": self.fault}

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """Raises OSError."""
        checkpoint.write(self.path("checkpoint.pt"), state | self.noted())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Raises OSError."""
        text = json.dumps(summary | {"rows": self.about_rows()}, indent=2, default=str)
        files.write(self.path("summary.json"), text + "\n")

    @property
    def begun(self) -> bool:
        """Whether there is something to resume."""
        return (self.dir / "config.yaml").exists()


def last_rows(rows: Rows) -> dict[str, float]:
    """The newest value of each metric, from rows that are not opened yet."""
    return last_values(row for _, _, row in parsed(rows.kept)[0])


def of_full_disk(error: BaseException | None) -> OSError | None:
    """The system's own error, where `error` came from a full disk: libraries wrap it in errors of their own."""
    while error and getattr(error, "errno", None) not in FULL:
        error = error.__cause__ or error.__context__
    return error if isinstance(error, OSError) else None
