"""Runs side by side: a table of all measures for each data set they share, then the curves of one measure."""

import contextlib
import csv
import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gen_lab.commands.measures import Cell, Row, Tables, better, is_bound, joined, measures, proper, title
from gen_lab.judging.pictures import read_sheet
from rl_lab.core.comparing import compare as comparing
from rl_lab.core.comparing import page
from rl_lab.core.comparing.groups import Groups, arrange, chosen
from rl_lab.core.comparing.results import find
from rl_lab.core.comparing.statistics import Resamples
from rl_lab.core.errors import UserError, counted
from rl_lab.core.files import replacing, together
from rl_lab.core.folders import RunFiles, choose_metric, read_runs
from rl_lab.core.metrics import Metric

FIRST = "nats", "bits/dim", "frechet", "kernel_distance", "precision", "recall", "density", "coverage"
HEAD = ("data", "model", "measure", "mean", "standard_error", "is_bound", "seeds", "first_update", "last_update", "how",
        "draws")  # fmt: skip
WIDE, TAKEN, COLUMN = 240, 50, 16  # columns of letters: of a pipe, of model, updates and seconds, of a measure
ACROSS, FRONT = 8, ("model", "updates", "seconds")  # measures in a table of the page at most; what stands before them
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
    choices: Container[str] = (),  # the groups chosen on the command line
) -> None:
    """Prints and writes tables (measures.csv), samples side by side (samples.png), the curves of one measure, where all
    runs have one in common, and a page of all (index.html).
    """
    notes: list[str] = []
    found = [
        run._replace(curves=joined(proper(run.curves)))
        for run in chosen(of_models(read_runs(runs, notes), notes), comparing.several(where))
    ]
    tasks = arrange(found, comparing.several(by), notes)
    (groups,) = tasks.values()
    found_tables = measures(groups, notes)
    tables = dict(sorted(found_tables.items(), key=lambda item: not any("nats" in row for row in item[1].values())))
    if not tables:
        raise UserError(
            "these runs have not been evaluated yet: none has a row of eval/; gen-lab evaluate run=<folder>"
        )
    metric = choose_metric(found, metric) if metric else shared(found)
    marked = {
        task: {"≤ " * is_bound(metric, runs) + name: runs for name, runs in of.items()} for task, of in tasks.items()
    }
    results = find(marked, metric, None, threshold, resamples, notes, "updates") if metric else None
    out = comparing.folder(out)
    times = {label: seconds(members) for label, members in groups.items()}
    for data, rows in tables.items():
        show(data, rows, times)
    with together(out) as beside:
        write_csv(beside / "measures.csv", tables)
        pictures = draw_samples(beside / "samples.png", groups, notes)
        opening = list(sections(tables, pictures, times))
        if results and metric:
            found_of = Metric.of(metric)
            words = {"bits": "bits/dim", "kl": "kl_nats"}.get(found_of.quantity, found_of.quantity)
            paths = comparing.write(results, beside, notes, opening, f"{found_of.data}: {title(words).rstrip(' ↓↑')}")
        else:
            lead = f"{counted(len(groups), 'models')}, {counted(len(found), 'runs')}, no measure in common."
            page.write(beside / "index.html", "Models side by side", lead, opening)
    print(out / "measures.csv", *(out / path.name for path in pictures), sep="\n")
    if results:
        comparing.show(results, notes, out, paths)
    else:
        print(*notes, out / "index.html", sep="\n")
    if "tracker" in choices:
        comparing.untracked(tracker, out)


def of_models(runs: Sequence[RunFiles], notes: list[str]) -> list[RunFiles]:
    """The runs of this lab; others are noted. Raises UserError where there is none."""
    found = [run for run in runs if any(key.partition(".")[0] == "model" for key in (*run.choices, *run.settings))]
    if not found:
        raise UserError(f"{runs[0].folder} holds no model: it is not a run of gen-lab train; rl-lab compare reads it")
    if count := len(runs) - len(found):
        notes.append(f"{counted(count, 'runs')} of rl-lab train left out; rl-lab compare reads them.")
    return found


def sections(tables: Tables, pictures: list[Path], times: dict[str, str]) -> Iterator[page.Section]:
    """Sections of the page: what the latest evaluations say, a table for each protocol and judge, and samples."""
    for data, rows in tables.items():
        names = columns(rows)
        best = {name: best_of(rows, name) for name in names}
        body = ""
        for start in range(0, len(names), ACROSS):
            part = names[start : start + ACROSS]
            cells = [
                [
                    *(page.text(words, "" if i else "text") for i, words in enumerate(in_front(model, row, times))),
                    *(
                        page.text(words, "best" * (best[name] == model))
                        for name, words in zip(part, in_row(row, part), strict=True)
                    ),
                ]
                for model, row in ordered(rows)
            ]
            body += page.table([*FRONT, *map(title, part)], cells, "measures")
        caption = (
            "Means of the latest evaluations ± standard errors: over seeds, of a single run over images; ≤ marks a "
            "bound; measured after the updates in the second column, or after those behind @. ↓ lower, ↑ higher is "
            "better; bold: the best of this table, where all were measured alike."
        )
        yield page.Section(heading(data, rows), body, caption)
    for path in pictures:
        words = "Real images, where a run has kept a sheet of them, and the last sheet of the first run of each model."
        yield page.Section("Samples", page.image(path, words))


