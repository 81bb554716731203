"""All figures and pictures of a profile."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from sdpo_bench.analysis.comparisons import START, Group, shown_split
from sdpo_bench.analysis.figures.curves import (
    band_words,
    highest_words,
    methods_drawn,
    paper_alt,
    paper_curves,
    reward_by_steps,
    reward_curves,
    steps_alt,
)
from sdpo_bench.analysis.figures.dense import dense_alt, dense_errors, probed_runs
from sdpo_bench.analysis.figures.forest import ablations_drawn, forest, forest_alt
from sdpo_bench.analysis.figures.hacking import hacking, hacking_alt, other_quantities
from sdpo_bench.analysis.figures.style import COUNTS, TEXT, Drawing, at_steps, styles, svg
from sdpo_bench.analysis.paper import METHODS
from sdpo_bench.analysis.tables.base import MIN_RUNS
from sdpo_bench.records.files import RecordError
from sdpo_bench.records.pictures import grid


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
            f"{group.reward} against {COUNTS[counter]}, trained with K = {group.steps}. {band_words(group, 'band')}",
            f"{group.reward} on {split} prompts against {COUNTS[counter]}, trained with K = {group.steps}, a panel for "
            f"each number of sampling steps. {highest_words(group, split, steps)}",
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
                paper_alt(),
                paper_curves,
            )
    for group in groups[1:]:
        curves(group, "samples", "Reward against samples")
    for group in groups:
        add(
            f"steps{group.suffix}",
            "Reward against sampling steps, before and after training",
            f"{group.reward} before (dashed) and after training with K = {group.steps}. {band_words(group, 'bar')}",
            steps_alt(group),
            partial(reward_by_steps, group, style),
        )
    for group in groups:
        for counter in ("reward_queries", "optimiser_steps"):
            curves(group, counter, "Sample efficiency: reward queries and optimiser steps")
    for group in groups:
        if other_quantities(group):
            add(
                f"hacking{group.suffix}",
                "Reward hacking: rewards that were not trained, and diversity",
                f"Change from the start, mean over sampling steps; small: a run, large: a method's mean. Below the "
                f"horizontal line it fell while {group.reward} was trained.",
                hacking_alt(group),
                partial(hacking, group, style),
            )
    for group in groups:
        if probed_runs(group)[1]:
            add(
                f"dense{group.suffix}",
                "Accuracy of the dense rewards",
                f"Predicted against exact rewards of a fresh batch, by denoising step (1: the noisiest) after the last "
                f"epoch, and by epoch, mean over steps; mean over runs, n = {len(probed_runs(group)[1])}. Spread: "
                "standard deviation over samples. Correlation: of a pair's difference of returns.",
                dense_alt(group),
                partial(dense_errors, group),
            )
    for group in groups:
        if ablations_drawn(group):
            add(
                f"ablations{group.suffix}",
                "Ablations",
                "Paired by seed. A point with a bar: mean and 95 % interval; without one, a pair of runs "
                f"(fewer than {MIN_RUNS}).",
                forest_alt(group),
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
    for label in methods_drawn(group):
        run = min((run for run in group.runs if run.label == label), key=lambda run: run.config["seed"])
        rows = run.config.get("eval_steps")
        for when in ("before", "after"):
            data = grid(run, when)
            if data is None or data in before:
                continue
            title = f"{label}, seed {run.config['seed']}"
            if when == "before":
                title = f"{label}, before training" if before else "before training"
                before.add(data)
            alt = f"{title}, trained on {group.reward} with K = {group.steps}: a column per prompt" + (
                f", rows from above: {at_steps(rows)}" if rows else ""
            )
            with Image.open(io.BytesIO(data)) as image:
                found.append(Picture(title, alt, image.size, data))
    return found


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
