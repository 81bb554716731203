"""The report of a profile, README.md and a self-contained report.html: a pure function of its raw records."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from sdpo_bench.analysis.comparisons import START, Results, still_missing
from sdpo_bench.analysis.figures.build import PUBLISHED, drawings, figure_files, pictures
from sdpo_bench.analysis.figures.style import Drawing
from sdpo_bench.analysis.paper import METHODS
from sdpo_bench.analysis.render import escaped, markdown, table_files
from sdpo_bench.analysis.tables.base import RERUN, Subject, Table, joined
from sdpo_bench.analysis.tables.build import build_tables
from sdpo_bench.analysis.tables.values import main_name
from sdpo_bench.records.reader import RunRecord
from sdpo_bench.terminal import printable

REGENERATE = "nox -s tables -- FOLDER"  # this folder: where it lies is no property of the records


QUESTIONS = {  # the subjects of its tables, in their order on the page
    "Which method is best, and does the paper's order appear?": (
        Subject.PROTOCOL,
        Subject.ORDER,
        Subject.MAIN,
        Subject.EQUAL_QUERIES,
        Subject.DIFFERENCES,
        Subject.CLAIMS,
        Subject.PAPER,
    ),
    "Where does SDPO's lead come from?": (Subject.ABLATIONS,),
    "Are the predicted dense rewards accurate?": (Subject.DENSE_BUDGETS, Subject.DENSE_STEPS),
    "What does it cost?": (Subject.REACH, Subject.COST),
    "Is the reward hacked?": (Subject.HACKING, Subject.OTHER_REWARDS),
}


FURTHER = "Further tables"
UNMEASURED = "Not measured by these runs."
UNANSWERED = "Too few runs for an answer; the tables show what there is."
SHOWN = 4  # answers to a question; further ones, of single rewards and K, are folded
LONG = 60  # rows: a table of more is folded, its answer stands above all the same


INK = {"#000000": "currentColor", "#ffffff": "var(--page)", "#e6e6e6": "var(--line)", "#555555": "var(--soft)"}


@dataclass(frozen=True)
class Section:
    """A question, its tables, and their answers (or why there is none)."""

    anchor: str
    question: str
    tables: tuple[Table, ...]

    @property
    def answers(self) -> list[str]:
        return [table.answer for table in self.tables if table.answer] or (
            [] if self.question == FURTHER else [UNANSWERED if self.tables else UNMEASURED]
        )

    @property
    def ordered(self) -> list[tuple[Table, bool]]:
        """The tables, each with whether it stands open on the page: those that answer do, unless they are long, and
        come first."""
        found = [
            (
                table,
                (bool(table.answer) and sum(len(rows) for _, rows in table.blocks) <= LONG)
                or table.subject is Subject.MAIN,
            )
            for table in self.tables
        ]
        return sorted(found, key=lambda item: not item[1])


def sections(tables: list[Table]) -> list[Section]:
    """The tables under the questions that they answer; every table once."""
    found = [
        Section(f"question-{number}", text, tuple(t for subject in subjects for t in tables if t.subject is subject))
        for number, (text, subjects) in enumerate({**QUESTIONS, FURTHER: (None,)}.items(), 1)
    ]
    return [section for section in found if section.tables or section.question != FURTHER]


def _versions(runs: list[RunRecord]) -> list[tuple[str, list[str]]]:
    """Facts from the provenances, each with its distinct values over all runs, sorted."""
    found: dict[str, set[str]] = {"commit": set(), "device": set(), "threads": set(), "backend": set()}
    for run in runs:
        for p in (run.provenance, *run.provenance.get("earlier", [])):
            commit = p["commit"] or f"source {p.get('source', 'unknown')[:12]}"
            found["commit"].add(str(commit) + (" with uncommitted changes" if p.get("dirty") else ""))
            for key in ("device", "threads", "backend"):
                if p.get(key) is not None:
                    found[key].add(str(p[key]))
            for name, reward in p.get("rewards", {}).items():
                found.setdefault(f"reward {name}", set()).add(f"{reward['revision']}; {reward['scale']}")
            for name, version in p["versions"].items():
                found.setdefault(name, set()).add(str(version))
    return [(name, sorted(values)) for name, values in found.items() if values]


def _summary(runs: list[RunRecord]) -> str:
    """The runs, in a sentence."""
    trained = [run for run in runs if run.label != START]
    if not trained:
        return "No trained run has finished: nothing to compare yet."
    models, rewards, counts, seeds = (
        sorted({run.config[key] for run in trained}) for key in ("model", "reward", "steps", "seed")
    )
    return (
        f"{len(trained)} trained run{'s' * (len(trained) > 1)} ({len(seeds)} seed{'s' * (len(seeds) > 1)}). Model: "
        f"{joined(models)}; trained reward: {joined(rewards)}; trained with K = {joined(counts)} denoising steps; "
        f"device: {joined(sorted({run.device for run in trained}))}."
    )


def _facts(results: Results, tables: list[Table], figures: list[Drawing]) -> dict[str, Any]:
    runs, groups = results.runs, results.groups
    compared = any(label in METHODS for group in groups for label in group.labels)
    return {
        "profile": printable(results.profile),
        "groups": groups,
        "figures": figures,
        "sections": sections(tables),
        "tables": tables,
        "headings": list(dict.fromkeys(drawing.heading for drawing in figures)),
        "summary": _summary(runs),
        "unfinished": still_missing(results.unfinished),
        "unpublished": compared and not any(drawing.name == PUBLISHED for drawing in figures),
        "provenance": _versions(runs),
        "commands": sorted({" ".join(printable(run.provenance.get("command", "")).split("\n")) for run in runs} - {""}),
        "resume": printable(RERUN.format(results.profile)),
        "regenerate": REGENERATE,
        "shown": SHOWN,
    }


def in_files(figures: list[Drawing]) -> list[Drawing]:
    """The figures that README.md and the documentation show; the page has all of them, and they are large."""
    return [figure for figure in figures if figure.name.startswith("curves_samples")]


def _readme(facts: dict[str, Any]) -> str:
    groups, figures = facts["groups"], facts["figures"]
    lines = [
        f"# Results: {escaped(facts['profile'])}",
        "",
        "Generated from the records in this folder; do not edit. All tables, figures and pictures on one page: "
        "[report.html](report.html).",
        "",
        "## Answers",
        "",
        escaped(facts["summary"]),
        "",
    ]
    for section in facts["sections"]:
        if section.answers:
            answers = [escaped(answer) for answer in section.answers]
            lines += [f"**{section.question}**", "", *(f"- {answer}" for answer in answers[:SHOWN]), ""]
            if more := answers[SHOWN:]:
                lines += [
                    f"<details><summary>{len(more)} more</summary>",
                    "",
                    *(f"- {answer}" for answer in more),
                    "",
                    "</details>",
                    "",
                ]
    if facts["unfinished"]:
        lines += [
            escaped(
                f"Runs that are not made yet: {facts['unfinished']}. `{facts['resume']}` makes them, "
                f"where RESULTS holds {facts['profile']}/."
            ),
            "",
        ]
    # The main table and figure of one reward: one for each K that it was trained with.
    first = [
        main_name(g)
        for g in groups
        if (g.device, g.model, g.reward) == (groups[0].device, groups[0].model, groups[0].reward)
    ]
    lines += [
        "## Main table",
        "",
        *(line for table in facts["tables"] if table.name in first for line in (markdown(table), "")),
    ]
    lines += [
        "## Main figure",
        "",
        *(
            line
            for figure in figures[:1]
            for line in (f"![{_alt(figure.alt)}](figures/{figure.name}.svg)", "", escaped(figure.caption), "")
        ),
    ]
    lines += ["## All tables and figures", ""]
    for section in facts["sections"]:
        if section.tables:
            links = (
                f"{escaped(table.title)} ([md](tables/{table.name}.md), [csv](tables/{table.name}.csv))"
                for table in section.tables
            )
            lines += [f"- {section.question}", *(f"  - {link}" for link in links)]
    drawn = [f"[{figure.name}](figures/{figure.name}.svg)" for figure in in_files(figures)]
    lines += [f"- Figures, all of them in [report.html](report.html): {', '.join(drawn)}"] if drawn else []
    lines += ["", "## Where the numbers come from", "", "| | |", "|---|---|"]
    lines += [f"| {escaped(name)} | {escaped(', '.join(values))} |" for name, values in facts["provenance"]]
    commands = [
        *facts["commands"],
        f"{facts['resume']}  # what is missing, where RESULTS holds {facts['profile']}/",
        f"{facts['regenerate']}  # these pages, where FOLDER holds them",
    ]
    # A fence longer than any in a command, which could end it.
    fence = "`" * max(3, 1 + max(len(run) for command in commands for run in ["", *re.findall("`+", command)]))
    lines += [
        "",
        "The records hold each run's configuration, provenance, training log and every evaluated value, packed or in "
        "`raw/<run id>/` (docs/records.md); the tables' CSV files name the runs behind each cell.",
        "",
        "Commands:",
        "",
        fence,
        *commands,
        fence,
        "",
    ]
    return "\n".join(lines)


def _alt(text: str) -> str:
    """A figure's description between the brackets of its link."""
    return re.sub(r"(?<!\\)[\[\]]", r"\\\g<0>", escaped(text))


