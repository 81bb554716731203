"""Comparisons of two: methods, models or commits (`sdpo-bench compare`), and one's results with the committed ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sdpo_bench.analysis.changes import change_table, changes, last_evaluation
from sdpo_bench.analysis.comparisons import (
    PRETRAINED,
    Group,
    differing,
    label_key,
    label_with,
    load_groups,
    settings_of,
    steps_of,
)
from sdpo_bench.analysis.markup import DASH
from sdpo_bench.analysis.render import aligned, csv, markdown, text
from sdpo_bench.analysis.statistics import student
from sdpo_bench.analysis.tables.base import Table, joined
from sdpo_bench.analysis.tables.pairs import Pair, paired_table
from sdpo_bench.errors import UserError
from sdpo_bench.records.files import slug
from sdpo_bench.records.lookup import stored_run
from sdpo_bench.records.reader import RunRecord, has_records, load_run

MEASURING = ("eval_noises", "eval_seed", "eta", "guidance", "noise_level", "resolution", "sampler")  # of config.json


def compare(a: str, b: str, profile: Path) -> list[Table]:
    """Paired differences, a table for each trained reward and K: of two labels in the profile's folder, or of the
    labels that two folders of results have in common. Of two runs, by their folders, one table of all rewards.

    UserError: a label or folder that is not there, nothing to pair, or values that were not measured alike.
    """
    folders = [Path(name) for name in (a, b)]
    if all(map(has_records, folders)):
        return _folders(*folders)
    if all(stored_run(folder.absolute()) for folder in folders):
        return [_two_runs(*(_one_run(folder) for folder in folders))]
    for name, folder in zip((a, b), folders, strict=True):
        if folder.is_dir() or os.sep in name:
            raise UserError(
                f"{name}: expected two folders of results, each with records, packed or in a raw/ folder (as "
                "results/quick), two runs (as results/quick/raw/RUN_ID), or two labels of one profile"
            )
    return _labels(a, b, profile)


def _labels(a: str, b: str, profile: Path) -> list[Table]:
    if not has_records(profile):
        there = sorted(path.name for path in profile.parent.glob("*") if has_records(path))
        raise UserError(
            f"{profile} has no records; --profile is one of: {joined(there)}"
            if there
            else f"{profile} has no records; say with --results where the profiles are"
        )
    groups = load_groups(profile)
    known = sorted({run.label for group in groups for run in group.runs}, key=label_key)
    folders = [str(folder) for name in (a, b) if has_records(folder := profile.parent / name.replace("-", "_"))]
    meant = f"; did you mean {' '.join(folders)}, as folders of results?" if folders else ""
    first, second = (_known(name, known, profile, meant) for name in (a, b))
    if first == second:
        raise UserError(f"{a} and {b} are the same; compare two of: {', '.join(known)}")
    pairs = [Pair(f"{first} minus {second}", group, first, group, second) for group in groups]
    return _tables([[pair] for pair in pairs], first, second)


def _known(name: str, labels: list[str], profile: Path, meant: str) -> str:
    """A label as it is written, or in lower case with hyphens; "start" is the pretrained model. `meant`: the end of the
    error for an unknown one."""
    name = PRETRAINED if name == "start" else name
    found = [label for label in labels if name == label] or [label for label in labels if slug(name) == slug(label)]
    if not found:
        raise UserError(f"unknown label {name!r}; {profile} has: {', '.join(labels)}{meant}")
    return found[0]


def _folders(a: Path, b: Path) -> list[Table]:
    if a.resolve() == b.resolve():
        raise UserError(f"{a} and {b} are the same folder")
    ours, theirs = load_groups(a), load_groups(b)
    models = [{group.model for group in groups} for groups in (ours, theirs)]
    rows = []
    for x in ours:
        # With one model in each folder, two models may be compared; with several, each with itself.
        other = [
            y
            for y in theirs
            if (y.reward, y.steps) == (x.reward, x.steps) and (y.model == x.model or max(map(len, models)) == 1)
        ]
        # Where the other folder has runs of the same device, these are meant; else any other device's.
        rows += [_shared(x, y) for y in [y for y in other if y.device == x.device] or other]
    if not any(rows):
        have = [
            f"{folder} has " + "; ".join(f"{', '.join(group.labels)} {group.title}" for group in groups)
            for folder, groups in ((a, ours), (b, theirs))
        ]
        raise UserError(
            f"the folders share no label trained on the same reward with the same K; give two runs' folders for "
            f"others: {'. '.join(have)}"
        )
    return _tables([pairs for pairs in rows if pairs], str(a), str(b))


def _shared(x: Group, y: Group) -> list[Pair]:
    """The labels that both groups have; where they share none and each has one, these two."""
    own, others = ([label for label in group.labels if label != PRETRAINED] for group in (x, y))
    if len(own) == len(others) == 1 and own != others:
        return [Pair(f"{own[0]} minus {others[0]}", x, own[0], y, others[0])]
    return [Pair(label, x, label, y, label) for label in own if label in others]


def _one_run(folder: Path) -> RunRecord:
    """A finished run with every value, from its folder or packed. UserError for an unfinished one."""
    run = load_run(folder.absolute())
    if run.done is None:
        raise UserError(f"{run.folder}: the run is not finished; continue it with --resume")
    return run


def _two_runs(a: RunRecord, b: RunRecord) -> Table:
    """The rewards that both runs were evaluated with, paired by prompt and noise. UserError where they were not
    measured alike."""
    _check_alike(a, b, _settings(a), _settings(b), "settings", "eval_noises")
    found = changes(last_evaluation(b), last_evaluation(a))
    for reward in dict.fromkeys(change.reward for change in found):
        _check_alike(a, b, _version(a, reward), _version(b, reward), "reward's version")
    if not found:
        raise UserError(f"{a.run_id} and {b.run_id} share no reward, number of sampling steps, prompt and noise")
    first, second = _labels_of_two(a, b)
    title = f"{first} minus {second}" + "".join(f", {run.config['model']} on {run.device}" for run in _apart(a, b))
    table = change_table(
        f"compare_{slug(first)}_{slug(second)}", title, found, ((first, "second"), (second, "first")), _differing(a, b)
    )
    named = table.frame.rename(columns={"second": "value", "first": "baseline_value"})
    return replace(
        table, frame=pd.concat([pd.DataFrame({"label": first, "baseline": second}, named.index), named], axis=1)
    )


def _apart(a: RunRecord, b: RunRecord) -> list[RunRecord]:
    """The runs whose model and device a title names: one for both where these are the same."""
    return [a] if (a.config["model"], a.device) == (b.config["model"], b.device) else [a, b]


def _labels_of_two(a: RunRecord, b: RunRecord) -> tuple[str, str]:
    """The labels of two runs; where they are the same, with what differs, and with the seed where nothing else does."""
    if a.label != b.label:
        return a.label, b.label
    settings = [settings_of(run.config) for run in (a, b)]
    if keys := differing(settings):
        first, second = (label_with(a.label, own, keys) for own in settings)
        return first, second
    if a.config["seed"] != b.config["seed"]:
        return f"{a.label}, seed {a.config['seed']}", f"{b.label}, seed {b.config['seed']}"
    return f"{a.label} (1)", f"{b.label} (2)"


def _tables(rows: list[list[Pair]], first: str, second: str) -> list[Table]:
    """A table for each group's pairs that share seeds; of the others the note tells."""
    tables, unpaired = [], []
    for pairs in rows:
        known = [pair for pair in pairs if _measured_alike(pair)]
        unpaired += [f"{pair.text} ({pair.group.title})" for pair in pairs if pair not in known]
        if known:
            group = known[0].group
            note = f" The first is {first}, the second {second}.{_differing(*_some_runs(known[0]))}"
            name = f"compare{group.suffix}_{slug(first)}_{slug(second)}"
            title = f"{first} minus {second}: {group.reward}, {group.title}"
            other = known[0].other_group
            if (other.model, other.device) != (group.model, group.device):
                named = [other.model] * (other.model != group.model) + [other.device] * (other.device != group.device)
                title += f", against {' on '.join(named)}"
            tables.append(paired_table(name, title, note, "difference", known))
    if not tables:
        raise UserError(f"no seed in common: {'; '.join(unpaired)}")
    return tables


