"""Gains of the methods against the learning rate that they share, drawn over all profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from sdpo_bench.analysis.comparisons import label_key
from sdpo_bench.analysis.figures.curves import draw_panels
from sdpo_bench.analysis.figures.style import Drawing, Style, band_of, legend_handles, styles
from sdpo_bench.analysis.paper import METHODS
from sdpo_bench.analysis.rates import Rated
from sdpo_bench.analysis.tables.base import MIN_RUNS, joined
from sdpo_bench.analysis.tables.protocol import RATED

NAME, COLUMNS = "rates", 3
HELD: Mapping[str, Any] = {"color": "#e69f00", "alpha": 0.25, "linewidth": 0}
SUNK: Mapping[str, Any] = {"color": "#555555", "marker": "v", "linestyle": "", "markersize": 7, "fillstyle": "none"}
UNFINISHED: Mapping[str, Any] = {"color": "#555555", "marker": "x", "linestyle": "", "markersize": 6}
PAD = 1.5  # factor between the outer rates and the edges of a panel
WIDE = 1.2  # factor between a rate and the edges of its mark


def rate_drawing(panels: Sequence[Rated]) -> Drawing:
    """The figure of these panels."""
    return Drawing(
        NAME,
        "Gain against the shared learning rate",
        _caption(),
        _alt(panels),
        partial(rate_curves, panels, styles({name for panel in panels for name in panel.names})),
    )


def rate_curves(panels: Sequence[Rated], style: Style) -> Figure:
    """A panel for each trained reward, K and length: gain over the pretrained model against the learning rate, a line a
    method. Marked: rates where the paper's order holds, rates with an unfinished run."""
    labels = sorted(style, key=label_key)
    handles: list[Any] = legend_handles(labels, style)
    if any(_holds(panel, rate) for panel in panels for rate in panel.rates):
        handles.append(Patch(label="the paper's order", **HELD))
    if any(panel.sunk for panel in panels):
        handles.append(Line2D([], [], label="further below", **SUNK))
    if any(panel.unfinished for panel in panels):
        handles.append(Line2D([], [], label="unfinished run", **UNFINISHED))
    figure, axes = draw_panels(
        "Gain over the pretrained model by shared learning rate", handles, len(panels), COLUMNS, height=2.1, head=0.3
    )
    for index, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        _draw(axis, panel, style)
        alike = [rate for other in panels if other.setting.finetune == panel.setting.finetune for rate in other.rates]
        axis.set_xlim(min(alike) / PAD, max(alike) * PAD)
        if index % COLUMNS == 0:
            axis.set_ylabel("gain")
        if index + COLUMNS >= len(panels):
            axis.set_xlabel("learning rate (log scale)")
    return figure


def _draw(axis: Axes, panel: Rated, style: Style) -> None:
    setting = panel.setting
    axis.axhline(0, color="#7f7f7f", linewidth=1)
    axis.set_xscale("log")
    for name in sorted(panel.names, key=label_key):
        rates = panel.run_at(name)
        bands = np.array([band_of(panel.mean(name, rate)) for rate in rates]).clip(min=panel.floor)
        axis.plot(rates, bands[:, 0], **style[name])
        axis.vlines(rates, bands[:, 1], bands[:, 2], color=style[name]["color"], linewidth=1.2)
    for name, rate in panel.sunk:
        axis.plot(rate, panel.floor, **{**SUNK, "color": style[name]["color"]})
    top: dict[str, Any] = {"transform": axis.get_xaxis_transform(), "ha": "center", "fontsize": 7.5}  # of the counts
    for rate in panel.rates:
        if _holds(panel, rate):
            axis.axvspan(rate / WIDE, rate * WIDE, zorder=0, **HELD)
        if order := panel.order(rate):
            axis.text(rate, 1.01, "{} of {}".format(*order), **top)
    lacking = sorted({rate for _, rate in panel.unfinished})
    axis.plot(lacking, [0.05] * len(lacking), transform=axis.get_xaxis_transform(), **UNFINISHED)
    axis.set_xticks(panel.rates, list(map(rate_text, panel.rates)), fontsize=8.5)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.set_title(f"{setting.reward}, K = {setting.steps}", loc="left", y=1.155)
    axis.text(0, 1.085, _length(panel), transform=axis.transAxes, fontsize=8)


def _length(panel: Rated) -> str:
    """The rest of what a panel is of, such as "7,296 samples, n = 5"."""
    setting = panel.setting
    further = [
        f"{setting.split} prompts" * (setting.split != "seen"),
        setting.finetune * (setting.finetune != "full"),
        setting.prompts,
    ]
    return ", ".join([f"{setting.samples:,} samples", f"n = {panel.seeds}", *filter(None, further)])


def rate_text(rate: float) -> str:
    """1e-5, 2.5e-5."""
    return np.format_float_scientific(rate, trim="-", exp_digits=1)


def _holds(panel: Rated, rate: float) -> bool:
    """Whether the paper's order holds at every number of sampling steps, by the estimates."""
    found = panel.order(rate)
    return found is not None and found[0] == found[1]


def _caption() -> str:
    """How to read the figure."""
    return (
        "A point is the interquartile mean over n seeds of the mean over all numbers of sampling steps, minus the "
        "pretrained model's, on prompts seen in training unless others are named. Bar: "
        f"95 % interval from {MIN_RUNS} seeds on, else lowest to highest run; one seed has none and decides nothing. "
        f"Above a rate: at how many numbers of sampling steps {' > '.join(METHODS)} holds by the estimates; coloured "
        "where it holds at all of them. Dotted: a method with another's number of optimiser steps; SDPO, "
        f"{joined(RATED[list(RATED)[1]][1:])} take one for each denoising step, the others one for each batch of "
        "trajectories. Triangle: a gain further below. Cross: a run without an end, which diverged or was not made "
        "yet. The list names both."
    )


def panel_text(panel: Rated) -> str:
    """The runs that a panel shows, with its gains that lie below it and the methods that it lacks."""
    texts = [f"{panel.setting.reward}, K = {panel.setting.steps}, {_length(panel)}", panel.setting.place]
    below = [f"{name} {value:+.3f} at {rate_text(rate)}" for (name, rate), value in panel.sunk.items()]
    lacking = [
        f"{', '.join(name for name, at in panel.unfinished if at == rate)} at {rate_text(rate)}"
        for rate in sorted({rate for _, rate in panel.unfinished})
    ]
    texts += [f"below the panel: {', '.join(below)}"] if below else []
    return "; ".join(texts + ([f"unfinished runs: {joined(lacking)}"] if lacking else []))


def _alt(panels: Sequence[Rated]) -> str:
    """Where the paper's order holds."""
    held = [
        f"{panel.setting.reward}, K = {panel.setting.steps}, {_length(panel)}, at {joined(rates)}"
        for panel in panels
        if (rates := [rate_text(rate) for rate in panel.rates if _holds(panel, rate)])
    ]
    return (
        f"{len(panels)} panels of gain against learning rate. The paper's whole order holds at every number of "
        f"sampling steps, by the estimates, {f'on {joined(held)}' if held else 'nowhere'}."
    )
