"""Pictures of a comparison: learning curves, aggregates, performance profiles, sample efficiency."""

import io
import math
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_lab.core.comparing.results import Line, Results
from rl_lab.core.comparing.statistics import Estimate
from rl_lab.core.errors import counted
from rl_lab.core.files import replacing
from rl_lab.core.style import COLORS, DASHES, STYLE

if TYPE_CHECKING:  # matplotlib is slow to import, and a table needs none of it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = "line: interquartile mean over seeds    band: 95 % bootstrap interval    thin, and points: single seeds"
COLUMNS = 3  # of panels, where there are several tasks


def files(results: Results, out: Path) -> list[Path]:
    """compare.png and compare.svg: the curves of every task; over several tasks also what sums them up."""
    from matplotlib import rc_context

    pictures = {"compare": curves}
    if len(results.tasks) > 1 and results.aggregates:
        pictures["aggregates"] = aggregates
        pictures["profiles"] = distributions
    with rc_context(STYLE):
        for name, draw in pictures.items():
            figure = draw(results)
            for suffix, about in {"png": None, "svg": {"Date": None}}.items():
                with replacing(out / f"{name}.{suffix}") as beside:
                    figure.savefig(beside, dpi=150, metadata=about)
    return [out / f"{name}.{suffix}" for name in pictures for suffix in ("png", "svg")]


