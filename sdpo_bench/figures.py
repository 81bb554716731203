"""Figures of a profile: a pure function of its raw records, the same records giving the same bytes.

A method has one colour and marker everywhere (Okabe and Ito's palette, safe for colour-blind readers); ablations stand
in a figure of their own. Drawn with matplotlib's SVG writer, without pyplot, so without global state or display.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from PIL import Image

from .groups import START, Group, Values, label_key, parent, shown_split
from .paper import METHODS, load_curves
from .records import RERUN, RecordError, RunRecord
from .statistics import paired_difference
from .tables import MIN_RUNS, joined, summary

KNOWN = {  # label: (colour, marker)
    START: ("#7f7f7f", ""),
    "SDPO": ("#0072b2", "o"),
    "SDPO-causal": ("#56b4e9", "s"),
    "DDPO": ("#d55e00", "^"),
    "DDPO-dense": ("#e69f00", "v"),
    "REBEL": ("#009e73", "D"),
    "PRDP": ("#cc79a7", "P"),
    "D3PO": ("#000000", "X"),
}
SPARE = ("#8c564b", "#5c8a00", "#b04a5a", "#4d4d9f", "#2f6f4f")  # of other methods, by name
MARKERS = "hp*d<>"  # of other methods and of variants
BUDGETS = {  # reward queries of a trajectory, in dense.jsonl: (name, colour, marker); no method's colours
    "terminal": ("final reward only", "#fd8d3c", "v"),
    "2": ("2 queries", "#9e9ac8", "s"),
    "3": ("3 queries (the paper's)", "#c51b8a", "o"),
    "4": ("4 queries", "#6a51a3", "D"),
    "adaptive": ("adaptive queries", "#8c6d31", "P"),
    "linear3": ("3 queries, linear", "#74a9cf", "X"),
}
COUNTS = {"samples": "samples (trajectories)", "reward_queries": "reward queries", "optimiser_steps": "optimiser steps"}
WIDTH = 8.0  # inches
RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "sdpo_bench",
    "svg.fonttype": "path",
}
TEXT = RC | {  # small files, and a label's dollars are dollars
    "font.size": 10,
    "svg.fonttype": "none",
    "xtick.bottom": False,
    "ytick.left": False,
    "text.parse_math": False,
}

Style = dict[str, dict[str, Any]]  # label -> matplotlib's properties of its line


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn: file `name`, the `heading` it stands under, the `caption` saying how to read it, and
    in `alt` what it shows, computed from the records, for who cannot see it."""

    name: str
    heading: str
    caption: str
    alt: str
    draw: Callable[[], Figure]


def styles(labels: Iterable[str]) -> Style:
    """Line style of each label. Variants ("SDPO (exact)", "SDPO 0.0001") have their method's colour, dotted."""
    labels = sorted({*labels}, key=label_key)
    others = [label for label in labels if label.split(" ")[0] not in KNOWN]
    result = {}
    for index, label in enumerate(labels):
        method = label.split(" ")[0]
        number = others.index(label) if label in others else index
        colour = KNOWN[method][0] if method in KNOWN else SPARE[number % len(SPARE)]
        marker = KNOWN[label][1] if label in KNOWN else MARKERS[number % len(MARKERS)]
        line = "--" if label == START else ":" if label not in KNOWN and method in KNOWN else "-"
        result[label] = {"color": colour, "marker": marker, "linestyle": line}
    return result


def at_steps(steps: Sequence[int]) -> str:
    return f"{joined(steps)} sampling step{'s' * (list(steps) != [1])}"


def _band(values: Values) -> tuple[float, float, float]:
    """Interquartile mean and the ends of the band: lowest and highest run, or the 95 % interval from 5 runs on."""
    point, low, high, n = summary(values)
    scores = list(values.values())
    return (point, min(scores), max(scores)) if n < MIN_RUNS else (point, low, high)


def _methods(group: Group) -> list[str]:
    """The methods with a finished run, ablations left out."""
    return [label for label in group.methods if any(run.label == label for run in group.runs)]


