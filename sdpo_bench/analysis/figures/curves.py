"""Reward over samples and over sampling steps, drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from sdpo_bench.analysis.comparisons import PRETRAINED, Group
from sdpo_bench.analysis.figures.style import (
    COUNTS,
    WIDTH,
    Style,
    at_steps,
    band_of,
    figure_columns,
    legend_handles,
    styles,
)
from sdpo_bench.analysis.paper import METHODS, load_curves
from sdpo_bench.analysis.tables.base import MIN_RUNS, joined, summary
from sdpo_bench.records.frames import MeanRow

REAL_PICTURES = {("embedded", "alignment"): 0.7894}
"""By model and reward, the mean of pictures that its training data is made of, a little augmented: results/testbed.
A run above it makes pictures that the scorer prefers to the real ones."""


def methods_drawn(group: Group) -> list[str]:
    """The methods with a finished run, ablations left out."""
    return [label for label in group.methods if any(run.label == label for run in group.runs)]


def band_words(group: Group, word: str) -> str:
    """The meaning of a line and its band, in words."""
    labels = [run.label for run in group.runs if run.label in group.methods and run.label != PRETRAINED]
    counts = {labels.count(label) for label in labels}
    parts = [f"{word}: lowest to highest run"] if any(1 < n < MIN_RUNS for n in counts) else []
    if any(n >= MIN_RUNS for n in counts):
        parts.append(f"{word}: 95 % interval" + (f" (from {MIN_RUNS} runs on)" if parts else ""))
    lowest, highest = min(counts, default=0), max(counts, default=0)
    runs = f"n = {lowest}" if lowest == highest else f"n = {lowest} to {highest}"
    return f"Line: interquartile mean over runs, {runs} a method" + "".join(f"; {part}" for part in parts) + "."


def highest_words(group: Group, split: str, steps: Iterable[int]) -> str:
    """Which method is highest at the end, at which numbers of sampling steps; estimates."""
    found: dict[str, list[int]] = {}
    for k in steps:
        points = {
            label: summary(values).value
            for label in methods_drawn(group)
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


def draw_panels(
    title: str,
    handles: Sequence[Line2D | Patch],
    count: int,
    columns: int,
    height: float = 2.1,
    head: float = 0.0,
    **options: Any,
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, `height` inches each with `head` more above for what stands over a title, below its
    title and its legend, whose rows fill left to right."""
    columns = min(columns, count)
    rows = -(-count // columns)
    legend: list[list[Line2D | Patch]] = [[]]
    used = 0.0
    for handle in handles:
        width = 0.66 + 0.083 * len(str(handle.get_label()))  # inches: the line, and about a character's width
        if used + width > WIDTH and legend[-1]:
            legend.append([])
            used = 0.0
        used += width
        legend[-1].append(handle)
    top, bottom, gap = 0.62 + 0.21 * len(legend) + head, 0.55, 0.65 + head
    total = top + rows * height + (rows - 1) * gap + bottom
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
        left=0.095,
        right=0.985 if columns > 1 else 0.6,
        top=1 - top / total,
        bottom=bottom / total,
        wspace=0.32,
        hspace=gap / height,
    )
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, list(axes.flat[:count])


def _count(value: float, _: object = None) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def axes_of_curves(axes: list[Axes], titles: Sequence[str], columns: int, y: str, x: str) -> None:
    """Titles and axes of panels of curves."""
    for index, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        axis.set_title(title, loc="left")
        axis.xaxis.set_major_formatter(FuncFormatter(_count))
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_xlim(left=0)
        if index % columns == 0:
            axis.set_ylabel(y)
        if index + columns >= len(titles):
            axis.set_xlabel(x)


def draw_curves(axis: Axes, group: Group, reward: str, steps: int, counter: str, style: Style) -> None:
    """The methods' curves of a reward at a number of sampling steps, on the shown prompts, and the pretrained model's
    value."""
    for value in group.curve_ends(PRETRAINED, group.shown_split, steps, reward).values():
        axis.axhline(value, **{**style[PRETRAINED], "linewidth": 1.2})
    for label in methods_drawn(group):
        if label != PRETRAINED:
            _curve(axis, group, label, reward, steps, counter, style[label])


def _curve(axis: Axes, group: Group, label: str, reward: str, steps: int, counter: str, style: dict[str, Any]) -> None:
    split = group.shown_split
    evaluated: dict[int, list[MeanRow]] = {}
    for run in group.runs:
        for point in group.points(run.run_id, reward, split, steps) if run.label == label else ():
            evaluated.setdefault(point.epoch, []).append(point)
    points = []
    start = group.curve_ends(PRETRAINED, split, steps, reward)
    if start and evaluated and 0 not in evaluated:
        # Before its first update every run is the pretrained model.
        points.append((0.0, *(next(iter(start.values())),) * 3))
    for _, found in sorted(evaluated.items()):
        band = band_of({point.seed: point.value for point in found})
        points.append((float(np.mean([getattr(point, counter) for point in found])), *band))
    if points:
        x, y, low, high = np.array(points).T
        axis.plot(x, y, markevery=[-1], **style)
        axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _mark_real_pictures(axis: Axes, group: Group) -> None:
    """A line at the reward of real pictures, where the axis reaches it or would with a quarter more height."""
    value = REAL_PICTURES.get((group.model, group.reward))
    low, high = axis.get_ylim()
    if value is not None and low < value < high + (high - low) / 4:
        axis.axhline(value, color="0.5", linestyle=":", linewidth=1.2)
        place: dict[str, Any] = {"xycoords": axis.get_yaxis_transform(), "textcoords": "offset points", "va": "top"}
        axis.annotate("real pictures", (0.02, value), (0, -2), fontsize=7, **place)


