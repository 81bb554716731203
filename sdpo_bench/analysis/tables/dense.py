"""How accurate predicted dense rewards are, by number of queries and by step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from sdpo_bench.analysis.comparisons import Group, Values, parent
from sdpo_bench.analysis.tables.base import Block, Subject, Table, context, file_suffix, joined, note_of
from sdpo_bench.analysis.tables.means import MEANS, clearly, mean_text, summarised
from sdpo_bench.analysis.tables.pairs import differences
from sdpo_bench.catalogue import BUDGETS, DENSE_REWARDS
from sdpo_bench.records.reader import RunRecord

ANCHORED = {entry.name: entry.budget for entry in DENSE_REWARDS}[
    "anchored"
]  # the paper's: the first, the last and an anchor between


Probe = tuple[RunRecord, dict[str, Any]]  # a run and a row of its dense.jsonl


# Predictions of dense rewards -----------------------------------------------------------------------------------


def dense_rows(group: Group) -> list[Probe]:
    """The probes of a group's methods (not of ablations): their runs and rows of dense.jsonl."""
    return [(run, row) for run in group.runs if parent(run.label) is None for row in run.dense]


def dense_measures(row: dict[str, Any], steps: Iterable[int]) -> dict[str, float]:
    """A probe's measures over these steps; NaN where none of them is defined."""
    chosen = list(steps)

    def mean(name: str) -> float:
        known = [row[name][k] for k in chosen if row[name][k] is not None]
        return float(np.mean(known)) if known else np.nan

    std = mean("std")
    return {
        "error": mean("mae") / std if std > 0 else np.nan,
        "correlation": mean("corr"),
        "return_correlation": mean("return_corr"),
        "sign": mean("return_sign"),
    }


MEASURES = {
    "error": "error",
    "correlation": "correlation of differences",
    "return_correlation": "of returns",
    "sign": "sign agrees",
}


MEASURED = (
    "Error: mean absolute error of the predicted rewards over the standard deviation of the exact ones. "
    "Correlation of differences: of predicted and exact reward differences within pairs (the first step is "
    "shared by the pair and left out); of returns: the same of discounted returns; sign agrees: share of pairs "
    f"whose difference of returns has the exact sign. Steps that were queried have no error and count. Each "
    f"{MEANS}."
)


def _probes(groups: list[Group]) -> list[tuple[Group, str, str, list[Probe]]]:
    """(group, label, when, probes) of all groups, before training and after it."""
    found = []
    for group in groups:
        rows = dense_rows(group)
        for label in dict.fromkeys(run.label for run, _ in rows):
            own = [(run, row) for run, row in rows if run.label == label]
            last = {run.run_id: max(row["epoch"] for other, row in own if other is run) for run, _ in own}
            before = [(run, row) for run, row in own if row["epoch"] == 0]
            after = [(run, row) for run, row in own if row["epoch"] == last[run.run_id] > 0]
            epochs = joined(sorted({row["epoch"] for _, row in after}))
            found += [
                (group, label, when, probes)
                for when, probes in (("before training", before), (f"after {epochs} epochs", after))
                if probes
            ]
    return found


def _by_seed(probes: list[Probe], budget: str, steps: Iterable[int] | None = None) -> dict[str, Values]:
    """Each measure of a budget, by seed, where it is defined; over all steps unless some are given."""
    found: dict[str, Values] = {name: {} for name in MEASURES}
    for run, row in sorted(probes, key=lambda probe: probe[0].config["seed"]):
        if row["budget"] == budget:
            for name, value in dense_measures(row, range(len(row["mae"])) if steps is None else steps).items():
                if not np.isnan(value):
                    found[name][int(run.config["seed"])] = value
    return found


