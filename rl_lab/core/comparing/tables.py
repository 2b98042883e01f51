"""A comparison in words: the tables of the terminal, what they rest on, and the same as csv."""

import csv
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rl_lab.core.comparing.figures import number
from rl_lab.core.comparing.results import Results, Row
from rl_lab.core.comparing.statistics import Estimate
from rl_lab.core.files import replacing

EVERY = 8  # tasks; beyond, the terminal shows the aggregates only


def captions(results: Results) -> Iterator[str]:
    """What every number is, and over what it was taken."""
    metric, several = results.metric, len(results.tasks) > 1
    over = (
        "of a single run each"
        if results.single
        else "interquartile mean over n seeds [95 % stratified bootstrap interval]"
    )
    yield f"{metric}: {'lower' if results.lower else 'higher'} is better; {over}."
    if any(row.seeds == 1 for row in results.rows) and not results.single:
        yield "n=1: a single run has no interval, and neither has a comparison with it."
    if several:
        yield f"area: mean height of the curve over the {results.unit} that all curves of its task cover."
    else:
        ((start, end),) = results.steps.values()
        covered = (
            f"mean height of the curve from {results.unit[:-1]} {start:,.0f} to {end:,.0f}, which all curves cover"
        )
        blank = f"blank, as there are no {results.unit} that all curves cover"
        yield f"area: {covered if start < end else blank}."
    goals = list(results.goals.values())
    reached = "; k/n: median of the k seeds that reached it" * any(not math.isnan(goal) for goal in goals)
    goal = "" if several else f"{number(goals[0]) or 'none'}, "
    yield f"threshold: {goal}{results.origin}{reached}."
    last = [run.curves[metric].steps[-1] for run in results.runs]
    if min(last) < max(last):
        yield f"final: at each run's own last row, from {results.unit[:-1]} {min(last):,.0f} to {max(last):,.0f}."
    if results.meaning and results.aggregates:
        yield (
            f"aggregates: of final scores over {_tasks(results)}, {results.meaning}; "
            "[95 % bootstrap interval, runs drawn within each task]."
        )
    if unfinished := [str(run.folder) for run in results.runs if not run.finished]:
        yield f"not finished: {', '.join(unfinished)}."


def _tasks(results: Results) -> str:
    return f"{len(results.scales)} tasks" if len(results.scales) > 1 else next(iter(results.scales), "")


def interval(estimate: Estimate, seeds: int = 2, written: Callable[[float], str] = number) -> str:
    return "n=1" if seeds == 1 or math.isnan(estimate.low) else f"[{written(estimate.low)}, {written(estimate.high)}]"


def show(results: Results, captions: Iterable[str], files: list[Path]) -> None:
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else max(console.width, 120)
    if len(results.tasks) <= EVERY:
        for task in results.tasks:
            console.print(_task_table(results, task))
    if results.aggregates and results.meaning:
        console.print(_aggregate_table(results))
    for text in [*captions, *map(str, files)]:
        console.print(text, markup=False, soft_wrap=True)


def _table(title: str | None, columns: list[str]) -> Table:
    table = Table(title=title and Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), leading=1)
    table.add_column("group", overflow="fold")
    for name in columns:
        table.add_column(Text(name), justify="right", no_wrap=True)
    return table


def _task_table(results: Results, task: str) -> Table:
    table = _table(task or None, ["n", "final", "best", "area", "to threshold"])
    for row in (row for row in results.rows if row.task == task):
        estimates = [f"{number(e.point)}\n{escape(interval(e, row.seeds))}" for e in (row.final, row.best, row.area)]
        reached = f"{row.reached}/{row.seeds}"
        if row.reached:
            steps, seconds = number(row.steps_to_threshold), number(row.seconds_to_threshold)
            reached = f"{steps} {results.unit}\n{seconds} s  {reached}"
        table.add_row(escape(row.group), str(row.seeds), *estimates, reached)
    return table


def _aggregate_table(results: Results) -> Table:
    names = list(next(iter(results.aggregates.values())))
    table = _table(f"over {_tasks(results)}", names)
    for group, of_group in results.aggregates.items():
        table.add_row(escape(group), *(f"{number(e.point)}\n{escape(interval(e))}" for e in of_group.values()))
    return table


def cells(row: Row) -> dict[str, object]:
    """A row with its estimates laid flat: final, final_low, final_high, ..."""
    flat: dict[str, object] = {}
    for name, value in row._asdict().items():
        parts = map(float, value) if isinstance(value, Estimate) else [value]
        flat |= zip((name, f"{name}_low", f"{name}_high"), parts, strict=False)
    return flat


def write(results: Results, out: Path) -> list[Path]:
    """compare.csv, curves.csv, aggregates.csv, pairwise.csv."""
    metric, meaning = results.metric, results.meaning or "raw"
    tables = {
        "compare": [{"metric": metric, **cells(row), "threshold": results.goals[row.task]} for row in results.rows],
        "curves": [
            {"metric": metric, "task": task, "group": group, "axis": axis, "x": x, "iqm": y, "low": low, "high": high}
            for (task, group, axis), line in results.curves.items()
            for x, y, low, high in zip(line.x, *line.y, strict=True)
        ],
        "aggregates": [
            {
                "metric": metric,
                "group": group,
                "aggregate": key,
                **_flat(estimate),
                "tasks": len(results.scales),
                "scores": meaning,
            }
            for group, of_group in results.aggregates.items()
            for key, estimate in of_group.items()
        ],
        "pairwise": [
            {
                "metric": metric,
                "group": a,
                "over": b,
                "probability_of_improvement": estimate.point,
                "low": estimate.low,
                "high": estimate.high,
                "tasks": len(results.scales),
            }
            for (a, b), estimate in results.pairwise.items()
        ],
    }
    for name, rows in tables.items():
        with replacing(out / f"{name}.csv") as beside, beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else ["metric"])
            writer.writeheader()
            writer.writerows(rows)
    return [out / f"{name}.csv" for name in tables]


def _flat(estimate: Estimate) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), map(float, estimate), strict=True))
