"""Comparison of runs from their files alone: a table, a csv, learning curves over steps and over seconds."""

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from rl_lab.core.errors import UserError, nearest
from rl_lab.core.statistics import Estimate, area_under_curve, iqm, stratified_bootstrap, x_at_threshold

IGNORED = {"seed", "device", "threads", "tracker", "checkpoint", "hydra", "choices"}  # change no result
LOWER_IS_BETTER = {"nll", "bits", "loss", "residual", "error", "fid", "kid", "mse", "mmd", "perplexity", "regret"}
POINTS = 200  # of a drawn curve
COLORS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D"  # Okabe and Ito: colour-blind safe
DASHES = "-", "--", ":", "-."


class Curve(NamedTuple):
    """One metric of one run; [P] each, steps increasing."""

    steps: np.ndarray
    seconds: np.ndarray
    values: np.ndarray


class RunFiles(NamedTuple):
    """What a run folder says."""

    folder: Path
    name: str
    seed: int
    choices: dict[str, str]
    settings: dict[str, str]  # dotted key -> value, of all that may change a result
    curves: dict[str, Curve]
    finished: bool


class Row(NamedTuple):
    """One line of the table: equal settings, several seeds."""

    group: str
    seeds: int
    final: Estimate
    best: Estimate
    area: Estimate  # mean height of the curve
    steps_to_threshold: float  # median of the seeds that reached it
    seconds_to_threshold: float
    reached: int  # seeds


def compare(
    runs: Iterable[Path],
    *,
    metric: str | None = None,  # None: eval/return if every run has it, else the next best
    threshold: float | None = None,  # None: 90 % of the way from the worst first value to the best final one
    lower_is_better: bool | None = None,  # None: by the metric's name
    out: Path | None = None,  # None: runs/compare/<timestamp>
    resamples: int = 2_000,
    tracker: Callable | None = None,  # a partial of tracking.wandb_run
) -> list[Row]:
    """Prints and writes the comparison of run folders (or folders of them), best group first. Raises UserError."""
    notes: list[str] = []
    grouped = group(read_runs(runs, notes), notes)
    found = [run for members in grouped.values() for run in members]
    metric = choose_metric(found, metric)
    lower = is_lower_better(metric) if lower_is_better is None else lower_is_better
    groups = {label: [run.curves[metric] for run in members] for label, members in grouped.items()}
    groups = dict(sorted(groups.items(), key=lambda g: (1 if lower else -1) * iqm([c.values[-1] for c in g[1]])))
    goal, origin = (threshold, "as given") if threshold is not None else default_threshold(groups, lower)
    start, end = common_steps(groups)
    rows = [_row(label, curves, start, end, goal, lower, resamples) for label, curves in groups.items()]

    out = Path(out or f"runs/compare/{datetime.now():%Y-%m-%d_%H-%M-%S}")
    out.mkdir(parents=True, exist_ok=True)
    _write_csv(out / "compare.csv", rows, metric, goal)
    draw(groups, metric, out / "compare", lower_is_better=lower, threshold=goal, resamples=resamples)
    captions = [
        f"{metric}: {'lower' if lower else 'higher'} is better. Interquartile mean over seeds; beneath it, its 95 % stratified bootstrap interval.",
        f"area: mean height of the curve from step {start:,.0f} to {end:,.0f}, which all runs cover." if start <= end else "area: left blank, no steps are covered by all runs.",
        f"threshold: {_number(goal)}, {origin}; (k/n): the median of the k of n seeds that reached it." if goal is not None else f"threshold: none, {origin}.",
        *_unequal(found, metric), *notes,
    ]  # fmt: skip
    _show(rows, captions, out)
    _track(tracker, rows, metric, out)
    return rows


# -- reading


def read_runs(folders: Iterable[Path], notes: list[str]) -> list[RunFiles]:
    """Every run at or below the folders, once; a run without rows is a note below a folder, a UserError by itself."""
    found: dict[Path, RunFiles] = {}
    for folder in map(Path, folders):
        if (folder / "config.yaml").is_file():
            runs = [read_run(folder)]
            if not runs[0].curves:
                raise UserError(f"{folder} has no rows in metrics.jsonl yet; wait for them or leave it out")
        else:
            inside = sorted(path.parent for path in folder.rglob("metrics.jsonl") if path.with_name("config.yaml").is_file())
            runs = [read_run(path) for path in inside]
            if not runs:
                raise UserError(f"no run in {folder}; a run folder holds config.yaml and metrics.jsonl")
            notes += [f"{run.folder} is left out: it has no rows" for run in runs if not run.curves]
        for run in runs:
            if run.curves:
                found.setdefault(run.folder.resolve(), run)
    if not found:
        raise UserError("no runs to compare; name their folders, such as runs/dqn_four_rooms")
    return list(found.values())