def _bands(group: Group, word: str) -> str:
    """What a line and its band are."""
    labels = [run.label for run in group.runs if run.label in group.methods and run.label != START]
    counts = {labels.count(label) for label in labels}
    parts = [f"{word}: lowest to highest run"] if any(1 < n < MIN_RUNS for n in counts) else []
    if any(n >= MIN_RUNS for n in counts):
        parts.append(f"{word}: 95 % interval" + (f" (from {MIN_RUNS} runs on)" if parts else ""))
    lowest, highest = min(counts, default=0), max(counts, default=0)
    runs = f"n = {lowest}" if lowest == highest else f"n = {lowest} to {highest}"
    return f"Line: interquartile mean over runs, {runs} a method" + "".join(f"; {part}" for part in parts) + "."


def _ends(group: Group, steps: int) -> bool:
    """Whether this number of sampling steps was evaluated before and after training only."""
    f = group.curves[
        (group.curves["steps"] == steps) & (group.curves["reward"] == group.reward) & (group.curves["epoch"] > 0)
    ]
    return len(f) > 0 and int(f.groupby("run")["epoch"].nunique().max()) == 1


def _highest(group: Group, split: str, steps: Iterable[int]) -> str:
    """Which method is highest at the end, at which numbers of sampling steps; estimates."""
    found: dict[str, list[int]] = {}
    for k in steps:
        points = {
            label: summary(values).value
            for label in _methods(group)
            if (values := group.cell(label, group.reward, split, k))
        }
        if len(points) > 1:
            found.setdefault(max(points, key=lambda label: points[label]), []).append(k)
    return (
        "Highest at the end, by the estimates: "
        + "; ".join(f"{label} at {at_steps(ks)}" for label, ks in found.items())
        + "."
        if found
        else "No two methods to compare."
    )