def in_front(model: str, row: Row, times: dict[str, str]) -> tuple[str, str, str]:
    """The first columns of each table."""
    return model, updates(latest_of(row)), times.get(model, "")


def heading(data: str, rows: dict[str, Row]) -> str:
    """The data and their protocol, and the net that samples are judged by."""
    images, _, net = data.rpartition("-")
    return f"{images}: samples, as net {net} sees them" if any("frechet" in row for row in rows.values()) else data


def best_of(rows: dict[str, Row], name: str) -> str:
    """The best model by a measure that several have; "" where there is none, or they were not measured alike: by other
    images, other settings of a judge, or other held-out images, whose own distance then differs, bounds by other
    numbers of draws.
    """
    having = [row for row in rows.values() if name in row]
    draws = {row[name].draws for row in having if row[name].bound}
    floors = {f"{row['frechet_floor'].mean:.6g}" for row in having if "frechet_floor" in row}
    if len({row[name].how for row in having}) > 1 or len(floors) > 1 or len(draws) > 1:
        return ""
    means = {model: row[name].mean for model, row in rows.items() if name in row}
    choose = {"lower": min, "higher": max}.get(better(name))
    if choose is None or len(means) < 2 or len({*means.values()}) < 2:
        return ""
    return str(choose(means, key=lambda model: means[model]))


def seconds(runs: Iterable[RunFiles]) -> str:
    """What the fastest and the slowest of them took."""
    took = [max((float(curve.seconds[-1]) for curve in run.curves.values()), default=0.0) for run in runs]
    low, high = f"{min(took):,.0f}", f"{max(took):,.0f}"
    return low if low == high else f"{low} to {high}"


def shared(runs: list[RunFiles]) -> str | None:
    """A measure that all runs have."""
    common = sorted(set.intersection(*(set(run.curves) for run in runs)))
    found = [name for name in common if name.startswith("eval/") and not Metric.of(name).is_error]
    order = {quantity: place for place, quantity in enumerate(CURVES)}
    return min(found, key=lambda name: order.get(Metric.of(name).quantity, len(order)), default=None)


def columns(rows: dict[str, Row]) -> list[str]:
    """The columns, best known first."""
    names = {name for row in rows.values() for name in row}
    return [name for name in FIRST if name in names] + sorted(names - {*FIRST})


def latest_of(row: Row) -> tuple[int, int]:
    """The updates of the latest measures: fewest and most."""
    most, fewest = max((cell.steps[1], cell.steps[0]) for cell in row.values())
    return fewest, most


def updates(steps: tuple[int, int]) -> str:
    return f"{steps[0]:,}" if steps[0] == steps[1] else f"{steps[0]:,} to {steps[1]:,}"


def in_row(row: Row, names: list[str]) -> list[str]:
    """The cells in words; a cell from other updates than its row's says so, one of fewer images than there are, and one
    of several draws of the latents.
    """
    newest = latest_of(row)
    words = {
        name: written(cell)
        + f" @{updates(cell.steps)}" * (cell.steps != newest)
        + f" ({cell.how})" * ("images" in cell.how)
        + f" ({cell.draws:,} draws)" * (cell.draws > 0)
        for name, cell in row.items()
    }
    return [words.get(name, "") for name in names]


def show(data: str, rows: dict[str, Row], times: dict[str, str]) -> None:
    """Prints as many columns of a table as the terminal is wide, the others in tables below."""
    console, names = Console(highlight=False), columns(rows)
    console.width = console.width if console.is_terminal else max(console.width, WIDE)
    room = max(1, (console.width - TAKEN) // COLUMN)
    for start in range(0, len(names), room):
        part = names[start : start + room]
        table = Table(
            FRONT[0], title=Text(heading(data, rows)), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        for name in [*FRONT[1:], *map(title, part)]:
            table.add_column(Text(name), justify="right", overflow="fold")
        for label, row in ordered(rows):
            table.add_row(*map(Text, (*in_front(label, row, times), *in_row(row, part))))
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
    """Real images, and the last sheet of samples that the first run of each group has left, side by side; the path, or
    nothing.
    """
    from matplotlib.figure import Figure

    sheets: dict[str, Any] = {}
    for members in groups.values():
        for real in (run.folder / "pictures/real.png" for run in members):
            if not sheets and real.exists():
                with contextlib.suppress(UserError):
                    sheets["real images"] = read_sheet(real)
    for label, members in groups.items():
        if found := sorted(members[0].folder.glob("pictures/samples_*.png")):
            step = found[-1].stem.removeprefix("samples_")
            try:
                sheets[f"{label}, update {int(step):,}" if step.isdigit() else label] = read_sheet(found[-1])
            except UserError as error:
                notes.append(str(error))
    if not sheets.keys() - {"real images"}:
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
                writer.writerows([data, label, name, *cell[:4], *cell.steps, *cell[5:]] for name, cell in row.items())
