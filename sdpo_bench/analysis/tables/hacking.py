"""The table of what else changed when the trained reward rose: reward hacking and diversity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

from sdpo_bench.analysis.comparisons import PRETRAINED, Group, Values
from sdpo_bench.analysis.tables.base import (
    ABOUT,
    MIN_RUNS,
    Block,
    Subject,
    Table,
    at_steps,
    context,
    decimals_of,
    joined,
    note_of,
)
from sdpo_bench.analysis.tables.means import MEANS, clearly, mean_text, summarised

NOTE = (
    f"Changes from the pretrained model: {MEANS}. Fell: what was not trained on and has an interval below 0 where the "
    "trained reward's is above 0; a held-out scorer that falls there says that the reward was hacked, "
    "diversity that pictures of a prompt became alike."
)


class Case(NamedTuple):
    """A label at a number of sampling steps: changes of each reward from the pretrained model, by seed; whether the
    trained reward rose by an interval above 0, and which of the others then fell by one below 0."""

    label: str
    steps: int
    changes: dict[str, Values]
    rose: bool
    fell: list[str]


def measure(group: Group, label: str, steps: int, rewards: Iterable[str]) -> Case:
    """A case's changes, and what they establish."""
    split = group.shown_split
    changes = {}
    for name in rewards:
        before = group.cell(PRETRAINED, name, split, steps)
        after = group.cell(label, name, split, steps) if before else {}
        changes[name] = {seed: value - next(iter(before.values())) for seed, value in after.items()}
    rose = clearly(changes[group.reward]) > 0
    fell = [name for name in changes if rose and name != group.reward and clearly(changes[name]) < 0]
    return Case(label, steps, changes, rose, fell)


def hacking_table(group: Group) -> Table | None:
    """Change from the pretrained model, in the trained reward and in all that was not trained on, of methods, then
    ablations; None without the pretrained model or others. The answer counts methods."""
    split = group.shown_split
    others = sorted(set(group.values["reward"]) - {group.reward})
    trained = [label for label in group.labels if label != PRETRAINED]
    rewards = [
        name
        for name in (group.reward, *others)
        if any(group.cell(PRETRAINED, name, split, k) for k in group.steps_evaluated)
    ]
    if group.reward not in rewards or len(rewards) < 2 or not trained:
        return None
    digits = {name: decimals_of(group.values.loc[group.values["reward"] == name, "value"]) for name in rewards}
    cases = {k: [measure(group, label, k, rewards) for label in trained] for k in group.steps_evaluated}
    blocks: list[Block] = [
        (f"{split} prompts, {at_steps(k)}", tuple(_row(group, case, digits) for case in found))
        for k, found in cases.items()
    ]
    return Table(
        f"hacking{group.suffix}",
        f"What rose and what fell, {group.title}",
        note_of(" ".join([NOTE, *(ABOUT[name] for name in rewards if name in ABOUT)]), blocks, group.profile),
        ("method", *rewards, "fell"),
        tuple(blocks),
        pd.DataFrame([row for found in cases.values() for case in found for row in _frame_rows(group, case)]),
        _answer(group, [case for found in cases.values() for case in found if case.label in group.methods]),
        Subject.HACKING,
    )


def _row(group: Group, case: Case, digits: dict[str, int]) -> tuple[str, ...]:
    """Cells of a case, changes with so many decimals."""
    few = len(case.changes[group.reward]) < MIN_RUNS
    fell = joined(case.fell) if case.fell else "none" if case.rose else "trained reward not up"
    changes = (mean_text(values, digits[name], "+") for name, values in case.changes.items())
    return (case.label, *changes, "too few runs" if few else fell)


def _frame_rows(group: Group, case: Case) -> list[dict[str, object]]:
    """Rows of the table's frame, one a reward."""
    return [
        {
            **context(group),
            "split": group.shown_split,
            "steps": case.steps,
            "label": case.label,
            "reward": name,
            **summarised(values),
            "falls_while_trained_rises": name in case.fell,
        }
        for name, values in case.changes.items()
    ]


def _answer(group: Group, cases: list[Case]) -> str:
    """In how many of the methods' cases the trained reward rose, and what fell in these."""
    if all(len(case.changes[group.reward]) < MIN_RUNS for case in cases):
        return f"K = {group.steps}, trained on {group.reward}: fewer than {MIN_RUNS} runs a method establish nothing."
    fell = Counter(name for case in cases for name in case.fell)
    counts = "; ".join(f"{name} fell in {fell[name]}" for name in cases[0].changes if name != group.reward)
    return (
        f"K = {group.steps}, trained on {group.reward}, {group.shown_split} prompts: it rose in "
        f"{sum(case.rose for case in cases)} of {len(cases)} cases "
        f"(a method at a number of steps) by an interval above 0, and of these, by an interval below 0, "
        f"{counts}."
    )
