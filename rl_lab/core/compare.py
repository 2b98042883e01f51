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
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rl_lab.core.errors import UserError, nearest
from rl_lab.core.statistics import Estimate, area_under_curve, iqm, iqm_curve, stratified_bootstrap, x_at_threshold

IGNORED = {"seed", "device", "threads", "tracker", "checkpoint", "hydra", "choices"}  # change no result
LOWER_IS_BETTER = {"nll", "bits", "loss", "residual", "error", "fid", "kid", "mse", "mmd", "perplexity", "regret"}
COLORS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D"  # Okabe and Ito: colour-blind safe
DASHES = "-", "--", ":", "-."
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888", "axes.grid": True,
         "grid.color": "#E8E8E8", "axes.axisbelow": True, "xtick.color": "#444444", "ytick.color": "#444444",
         "svg.hashsalt": "compare"}  # fmt: skip


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
    out: Path | None = None,  # None: runs/compare/<timestamp>
    resamples: int = 2_000,
    tracker: Callable | None = None,  # a partial of tracking.wandb_run
) -> list[Row]:
    """Prints and writes the comparison of run folders (or folders of them), best group first. Raises UserError."""
    notes: list[str] = []
    grouped = group(read_runs(runs, notes), notes)
    found = [run for members in grouped.values() for run in members]
    metric = choose_metric(found, metric)
    lower = is_lower_better(metric)
    groups = {label: [run.curves[metric] for run in members] for label, members in grouped.items()}
    groups = dict(sorted(groups.items(), key=lambda g: (1 if lower else -1) * iqm([c.values[-1] for c in g[1]])))
    goal, origin = default_threshold(groups, lower) if threshold is None else (threshold, "as asked")
    steps = common_steps(groups)
    rows = [_row(label, curves, steps, goal, lower, resamples) for label, curves in groups.items()]

    out = Path(out or f"runs/compare/{datetime.now():%Y-%m-%d_%H-%M-%S}")
    out.mkdir(parents=True, exist_ok=True)
    _write_csv(out / "compare.csv", rows, metric, goal)
    draw(groups, metric, out / "compare", threshold=goal, resamples=resamples)
    _show(rows, [*_captions(found, metric, lower, steps, goal, origin), *notes], out)
    _track(tracker, rows, metric, out / "compare.png")
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
        order = ["eval/return", "episode/return", *(m for m in common if m.startswith("eval/") or len(common) == 1)]
        if chosen := [m for m in order if m in common]:
            return chosen[0]
        raise UserError(f"which metric? say metric=X, of {', '.join(common)}" if common else "these runs have no metric in common; compare fewer of them")  # fmt: skip
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


def default_threshold(groups: dict[str, list[Curve]], lower_is_better: bool) -> tuple[float, str]:
    """90 % of the way from the worst first value to the best final one, in words too; nan if that is no way up."""
    worst, best = (max, min) if lower_is_better else (min, max)
    first = worst(iqm([c.values[0] for c in curves]) for curves in groups.values())
    final = best(iqm([c.values[-1] for c in curves]) for curves in groups.values())
    if best(first, final) == first:
        return math.nan, "as no group ends better than the worst begins"
    return float(first + 0.9 * (final - first)), "90 % of the way from the worst first value to the best final one"


def _row(label: str, curves: list[Curve], steps: tuple, threshold: float, lower: bool, resamples: int) -> Row:
    start, end = steps
    finals, bests = [c.values[-1] for c in curves], [(np.min if lower else np.max)(c.values) for c in curves]
    areas = [area_under_curve(c.steps, c.values, start, end) if start <= end else math.nan for c in curves]
    estimates = (stratified_bootstrap(scores, resamples=resamples) for scores in (finals, bests, areas))
    reached = [[x_at_threshold(x, c.values, threshold, lower_is_better=lower) for x in (c.steps, c.seconds)] for c in curves]
    reached = [x for x in reached if not math.isnan(x[0])]
    steps, seconds = np.median(reached, axis=0).tolist() if reached else (math.nan, math.nan)
    return Row(label, len(curves), *estimates, steps, seconds, len(reached))


def _captions(runs: list[RunFiles], metric: str, lower: bool, steps: tuple, threshold: float, origin: str) -> Iterator[str]:
    yield f"{metric}: {'lower' if lower else 'higher'} is better. Interquartile mean over n seeds; in brackets its 95 % stratified bootstrap interval."
    yield (f"area: mean height of the curve from step {steps[0]:,.0f} to {steps[1]:,.0f}, which every run covers."
           if steps[0] <= steps[1] else "area: blank, as no steps are covered by every run.")  # fmt: skip
    yield f"threshold: {_number(threshold) or 'none'}, {origin}; k/n: median of the k seeds that reached it."
    last = [run.curves[metric].steps[-1] for run in runs]
    if min(last) < max(last):
        yield f"final: at each run's own last row, from step {min(last):,.0f} to {max(last):,.0f}."
    if unfinished := [str(run.folder) for run in runs if not run.finished]:
        yield f"not finished: {', '.join(unfinished)}."


