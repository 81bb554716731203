"""Figures of a profile: a pure function of its raw records, the same records giving the same bytes.

A method has one colour and marker everywhere (Okabe and Ito's palette, safe for colour-blind readers); ablations stand
in a figure of their own. Drawn with matplotlib's SVG writer, without pyplot, so without global state or display.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sdpo_bench.analysis.comparisons import PRETRAINED, Values, label_key
from sdpo_bench.analysis.tables.base import MIN_RUNS, joined, summary
from sdpo_bench.catalogue import METHODS

KNOWN = {PRETRAINED: ("#7f7f7f", "")} | {entry.title: (entry.colour, entry.marker) for entry in METHODS if entry.colour}
"""Label: (colour, marker)."""


SPARE = ("#8c564b", "#5c8a00", "#b04a5a", "#4d4d9f", "#2f6f4f")  # of other methods, by name


MARKERS = "hp*d<>"  # of other methods and of variants


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
    """A figure that can be drawn: file `name`, the `heading` it stands under, the `caption` saying how to read it, in
    `alt` what it shows, computed from the records, for who cannot see it, and in `place` the trained reward and K that
    it is of, if of one."""

    name: str
    heading: str
    caption: str
    alt: str
    draw: Callable[[], Figure]
    place: Mapping[str, str] = field(default_factory=dict)


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
        line = "--" if label == PRETRAINED else ":" if label not in KNOWN and method in KNOWN else "-"
        result[label] = {"color": colour, "marker": marker, "linestyle": line}
    return result


def at_steps(steps: Sequence[int]) -> str:
    return f"{joined(steps)} sampling step{'s' * (list(steps) != [1])}"


def band_of(values: Values) -> tuple[float, float, float]:
    """Interquartile mean and the ends of the band: lowest and highest run, or the 95 % interval from 5 runs on."""
    point, low, high, n = summary(values)
    scores = list(values.values())
    return (point, min(scores), max(scores)) if n < MIN_RUNS else (point, low, high)


def legend_handles(labels: Iterable[str], style: Style) -> list[Line2D]:
    return [Line2D([], [], label=label, **style[label]) for label in labels]


def figure_columns(panels: int) -> int:
    return panels if panels <= 3 else -(-panels // 2)


def _bytes(figure: Figure, suffix: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if suffix == ".svg" else {"Software": None}
    figure.savefig(buffer, format=suffix[1:], dpi=150, metadata=metadata)
    return buffer.getvalue()


def _name_parts(figure: Figure) -> None:
    """Gives title, legends and panels ids by which the page takes the figure apart: it lays panels out itself, fewer
    beside each other on a phone. A panel's id has its box, in points: x and y of the corner above, width, height."""
    for kind, artists in (("title", figure.texts), ("legend", figure.legends)):
        for number, artist in enumerate(artists):
            artist.set_gid(f"{kind}_{number}")
    right, top, bottom, label = 8, 18, 19, 16  # points around the axes; `label`: of the horizontal axis
    width, height = figure.get_size_inches() * 72
    places = [axis.get_position() for axis in figure.axes]
    pitches = (place.x0 - places[0].x0 for place in places if place.x0 > places[0].x0)
    pitch = next((pitch * width for pitch in pitches), places[0].x1 * width + right)
    for axis, place in zip(figure.axes, places, strict=True):
        if axis.axison:
            below = bottom + label * bool(axis.get_xlabel())
            corner = place.x1 * width + right - pitch, (1 - place.y1) * height - top
            box = (*corner, pitch, place.height * height + top + below)
            axis.set_gid("_".join(["panel", *(f"{number:.0f}" for number in box)]))


def svg(figure: Figure) -> str:
    """The figure as SVG, coordinates to a hundredth of a point, repeated styles as classes, without what only editors
    of it need; its parts have the ids of `_name_parts`. Nothing is clipped: axes hold all that is drawn."""
    _name_parts(figure)
    text = _bytes(figure, ".svg").decode()
    text = re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(
        r'(<g) id="(?!title_|legend_|panel_)[^"]*"| transform="rotate\(-0 [^"]*"|font-family: [^;]*; ', r"\1", text
    )
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
    text = re.sub(r">\s+<", "><", re.sub(r"\s*\n\s*", " ", text)).replace("<g/>", "").strip() + "\n"
    while (flat := re.sub(r"<g>((?:(?!</?g[ >]).)*)</g>", r"\1", text)) != text:
        text = flat
    return text
