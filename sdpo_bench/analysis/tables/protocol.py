"""Which protocol the runs followed, and the order of methods at each shared learning rate."""

from __future__ import annotations

from itertools import pairwise

import pandas as pd

from sdpo_bench.analysis.comparisons import Group
from sdpo_bench.analysis.paper import METHODS, SAMPLES, SDPO_STEPS
from sdpo_bench.analysis.statistics import iqm
from sdpo_bench.analysis.tables.base import (
    DASH,
    Block,
    Subject,
    Table,
    context,
    decimals_of,
    file_suffix,
    joined,
    note_of,
    run_ids,
    step_header,
)
from sdpo_bench.analysis.tables.orders import cells_text

# Protocol and budget --------------------------------------------------------------------------------------------


def protocol_table(groups: list[Group]) -> Table | None:
    """Learning rates of the paper's methods and how long they were trained, beside the paper's length, for each reward
    and K: what a statement about their order holds for. None without two of the methods."""
    rows, long = [], []
    alike: dict[bool, list[tuple[str, int]]] = {True: [], False: []}  # whether all methods have one rate: rewards and K
    shares: dict[str, list[float]] = {"samples": [], "optimiser_steps": []}
    for group in groups:
        runs = {run.label: run for run in group.runs if run.label in METHODS and run.train}
        if len(runs) < 2:
            continue
        rates = {label: float(run.config["learning_rate"]) for label, run in runs.items()}
        spent = {label: run.train[-1] for label, run in runs.items()}
        alike[len(set(rates.values())) == 1].append((group.reward, group.steps))
        samples = max(row["samples"] for row in spent.values())
        shares["samples"].append(samples / SAMPLES)
        texts = [f"{samples:,} ({samples / SAMPLES:.1%})".replace("%", " %")]
        for label in METHODS:
            steps = spent[label]["optimiser_steps"] if label in spent else None
            texts.append("not run" if steps is None else f"{steps:,}")
            if label == "SDPO" and steps is not None:
                shares["optimiser_steps"].append(steps / SDPO_STEPS)
                texts[-1] += f" ({steps / SDPO_STEPS:.1%})".replace("%", " %")
        rows.append(
            (
                f"{group.reward}, K = {group.steps}",
                *(f"{rates[label]:g}" if label in rates else "not run" for label in METHODS),
                *texts,
            )
        )
        long += [
            {
                **context(group),
                "label": label,
                "learning_rate": rate,
                "samples": spent[label]["samples"],
                "optimiser_steps": spent[label]["optimiser_steps"],
                "run_ids": run_ids(group, label, [run.config["seed"] for run in group.runs if run.label == label]),
            }
            for label, rate in rates.items()
        ]
    if not rows:
        return None
    first = groups[0]
    ways = [
        f"{what} on {cells_text(cells)}"
        for what, cells in (("learning rates of their own", alike[False]), ("one learning rate for all", alike[True]))
        if cells
    ]
    of = {
        "samples": f"of the {SAMPLES:,} samples of a run in the paper's figure",
        "optimiser_steps": f"of the {SDPO_STEPS:,} optimiser steps that SDPO takes there",
    }
    lengths = [f"{_range(found)} {of[name]}" for name, found in shares.items() if found]
    answer = (
        f"What is said about the order of the methods holds for this protocol and length: {'; '.join(ways)}; "
        f"{' and '.join(lengths)}."
    )
    if alike[False]:
        answer += (
            " Orders at one rate for all methods are in the table order_rate of the profiles that sweep learning rates."
        )
    note = (
        f"Of the paper's methods; in brackets the share of the paper's {SAMPLES:,} samples and of SDPO's "
        f"{SDPO_STEPS:,} optimiser steps, which are those of its figure (results/paper)."
    )
    return Table(
        f"protocol{file_suffix(first)}",
        f"Learning rates and length of training, {first.model} on {first.device}",
        note,
        (
            "trained on",
            *(f"{label}: rate" for label in METHODS),
            "samples",
            *(f"{label}: optimiser steps" for label in METHODS),
        ),
        (("", tuple(rows)),),
        pd.DataFrame(long),
        answer,
        Subject.PROTOCOL,
    )


def _range(shares: list[float]) -> str:
    """1.1 to 5.5 %."""
    low, high = (f"{100 * end:.1f}" for end in (min(shares), max(shares)))
    return f"{low} %" if low == high else f"{low} to {high} %"


