"""All tables of a profile, in the order of its page."""

from __future__ import annotations

from dataclasses import replace

from sdpo_bench.analysis.comparisons import (
    EQUAL,
    Group,
    Results,
    collector_paused,
    name_part,
    still_missing,
)
from sdpo_bench.analysis.render import text
from sdpo_bench.analysis.tables.ablations import ablation_table
from sdpo_bench.analysis.tables.base import Table
from sdpo_bench.analysis.tables.claims import applies, beside_table, claims_table
from sdpo_bench.analysis.tables.critic import critic_table
from sdpo_bench.analysis.tables.dense import dense_budgets_table, dense_steps_table
from sdpo_bench.analysis.tables.hacking import hacking_table
from sdpo_bench.analysis.tables.orders import order_table
from sdpo_bench.analysis.tables.pairs import difference_table
from sdpo_bench.analysis.tables.paper_order import paper_order_table
from sdpo_bench.analysis.tables.protocol import protocol_table, rate_order_table
from sdpo_bench.analysis.tables.reach import reach_table
from sdpo_bench.analysis.tables.values import cost_table, equal_table, main_table

ORDERED = ("reward_queries", "optimiser_steps")  # counters at which the paper's order is judged too


def group_tables(group: Group) -> list[Table | None]:
    """Tables of one trained reward and K."""
    others = sorted(set(group.curves["reward"]) - {group.reward})
    return [
        main_table(group),
        *(equal_table(group, counter, other) for counter, other in group.equal.items()),
        *(main_table(group, other) for other in others),
        difference_table(group),
        cost_table(group),
        *([beside_table(group), claims_table(group)] if applies(group) else []),
        ablation_table(group),
        reach_table(group),
        hacking_table(group),
    ]


def device_tables(groups: list[Group]) -> list[Table | None]:
    """Tables over all rewards and K of one device and model."""
    equal = {counter: [group.equal[counter] for group in groups if counter in group.equal] for counter in EQUAL}
    return [
        order_table(groups),
        *(order_table(others, counter) for counter, others in equal.items() if others),
        protocol_table(groups),
        rate_order_table(groups),
        paper_order_table(groups),
        *(paper_order_table(equal[counter], counter) for counter in ORDERED if equal[counter]),
        dense_budgets_table(groups),
        dense_steps_table(groups),
        critic_table(groups),
    ]


def build_tables(groups: list[Group]) -> list[Table]:
    """All tables of a profile, in the order of the report; those that the records have nothing for are left out. Tables
    of a subject share a CSV: those of one trained reward, or those over all rewards."""
    with collector_paused():
        tables = [
            _in_file(table, f"_{name_part(group.reward)}") for group in groups for table in group_tables(group) if table
        ]
        for key in sorted({(group.device, group.model) for group in groups}):
            own = [group for group in groups if (group.device, group.model) == key]
            tables += [_in_file(table) for table in device_tables(own) if table]
    return tables


def _in_file(table: Table, end: str = "") -> Table:
    return replace(table, file=f"{table.subject.value}{end}") if table.subject else table


def render_terminal(results: Results) -> str:
    """The main table of every group as aligned text, with what is unfinished."""
    parts = [part for group in results.groups for part in (text(main_table(group)), "")]
    if results.unfinished:
        parts.append(f"{len(results.unfinished)} unfinished: {still_missing(results.unfinished)}")
    return "\n".join(parts).rstrip() or f"no finished run in {results.folder}"
