"""The facts that README.md and report.html state about a profile, computed once for both."""

from __future__ import annotations

from dataclasses import dataclass

from sdpo_bench.analysis.comparisons import PRETRAINED, Group, Results, still_missing
from sdpo_bench.analysis.figures.build import PUBLISHED
from sdpo_bench.analysis.figures.style import Drawing
from sdpo_bench.analysis.overview import Overview, overview
from sdpo_bench.analysis.paper import METHODS
from sdpo_bench.analysis.questions import Section, sections
from sdpo_bench.analysis.tables.base import RERUN, Table, joined
from sdpo_bench.records.protocols import described
from sdpo_bench.records.reader import RunRecord
from sdpo_bench.terminal import printable

REGENERATE = "nox -s tables -- FOLDER"  # this folder: where it lies is no property of the records


SHOWN = 4  # verdicts, and answers to a question; further ones are folded


@dataclass(frozen=True)
class Facts:
    """The content of a profile's pages. Its texts have no control characters; they are not escaped yet."""

    profile: str
    groups: list[Group]
    overview: Overview
    sections: list[Section]
    figures: list[Drawing]
    summary: str
    unfinished: str
    """Runs that are still to be made, in words; empty if there are none."""
    unpublished: bool
    """Whether the paper's curves are missing, though there are methods to stand beside them."""
    provenance: list[tuple[str, list[str]]]
    commands: list[str]
    """Those that made the runs."""
    resume: str
    regenerate: str = REGENERATE
    shown: int = SHOWN

    @property
    def tables(self) -> list[Table]:
        return [table for section in self.sections for table in section.tables]


def collect(results: Results, tables: list[Table], figures: list[Drawing]) -> Facts:
    """The facts of a profile, of which these are the tables and figures."""
    runs, groups = results.runs, results.groups
    compared = any(label in METHODS for group in groups for label in group.labels)
    commands = {" ".join(printable(run.provenance.get("command", "")).split("\n")) for run in runs}
    return Facts(
        profile=printable(results.profile),
        groups=groups,
        overview=overview(groups, tables),
        sections=sections(tables),
        figures=figures,
        summary=" ".join(filter(None, (_summary(runs), _protocol(results)))),
        unfinished=still_missing(results.unfinished),
        unpublished=compared and not any(drawing.name == PUBLISHED for drawing in figures),
        provenance=_versions(runs),
        commands=sorted(commands - {""}),
        resume=printable(RERUN.format(results.profile)),
    )


def _protocol(results: Results) -> str:
    """A sentence about how the methods got their learning rates; empty where neither plan nor profile says it."""
    protocol = described(results.profile, results.runs, results.planned)
    return f"Protocol: {protocol}." if protocol else ""


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
            for source, plugin in p.get("plugins", {}).items():
                version = plugin.get("distribution", f"SHA-256 {plugin['sha256'][:12]}")
                found.setdefault(f"plug-in {source}", set()).add(version)
            for name, version in p["versions"].items():
                found.setdefault(name, set()).add(str(version))
    return [(name, sorted(values)) for name, values in found.items() if values]


def _summary(runs: list[RunRecord]) -> str:
    """The runs, in a sentence."""
    trained = [run for run in runs if run.label != PRETRAINED]
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
