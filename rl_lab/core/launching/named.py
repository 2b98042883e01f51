"""Which runs the folders stand for that are named on a command line: those of a study, those below, those of a lab."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from rl_lab.core import files, rows
from rl_lab.core.errors import UserError, pasted, refuse_undecoded
from rl_lab.core.folders import LARGEST
from rl_lab.core.studies.study import Study


def runs_of(folders: list[Path]) -> list[Path]:
    """The folder of a study stands for its runs that have rows; any other folder for itself. Raises UserError."""
    found = []
    for folder in folders:
        if not (folder / "study.yaml").is_file():
            found.append(folder)
            continue
        study = Study(folder)
        runs = [Path(os.path.relpath(folder / job.folder)) for job in study.jobs() if job.folder]
        if outside := [run for run in runs if not run.resolve().is_relative_to(study.root.resolve())]:
            raise UserError(f"{folder} names a run outside its own folders, {outside[0]}; name that run itself")
        runs = [run for run in runs if (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").stat().st_size]
        if not runs:
            raise UserError(f"{folder} has no run with rows in metrics.jsonl yet; wait for them or leave it out")
        found += runs
    return found


def with_runs(folders: list[Path]) -> list[Path]:
    """Of several folders those that are a study or in which there is a run, whole or damaged, and all where none is:
    runs/*/* names the folders of comparisons too.
    """

    def holds(folder: Path) -> bool:
        here = any((folder / name).is_file() for name in ("config.yaml", "study.yaml"))
        return here or any(next(folder.rglob(name), None) for name in (rows.NAME, "checkpoint.pt"))

    return [folder for folder in folders if holds(folder)] or folders


def of_lab(folders: list[Path], lab: str) -> tuple[list[Path], list[Path]]:
    """The runs at or below the folders that are of a lab, and those of another; where all are of another, or none is,
    the folders themselves.
    """
    found = [run for folder in folders for run in (sorted(x.parent for x in folder.rglob(rows.NAME)) or [folder])]
    others = [run for run in found if _lab(run) not in (lab, "")]
    if not others or len(others) == len(found):
        return folders, []
    return [run for run in found if run not in others], others


def runs_below(folder: Path, lab: str) -> list[Path]:
    """The runs of a lab below a folder that have a checkpoint, or, where none has one, those that have begun; the
    folder alone where it is a run of one seed, or holds none.
    """

    def is_run(path: Path) -> bool:
        return (path / "config.yaml").is_file() and not any(path.glob("seed*/config.yaml"))

    refuse_undecoded(str(folder))
    if is_run(folder):
        return [folder]
    found = sorted(path.parent for path in folder.rglob("checkpoint.pt") if is_run(path.parent))
    if saved := [run for run in found if _lab(run) in (lab, "")]:
        return saved
    begun = sorted(path.parent for path in folder.rglob("config.yaml") if is_run(path.parent))
    return [run for run in begun if _lab(run) == lab] or [folder]


def the_one(runs: Sequence[Path], usage: str) -> Path:
    """Of a command that takes one run. Raises UserError with its `usage` where none was given."""
    if len(runs) > 1:
        named = pasted(f"run={runs[0]}")
        raise UserError(f"these are {len(runs)} runs, and this takes one; name it, such as {named}")
    if not runs:
        raise UserError(usage)
    return runs[0]


def _lab(run: Path) -> str:
    """The lab whose loop it is; "" where its config.yaml does not say, or names neither lab."""
    try:
        with files.opened(run / "config.yaml", LARGEST) as file:
            text = file.read().decode(errors="replace")
    except (OSError, UserError):
        return ""
    found = re.search(r"^loop:\n(?: .*\n)*?  _target_: (\w+_lab)\.", text, re.MULTILINE)
    return found[1] if found else ""
