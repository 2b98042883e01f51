"""What a comparison finds, in numbers: rows for each task, and aggregates over tasks with their intervals."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np

from rl_lab.core.comparing.groups import Groups
from rl_lab.core.comparing.scales import Scale, ends, scales
from rl_lab.core.comparing.statistics import (
    Estimate,
    Numbers,
    area_under_curve,
    iqm,
    iqm_curve,
    median_of_tasks,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
    x_at_threshold,
)
from rl_lab.core.errors import counted
from rl_lab.core.folders import Curve, RunFiles
from rl_lab.core.metrics import is_lower_better

AGGREGATES: dict[str, Callable[..., Numbers]] = {
    "IQM": iqm,
    "median": median_of_tasks,
    "mean": np.mean,
    "optimality gap": optimality_gap,
}
Scores = dict[str, list[np.ndarray]]  # by group, of each task the last values [R] of its runs
POINTS = 201  # of a curve over tasks, and of a profile


class Row(NamedTuple):
    """One line of a task's table: equal settings, several seeds."""

    task: str
    group: str
    seeds: int
    final: Estimate
    best: Estimate
    area: Estimate  # mean height of the curve
    steps_to_threshold: float  # median of the seeds that reached it, nan if none did
    seconds_to_threshold: float
    reached: int  # seeds


class Line(NamedTuple):
    """A statistic along some axis; [Q] each."""

    x: np.ndarray
    y: Estimate


class Results(NamedTuple):
    """All that tables, pictures and pages are made of."""

    metric: str
    tasks: dict[str, Groups]
    groups: list[str]  # all of them, best first
    scales: dict[str, Scale]  # of the tasks that have one
    meaning: str  # of the scales; empty where scores are raw
    goals: dict[str, float]  # by task the threshold, nan where there is none
    origin: str  # of the thresholds
    steps: dict[str, tuple[float, float]]  # by task the first and last that all its curves cover
    rows: list[Row]
    curves: dict[tuple[str, str, str], Line]  # task, group, steps or seconds
    aggregates: dict[str, dict[str, Estimate]]  # group -> IQM, ...; only of groups with runs of every task
    profiles: dict[str, Line]  # fraction of runs above a score
    efficiency: dict[str, Line]  # IQM over tasks along steps
    along: str  # what x is there
    pairwise: dict[tuple[str, str], Estimate]  # how likely a run of the first beats one of the second
    unit: str  # of training: what `steps` are called

    @property
    def lower(self) -> bool:
        return is_lower_better(self.metric)

    def called(self, axis: str) -> str:
        """What `steps` or `seconds` are called."""
        return self.unit if axis == "steps" else axis

    @property
    def single(self) -> bool:
        """Whether no group has two runs of a task, so that nothing can be said about how certain a figure is."""
        return all(row.seeds == 1 for row in self.rows)

    @property
    def runs(self) -> list[RunFiles]:
        return [run for groups in self.tasks.values() for runs in groups.values() for run in runs]


def find(
    tasks: dict[str, Groups],
    metric: str,
    normalise: str | None,
    threshold: float | None,
    resamples: int,
    notes: list[str],
    unit: str = "steps",
) -> Results:
    """Everything from runs by task and group. `threshold` is in the units of `normalise`, raw for one raw task."""
    scale, meaning = scales(tasks, metric, normalise, notes)
    sign = -1 if is_lower_better(metric) and not meaning else 1
    scores = _scores(tasks, metric, scale)
    groups = _ranked(tasks, scores, sign)
    tasks = {task: {name: of_task[name] for name in groups if name in of_task} for task, of_task in tasks.items()}
    if threshold is None:
        pairs = [default_threshold(of_task, metric) for of_task in tasks.values()]
        goals, origin = {task: goal for task, (goal, _) in zip(tasks, pairs, strict=True)}, _joined(pairs)
    else:
        goals = {task: scale[task].raw(threshold) if task in scale else math.nan for task in tasks}
        origin = "as asked" + f", {threshold:g} in normalised scores" * bool(meaning)
    steps = {task: common_steps(curves_of(of_task, metric)) for task, of_task in tasks.items()}
    rows = [
        _row(task, name, [run.curves[metric] for run in runs], steps[task], goals[task], metric, resamples)
        for task, of_task in tasks.items()
        for name, runs in of_task.items()
    ]
    whole = {name: [*scores[name].values()] for name in groups if scale and len(scores.get(name, ())) == len(scale)}
    notes += _left_out(groups, whole, scores, scale)
    lines, along = _efficiency(list(whole), tasks, metric, scale, resamples)
    return Results(
        metric,
        tasks,
        groups,
        scale,
        meaning,
        goals,
        origin,
        steps,
        rows,
        _curves(tasks, metric, resamples),
        _aggregates(whole, bool(meaning), resamples, notes),
        _profiles(whole, sign, resamples),
        lines,
        along,
        _pairwise(whole, sign, resamples),
        unit,
    )


