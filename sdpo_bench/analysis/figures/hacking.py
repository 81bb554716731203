"""Changes of what was not trained, drawn."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sdpo_bench.analysis.comparisons import PRETRAINED, Group, Values
from sdpo_bench.analysis.figures.curves import draw_panels, methods_drawn
from sdpo_bench.analysis.figures.style import Style
from sdpo_bench.analysis.statistics import mean_interval
from sdpo_bench.analysis.tables.base import MIN_RUNS, joined


def changes(group: Group, label: str, reward: str) -> Values:
    """By seed, how much `reward` has changed from the pretrained model at the run's end: mean over the numbers of
    sampling steps that both evaluated, on the shown prompts. Empty without that model's run."""
    split = group.shown_split
    found: dict[int, list[float]] = {}
    for steps in group.steps_of(reward):
        start = group.cell(PRETRAINED, reward, split, steps)
        for seed, value in group.cell(label, reward, split, steps).items() if start else ():
            found.setdefault(seed, []).append(value - next(iter(start.values())))
    return {seed: float(np.mean(values)) for seed, values in found.items()}


FIRST = ("alignment_heldout", "kid_start", "diversity", "diversity_heldout", "vendi", "vendi_heldout")  # then rewards


def _place(reward: str) -> tuple[int, str]:
    return (FIRST.index(reward) if reward in FIRST else len(FIRST), reward)


def other_quantities(group: Group) -> list[str]:
    """The quantities that were evaluated and not trained, with a change to show."""
    return [
        reward
        for reward in sorted(set(group.values["reward"]) - {group.reward}, key=_place)
        if any(changes(group, label, reward) for label in methods_drawn(group) if label != PRETRAINED)
    ]


def hacking(group: Group, style: Style) -> Figure:
    """Change of each quantity that was not trained against that of the trained reward: a small point a run, a large one
    the mean of a method, with its intervals."""
    others, labels = other_quantities(group), [label for label in methods_drawn(group) if label != PRETRAINED]
    columns = min(3, len(others))
    handles = [Line2D([], [], label=label, **style[label] | {"linestyle": ""}) for label in labels]
    figure, axes = draw_panels(
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
                (x_mean, x_low, x_high, _), (y_mean, y_low, y_high, _) = map(mean_interval, points.T)
                if len(points) >= MIN_RUNS:
                    axis.plot([x_low, x_high], [y_mean] * 2, color=look["color"], linewidth=1.2)
                    axis.plot([x_mean] * 2, [y_low, y_high], color=look["color"], linewidth=1.2)
                axis.plot([x_mean], [y_mean], markersize=9, markeredgecolor="#ffffff", **look)
        axis.set_title(other, loc="left")
        axis.xaxis.set_major_locator(MaxNLocator(4))
        if index % columns == 0:
            axis.set_ylabel("change")
        if index + columns >= len(others):
            axis.set_xlabel(f"change of {group.reward}")
        axis.yaxis.set_major_locator(MaxNLocator(5))
    figure.subplots_adjust(left=0.115, wspace=0.42)  # for the signs
    return figure


def hacking_alt(group: Group) -> str:
    labels = [label for label in methods_drawn(group) if label != PRETRAINED]
    trained = {label: changes(group, label, group.reward) for label in labels}
    texts = []
    for other in other_quantities(group):
        raised = [
            value
            for label in labels
            for seed, value in changes(group, label, other).items()
            if trained[label].get(seed, 0) > 0
        ]
        texts.append(f"{other} in {sum(value < 0 for value in raised)} of {len(raised)}")
    return (
        f"Changes of what was not trained against that of {group.reward}, K = {group.steps}. Of the runs that "
        f"raised {group.reward} these end below the pretrained model: {joined(texts)}."
    )