RATED = {  # by how many optimiser steps they take: labels without their learning rate
    "the paper's methods": METHODS,
    "with an optimiser step for each denoising step": ("SDPO", "DDPO (per step)", "REBEL (per step)"),
    "with an optimiser step for each batch of trajectories": ("SDPO (per trajectory)", *METHODS[1:]),
}


def rate_order_table(groups: list[Group]) -> Table | None:
    """Order of the paper's methods where all have the same learning rate, for each rate of a sweep, whose labels end in
    their rate. Groups of one device and model; None without all methods of a row of `RATED` at one rate."""
    first = groups[0]
    steps = sorted({k for group in groups for k in group.steps_evaluated})
    splits = sorted({split for group in groups for split in group.splits})
    blocks: list[Block] = []
    long, seeds = [], set()
    whole: dict[tuple[str, int], list[str]] = {}  # the rates at which the paper's order holds at every step count
    leads: dict[str, list[bool]] = {}  # by block: whether SDPO is above DDPO
    for split in splits:
        for title, names in RATED.items():
            rows = []
            for group, rate, labels in ((g, *item) for g in groups for item in _swept(g).items()):
                if not {*names} <= labels.keys():
                    continue
                texts, above, held = [], [], []
                for k in steps:
                    cells = {name: group.cell(labels[name], group.reward, split, k) for name in names}
                    if not all(cells.values()):
                        texts.append(DASH)
                        continue
                    points = {name: float(iqm(list(values.values()))) for name, values in cells.items()}
                    order = sorted(names, key=lambda name: -points[name])
                    decimals = decimals_of(points.values())
                    texts.append(", ".join(f"{name} {points[name]:.{decimals}f}" for name in order))
                    above.append(points[names[0]] > points[names[1]])
                    held.append(all(points[better] > points[worse] for better, worse in pairwise(names)))
                    seeds |= {seed for values in cells.values() for seed in values}
                    long += [
                        {
                            **context(group),
                            "split": split,
                            "learning_rate": rate,
                            "compared": title,
                            "steps": k,
                            "whole_order": held[-1],
                            "rank": rank,
                            "label": name,
                            "n": len(cells[name]),
                            "value": points[name],
                            "run_ids": run_ids(group, labels[name], cells[name]),
                        }
                        for rank, name in enumerate(order, 1)
                    ]
                leads.setdefault(title, []).extend(above)
                if names == METHODS and held and all(held):
                    whole.setdefault((group.reward, group.steps), []).append(f"{rate:g}")
                rows.append(
                    (
                        f"{group.reward}, K = {group.steps}",
                        f"{rate:g}",
                        *texts,
                        *(f"{sum(found)} of {len(found)}" for found in (above, held)),
                    )
                )
            if rows:
                blocks.append((f"{split} prompts: {title}", tuple(rows)))
    if not long:
        return None
    only = "one tuning seed" if len(seeds) == 1 else f"{len(seeds)} tuning seeds"
    note = (
        f"{only.capitalize()}: no interval, no verdict. Best first, by value. The last columns: at how many "
        "numbers of sampling steps SDPO is above DDPO, and all are in the paper's order, "
        + ", or ".join(" > ".join(names) for names in RATED.values())
        + "."
    )
    found = "; ".join(f"{cells_text([cell])} at {joined(rates)}" for cell, rates in whole.items())
    counts = "; ".join(
        f"{title}, {RATED[title][0]} is above {RATED[title][1]} in {sum(sides)} of {len(sides)} cases"
        for title, sides in leads.items()
    )
    answer = (
        f"One learning rate for all methods, {only}, no interval and no verdict: the paper's whole order, "
        f"{' > '.join(METHODS)}, stands at every number of sampling steps "
        f"{f'on {found}' if found else 'at no rate'}. Of {counts}."
    )
    return Table(
        f"order_rate{file_suffix(first)}",
        f"Order by shared learning rate, {first.model} on {first.device}",
        note_of(note, blocks, first.profile),
        step_header("trained on", steps, "SDPO above DDPO", "whole order", first=("learning rate",)),
        tuple(blocks),
        pd.DataFrame(long),
        answer,
        Subject.ORDER,
    )


def _swept(group: Group) -> dict[float, dict[str, str]]:
    """By learning rate, smallest first: the labels that end in it, by what comes before it."""
    found: dict[float, dict[str, str]] = {}
    for run in group.runs:
        rate = float(run.config["learning_rate"])
        name = run.label.removesuffix(f" {rate:g}")
        if name != run.label:
            found.setdefault(rate, {})[name] = run.label
    return dict(sorted(found.items()))
