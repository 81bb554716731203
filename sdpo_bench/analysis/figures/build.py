"""All figures and pictures of a profile."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import matplotlib
from PIL import Image

from sdpo_bench.analysis.comparisons import PRETRAINED, Group, collector_paused
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
from sdpo_bench.analysis.figures.measures import measure_curves, measured, measures_alt
from sdpo_bench.analysis.figures.style import COUNTS, TEXT, Drawing, Style, at_steps, styles, svg
from sdpo_bench.analysis.paper import METHODS
from sdpo_bench.analysis.tables.base import ABOUT, MIN_RUNS, decimals_of, joined
from sdpo_bench.prompts import pictured, splits
from sdpo_bench.records.files import RecordError
from sdpo_bench.records.pictures import grid

REWARD, EFFICIENCY = "Reward against samples", "Sample efficiency: reward queries and optimiser steps"  # headings


PUBLISHED = "published"  # name of the figure of the paper's curves
MEASURES, HACKING = "measures", "hacking"  # beginnings of names


def drawings(groups: list[Group]) -> list[Drawing]:
    """All figures of a profile, in the order of the report; none of them drawn yet."""
    style = styles({PRETRAINED} | {label for group in groups for label in group.labels})
    ours = [_curves(group, "samples", REWARD, style) for group in groups]
    found = [
        *ours[:1],
        _published(groups),
        *ours[1:],
        *(_by_steps(group, style) for group in groups),
        *(
            _curves(group, counter, EFFICIENCY, style)
            for group in groups
            for counter in ("reward_queries", "optimiser_steps")
        ),
        *(_measures(group, style) for group in groups),
        *(_hacking(group, style) for group in groups),
        *(_dense(group) for group in groups),
        *(_ablations(group, style) for group in groups),
    ]
    return [drawing for drawing in found if drawing is not None]


def _place(group: Group) -> dict[str, str]:
    return {"reward": group.reward, "k": str(group.steps)}


def _curves(group: Group, counter: str, heading: str, style: Style) -> Drawing:
    """Reward against a counter of `COUNTS`."""
    split, steps = group.shown_split, group.steps_evaluated
    return Drawing(
        f"curves_{counter}{group.suffix}",
        heading,
        f"{group.reward} against {COUNTS[counter]}, trained with K = {group.steps}. {band_words(group, 'band')}",
        f"{group.reward} on {split} prompts against {COUNTS[counter]}, trained with K = {group.steps}, a panel for "
        f"each number of sampling steps. {highest_words(group, split, steps)}",
        partial(reward_curves, group, counter, style),
        _place(group),
    )


def _published(groups: list[Group]) -> Drawing | None:
    """The paper's curves, beside those of its methods; None without these, or in an installed package, which has no
    results/paper (the report says that it lacks the figure)."""
    if any(label in METHODS for group in groups for label in group.labels):
        with contextlib.suppress(RecordError):
            return Drawing(
                PUBLISHED,
                REWARD,
                "Published, SD-Turbo, Aesthetic Score: the paper's figure "
                "(arXiv 2411.11727), digitised; not the scale of our rewards. Band: as in its figure.",
                paper_alt(),
                paper_curves,
            )
    return None


def _by_steps(group: Group, style: Style) -> Drawing:
    """Reward against the number of sampling steps."""
    return Drawing(
        f"steps{group.suffix}",
        "Reward against sampling steps, before and after training",
        f"{group.reward} before (dashed) and after training with K = {group.steps}. {band_words(group, 'bar')}",
        steps_alt(group),
        partial(reward_by_steps, group, style),
        _place(group),
    )


def _measures(group: Group, style: Style) -> Drawing | None:
    """Curves of all that was evaluated during training; None where that is the trained reward alone."""
    found = measured(group)
    if not found:
        return None
    return Drawing(
        f"{MEASURES}{group.suffix}",
        "Reward hacking: over training",
        f"{joined(found)} against {COUNTS['samples']}, trained on {group.reward} with K = {group.steps}; what else was "
        f"measured has its values at the end alone. {band_words(group, 'band')}",
        measures_alt(group),
        partial(measure_curves, group, style),
        _place(group),
    )


def _hacking(group: Group, style: Style) -> Drawing | None:
    """Changes of what was not trained; None where nothing else was evaluated."""
    if not other_quantities(group):
        return None
    return Drawing(
        f"{HACKING}{group.suffix}",
        "Reward hacking: at the end",
        f"Change of what was not trained against that of {group.reward}, from the pretrained model, mean over sampling "
        f"steps; small: a run, large: a method's mean, lines: its 95 % intervals (from {MIN_RUNS} runs on). "
        f"Below the horizontal line it fell.{_about(other_quantities(group))}",
        hacking_alt(group),
        partial(hacking, group, style),
        _place(group),
    )


def _about(rewards: Iterable[str]) -> str:
    """The meaning of the quantities that are no rewards."""
    return "".join(f" {ABOUT[name]}" for name in rewards if name in ABOUT)


def _dense(group: Group) -> Drawing | None:
    """Errors of dense rewards; None where no run measured them."""
    _, probed = probed_runs(group)
    if not probed:
        return None
    return Drawing(
        f"dense{group.suffix}",
        "Accuracy of the dense rewards",
        f"Predicted against exact rewards of a fresh batch, by denoising step (1: the noisiest) after the last "
        f"epoch, and by epoch, mean over steps; mean over runs, n = {len(probed)}. Spread: "
        "standard deviation over samples. Correlation: of a pair's difference of returns.",
        dense_alt(group),
        partial(dense_errors, group),
        _place(group),
    )


def _ablations(group: Group, style: Style) -> Drawing | None:
    """Ablations against their methods; None without a pair of runs of one seed."""
    if not ablations_drawn(group):
        return None
    return Drawing(
        f"ablations{group.suffix}",
        "Ablations",
        "Paired by seed. A point with a bar: mean and 95 % interval; without one, a pair of runs "
        f"(fewer than {MIN_RUNS}).",
        forest_alt(group),
        partial(forest, group, style),
        _place(group),
    )


@dataclass(frozen=True)
class Picture:
    """A run's grid of pictures, as WebP: a row per number of sampling steps, a column per prompt."""

    title: str
    scores: str
    alt: str
    size: tuple[int, int]
    data: bytes


