"""The report of a profile, README.md and a self-contained report.html: a pure function of its raw records."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from sdpo_bench.analysis.comparisons import Group, Results, records_left_out
from sdpo_bench.analysis.facts import Facts, collect
from sdpo_bench.analysis.figures.build import drawings, figure_files, grid_prompts, pictures
from sdpo_bench.analysis.figures.inline import inline
from sdpo_bench.analysis.figures.style import styles
from sdpo_bench.analysis.readme import in_files, profile_tables, readme
from sdpo_bench.analysis.tables.build import build_tables


def marked(text: str) -> Markup:
    """HTML of a text of the tables, in which `code` and **bold** stand as in Markdown."""
    html = re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*([^*]*)\*\*", r"<strong>\1</strong>", html))


def html(facts: Facts, drawn: dict[str, bytes]) -> str:
    """The page report.html; `drawn` has the figures' SVG by name."""
    shown = {
        "figures": _figures(facts, drawn),
        "combinations": _combinations(facts),
        "colours": {label: style["color"] for label, style in styles(_labels(facts)).items()},
        "grids": [(group, grid_prompts(group), found) for group in facts.groups if (found := _grids(group))],
    }
    return _environment().get_template("report.html.j2").render({**vars(facts), **shown}) + "\n"


def _labels(facts: Facts) -> set[str]:
    return {label for group in facts.groups for label in group.labels}


def _combinations(facts: Facts) -> dict[str, list[str]]:
    """The choices of the page's selectors: trained rewards and K, where there are several."""
    rewards = dict.fromkeys(group.reward for group in facts.groups)
    steps = sorted({group.steps for group in facts.groups})
    return {"reward": list(rewards), "k": list(map(str, steps))}


def place(frame: pd.DataFrame) -> dict[str, str]:
    """The one trained reward and K of a table's rows; empty where it has several."""
    columns = {"reward": "reward_trained", "k": "training_steps"}
    if not {*columns.values()} <= {*frame.columns}:
        return {}
    found = {key: frame[column].unique() for key, column in columns.items()}
    return {key: str(values[0]) for key, values in found.items()} if {*map(len, found.values())} == {1} else {}


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["upper_first"] = lambda text: text[:1].upper() + text[1:]
    environment.filters["marked"] = marked
    environment.filters["wrapped"] = lambda text: escape(text).replace("_", Markup("_<wbr>"))
    environment.filters["place"] = place
    environment.filters["leader"] = lambda colours, cell: colours.get(re.split(" [>~] ", cell)[0], "")
    return environment


def _figures(facts: Facts, drawn: dict[str, bytes]) -> list[dict[str, Any]]:
    """The values that the page's template takes for each figure."""
    return [
        {
            "heading": figure.heading,
            "place": figure.place,
            "caption": figure.caption,
            "drawn": Markup(inline(drawn[f"figures/{figure.name}.svg"].decode(), number, str(escape(figure.alt)))),
        }
        for number, figure in enumerate(facts.figures)
    ]


def _grids(group: Group) -> list[dict[str, Any]]:
    """The values that the page's template takes for each grid of a group's pictures."""
    return [
        {
            "title": picture.title,
            "scores": picture.scores,
            "alt": picture.alt,
            "width": picture.size[0],
            "height": picture.size[1],
            "source": f"data:image/webp;base64,{base64.b64encode(picture.data).decode()}",
        }
        for picture in pictures(group)
    ]


def profile_files(results: Results, tex: bool = False) -> dict[str, bytes]:
    """All that is generated of a profile's results, by name: tables (`tex`: as LaTeX too), the figures of `in_files`,
    `README.md` and `report.html`.

    Errors: `RecordError`, of a picture that cannot be read.
    """
    with records_left_out():
        tables, figures = build_tables(results.groups), drawings(results.groups)
        drawn = figure_files(figures)
        facts = collect(results, tables, figures)
        return {
            **profile_tables(results, facts.sections, tex),
            **{name: drawn[name] for figure in in_files(figures) for name in (f"figures/{figure.name}.svg",)},
            "README.md": readme(facts).encode(),
            "report.html": html(facts, drawn).encode(),
        }
