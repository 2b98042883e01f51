"""Comparison of runs from their files alone: tables, csv, pictures, and one page with all of them."""

import sys
from collections.abc import Callable, Container, Iterable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rl_lab.core import files
from rl_lab.core.comparing import figures, page, tables
from rl_lab.core.comparing import report as wandb_report
from rl_lab.core.comparing.groups import arrange, chosen
from rl_lab.core.comparing.results import Results, Row, find
from rl_lab.core.comparing.statistics import Resamples
from rl_lab.core.folders import choose_metric, read_runs
from rl_lab.core.tracking import wandb_run


def compare(
    runs: Iterable[Path],
    *,
    metric: str | None,  # None: eval/return if every run has it, else the next best
    by: list[str] | str | None,  # settings that distinguish groups; None: all that differ
    where: list[str] | str | None,  # conditions on settings: agent.gamma:0.99, -name:dqn_*
    normalise: Literal["atari", "range"] | None,  # None: raw for one task, else atari or range
    threshold: float | None,  # None: 90 % of the way from the worst first value to the best final one
    out: Path | None,  # None: runs/compare/<timestamp>
    resamples: Resamples,
    report: bool,  # as a W&B report too
    tracker: Callable[..., Any] | None = None,  # a partial of tracking.wandb_run: of a report
    choices: Container[str] = (),  # the groups chosen on the command line
) -> list[Row]:
    """Prints and writes the comparison of run folders, or folders of them, best first. Raises UserError."""
    project = wandb_report.project(tracker) if report else None
    results, notes = analyse(runs, metric, by, where, normalise, threshold, resamples)
    out = folder(out)
    with files.together(out) as beside:
        written = write(results, beside, notes)
    show(results, notes, out, written)
    if project:
        print(wandb_report.save(results, list(tables.captions(results)), project))
    elif "tracker" in choices:
        untracked(tracker, out)
    return results.rows


def analyse(
    runs: Iterable[Path],
    metric: str | None = None,
    by: list[str] | str | None = None,
    where: list[str] | str | None = None,
    normalise: str | None = None,
    threshold: float | None = None,
    resamples: int = 2_000,
) -> tuple[Results, list[str]]:
    """The Results of `compare`'s arguments, and notes on what was left out. Raises UserError."""
    notes: list[str] = []
    found = chosen(read_runs(runs, notes), several(where))
    tasks = arrange(found, several(by), notes)
    return find(tasks, choose_metric(found, metric), normalise, threshold, resamples, notes), notes


def several(words: list[str] | str | None) -> list[str]:
    """One word or a list of them, as the command line has it."""
    listed: Iterable[object] = [words] if isinstance(words, str) or not isinstance(words, Iterable) else words
    return [str(word) for word in listed if word is not None]


def folder(out: Path | None) -> Path:
    """Where the files go: a folder that no other comparison uses, or the one asked for. Raises UserError."""
    return files.fresh(Path(f"runs/compare/{datetime.now():%Y%m%d-%H%M%S}")) if out is None else Path(out)


def write(
    results: Results, out: Path, notes: list[str], before: Iterable[page.Section] = (), title: str | None = None
) -> list[Path]:
    """The files of a comparison under `out`; `before` opens the page."""
    written = tables.write(results, out) + figures.files(results, out)
    sections = [*before, *page.sections(results, list(tables.captions(results)), notes)]
    page.write(out / "index.html", title or figures.title(results), page.lead(results), sections)
    return [*written, out / "index.html"]


def show(results: Results, notes: list[str], out: Path, written: Iterable[Path]) -> None:
    """Its tables on the terminal, and where in `out` the files are by now."""
    tables.show(results, [*tables.captions(results), *notes], [out / path.name for path in written])


def untracked(tracker: Callable[..., Any] | None, out: Path) -> None:
    """Tells those who asked for W&B why it is not there."""
    if isinstance(tracker, partial) and tracker.func is wandb_run:
        print(
            f"not sent to W&B: a comparison is of many runs, and belongs to none; {out / 'index.html'} is all of it",
            file=sys.stderr,
        )