def _runs(group: Group, label: str) -> dict[int, RunRecord]:
    return {int(run.config["seed"]): run for run in group.runs if run.label == label}


def _measured_alike(pair: Pair) -> bool:
    """Whether the labels share a seed; UserError where the values of one were not measured as the other's."""
    x, y = _runs(pair.group, pair.label), _runs(pair.other_group, pair.other)
    if x and y and PRETRAINED in (pair.label, pair.other):  # it has no seed of its own
        x = dict.fromkeys(y, next(iter(x.values()))) if pair.label == PRETRAINED else x
        y = dict.fromkeys(x, next(iter(y.values()))) if pair.other == PRETRAINED else y
    shared = sorted(x.keys() & y.keys())
    for seed in shared:
        for what, one, other in zip(
            ("settings", "reward's version", "prompts", "noises"),
            _measure(x[seed], pair.group.reward),
            _measure(y[seed], pair.group.reward),
            strict=True,
        ):
            _check_alike(x[seed], y[seed], one, other, what)
    return bool(shared)


def _check_alike(
    a: RunRecord, b: RunRecord, one: Mapping[str, Any], other: Mapping[str, Any], what: str, besides: str = ""
) -> None:
    """UserError where two runs differ in how they were measured, but for the setting `besides`."""
    differ = [key for key in sorted(one.keys() | other.keys()) if key != besides and one.get(key) != other.get(key)]
    if differ:
        words = "; ".join(f"{key} {one.get(key)!r} and {other.get(key)!r}" for key in differ)[:300]
        raise UserError(
            f"{a.run_id} and {b.run_id} were not evaluated alike ({what}: {words}), so their difference would mean "
            f"nothing: evaluate both with the same settings"
        )


