"""Runs side by side: a table of all measures for each data set they share, then the curves of one measure."""

import csv
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gen_lab.commands.measures import Cell, Row, Tables, is_bound, joined, measures, proper
from gen_lab.judging.pictures import read_sheet
from rl_lab.core.comparing import page
from rl_lab.core.comparing.compare import folder, publish, several, untracked
from rl_lab.core.comparing.groups import Groups, arrange, chosen
from rl_lab.core.comparing.results import find
from rl_lab.core.comparing.statistics import Resamples
from rl_lab.core.errors import UserError
from rl_lab.core.files import replacing
from rl_lab.core.folders import RunFiles, choose_metric, read_runs
from rl_lab.core.metrics import Metric

FIRST = "nats", "bits/dim", "frechet", "kernel_distance", "precision", "recall", "density", "coverage"
HEAD = "data", "model", "measure", "mean", "standard_error", "is_bound", "seeds", "first_update", "last_update"
COLUMNS, INCHES = 4, 2.7  # sheets of samples in a row, and how large each is
CURVES = "nll_nats", "nll_bound_nats", "nats", "frechet"  # which to draw, the first that every run has; else any


def compare(
    runs: Iterable[Path],
    *,
    metric: str | None,  # of the curves; None: a likelihood, or else the first measure that every run has
    by: list[str] | str | None,  # settings that distinguish groups; None: all that differ
    where: list[str] | str | None,  # conditions on settings: model:vae*, -loop.total_steps:500
    threshold: float | None,  # None: 90 % of the way from the worst first value to the best final one
    out: Path | None,  # None: runs/compare/<timestamp>
    resamples: Resamples,
    tracker: Callable[..., Any] | None = None,  # a partial of tracking.wandb_run
) -> None:
    """Prints and writes tables (measures.csv), samples side by side (samples.png), the curves of one measure, where all
    runs have one in common, and a page of all (index.html).
    """
    notes: list[str] = []
    found = [run._replace(curves=joined(proper(run.curves))) for run in chosen(read_runs(runs, notes), several(where))]
    tasks = arrange(found, several(by), notes)
    (groups,) = tasks.values()
    tables = measures(groups, notes)
    if not tables:
        raise UserError(
            "these runs have not been evaluated yet: none has a row of eval/; gen-lab evaluate run=<folder>"
        )
    metric = choose_metric(found, metric) if metric else shared(found)
    marked = {
        task: {"≤ " * is_bound(metric, runs) + name: runs for name, runs in of.items()} for task, of in tasks.items()
    }
    results = find(marked, metric, None, threshold, resamples, notes) if metric else None
    out = folder(out)
    for data, rows in tables.items():
        show(data, rows)
    write_csv(out / "measures.csv", tables)
    pictures = draw_samples(out / "samples.png", groups, notes)
    print(out / "measures.csv", *pictures, sep="\n")
    opening = list(sections(tables, pictures))
    if results:
        publish(results, out, notes, opening)
    else:
        lead = f"{len(groups)} models, {len(found)} runs, no measure in common."
        print(*notes, page.write(out / "index.html", "Models side by side", lead, opening), sep="\n")
    untracked(tracker, out)


def sections(tables: Tables, pictures: list[Path]) -> Iterator[page.Section]:
    """Of the page: what the latest evaluations said, and samples."""
    for data, rows in tables.items():
        names = columns(rows)
        cells = [
            [page.text(model), *(page.text(words, "") for words in (updates(latest_of(row)), *in_row(row, names)))]
            for model, row in ordered(rows)
        ]
        caption = (
            "Means of the latest evaluations ± standard errors: over seeds, of a single run over images; ≤ marks a "
            "bound; measured after the updates in the second column, or after those behind @."
        )
        yield page.Section(data, page.table(["model", "updates", *names], cells, "measures"), caption)
    for path in pictures:
        yield page.Section("Samples", page.image(path, "The last sheet of the first run of each model."))


