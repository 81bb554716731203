"""The table of the order of methods, and which of them leads."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import pandas as pd

from sdpo_bench.analysis.comparisons import EQUAL, PRETRAINED, Group, Values, label_key, left_out_text
from sdpo_bench.analysis.statistics import (
    iqm,
    paired_difference,
)
from sdpo_bench.analysis.tables.base import (
    COMPUTE,
    DASH,
    MIN_RUNS,
    Subject,
    Table,
    by_text,
    context,
    decimals_of,
    file_suffix,
    joined,
)
from sdpo_bench.analysis.tables.pairs import Pair, difference_text, differences

NOTE = (
    "Best first, by interquartile mean. a > b: the 95 % interval of the difference paired by seed is above "
    f"0 (Student's t, at least {MIN_RUNS} pairs, intervals not corrected for their number); a ~ b: the order "
    "of the estimates, not established."
)


def ranking(group: Group, split: str, steps: int) -> list[tuple[str, bool]]:
    """Methods from best to worst interquartile mean, each with whether the one before it is ahead beyond
    doubt: the 95 % interval of their difference, paired by at least `MIN_RUNS` seeds, lies above 0."""
    cells = {label: group.cell(label, group.reward, split, steps) for label in group.methods}
    points = {label: float(iqm(list(values.values()))) for label, values in cells.items() if values}
    labels = sorted(points, key=lambda label: (-points[label], label_key(label)))
    order = [(label, False) for label in labels[:1]]
    for better, worse in pairwise(labels):
        x, y = Pair("", group, better, group, worse).cells(split, steps)
        order.append((worse, len(x.keys() & y.keys()) >= MIN_RUNS and paired_difference(x, y).low > 0))
    return order


class Lead(NamedTuple):
    """The highest method of a group at a number of sampling steps, and the next; `values` are its leads by seed, `sure`
    whether their interval is above 0."""

    group: Group
    steps: int
    best: str
    second: str
    sure: bool
    values: Values
    text: str
    """The lead with its interval; a dash where they share no seed."""

    @property
    def size(self) -> float:
        """The mean lead."""
        return sum(self.values.values()) / len(self.values)

    @property
    def enough(self) -> bool:
        """Whether there are enough seeds for an interval."""
        return len(self.values) >= MIN_RUNS


def leads(groups: Iterable[Group]) -> list[Lead]:
    """The leads on the shown split, where there are two methods. One that stands alone because `at_equal` left the
    others out leads nobody."""
    found = []
    for group in groups:
        split = group.shown_split
        decimals = decimals_of(group.values.loc[group.values["reward"] == group.reward, "value"])
        for steps in group.steps_evaluated:
            order = ranking(group, split, steps)
            trained = sum(label != PRETRAINED for label, _ in order)
            if len(order) > 1 and (trained > 1 or not group.left_out):
                (best, _), (second, sure), *_ = order
                cells = Pair("", group, best, group, second).cells(split, steps)
                text = difference_text(*cells, decimals)
                found.append(Lead(group, steps, best, second, sure, differences(*cells), text))
    return found


def leaders(group: Group) -> str:
    """Who is highest at each number of sampling steps, and by how much over the next, in a sentence."""
    texts = [
        f"at {lead.steps} step{'s' * (lead.steps > 1)} {lead.best} "
        + (f"({lead.text} over {lead.second})" if lead.values else f"(before {lead.second}, no seed in common)")
        for lead in leads([group])
    ]
    where = f"K = {group.steps}, {group.reward}, {group.shown_split} prompts"
    return f"{where}: highest by interquartile mean is {joined(texts)}." if texts else ""


def cells_text(cells: Iterable[tuple[str, int]]) -> str:
    """(reward, K) in words: "alignment at K = 4 and 20 and colourfulness at K = 4"."""
    found: dict[str, list[int]] = {}
    for reward, k in sorted(cells):
        found.setdefault(reward, []).append(k)
    return joined([f"{reward} at K = {joined(ks)}" for reward, ks in found.items()])


def order_table(groups: list[Group], counter: str | None = None) -> Table:
    """Order of the methods at each step count for every training K: does it change with K? Groups of one
    device; at equal samples, or as `at_equal` gives them for a counter."""
    first = groups[0]
    orders = [
        (group, split, steps, ranking(group, split, steps))
        for group in groups
        for split in group.splits
        for steps in group.steps_evaluated
    ]
    rows = tuple(
        (group.reward, str(group.steps), split, str(steps), _order_text(order)) for group, split, steps, order in orders
    )
    used = {group: spent(group) for group in groups}
    texts = tuple((group.reward, str(group.steps), "", "", _spent_text(used[group])) for group in groups)
    long = [
        {
            **context(group),
            "split": split,
            "steps": steps,
            "rank": rank,
            "label": label,
            "established": sure,
            "samples": used[group][label].samples,
            "optimiser_steps": used[group][label].optimiser_steps,
        }
        for group, split, steps, order in orders
        for rank, (label, sure) in enumerate(order, 1)
    ]
    further = [left_out_text(groups, counter) if counter else "", COMPUTE if counter == "compute" else ""]
    how = f" at equal {counter.replace('_', ' ') if counter else 'samples'}"
    subject = Subject(f"order_{EQUAL[counter]}") if counter else Subject.ORDER
    return Table(
        f"{subject.value}{file_suffix(first)}",
        f"Order of the methods{how}, {first.model} on {first.device}",
        " ".join(filter(None, (NOTE, *further))),
        ("reward", "training K", "prompts", "sampling steps", "order"),
        (("", rows), ("samples and optimiser steps of a run, mean over runs", texts)),
        pd.DataFrame(long),
        _answer([order for *_, order in orders], how),
        subject,
    )


class Spent(NamedTuple):
    """Samples and optimiser steps of a method's runs, mean over runs."""

    samples: float
    optimiser_steps: float


def spent(group: Group) -> dict[str, Spent]:
    """Spending of each method of a group at the values that the group shows."""
    frame = group.values[group.values["reward"] == group.reward]
    ends = frame.groupby(["label", "run"])[[*Spent._fields]].max().groupby("label").mean()
    return {label: Spent(*ends.loc[label]) for label in group.methods if label in ends.index}


def _spent_text(used: dict[str, Spent]) -> str:
    """SDPO 1,600 and 150; DDPO, REBEL 1,600 and 50"""
    return by_text(
        {
            label: f"{row.samples:,.0f} and {row.optimiser_steps:,.0f}"
            for label, row in used.items()
            if label != PRETRAINED
        }
    )


def _order_text(order: list[tuple[str, bool]]) -> str:
    """a > b ~ c, or a dash."""
    return "".join((" > " if sure else " ~ ") + label for label, sure in order)[3:] or DASH


def _answer(orders: list[list[tuple[str, bool]]], how: str) -> str:
    """How often each method is highest, and how often this is established."""
    leads: dict[str, list[bool]] = {}
    for order in orders:
        if len(order) > 1:
            leads.setdefault(order[0][0], []).append(order[1][1])
    if not leads:
        return ""
    each = ", ".join(
        f"{label} {len(sure)} ({sum(sure)})"
        for label, sure in sorted(leads.items(), key=lambda item: (-len(item[1]), label_key(item[0])))
    )
    return (
        f"Highest{how}, in how many of {sum(map(len, leads.values()))} cases (a reward, K, split of prompts, number of "
        f"sampling steps; in brackets: ahead of the next by an interval above 0): {each}."
    )
