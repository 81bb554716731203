"""The tables of values by method and number of sampling steps, at the end and at equal cost, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from sdpo_bench.analysis.comparisons import (
    EQUAL,
    Group,
    left_out_text,
    name_part,
    parent,
    smallest_total,
    steps_of,
)
from sdpo_bench.analysis.tables.base import (
    ABOUT,
    COMPUTE,
    DASH,
    UNKNOWN,
    Subject,
    Table,
    cell_text,
    context,
    counters_of,
    decimals_of,
    interval_row,
    note_of,
    run_columns,
    seeds_text,
    step_header,
    summary,
)
from sdpo_bench.analysis.tables.orders import leaders
from sdpo_bench.records.frames import COUNTERS, TRAINED, UNRECORDED, spending
from sdpo_bench.records.reader import RunRecord

CELLS = (
    "Interquartile mean over runs [95 % bootstrap interval] (n runs); with fewer than 5 runs their values "
    "themselves, by seed."
)


def _value_table(
    group: Group,
    name: str,
    title: str,
    note: str,
    reward: str,
    subject: Subject,
    extra: Mapping[str, str] | None = None,
) -> Table:
    """Rows are methods, columns sampling steps, blocks the splits; `extra` adds a column of text per label."""
    frame = group.values[group.values["reward"] == reward]
    steps = steps_of(frame)
    decimals = decimals_of(frame["value"])
    blocks, long = [], []
    for split in sorted(frame["split"].unique()):
        rows = []
        for label in group.methods:
            cells = {k: group.cell(label, reward, split, k) for k in steps}
            more = [extra.get(label, DASH)] if extra else []
            rows.append((label, *more, *(cell_text(cells[k], decimals) for k in steps)))
            place = {**context(group), "reward": reward, "split": split, "label": label}
            long += [
                {
                    **place,
                    "steps": k,
                    **interval_row(summary(values)),
                    **run_columns(values),
                }
                for k, values in cells.items()
            ]
        blocks.append((f"{split} prompts", tuple(rows)))
    return Table(
        name,
        title,
        note_of(note, blocks, group.profile),
        step_header("method", steps, first=("samples",) if extra else ()),
        tuple(blocks),
        pd.DataFrame(long),
        subject=subject,
    )


def main_table(group: Group, reward: str | None = None) -> Table:
    """Final values by method and sampling steps, of the trained reward or of another (did the run only hack
    its own?)."""
    if reward is not None and reward != group.reward:
        hacked = (
            f"No run here was trained on {reward}: where it falls while {group.reward} rises, the run hacked its "
            "reward."
        )
        note = f"{CELLS} {ABOUT.get(reward, hacked)}"
        name = f"other{group.suffix}_{name_part(reward)}"
        return _value_table(group, name, f"{reward} of runs {group.title}", note, reward, Subject.OTHER_REWARDS)
    title = f"{group.reward}, {group.title}"
    table = _value_table(group, main_name(group), title, CELLS, group.reward, Subject.MAIN)
    return replace(table, answer=leaders(group))


def main_name(group: Group) -> str:
    """Name of a group's main table."""
    return f"main{group.suffix}"


def equal_table(group: Group, counter: str, equal: Group) -> Table:
    """Values when a counter stood at the smallest total of a trained run, of `equal`, `at_equal` of the group."""
    used, what = {}, counter.replace("_", " ")
    for label in equal.methods:
        samples = sorted(equal.values.loc[equal.values["label"] == label, "samples"].astype(int).unique())
        if samples:
            used[label] = f"{samples[0]:,}" + (f"–{samples[-1]:,}" if len(samples) > 1 else "")
    note = (
        f"Every run after {smallest_total(group, counter):,} {what}, the smallest total of a trained run; the samples "
        "that it had by then are shown. Values lie on a straight line between the run's evaluations before and after; "
        f"numbers of steps evaluated only at the end are left out. {CELLS}"
    )
    note = " ".join(filter(None, (note, left_out_text([equal], counter), COMPUTE if counter == "compute" else "")))
    title = f"{group.reward} at equal {what}, {group.title}"
    subject = Subject(f"equal_{EQUAL[counter]}")
    return _value_table(equal, f"{subject.value}{group.suffix}", title, note, group.reward, subject, used)


COST_HEADER = ("method", "runs", "epochs"), ("s/epoch: sampling", "reward", "training")  # before and after counters


class Cost(NamedTuple):
    """Cost of the runs of a label: counters at the end (mean over runs) and seconds of an epoch by phase (mean over
    epochs)."""

    runs: list[RunRecord]
    totals: dict[str, float]
    seconds: dict[str, float]


def measure_cost(group: Group, label: str) -> Cost | None:
    """The cost of a label's runs; None without one that was trained."""
    runs = [run for run in group.runs if run.label == label and run.train]
    if not runs:
        return None
    last = [run.train[-1] for run in runs]
    epochs = [row for run in runs for row in run.train]
    totals = {key: float(np.mean([row[key] for row in last])) for key in ("epoch", *COUNTERS)}
    trained = [spending(run).get(row["epoch"], UNRECORDED) for run, row in zip(runs, last, strict=True)]
    totals |= dict(zip(TRAINED, np.mean(trained, axis=0).tolist(), strict=True))
    seconds = {
        key: sum(row["seconds"].get(key, 0.0) for row in epochs) / len(epochs) for key in ("sample", "reward", "train")
    }
    return Cost(runs, totals, seconds)


def _cost_row(cost: Cost, counters: Sequence[str]) -> tuple[str, ...]:
    totals = [cost.totals[name] for name in ("epoch", *counters)]
    return (
        str(len(cost.runs)),
        *(UNKNOWN if math.isnan(value) else f"{value:,.0f}" for value in totals),
        *(f"{value:.3g}" for value in cost.seconds.values()),
    )


def cost_table(group: Group) -> Table:
    """Cost of a run of each label: totals at its end, seconds per epoch as recorded on its device."""
    blocks, long = [], []
    counters = counters_of(group)
    before, after = COST_HEADER
    header = (*before, *(name.replace("_", " ") for name in counters), *after)
    for title, labels in (
        ("", [label for label in group.labels if parent(label) is None]),
        ("ablations", [label for label in group.labels if parent(label) is not None]),
    ):
        rows: list[tuple[str, ...]] = []
        for label in labels:
            cost = measure_cost(group, label)
            if cost is None:
                rows.append((label, *(DASH if label in group.missing else "0" for _ in header[1:])))
                continue
            rows.append((label, *_cost_row(cost, counters)))
            long.append(
                {
                    **context(group),
                    "label": label,
                    "n": len(cost.runs),
                    **cost.totals,
                    **{f"seconds_{key}": value for key, value in cost.seconds.items()},
                    "seeds": seeds_text(run.config["seed"] for run in cost.runs),
                }
            )
        if rows:
            blocks.append((title, tuple(rows)))
    note = "Means over runs: totals at the end of training, seconds of an epoch (mean over epochs)."
    note += f" {COMPUTE}" if "compute" in counters else ""
    return Table(
        f"cost{group.suffix}",
        f"Cost, {group.title}",
        note_of(note, blocks, group.profile),
        header,
        tuple(blocks),
        pd.DataFrame(long),
        subject=Subject.COST,
    )
