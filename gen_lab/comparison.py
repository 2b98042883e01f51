"""Runs side by side: a table of all measures for each data set they share, then the curves of one measure."""

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl_lab.core import files
from rl_lab.core.comparing import page
from rl_lab.core.comparing.compare import folder, publish, several, track
from rl_lab.core.comparing.groups import Groups, arrange, chosen
from rl_lab.core.comparing.results import find
from rl_lab.core.errors import UserError
from rl_lab.core.folders import RunFiles, choose_metric, read_runs
from rl_lab.core.settings import Count

FIRST = "nats", "bits/dim", "frechet", "kernel_distance", "precision", "recall", "density", "coverage"
COLUMNS, INCHES = 4, 2.7  # sheets of samples in a row, and how large each is
CURVES = "eval/nll_nats", "eval/nll_bound_nats", "eval/frechet", "eval/"  # which to draw, the first that all have


class Cell(NamedTuple):
    """One measure of equal settings over their seeds."""

    mean: float
    error: float  # standard: over seeds; of one alone, over images; nan where neither is known
    bound: bool = False  # the truth is no greater


def compare(
    runs: Iterable[Path],
    *,
    metric: str | None = None,  # of the curves; None: a likelihood, or else the first measure that every run has
    by: list[str] | str | None = None,  # settings that tell groups apart; None: all that differ
    where: list[str] | str | None = None,  # conditions on settings: model:vae*, -loop.total_steps:500
    threshold: float | None = None,  # None: 90 % of the way from the worst first value to the best final one
    out: Path | None = None,  # None: runs/compare/<timestamp>
    resamples: Count = 2_000,
    tracker: Callable | None = None,  # a partial of tracking.wandb_run
) -> None:
    """Prints and writes tables (measures.csv), samples side by side (samples.png), the curves of one measure, where all
    runs have one in common, and a page of all (index.html).
    """
    notes: list[str] = []
    found = chosen(read_runs(runs, notes), several(where))
    tasks = arrange(found, several(by), notes)
    (groups,) = tasks.values()
    tables = measures(groups)
    if not tables:
        raise UserError("these runs have not been evaluated yet: none has a row of eval/")
    metric = choose_metric(found, metric) if metric else shared(found)
    results = find(tasks, metric, None, threshold, resamples, notes) if metric else None
    out = folder(out)
    for data, rows in tables.items():
        show(data, rows)
    write_csv(out / "measures.csv", tables)
    pictures = draw_samples(out / "samples.png", groups)
    print(out / "measures.csv", *pictures, sep="\n")
    opening = list(sections(tables, pictures))
    if results:
        publish(results, out, notes, opening)
        track(tracker, results, out)
    else:
        lead = f"{len(groups)} models, {len(found)} runs, no measure in common."
        print(*notes, page.write(out / "index.html", "Models side by side", lead, opening), sep="\n")


def sections(tables: dict[str, dict[str, dict[str, Cell]]], pictures: list[Path]) -> Iterator[page.Section]:
    """Of the page: what the last evaluations said, and samples."""
    for data, rows in tables.items():
        names = columns(rows)
        cells = [[page.text(model), *(page.text(written(row[name]) if name in row else "", "") for name in names)]
                 for model, row in ordered(rows)]  # fmt: skip
        caption = "Means of the last evaluations ± standard errors: over seeds, of one alone over images; ≤ is a bound."
        yield page.Section(data, page.table(["model", *names], cells, "measures"), caption)
    for path in pictures:
        yield page.Section("Samples", page.image(path, "The last sheet of the first run of each model."))


def shared(runs: list[RunFiles]) -> str | None:
    """A measure that every run has."""
    common = sorted(set.intersection(*(set(run.curves) for run in runs)))
    found = [m for prefix in CURVES for m in common if m.startswith(prefix) and "_se[" not in m]
    return found[0] if found else None