def _panels(
    title: str, handles: list[Line2D], count: int, columns: int, height: float = 2.1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, `height` inches each, below its title and its legend, whose rows fill left to
    right."""
    columns = min(columns, count)
    rows = -(-count // columns)
    legend: list[list[Line2D]] = [[]]
    used = 0.0
    for handle in handles:
        width = 0.66 + 0.083 * len(str(handle.get_label()))  # inches: the line, and about a character's width
        if used + width > WIDTH and legend[-1]:
            legend.append([])
            used = 0.0
        used += width
        legend[-1].append(handle)
    top, bottom = 0.62 + 0.21 * len(legend), 0.55
    total = top + rows * height + (rows - 1) * 0.65 + bottom
    figure = Figure(figsize=(WIDTH, total))
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    figure.suptitle(title, x=0.01, y=1 - 0.05 / total, ha="left", va="top", fontsize=12, fontweight="bold")
    for row, line in enumerate(legend):
        figure.legend(
            handles=line,
            loc="upper left",
            bbox_to_anchor=(0.002, 1 - (0.32 + 0.21 * row) / total),
            ncols=len(line),
            handlelength=2.2,
            columnspacing=1.3,
            borderaxespad=0,
        )
    figure.subplots_adjust(
        left=0.095, right=0.985, top=1 - top / total, bottom=bottom / total, wspace=0.32, hspace=0.65 / height
    )
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, list(axes.flat[:count])


def _legend(labels: Iterable[str], style: Style) -> list[Line2D]:
    return [
        Line2D([], [], label=label + (" (untrained)" if label == START else ""), **style[label]) for label in labels
    ]


def _columns(panels: int) -> int:
    return panels if panels <= 3 else -(-panels // 2)


def _count(value: float, _: object = None) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def _axes_of_curves(axes: list[Axes], titles: Sequence[str], columns: int, y: str, x: str) -> None:
    """Titles and axes of panels by sampling steps, of ours and of the paper's curves."""
    for index, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        axis.set_title(title, loc="left")
        axis.xaxis.set_major_formatter(FuncFormatter(_count))
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_xlim(left=0)
        if index % columns == 0:
            axis.set_ylabel(y)
        if index + columns >= len(titles):
            axis.set_xlabel(x)


def _curve(axis: Axes, group: Group, label: str, steps: int, counter: str, split: str, style: dict[str, Any]) -> None:
    evaluated: dict[int, list[dict[str, Any]]] = {}
    for run in group.runs:
        for row in group.points(run.run_id, group.reward, split, steps) if run.label == label else ():
            evaluated.setdefault(row["epoch"], []).append(row)
    points = []
    start = group.curve_ends(START, split, steps)
    if start and evaluated and 0 not in evaluated:
        # Before its first update every run is the start.
        points.append((0.0, *(next(iter(start.values())),) * 3))
    for _, rows in sorted(evaluated.items()):
        band = _band({row["seed"]: row["value"] for row in rows})
        points.append((float(np.mean([row[counter] for row in rows])), *band))
    if points:
        x, y, low, high = np.array(points).T
        axis.plot(x, y, markevery=[-1], **style)
        axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def reward_curves(group: Group, counter: str, style: Style) -> Figure:
    """Reward against `counter` (one of COUNTS, cumulative), a panel per number of sampling steps, on the prompts that
    were seen in training, or on the only ones that were evaluated.

    Step counts evaluated only before and after training are shown against samples alone, and say so.
    """
    split = shown_split(group.values)
    steps = [k for k in group.steps_evaluated if counter == "samples" or not _ends(group, k)] or group.steps_evaluated
    columns = _columns(len(steps))
    labels = _methods(group)
    title = f"{group.reward} on {split} prompts, trained with K = {group.steps}"
    figure, axes = _panels(title, _legend(labels, style), len(steps), columns)
    for axis, k in zip(axes, steps, strict=True):
        for value in group.curve_ends(START, split, k).values():
            axis.axhline(value, **{**style[START], "linewidth": 1.2})
        for label in labels:
            if label != START:
                _curve(axis, group, label, k, counter, split, style[label])
    titles = [f"{k} steps, start and end" if _ends(group, k) else at_steps([k]) for k in steps]
    _axes_of_curves(axes, titles, columns, group.reward, COUNTS[counter])
    return figure


def paper_curves() -> Figure:
    """The paper's digitised curves, in the layout of `reward_curves`. Errors: `RecordError` if they are not there."""
    curves, style = load_curves(), styles(METHODS)
    steps = sorted(int(k) for k in curves["steps"].unique())
    columns = _columns(len(steps))
    figure, axes = _panels(
        "Published: Aesthetic Score of SD-Turbo (arXiv 2411.11727)", _legend(METHODS, style), len(steps), columns
    )
    for axis, k in zip(axes, steps, strict=True):
        for method in METHODS:
            curve = curves[(curves["steps"] == k) & (curves["method"] == method)].iloc[::2]
            axis.plot(curve["samples"], curve["mean"], markevery=[-1], **style[method])
            axis.fill_between(
                curve["samples"], curve["low"], curve["high"], color=style[method]["color"], alpha=0.15, linewidth=0
            )
    _axes_of_curves(axes, [at_steps([k]) for k in steps], columns, "Aesthetic Score", COUNTS["samples"])
    return figure


def reward_by_steps(group: Group, style: Style) -> Figure:
    """Reward against the number of sampling steps, before (start) and after training, a panel per split."""
    splits, steps, labels = group.splits, group.steps_evaluated, _methods(group)
    figure, axes = _panels(
        f"{group.reward} before and after training with K = {group.steps}",
        _legend(labels, style),
        len(splits),
        len(splits),
        height=2.6,
        sharey=True,
    )
    for axis, split in zip(axes, splits, strict=True):
        for index, label in enumerate(labels):
            cells = {k: values for k in steps if (values := group.cell(label, group.reward, split, k))}
            shift = 1.0 if label == START else 1.025 ** (index - len(labels) / 2)  # so that intervals stay apart
            bands = np.array([_band(values) for values in cells.values()]).reshape(-1, 3)
            x = np.array(list(cells)) * shift
            axis.plot(x, bands[:, 0], **style[label])
            axis.vlines(x, bands[:, 1], bands[:, 2], color=style[label]["color"], linewidth=1.2)
        axis.set_xscale("log", base=2)
        axis.set_xticks(steps, [str(k) for k in steps])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel("sampling steps (log scale)")
        axis.set_title(f"{split} prompts", loc="left")
    axes[0].set_ylabel(group.reward)
    return figure


def changes(group: Group, label: str, reward: str) -> Values:
    """By seed, how much `reward` has changed from the start at the run's end: mean over the numbers of sampling steps
    that both evaluated, on the shown prompts. Empty without a start."""
    split = group.shown_split
    found: dict[int, list[float]] = {}
    for steps in group.steps_of(reward):
        start = group.cell(START, reward, split, steps)
        for seed, value in group.cell(label, reward, split, steps).items() if start else ():
            found.setdefault(seed, []).append(value - next(iter(start.values())))
    return {seed: float(np.mean(values)) for seed, values in found.items()}


def _others(group: Group) -> list[str]:
    """The quantities that were evaluated and not trained, with a change to show."""
    return [
        reward
        for reward in sorted(set(group.values["reward"]) - {group.reward})
        if any(changes(group, label, reward) for label in _methods(group) if label != START)
    ]


def hacking(group: Group, style: Style) -> Figure:
    """Change of each reward that was not trained (and of diversity) against that of the trained one: a small point a
    run, a large one the mean of a method."""
    others, labels = _others(group), [label for label in _methods(group) if label != START]
    columns = min(3, len(others))
    handles = [Line2D([], [], label=label, **style[label] | {"linestyle": ""}) for label in labels]
    figure, axes = _panels(
        f"What else changes when {group.reward} is trained, K = {group.steps}", handles, len(others), columns
    )
    for index, (axis, other) in enumerate(zip(axes, others, strict=True)):
        axis.axhline(0, color="#7f7f7f", linewidth=1)
        axis.axvline(0, color="#7f7f7f", linewidth=1)
        for label in labels:
            x, y = changes(group, label, group.reward), changes(group, label, other)
            points = np.array([(x[seed], y[seed]) for seed in x if seed in y]).reshape(-1, 2)
            look = style[label] | {"linestyle": ""}
            axis.plot(*points.T, markersize=4.5, alpha=0.6, markeredgewidth=0, **look)
            if len(points):
                axis.plot(*points.mean(0)[:, None], markersize=9, markeredgecolor="#ffffff", **look)
        axis.set_title(other, loc="left")
        axis.xaxis.set_major_locator(MaxNLocator(4))
        if index % columns == 0:
            axis.set_ylabel("change")
        if index + columns >= len(others):
            axis.set_xlabel(f"change of {group.reward}")
        axis.yaxis.set_major_locator(MaxNLocator(5))
    figure.subplots_adjust(left=0.115, wspace=0.42)  # for the signs
    return figure


def _probed(group: Group) -> tuple[str, list[RunRecord]]:
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
    return sorted({row["budget"] for run in runs for row in run.dense}, key=list(BUDGETS).index)


def dense_errors(group: Group) -> Figure:
    """Error of the dense rewards that are predicted from a few reward queries, by denoising step and during
    training."""
    label, runs = _probed(group)
    budgets, epochs = _budgets(runs), sorted({row["epoch"] for run in runs for row in run.dense})
    looks: Style = {b: {"color": BUDGETS[b][1], "marker": BUDGETS[b][2]} for b in budgets}
    spread: dict[str, Any] = {"color": "#7f7f7f", "linestyle": "--"}
    handles = [Line2D([], [], label=BUDGETS[b][0], **looks[b]) for b in budgets]
    figure, axes = _panels(
        f"Predicted dense rewards, {label} on {group.reward} with K = {group.steps}",
        [*handles, Line2D([], [], label="spread of the exact rewards", **spread)],
        3,
        3,
    )
    means = {b: [float(_dense(runs, b, "mae", epoch).mean()) for epoch in epochs] for b in budgets}
    for budget in budgets:
        for axis, field in zip(axes, ("mae", "return_corr"), strict=False):
            values = np.ma.masked_invalid(_dense(runs, budget, field, epochs[-1])).mean(0)
            axis.plot(np.arange(group.steps) + 1, np.ma.filled(values, np.nan), **looks[budget])
        axes[2].plot(epochs, means[budget], **looks[budget])
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


def _ablations(group: Group) -> list[tuple[str, str]]:
    """(ablation, its parent) with a pair of runs of one seed."""
    split, steps = shown_split(group.values), group.steps_evaluated
    return [
        (label, method)
        for label in group.labels
        if (method := parent(label))
        and any(
            group.cell(label, group.reward, split, k).keys() & group.cell(method, group.reward, split, k).keys()
            for k in steps
        )
    ]


def forest(group: Group, style: Style) -> Figure:
    """Ablations minus their parents, paired by seed, a panel per number of sampling steps: the mean with its 95 %
    interval, or with fewer than 5 pairs the differences themselves."""
    rows, split, steps = _ablations(group), shown_split(group.values), group.steps_evaluated
    parents = sorted({method for _, method in rows}, key=label_key)
    handles = [
        Line2D([], [], label=f"an ablation of {method}", **style[method] | {"linestyle": ""}) for method in parents
    ]
    title = f"Ablations: {group.reward} minus the method's, K = {group.steps}"
    columns = _columns(len(steps))
    figure, axes = _panels(title, handles, len(steps), columns, 0.35 + 0.2 * len(rows), sharex=True, sharey=True)
    for index, (axis, k) in enumerate(zip(axes, steps, strict=True)):
        axis.axvline(0, color="#7f7f7f", linewidth=1)
        for y, (label, method) in enumerate(rows):
            ours, theirs = (group.cell(name, group.reward, split, k) for name in (label, method))
            pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
            look = style[method] | {"linestyle": ""}
            if len(pairs) < MIN_RUNS:
                axis.plot(pairs, [y] * len(pairs), markersize=3.5, alpha=0.7, **look)
            else:
                mean, low, high, _ = paired_difference(ours, theirs)
                axis.plot(mean, y, **look)
                axis.hlines(y, low, high, color=look["color"], linewidth=1.6)
        axis.set_title(at_steps([k]), loc="left")
        if index + columns >= len(steps):
            axis.set_xlabel("difference")
        axis.tick_params(labelbottom=True)
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.set_yticks(range(len(rows)), [label for label, _ in rows])
        axis.set_ylim(len(rows) - 0.4, -0.6)
    figure.subplots_adjust(left=0.24, wspace=0.12)
    return figure


def _paper_alt() -> str:
    curves = load_curves()
    last = curves.groupby(["steps", "method"])["mean"].last().unstack()
    leaders = {method: [int(k) for k in last.index[last.idxmax(axis=1) == method]] for method in METHODS}
    return (
        "Published curves of SDPO, DDPO, REBEL and D3PO. Highest at their last point: "
        + "; ".join(f"{method} at {at_steps(ks)}" for method, ks in leaders.items() if ks)
        + "."
    )


def _steps_alt(group: Group) -> str:
    split, steps = shown_split(group.values), group.steps_evaluated
    start = [
        f"{next(iter(cell.values())):.3f} at {at_steps([k])}"
        for k in (steps[0], steps[-1])
        if (cell := group.cell(START, group.reward, split, k))
    ]
    before = f" Before training: {joined(start)}." if start else ""
    return (
        f"{group.reward} on {split} prompts against sampling steps, trained with K = {group.steps}.{before} "
        + _highest(group, split, steps)
    )


def _hacking_alt(group: Group) -> str:
    labels = [label for label in _methods(group) if label != START]
    trained = {label: changes(group, label, group.reward) for label in labels}
    texts = []
    for other in _others(group):
        raised = [
            value
            for label in labels
            for seed, value in changes(group, label, other).items()
            if trained[label].get(seed, 0) > 0
        ]
        texts.append(f"{other} in {sum(value < 0 for value in raised)} of {len(raised)}")
    return (
        f"Changes of what was not trained against that of {group.reward}, K = {group.steps}. Of the runs that "
        f"raised {group.reward} these end below the start: {joined(texts)}."
    )


def _dense_alt(group: Group) -> str:
    _, runs = _probed(group)
    last = max(row["epoch"] for run in runs for row in run.dense)
    errors = {BUDGETS[b][0]: _dense(runs, b, "mae", last).mean() for b in _budgets(runs)}
    return (
        f"Predicted dense rewards of {group.reward}, K = {group.steps}. Mean absolute error over the steps at "
        f"epoch {last}, {len(runs)} run{'s' * (len(runs) > 1)}: "
        + joined(f"{error:.4f} with {name}" for name, error in errors.items() if not np.isnan(error))
        + "."
    )


def _forest_alt(group: Group) -> str:
    split, sure = shown_split(group.values), []
    for label, method in _ablations(group):
        for k in group.steps_evaluated:
            ours, theirs = (group.cell(name, group.reward, split, k) for name in (label, method))
            if len(ours.keys() & theirs.keys()) >= MIN_RUNS:
                mean, low, high, _ = paired_difference(ours, theirs)
                if low > 0 or high < 0:
                    sure.append(f"{label} {'above' if mean > 0 else 'below'} at {k}")
    return (
        f"Differences of {len(_ablations(group))} ablations to their methods, {group.reward} on {split} prompts, "
        f"K = {group.steps}. Intervals that exclude 0, at sampling steps: {joined(sure)}."
    )


def drawings(groups: list[Group]) -> list[Drawing]:
    """All figures of a profile, in the order of the report; none of them drawn yet."""
    style = styles({START} | {label for group in groups for label in group.labels})
    found: list[Drawing] = []

    def add(name: str, heading: str, caption: str, alt: str, draw: Callable[[], Figure]) -> None:
        found.append(Drawing(name, heading, caption, alt, draw))

    def curves(group: Group, counter: str, heading: str) -> None:
        split, steps = shown_split(group.values), group.steps_evaluated
        add(
            f"curves_{counter}{group.suffix}",
            heading,
            f"{group.reward} against {COUNTS[counter]}, trained with K = {group.steps}. {_bands(group, 'band')}",
            f"{group.reward} on {split} prompts against {COUNTS[counter]}, trained with K = {group.steps}, a panel for "
            f"each number of sampling steps. {_highest(group, split, steps)}",
            partial(reward_curves, group, counter, style),
        )

    for group in groups[:1]:
        curves(group, "samples", "Reward against samples")
    if any(label in METHODS for group in groups for label in group.labels):
        # An installed package has no results/paper; the report says that it lacks the figure.
        with contextlib.suppress(RecordError):
            add(
                "published",
                "Reward against samples",
                "Published, SD-Turbo, Aesthetic Score: the paper's figure "
                "(arXiv 2411.11727), digitised; not the scale of our rewards. Band: as in its figure.",
                _paper_alt(),
                paper_curves,
            )
    for group in groups[1:]:
        curves(group, "samples", "Reward against samples")
    for group in groups:
        add(
            f"steps{group.suffix}",
            "Reward against sampling steps, before and after training",
            f"{group.reward} before (dashed) and after training with K = {group.steps}. {_bands(group, 'bar')}",
            _steps_alt(group),
            partial(reward_by_steps, group, style),
        )
    for group in groups:
        for counter in ("reward_queries", "optimiser_steps"):
            curves(group, counter, "Sample efficiency: reward queries and optimiser steps")
    for group in groups:
        if _others(group):
            add(
                f"hacking{group.suffix}",
                "Reward hacking: rewards that were not trained, and diversity",
                f"Change from the start, mean over sampling steps; small: a run, large: a method's mean. Below the "
                f"horizontal line it fell while {group.reward} was trained.",
                _hacking_alt(group),
                partial(hacking, group, style),
            )
    for group in groups:
        if _probed(group)[1]:
            add(
                f"dense{group.suffix}",
                "Accuracy of the dense rewards",
                f"Predicted against exact rewards of a fresh batch, by denoising step (1: the noisiest) after the last "
                f"epoch, and by epoch, mean over steps; mean over runs, n = {len(_probed(group)[1])}. Spread: standard "
                "deviation over samples. Correlation: of a pair's difference of returns.",
                _dense_alt(group),
                partial(dense_errors, group),
            )
    for group in groups:
        if _ablations(group):
            add(
                f"ablations{group.suffix}",
                "Ablations",
                "Paired by seed. A point with a bar: mean and 95 % interval; without one, a pair of runs "
                f"(fewer than {MIN_RUNS}).",
                _forest_alt(group),
                partial(forest, group, style),
            )
    return found


@dataclass(frozen=True)
class Picture:
    """A run's grid of pictures, as WebP: a row per number of sampling steps, a column per prompt."""

    title: str
    alt: str
    size: tuple[int, int]
    data: bytes


def pictures(group: Group) -> list[Picture]:
    """The pictures of each method's lowest seed before and after training, the same prompts and noise everywhere; one
    before training that serves all, the start's, once."""
    found: list[Picture] = []
    before: set[bytes] = set()
    for label in _methods(group):
        run = min((run for run in group.runs if run.label == label), key=lambda run: run.config["seed"])
        rows = run.config.get("eval_steps")
        for when in ("before", "after"):
            path = run.folder / f"grid_{when}.png"
            if not path.exists() or (data := path.read_bytes()) in before:
                continue
            title = f"{label}, seed {run.config['seed']}"
            if when == "before":
                title = f"{label}, before training" if before else "before training"
                before.add(data)
            alt = f"{title}, trained on {group.reward} with K = {group.steps}: a column per prompt" + (
                f", rows from above: {at_steps(rows)}" if rows else ""
            )
            try:
                with Image.open(io.BytesIO(data)) as image:
                    buffer = io.BytesIO()
                    image.convert("RGB").save(buffer, "WEBP", quality=80, method=6)
                    found.append(Picture(title, alt, image.size, buffer.getvalue()))
            except Exception as error:  # of damaged pictures Pillow raises much more than OSError
                raise RecordError(f"{path}: not a picture ({error}); {RERUN}") from error
    return found


def _bytes(figure: Figure, suffix: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if suffix == ".svg" else {"Software": None}
    figure.savefig(buffer, format=suffix[1:], dpi=150, metadata=metadata)
    return buffer.getvalue()


def svg(figure: Figure) -> str:
    """The figure as SVG, coordinates to a hundredth of a point, repeated styles as classes, without what only editors
    of it need. Nothing is clipped: axes hold all that is drawn."""
    text = _bytes(figure, ".svg").decode()
    text = re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'(<g) id="[^"]*"| transform="rotate\(-0 [^"]*"|font-family: [^;]*; ', r"\1", text)
    text = re.sub(r' clip-path="[^"]*"|<clipPath.*?</clipPath>', "", text, flags=re.S)
    counts = Counter(re.findall(r' style="([^"]*)"', text))
    classes = [style for style, count in counts.items() if count > 2]
    for number, style in enumerate(classes):
        text = text.replace(f' style="{style}"', f' class="s{number}"')
    rules = "".join(f".s{number}{{{style}}}" for number, style in enumerate(classes))
    text = text.replace(
        "</style>", f" text{{font-family: DejaVu Sans, Verdana, sans-serif}}</style><style>{rules}</style>"
    )

    def rounded(tag: re.Match[str]) -> str:  # coordinates, and not the numbers that texts show
        return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), tag[0])

    text = re.sub(r"<[^>]*>", rounded, text)
    text = re.sub(r">\s+<", "><", re.sub(r"\s*\n\s*", " ", text)).strip() + "\n"
    while (flat := re.sub(r"<g>((?:(?!</?g[ >]).)*)</g>", r"\1", text)) != text:
        text = flat
    return text


def figure_files(figures: Iterable[Drawing]) -> dict[str, bytes]:
    """`figures/*.svg`, by name."""
    with matplotlib.rc_context(TEXT), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's font may have it: text stays text
        return {f"figures/{drawing.name}.svg": _drawn(drawing).encode() for drawing in figures}


def _drawn(drawing: Drawing) -> str:
    # Titles make room for the exponent of a vertical axis. To find out takes a fifth of the time, and few have one.
    with matplotlib.rc_context({"axes.titley": 1.0}):
        figure = drawing.draw()
        text = svg(figure)
    exponents = [axis.yaxis.get_offset_text().get_text() for axis in figure.axes]
    return svg(drawing.draw()) if any(exponents) else text
