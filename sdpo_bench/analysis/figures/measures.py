"""The trained reward and what else was evaluated on the way, over training, drawn."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sdpo_bench.analysis.comparisons import PRETRAINED, Group
from sdpo_bench.analysis.figures.curves import axes_of_curves, draw_curves, draw_panels, methods_drawn
from sdpo_bench.analysis.figures.style import COUNTS, Style, at_steps, figure_columns, legend_handles
from sdpo_bench.analysis.tables.base import joined, summary

SIDE_BY_SIDE = 4  # panels


def measured(group: Group) -> dict[str, list[int]]:
    """The quantities that were evaluated during training, the trained reward first, with the numbers of sampling steps
    at which all of them were; empty without a quantity that was not trained."""
    others = sorted(set(group.values["reward"]) - {group.reward})
    steps = {name: found for name in (group.reward, *others) if (found := group.on_the_way(name))}
    common = sorted(set.intersection(*map(set, steps.values()))) if len(steps) > 1 and group.reward in steps else []
    return dict.fromkeys(steps, common) if common else {}


def measure_curves(group: Group, style: Style) -> Figure:
    """Curves against samples: for each quantity of `measured` a panel for each number of sampling steps, the same
    number in one column."""
    panels = [(name, k) for name, steps in measured(group).items() for k in steps]
    count = len({k for _, k in panels})
    columns = count if count <= SIDE_BY_SIDE else figure_columns(count)
    title = f"Trained and not trained, on {group.shown_split} prompts, trained on {group.reward} with K = {group.steps}"
    figure, axes = draw_panels(title, legend_handles(methods_drawn(group), style), len(panels), columns, height=1.7)
    for axis, (name, k) in zip(axes, panels, strict=True):
        draw_curves(axis, group, name, k, "samples", style)
    axes_of_curves(axes, [at_steps([k]) for _, k in panels], columns, "", COUNTS["samples"])
    for axis, (name, _) in list(zip(axes, panels, strict=True))[::columns]:
        axis.set_ylabel(name)
    for axis in axes:
        axis.yaxis.set_major_locator(MaxNLocator(4))
        axis.xaxis.set_major_locator(MaxNLocator(3))
    return figure


def measures_alt(group: Group) -> str:
    """Which methods end above the pretrained model in each quantity, and at how many numbers of sampling steps."""
    texts = []
    for name, steps in measured(group).items():
        counts: dict[int, list[str]] = {}
        for label in methods_drawn(group):
            above = [
                summary(end).value > next(iter(start.values()))
                for k in steps
                if (start := group.cell(PRETRAINED, name, group.shown_split, k))
                and (end := group.cell(label, name, group.shown_split, k))
            ]
            if label != PRETRAINED and above:
                counts.setdefault(sum(above), []).append(label)
        if counts:
            found = "; ".join(f"{joined(labels)} at {n} of {len(steps)}" for n, labels in sorted(counts.items()))
            texts.append(f"{name}: {found}.")
    return (
        f"Trained on {group.reward}, K = {group.steps}: at how many numbers of sampling steps each quantity ends above "
        f"the pretrained model's value, by the estimates. {' '.join(texts)}"
    )