def measures(groups: Groups) -> dict[str, dict[str, dict[str, Cell]]]:
    """By data set (and protocol), settings and measure: what the last evaluations of their runs said."""
    tables: dict[str, dict[str, dict[str, Cell]]] = {}
    for label, members in groups.items():
        last = [{name: curve.values[-1] for name, curve in run.curves.items()} for run in members]
        names = sorted(set.union(*map(set, last)))
        for name in names:
            if (parts := re.fullmatch(r"eval/(.+)\[(.+)\]", name)) and not parts[1].endswith("_se"):
                values = [values[name] for values in last if name in values]
                errors = [values.get(f"eval/{parts[1]}_se[{parts[2]}]", math.nan) for values in last]
                row = tables.setdefault(parts[2], {}).setdefault(label, {})
                keep(row, parts[1], Cell(float(np.mean(values)), standard_error(values, errors)))
    return tables


def keep(row: dict[str, Cell], name: str, cell: Cell) -> None:
    """Likelihoods stand in one column, of bounds the tightest; all other measures under their own names."""
    column = {"nll_nats": "nats", "bits_per_dim": "bits/dim", "bits_per_dim_bound": "bits/dim"}.get(name, name)
    if name == "nll_bound_nats" or re.fullmatch(r"iwae\d+_nats", name):
        column = "nats"
    cell = cell._replace(bound=column != name and name not in ("nll_nats", "bits_per_dim"))
    if column not in row or cell.mean < row[column].mean:
        row[column] = cell


def standard_error(values: list[float], errors: list[float]) -> float:
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else float(errors[0])


def columns(rows: dict[str, dict[str, Cell]]) -> list[str]:
    """The best known first."""
    names = {name for row in rows.values() for name in row}
    return [name for name in FIRST if name in names] + sorted(names - {*FIRST})


def show(data: str, rows: dict[str, dict[str, Cell]]) -> None:
    """On the terminal."""
    names = columns(rows)
    table = Table("model", title=data, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, justify="right")
    for label, row in ordered(rows):
        table.add_row(Text(label), *(written(row[name]) if name in row else "" for name in names))
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else max(console.width, 200)
    console.print(table)


def ordered(rows: dict[str, dict[str, Cell]]) -> list[tuple[str, dict[str, Cell]]]:
    """By the first column, lower first."""
    first, missing = columns(rows)[0], Cell(math.inf, math.nan)
    return sorted(rows.items(), key=lambda item: item[1].get(first, missing).mean)


def written(cell: Cell) -> str:
    digits = 0 if cell.mean == 0 else max(0, 3 - math.floor(math.log10(abs(cell.mean))))
    error = "" if math.isnan(cell.error) else f" ± {cell.error:.{digits}f}"
    return f"{'≤ ' * cell.bound}{cell.mean:.{digits}f}{error}"


def draw_samples(path: Path, groups: Groups) -> list[Path]:
    """The last sheet of samples that the first run of each group has left, side by side; the path, or nothing."""
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    sheets = {label: sorted(members[0].folder.glob("pictures/samples_*.png")) for label, members in groups.items()}
    sheets = {label: found[-1] for label, found in sheets.items() if found}
    if not sheets:
        return []
    columns = min(len(sheets), COLUMNS)
    rows = -(-len(sheets) // columns)
    figure = Figure(figsize=(INCHES * columns, INCHES * rows * 1.08), layout="constrained")
    for place, (label, sheet) in enumerate(sheets.items(), 1):
        panel = figure.add_subplot(rows, columns, place)
        panel.imshow(imread(sheet), interpolation="nearest")
        panel.set_title(fill(label, 40), fontsize=9)
        panel.set_axis_off()
    with files.replacing(path) as beside:
        figure.savefig(beside, dpi=150)
    return [path]


def write_csv(path: Path, tables: dict[str, dict[str, dict[str, Cell]]]) -> None:
    with files.replacing(path) as beside, beside.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["data", "model", "measure", "mean", "standard_error", "is_bound"])
        for data, rows in tables.items():
            for label, row in rows.items():
                writer.writerows([data, label, name, *cell] for name, cell in row.items())
