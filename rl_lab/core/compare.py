"""Comparison of runs from their files alone: a table, a csv, learning curves over steps and over seconds."""

import csv
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rl_lab.core.folders import Curve, RunFiles, choose_metric, group, is_lower_better, read_runs
from rl_lab.core.statistics import (
    Estimate,
    area_under_curve,
    iqm,
    iqm_curve,
    stratified_bootstrap,
    x_at_threshold,
)

COLORS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D"  # Okabe and Ito's
DASHES = "-", "--", ":", "-."
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888", "axes.grid": True,
         "grid.color": "#E8E8E8", "axes.axisbelow": True, "xtick.color": "#444444", "ytick.color": "#444444",
         "svg.hashsalt": "compare"}  # fmt: skip


class Row(NamedTuple):
    """One line of the table: equal settings, several seeds."""

    group: str
    seeds: int
    final: Estimate
    best: Estimate
    area: Estimate  # mean height of the curve
    steps_to_threshold: float  # median of the seeds that reached it, nan if none did
    seconds_to_threshold: float
    reached: int  # seeds


def compare(
    runs: Iterable[Path],
    *,
    metric: str | None = None,  # None: eval/return if every run has it, else the next best
    threshold: float | None = None,  # None: 90 % of the way from the worst first value to the best final one
    out: Path | None = None,  # None: runs/compare/<timestamp>
    resamples: int = 2_000,
    tracker: Callable | None = None,  # a partial of tracking.wandb_run
) -> list[Row]:
    """Prints and writes the comparison of run folders, or folders of them, best first. Raises UserError."""
    notes: list[str] = []
    members = group(read_runs(runs, notes), notes)
    found = [run for group_runs in members.values() for run in group_runs]
    metric = choose_metric(found, metric)
    lower = is_lower_better(metric)
    groups = {label: [run.curves[metric] for run in group_runs] for label, group_runs in members.items()}
    groups = dict(sorted(groups.items(), key=lambda item: iqm(_finals(item[1])), reverse=not lower))
    goal, origin = (threshold, "as asked") if threshold is not None else default_threshold(groups, lower)
    steps = common_steps(groups)
    rows = [_row(label, curves, steps, goal, lower, resamples) for label, curves in groups.items()]

    out = Path(out or f"runs/compare/{datetime.now():%Y%m%d-%H%M%S}")
    out.mkdir(parents=True, exist_ok=True)
    _write_csv(out / "compare.csv", rows, metric, goal)
    draw(groups, metric, out / "compare", goal, resamples)
    _show(rows, [*_captions(found, metric, steps, goal, origin), *notes], out)
    _track(tracker, rows, metric, out / "compare.png")
    return rows


def common_steps(groups: dict[str, list[Curve]]) -> tuple[float, float]:
    """First and last step that every curve covers, but for curves of one point, such as a planner's."""
    curves = [curve.steps for members in groups.values() for curve in members if len(curve.steps) > 1]
    return max((steps[0] for steps in curves), default=0), min((steps[-1] for steps in curves), default=0)


def default_threshold(groups: dict[str, list[Curve]], lower_is_better: bool) -> tuple[float, str]:
    """A value and where it comes from; nan where no group learned."""
    worst, best = (max, min) if lower_is_better else (min, max)
    first = worst(iqm([curve.values[0] for curve in curves]) for curves in groups.values())
    final = best(iqm(_finals(curves)) for curves in groups.values())
    if best(first, final) == first:
        return math.nan, "as no group ends better than the worst begins"
    origin = "90 % of the way from the worst first value to the best final one"
    return float(first + 0.9 * (final - first)), origin


def _finals(curves: list[Curve]) -> list[float]:
    return [curve.values[-1] for curve in curves]


def _row(label: str, curves: list[Curve], steps: tuple, threshold: float, lower: bool, resamples: int) -> Row:
    bests = [(np.min if lower else np.max)(c.values) for c in curves]
    covered = steps[0] < steps[1] and all(len(c.steps) > 1 for c in curves)
    areas = [area_under_curve(c.steps, c.values, *steps) if covered else math.nan for c in curves]
    estimates = (stratified_bootstrap(x, resamples=resamples) for x in (_finals(curves), bests, areas))
    reach = partial(x_at_threshold, threshold=threshold, lower_is_better=lower)
    at = np.array([[reach(c.steps, c.values), reach(c.seconds, c.values)] for c in curves])
    at = at[~np.isnan(at[:, 0])]
    medians = np.median(at, axis=0).tolist() if len(at) else [math.nan, math.nan]
    return Row(label, len(curves), *estimates, *medians, len(at))


def _captions(runs: list[RunFiles], metric: str, steps: tuple, goal: float, origin: str) -> Iterator[str]:
    yield (f"{metric}: {'lower' if is_lower_better(metric) else 'higher'} is better; "
           "interquartile mean over n seeds [95 % stratified bootstrap interval].")  # fmt: skip
    covered = f"mean height of the curve from step {steps[0]:,.0f} to {steps[1]:,.0f}, which all curves cover"
    yield f"area: {covered if steps[0] < steps[1] else 'blank, as there are no steps that all curves cover'}."
    reached = "; k/n: median of the k seeds that reached it" * (not math.isnan(goal))
    yield f"threshold: {_number(goal) or 'none'}, {origin}{reached}."
    last = [run.curves[metric].steps[-1] for run in runs]
    if min(last) < max(last):
        yield f"final: at each run's own last row, from step {min(last):,.0f} to {max(last):,.0f}."
    if unfinished := [str(run.folder) for run in runs if not run.finished]:
        yield f"not finished: {', '.join(unfinished)}."


