"""Whether the paper's order of methods holds, pair by pair and K by K."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pandas as pd

from sdpo_bench.analysis.comparisons import Group
from sdpo_bench.analysis.paper import METHODS
from sdpo_bench.analysis.statistics import paired_difference
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
    run_ids,
    step_header,
)
from sdpo_bench.analysis.tables.claims import CONTRADICTED, SUPPORTED, Claim
from sdpo_bench.analysis.tables.orders import cells_text
from sdpo_bench.analysis.tables.pairs import Pair, differences

# The paper's order ----------------------------------------------------------------------------------------------


def paper_order_table(groups: list[Group], queries: bool = False) -> Table | None:
    """Is each method above the next one in the paper's order, at each K and number of sampling steps? Groups of one
    device and model; at equal samples, or as `at_equal_queries` gives them. None without two of the methods."""
    first = groups[0]
    steps = sorted({k for group in groups for k in group.steps_evaluated})
    splits = sorted({split for group in groups for split in group.splits})
    blocks: list[Block] = []
    long = []
    verdicts: dict[tuple[str, str, str, int], list[str]] = {}  # by split, claim, reward and K, over step counts
    for split in splits:
        for better, worse in pairwise(METHODS):
            rows = []
            for group in groups:
                decimals = decimals_of(group.values.loc[group.values["reward"] == group.reward, "value"])
                texts = []
                for k in steps:
                    x, y = Pair("", group, better, group, worse).cells(split, k)
                    shared = differences(x, y)
                    ours = paired_difference(x, y) if shared else None
                    # The paper's curves have each above the next at every number of steps: its claim is the sign.
                    verdict = Claim("", k, 1.0, 0.0, shared, ours).verdict
                    texts.append(f"{verdict}: {cell_text(shared, decimals, '+', ours)}" if shared else DASH)
                    if not shared or not ours:
                        continue
                    claim = f"{better} above {worse}"
                    verdicts.setdefault((split, claim, group.reward, group.steps), []).append(verdict)
                    long.append(
                        {
                            **context(group),
                            "split": split,
                            "claim": claim,
                            "steps": k,
                            "verdict": verdict,
                            "n": ours.n,
                            "difference": ours.value,
                            **interval_columns(ours),
                            "run_ids": f"{run_ids(group, better, shared)} {run_ids(group, worse, shared)}",
                        }
                    )
                if set(texts) != {DASH}:
                    rows.append((f"{group.reward}, K = {group.steps}", *texts))
            if rows:
                blocks.append((f"{better} above {worse}, {split} prompts", tuple(rows)))
    if not long:
        return None
    how = "at equal reward queries" if queries else "at equal samples"
    note = (
        f"The paper's order is {' > '.join(METHODS)}, at every number of sampling steps. Differences of "
        "neighbours, paired by seed: mean [95 % interval, Student's t] (n pairs). Supported: the interval is above "
        f"0; contradicted: below; not decided: it holds 0, or there are fewer than {MIN_RUNS} pairs."
    )
    return Table(
        f"order_paper{'_queries' * queries}{file_suffix(first)}",
        f"The paper's order {how}, {first.model} on {first.device}",
        note_of(note, blocks, first.profile),
        step_header("trained on", steps),
        tuple(blocks),
        pd.DataFrame(long),
        _order_answer(verdicts, splits, how),
        Subject.ORDER,
    )


def _order_answer(verdicts: dict[tuple[str, str, str, int], list[str]], splits: list[str], how: str) -> str:
    """How often each claim is supported and contradicted, by reward and K; where all of them are supported always."""
    split = "seen" if "seen" in splits else splits[0]
    claims: dict[str, dict[tuple[str, int], Counter[str]]] = {}
    for (of, claim, reward, k), found in verdicts.items():
        if of == split:
            claims.setdefault(claim, {})[reward, k] = Counter(found)
    where = f"The paper's order {how}, {split} prompts, at these runs' learning rates and lengths (table protocol)"
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
