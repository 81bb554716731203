"""All tables of a profile, in the order of its page."""

from __future__ import annotations

from sdpo_bench.analysis.comparisons import Group, at_equal_queries
from sdpo_bench.analysis.tables.base import Table
from sdpo_bench.analysis.tables.dense import dense_budgets_table, dense_steps_table
from sdpo_bench.analysis.tables.orders import order_table
from sdpo_bench.analysis.tables.pairs import difference_table
from sdpo_bench.analysis.tables.paper_order import paper_order_table
from sdpo_bench.analysis.tables.protocol import protocol_table, rate_order_table
from sdpo_bench.analysis.tables.values import cost_table, equal_queries_table, main_table


def profile_tables(groups: list[Group], equal: list[Group]) -> list[Table | None]:
    """Tables over all rewards and K of one device and model; `equal` are the groups at equal reward queries."""
    return [
        protocol_table(groups),
        rate_order_table(groups),
        paper_order_table(groups),
        paper_order_table(equal, queries=True) if equal else None,
        dense_budgets_table(groups),
        dense_steps_table(groups),
    ]


def build_tables(groups: list[Group]) -> list[Table]:
    """All tables of a profile, in the order of the report; those that the records have nothing for are left out."""
    from sdpo_bench.analysis.tables import ablations, build, claims, hacking, reach

    tables: list[Table | None] = []
    at_equal = [at_equal_queries(group) for group in groups]
    for group, found in zip(groups, at_equal, strict=True):
        others = sorted(set(group.curves["reward"]) - {group.reward})
        tables += [
            main_table(group),
            equal_queries_table(group, found),
            *(main_table(group, other) for other in others),
            difference_table(group),
            cost_table(group),
        ]
        if claims.applies(group):
            tables += [claims.beside_table(group), claims.claims_table(group)]
        tables += [ablations.ablation_table(group), reach.reach_table(group), hacking.hacking_table(group)]
    for key in sorted({(group.device, group.model) for group in groups}):
        own = [group for group in groups if (group.device, group.model) == key]
        equal = [
            found for group, found in zip(groups, at_equal, strict=True) if found and (group.device, group.model) == key
        ]
        tables.append(order_table(own))
        tables += [order_table(equal, queries=True)] if equal else []
        tables += build.profile_tables(own, equal)
    return [table for table in tables if table is not None]
