"""Whether the paper's order of methods holds, pair by pair and K by K."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, product
from typing import NamedTuple

import pandas as pd

from sdpo_bench.analysis.comparisons import EQUAL, Group, Values, left_out_text
from sdpo_bench.analysis.paper import METHODS
from sdpo_bench.analysis.statistics import Interval, paired_difference
from sdpo_bench.analysis.tables.base import (
    DASH,
    MIN_RUNS,
    Block,
    Subject,
    Table,
    cell_text,
    context,
    decimals_of,
    file_suffix,
    interval_columns,
    note_of,
    seeds_text,
    step_header,
)
from sdpo_bench.analysis.tables.claims import CONTRADICTED, SUPPORTED, Claim
from sdpo_bench.analysis.tables.orders import cells_text
from sdpo_bench.analysis.tables.pairs import Pair, differences

NOTE = (
    f"The paper's order is {' > '.join(METHODS)}, at every number of sampling steps. Differences of "
    "neighbours, paired by seed: mean [95 % interval, Student's t] (n pairs). Supported: the interval is above "
    f"0; contradicted: below; not decided: it holds 0, or there are fewer than {MIN_RUNS} pairs."
)


class Case(NamedTuple):
    """Neighbours of the paper's order in one group, split and number of steps: differences by seed, and the verdict."""

    group: Group
    split: str
    better: str
    worse: str
    steps: int
    values: Values
    ours: Interval
    verdict: str

    @property
    def claim(self) -> str:
        return f"{self.better} above {self.worse}"


def judge(group: Group, split: str, better: str, worse: str, steps: int) -> Case | None:
    """A case's verdict; None without a pair of runs."""
    x, y = Pair("", group, better, group, worse).cells(split, steps)
    if not (shared := differences(x, y)):
        return None
    ours = paired_difference(x, y)
    # The paper's curves have each above the next at every number of steps: its claim is the sign.
    verdict = Claim("", steps, 1.0, 0.0, shared, ours).verdict
    return Case(group, split, better, worse, steps, shared, ours, verdict)


def paper_order_table(groups: list[Group], counter: str | None = None) -> Table | None:
    """Is each method above the next one in the paper's order, at each K and number of sampling steps? Groups of one
    device and model; at equal samples, or as `at_equal` gives them for a counter. None without two of the methods."""
    first = groups[0]
    steps = sorted({k for group in groups for k in group.steps_evaluated})
    splits = sorted({split for group in groups for split in group.splits})
    blocks: list[Block] = []
    known: list[Case] = []
    for split, (better, worse) in product(splits, pairwise(METHODS)):
        rows = []
        for group in groups:
            cases = [judge(group, split, better, worse, k) for k in steps]
            if any(cases):
                decimals = decimals_of(group.values.loc[group.values["reward"] == group.reward, "value"])
                rows.append((f"{group.reward}, K = {group.steps}", *(_cell(case, decimals) for case in cases)))
                known += [case for case in cases if case]
        if rows:
            blocks.append((f"{better} above {worse}, {split} prompts", tuple(rows)))
    if not known:
        return None
    how = f"at equal {counter.replace('_', ' ') if counter else 'samples'}"
    missing = left_out_text(groups, counter) if counter else ""
    subject = Subject(f"order_paper_{EQUAL[counter]}") if counter else Subject.ORDER_PAPER
    shown = "seen" if "seen" in splits else splits[0]
    return Table(
        f"{subject.value}{file_suffix(first)}",
        f"The paper's order {how}, {first.model} on {first.device}",
        note_of(f"{NOTE} {missing}".rstrip(), blocks, first.profile),
        step_header("trained on", steps),
        tuple(blocks),
        pd.DataFrame([_frame_row(case) for case in known]),
        _answer([case for case in known if case.split == shown], f"The paper's order {how}, {shown} prompts"),
        subject,
    )


def _cell(case: Case | None, decimals: int) -> str:
    return f"{case.verdict}: {cell_text(case.values, decimals, '+', case.ours)}" if case else DASH


def _frame_row(case: Case) -> dict[str, object]:
    """A row of the table's frame."""
    group = case.group
    return {
        **context(group),
        "split": case.split,
        "claim": case.claim,
        "steps": case.steps,
        "verdict": case.verdict,
        "n": case.ours.n,
        "difference": case.ours.value,
        **interval_columns(case.ours),
        "seeds": seeds_text(case.values),
    }


def _answer(cases: list[Case], where: str) -> str:
    """How often each claim is supported and contradicted, by reward and K; where all of them are supported always."""
    claims: dict[str, dict[tuple[str, int], Counter[str]]] = {}
    for case in cases:
        counters = claims.setdefault(case.claim, {})
        counters.setdefault((case.group.reward, case.group.steps), Counter())[case.verdict] += 1
    where += ", at these runs' learning rates and lengths (table protocol)"
    counts = [count for cells in claims.values() for count in cells.values()]
    if not any(count[SUPPORTED] or count[CONTRADICTED] for count in counts):
        return f"{where}: nothing is decided (fewer than {MIN_RUNS} seeds, or intervals that hold 0)."
    texts = []
    for claim, cells in claims.items():
        total = sum(cells.values(), Counter())
        parts = []
        for verdict, verb in ((SUPPORTED, "support"), (CONTRADICTED, "contradict")):
            whole = [cell for cell, count in cells.items() if {*count} == {verdict}]
            parts.append(f"{total[verdict]} {verb} it" + (f" (all of {cells_text(whole)})" if whole else ""))
        texts.append(f"{claim}: of {total.total()} cases {', '.join(parts)}")
    always = Counter(cell for cells in claims.values() for cell, count in cells.items() if {*count} == {SUPPORTED})
    whole = [cell for cell, found in always.items() if found == len(METHODS) - 1]
    return (
        f"{where}. {'. '.join(texts)}. All of it is supported "
        f"{f'throughout for {cells_text(whole)}' if whole else 'nowhere throughout'}."
    )