def _number(x: float) -> str:
    return "" if math.isnan(x) else f"{x:,.0f}" if abs(x) >= 1_000 else f"{x:.4g}"


def _show(rows: list[Row], captions: Iterable[str], out: Path) -> None:
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else max(console.width, 120)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), leading=1)
    table.add_column("group", overflow="fold")
    for name in ("n", "final", "best", "area", "to threshold"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        estimates = [f"{_number(e.point)}\n" + ("n=1" if row.seeds == 1 else f"\\[{_number(e.low)}, {_number(e.high)}]")
                     for e in (row.final, row.best, row.area)]  # fmt: skip
        reached = f"{_number(row.steps_to_threshold)} steps\n{_number(row.seconds_to_threshold)} s  {row.reached}/{row.seeds}"
        table.add_row(escape(row.group), str(row.seeds), *estimates, reached if row.reached else f"0/{row.seeds}")
    console.print(table)
    for text in [*captions, *(str(out / f"compare.{suffix}") for suffix in ("csv", "png", "svg"))]:
        console.print(text, markup=False, soft_wrap=True)


def _cells(row: Row) -> dict[str, object]:
    """A row with its estimates laid flat: final, final_low, final_high, ..."""
    cells: dict[str, object] = {}
    for name, value in row._asdict().items():
        flat = zip(("", "_low", "_high"), value, strict=True) if isinstance(value, Estimate) else [("", value)]
        cells |= {name + end: x if isinstance(x, str | int) else float(x) for end, x in flat}
    return cells


def _write_csv(path: Path, rows: list[Row], metric: str, threshold: float) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["metric", *_cells(rows[0]), "threshold"])
        writer.writeheader()
        writer.writerows({"metric": metric, **_cells(row), "threshold": threshold} for row in rows)


def draw(groups: dict[str, list[Curve]], metric: str, path: Path, *, threshold: float = math.nan, resamples: int = 2_000) -> None:
    """path.png and path.svg: each group's interquartile mean and its interval, over thin lines of its seeds."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    labels = [f"{label}  (n={len(curves)})" for label, curves in groups.items()]
    columns = max(1, min(4, 135 // (10 + max(map(len, labels)))))
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 4.4 + 0.22 * math.ceil((len(labels) + 1) / columns)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for panel, axis in zip(panels, ("steps", "seconds"), strict=True):
            for i, curves in enumerate(groups.values()):
                color, dash = COLORS[i % len(COLORS)], DASHES[i // len(COLORS) % len(DASHES)]
                xs, ys = [getattr(c, axis) for c in curves], [c.values for c in curves]
                for x, y in zip(xs, ys, strict=True):
                    panel.plot(x, y, color=color, linewidth=0.6, alpha=0.3, zorder=1, rasterized=len(x) > 1_000)
                grid, band = iqm_curve(xs, ys, resamples=resamples)
                panel.fill_between(grid, band.low, band.high, color=color, alpha=0.2, linewidth=0, zorder=2)
                panel.plot(grid, band.point, color=color, linestyle=dash, linewidth=2, zorder=3, label=labels[i],
                           marker="o" if len(grid) == 1 else None)  # fmt: skip
            if not math.isnan(threshold):
                panel.axhline(threshold, color="#666666", linewidth=1, linestyle=":", label=f"threshold {_number(threshold)}")
            panel.set_xlabel(axis)
            panel.xaxis.set_major_formatter(_tick)
        lowest, highest = panels[0].dataLim.intervaly
        if 0 < 1_000 * lowest < highest:
            panel.set_yscale("log")
        else:
            panel.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
        figure.suptitle(metric + " (lower is better)" * is_lower_better(metric), x=0.01, ha="left", weight="bold")
        legend = figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False,
                               title="line: interquartile mean over seeds    band: 95 % bootstrap interval    thin: single seeds")  # fmt: skip
        legend.get_title().set(color="#666666", size=9)
        for suffix, metadata in ((".png", {}), (".svg", {"Date": None})):
            figure.savefig(path.with_suffix(suffix), dpi=150, metadata=metadata)


def _tick(x: float, _: int) -> str:
    """12000 -> 12k, 1500000 -> 1.5M."""
    return f"{x / 1e6:g}M" if abs(x) >= 1e6 else f"{x / 1e3:g}k" if abs(x) >= 1e4 else f"{x:,g}"


def _track(tracker: Callable | None, rows: list[Row], metric: str, picture: Path) -> None:
    config = {"metric": metric, "groups": [row.group for row in rows]}
    if run := tracker and tracker(name="compare", group="compare", job_type="compare", config=config):
        import wandb

        cells = [_cells(row) for row in rows]
        table = wandb.Table(columns=list(cells[0]), data=[list(c.values()) for c in cells])
        run.log({"compare/table": table, "compare/curves": wandb.Image(str(picture))})
        run.finish()