def inline(svg: str, number: int, alt: str) -> str:
    """A figure's SVG as part of the page: ids of its own, the page's colours (so that it turns dark), its size left to
    the style sheet, and `alt`, which must be escaped."""

    def adapted(part: re.Match[str]) -> str:  # tags and style sheets, and not the texts that are read
        tag = re.sub(r'( id="|href="#| class="|\.(?=s\d+\{))', rf"\1f{number}-", part[0])
        tag = re.sub(r"<style type.*?</style>| xmlns(:xlink)?=\"[^\"]*\"", "", tag, flags=re.S)
        return re.sub("|".join(INK), lambda colour: INK[colour[0]], tag)

    svg = re.sub(r"<style.*?</style>|<[^>]*>", adapted, svg, flags=re.S)
    size = f'role="img" aria-label="{alt}"'
    return re.sub(r'width="[^"]*" height="[^"]*"', lambda _: size, svg, count=1)


def marked(text: str) -> Markup:
    """HTML of a text of the tables, in which `code` and **bold** stand as in Markdown."""
    html = re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*([^*]*)\*\*", r"<strong>\1</strong>", html))


def _html(facts: dict[str, Any], drawn: dict[str, bytes]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["upper_first"] = lambda text: text[:1].upper() + text[1:]
    environment.filters["marked"] = marked
    figures = [
        {
            "heading": figure.heading,
            "caption": figure.caption,
            "svg": Markup(inline(drawn[f"figures/{figure.name}.svg"].decode(), number, str(escape(figure.alt)))),
        }
        for number, figure in enumerate(facts["figures"])
    ]
    grids = [
        (
            group,
            [
                {
                    "title": picture.title,
                    "alt": picture.alt,
                    "width": picture.size[0],
                    "height": picture.size[1],
                    "source": f"data:image/webp;base64,{base64.b64encode(picture.data).decode()}",
                }
                for picture in found
            ],
        )
        for group in facts["groups"]
        if (found := pictures(group))
    ]
    return environment.get_template("report.html.j2").render({**facts, "figures": figures, "grids": grids}) + "\n"


def profile_files(results: Results, tex: bool = False) -> dict[str, bytes]:
    """All that is generated of a profile's results, by name: tables (`tex`: as LaTeX too), the figures of `in_files`,
    `README.md` and `report.html`.

    Errors: `RecordError`, of a picture that cannot be read.
    """
    tables, figures = build_tables(results.groups), drawings(results.groups)
    drawn = figure_files(figures)
    facts = _facts(results, tables, figures)
    return {
        **table_files(tables, tex),
        **{name: drawn[name] for figure in in_files(figures) for name in (f"figures/{figure.name}.svg",)},
        "README.md": _readme(facts).encode(),
        "report.html": _html(facts, drawn).encode(),
    }