def _measure(run: RunRecord, reward: str) -> tuple[dict, ...]:
    """Everything that decides how a run's values of a reward were measured."""
    rows = [row for row in run.eval if row["reward"] == reward]
    prompts = {split: list(names) for row in rows for split, names in row["prompts"].items()}
    return (
        _settings(run),
        _version(run, reward),
        prompts,
        {"noise_seeds": sorted({seed for row in rows for seed in row["noise_seeds"]})},
    )


def _settings(run: RunRecord) -> dict[str, Any]:
    return {key: run.config.get(key) for key in MEASURING}


def _version(run: RunRecord, reward: str) -> dict[str, Any]:
    found = run.provenance.get("rewards", {}).get(reward, {})
    return {key: found.get(key) for key in ("revision", "scale")}


def _some_runs(pair: Pair) -> tuple[RunRecord, RunRecord]:
    """A run of either side."""
    first, second = (next(iter(_runs(*side).values())) for side in (pair[1:3], pair[3:5]))
    return first, second


def _differing(one: RunRecord, other: RunRecord) -> str:
    """Settings, processors and commits in which two runs differ, for a note."""
    keys = sorted((one.config.keys() | other.config.keys()) - {"label", "run_id", "seed", "begun"})
    found = [
        f"{key} {one.config.get(key)} and {other.config.get(key)}"
        for key in keys
        if one.config.get(key) != other.config.get(key)
    ]
    found += [f"processor {one.device} and {other.device}"] if one.device != other.device else []
    commits = [run.provenance["commit"] for run in (one, other)]
    found += [f"commit {commits[0]} and {commits[1]}"] if commits[0] != commits[1] else []
    return f" They differ in: {'; '.join(found)}." if found else " Their settings, processors and commits are the same."


