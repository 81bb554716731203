"""README.md of a profile: the answers, the main table and figure, and links to the rest; and its folder tables/."""

from __future__ import annotations

import re

import pandas as pd

from sdpo_bench.analysis.comparisons import Group, Results
from sdpo_bench.analysis.facts import Facts
from sdpo_bench.analysis.figures.build import HACKING, MEASURES
from sdpo_bench.analysis.figures.style import Drawing
from sdpo_bench.analysis.markup import alt, escaped
from sdpo_bench.analysis.questions import Section
from sdpo_bench.analysis.render import csv, data_files, markdown
from sdpo_bench.analysis.tables.base import Table
from sdpo_bench.analysis.tables.values import main_name


def readme(facts: Facts) -> str:
    """The page, with a trailing newline."""
    parts = [
        *(_head(facts), _overview(facts), _main_figure(facts), _main_table(facts), _answers(facts)),
        *(_links(facts), _origin(facts)),
    ]
    return "\n".join(line for lines in parts for line in lines)


SAMPLES, STEPS = "curves_samples", "curves_optimiser_steps"  # beginnings of figures' names


def beside(figures: list[Drawing]) -> list[Drawing]:
    """The figures that README.md shows after the main one, of the same runs: against optimiser steps, and what else was
    measured than the trained reward."""
    starts = (STEPS, MEASURES, HACKING)
    names = [figure.name.replace(SAMPLES, start, 1) for figure in figures[:1] for start in starts]
    return [figure for figure in figures[1:] if figure.name in names]


def in_files(figures: list[Drawing]) -> list[Drawing]:
    """The figures that README.md and the documentation show; the page has all of them, and they are large."""
    return [figure for figure in figures if figure.name.startswith(SAMPLES) or figure in beside(figures)]


def _head(facts: Facts) -> list[str]:
    return [
        f"# Results: {escaped(facts.profile)}",
        "",
        "Generated from the records in this folder; do not edit. All tables, figures and pictures on one page: "
        "[report.html](report.html).",
        "",
    ]


def _overview(facts: Facts) -> list[str]:
    """The runs, a sentence a question, and who leads where."""
    lines = ["## In brief", "", escaped(facts.summary), ""]
    lines += _folded([f"- **{escaped(name)}.** {escaped(text)}" for name, text in facts.overview.verdicts], facts.shown)
    return lines + ([markdown(facts.overview.winners), ""] if facts.overview.winners else [])


def _folded(items: list[str], shown: int) -> list[str]:
    """The first items of a list; further ones are folded."""
    lines = [*items[:shown], ""] if items else []
    if more := items[shown:]:
        lines += [f"<details><summary>{len(more)} more</summary>", "", *more, "", "</details>", ""]
    return lines


def _answers(facts: Facts) -> list[str]:
    """Each question's answers, and what is still to be run."""
    lines = ["## Answers", ""]
    for section in facts.sections:
        if section.answers:
            lines += _section_answers(section, facts.shown)
    if facts.unfinished:
        lines += [
            escaped(
                f"Runs that are not made yet: {facts.unfinished}. `{facts.resume}` makes them, "
                f"where RESULTS holds {facts.profile}/."
            ),
            "",
        ]
    return lines


def _section_answers(section: Section, shown: int) -> list[str]:
    """A question with its first answers; further ones are folded."""
    return [f"**{section.question.text}**", "", *_folded([f"- {escaped(answer)}" for answer in section.answers], shown)]


def _main_table(facts: Facts) -> list[str]:
    """The main tables of one reward: one for each K that it was trained with."""

    def trained(group: Group) -> tuple[str, str, str]:
        return group.device, group.model, group.reward

    names = {main_name(group) for group in facts.groups if trained(group) == trained(facts.groups[0])}
    shown = [table for table in facts.tables if table.name in names]
    return ["## Main table", "", *(line for table in shown for line in (markdown(table), ""))]


def _main_figure(facts: Facts) -> list[str]:
    lines = ["## Main figure", ""]
    for figure in [*facts.figures[:1], *beside(facts.figures)]:
        lines += [f"![{alt(figure.alt)}](figures/{figure.name}.svg)", "", escaped(figure.caption), ""]
    return lines


def _links(facts: Facts) -> list[str]:
    """All tables under their questions, and the figures that lie in files."""
    lines = ["## All tables and figures", ""]
    for section in facts.sections:
        if section.tables:
            page = f"tables/{section.question.page}.md"
            lines += [f"- [{section.question.text}]({page})", *(_link(table, page) for table in section.tables)]
    lines.append("- [The runs: method and seed of each id](tables/runs.csv)")
    drawn = [f"[{figure.name}](figures/{figure.name}.svg)" for figure in in_files(facts.figures)]
    return lines + ([f"- Figures, all of them in [report.html](report.html): {', '.join(drawn)}"] if drawn else [])


def _link(table: Table, page: str) -> str:
    rows = "" if table.frame.empty else f", [csv](tables/{table.csv})"
    return f"  - {escaped(table.title)} ([md]({page}#{table.name}){rows})"


def _origin(facts: Facts) -> list[str]:
    """Commits, versions and devices, and the commands that made the runs and this page."""
    commands = [
        *facts.commands,
        f"{facts.resume}  # what is missing, where RESULTS holds {facts.profile}/",
        f"{facts.regenerate}  # these pages, where FOLDER holds them",
    ]
    # A fence longer than any in a command, which could end it.
    fence = "`" * max(3, 1 + max(len(run) for command in commands for run in ["", *re.findall("`+", command)]))
    return [
        "",
        "## Where the numbers come from",
        "",
        "| | |",
        "|---|---|",
        *(f"| {escaped(name)} | {escaped(', '.join(values))} |" for name, values in facts.provenance),
        "",
        "The records hold each run's configuration, provenance, training log and every evaluated value, packed or in "
        "`raw/<run id>/` (docs/records.md); the tables' CSV files have the seeds of the runs behind each cell, "
        "tables/runs.csv their ids.",
        "",
        "Commands:",
        "",
        fence,
        *commands,
        fence,
        "",
    ]


def profile_tables(results: Results, sections: list[Section], tex: bool = False) -> dict[str, bytes]:
    """The files in tables/ of a profile, by name: a page for each question, the tables' CSVs (`tex`: and LaTeX), and a
    CSV of the runs."""
    tables = [table for section in sections for table in section.tables]
    pages = {
        f"tables/{section.question.page}.md": _page(results.profile, section).encode()
        for section in sections
        if section.tables
    }
    return pages | data_files(tables, tex) | {"tables/runs.csv": csv(_runs(results)).encode()}


def _page(profile: str, section: Section) -> str:
    """All tables of a question, each under its name."""
    lines = [
        f"# {section.question.text}",
        "",
        f"Tables of [{escaped(profile)}](../README.md), generated from its records; do not edit.",
        "",
    ]
    for table in section.tables:
        lines += [f"## {table.name}", "", markdown(table), ""]
        lines += [] if table.frame.empty else [f"CSV: [{table.csv}]({table.csv})", ""]
    return "\n".join(lines)


def _runs(results: Results) -> pd.DataFrame:
    """A row per finished run: what the rows of tables name it by, and its id."""
    rows = [
        (run.run_id, run.device, *(run.config[key] for key in ("model", "reward", "steps", "label", "seed")))
        for run in results.runs
    ]
    return pd.DataFrame(
        rows, columns=["run_id", "device", "model", "reward_trained", "training_steps", "label", "seed"]
    )
