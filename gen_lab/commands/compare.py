"""Runs side by side: a table of all measures for each data set they share, then the curves of one measure."""

import csv
import json
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

from gen_lab.judging.pictures import read_sheet
from rl_lab.core.comparing import page
from rl_lab.core.comparing.compare import folder, publish, several, track
from rl_lab.core.comparing.groups import Groups, arrange, chosen
from rl_lab.core.comparing.results import find
from rl_lab.core.comparing.statistics import Resamples
from rl_lab.core.errors import UserError
from rl_lab.core.files import opened, printable, replacing
from rl_lab.core.folders import Curve, RunFiles, choose_metric, read_runs

FIRST = "nats", "bits/dim", "frechet", "kernel_distance", "precision", "recall", "density", "coverage"
COLUMNS, INCHES = 4, 2.7  # sheets of samples in a row, and how large each is
CURVES = (
    "eval/nll_nats",
    "eval/nll_bound_nats",
    "eval/nats",
    "eval/frechet",
    "eval/",
)  # which to draw, the first that all have
JOINED = {  # one quantity each: of some models exact, of others a bound
    "nats": ("nll_nats", "nll_bound_nats"),
    "bits": ("bits_per_dim", "bits_per_dim_bound"),
    "kl": ("kl_nats", "kl_bound_nats"),
}
MEASURE = re.compile(r"eval/(.+)\[(.+)\]")  # and the data it is of
LARGEST = 2**24  # bytes of an evaluation.json


class Figure(NamedTuple):
    """What one run says of one measure."""

    value: float
    step: int  # updates


class Cell(NamedTuple):
    """One measure of equal settings over their seeds."""

    mean: float
    error: float  # standard: over seeds; of one alone, over images; nan where neither is known
    bound: bool = False  # the truth is no greater
    seeds: int = 1
    steps: tuple[int, int] = (0, 0)  # updates of the models that were measured: fewest and most