def shared(runs: list[RunFiles]) -> str | None:
    """A measure that every run has."""
    common = sorted(set.intersection(*(set(run.curves) for run in runs)))
    found = [name for name in common if name.startswith("eval/") and not Metric.of(name).is_error]
    order = {quantity: place for place, quantity in enumerate(CURVES)}
    return min(found, key=lambda name: order.get(Metric.of(name).quantity, len(order)), default=None)


def columns(rows: dict[str, Row]) -> list[str]:
    """The best known first."""
    names = {name for row in rows.values() for name in row}
    return [name for name in FIRST if name in names] + sorted(names - {*FIRST})


def latest_of(row: Row) -> tuple[int, int]:
    """The updates of the latest measures: fewest and most."""
    most, fewest = max((cell.steps[1], cell.steps[0]) for cell in row.values())
    return fewest, most


def updates(steps: tuple[int, int]) -> str:
    return f"{steps[0]:,}" if steps[0] == steps[1] else f"{steps[0]:,} to {steps[1]:,}"


def in_row(row: Row, names: list[str]) -> list[str]:
    """The cells in words; where one is of other updates than the row, with those."""
    newest = latest_of(row)
    words = {name: written(cell) + f" @{updates(cell.steps)}" * (cell.steps != newest) for name, cell in row.items()}
    return [words.get(name, "") for name in names]


def show(data: str, rows: dict[str, Row]) -> None:
    """On the terminal."""
    names = columns(rows)
    table = Table("model", title=Text(data), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ["updates", *names]:
        table.add_column(Text(name), justify="right")
    for label, row in ordered(rows):
        table.add_row(Text(label), updates(latest_of(row)), *in_row(row, names))
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else max(console.width, 200)
    console.print(table)


def ordered(rows: dict[str, Row]) -> list[tuple[str, Row]]:
    """By the first column, lower first."""
    first, missing = columns(rows)[0], Cell(math.inf, math.nan)
    return sorted(rows.items(), key=lambda item: item[1].get(first, missing).mean)


def written(cell: Cell) -> str:
    digits = 0 if cell.mean == 0 else max(0, 3 - math.floor(math.log10(abs(cell.mean))))
    error = "" if math.isnan(cell.error) else f" ± {cell.error:.{digits}f}"
    return f"{'≤ ' * cell.bound}{cell.mean:.{digits}f}{error}"


def draw_samples(path: Path, groups: Groups, notes: list[str]) -> list[Path]:
    """The last sheet of samples that the first run of each group has left, side by side; the path, or nothing."""
    from matplotlib.figure import Figure

    sheets = {}
    for label, members in groups.items():
        if found := sorted(members[0].folder.glob("pictures/samples_*.png")):
            step = found[-1].stem.removeprefix("samples_")
            try:
                sheets[f"{label}, update {int(step):,}" if step.isdigit() else label] = read_sheet(found[-1])
            except UserError as error:
                notes.append(str(error))
    if not sheets:
        return []
    columns = min(len(sheets), COLUMNS)
    rows = -(-len(sheets) // columns)
    figure = Figure(figsize=(INCHES * columns, INCHES * rows * 1.08), layout="constrained")
    for place, (label, sheet) in enumerate(sheets.items(), 1):
        panel = figure.add_subplot(rows, columns, place)
        panel.imshow(np.asarray(sheet), interpolation="nearest")
        panel.set_title(fill(label, 30), fontsize=12, parse_math=False)  # legible at half the size
        panel.set_axis_off()
    with replacing(path) as beside:
        figure.savefig(beside, dpi=150)
    return [path]


def write_csv(path: Path, tables: Tables) -> None:
    with replacing(path) as beside, beside.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEAD)
        for data, rows in tables.items():
            for label, row in rows.items():
                writer.writerows([data, label, name, *cell[:4], *cell.steps] for name, cell in row.items())
