"""The accuracy of dense rewards, drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sdpo_bench.analysis.comparisons import Group
from sdpo_bench.analysis.figures.curves import draw_panels
from sdpo_bench.analysis.figures.style import MARKERS, SPARE, Style
from sdpo_bench.analysis.tables.base import joined
from sdpo_bench.catalogue import BUDGETS
from sdpo_bench.records.reader import RunRecord

LOOKS: Style = {  # of the budgets of reward queries; no method's colours
    budget: {
        "color": entry.colour or SPARE[number % len(SPARE)],
        "marker": entry.marker or MARKERS[number % len(MARKERS)],
        "label": entry.title or entry.name,
    }
    for number, (budget, entry) in enumerate(BUDGETS.items())
}


def probed_runs(group: Group) -> tuple[str, list[RunRecord]]:
    """The first method whose runs measured their dense rewards, and these runs."""
    for label in group.methods:
        if runs := [run for run in group.runs if run.label == label and run.dense]:
            return label, runs
    return "", []


def _dense(runs: list[RunRecord], budget: str, field: str, epoch: int) -> np.ndarray:
    """[runs, K], NaN where undefined; without runs that measured it at that epoch, one row of NaN."""
    rows = [row[field] for run in runs for row in run.dense if row["budget"] == budget and row["epoch"] == epoch]
    return np.array(rows or [[np.nan] * runs[0].config["steps"]], dtype=float)


def _budgets(runs: list[RunRecord]) -> list[str]:
    return sorted({row["budget"] for run in runs for row in run.dense}, key=list(LOOKS).index)


def dense_errors(group: Group) -> Figure:
    """Error of the dense rewards that are predicted from a few reward queries, by denoising step and during
    training."""
    label, runs = probed_runs(group)
    budgets, epochs = _budgets(runs), sorted({row["epoch"] for run in runs for row in run.dense})
    spread: dict[str, Any] = {"color": "#7f7f7f", "linestyle": "--"}
    handles = [Line2D([], [], **LOOKS[b]) for b in budgets]
    figure, axes = draw_panels(
        f"Predicted dense rewards, {label} on {group.reward} with K = {group.steps}",
        [*handles, Line2D([], [], label="spread of the exact rewards", **spread)],
        3,
        3,
    )
    means = {b: [float(_dense(runs, b, "mae", epoch).mean()) for epoch in epochs] for b in budgets}
    for budget in budgets:
        for axis, field in zip(axes, ("mae", "return_corr"), strict=False):
            values = np.ma.masked_invalid(_dense(runs, budget, field, epochs[-1])).mean(0)
            axis.plot(np.arange(group.steps) + 1, np.ma.filled(values, np.nan), **LOOKS[budget])
        axes[2].plot(epochs, means[budget], **LOOKS[budget])
    axes[0].plot(np.arange(group.steps) + 1, _dense(runs, budgets[0], "std", epochs[-1]).mean(0), **spread)
    for axis, title, x in zip(
        axes,
        ("mean absolute error", "correlation of returns", "error during training"),
        ("denoising step", "denoising step", "epoch"),
        strict=True,
    ):
        axis.set_title(title, loc="left")
        axis.set_xlabel(x)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if title != "correlation of returns":
            axis.set_ylim(bottom=0)
    return figure


def dense_alt(group: Group) -> str:
    _, runs = probed_runs(group)
    last = max(row["epoch"] for run in runs for row in run.dense)
    errors = {LOOKS[b]["label"]: _dense(runs, b, "mae", last).mean() for b in _budgets(runs)}
    return (
        f"Predicted dense rewards of {group.reward}, K = {group.steps}. Mean absolute error over the steps at "
        f"epoch {last}, {len(runs)} run{'s' * (len(runs) > 1)}: "
        + joined(f"{error:.4f} with {name}" for name, error in errors.items() if not np.isnan(error))
        + "."
    )
