"""Differences between two methods, paired by seed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from sdpo_bench.analysis.comparisons import (
    PRETRAINED,
    Group,
    Values,
)
from sdpo_bench.analysis.statistics import (
    paired_difference,
    probability_of_improvement,
)
from sdpo_bench.analysis.tables.base import (
    BASELINE,
    DASH,
    MIN_RUNS,
    Block,
    Subject,
    Table,
    cell_text,
    context,
    decimals_of,
    interval_columns,
    joined,
    note_of,
    run_columns,
    step_header,
)


class Pair(NamedTuple):
    """Two labels to compare by seed, each with the group of its runs, and the row's text."""

    text: str
    group: Group
    label: str
    other_group: Group
    other: str

    def cells(self, split: str, steps: int) -> tuple[Values, Values]:
        """Values of the trained reward, by seed. The pretrained model has no seed: it stands against every run."""
        x = self.group.cell(self.label, self.group.reward, split, steps)
        y = self.other_group.cell(self.other, self.other_group.reward, split, steps)
        if x and y and PRETRAINED in (self.label, self.other):
            x = dict.fromkeys(y, next(iter(x.values()))) if self.label == PRETRAINED else x
            y = dict.fromkeys(x, next(iter(y.values()))) if self.other == PRETRAINED else y
        return x, y


Cells = dict[int | str, tuple[Values, Values]]  # number of steps, or `ALL` -> values of the two labels of a pair


ALL = "mean"  # over these numbers of steps


PAIRED = (
    "Differences are paired by seed: their mean [95 % interval, Student's t] (n pairs); with fewer than 5 pairs "
    "the differences themselves, by seed. Where nothing differs about one interval in 20 leaves out 0. "
    "Probability: that a run of the first beats one of the second, ties half [95 % interval, Newcombe's]."
)


def differences(x: Values, y: Values) -> Values:
    """x - y at the seeds that both have."""
    return {seed: x[seed] - y[seed] for seed in sorted(x.keys() & y.keys())}


def difference_text(x: Values, y: Values, decimals: int) -> str:
    shared = differences(x, y)
    return cell_text(shared, decimals, "+", paired_difference(x, y) if shared else None)


def paired_table(name: str, title: str, note: str, first: str, pairs: list[Pair]) -> Table:
    """A row per pair: differences of the trained reward at each number of sampling steps that both groups have, and
    of its mean over these, then probabilities of improvement; blocks are the splits."""
    group, other = pairs[0].group, pairs[0].other_group
    steps = [k for k in group.steps_evaluated if k in other.steps_evaluated]
    decimals = decimals_of(group.values.loc[group.values["reward"] == group.reward, "value"])
    blocks: list[Block] = []
    long, answer = [], ""
    for split in sorted(set(group.splits) & set(other.splits)):
        cells = [_cells(pair, split, steps) for pair in pairs]
        shown, chances = (
            tuple((pair.text, *(text(*xy) for xy in own.values())) for pair, own in zip(pairs, cells, strict=True))
            for text in (partial(difference_text, decimals=decimals), _probability_text)
        )
        blocks += [
            (f"{split} prompts: difference", shown),
            (f"{split} prompts: probability of improvement", chances),
        ]
        long += [
            {**context(group), "split": split, **row}
            for pair, own in zip(pairs, cells, strict=True)
            for row in _frame_rows(pair, own)
        ]
        known = [f"{row[0]} {row[-1]}" for row in shown if row[-1] != DASH]
        if known and split == group.shown_split:
            answer = f"{split.capitalize()} prompts, mean over {joined(steps)} steps: {'; '.join(known)}."
    return Table(
        name,
        title,
        note_of(f"{PAIRED}{note}", blocks, group.profile),
        step_header(first, steps, *([ALL] if len(steps) > 1 else [])),
        tuple(blocks),
        pd.DataFrame(long),
        answer,
    )


def _cells(pair: Pair, split: str, steps: list[int]) -> Cells:
    """Values of both labels at each number of steps; of several also their means over these (`ALL`), by seed."""
    cells: Cells = {k: pair.cells(split, k) for k in steps}
    if len(steps) > 1:
        x, y = (
            {
                seed: float(np.mean([cells[k][side][seed] for k in steps]))
                for seed in sorted(set.intersection(*(set(cells[k][side]) for k in steps)))
            }
            for side in (0, 1)
        )
        cells[ALL] = x, y
    return cells


def _probability_text(x: Values, y: Values) -> str:
    """The probability that a run of x beats one of y, its interval from `MIN_RUNS` runs on; a dash without a pair."""
    if not differences(x, y):
        return DASH
    p = probability_of_improvement(list(x.values()), list(y.values()))
    interval = f" [{p.low:.2f}, {p.high:.2f}]" if p.n >= MIN_RUNS else ""
    return f"{p.value:.2f}{interval} (n={len(x)}, {len(y)})"


def _frame_rows(pair: Pair, cells: Cells) -> list[dict[str, object]]:
    """Rows of the table's frame, one a number of steps with a pair of runs."""
    rows: list[dict[str, object]] = []
    for k, (x, y) in cells.items():
        if not (shared := differences(x, y)):
            continue
        d = paired_difference(x, y)
        p = probability_of_improvement(list(x.values()), list(y.values()))
        rows.append(
            {
                "label": pair.label,
                "baseline": pair.other,
                "steps": k,
                "n": d.n,
                "difference": d.value,
                **interval_columns(d),
                **run_columns(shared),
                "probability": p.value,
                **{f"probability_{key}": value for key, value in interval_columns(p).items()},
            }
        )
    return rows


def baseline_label(group: Group) -> str | None:
    """SDPO, or the first trained method where there is none."""
    labels = [label for label in group.methods if label != PRETRAINED]
    return BASELINE if BASELINE in labels else labels[0] if labels else None


def difference_table(group: Group) -> Table | None:
    """Each method minus the baseline; None with fewer than two methods."""
    base = baseline_label(group)
    pairs = [
        Pair(label, group, label, group, base) for label in group.methods if base and label not in (base, PRETRAINED)
    ]
    if not pairs:
        return None
    table = paired_table(
        f"differences{group.suffix}",
        f"{group.reward} minus {base}'s, {group.title}",
        f" The second is {base}.",
        "method",
        pairs,
    )
    return replace(table, answer="", subject=Subject.DIFFERENCES)  # who leads is the main table's answer