def reward_curves(group: Group, counter: str, style: Style) -> Figure:
    """Reward against `counter` (one of COUNTS, cumulative), a panel per number of sampling steps, on the prompts that
    were seen in training, or on the only ones that were evaluated.

    Step counts evaluated only before and after training are shown against samples alone, and say so.
    """
    split = group.shown_split
    steps = [
        k for k in group.steps_evaluated if counter == "samples" or not group.ends_only(k)
    ] or group.steps_evaluated
    columns = figure_columns(len(steps))
    title = f"{group.reward} on {split} prompts, trained with K = {group.steps}"
    figure, axes = draw_panels(title, legend_handles(methods_drawn(group), style), len(steps), columns)
    for axis, k in zip(axes, steps, strict=True):
        draw_curves(axis, group, group.reward, k, counter, style)
        _mark_real_pictures(axis, group)
    titles = [f"{k} steps, start and end" if group.ends_only(k) else at_steps([k]) for k in steps]
    axes_of_curves(axes, titles, columns, group.reward, COUNTS[counter])
    return figure


def paper_curves() -> Figure:
    """The paper's digitised curves, in the layout of `reward_curves`. Errors: `RecordError` if they are not there."""
    curves, style = load_curves(), styles(METHODS)
    steps = sorted(int(k) for k in curves["steps"].unique())
    columns = figure_columns(len(steps))
    figure, axes = draw_panels(
        "Published: Aesthetic Score of SD-Turbo (arXiv 2411.11727)", legend_handles(METHODS, style), len(steps), columns
    )
    for axis, k in zip(axes, steps, strict=True):
        for method in METHODS:
            curve = curves[(curves["steps"] == k) & (curves["method"] == method)].iloc[::2]
            axis.plot(curve["samples"], curve["mean"], markevery=[-1], **style[method])
            axis.fill_between(
                curve["samples"], curve["low"], curve["high"], color=style[method]["color"], alpha=0.15, linewidth=0
            )
    axes_of_curves(axes, [at_steps([k]) for k in steps], columns, "Aesthetic Score", COUNTS["samples"])
    return figure


def reward_by_steps(group: Group, style: Style) -> Figure:
    """Reward against the number of sampling steps, before (start) and after training, a panel per split."""
    splits, steps, labels = group.splits, group.steps_evaluated, methods_drawn(group)
    figure, axes = draw_panels(
        f"{group.reward} before and after training with K = {group.steps}",
        legend_handles(labels, style),
        len(splits),
        len(splits),
        height=2.6,
        sharey=True,
    )
    for axis, split in zip(axes, splits, strict=True):
        for index, label in enumerate(labels):
            cells = {k: values for k in steps if (values := group.cell(label, group.reward, split, k))}
            shift = 1.0 if label == PRETRAINED else 1.025 ** (index - len(labels) / 2)  # so that intervals stay apart
            bands = np.array([band_of(values) for values in cells.values()]).reshape(-1, 3)
            x = np.array(list(cells)) * shift
            axis.plot(x, bands[:, 0], **style[label])
            axis.vlines(x, bands[:, 1], bands[:, 2], color=style[label]["color"], linewidth=1.2)
        axis.set_xscale("log", base=2)
        axis.set_xticks(steps, [str(k) for k in steps])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel("sampling steps (log scale)")
        axis.tick_params(labelleft=True)
        axis.set_title(f"{split} prompts", loc="left")
    for axis in axes:  # they share their height
        _mark_real_pictures(axis, group)
    axes[0].set_ylabel(group.reward)
    return figure


def paper_alt() -> str:
    curves = load_curves()
    last = curves.groupby(["steps", "method"])["mean"].last().unstack()
    leaders = {method: [int(k) for k in last.index[last.idxmax(axis=1) == method]] for method in METHODS}
    return (
        "Published curves of SDPO, DDPO, REBEL and D3PO. Highest at their last point: "
        + "; ".join(f"{method} at {at_steps(ks)}" for method, ks in leaders.items() if ks)
        + "."
    )


def steps_alt(group: Group) -> str:
    split, steps = group.shown_split, group.steps_evaluated
    start = [
        f"{next(iter(cell.values())):.3f} at {at_steps([k])}"
        for k in (steps[0], steps[-1])
        if (cell := group.cell(PRETRAINED, group.reward, split, k))
    ]
    before = f" Before training: {joined(start)}." if start else ""
    return (
        f"{group.reward} on {split} prompts against sampling steps, trained with K = {group.steps}.{before} "
        + highest_words(group, split, steps)
    )