def _number(x: float) -> str:
    return "" if math.isnan(x) else f"{x:,.0f}" if abs(x) >= 1_000 else f"{x:.4g}"


def _show(rows: list[Row], captions: list[str], out: Path) -> None:
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else max(console.width, 120)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), leading=1)
    table.add_column("group", overflow="fold")
    for name in ("n", "final", "best", "area", "to threshold"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        interval = "n=1" if row.seeds == 1 else "\\[{}, {}]"
        estimates = [f"{_number(e.point)}\n{interval.format(_number(e.low), _number(e.high))}"
                     for e in (row.final, row.best, row.area)]  # fmt: skip
        reached = f"{row.reached}/{row.seeds}"
        if row.reached:
            steps, seconds = _number(row.steps_to_threshold), _number(row.seconds_to_threshold)
            reached = f"{steps} steps\n{seconds} s  {reached}"
        table.add_row(escape(row.group), str(row.seeds), *estimates, reached)
    console.print(table)
    for text in captions + [str(out / f"compare.{suffix}") for suffix in ("csv", "png", "svg")]:
        console.print(text, markup=False, soft_wrap=True)


def _cells(row: Row) -> dict[str, object]:
    """A row with its estimates laid flat: final, final_low, final_high, ..."""
    cells: dict[str, object] = {}
    for name, value in row._asdict().items():
        parts = map(float, value) if isinstance(value, Estimate) else [value]
        cells |= zip((name, f"{name}_low", f"{name}_high"), parts, strict=False)
    return cells


def _write_csv(path: Path, rows: list[Row], metric: str, threshold: float) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["metric", *_cells(rows[0]), "threshold"])
        writer.writeheader()
        writer.writerows({"metric": metric, **_cells(row), "threshold": threshold} for row in rows)


def draw(groups: dict[str, list[Curve]], metric: str, path: Path, threshold: float, resamples: int) -> None:
    """path.png and path.svg: a line for each group, its interval a band, its seeds thin lines beneath."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    groups = {textwrap.fill(f"{label} (n={len(curves)})", 110): curves for label, curves in groups.items()}
    lines = [line for label in groups for line in label.splitlines()]
    columns = max(1, min(4, 135 // (10 + max(map(len, lines)))))
    height = 4.4 + 0.22 * math.ceil((len(lines) + 1) / columns)  # inches
    with rc_context(STYLE):
        figure = Figure(figsize=(11, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # inches
        panels = figure.subplots(1, 2, sharey=True)
        for panel, axis in zip(panels, ("steps", "seconds"), strict=True):
            _draw_curves(panel, axis, groups, threshold, resamples)
            panel.set_xlabel(axis)
            panel.xaxis.set_major_formatter(_tick)
        lowest, highest = panels[0].dataLim.intervaly
        if is_lower_better(metric) and 0 < 1_000 * lowest < highest:
            panels[0].set_yscale("log")
        else:
            panels[0].yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
        title = metric + " (lower is better)" * is_lower_better(metric)
        figure.suptitle(title, x=0.012, ha="left", weight="bold")
        marks = "line: interquartile mean over seeds    band: 95 % bootstrap interval    thin: single seeds"
        legend = figure.legend(*panels[0].get_legend_handles_labels(), title=marks, title_fontsize=9,
                               loc="outside lower center", ncols=columns, frameon=False)  # fmt: skip
        legend.get_title().set_color("#666666")
        figure.savefig(path.with_suffix(".png"), dpi=150)
        figure.savefig(path.with_suffix(".svg"), dpi=150, metadata={"Date": None})


def _draw_curves(panel, axis: str, groups: dict[str, list[Curve]], threshold: float, resamples: int) -> None:
    for i, (label, curves) in enumerate(groups.items()):
        color, dash = COLORS[i % len(COLORS)], DASHES[i // len(COLORS) % len(DASHES)]
        xs, ys = [getattr(c, axis) for c in curves], [c.values for c in curves]
        for x, y in zip(xs, ys, strict=True):
            panel.plot(x, y, "." * (len(x) == 1) + "-", color=color, linewidth=0.6, alpha=0.3, zorder=1,
                       rasterized=len(x) > 1_000)  # fmt: skip
        grid, band = iqm_curve(xs, ys, resamples=resamples)
        panel.fill_between(grid, band.low, band.high, color=color, alpha=0.2, linewidth=0, zorder=2)
        marker = "o" if len(grid) == 1 else ""
        panel.plot(grid, band.point, marker + dash, color=color, linewidth=2, zorder=3, label=label)
    if not math.isnan(threshold):
        label = f"threshold {_number(threshold)}"
        panel.axhline(threshold, color="#666666", linewidth=1, linestyle=":", label=label)


def _tick(x: float, _: int) -> str:
    """2500 -> 2.5k, 1500000 -> 1.5M."""
    return f"{x / 1e6:g}M" if abs(x) >= 1e6 else f"{x / 1e3:g}k" if abs(x) >= 1e3 else f"{x:g}"


def _track(tracker: Callable | None, rows: list[Row], metric: str, picture: Path) -> None:
    config = {"metric": metric, "groups": [row.group for row in rows]}
    if run := tracker and tracker(name="compare", group="compare", job_type="compare", config=config):
        import wandb

        cells = [_cells(row) for row in rows]
        table = wandb.Table(columns=list(cells[0]), data=[list(c.values()) for c in cells])
        run.log({"compare/table": table, "compare/curves": wandb.Image(str(picture))})
        run.finish()