def read_run(folder: Path) -> RunFiles:
    """Settings, and every metric as a curve. Raises UserError."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        name, seed, choices = str(config.pop("name")), config["seed"], config.get("choices") or {}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}/config.yaml is not the config of a run; leave it out") from error
    points: dict[str, list[tuple[float, float, float]]] = {}
    for row in _rows(folder / "metrics.jsonl"):
        for metric in row.keys() - {"step", "seconds"}:
            if isinstance(row[metric], int | float) and math.isfinite(row[metric]):
                points.setdefault(metric, []).append((row["step"], row["seconds"], row[metric]))
    curves = {metric: _curve(*np.array(points[metric], float).T) for metric in sorted(points)}
    settings = {k: v for k, v in _flatten(config) if k.split(".")[0] not in IGNORED and (k[-5:], v) != (".seed", str(seed))}
    finished = any(summary.get("state") == "finished" for summary in _rows(folder / "summary.json", whole=True))
    return RunFiles(folder, name, seed, choices, settings, curves, finished)


def _rows(path: Path, whole: bool = False) -> Iterator[dict]:
    """The JSON object of each line, or of the whole file; none where it is missing or was cut by a kill."""
    text = path.read_text(errors="replace") if path.is_file() else ""
    for line in [text] if whole else text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _curve(steps: np.ndarray, seconds: np.ndarray, values: np.ndarray) -> Curve:
    """Where a step comes again, the run was taken up from there: the older points are void."""
    kept = steps < np.minimum.accumulate(np.append(steps[1:], np.inf)[::-1])[::-1]
    return Curve(steps[kept], seconds[kept], values[kept])


def _flatten(config: dict, path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value if isinstance(value, str) else json.dumps(value, default=str)


# -- choosing and grouping


def choose_metric(runs: list[RunFiles], metric: str | None = None) -> str:
    """The metric asked for, or the best one that every run has. Raises UserError."""
    common = sorted(set.intersection(*(set(run.curves) for run in runs)))
    if metric is None:
        order = ["eval/return", "episode/return", *(m for m in common if m.startswith("eval/"))]
        if chosen := [m for m in order if m in common]:
            return chosen[0]
        raise UserError(f"which metric? metric=<one of {', '.join(common)}>" if common else "these runs have no metric in common; compare fewer of them")  # fmt: skip
    if metric not in {m for run in runs for m in run.curves}:
        raise UserError(f"no metric '{metric}'{nearest(metric, common)}")
    if metric not in common:
        without = next(run.folder for run in runs if metric not in run.curves)
        raise UserError(f"{without} has no metric '{metric}'; leave it out or choose from {', '.join(common)}")
    return metric


def is_lower_better(metric: str) -> bool:
    return bool(LOWER_IS_BETTER & set(re.split(r"[^a-z]+", metric.split("[")[0].lower())))


def group(runs: list[RunFiles], notes: list[str]) -> dict[str, list[RunFiles]]:
    """Runs alike in all but the seed, under the shortest text that tells them from the others.

    A seed run twice is one sample, not two: the longer run stands for both, and a note names the other.
    """
    alike: dict[tuple, dict[int, RunFiles]] = {}
    for run in sorted(runs, key=lambda run: -max(curve.steps[-1] for curve in run.curves.values())):
        seeds = alike.setdefault((run.name, *sorted(run.settings.items())), {})
        if seeds.setdefault(run.seed, run) is not run:
            notes.append(f"{run.folder} is left out: the same seed and settings as {seeds[run.seed].folder}.")
    groups = [list(seeds.values()) for seeds in alike.values()]
    return {_label(runs[0], [g[0] for g in groups if g[0].name == runs[0].name]): runs for runs in groups}


def _label(run: RunFiles, others: list[RunFiles]) -> str:
    """The name, and what differs among the runs of that name; agent=dqn stands for every agent.* that it implies."""
    differing = [k for k in {k: 0 for other in others for k in other.settings} if len({o.settings.get(k) for o in others}) > 1]
    parts = []
    for choice, chosen in run.choices.items():
        values = {k: {(o.choices.get(choice), o.settings.get(k)) for o in others} for k in differing}
        names = {o.choices.get(choice) for o in others}
        implied = [k for k in differing if k.split(".")[0] == choice and len(values[k]) == len(names)]
        if len(names) > 1 and implied:
            parts.append(f"{choice}={chosen}")
            differing = [k for k in differing if k not in implied]
    return " ".join([run.name, *parts, *(f"{k}={run.settings[k]}" for k in differing if k in run.settings)])


# -- figures and tables


def common_steps(groups: dict[str, list[Curve]]) -> tuple[float, float]:
    curves = [curve for members in groups.values() for curve in members]
    return max(c.steps[0] for c in curves), min(c.steps[-1] for c in curves)


def default_threshold(groups: dict[str, list[Curve]], lower_is_better: bool) -> tuple[float | None, str]:
    """Where 90 % of the way from the worst first value to the best final one is, and how it came about."""
    worst, best = (max, min) if lower_is_better else (min, max)
    first = worst(iqm([c.values[0] for c in curves]) for curves in groups.values())
    final = best(iqm([c.values[-1] for c in curves]) for curves in groups.values())
    if best(first, final) == first:
        return None, "as no group ends better than the worst begins"
    return float(first + 0.9 * (final - first)), "90 % of the way from the worst first value to the best final one"


def _row(label, curves, start, end, threshold, lower, resamples) -> Row:
    best = np.min if lower else np.max
    columns = ([c.values[-1] for c in curves], [best(c.values) for c in curves],
               [area_under_curve(c.steps, c.values, start, end) if start <= end else math.nan for c in curves])  # fmt: skip
    estimates = [stratified_bootstrap(column, resamples=resamples) for column in columns]
    reached = [(x_at_threshold(c.steps, c.values, threshold, lower_is_better=lower),
                x_at_threshold(c.seconds, c.values, threshold, lower_is_better=lower))
               for c in curves if threshold is not None]  # fmt: skip
    reached = [both for both in reached if not math.isnan(both[0])]
    return Row(label, len(curves), *estimates, *(np.median(reached, axis=0) if reached else (math.nan,) * 2), len(reached))


def _unequal(runs: list[RunFiles], metric: str) -> Iterator[str]:
    last = [run.curves[metric].steps[-1] for run in runs]
    if min(last) < max(last):
        yield f"final: at each run's last row, from step {min(last):,.0f} to {max(last):,.0f}."
    if unfinished := [str(run.folder) for run in runs if not run.finished]:
        yield f"not finished: {', '.join(unfinished)}."


def _number(x: float) -> str:
    return "" if math.isnan(x) else f"{x:,.0f}" if abs(x) >= 1_000 else f"{x:.4g}"


def _show(rows: list[Row], captions: list[str], out: Path) -> None:
    console = Console(highlight=False)
    table = Table("group", *(Column(name, justify="right") for name in ("n", "final", "best", "area", "steps to\nthreshold", "seconds to\nthreshold")))
    for row in rows:
        estimates = [
            f"{_number(e.point)}\n[dim]{'n=1' if row.seeds == 1 else f'{_number(e.low)} to {_number(e.high)}'}[/dim]"
            for e in (row.final, row.best, row.area)
        ]
        reached = f"\n[dim]({row.reached}/{row.seeds})[/dim]"
        table.add_row(escape(row.group), str(row.seeds), *estimates, *(_number(x) + reached for x in (row.steps_to_threshold, row.seconds_to_threshold)))
    console.print(table)
    for text in captions:
        console.print(text, style="dim", markup=False, soft_wrap=not console.is_terminal)
    for suffix in ("csv", "png", "svg"):
        console.print(str(out / f"compare.{suffix}"), markup=False, soft_wrap=True)


def _cells(row: Row) -> dict[str, object]:
    estimates = {f"{name}{end}": float(value) for name in ("final", "best", "area")
                 for end, value in zip(("", "_low", "_high"), getattr(row, name), strict=True)}  # fmt: skip
    return {"group": row.group, "seeds": row.seeds, **estimates, "reached": row.reached,
            "steps_to_threshold": row.steps_to_threshold, "seconds_to_threshold": row.seconds_to_threshold}  # fmt: skip


def _write_csv(path: Path, rows: list[Row], metric: str, threshold: float | None) -> None:
    with path.open("w", newline="") as file:
        cells = [{"metric": metric, **_cells(row), "threshold": threshold} for row in rows]
        writer = csv.DictWriter(file, cells[0])
        writer.writeheader()
        writer.writerows(cells)


def draw(groups, metric: str, path: Path, *, lower_is_better: bool, threshold: float | None, resamples: int) -> None:
    """path.png and path.svg: each group's interquartile mean and its interval, over thin lines of its seeds."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    values = np.concatenate([c.values for curves in groups.values() for c in curves])
    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888",
             "axes.grid": True, "grid.color": "#E6E6E6", "axes.axisbelow": True, "xtick.color": "#444444",
             "ytick.color": "#444444", "svg.hashsalt": "compare"}  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for panel, axis in zip(panels, ("steps", "seconds"), strict=True):
            for i, (label, curves) in enumerate(groups.items()):
                color, dash = COLORS[i % len(COLORS)], DASHES[i // len(COLORS) % len(DASHES)]
                xs = [getattr(curve, axis) for curve in curves]
                for x, curve in zip(xs, curves, strict=True):
                    panel.plot(x, curve.values, color=color, linewidth=0.6, alpha=0.35)
                grid, band = _band(xs, [curve.values for curve in curves], resamples)
                panel.fill_between(grid, band.low, band.high, color=color, alpha=0.18, linewidth=0)
                panel.plot(grid, band.point, color=color, linestyle=dash, linewidth=2, marker="o" if len(grid) == 1 else None,
                           label=f"{label}  (n={len(curves)})")  # fmt: skip
            if threshold is not None:
                panel.axhline(threshold, color="#666666", linewidth=1, linestyle=(0, (1, 2)), label=f"threshold {_number(threshold)}")
            panel.set_xlabel(axis)
            panel.xaxis.set_major_formatter(FuncFormatter(_tick))
        if values.min() > 0 and values.max() > 1_000 * values.min():
            panels[0].set_yscale("log")
        else:
            panels[0].yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
        panels[0].set_ylabel(f"{metric}{' (lower is better)' if lower_is_better else ''}")
        figure.suptitle(metric, x=0.01, ha="left", weight="bold")
        handles, labels = panels[0].get_legend_handles_labels()
        columns = max(1, min(4, 130 // max(map(len, labels))))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False,
                      title="interquartile mean over seeds, 95 % bootstrap interval, single seeds")  # fmt: skip
        figure.savefig(path.with_suffix(".png"), dpi=150)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _band(xs: list[np.ndarray], values: list[np.ndarray], resamples: int) -> tuple[np.ndarray, Estimate]:
    """Where all seeds have data, on their own points if these are few."""
    start, end = max(x[0] for x in xs), min(x[-1] for x in xs)
    own = np.unique(np.concatenate(xs))
    own = own[(own >= start) & (own <= end)]
    grid = own if len(own) <= POINTS else np.linspace(start, end, POINTS)
    curves = np.stack([np.interp(grid, x, y) for x, y in zip(xs, values, strict=True)])  # [R, P]
    return grid, stratified_bootstrap(curves[:, None], resamples=resamples)


def _tick(x: float, _: int) -> str:
    """12000 -> 12k, 1500000 -> 1.5M."""
    return f"{x / 1e6:g}M" if abs(x) >= 1e6 else f"{x / 1e3:g}k" if abs(x) >= 1e4 else f"{x:,g}"


def _track(tracker: Callable | None, rows: list[Row], metric: str, out: Path) -> None:
    config = {"metric": metric, "groups": [row.group for row in rows]}
    run = tracker and tracker(name="compare", group="compare", job_type="compare", config=config)
    if run:
        import wandb

        cells = [_cells(row) for row in rows]
        table = wandb.Table(columns=list(cells[0]), data=[list(c.values()) for c in cells])
        run.log({"compare/table": table, "compare/curves": wandb.Image(str(out / "compare.png"))})
        run.finish()