def dense_budgets_table(groups: list[Group]) -> Table | None:
    """How accurate is the prediction with each budget of reward queries? None without probes."""
    blocks: list[Block] = []
    long, texts = [], []
    sides: dict[str, list[int]] = {}
    for group, label, when, probes in _probes(groups):
        measures = {budget: _by_seed(probes, budget) for budget in BUDGETS}
        rows = []
        for budget, found in measures.items():
            if not found["error"]:
                continue
            queries = np.mean([row["queries_per_sample"] for _, row in probes if row["budget"] == budget])
            more = differences(found["error"], measures[ANCHORED]["error"]) if budget != ANCHORED else {}
            if more and when != "before training":
                sides.setdefault(budget, []).append(clearly(more))
            rows.append(
                (
                    budget,
                    f"{queries:.3g}",
                    mean_text(found["error"]),
                    mean_text(more, sign="+") if more else "",
                    *(mean_text(found[name]) for name in MEASURES if name != "error"),
                )
            )
            for name, values in (*found.items(), ("error_minus_anchored", more)):
                if values:
                    long.append(
                        {
                            **context(group),
                            "label": label,
                            "when": when,
                            "budget": budget,
                            "queries_per_sample": queries,
                            "measure": name,
                            **summarised(values),
                        }
                    )
        blocks.append((f"{group.reward}, K = {group.steps}, {label}, {when}", tuple(rows)))
        if when != "before training" and measures[ANCHORED]["error"]:
            texts.append(
                f"{group.reward}, K = {group.steps}: {mean_text(measures[ANCHORED]['error'])}, correlation of "
                f"returns {mean_text(measures[ANCHORED]['return_correlation'])}"
            )
    if not long:
        return None
    added = "".join(f"; {name}: {entry.title}" for name, entry in BUDGETS.items() if entry.row is None)
    note = (
        f"{MEASURED} Budgets: the final reward at every step (terminal), 2, 3 (the paper's anchored prediction), 4 "
        f"or an adaptive number of queries, and 3 joined by straight lines (linear3){added}. Minus 3's: difference "
        "of errors, paired by run."
    )
    compared = [
        f"{budget} smaller in {found.count(-1)}, larger in {found.count(1)} of {len(found)}"
        for budget, found in sides.items()
    ]
    answer = f"Error of the anchored prediction after training: {'; '.join(texts)}." if texts else ""
    if compared:
        answer += f" Error minus it, by an interval that leaves out 0: {'; '.join(compared)}."
    header = (
        "budget",
        "queries a sample",
        "error",
        "minus 3's",
        *(text for name, text in MEASURES.items() if name != "error"),
    )
    first = groups[0]
    title = f"Predictions of dense rewards by query budget, {first.model} on {first.device}"
    return Table(
        f"dense_budgets{file_suffix(first)}",
        title,
        note_of(note, blocks, first.profile),
        header,
        tuple(blocks),
        pd.DataFrame(long),
        answer,
        Subject.DENSE_BUDGETS,
    )


def step_ranges(steps: int) -> dict[str, list[int]]:
    """The steps one by one, from 1; above K = 8 in thirds."""
    if steps <= 8:
        return {f"step {k + 1}": [k] for k in range(steps)}
    return {f"steps {part[0] + 1} to {part[-1] + 1}": part.tolist() for part in np.array_split(np.arange(steps), 3)}


def dense_steps_table(groups: list[Group]) -> Table | None:
    """Where along the trajectory, and when in training, is the anchored prediction accurate? None without probes."""
    blocks: list[Block] = []
    long, texts = [], []
    for group, label, when, probes in _probes(groups):
        rows, errors = [], {}
        for name, chosen in step_ranges(group.steps).items():
            found = _by_seed(probes, ANCHORED, chosen)
            rows.append((name, *(mean_text(found[measure]) if found[measure] else "" for measure in MEASURES)))
            if found["error"]:
                errors[name] = found["error"]
            long += [
                {
                    **context(group),
                    "label": label,
                    "when": when,
                    "steps": name,
                    "measure": measure,
                    **summarised(values),
                }
                for measure, values in found.items()
                if values
            ]
        blocks.append((f"{group.reward}, K = {group.steps}, {label}, {when}", tuple(rows)))
        if errors and when != "before training":
            worst = max(errors, key=lambda name: float(np.mean(list(errors[name].values()))))
            texts.append(f"{group.reward}, K = {group.steps}: {worst}, {mean_text(errors[worst])}")
    if not long:
        return None
    note = f"With three queries (the paper's). {MEASURED} An empty cell: not defined there."
    answer = f"The anchored prediction's error after training is largest at: {'; '.join(texts)}." if texts else ""
    first = groups[0]
    title = f"The anchored prediction by step, {first.model} on {first.device}"
    return Table(
        f"dense_steps{file_suffix(first)}",
        title,
        note_of(note, blocks, first.profile),
        ("steps", *MEASURES.values()),
        tuple(blocks),
        pd.DataFrame(long),
        answer,
        Subject.DENSE_STEPS,
    )
