"""The report of a profile, README.md and a self-contained report.html: a pure function of its raw records."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2

from .claims import applies, verdicts
from .figures import AXES
from .records import RecordError, RunRecord, load_profile, unfinished_runs, write_atomic
from .tables import (
    RERUN,
    START,
    Group,
    build_tables,
    load_groups,
    markdown,
    order_table,
    ranking,
)

REGENERATE = "nox -s tables -- FOLDER"  # this folder: where it lies is no property of the records


def _joined(words: Iterable[object]) -> str:
    """a, b and c."""
    *head, last = [str(word) for word in words] or ["nothing"]
    return f"{', '.join(head)} and {last}" if head else last


def answers(group: Group) -> list[str]:
    """Sentences on who leads: by split, the step counts grouped by leader and by whether the lead is
    established."""
    frame = group.values[group.values["reward"] == group.reward]
    sentences = []
    for split in sorted(frame["split"].unique()):
        leaders: dict[tuple[str, str | None], list[int]] = {}
        for steps in sorted(int(k) for k in frame["steps"].unique()):
            order = ranking(group, split, steps)
            if len(order) > 1:
                leaders.setdefault((order[0][0], order[1][0] if order[1][1] else None), []).append(steps)
        for (first, second), counts in leaders.items():
            at = f"{_joined(counts)} sampling step{'s' * (counts != [1])}"
            ahead = (f"ahead of the next, {second}, by an interval above 0" if second else
                     "its lead over the next not established")
            sentences.append(f"{split} prompts, {at}: **{first}** is highest, {ahead}.")
    if applies(group):
        sentences.append(verdicts(group))
    return sentences or ["nothing to compare yet."]


def _versions(runs: list[RunRecord]) -> list[tuple[str, list[str]]]:
    """What the provenances say, each fact with its distinct values over all runs, sorted."""
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


def figure_names(group: Group) -> list[tuple[str, str]]:
    """(file stem, caption) of the group's figures, in order; the picture grid last."""
    what = f"{group.reward}, trained with K = {group.steps}"
    dashed = {"samples": "; dashed: the paper's curves"} if applies(group) else {}
    return [*((f"curves_{counter}{group.suffix}", f"{what}: reward against {axis}{dashed.get(counter, '')}")
              for counter, axis in AXES.items()),
            (f"steps{group.suffix}", f"{what}: reward against sampling steps, before and after training"),
            (f"pictures{group.suffix}", f"{what}: pictures before and after training")]


def _facts(folder: Path) -> dict[str, Any]:
    groups = load_groups(folder)
    runs = load_profile(folder)
    profile = folder.resolve().name
    figures = []
    for group in groups:
        for stem, caption in figure_names(group):
            path = folder / "figures" / f"{stem}.png"
            optional = stem.startswith("pictures")
            if not optional and not path.with_suffix(".svg").exists():
                raise RecordError(f"{path.with_suffix('.svg')}: missing; write the figures before the report")
            if path.exists():
                figures.append({"stem": stem, "caption": caption, "group": group, "picture": optional})
    configs = [run.config for run in runs if run.label != START]
    return {
        "profile": profile, "groups": groups, "runs": runs, "figures": figures, "tables": build_tables(groups),
        "orders": [order_table([g for g in groups if (g.device, g.model) == key])
                   for key in sorted({(g.device, g.model) for g in groups})],
        "trained": configs, "provenance": _versions(runs),
        "commands": sorted({str(run.provenance.get("command", "")) for run in runs} - {""}),
        "unfinished": [str(config["run_id"]) for config in unfinished_runs(folder)],
        "resume": RERUN.format(profile), "regenerate": REGENERATE, "start": START,
    }


def _readme(facts: dict[str, Any]) -> str:
    lines = [f"# Results: {facts['profile']}", "",
             "Generated from the raw records in `raw/`; do not edit.", "", "## Answers", ""]
    for group in facts["groups"]:
        lines += [f"{group.title[:1].upper() + group.title[1:]}:", "",
                  *(f"- {sentence}" for sentence in answers(group)), ""]
    for order in facts["orders"]:
        lines += [markdown(order), ""]
    lines += ["## What was run", ""]
    for group in facts["groups"]:
        counts = {label: sum(run.label == label for run in group.runs) for label in group.labels}
        lines.append(f"- {group.title}: " + ", ".join(f"{label} ({n} run{'s' * (n != 1)})"
                                                     for label, n in counts.items()))
    if facts["unfinished"]:
        lines.append(f"- unfinished, in no table: {', '.join(facts['unfinished'])}; `{facts['resume']}` goes on")
    lines += ["", "## Tables", ""]
    shown: set[str] = set()
    for table in facts["tables"]:
        if table.name.startswith(("main", "equal", "other", "cost", "paper", "claims")):
            shown.add(table.name)
            files = ", ".join(f"[{kind}](tables/{table.name}.{kind})" for kind in ("md", "csv", "tex"))
            lines += [markdown(table), "", f"As {files}.", ""]
    others = [table.name for table in facts["tables"] if table.name not in shown]
    if others:
        lines += ["Further tables: " + ", ".join(f"[{name}](tables/{name}.md)" for name in others) + ".", ""]
    lines += ["## Figures", ""]
    for figure in facts["figures"]:
        lines += [f"![{figure['caption']}](figures/{figure['stem']}.png)", ""]
    lines += ["## Where the numbers come from", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {', '.join(values)} |" for name, values in facts["provenance"]]
    lines += ["", "Raw records: `raw/<run id>/` holds a run's configuration, provenance, training log and every "
              "evaluated value; the tables' CSV files name the runs behind each cell.", "", "Commands:", "", "```",
              *facts["commands"], f"{facts['resume']}  # what is missing; with --results, unless in runs/",
              f"{facts['regenerate']}  # these pages, where FOLDER holds them",
              "```", ""]
    return "\n".join(lines)


def _html(folder: Path, facts: dict[str, Any]) -> str:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
                                     autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     undefined=jinja2.StrictUndefined)

    def inlined(figure: dict[str, Any]) -> str:
        suffix, kind = ("png", "image/png") if figure["picture"] else ("svg", "image/svg+xml")
        data = (folder / "figures" / f"{figure['stem']}.{suffix}").read_bytes()
        return f"data:{kind};base64,{base64.b64encode(data).decode()}"

    pictured = [{**figure, "source": inlined(figure)} for figure in facts["figures"]]
    answered = [(group, [sentence.replace("**", "") for sentence in answers(group)]) for group in facts["groups"]]
    return environment.get_template("report.html.j2").render(
        {**facts, "figures": pictured, "answers": answered}) + "\n"


def write_report(folder: str | os.PathLike[str]) -> list[Path]:
    """Writes `README.md` and `report.html` into `results/<profile>`; the figures must have been written.

    Errors: `RecordError`, of unsound records or a missing figure.
    """
    folder = Path(folder)
    facts = _facts(folder)
    pages = {folder / "README.md": _readme(facts), folder / "report.html": _html(folder, facts)}
    for path, text in pages.items():
        write_atomic(path, text.encode())
    return sorted(pages)
