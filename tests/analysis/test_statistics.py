"""Statistics against their definitions, and against rliable's own examples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from sdpo_bench.analysis.statistics import (
    Interval,
    iqm,
    mean,
    mean_interval,
    paired_difference,
    probability_of_improvement,
    stratified_bootstrap,
)

FINITE = st.floats(-1e3, 1e3, allow_subnormal=False)
VECTOR = hnp.arrays(np.float64, st.integers(1, 12), elements=FINITE)
MATRIX = hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=FINITE)

# The score matrices of rliable's own test, [runs, tasks], and what it expects of them.
X = np.array([[1, 2], [2, 2], [1, 1], [2, 1]])
Y = np.array([[1, 1], [2, 2], [3, 3]])


def test_as_rliable():
    assert iqm(X) == 1.5
    assert iqm(Y) == 2
    assert mean(X) == 1.5
    assert np.mean([probability_of_improvement(X[:, i], Y[:, i]).value for i in (0, 1)]) == pytest.approx(1 / 3)


@given(VECTOR)
def test_iqm_is_scipys_trimmed_mean(scores):
    assert iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25), rel=1e-12, abs=1e-9)


@given(MATRIX)
def test_iqm_takes_all_tasks_together_and_batches(scores):
    assert iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None), rel=1e-12, abs=1e-9)
    np.testing.assert_array_equal(iqm(np.stack([scores, 2 * scores])), [iqm(scores), iqm(2 * scores)])


def test_iqm_ignores_an_outlier():
    assert iqm([1, 2, 3, 4, 1e9]) == iqm([1, 2, 3, 4, 5]) == 3


@given(VECTOR, VECTOR)
@settings(max_examples=30)
def test_improvement_is_the_mann_whitney_probability(x, y):
    found = probability_of_improvement(x, y)
    brute = np.mean([(a > b) + 0.5 * (a == b) for a, b in itertools.product(x, y)])
    u = stats.mannwhitneyu(x, y, method="asymptotic").statistic
    assert found.value == pytest.approx(brute) == pytest.approx(u / (len(x) * len(y)))
    mirrored = probability_of_improvement(y, x)
    assert found[:3] == pytest.approx((1 - mirrored.value, 1 - mirrored.high, 1 - mirrored.low))
    assert 0 <= found.low <= found.value <= found.high <= 1


@given(VECTOR)
@settings(max_examples=20)
def test_no_improvement_over_itself(x):
    found = probability_of_improvement(x, x)
    assert found.value == pytest.approx(0.5)
    assert found.low < 0.5 < found.high


@given(MATRIX, st.floats(-10, 10), st.floats(0.1, 10))
@settings(max_examples=30)
def test_bootstrap_is_deterministic_bounded_and_moves_with_the_scores(scores, shift, scale):
    interval = stratified_bootstrap(scores, reps=200)
    assert interval == stratified_bootstrap(scores, reps=200)
    assert scores.min() - 1e-9 <= interval.low <= interval.high <= scores.max() + 1e-9
    moved = stratified_bootstrap(scores * scale + shift, reps=200)
    np.testing.assert_allclose(moved[:3], np.array(interval[:3]) * scale + shift, rtol=1e-9, atol=1e-6)


def test_bootstrap_resamples_within_tasks():
    # Two tasks whose runs agree: strata leave nothing to vary; unstratified draws would mix the tasks.
    assert stratified_bootstrap([[0.0, 10.0]] * 5, mean) == Interval(5.0, 5.0, 5.0, 5)
    # And each task draws on its own: drawn together, these two would cancel.
    interval = stratified_bootstrap([[x, -x] for x in range(5)], mean)
    assert interval.low < -0.3 < 0.3 < interval.high


def test_bootstrap_of_three_runs_matches_all_its_resamples():
    scores = [0.0, 1.0, 5.0]
    every = [np.mean(draw) for draw in itertools.product(scores, repeat=3)]
    found = stratified_bootstrap(scores, mean, reps=20000)
    assert found.low == pytest.approx(np.quantile(every, 0.025, method="inverted_cdf"), abs=1e-9)
    assert found.high == pytest.approx(np.quantile(every, 0.975, method="inverted_cdf"), abs=1e-9)


def covered(intervals, truth: float) -> float:
    return float(np.mean([low <= truth <= high for _, low, high, _ in intervals]))


def test_five_pairs_are_covered_by_students_interval_and_not_by_the_bootstraps():
    """What docs/statistics.md says, and why paired differences have Student's t interval."""
    rng = np.random.default_rng(1)
    for draws, truth, least, most in (
        (rng.normal(size=(4000, 5)), 0.0, 0.94, 0.96),
        (rng.random((4000, 5)), 0.5, 0.92, 0.95),
        (rng.standard_t(3, (4000, 5)), 0.0, 0.95, 0.98),
        (rng.exponential(size=(4000, 5)), 1.0, 0.86, 0.91),
    ):
        assert least <= covered(map(mean_interval, draws), truth) <= most
    percentile = [stratified_bootstrap(rng.standard_normal(5), mean, reps=500) for _ in range(1500)]
    assert 0.82 <= covered(percentile, 0.0) <= 0.87
    quartiles = [stratified_bootstrap(rng.standard_normal(5), reps=500) for _ in range(1500)]
    assert 0.88 <= covered(quartiles, 0.0) <= 0.92
    many = [stratified_bootstrap(rng.standard_normal(40), mean, reps=500) for _ in range(300)]
    assert 0.91 <= covered(many, 0.0) <= 0.98


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_probabilities_of_five_runs_are_covered(shift):
    """Also near 1, where the bootstrap's interval covers less than a quarter: it has no width if all of x beat y."""
    rng = np.random.default_rng(2)
    found = [probability_of_improvement(rng.normal(shift, 1, 5), rng.normal(0, 1, 5)) for _ in range(1500)]
    assert 0.93 <= covered(found, stats.norm.cdf(shift / np.sqrt(2))) <= 0.98