def curves_of(groups: Groups, metric: str) -> list[Curve]:
    return [run.curves[metric] for runs in groups.values() for run in runs]


def common_steps(curves: list[Curve]) -> tuple[float, float]:
    """First and last step that every curve covers, but for curves of one point, such as a planner's."""
    curves = [curve for curve in curves if len(curve.steps) > 1]
    return max((c.steps[0] for c in curves), default=0), min((c.steps[-1] for c in curves), default=0)


def default_threshold(groups: Groups, metric: str) -> tuple[float, str]:
    """A value and where it comes from; nan where no group learned."""
    first, final = ends(groups, metric)
    if final >= first if is_lower_better(metric) else final <= first:
        return math.nan, "as no group ends better than the worst begins"
    return float(first + 0.9 * (final - first)), "90 % of the way from the worst first value to the best final one"


def _joined(pairs: list[tuple[float, str]]) -> str:
    goals = [origin for goal, origin in pairs if not math.isnan(goal)]
    return "in each task " * (len(pairs) > 1) + (goals or [pairs[0][1]])[0]


def _scores(tasks: dict[str, Groups], metric: str, scale: dict[str, Scale]) -> dict[str, dict[str, np.ndarray]]:
    """By group and task the last values [R] of its runs, on the task's scale."""
    scores: dict[str, dict[str, np.ndarray]] = {}
    for task in scale:
        for name, runs in tasks[task].items():
            last = [run.curves[metric].values[-1] for run in runs]
            scores.setdefault(name, {})[task] = scale[task](last)
    return scores


def _ranked(tasks: dict[str, Groups], scores: dict[str, dict[str, np.ndarray]], sign: int) -> list[str]:
    """Groups that have the most tasks first, among them by the interquartile mean of all their scores."""
    merit = {name: (len(of), sign * iqm(np.concatenate([*of.values()]))) for name, of in scores.items()}
    everyone = dict.fromkeys(name for of_task in tasks.values() for name in of_task)
    return sorted(everyone, key=lambda name: merit.get(name, (0, 0.0)), reverse=True)


def _row(
    task: str, group: str, curves: list[Curve], steps: tuple[float, float], goal: float, metric: str, resamples: int
) -> Row:
    lower = is_lower_better(metric)
    finals, bests = [c.values[-1] for c in curves], [(np.min if lower else np.max)(c.values) for c in curves]
    covered = steps[0] < steps[1] and all(len(c.steps) > 1 for c in curves)
    areas = [area_under_curve(c.steps, c.values, *steps) if covered else math.nan for c in curves]
    final, best, area = (stratified_bootstrap(x, resamples=resamples) for x in (finals, bests, areas))
    reach = partial(x_at_threshold, threshold=goal, lower_is_better=lower)
    at = np.array([[reach(c.steps, c.values), reach(c.seconds, c.values)] for c in curves])
    at = at[~np.isnan(at[:, 0])]
    at_steps, at_seconds = np.median(at, axis=0).tolist() if len(at) else (math.nan, math.nan)
    return Row(task, group, len(curves), final, best, area, at_steps, at_seconds, len(at))


def _left_out(
    groups: list[str], whole: Scores, scores: dict[str, dict[str, np.ndarray]], scale: dict[str, Scale]
) -> Iterator[str]:
    if scale and not whole:
        yield "no aggregates: no group has runs of every task; choose tasks by where=, or other groups by by="
    lacking: dict[tuple[str, ...], list[str]] = {}
    for name in groups if whole else ():
        lacking.setdefault(tuple(task for task in scale if task not in scores.get(name, ())), []).append(name)
    for tasks, names in lacking.items():
        if tasks:
            yield f"left out of the aggregates, because runs of {', '.join(tasks)} are missing: {', '.join(names)}."


