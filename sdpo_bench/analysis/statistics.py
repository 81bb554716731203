"""Statistics of few runs: interquartile mean, paired differences, probability of improvement, each with its interval.

Definitions: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", arXiv
2108.13264, and its package rliable. Every random number comes from a fixed seed: the same scores give the
same interval. How often the intervals cover the truth with 5 runs: docs/statistics.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special  # scipy.stats has the same quantiles, and takes seconds to import

REPS = 5000  # rliable: 2,000 for probabilities, 50,000 for scores; here the third digit no longer moves
CONFIDENCE = 0.95


NORMAL = float(special.ndtri((1 + CONFIDENCE) / 2))


Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class Interval(NamedTuple):
    """A point estimate, the ends of its 95 % interval, and the number of runs (or of pairs of runs) behind
    it."""

    value: float
    low: float
    high: float
    n: int


def _scores(scores: ArrayLike) -> NDArray[np.float64]:
    """[runs] or [runs, tasks] -> [runs, tasks] float64. ValueError if empty, of another rank or not
    finite."""
    array = np.asarray(scores, dtype=np.float64)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or not array.size:
        raise ValueError(f"scores are [runs] or [runs, tasks] and not empty, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("scores hold a value that is not finite")
    return array


def iqm(scores: ArrayLike) -> NDArray[np.float64]:
    """Interquartile mean of scores [runs], or of [..., runs, tasks] over its last two axes (all runs of all
    tasks together).

    The floor of a quarter of the values is left out at each end, as in `scipy.stats.trim_mean(scores, 0.25)`.
    """
    array = np.asarray(scores, dtype=np.float64)
    flat = np.sort(array.reshape(*array.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    return np.asarray(flat[..., cut : flat.shape[-1] - cut].mean(axis=-1))


def mean(scores: ArrayLike) -> NDArray[np.float64]:
    """Mean of [runs], or of [..., runs, tasks] over its last two axes: a statistic for
    `stratified_bootstrap`."""
    array = np.asarray(scores, dtype=np.float64)
    return np.asarray(array.mean(axis=tuple(range(-min(array.ndim, 2), 0))))


@functools.lru_cache(maxsize=64)
def _drawn(runs: int, tasks: int, reps: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which runs the resamplings of scores of this shape take, each different one once, [different, runs, tasks], and
    how many of the `reps` are that one, [different]. Runs of a task have no order: of 5 runs 126 resamplings differ."""
    drawn = np.sort(np.random.default_rng(seed).integers(runs, size=(reps, runs, tasks)), axis=1)
    different, counts = np.unique(drawn.reshape(reps, -1), axis=0, return_counts=True)
    return different.reshape(-1, runs, tasks), counts


def _resampled(scores: NDArray[np.float64], statistic: Statistic, reps: int, seed: int) -> NDArray[np.float64]:
    """`statistic` of `reps` resamplings of scores [runs, tasks], [reps] in no particular order: in each task (stratum)
    its runs are drawn anew, with replacement."""
    drawn, counts = _drawn(*scores.shape, reps, seed)
    return np.repeat(statistic(scores[drawn, np.arange(scores.shape[1])]), counts)


def _ends(draws: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def stratified_bootstrap(scores: ArrayLike, statistic: Statistic = iqm, reps: int = REPS, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of `statistic` for scores [runs, tasks], or [runs].

    `statistic` maps [..., runs, tasks] to [...], whatever the order of a task's runs. ValueError: scores empty or not
    finite.
    """
    array = _scores(scores)
    draws = _resampled(array, statistic, reps, seed)
    return Interval(float(statistic(array)), *_ends(draws), len(array))


@functools.cache
def student(freedom: int) -> float:
    """Quantile of Student's t at which a 95 % interval ends."""
    return float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2))


def mean_interval(scores: Iterable[float]) -> Interval:
    """Mean of scores [runs] and Student's t interval; of one score the ends are NaN. ValueError: empty or not
    finite."""
    return _mean_interval(tuple(scores))


@functools.lru_cache(maxsize=2**16)  # a cell is shown, stands in the CSV and is counted
def _mean_interval(scores: tuple[float, ...]) -> Interval:
    array = _scores(scores)[:, 0]
    n, centre = len(array), float(array.mean())
    if n == 1:
        return Interval(centre, np.nan, np.nan, 1)
    half = float(student(n - 1) * array.std(ddof=1) / np.sqrt(n))
    return Interval(centre, centre - half, centre + half, n)


def paired_difference(x: Mapping[int, float], y: Mapping[int, float]) -> Interval:
    """Mean of x - y over the seeds that both have, `{seed: score}`, with Student's t interval over those pairs: the
    percentile bootstrap of 5 pairs covers 85 %, not 95 %.

    ValueError: no seed in common, or scores not finite.
    """
    shared = sorted(x.keys() & y.keys())
    if not shared:
        raise ValueError(f"no seed in common: {sorted(x)} and {sorted(y)}")
    return mean_interval([x[key] - y[key] for key in shared])


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> Interval:
    """Probability that a run of x beats a run of y, scores [n] and [m], ties counting half (Mann-Whitney's U over
    n m), with Newcombe's interval; `n` is the smaller number of runs. ValueError: empty or not finite.

    The interval is method 5 of Newcombe, Statistics in Medicine 25 (2006) 559-573: the probabilities whose own
    variance, as between exponential distributions, does not exclude the estimate. The bootstrap's has no width
    where every run of x beats every run of y.
    """
    a, b = _scores(x)[:, 0], _scores(y)[:, 0]
    estimate = float((np.sign(a[:, None] - b).mean() + 1) / 2)
    return Interval(
        estimate, _lower(estimate, len(a), len(b)), 1 - _lower(1 - estimate, len(a), len(b)), min(len(a), len(b))
    )


@functools.lru_cache(maxsize=4096)
def _lower(estimate: float, n: int, m: int) -> float:
    """Lower end of Newcombe's interval, by bisection; the upper one is that of the complement, mirrored."""
    low, high = 0.0, estimate
    for _ in range(50):
        p = (low + high) / 2
        spread = 1 + ((n + m) / 2 - 1) * ((1 - p) / (2 - p) + p / (1 + p))
        if (estimate - p) ** 2 > NORMAL**2 * p * (1 - p) * spread / (n * m):
            low = p
        else:
            high = p
    return float(low)
