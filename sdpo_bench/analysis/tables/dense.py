"""The tables of the accuracy of predicted dense rewards, by number of queries and by step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

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


class Stage(NamedTuple):
    """The probes of a label of a group at one time of training."""

    group: Group
    label: str
    trained: bool
    when: str
    probes: list[Probe]

    @property
    def title(self) -> str:
        return f"{self.group.reward}, K = {self.group.steps}, {self.label}, {self.when}"

    @property
    def where(self) -> str:
        return f"{self.group.reward}, K = {self.group.steps}"

    @property
    def columns(self) -> dict[str, object]:
        """First columns of its rows in a frame."""
        return {**context(self.group), "label": self.label, "when": self.when}


def _stages(groups: list[Group]) -> list[Stage]:
    """The probes of all groups, before training and after it."""
    found = []
    for group in groups:
        rows = dense_rows(group)
        for label in dict.fromkeys(run.label for run, _ in rows):
            own = [(run, row) for run, row in rows if run.label == label]
            last = {run.run_id: max(row["epoch"] for other, row in own if other is run) for run, _ in own}
            before = [(run, row) for run, row in own if row["epoch"] == 0]
            after = [(run, row) for run, row in own if row["epoch"] == last[run.run_id] > 0]
            epochs = joined(sorted({row["epoch"] for _, row in after}))
            stages = (
                Stage(group, label, False, "before training", before),
                Stage(group, label, True, f"after {epochs} epochs", after),
            )
            found += [stage for stage in stages if stage.probes]
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


class Budget(NamedTuple):
    """A budget's measures at one stage, by seed, and how much its error is above that of the anchored prediction."""

    name: str
    queries: float
    measures: dict[str, Values]
    more: Values


def measure_budgets(stage: Stage) -> list[Budget]:
    """The budgets that a stage probed with a defined error."""
    measures = {name: _by_seed(stage.probes, name) for name in BUDGETS}
    return [
        Budget(
            name,
            float(np.mean([row["queries_per_sample"] for _, row in stage.probes if row["budget"] == name])),
            found,
            differences(found["error"], measures[ANCHORED]["error"]) if name != ANCHORED else {},
        )
        for name, found in measures.items()
        if found["error"]
    ]


def dense_budgets_table(groups: list[Group]) -> Table | None:
    """How accurate is the prediction with each budget of reward queries? None without probes."""
    stages = [(stage, measure_budgets(stage)) for stage in _stages(groups)]
    blocks: list[Block] = [(stage.title, tuple(map(_budget_row, budgets))) for stage, budgets in stages]
    long = [row for stage, budgets in stages for budget in budgets for row in _budget_frame(stage, budget)]
    if not long:
        return None
    added = "".join(f"; {name}: {entry.title}" for name, entry in BUDGETS.items() if entry.row is None)
    note = (
        f"{MEASURED} Budgets: the final reward at every step (terminal), 2, 3 (the paper's anchored prediction), 4 "
        f"or an adaptive number of queries, and 3 joined by straight lines (linear3){added}. Minus 3's: difference "
        "of errors, paired by run."
    )
    header = (
        "budget",
        "queries a sample",
        "error",
        "minus 3's",
        *(text for name, text in MEASURES.items() if name != "error"),
    )
    first = groups[0]
    return Table(
        f"dense_budgets{file_suffix(first)}",
        f"Predictions of dense rewards by query budget, {first.model} on {first.device}",
        note_of(note, blocks, first.profile),
        header,
        tuple(blocks),
        pd.DataFrame(long),
        _budgets_answer([(stage, budgets) for stage, budgets in stages if stage.trained]),
        Subject.DENSE_BUDGETS,
    )


def _budget_row(budget: Budget) -> tuple[str, ...]:
    return (
        budget.name,
        f"{budget.queries:.3g}",
        mean_text(budget.measures["error"]),
        mean_text(budget.more, sign="+") if budget.more else "",
        *(mean_text(budget.measures[name]) for name in MEASURES if name != "error"),
    )


def _budget_frame(stage: Stage, budget: Budget) -> list[dict[str, object]]:
    """Rows of the table's frame, one a measure that is defined."""
    place = {**stage.columns, "budget": budget.name, "queries_per_sample": budget.queries}
    measures = {**budget.measures, "error_minus_anchored": budget.more}
    return [{**place, "measure": name, **summarised(values)} for name, values in measures.items() if values]


def _budgets_answer(stages: list[tuple[Stage, list[Budget]]]) -> str:
    """How large the anchored prediction's error is after training, and how often that of other budgets is smaller or
    larger."""
    texts = []
    sides: dict[str, list[int]] = {}
    for stage, budgets in stages:
        for budget in budgets:
            if budget.more:
                sides.setdefault(budget.name, []).append(clearly(budget.more))
            if budget.name == ANCHORED:
                error, returns = (mean_text(budget.measures[name]) for name in ("error", "return_correlation"))
                texts.append(f"{stage.where}: {error}, correlation of returns {returns}")
    compared = [
        f"{budget} smaller in {found.count(-1)}, larger in {found.count(1)} of {len(found)}"
        for budget, found in sides.items()
    ]
    answer = f"Error of the anchored prediction after training: {'; '.join(texts)}." if texts else ""
    if compared:
        answer += f" Error minus it, by an interval that leaves out 0: {'; '.join(compared)}."
    return answer


def step_ranges(steps: int) -> dict[str, list[int]]:
    """The steps one by one, from 1; above K = 8 in thirds."""
    if steps <= 8:
        return {f"step {k + 1}": [k] for k in range(steps)}
    return {f"steps {part[0] + 1} to {part[-1] + 1}": part.tolist() for part in np.array_split(np.arange(steps), 3)}


def dense_steps_table(groups: list[Group]) -> Table | None:
    """Where along the trajectory, and when in training, is the anchored prediction accurate? None without probes."""
    stages = [
        (stage, {name: _by_seed(stage.probes, ANCHORED, ks) for name, ks in step_ranges(stage.group.steps).items()})
        for stage in _stages(groups)
    ]
    blocks: list[Block] = [
        (
            stage.title,
            tuple(
                (name, *(mean_text(measures[key]) if measures[key] else "" for key in MEASURES))
                for name, measures in found.items()
            ),
        )
        for stage, found in stages
    ]
    long = [
        {**stage.columns, "steps": name, "measure": key, **summarised(values)}
        for stage, found in stages
        for name, measures in found.items()
        for key, values in measures.items()
        if values
    ]
    if not long:
        return None
    first = groups[0]
    return Table(
        f"dense_steps{file_suffix(first)}",
        f"The anchored prediction by step, {first.model} on {first.device}",
        note_of(
            f"With three queries (the paper's). {MEASURED} An empty cell: not defined there.", blocks, first.profile
        ),
        ("steps", *MEASURES.values()),
        tuple(blocks),
        pd.DataFrame(long),
        _steps_answer([(stage, found) for stage, found in stages if stage.trained]),
        Subject.DENSE_STEPS,
    )


def _steps_answer(stages: list[tuple[Stage, dict[str, dict[str, Values]]]]) -> str:
    """Where the error is largest after training."""
    texts = []
    for stage, found in stages:
        errors = {name: measures["error"] for name, measures in found.items() if measures["error"]}
        if errors:
            worst = max(errors, key=lambda name: float(np.mean(list(errors[name].values()))))
            texts.append(f"{stage.where}: {worst}, {mean_text(errors[worst])}")
    return f"The anchored prediction's error after training is largest at: {'; '.join(texts)}." if texts else ""