def pictures(group: Group) -> list[Picture]:
    """The pictures of each method's lowest seed before and after training, the same prompts and noise everywhere; one
    before training that serves all, the pretrained model's, once."""
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
            scores = scores_text(group, label, run.config["seed"], when)
            alt = f"{title}, trained on {group.reward} with K = {group.steps}: a column per prompt" + (
                f", rows from above: {at_steps(rows)}" if rows else ""
            )
            with Image.open(io.BytesIO(data)) as image:
                found.append(Picture(title, scores, alt, image.size, data))
    return found


def grid_prompts(group: Group) -> str:
    """The prompts of the pictures' columns, in words; of a run with a file of prompts, whose name alone is recorded,
    that it has one."""
    configs = [run.config for run in group.runs]
    if any(config.get(key) is not None for config in configs for key in ("prompts", "unseen_prompts")):
        return "the first prompts of the runs' own file"
    return joined(pictured(splits()))


def scores_text(group: Group, label: str, seed: int, when: str) -> str:
    """Means of the trained reward and of the held-out scorer, at the pictures' numbers of sampling steps, of a run at
    its end, or of the pretrained model; empty where there is none. No single picture's score is recorded."""
    texts = []
    for reward in dict.fromkeys((group.reward, "alignment_heldout")):
        found = {}
        for steps in group.steps_of(reward):
            cell = group.cell(PRETRAINED if when == "before" else label, reward, group.shown_split, steps)
            value = next(iter(cell.values()), None) if when == "before" else cell.get(seed)
            if value is not None and not group.ends_only(steps):
                found[steps] = f"{value:.{decimals_of([value])}f}"
        if found:
            texts.append(f"{reward} at {at_steps([*found])}: {', '.join(found.values())}")
    return "; ".join(texts)


def figure_files(figures: Iterable[Drawing]) -> dict[str, bytes]:
    """`figures/*.svg`, by name."""
    with matplotlib.rc_context(TEXT), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's font may have it: text stays text
        return {f"figures/{drawing.name}.svg": _drawn(drawing).encode() for drawing in figures}


def _drawn(drawing: Drawing) -> str:
    # Titles make room for the exponent of a vertical axis. To find out takes a fifth of the time, and few have one.
    with matplotlib.rc_context({"axes.titley": 1.0}), collector_paused():
        figure = drawing.draw()
        text = svg(figure)
    exponents = [axis.yaxis.get_offset_text().get_text() for axis in figure.axes]
    return svg(drawing.draw()) if any(exponents) else text
