"""Means of a method over its runs, with Student's t interval: what the tables by subject show."""

from __future__ import annotations

import numpy as np

from sdpo_bench.analysis.comparisons import Values
from sdpo_bench.analysis.statistics import Interval, mean_interval
from sdpo_bench.analysis.tables.base import MIN_RUNS, cell_text, interval_row, run_columns

MEANS = "mean over runs [95 % interval, Student's t] (n runs); with fewer than 5 runs their values themselves, by seed"


def mean_text(values: Values, decimals: int = 3, sign: str = "") -> str:
    return cell_text(values, decimals, sign, mean_interval(list(values.values())) if values else None)


def summarised(values: Values) -> dict[str, object]:
    """Columns of a frame: mean over runs, its interval, the runs' values and seeds."""
    found = mean_interval(list(values.values())) if values else Interval(np.nan, np.nan, np.nan, 0)
    return {**interval_row(found), **run_columns(values)}


def clearly(values: Values) -> int:
    """1 or -1 where the interval over at least `MIN_RUNS` runs lies above or below 0, else 0."""
    if len(values) < MIN_RUNS:
        return 0
    _, low, high, _ = mean_interval(list(values.values()))
    return int(low > 0) - int(high < 0)
