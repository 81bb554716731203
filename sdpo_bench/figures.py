"""Figures of a profile: a pure function of its raw records, the same records giving the same bytes.

A method has one colour and marker everywhere (Okabe and Ito's palette, safe for colour-blind readers). Drawn
with matplotlib's Agg and SVG writers, without pyplot, so without global state or display.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from PIL import Image

from .paper import METHODS, load_curves, shows
from .records import RunRecord, write_atomic
from .tables import MIN_RUNS, START, Group, Values, clear, label_key, load_groups, shown_split, summary

KNOWN = {  # label: (colour, marker); ablations have a method's neighbouring hue and a dotted line
    START: ("#7f7f7f", ""), "SDPO": ("#0072b2", "o"), "SDPO-causal": ("#56b4e9", "s"),
    "DDPO": ("#d55e00", "^"), "DDPO (per step)": ("#e69f00", "v"), "REBEL": ("#009e73", "D"),
    "PRDP": ("#cc79a7", "P"), "D3PO": ("#000000", "X"), "SDPO (terminal)": ("#7a5195", "h"),
    "SDPO (exact)": ("#1b6d85", "p"), "SDPO (last step)": ("#8c8c00", "*"),
}
SPARE = ("#8c564b", "#5c8a00", "#b04a5a", "#4d4d9f", "#a08000", "#2f6f4f")
PUBLISHED = "the same methods in the paper's figure (arXiv 2411.11727, digitised)"
PAPER: dict[str, Any] = {"color": "#555555", "marker": "", "linestyle": (0, (4, 1.5)), "linewidth": 1.0}
AXES = {"samples": "samples (trajectories)", "reward_queries": "reward queries"}
WIDTH = 9.0  # inches; at 150 dots an inch legible at the width of a README
MAX_PICTURES = 10  # a sweep's rows are settings of one method: their pictures would fill pages
RC: Any = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.6,
    "axes.axisbelow": True, "lines.linewidth": 1.6, "lines.markersize": 4, "legend.frameon": False,
    "figure.facecolor": "white", "savefig.facecolor": "white", "svg.hashsalt": "sdpo_bench", "svg.fonttype": "path",
}


def styles(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Line style of each label: the known methods' own, and of the profile's other labels, sorted, one
    each."""
    unknown = sorted(set(labels) - KNOWN.keys())
    spare = {label: (SPARE[i % len(SPARE)], "hp*d<>"[i % 6]) for i, label in enumerate(unknown)}
    result = {}
    for label in sorted({*labels}, key=label_key):
        colour, marker = KNOWN.get(label) or spare[label]
        line = "--" if label == START else ":" if label in spare or "(" in label else "-"
        result[label] = {"color": colour, "marker": marker, "linestyle": line}
    return result


def _band(values: Values) -> tuple[float, float, float]:
    """Interquartile mean and the ends of the band: lowest and highest run, or the 95 % interval from 5 runs
    on."""
    point, low, high, n = summary(values)
    scores = list(values.values())
    return (point, min(scores), max(scores)) if n < MIN_RUNS else (point, low, high)


def _frame(figure: Figure, group: Group, style: dict[str, dict[str, Any]], labels: list[str], title: str,
           footnote: str) -> None:
    """Title, legend (its rows filled left to right) and footnote, outside the panels; margins in inches."""
    height = figure.get_figheight()
    figure.suptitle(title, x=0.01, y=1 - 0.05 / height, ha="left", va="top", fontsize=11, fontweight="bold")
    figure.text(0.01, 0.06 / height, footnote, ha="left", va="bottom", fontsize=7.5, color="#555555")
    lines: list[list[Line2D]] = [[]]
    used = 0.0
    for label in labels:
        text = label + (" (untrained)" if label == START else "")
        width = 0.62 + 0.075 * len(text)  # inches: the line, and about a character's width at 9 points
        if used + width > WIDTH:
            lines.append([])
            used = 0.0
        used += width
        lines[-1].append(Line2D([], [], label=text, **style[label]))
    for row, handles in enumerate(lines):
        figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.002, 1 - (0.28 + 0.2 * row) / height),
                      ncols=len(handles), handlelength=2.2, columnspacing=1.3, borderaxespad=0)
    figure.subplots_adjust(left=0.075, right=0.985, top=1 - (0.65 + 0.2 * len(lines)) / height,
                           bottom=0.68 / height, wspace=0.24, hspace=0.42)


