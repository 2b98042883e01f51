"""Statistics of a few runs: interquartile mean and other aggregates, bootstrap intervals, area, threshold.

Agarwal et al., 2021; https://arxiv.org/abs/2108.13264
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from rl_lab.core import room
from rl_lab.core.settings import Bound

Resamples = Annotated[int, Bound(1, 1_000_000)]  # more change nothing
Numbers: TypeAlias = Any  # a float, or an array of them: numpy's own annotations of reductions do not say which


class Estimate(NamedTuple):
    """A statistic and its interval; floats, or arrays of one shape. The bounds are nan where there is no interval: one
    run does not say how far another would be from it."""

    point: Numbers
    low: Numbers
    high: Numbers


def iqm(scores: ArrayLike, axis: int | tuple[int, ...] | None = None) -> Numbers:
    """Interquartile mean over `axis` (None: over everything).

    int(n / 4) of the n scores are cut at either end, as in scipy.stats.trim_mean(scores, 0.25): below n = 4
    it is the mean.
    """
    found = np.asarray(scores, float)
    axes = np.atleast_1d(np.arange(found.ndim) if axis is None else axis) % found.ndim
    found = np.moveaxis(found, axes, np.arange(len(axes)))
    n = math.prod(found.shape[: len(axes)])
    found, cut = found.reshape(n, *found.shape[len(axes) :]), n // 4
    return (np.sort(found, axis=0)[cut : n - cut] if cut else found).mean(0)


def median_of_tasks(scores: ArrayLike, axis: tuple[int, int] = (0, 1)) -> Numbers:
    """Median over tasks of the mean over runs; `axis` names the axis of runs, then that of tasks."""
    return np.median(np.mean(np.asarray(scores, float), axis=axis[0], keepdims=True), axis=axis)


def optimality_gap(scores: ArrayLike, axis: tuple[int, int] = (0, 1)) -> Numbers:
    """By how much scores fall short of 1 on average; what is above 1 makes up for nothing."""
    return np.maximum(1 - np.asarray(scores, float), 0).mean(axis)


def stratified_bootstrap(
    scores: ArrayLike,
    statistic: Callable[..., Numbers] = iqm,  # called as statistic(scores, axis=...)
    *,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Estimate:
    """The statistic over R runs and K tasks with its percentile interval; scores [R], [R, K] or [R, K, ...].

    A resample draws R runs with replacement within each task, so that every task counts alike. What follows
    the first two axes (the points of a curve) is drawn along with its run. One run has no interval; from
    three runs of normal scores, 95 % means about 70 %, from five about 90 %.
    """
    all_scores = np.asarray(scores, float)
    all_scores = all_scores[:, None] if all_scores.ndim == 1 else all_scores
    runs, tasks = all_scores.shape[:2]
    point = statistic(all_scores, axis=(0, 1))
    if runs == 1:
        return Estimate(point, *np.full((2, *np.shape(point)), np.nan))
    room.memory(8.0 * resamples * (runs * tasks + 4 * np.size(point)), f"resamples={resamples}")
    drawn = np.random.default_rng(seed).integers(runs, size=(runs, tasks, resamples))
    parts = np.array_split(drawn, min(resamples, 1 + all_scores.size * resamples // 2**20), axis=2)  # 8 MB each
    resampled = [statistic(all_scores[part, np.arange(tasks)[:, None]], axis=(0, 1)) for part in parts]
    return Estimate(point, *_interval(np.concatenate(resampled), confidence))


def _interval(resampled: np.ndarray, confidence: float) -> Numbers:
    """The percentiles between which the middle of the resamples [B, ...] lies: [2, ...]."""
    tail = 50 * (1 - confidence)
    return np.percentile(resampled, [tail, 100 - tail], axis=0)


def performance_profile(scores: ArrayLike, thresholds: ArrayLike, **bootstrap: Any) -> Estimate:
    """The fraction of R runs on K tasks that score above each of T thresholds, each [T]; scores [R, K]."""
    above = np.asarray(scores, float)[..., None] > np.asarray(thresholds, float)
    return stratified_bootstrap(above, np.mean, **bootstrap)


def probability_of_improvement(
    x: Sequence[np.ndarray], y: Sequence[np.ndarray], *, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Estimate:
    """How likely a run of X scores above one of Y on the same task, averaged over tasks; a tie counts half.

    x, y: for each task the scores [R] of its runs. In each task it is the Mann-Whitney statistic U / (R_x R_y). Where
    X or Y has but one run of every task, there is no interval; where of some tasks, it is too narrow.
    """
    room.memory(8.0 * resamples * sum(len(a) + 2 * len(b) for a, b in zip(x, y, strict=True)), f"resamples={resamples}")
    rng = np.random.default_rng(seed)
    points, resampled = [], []
    for of_x, of_y in zip(x, y, strict=True):
        a, b = np.asarray(of_x, float)[:, None], np.asarray(of_y, float)
        wins = (a > b) + 0.5 * (a == b)  # [R_x, R_y]
        drawn = [rng.multinomial(n, np.full(n, 1 / n), size=resamples) for n in wins.shape]  # times each run: [B, R]
        points.append(wins.mean())
        resampled.append((drawn[0] @ wins * drawn[1]).sum(1) / wins.size)
    if any(max(map(len, scores)) == 1 for scores in (x, y)):
        return Estimate(np.mean(points), np.nan, np.nan)
    return Estimate(np.mean(points), *_interval(np.mean(resampled, axis=0), confidence))


def area_under_curve(x: ArrayLike, values: ArrayLike, start: float, end: float) -> float:
    """Mean height from start to end of a curve, straight between its points; x [P] increasing, values [P]."""
    x, values = np.asarray(x, float), np.asarray(values, float)
    grid = np.concatenate([[start], x[(x > start) & (x < end)], [end]])
    heights = np.interp(grid, x, values)
    return float(np.trapezoid(heights, grid) / (end - start)) if end > start else float(heights[0])


def x_at_threshold(x: ArrayLike, values: ArrayLike, threshold: float, *, lower_is_better: bool = False) -> float:
    """The first x [P] whose value [P] has reached the threshold; nan if none has."""
    values = np.asarray(values, float)
    reached = values <= threshold if lower_is_better else values >= threshold
    return float(np.asarray(x, float)[reached.argmax()]) if reached.any() else math.nan


def iqm_curve(
    xs: Sequence[np.ndarray], ys: Sequence[np.ndarray], *, points: int = 200, **bootstrap: Any
) -> tuple[np.ndarray, Estimate]:
    """Interquartile mean of R curves (x [P] increasing and y [P] each) over the range that all of them cover.

    Returns x [Q] and the estimate there: at the curves' own x if these are at most `points`, else evenly
    spaced. Curves are straight between their points; Q is 0 where no range is common.
    """
    start, end = max(x[0] for x in xs), min(x[-1] for x in xs)
    own = np.unique(np.concatenate(xs))
    own = own[(own >= start) & (own <= end)]
    grid = own if len(own) <= points else np.linspace(start, end, points)
    curves = np.stack([np.interp(grid, x, y) for x, y in zip(xs, ys, strict=True)])  # [R, Q]
    return grid, stratified_bootstrap(curves[:, None], **bootstrap)