def panel(draw: Callable[["Axes"], None], width: float = 4.6, height: float = 3.0) -> str:
    """An SVG of one panel, drawn by `draw(panel)`; inches."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    return text.getvalue()


def look(results: Results, group: str) -> dict[str, Any]:
    """Colour and dashes of a group, the same in all pictures; its place in the ranking names its marks in an SVG."""
    i = results.groups.index(group)
    return {"color": COLORS[i % len(COLORS)], "linestyle": DASHES[i // len(COLORS) % len(DASHES)], "gid": f"group-{i}"}


def curves(results: Results) -> "Figure":
    """One task: its scores, and curves over steps and over seconds. Several: a panel each, over steps."""
    from matplotlib.figure import Figure

    places = [(task, axis) for task, _, axis in dict.fromkeys((t, "", a) for t, _, a in results.curves)]
    several = len(results.tasks) > 1
    counts = {name: sum(len(of.get(name, ())) for of in results.tasks.values()) for name in results.groups}
    labels = {
        name: textwrap.fill(f"{name} ({counted(n, 'runs') if several else f'n={n}'})", 110)
        for name, n in counts.items()
    }
    lines = [line for label in labels.values() for line in label.splitlines()]
    columns = max(1, min(4, 135 // (10 + max(map(len, lines)))))
    rows = math.ceil(len(places) / COLUMNS) if several else 1
    across = math.ceil(len(places) / rows) if several else 1 + len(places)
    height = (2.9 * rows if several else 3.9) + 0.5 + 0.22 * math.ceil((len(lines) + 1) / columns)  # inches
    figure = Figure(figsize=(11, height))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)  # inches
    panels = [*figure.subplots(rows, across, squeeze=False).ravel()]
    if not several:
        scores(panels.pop(0), results, places[0][0])
    for spare in panels[len(places) :]:
        spare.remove()
    for axes, (task, axis) in zip(panels, places, strict=False):
        learning(axes, results, task, axis)
        axes.set_title(
            textwrap.shorten(task, 50) if several else f"over {results.called(axis)}", fontsize=10, loc="left"
        )
    figure.suptitle(title(results), x=0.012, ha="left", weight="bold")
    handles = {str(h.get_label()): h for axes in panels[: len(places)] for h in axes.get_legend_handles_labels()[0]}
    order = [name for name in results.groups if name in handles] + [k for k in handles if k not in results.groups]
    legend = figure.legend(
        [handles[k] for k in order],
        [labels.get(k, k) for k in order],
        title=MARKS,
        title_fontsize=9,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )
    legend.get_title().set_color("#666666")
    return figure


def title(results: Results) -> str:
    return f"{results.metric}, {better(results.lower)}"


def better(lower: bool) -> str:
    return f"{'lower' if lower else 'higher'} is better"


def scores(axes: "Axes", results: Results, task: str) -> None:
    """For each group a line at its final score, the interval as a bar, and its seeds as points."""
    estimates = {row.group: row.final for row in results.rows if row.task == task}
    seeds = {name: [float(run.curves[results.metric].values[-1]) for run in runs]
             for name, runs in results.tasks[task].items()}  # fmt: skip
    _bars(axes, results, estimates, seeds)
    axes.set_title("final score", fontsize=10, loc="left")


def learning(axes: "Axes", results: Results, task: str, axis: str) -> None:
    """A line for each group, its interval a band, its seeds thin lines beneath."""
    for name, runs in results.tasks[task].items():
        style = look(results, name)
        for curve in (run.curves[results.metric] for run in runs):
            x = getattr(curve, axis)
            axes.plot(
                x,
                curve.values,
                "." * (len(x) == 1) + "-",
                color=style["color"],
                gid=style["gid"],
                linewidth=0.6,
                alpha=0.3,
                zorder=1,
                rasterized=len(x) > 1_000,
            )
        _line(axes, results, name, results.curves[task, name, axis])
    if not math.isnan(goal := results.goals[task]):
        label = f"threshold {number(goal)}" if len(results.tasks) == 1 else "threshold"
        axes.axhline(goal, color="#666666", linewidth=1, linestyle=":", label=label)
    axes.set_xlabel(results.called(axis))
    axes.xaxis.set_major_formatter(_tick)
    lowest, highest = axes.dataLim.intervaly
    if results.lower and 0 < 100 * lowest < highest:
        axes.set_yscale("log")
    else:
        _limit(axes, [results.curves[task, name, axis].y.point for name in results.tasks[task]])
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")


def _limit(axes: "Axes", lines: list[np.ndarray]) -> None:
    """Up and down as far as the lines go, but for those of an outlier; seeds and bands no further than half of that
    beyond.
    """
    if not (lines := [line for line in lines if len(line)]):  # seeds of a row each share no range of seconds
        return
    low, high = edges([x for line in lines for x in (np.min(line), np.max(line))])
    least, greatest = axes.dataLim.intervaly
    room = 0.5 * (high - low) or math.inf
    low, high = _from_zero(max(least, low - room), min(greatest, high + room))
    margin = 0.05 * (high - low) or 0.5
    axes.set_ylim(low - margin, high + margin)


def _line(axes: "Axes", results: Results, name: str, line: Line) -> None:
    style, (x, band) = look(results, name), line
    alpha = min(0.2, 1 / len(results.groups))
    axes.fill_between(
        x, band.low, band.high, color=style["color"], alpha=alpha, linewidth=0, zorder=2, gid=style["gid"]
    )
    axes.plot(x, band.point, marker="o" if len(x) == 1 else "", linewidth=2, zorder=3, label=name, **style)


def aggregates(results: Results) -> "Figure":
    """A panel for each aggregate, a bar of its interval for each group, the best at the top."""
    from matplotlib.figure import Figure

    names = list(next(iter(results.aggregates.values())))
    figure = Figure(figsize=(11, 1.3 + 0.34 * len(results.aggregates)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, key in zip(panels, names, strict=True):
        intervals(axes, results, key)
    return figure


def intervals(axes: "Axes", results: Results, key: str) -> None:
    _bars(axes, results, {name: of_group[key] for name, of_group in results.aggregates.items()})
    axes.set_title(f"{key}\nnormalised score, {better(key == 'optimality gap')}", fontsize=10, loc="left")


def _bars(
    axes: "Axes", results: Results, estimates: dict[str, Estimate], seeds: dict[str, list[float]] | None = None
) -> None:
    """A row for each group, within the edges of what all show; an arrow and its number where one lies beyond."""
    ends = [[x for x in map(float, estimate) if not math.isnan(x)] for estimate in estimates.values()]
    low, high = _from_zero(*edges([x for of in (*ends, *(seeds or {}).values()) for x in of]))
    margin = 0.06 * (high - low) or 0.5
    axes.set_xlim(low - margin, high + margin)
    for y, (name, estimate) in enumerate(estimates.items()):
        style, point = look(results, name), float(estimate.point)
        if not math.isnan(estimate.low):
            width = estimate.high - estimate.low
            axes.barh(y, width, 0.6, left=estimate.low, color=style["color"], alpha=0.35, linewidth=0, gid=style["gid"])
        axes.plot([point] * 2, [y - 0.3, y + 0.3], color=style["color"], linewidth=2, gid=style["gid"])
        for x in (seeds or {}).get(name, ()):
            beyond = "<" * (x < low) or ">" * (x > high)
            place = min(max(x, low - 0.6 * margin), high + 0.6 * margin)
            axes.plot(place, y, beyond or "o", markersize=3.5, color=style["color"], gid=style["gid"], zorder=4)
        if not low <= point <= high:
            edge, words = (low, f"\u25c2 {number(point)}") if point < low else (high, f"{number(point)} \u25b8")
            axes.text(edge, y, words, color=style["color"], fontsize=9, va="center", gid=style["gid"],
                      ha="left" if point < low else "right")  # fmt: skip
    axes.set_yticks(range(len(estimates)), [textwrap.fill(name, 30) for name in estimates])
    axes.set_ylim(len(estimates) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def edges(values: Iterable[float]) -> tuple[float, float]:
    """The least and the greatest; where the others would fill less than a quarter of that, three times the distance
    of the quartiles beyond them (Tukey's outer fences).
    """
    x = np.array([*values], float)
    x = x[np.isfinite(x)]
    if not len(x):
        return 0.0, 1.0
    first, third = np.quantile(x, (0.25, 0.75))
    inner = x[(x >= first - 3 * (third - first)) & (x <= third + 3 * (third - first))]
    is_squashed = np.ptp(x) > 4 * np.ptp(inner) > 0
    x = inner if is_squashed else x
    return float(x.min()), float(x.max())


def _from_zero(low: float, high: float) -> tuple[float, float]:
    """From the least to the greatest; of one value alone, from 0 to it."""
    return (low, high) if low < high else (min(low, 0.0), max(high, 0.0))


def distributions(results: Results) -> "Figure":
    """Performance profiles, and sample efficiency where curves have steps in common."""
    from matplotlib.figure import Figure

    draws = [profile] + [efficiency] * bool(results.efficiency)
    figure = Figure(figsize=(5.5 * len(draws), 4.2), layout="constrained")
    panels = figure.subplots(1, len(draws), squeeze=False)[0]
    for axes, draw in zip(panels, draws, strict=True):
        draw(axes, results)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=max(1, min(4, 100 // max(map(len, labels)))), frameon=False
    )
    return figure


def profile(axes: "Axes", results: Results) -> None:
    for name, line in results.profiles.items():
        _line(axes, results, name, line)
    below = results.lower and not results.meaning
    axes.set(
        xlabel=f"{'normalised score' if results.meaning else results.metric}, {better(below)}",
        ylabel=f"fraction of runs {'below' if below else 'above'}",
        ylim=(-0.02, 1.02),
    )


def efficiency(axes: "Axes", results: Results) -> None:
    for name, line in results.efficiency.items():
        _line(axes, results, name, line)
    _limit(axes, [line.y.point for line in results.efficiency.values()])
    axes.set(xlabel=results.along, ylabel=f"IQM of normalised scores, {better(False)}")
    axes.xaxis.set_major_formatter(_tick)


def number(x: float) -> str:
    return "" if np.isnan(x) else f"{x:,.0f}" if abs(x) >= 1_000 else f"{x:.4g}"


def _tick(x: float, _: float) -> str:
    """2500 -> 2.5k, 1500000 -> 1.5M."""
    return f"{x / 1e6:g}M" if abs(x) >= 1e6 else f"{x / 1e3:g}k" if abs(x) >= 1e3 else f"{x:g}"
