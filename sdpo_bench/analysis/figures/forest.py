"""A forest plot of the ablations."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sdpo_bench.analysis.comparisons import Group, label_key, parent
from sdpo_bench.analysis.figures.curves import draw_panels
from sdpo_bench.analysis.figures.style import Style, at_steps
from sdpo_bench.analysis.statistics import paired_difference
from sdpo_bench.analysis.tables.base import MIN_RUNS, joined


def ablations_drawn(group: Group) -> list[tuple[str, str]]:
    """(ablation, its parent) with a pair of runs of one seed."""
    split, steps = group.shown_split, group.steps_evaluated
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
    rows, split, steps = ablations_drawn(group), group.shown_split, group.steps_evaluated
    parents = sorted({method for _, method in rows}, key=label_key)
    handles = [
        Line2D([], [], label=f"an ablation of {method}", **style[method] | {"linestyle": ""}) for method in parents
    ]
    title = f"Ablations: {group.reward} minus the method's, K = {group.steps}"
    columns = min(2, len(steps))
    figure, axes = draw_panels(title, handles, len(steps), columns, 0.35 + 0.2 * len(rows), sharex=True, sharey=True)
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
        axis.tick_params(labelbottom=True, labelleft=True)
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.set_yticks(range(len(rows)), [label for label, _ in rows])
        axis.set_ylim(len(rows) - 0.4, -0.6)
    figure.subplots_adjust(left=0.25, wspace=1.12)  # for the labels, at each panel
    return figure


def forest_alt(group: Group) -> str:
    split, sure = group.shown_split, []
    for label, method in ablations_drawn(group):
        for k in group.steps_evaluated:
            ours, theirs = (group.cell(name, group.reward, split, k) for name in (label, method))
            if len(ours.keys() & theirs.keys()) >= MIN_RUNS:
                mean, low, high, _ = paired_difference(ours, theirs)
                if low > 0 or high < 0:
                    sure.append(f"{label} {'above' if mean > 0 else 'below'} at {k}")
    return (
        f"Differences of {len(ablations_drawn(group))} ablations to their methods, {group.reward} on {split} prompts, "
        f"K = {group.steps}. Intervals that exclude 0, at sampling steps: {joined(sure)}."
    )