def compare(
    runs: Iterable[Path],
    *,
    metric: str | None = None,  # of the curves; None: a likelihood, or else the first measure that every run has
    by: list[str] | str | None = None,  # settings that tell groups apart; None: all that differ
    where: list[str] | str | None = None,  # conditions on settings: model:vae*, -loop.total_steps:500
    threshold: float | None = None,  # None: 90 % of the way from the worst first value to the best final one
    out: Path | None = None,  # None: runs/compare/<timestamp>
    resamples: Resamples = 2_000,
    tracker: Callable | None = None,  # a partial of tracking.wandb_run
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
        track(tracker, results, out)
    else:
        lead = f"{len(groups)} models, {len(found)} runs, no measure in common."
        print(*notes, page.write(out / "index.html", "Models side by side", lead, opening), sep="\n")


def sections(tables: dict[str, dict[str, dict[str, Cell]]], pictures: list[Path]) -> Iterator[page.Section]:
    """Of the page: what the latest evaluations said, and samples."""
    for data, rows in tables.items():
        names = columns(rows)
        cells = [[page.text(model), page.text(told(latest_of(row)), ""),
                  *(page.text(in_row(row, name), "") for name in names)] for model, row in ordered(rows)]  # fmt: skip
        caption = ("Means of the latest evaluations ± standard errors: over seeds, of one alone over images; ≤ is a "
                   "bound; of the updates in the second column, or of those after @.")  # fmt: skip
        yield page.Section(data, page.table(["model", "updates", *names], cells, "measures"), caption)
    for path in pictures:
        yield page.Section("Samples", page.image(path, "The last sheet of the first run of each model."))


# -- what runs say


def proper(named: dict) -> dict:
    """By their names as they are now: what runs of old called kl_nats is KL(data || model) where an exact likelihood
    stands beside it, and else KL(q || prior), a term of a VAE's bound.
    """
    renamed = {}
    for name, x in named.items():
        parts = MEASURE.fullmatch(name)
        if parts and parts[1] in ("kl_nats", "kl_nats_se") and f"eval/nll_nats[{parts[2]}]" not in named:
            name = name.replace("/kl_nats", "/kl_prior_nats")
        renamed[name] = x
    return renamed


def joined(curves: dict[str, Curve]) -> dict[str, Curve]:
    """And eval/nats, eval/bits and eval/kl: the exact ones where there are any, else their bounds."""
    more = {}
    for name, pair in JOINED.items():
        for one in reversed(pair):  # what is exact comes last, and stays
            more |= {f"eval/{name}[{parts[2]}]": curve for metric, curve in curves.items()
                     if (parts := MEASURE.fullmatch(metric)) and parts[1] == one}  # fmt: skip
    return curves | more


def is_bound(metric: str | None, runs: list[RunFiles]) -> bool:
    """Whether these runs know of what is joined in the metric but a bound."""
    parts = MEASURE.fullmatch(metric or "")
    if not parts or parts[1] not in JOINED:
        return False
    return any(f"eval/{JOINED[parts[1]][0]}[{parts[2]}]" not in run.curves for run in runs)


def latest(run: RunFiles, notes: list[str]) -> dict[str, Figure]:
    """Of each measure the last row, or evaluation.json where that is of as many updates or more."""
    found = {name: Figure(float(curve.values[-1]), int(curve.steps[-1])) for name, curve in run.curves.items()}
    learned = max(figure.step for figure in found.values())
    for name, figure in evaluation(run.folder, notes).items():
        if name not in found or figure.step >= found[name].step:
            found[name] = figure
    found = {name: figure for name, figure in found.items() if name.startswith("eval/")}
    if found and (measured := max(figure.step for figure in found.values())) < learned:
        notes.append(f"{run.folder} has learned for {learned:,} updates, and its figures are of update {measured:,}; "
                     f"gen-lab evaluate run={run.folder} measures it as it is.")  # fmt: skip
    return found


def evaluation(folder: Path, notes: list[str]) -> dict[str, Figure]:
    """What its evaluation.json says; nothing, and a note, where that is damaged or a link."""
    try:
        with opened(folder / "evaluation.json", LARGEST) as file:
            record = printable(json.load(file))
        floor = {name.replace("/frechet[", "/frechet_floor["): x for name, x in record.get("floor", {}).items()}
        values = {name: x for name, x in floor.items() if "/frechet_floor[" in name}
        values = proper(values | record["scores"] | record.get("measures", {}))
        return {name: Figure(float(x), int(record["step"])) for name, x in values.items() if math.isfinite(x)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        notes.append(f"{folder}/evaluation.json is left out: it is damaged, or no file of the run ({error}).")
        return {}


def shared(runs: list[RunFiles]) -> str | None:
    """A measure that every run has."""
    common = sorted(set.intersection(*(set(run.curves) for run in runs)))
    found = [m for prefix in CURVES for m in common if m.startswith(f"{prefix}[" if "_" in prefix else prefix)]
    found = [m for m in found if "_se[" not in m]
    return found[0] if found else None


# -- tables


def measures(groups: Groups, notes: list[str]) -> dict[str, dict[str, dict[str, Cell]]]:
    """By data set (and protocol), settings and column: what the latest evaluations of their runs said."""
    tables: dict[str, dict[str, dict[str, Cell]]] = {}
    for label, members in groups.items():
        last = [latest(run, notes) for run in members]
        found: dict[str, dict[str, Cell]] = {}
        for name in sorted(set.union(*map(set, last))):
            parts = MEASURE.fullmatch(name)
            if parts and not parts[1].endswith("_se") and parts[1] not in JOINED:
                having = [figures for figures in last if name in figures]
                values, steps = [figures[name].value for figures in having], [figures[name].step for figures in having]
                se = f"eval/{parts[1]}_se[{parts[2]}]"
                errors = [f[se].value if se in f and f[se].step == f[name].step else math.nan for f in having]
                cell = Cell(float(np.mean(values)), standard_error(values, errors), "bound" in parts[1], len(values),
                            (min(steps), max(steps)))  # fmt: skip
                found.setdefault(parts[2], {})[parts[1]] = cell
        for data, cells in found.items():
            tables.setdefault(data, {})[label] = in_columns(cells)
    return tables


def in_columns(cells: dict[str, Cell]) -> dict[str, Cell]:
    """Likelihoods stand in one column, of bounds the tightest of the latest; bits, and the divergence, are of that
    very bound. All other measures stand under their own names.
    """
    weighted = [name for name in cells if re.fullmatch(r"iwae\d+_nats", name)]
    bounds = [name for name in ("nll_bound_nats", *weighted) if name in cells]
    row = {
        k: cell for k, cell in cells.items() if k not in {*bounds, *(name for pair in JOINED.values() for name in pair)}
    }
    exact = {"nats": "nll_nats", "bits/dim": "bits_per_dim", "kl_nats": "kl_nats"}
    row |= {column: cells[name] for column, name in exact.items() if name in cells}
    if "nats" in row or not bounds:
        return row
    newest = max((cells[name].seeds, cells[name].steps) for name in bounds)
    best = min((name for name in bounds if (cells[name].seeds, cells[name].steps) == newest),
               key=lambda name: cells[name].mean)  # fmt: skip
    row["nats"] = chosen_bound = cells[best]._replace(bound=True)
    plain, bits, kl = (cells.get(name) for name in ("nll_bound_nats", "bits_per_dim_bound", "kl_bound_nats"))
    if plain and bits and plain.mean and plain.steps == bits.steps:
        nat = bits.mean / plain.mean  # in bits/dim: 1 / (D ln 2)
        row["bits/dim"] = chosen_bound._replace(mean=nat * chosen_bound.mean, error=nat * chosen_bound.error)
    if best == "nll_bound_nats" and kl:
        row["kl_nats"] = kl
    elif plain and kl and (kl.seeds, kl.steps) == (chosen_bound.seeds, chosen_bound.steps):
        row["kl_nats"] = kl._replace(mean=kl.mean + chosen_bound.mean - plain.mean, error=math.nan)
    return row


def standard_error(values: list[float], errors: list[float]) -> float:
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else float(errors[0])


def columns(rows: dict[str, dict[str, Cell]]) -> list[str]:
    """The best known first."""
    names = {name for row in rows.values() for name in row}
    return [name for name in FIRST if name in names] + sorted(names - {*FIRST})


def latest_of(row: dict[str, Cell]) -> tuple[int, int]:
    """The updates of which most is told: the latest."""
    return max((cell.steps[1], cell.steps[0]) for cell in row.values())[::-1]


def told(steps: tuple[int, int]) -> str:
    return f"{steps[0]:,}" if steps[0] == steps[1] else f"{steps[0]:,} to {steps[1]:,}"


def in_row(row: dict[str, Cell], name: str) -> str:
    """A cell in words; where it is of other updates than the row, with those."""
    if name not in row:
        return ""
    steps = row[name].steps
    return written(row[name]) + (f" @{told(steps)}" if steps != latest_of(row) else "")


def show(data: str, rows: dict[str, dict[str, Cell]]) -> None:
    """On the terminal."""
    names = columns(rows)
    table = Table("model", title=Text(data), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ["updates", *names]:
        table.add_column(Text(name), justify="right")
    for label, row in ordered(rows):
        table.add_row(Text(label), told(latest_of(row)), *(in_row(row, name) for name in names))
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
        panel.set_title(fill(label, 40), fontsize=9, parse_math=False)
        panel.set_axis_off()
    with replacing(path) as beside:
        figure.savefig(beside, dpi=150)
    return [path]


def write_csv(path: Path, tables: dict[str, dict[str, dict[str, Cell]]]) -> None:
    with replacing(path) as beside, beside.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["data", "model", "measure", "mean", "standard_error", "is_bound", "seeds", "first_update",
                         "last_update"])  # fmt: skip
        for data, rows in tables.items():
            for label, row in rows.items():
                writer.writerows([data, label, name, *cell[:4], *cell.steps] for name, cell in row.items())
