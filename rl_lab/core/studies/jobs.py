"""One job of a study, in the process where a launcher put it: it holds its lock, prints to its log, notes its end."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from rl_lab.core import files
from rl_lab.core.errors import UserError
from rl_lab.core.studies import slurm
from rl_lab.core.studies.study import Study

Value = tuple[str, float] | None  # what a run came to: the name of a metric, and its last figure


def run_job(study: Study, number: int, folder: Path, prog: str, work: Callable[[bool], Value], launcher: int) -> Value:
    """Does the work and notes what came of it; no mistake and no crash leaves here.

    `work` takes whether the study has begun this very folder before. `launcher` is the process that launches.
    """
    apart = os.getpid() != launcher
    with study.holding(number) as held:
        if study.stopping or not held:
            return None
        seen = os.path.relpath(folder, study.folder)
        if reason := study.shared_mistake():
            study.note(number, state="mistake", reason=reason)
            return None
        begun = study.job(number).folder == seen
        study.note(number, folder=seen, state="running", process=[socket.gethostname(), os.getpid()])
        if apart:  # Ctrl-C reaches every process of a terminal; the launcher alone answers it, and stops the jobs
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        start = time.monotonic()
        with printing_to(study.log(number), apart):
            outcome = _outcome(prog, study, lambda: work(begun))
        study.note(number, **outcome, seconds=round(time.monotonic() - start, 1))
        if outcome["state"] == "mistake" and not (folder / "config.yaml").exists() and study.shares(outcome["reason"]):
            study.share_mistake(outcome["reason"])
        if outcome["state"] == "interrupted" and not apart:
            study.stop()
        if outcome["state"] == "waiting":
            sys.exit(1)  # without a result, for which the launcher waits on
        return outcome.get("value")


def _outcome(prog: str, study: Study, work: Callable[[], Value]) -> dict[str, Any]:
    try:
        return {"state": "finished", "value": work()}
    except UserError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return {"state": "mistake", "reason": str(error)}
    except KeyboardInterrupt as stop:
        if not study.stopping and slurm.starts_again(stop):
            return {"state": "waiting", "reason": "saved; Slurm starts it again"}
        return {"state": "interrupted"}
    except Exception as error:
        traceback.print_exc()
        return {"state": "crashed", "reason": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


@contextmanager
def printing_to(log: Path, whole_process: bool) -> Iterator[None]:
    """Into `log` goes what Python prints and, of a whole process, what its libraries and children print."""
    kept = {number: os.dup(number) for number in (1, 2) if whole_process}
    with TextIOWrapper(files.appending(log), line_buffering=True) as file, redirect_stdout(file), redirect_stderr(file):
        for number in kept:
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            for number, before in kept.items():
                os.dup2(before, number)
                os.close(before)
