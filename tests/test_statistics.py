"""Literal numbers worked by hand, and what an interval owes to its name."""

import math

import atari_100k
import numpy as np
import pytest

from rl_lab.core.comparing.scales import ATARI, Scale
from rl_lab.core.comparing.statistics import (
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
from rl_lab.core.errors import UserError


@pytest.mark.parametrize(
    "scores, expected",
    [
        ([8, 1, 100, 3, 4, 2, 6, -50], (2 + 3 + 4 + 6) / 4),  # 2 of 8 cut at either end
        ([9, 1, 100, 3, 4, 2, 6, -50, 5, 7], (2 + 3 + 4 + 5 + 6 + 7) / 6),  # int(2.5) = 2 of 10
        ([5, 1, 2, 3, 100], (2 + 3 + 5) / 3),  # int(1.25) = 1 of 5
        ([0, 1, 100, 3], 2.0),  # 1 of 4
        ([0, 1, 100], 101 / 3),  # int(0.75) = 0: the mean
        ([7], 7.0),
    ],
)
def test_iqm_is_the_mean_of_the_middle_half(scores, expected):
    assert iqm(scores) == pytest.approx(expected)


def test_iqm_of_runs_and_tasks_is_that_of_all_their_scores_together():
    scores = np.array([[8, 1, 100, 3], [4, 2, 6, -50]])
    assert iqm(scores) == 3.75
    assert iqm(np.stack([scores, scores + 1], axis=-1), axis=(0, 1)).tolist() == [3.75, 4.75]
    assert iqm(np.stack([scores, scores + 1]), axis=(1, 2)).tolist() == [3.75, 4.75]
    assert iqm(scores.T, axis=0).tolist() == [(3 + 8) / 2, (2 + 4) / 2]


def test_two_runs_have_an_interval_as_wide_as_they_lie_apart():
    assert stratified_bootstrap([1.0, 3.0]) == (2.0, 1.0, 3.0)  # each extreme has a chance of 1/4


def test_one_run_has_no_interval():
    point, low, high = stratified_bootstrap([4.0])
    assert point == 4 and np.isnan(low) and np.isnan(high)
    curve = stratified_bootstrap(np.arange(3.0).reshape(1, 1, 3))
    assert curve.point.tolist() == [0, 1, 2] and np.isnan(curve.low).all() and curve.high.shape == (3,)


def test_resamples_that_memory_cannot_hold_are_one_line():
    with pytest.raises(UserError, match="resamples=1000000000000 needs .* of memory"):
        stratified_bootstrap([4.0, 5.0], resamples=10**12)
    with pytest.raises(UserError, match="resamples=1000000000000 needs .* of memory"):
        probability_of_improvement([[1.0, 2.0]], [[3.0, 4.0]], resamples=10**12)


def test_the_interval_is_fixed_by_the_seed():
    scores = np.random.default_rng(0).normal(size=(5, 3))
    assert stratified_bootstrap(scores, seed=1) == stratified_bootstrap(scores, seed=1)
    assert stratified_bootstrap(scores, seed=1) != stratified_bootstrap(scores, seed=2)


@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_the_interval_covers_the_truth_as_often_as_it_says(confidence):
    scores = np.random.default_rng(0).normal(loc=3.0, size=(400, 20))
    estimates = [stratified_bootstrap(s, confidence=confidence, resamples=400) for s in scores]
    coverage = np.mean([e.low <= 3.0 <= e.high for e in estimates])
    assert confidence - 0.08 < coverage < confidence + 0.04  # known to be a little low at 20 runs


def test_four_times_the_runs_halve_the_interval():
    draws = np.random.default_rng(0).normal(size=(50, 80))
    few, many = (np.mean([np.ptp(stratified_bootstrap(s[:n])[1:]) for s in draws]) for n in (20, 80))
    assert many / few == pytest.approx(0.5, abs=0.06)


def test_a_run_of_one_task_never_stands_for_another():
    scores = np.repeat([[0.0, 1.0, 100.0]], 4, axis=0)  # within a task nothing is uncertain
    assert stratified_bootstrap(scores, np.mean) == (101 / 3, 101 / 3, 101 / 3)


def test_tasks_are_resampled_apart():
    scores = np.array([[0.0, 1.0], [1.0, 0.0]])  # drawn in pairs, every row would have the mean 1/2
    assert stratified_bootstrap(scores, np.mean) == (0.5, 0.0, 1.0)


def test_the_points_of_a_curve_are_drawn_with_their_run():
    curves = np.random.default_rng(0).normal(size=(5, 1, 3))
    together = stratified_bootstrap(curves, np.mean)
    assert together.low.shape == (3,)
    for p in range(3):
        assert together.low[p] == pytest.approx(stratified_bootstrap(curves[..., p], np.mean).low)


def test_the_area_under_a_straight_line_is_its_middle():
    assert area_under_curve([0, 10, 40], [1, 2, 5], 0, 40) == pytest.approx(3.0)
    assert area_under_curve([0, 40], [1, 5], 10, 20) == pytest.approx(2.5)  # ends between two points
    assert area_under_curve([0, 1, 3], [0, 1, 1], 0, 3) == pytest.approx((0.5 + 2) / 3)
    assert area_under_curve([0, 40], [1, 5], 10, 10) == pytest.approx(2.0)


def test_the_threshold_is_reached_at_the_first_point_at_or_beyond_it():
    x = [0, 10, 20, 30]
    assert x_at_threshold(x, [0.1, 0.5, 0.4, 0.9], 0.5) == 10
    assert x_at_threshold(x, [0.1, 0.5, 0.4, 0.9], 0.51) == 30
    assert x_at_threshold(x, [9, 5, 6, 2], 5, lower_is_better=True) == 10
    assert math.isnan(x_at_threshold(x, [0.1, 0.5, 0.4, 0.9], 1.0))
    assert math.isnan(x_at_threshold(x, [9, 5, 6, 2], 1, lower_is_better=True))
    assert math.isnan(x_at_threshold(x, [9, 5, 6, 2], math.nan))


def test_curves_are_averaged_where_all_of_them_have_points():
    xs, ys = [np.array([0, 4, 8]), np.array([2, 6])], [np.array([0, 4, 8]), np.array([10, 14])]
    x, estimate = iqm_curve(xs, ys)
    assert x.tolist() == [2, 4, 6]
    assert estimate.point.tolist() == [6, 8, 10]
    x, estimate = iqm_curve(xs, ys, points=2)
    assert (x.tolist(), estimate.point.tolist()) == ([2, 6], [6, 10])
    assert len(iqm_curve([np.array([0, 1]), np.array([2, 3])], [np.zeros(2), np.zeros(2)])[0]) == 0


# -- over tasks


@pytest.mark.parametrize(
    "scores, superhuman, published",  # IQM, median, mean, optimality gap; DIAMOND's paper prints the first and third
    [
        (atari_100k.IRIS, 10, (0.501, 0.289, 1.046, 0.512)),
        (atari_100k.DIAMOND, 11, (0.641, None, 1.459, None)),
    ],
)
def test_published_statistics_are_found_again_in_the_published_scores(scores, superhuman, published):
    games = zip(atari_100k.GAMES, scores, strict=True)
    normalised = np.stack([Scale(*ATARI[game])(of_game) for game, of_game in games], axis=1)
    assert normalised.shape == (5, 26)
    assert (normalised.mean(0) >= 1).sum() == superhuman  # IRIS at Pong: 14.6, the tester's own mean
    for statistic, value in zip((iqm, median_of_tasks, np.mean, optimality_gap), published, strict=True):
        found = stratified_bootstrap(normalised, statistic)
        assert value is None or round(float(found.point), 3) == value
        assert found.low < found.point < found.high


def test_medians_are_taken_over_the_means_of_tasks():
    scores = np.array([[0.0, 1.0, 9.0], [4.0, 1.0, 9.0], [8.0, 1.0, 0.0]])  # means 4, 1, 6; all nine: median 1
    assert median_of_tasks(scores) == 4
    assert median_of_tasks(np.stack([scores, 2 * scores], -1)).tolist() == [4, 8]


def test_what_is_above_one_makes_up_for_nothing():
    assert optimality_gap(np.array([[0.25, 3.0], [-0.5, 1.0]])) == pytest.approx((0.75 + 0 + 1.5 + 0) / 4)


def test_a_profile_counts_the_runs_above_each_score():
    scores = np.array([[0.1, 0.5, 2.0], [0.5, 0.6, 0.4]])
    found = performance_profile(scores, [0.0, 0.1, 0.5, 1.0, 2.0])
    assert found.point.tolist() == pytest.approx([1, 5 / 6, 2 / 6, 1 / 6, 0])
    assert (found.low <= found.point).all() and (found.point <= found.high).all()
    # at 0.5 the tasks have 0, 1/2, 1/2 of their runs above: resampled, the last two are Bernoulli
    assert (found.low[2], found.high[2]) == (0, pytest.approx(4 / 6))


def test_the_probability_of_improvement_counts_pairs_on_the_same_task_and_ties_half():
    x, y = [[1.0, 2.0, 3.0], [5.0]], [[2.0, 0.0], [5.0, 9.0]]
    found = probability_of_improvement(x, y)
    first = (0 + 1 + 0.5 + 1 + 1 + 1) / 6
    assert found.point == pytest.approx((first + (0.5 + 0) / 2) / 2)
    back = probability_of_improvement(y, x)
    assert found.point + back.point == pytest.approx(1)


def test_the_probability_of_improvement_is_mann_and_whitneys_statistic():
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(0)
    x, y = [[list(rng.integers(6, size=n)) for n in sizes] for sizes in ((5, 3, 8), (4, 6, 2))]
    expected = [mannwhitneyu(a, b)[0] / (len(a) * len(b)) for a, b in zip(x, y, strict=True)]
    assert probability_of_improvement(x, y).point == pytest.approx(np.mean(expected))


def test_the_interval_of_an_improvement_covers_every_resample_it_should():
    x, y = [0.0, 2.0], [1.0, 1.0]  # a resample of x has 0, 1 or 2 winners, with chances 1/4, 1/2, 1/4
    assert probability_of_improvement([x], [y]) == (0.5, 0, 1)
    assert probability_of_improvement([y], [x]) == (0.5, 0, 1)
    assert probability_of_improvement([x], [y], confidence=0.4) == (0.5, 0.5, 0.5)
    alone = probability_of_improvement([[2.0]], [[1.0]])
    assert alone.point == 1 and np.isnan([alone.low, alone.high]).all()  # one run against one: nothing to resample
    some = probability_of_improvement([[2.0], x], [y, y])  # but another task has two
    assert (some.point, some.low, some.high) == (0.75, 0.5, 1)
    wide = probability_of_improvement([x], [y], confidence=0.9)
    narrow = probability_of_improvement([x] * 30, [y] * 30, confidence=0.9)  # 30 tasks, resampled apart
    assert wide.high - wide.low == 1 and narrow.high - narrow.low < 0.3


def test_the_table_of_games_is_ale_pys():
    from ale_py import roms

    assert len(ATARI) == 57 and set(ATARI) <= set(roms.get_all_rom_ids())
    assert all(random < human for random, human in ATARI.values())
