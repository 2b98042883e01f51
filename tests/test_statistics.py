"""Literal numbers worked by hand, and what an interval owes to its name."""

import math

import numpy as np
import pytest

from rl_lab.core.statistics import area_under_curve, iqm, iqm_curve, stratified_bootstrap, x_at_threshold


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


def test_one_run_has_an_interval_of_no_width():
    assert stratified_bootstrap([4.0]) == (4.0, 4.0, 4.0)


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