def _bands(group: Group) -> str:
    labels = [run.label for run in group.runs if run.label != START]
    counts = {labels.count(label) for label in labels}
    parts = []
    if any(1 < n < MIN_RUNS for n in counts):
        parts.append("band: lowest to highest run")
    if any(n >= MIN_RUNS for n in counts):
        parts.append("band: 95 % bootstrap interval" + (f" (from {MIN_RUNS} runs on)" if parts else ""))
    lowest, highest = min(counts, default=0), max(counts, default=0)
    runs = f"n = {lowest}" if lowest == highest else f"n = {lowest} to {highest}"
    return f"line: interquartile mean over runs, {runs} a method" + "".join(f"; {part}" for part in parts)


def _layout(panels: int) -> tuple[int, int]:
    columns = panels if panels <= 3 else -(-panels // 2)
    return -(-panels // columns), columns


def _count(value: float, _: object = None) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def _curve(axis: Axes, group: Group, label: str, steps: int, counter: str, split: str,
           style: dict[str, Any]) -> None:
    f = group.curves[(group.curves["label"] == label) & (group.curves["reward"] == group.reward)
                     & (group.curves["split"] == split) & (group.curves["steps"] == steps)]
    points = []
    start = group.cell(START, group.reward, split, steps)
    if start and not (f["epoch"] == 0).any() and len(f):
        # Before its first update every run is the start.
        points.append((0.0, *(next(iter(start.values())),) * 3))
    for _, rows in f.groupby("epoch", sort=True):
        values = dict(zip(rows["seed"].astype(int), rows["value"].astype(float), strict=True))
        points.append((float(rows[counter].mean()), *_band(values)))
    if points:
        x, y, low, high = np.array(points).T
        axis.plot(x, y, markevery=[-1], **style)
        axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def reward_curves(group: Group, counter: str, style: dict[str, dict[str, Any]], split: str | None = None) -> Figure:
    """Reward against `counter` (samples or reward_queries, cumulative), a panel per number of sampling steps.

    Without `split`, on the prompts that were seen in training, or on the only ones that were evaluated.
    """
    frame = group.curves[group.curves["reward"] == group.reward]
    split = split or shown_split(frame)
    frame = frame[frame["split"] == split]
    steps = sorted(int(k) for k in frame["steps"].unique())
    rows, columns = _layout(len(steps))
    figure = Figure(figsize=(WIDTH, 0.75 + 2.35 * rows), layout=None)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
    labels = [label for label in group.labels if any(run.label == label for run in group.runs)]
    paper = load_curves() if counter == "samples" and shows(group.model, group.reward, group.steps) else None
    for index, axis in enumerate(axes.flat):
        if index >= len(steps):
            axis.set_axis_off()
            continue
        k = steps[index]
        for value in group.cell(START, group.reward, split, k).values():
            axis.axhline(value, **{**style[START], "linewidth": 1.2})
        for label in labels:
            if label != START:
                _curve(axis, group, label, k, counter, split, style[label])
        if paper is not None:
            for method, curve in paper[paper["steps"] == k].groupby("method"):
                axis.plot(curve["samples"], curve["mean"], **PAPER | {"color": KNOWN[str(method)][0]})
        axis.set_title(f"{k} sampling step{'s' * (k > 1)}", loc="left")
        axis.xaxis.set_major_formatter(FuncFormatter(_count))
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.set_xlim(left=0)
        axis.tick_params(labelbottom=True)
        if index % columns == 0:
            axis.set_ylabel(f"{group.reward} reward")
        if index + columns >= len(steps):
            axis.set_xlabel(AXES[counter])
    if paper is not None:
        labels += [method for method in METHODS if method not in labels] + [PUBLISHED]
        style = styles(METHODS) | style | {PUBLISHED: PAPER}
    _frame(figure, group, style, labels, f"{group.reward} on {split} prompts, trained with K = {group.steps}",
           _bands(group))
    return figure


def reward_by_steps(group: Group, style: dict[str, dict[str, Any]]) -> Figure:
    """Reward against the number of sampling steps, before (start) and after training, a panel per split."""
    frame = group.values[group.values["reward"] == group.reward]
    splits = sorted(frame["split"].unique())
    steps = sorted(int(k) for k in frame["steps"].unique())
    labels = [label for label in group.labels if any(run.label == label for run in group.runs)]
    figure = Figure(figsize=(WIDTH, 3.9))
    axes = figure.subplots(1, len(splits), squeeze=False, sharey=True)
    for axis, split in zip(axes.flat, splits, strict=True):
        for index, label in enumerate(labels):
            cells = {k: group.cell(label, group.reward, split, k) for k in steps}
            shift = 1.0 if label == START else 1.025 ** (index - len(labels) / 2)  # so that intervals stay apart
            shown = [k for k in steps if cells[k]]
            bands = np.array([_band(cells[k]) for k in shown]).reshape(-1, 3)
            x = np.array(shown) * shift
            axis.plot(x, bands[:, 0], **style[label])
            axis.vlines(x, bands[:, 1], bands[:, 2], color=style[label]["color"], linewidth=1.2)
        axis.set_xscale("log", base=2)
        axis.set_xticks(steps, [str(k) for k in steps])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel("sampling steps (log scale)")
        axis.set_title(f"{split} prompts", loc="left")
    axes.flat[0].set_ylabel(f"{group.reward} reward")
    _frame(figure, group, style, labels, f"{group.reward} before and after training with K = {group.steps}",
           _bands(group).replace("band", "bar"))
    return figure


def picture_grid(group: Group) -> Figure | None:
    """The pictures of each label's lowest seed before and after training, as its runs saved them; None without any or
    with more labels than fit.

    The same prompts and noise everywhere. A picture before training that serves all, the start's, is shown once.
    """
    def picture(run: RunRecord, when: str) -> bytes | None:
        path = run.folder / f"grid_{when}.png"
        return path.read_bytes() if path.exists() else None

    start = next((data for run in group.runs if run.label == START and (data := picture(run, "before"))), None)
    chosen: dict[str, tuple[int, bytes | None, bytes]] = {}
    for run in sorted(group.runs, key=lambda run: (label_key(run.label), run.config["seed"])):
        if run.label not in (*chosen, START) and (after := picture(run, "after")):
            chosen[run.label] = run.config["seed"], picture(run, "before") or start, after
    if not 0 < len(chosen) <= MAX_PICTURES:
        return None
    panels: list[tuple[str, bytes]] = []
    shared = {before for _, before, _ in chosen.values()}
    for label, (seed, before, after) in chosen.items():
        if before and (len(shared) > 1 or not panels):
            panels.append((f"{label}, before training" if len(shared) > 1 else "before training", before))
        panels.append((f"{label}, seed {seed}" + (", after" if len(shared) > 1 else ""), after))
    images = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for _, data in panels]
    ratio = max(image.shape[0] / image.shape[1] for image in images)
    columns = 1 if ratio < 1 / 3 else 2
    rows = -(-len(panels) // columns)
    tile = WIDTH / columns * 0.97
    top = 0.6  # title and note
    height = top + rows * (tile * ratio + 0.3)
    figure = Figure(figsize=(WIDTH, height))
    counts = group.runs[0].config.get("eval_steps", ())
    figure.suptitle(f"Pictures before and after training on {group.reward} with K = {group.steps}",
                    x=0.01, y=1 - 0.05 / height, ha="left", va="top", fontsize=11, fontweight="bold")
    if counts:
        figure.text(0.01, 1 - 0.3 / height, f"rows: {', '.join(map(str, counts))} sampling steps; columns: prompts, "
                    "seen and then unseen; the same noise everywhere", ha="left", va="top", fontsize=9, color="#555555")
    for index, ((title, _), image) in enumerate(zip(panels, images, strict=True)):
        row, column = divmod(index, columns)
        bottom = height - top - (row + 1) * (tile * ratio + 0.3)
        axis = figure.add_axes((0.01 + column / columns, bottom / height, tile / WIDTH, tile * ratio / height))
        axis.imshow(image)
        axis.set_axis_off()
        axis.set_title(title, loc="left", fontsize=9.5)
    return figure


def _bytes(figure: Figure, suffix: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if suffix == ".svg" else {"Software": None}
    figure.savefig(buffer, format=suffix[1:], dpi=150, metadata=metadata)
    return buffer.getvalue()


def write_figures(folder: str | os.PathLike[str]) -> list[Path]:
    """Writes `results/<profile>/figures/*.{png,svg}` anew (picture grids as PNG only); returns the paths,
    sorted."""
    groups = load_groups(folder)
    style = styles({START} | {label for group in groups for label in group.labels})
    target = Path(folder) / "figures"
    written = []
    target.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(RC):
        for group in groups:
            figures = {f"curves_{counter}{group.suffix}": reward_curves(group, counter, style) for counter in AXES}
            figures[f"steps{group.suffix}"] = reward_by_steps(group, style)
            if grid := picture_grid(group):
                figures[f"pictures{group.suffix}"] = grid
            for name, figure in figures.items():
                for suffix in (".png",) if name.startswith("pictures") else (".png", ".svg"):
                    path = target / f"{name}{suffix}"
                    write_atomic(path, _bytes(figure, suffix))
                    written.append(path)
    clear(target, (".png", ".svg"), written)
    return sorted(written)
