"""Robust statistics of few runs: interquartile mean, stratified bootstrap, probability of improvement.

Definitions: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", arXiv
2108.13264, and its package rliable. Every random number comes from a fixed seed: the same scores give the
same interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

REPS = 5000  # rliable: 2,000 for probabilities, 50,000 for scores; here the third digit no longer moves
CONFIDENCE = 0.95
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
    return np.asarray(flat[..., cut:flat.shape[-1] - cut].mean(axis=-1))


def mean(scores: ArrayLike) -> NDArray[np.float64]:
    """Mean of [runs], or of [..., runs, tasks] over its last two axes: a statistic for
    `stratified_bootstrap`."""
    array = np.asarray(scores, dtype=np.float64)
    return np.asarray(array.mean(axis=tuple(range(-min(array.ndim, 2), 0))))


def _resample(scores: NDArray[np.float64], reps: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """[runs, tasks] -> [reps, runs, tasks]: in each task (stratum) its runs are drawn anew, with
    replacement."""
    chosen = rng.integers(len(scores), size=(reps, *scores.shape))
    return np.take_along_axis(scores[None], chosen, axis=1)


def _ends(draws: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def stratified_bootstrap(scores: ArrayLike, statistic: Statistic = iqm, reps: int = REPS,
                         seed: int = 0) -> Interval:
    """Percentile bootstrap interval of `statistic` for scores [runs, tasks], or [runs].

    `statistic` maps [..., runs, tasks] to [...]. ValueError: scores empty or not finite.
    """
    array = _scores(scores)
    draws = statistic(_resample(array, reps, np.random.default_rng(seed)))
    return Interval(float(statistic(array)), *_ends(draws), len(array))


def _improvement(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """[..., n, tasks], [..., m, tasks] -> [...]: P(x > y) + P(x = y)/2, the Mann-Whitney U over n m, mean
    over tasks."""
    sign = np.sign(x[..., :, None, :] - y[..., None, :, :])
    return np.asarray((sign.mean(axis=(-3, -2, -1)) + 1) / 2)


def probability_of_improvement(x: ArrayLike, y: ArrayLike, reps: int = 2000, seed: int = 0) -> Interval:
    """Probability that a run of x beats a run of y, scores [runs, tasks] or [runs], ties counting half.

    x and y are drawn anew independently, their numbers of runs may differ; `n` is the smaller. ValueError:
    empty, not finite, or numbers of tasks that differ.
    """
    a, b = _scores(x), _scores(y)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"x has {a.shape[1]} tasks, y has {b.shape[1]}")
    rng = np.random.default_rng(seed)
    draws = _improvement(_resample(a, reps, rng), _resample(b, reps, rng))
    return Interval(float(_improvement(a, b)), *_ends(draws), min(len(a), len(b)))


def paired_difference(x: Mapping[int, float], y: Mapping[int, float], reps: int = REPS,
                      seed: int = 0) -> Interval:
    """Mean of x - y over the seeds that both have, `{seed: score}`, with its bootstrap interval over those
    pairs.

    ValueError: no seed in common, or scores not finite.
    """
    shared = sorted(x.keys() & y.keys())
    if not shared:
        raise ValueError(f"no seed in common: {sorted(x)} and {sorted(y)}")
    return stratified_bootstrap([x[key] - y[key] for key in shared], mean, reps, seed)