def rendered(tables: list[Table], form: str) -> str:
    """The tables as aligned text, as Markdown or as one CSV."""
    if form == "csv":
        return csv(pd.concat([table.frame for table in tables], ignore_index=True)).rstrip()
    if form == "markdown":
        return "\n\n".join(markdown(table) for table in tables)
    return "\n\n".join(map(text, tables))


def _spread(group: Group, split: str, steps: int) -> tuple[float, int]:
    """Standard deviation between runs of one method, pooled over the trained methods, and its degrees of
    freedom."""
    cells = [
        list(group.cell(label, group.reward, split, steps).values()) for label in group.labels if label != PRETRAINED
    ]
    freedom = sum(len(cell) - 1 for cell in cells if cell)
    squares = sum(float(np.var(cell)) * len(cell) for cell in cells if cell)
    return (float(np.sqrt(squares / freedom)) if freedom else np.nan), freedom


def compare_with_reference(mine: list[Group], reference: list[Group]) -> str:
    """Text: per label and step count my value against the reference results' and whether it lies within
    tolerance.

    Values are means over runs. Tolerance: half the 95 % prediction interval (Student's t) from the spread
    between the reference's runs, pooled over its methods since a method alone may have two runs; about 1
    value in 20 falls outside by chance alone. The pretrained model has no spread: 1 % of its value. Devices
    may differ; model, reward, K may not.
    """
    theirs = {(g.model, g.reward, g.steps): g for g in reversed(reference)}
    lines: list[str] = []
    verdicts: list[str] = []
    for group in mine:
        other = theirs.get((group.model, group.reward, group.steps))
        lines += [group.title, f"reference: {other.device if other else 'none, nothing to compare with'}", ""]
        if other is not None:
            compared = _values_compared(group, other)
            verdicts += [value.verdict for value in compared]
            heads = ("prompts", "method", "steps", "mine", "reference", "tolerance", "")
            lines += [*aligned([heads, *map(_value_row, compared)]), ""]
    inside, outside = verdicts.count(WITHIN), verdicts.count(OUTSIDE)
    lines.append(
        f"{inside} of {inside + outside} values within tolerance; about 1 in 20 falls outside by "
        f"chance; {len(verdicts) - inside - outside} not compared."
    )
    return "\n".join(lines)


WITHIN, OUTSIDE = "within", "OUTSIDE"


class Compared(NamedTuple):
    """Values of the runs of a label at a number of steps, mine and the reference's, and how far their means may be
    apart; NaN where this is not known."""

    split: str
    label: str
    steps: int
    mine: list[float]
    reference: list[float]
    tolerance: float

    @property
    def verdict(self) -> str:
        if not self.mine or not self.reference:
            return "not in both"
        if np.isnan(self.tolerance):
            return "no spread"
        return WITHIN if abs(np.mean(self.mine) - np.mean(self.reference)) <= self.tolerance else OUTSIDE


def _values_compared(group: Group, other: Group) -> list[Compared]:
    """The values of the trained reward in either group."""
    found = []
    frame = group.values[group.values["reward"] == group.reward]
    for split in sorted(frame["split"].unique()):
        for steps in steps_of(frame):
            spread, freedom = _spread(other, split, steps)
            for label in sorted({*group.labels, *other.labels}, key=label_key):
                x, y = (list(g.cell(label, g.reward, split, steps).values()) for g in (group, other))
                tolerance = np.nan
                if x and y and label == PRETRAINED:
                    tolerance = 0.01 * abs(y[0])
                elif x and y:
                    tolerance = float(student(max(freedom, 1)) * spread * np.sqrt(1 / len(x) + 1 / len(y)))
                found.append(Compared(split, label, steps, x, y, tolerance))
    return found


def _value_row(value: Compared) -> tuple[str, ...]:
    means = (f"{np.mean(v):.3f} (n={len(v)})" if v else DASH for v in (value.mine, value.reference))
    tolerance = DASH if np.isnan(value.tolerance) else f"{value.tolerance:.3f}"
    return (value.split, value.label, str(value.steps), *means, tolerance, value.verdict)