def test_an_interval_by_hand():
    half = 4.302653 / np.sqrt(3)
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - half, 2 + half, 3))
    assert mean_interval([2.0])[:1] == (2.0,)
    assert np.isnan(mean_interval([2.0])[1:3]).all()
    # Newcombe's ends solve (estimate - p)^2 = z^2 var(p).
    found = probability_of_improvement([1, 2, 3, 4, 5], [0, 0, 0, 0, 6])
    assert found.value == 0.8
    for p in (found.low, found.high):
        variance = p * (1 - p) * (1 + 4 * ((1 - p) / (2 - p) + p / (1 + p))) / 25
        assert (0.8 - p) ** 2 == pytest.approx(1.959964**2 * variance, rel=1e-4)


def test_a_paired_interval_by_hand():
    """Differences 1, 3, 7 of the seeds that both have: mean 11/3, squares (64 + 4 + 100) / 9 over 2 degrees of freedom;
    t of 2 degrees at 0.975 is 4.302653."""
    half = 4.302653 * np.sqrt(168 / 9 / 2) / np.sqrt(3)
    found = paired_difference({2: 9.0, 0: 1.0, 1: 4.0, 7: -50.0}, {0: 0.0, 1: 1.0, 2: 2.0, 3: 100.0})
    assert found == pytest.approx((11 / 3, 11 / 3 - half, 11 / 3 + half, 3))


def test_improvement_of_unequal_numbers_of_runs_by_hand():
    """Of 5 runs all beat 0 and one beats 4.5: 6 of 10 pairs."""
    found = probability_of_improvement([1, 2, 3, 4, 5], [0, 4.5])
    assert (found.value, found.n) == (0.6, 2)
    for p in (found.low, found.high):
        variance = p * (1 - p) * (1 + 2.5 * ((1 - p) / (2 - p) + p / (1 + p))) / 10
        assert (0.6 - p) ** 2 == pytest.approx(1.959964**2 * variance, rel=1e-4)


def test_bootstrap_of_five_runs_matches_all_its_resamples():
    """The default, interquartile means of 5 runs as the tables show them: of 3,125 equally likely resamples the middle
    three of five, and 2.5 % of them on either side."""
    scores = [0.0, 1.0, 2.0, 4.0, 8.0]
    every = [np.mean(sorted(draw)[1:4]) for draw in itertools.product(scores, repeat=5)]
    found = stratified_bootstrap(scores)
    assert found.value == pytest.approx(7 / 3)
    assert found.n == 5
    assert (found.low, found.high) == pytest.approx(np.quantile(every, [0.025, 0.975]), abs=1e-9)


def test_pairing_removes_what_seeds_share():
    rng = np.random.default_rng(0)
    luck = rng.normal(size=8)
    x = {seed: luck[seed] + 0.1 for seed in range(8)}
    y = {seed: luck[seed] for seed in range(8)}
    found = paired_difference(x, y)
    np.testing.assert_allclose(found, (0.1, 0.1, 0.1, 8), atol=1e-12)
    assert paired_difference(x, {seed: y[seed] for seed in (2, 5)}).n == 2


def test_what_cannot_be_computed_is_refused():
    with pytest.raises(ValueError, match="no seed in common"):
        paired_difference({0: 1.0}, {1: 1.0})
    with pytest.raises(ValueError, match="not empty"):
        stratified_bootstrap([])
    with pytest.raises(ValueError, match="not finite"):
        stratified_bootstrap([1.0, np.nan])
    with pytest.raises(ValueError, match="not empty"):
        probability_of_improvement([], [1.0])