def _curves(tasks: dict[str, Groups], metric: str, resamples: int) -> dict[tuple[str, str, str], Line]:
    """Over steps, and for a single task over seconds."""
    found = {}
    for task, groups in tasks.items():
        for name, runs in groups.items():
            for axis in ("steps", "seconds") if len(tasks) == 1 else ("steps",):
                curves = [run.curves[metric] for run in runs]
                xs, ys = [getattr(c, axis) for c in curves], [c.values for c in curves]
                found[task, name, axis] = Line(*iqm_curve(xs, ys, resamples=resamples))
    return found


def _matrix(scores: list[np.ndarray]) -> np.ndarray:
    """[R, K] of K tasks, R the fewest runs that any of them has."""
    runs = min(map(len, scores))
    return np.stack([of_task[:runs] for of_task in scores], axis=1)


def _aggregates(whole: Scores, normalised: bool, resamples: int, notes: list[str]) -> dict[str, dict[str, Estimate]]:
    for name, scores in whole.items():
        if len({*map(len, scores)}) > 1:
            fewest = min(map(len, scores))
            shown = counted(fewest, "seeds")
            notes.append(f"{name}: aggregates take the first {shown} of each task, as many as every task has.")
    wanted = {name: f for name, f in AGGREGATES.items() if normalised or name != "optimality gap"}
    return {
        name: {key: stratified_bootstrap(_matrix(scores), f, resamples=resamples) for key, f in wanted.items()}
        for name, scores in whole.items()
    }


def _middle(scores: np.ndarray) -> tuple[float, float]:
    """From the least score to the greatest, but for those beyond the quartiles by three times their distance."""
    first, third = np.percentile(scores, [25, 75])
    reach = 3 * (third - first) or math.inf
    return max(scores.min(), first - reach), min(scores.max(), third + reach)


def _profiles(whole: Scores, sign: int, resamples: int) -> dict[str, Line]:
    """At evenly spaced scores; where lower is better, the fraction below."""
    if not whole:
        return {}
    low, high = _middle(np.concatenate([s for scores in whole.values() for s in scores]))
    margin = 0.02 * (high - low or 1)
    x = np.linspace(low - margin, high + margin, POINTS)
    return {
        name: Line(x, performance_profile(sign * _matrix(scores), sign * x, resamples=resamples))
        for name, scores in whole.items()
    }


def _pairwise(whole: Scores, sign: int, resamples: int) -> dict[tuple[str, str], Estimate]:
    found = {}
    for a, b in combinations(whole, 2):
        x, y = ([sign * of_task for of_task in whole[name]] for name in (a, b))
        chance = probability_of_improvement(x, y, resamples=resamples)
        found[a, b], found[b, a] = chance, Estimate(1 - chance.point, 1 - chance.high, 1 - chance.low)
    return {(a, b): found[a, b] for a in whole for b in whole if a != b}


def _efficiency(
    whole: list[str], tasks: dict[str, Groups], metric: str, scale: dict[str, Scale], resamples: int
) -> tuple[dict[str, Line], str]:
    """IQM over tasks and runs along steps, or along the fraction of them where tasks last unequally long."""
    runs = {name: {task: [run.curves[metric] for run in tasks[task][name]] for task in scale} for name in whole}
    runs = {name: of for name, of in runs.items() if all(len(c.steps) > 1 for curves in of.values() for c in curves)}
    spans = [common_steps([c for of in runs.values() for c in of[task]]) for task in scale]
    if len(tasks) == 1 or not runs or any(start >= end for start, end in spans):
        return {}, ""
    start, end = max(s for s, _ in spans), min(e for _, e in spans)
    alike = max(e for _, e in spans) - end < 0.02 * end
    shares = np.linspace(0, 1, POINTS)
    grids = [np.linspace(start, end, POINTS) if alike else s + shares * (e - s) for s, e in spans]
    lines = {}
    for name, of in runs.items():
        fewest = min(map(len, of.values()))
        curves = [
            [scale[task](np.interp(grid, c.steps, c.values)) for c in of[task][:fewest]]
            for task, grid in zip(scale, grids, strict=True)
        ]
        estimate = stratified_bootstrap(np.swapaxes(curves, 0, 1), resamples=resamples)
        lines[name] = Line(grids[0] if alike else shares, estimate)
    return lines, "steps" if alike else "fraction of each task's steps"
