"""Ablations: each change against its method, paired by seed."""

from __future__ import annotations

from dataclasses import replace

from sdpo_bench.analysis.comparisons import Group, parent
from sdpo_bench.analysis.markup import DASH
from sdpo_bench.analysis.tables.base import Subject, Table
from sdpo_bench.analysis.tables.pairs import ALL, Pair, paired_table

CROSSED = (
    ("SDPO", "DDPO (per step)"),
    ("SDPO (per trajectory)", "DDPO"),
    ("SDPO-causal", "SDPO"),
    ("SDPO (exact)", "SDPO (terminal)"),
    ("SDPO (last step)", "DDPO (last step)"),
    ("DDPO-dense", "DDPO"),
    ("DDPO-dense (no baseline)", "DDPO"),
    ("DDPO-dense (linear)", "DDPO"),
    ("DDPO-dense (lower rate)", "DDPO"),
    ("SDPO", "DDPO-dense"),
)


def ablation_table(group: Group) -> Table | None:
    """Each ablation minus the method that it changes, then comparisons across methods; None without an ablation."""
    labels = group.labels
    own = [(label, method) for label in labels if (method := parent(label)) and method in labels]
    pairs = [
        Pair(f"{label} minus {other}", group, label, group, other)
        for label, other in (*own, *(pair for pair in CROSSED if {*pair} <= {*labels}))
    ]
    if not own:
        return None
    title = f"Ablations: {group.reward}, {group.title}"
    table = replace(paired_table(f"ablations{group.suffix}", title, "", "difference", pairs), subject=Subject.ABLATIONS)
    return table if table.frame.empty else replace(table, answer=_ablation_answer(group, table))


def _ablation_answer(group: Group, table: Table) -> str:
    """The differences of the table's last column, those with an interval above 0 first, the largest first; of those
    that are not decided the names."""
    split = group.shown_split
    cells = {row[0]: row[-1] for row in dict(table.blocks)[f"{split} prompts: difference"] if row[-1] != DASH}
    frame = table.frame[table.frame["split"] == split].drop_duplicates(["label", "baseline"], keep="last")
    parts: dict[str, list[str]] = {"above 0": [], "below 0": [], "not decided": []}
    for found in frame.sort_values("difference", key=abs, ascending=False, kind="stable").to_dict("records"):
        name = f"{found['label']} minus {found['baseline']}"
        part = "above 0" if found["low"] > 0 else "below 0" if found["high"] < 0 else "not decided"
        parts[part].append(name if part == "not decided" else f"{name} {cells[name]}")
    what = table.header[-1].replace(ALL, "mean over step counts")
    return (
        f"K = {group.steps}, {group.reward}, {split} prompts, {what}: "
        + "; ".join(f"{part}: {', '.join(texts)}" for part, texts in parts.items() if texts)
        + "."
    )
