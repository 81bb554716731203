"""The study's tables: the paper's order over K, ablations, dense-reward predictions, cost to reach DDPO's reward, and
what else changed when the trained reward rose. Each is a pure function of the records, with its answer in a sentence.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from .claims import CONTRADICTED, SUPPORTED, Claim
from .groups import START, Group, Values, name_part, parent, shown_split
from .paper import METHODS, SAMPLES, SDPO_STEPS
from .records import COUNTERS, RunRecord
from .schema import BUDGETS
from .statistics import Interval, iqm, mean_interval, paired_difference
from .tables import (
    ALL,
    DASH,
    MIN_RUNS,
    Block,
    Pair,
    Table,
    cell_text,
    cells_text,
    context,
    decimals_of,
    differences,
    interval_columns,
    joined,
    note_of,
    paired_table,
    run_ids,
    step_header,
)

TARGET = "DDPO"  # whose final reward the others are to reach
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
ANCHORED = "3"  # the paper's: the first, the last and an anchor between
MEANS = "mean over runs [95 % interval, Student's t] (n runs); with fewer than 5 runs their values themselves, by seed"


Probe = tuple[RunRecord, dict[str, Any]]  # a run and a row of its dense.jsonl


def mean_text(values: Values, decimals: int = 3, sign: str = "") -> str:
    return cell_text(values, decimals, sign, mean_interval(list(values.values())) if values else None)


def summarised(values: Values) -> dict[str, object]:
    """Columns of a frame: mean over runs, its interval, the runs' values."""
    found = mean_interval(list(values.values())) if values else Interval(np.nan, np.nan, np.nan, 0)
    return {
        "n": found.n,
        "value": found.value,
        **interval_columns(found),
        "runs": " ".join(f"{value:.6g}" for value in values.values()),
    }


def clearly(values: Values) -> int:
    """1 or -1 where the interval over at least `MIN_RUNS` runs lies above or below 0, else 0."""
    if len(values) < MIN_RUNS:
        return 0
    _, low, high, _ = mean_interval(list(values.values()))
    return int(low > 0) - int(high < 0)


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
        f"protocol{_extra(first)}",
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
        f"order_rate{_extra(first)}",
        f"Order by shared learning rate, {first.model} on {first.device}",
        note_of(note, blocks, first.profile),
        step_header("trained on", steps, "SDPO above DDPO", "whole order", first=("learning rate",)),
        tuple(blocks),
        pd.DataFrame(long),
        answer,
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
        f"order_paper{'_queries' * queries}{_extra(first)}",
        f"The paper's order {how}, {first.model} on {first.device}",
        note_of(note, blocks, first.profile),
        step_header("trained on", steps),
        tuple(blocks),
        pd.DataFrame(long),
        _order_answer(verdicts, splits, how),
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


# Ablations ------------------------------------------------------------------------------------------------------


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
    table = paired_table(f"ablations{group.suffix}", title, "", "difference", pairs)
    return table if table.frame.empty else replace(table, answer=_ablation_answer(group, table))


def _ablation_answer(group: Group, table: Table) -> str:
    """The differences of the table's last column, those with an interval above 0 first, the largest first; of those
    that are not decided the names."""
    split = shown_split(group.values)
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


# Predictions of dense rewards -----------------------------------------------------------------------------------


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


def _probes(groups: list[Group]) -> list[tuple[Group, str, str, list[Probe]]]:
    """(group, label, when, probes) of all groups, before training and after it."""
    found = []
    for group in groups:
        rows = dense_rows(group)
        for label in dict.fromkeys(run.label for run, _ in rows):
            own = [(run, row) for run, row in rows if run.label == label]
            last = {run.run_id: max(row["epoch"] for other, row in own if other is run) for run, _ in own}
            before = [(run, row) for run, row in own if row["epoch"] == 0]
            after = [(run, row) for run, row in own if row["epoch"] == last[run.run_id] > 0]
            epochs = joined(sorted({row["epoch"] for _, row in after}))
            found += [
                (group, label, when, probes)
                for when, probes in (("before training", before), (f"after {epochs} epochs", after))
                if probes
            ]
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


def dense_budgets_table(groups: list[Group]) -> Table | None:
    """How accurate is the prediction with each budget of reward queries? None without probes."""
    blocks: list[Block] = []
    long, texts = [], []
    sides: dict[str, list[int]] = {}
    for group, label, when, probes in _probes(groups):
        measures = {budget: _by_seed(probes, budget) for budget in BUDGETS}
        rows = []
        for budget, found in measures.items():
            if not found["error"]:
                continue
            queries = np.mean([row["queries_per_sample"] for _, row in probes if row["budget"] == budget])
            more = differences(found["error"], measures[ANCHORED]["error"]) if budget != ANCHORED else {}
            if more and when != "before training":
                sides.setdefault(budget, []).append(clearly(more))
            rows.append(
                (
                    budget,
                    f"{queries:.3g}",
                    mean_text(found["error"]),
                    mean_text(more, sign="+") if more else "",
                    *(mean_text(found[name]) for name in MEASURES if name != "error"),
                )
            )
            for name, values in (*found.items(), ("error_minus_anchored", more)):
                if values:
                    long.append(
                        {
                            **context(group),
                            "label": label,
                            "when": when,
                            "budget": budget,
                            "queries_per_sample": queries,
                            "measure": name,
                            **summarised(values),
                        }
                    )
        blocks.append((f"{group.reward}, K = {group.steps}, {label}, {when}", tuple(rows)))
        if when != "before training" and measures[ANCHORED]["error"]:
            texts.append(
                f"{group.reward}, K = {group.steps}: {mean_text(measures[ANCHORED]['error'])}, correlation of "
                f"returns {mean_text(measures[ANCHORED]['return_correlation'])}"
            )
    if not long:
        return None
    note = (
        f"{MEASURED} Budgets: the final reward at every step (terminal), 2, 3 (the paper's anchored prediction), 4 "
        "or an adaptive number of queries, and 3 joined by straight lines (linear3). Minus 3's: difference of "
        "errors, paired by run."
    )
    compared = [
        f"{budget} smaller in {found.count(-1)}, larger in {found.count(1)} of {len(found)}"
        for budget, found in sides.items()
    ]
    answer = f"Error of the anchored prediction after training: {'; '.join(texts)}." if texts else ""
    if compared:
        answer += f" Error minus it, by an interval that leaves out 0: {'; '.join(compared)}."
    header = (
        "budget",
        "queries a sample",
        "error",
        "minus 3's",
        *(text for name, text in MEASURES.items() if name != "error"),
    )
    first = groups[0]
    title = f"Predictions of dense rewards by query budget, {first.model} on {first.device}"
    return Table(
        f"dense_budgets{_extra(first)}",
        title,
        note_of(note, blocks, first.profile),
        header,
        tuple(blocks),
        pd.DataFrame(long),
        answer,
    )


def step_ranges(steps: int) -> dict[str, list[int]]:
    """The steps one by one, from 1; above K = 8 in thirds."""
    if steps <= 8:
        return {f"step {k + 1}": [k] for k in range(steps)}
    return {f"steps {part[0] + 1} to {part[-1] + 1}": part.tolist() for part in np.array_split(np.arange(steps), 3)}


def dense_steps_table(groups: list[Group]) -> Table | None:
    """Where along the trajectory, and when in training, is the anchored prediction accurate? None without probes."""
    blocks: list[Block] = []
    long, texts = [], []
    for group, label, when, probes in _probes(groups):
        rows, errors = [], {}
        for name, chosen in step_ranges(group.steps).items():
            found = _by_seed(probes, ANCHORED, chosen)
            rows.append((name, *(mean_text(found[measure]) if found[measure] else "" for measure in MEASURES)))
            if found["error"]:
                errors[name] = found["error"]
            long += [
                {
                    **context(group),
                    "label": label,
                    "when": when,
                    "steps": name,
                    "measure": measure,
                    **summarised(values),
                }
                for measure, values in found.items()
                if values
            ]
        blocks.append((f"{group.reward}, K = {group.steps}, {label}, {when}", tuple(rows)))
        if errors and when != "before training":
            worst = max(errors, key=lambda name: float(np.mean(list(errors[name].values()))))
            texts.append(f"{group.reward}, K = {group.steps}: {worst}, {mean_text(errors[worst])}")
    if not long:
        return None
    note = f"With three queries (the paper's). {MEASURED} An empty cell: not defined there."
    answer = f"The anchored prediction's error after training is largest at: {'; '.join(texts)}." if texts else ""
    first = groups[0]
    title = f"The anchored prediction by step, {first.model} on {first.device}"
    return Table(
        f"dense_steps{_extra(first)}",
        title,
        note_of(note, blocks, first.profile),
        ("steps", *MEASURES.values()),
        tuple(blocks),
        pd.DataFrame(long),
        answer,
    )


def _extra(group: Group) -> str:
    """The end of a file's name that says neither reward nor K."""
    return group.suffix.removeprefix(f"_{name_part(group.reward)}_k{group.steps}")


# Cost to reach DDPO's reward ------------------------------------------------------------------------------------

COSTS = (*COUNTERS, "seconds")


def _curve(group: Group, run: RunRecord, split: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Values [points] and costs [points, 5] (`COSTS`) of a run's evaluations, from the start's on; seconds are those
    of sampling, reward and training up to there."""
    points = group.points(run.run_id, group.reward, split, steps)
    spent = np.cumsum([0.0, *(sum(row["seconds"].values()) for row in run.train)])
    epochs = [row["epoch"] for row in run.train]
    values = np.array([point["value"] for point in points], float)
    costs = np.array(
        [[*(point[counter] for counter in COUNTERS), spent[bisect_right(epochs, point["epoch"])]] for point in points],
        float,
    ).reshape(-1, len(COSTS))
    start = group.curve_ends(START, split, steps)
    if points and points[0]["epoch"] > 0 and start:
        values = np.concatenate([[next(iter(start.values()))], values])
        costs = np.concatenate([np.zeros((1, len(COSTS))), costs])
    return values, costs


def cost_to_reach(values: np.ndarray, costs: np.ndarray, target: float) -> np.ndarray | None:
    """Costs where the curve, straight between evaluations, first reaches `target`; None if it never does."""
    reached = np.flatnonzero(values >= target)
    if not reached.size:
        return None
    i = reached[0]
    if i == 0:
        return costs[0]
    part = (target - values[i - 1]) / (values[i] - values[i - 1])
    return np.asarray(costs[i - 1] + part * (costs[i] - costs[i - 1]))


def reach_table(group: Group) -> Table | None:
    """What each method or ablation spends to reach the final reward of the DDPO run of the same seed; None without
    DDPO."""
    split = shown_split(group.values)
    trained = [label for label in group.labels if label != START]
    if TARGET not in trained or len(trained) < 2:
        return None
    blocks: list[Block] = []
    long, texts = [], []
    for steps in group.steps_evaluated:
        targets = group.curve_ends(TARGET, split, steps)
        if any(len(_curve(group, run, split, steps)[0]) < 3 for run in group.runs if run.label == TARGET):
            continue  # evaluated at the end alone: nothing to interpolate between
        rows: list[tuple[str, ...]] = []
        sdpo = ""
        for label in trained:
            runs = {int(run.config["seed"]): run for run in group.runs if run.label == label}
            curves = {seed: _curve(group, runs[seed], split, steps) for seed in sorted(runs.keys() & targets.keys())}
            found = {seed: cost_to_reach(*curve, targets[seed]) for seed, curve in curves.items()}
            reached = {seed: costs for seed, costs in found.items() if costs is not None}
            cells = {name: {seed: float(costs[i]) for seed, costs in reached.items()} for i, name in enumerate(COSTS)}
            texts_of = [_cost_text(cells[name], len(found)) for name in COSTS]
            rows.append((label, f"{len(reached)} of {len(found)}" if found else DASH, *texts_of))
            long += [
                {
                    **context(group),
                    "split": split,
                    "steps": steps,
                    "label": label,
                    "runs_compared": len(found),
                    "reached": len(reached),
                    "cost": name,
                    **summarised(cells[name]),
                    "run_ids": run_ids(group, label, found),
                }
                for name in COSTS
            ]
            if label == "SDPO" and found:
                sdpo = f"in {len(reached)} of {len(found)} runs" + (
                    f", {texts_of[0]} samples and {texts_of[1]} reward queries" if reached else ""
                )
        blocks.append((f"{split} prompts, {steps} sampling step{'s' * (steps > 1)}", tuple(rows)))
        texts += [f"at {steps} step{'s' * (steps > 1)} {sdpo}"] if sdpo else []
    if not blocks:
        return None
    last = [run.train[-1] for run in group.runs if run.label == TARGET and run.train]
    spent = (
        (
            f" ({TARGET} spent {np.mean([row['samples'] for row in last]):,.0f} samples and "
            f"{np.mean([row['reward_queries'] for row in last]):,.0f} queries)"
        )
        if last
        else ""
    )
    answer = f"SDPO reaches {TARGET}'s final {group.reward}{spent} {'; '.join(texts)}." if texts else ""
    note = (
        f"Spent when a run's curve, straight between its evaluations, first reaches the last value of the {TARGET} "
        f"run of the same seed: {MEANS}. Where only some runs reach it, their values alone, by seed. Seconds: "
        "sampling, rewards and training as recorded, evaluations left out. 0: the start is there already."
    )
    header = (
        "method",
        "runs that reach it",
        "samples",
        "reward queries",
        "optimiser steps",
        "model evaluations",
        "seconds",
    )
    return Table(
        f"reach{group.suffix}",
        f"Cost to reach {TARGET}'s final {group.reward}, {group.title}",
        note_of(note, blocks, group.profile),
        header,
        tuple(blocks),
        pd.DataFrame(long),
        f"K = {group.steps}, {split} prompts: {answer}" if answer else "",
    )


def _cost_text(values: Values, compared: int) -> str:
    """Mean and interval if every run has got there, else the values of those that have."""
    if not compared:
        return DASH
    if not values:
        return "never"
    if len(values) == compared:
        return mean_text(values, 0, ",")
    return ", ".join(f"{value:,.0f}" for value in values.values())


# Hacking --------------------------------------------------------------------------------------------------------


def hacking_table(group: Group) -> Table | None:
    """Change from the start, in the trained reward and in all that was not trained on, of methods, then ablations; None
    without start or others. The answer counts methods."""
    split = shown_split(group.values)
    others = sorted(set(group.values["reward"]) - {group.reward})
    trained = [label for label in group.labels if label != START]
    methods = [label for label in trained if label in group.methods]
    rewards = [
        name
        for name in (group.reward, *others)
        if any(group.cell(START, name, split, k) for k in group.steps_evaluated)
    ]
    if group.reward not in rewards or len(rewards) < 2 or not trained:
        return None
    digits = {name: _digits(group, name) for name in rewards}
    blocks: list[Block] = []
    long = []
    rose, fell = 0, Counter[str]()
    for steps in group.steps_evaluated:
        rows = []
        for label in trained:
            changes = {}
            for name in rewards:
                before = group.cell(START, name, split, steps)
                after = group.cell(label, name, split, steps) if before else {}
                changes[name] = {seed: value - next(iter(before.values())) for seed, value in after.items()}
            up = clearly(changes[group.reward]) > 0
            falling = [name for name in others if up and name in changes and clearly(changes[name]) < 0]
            if label in methods:
                rose += up
                fell.update(falling)
            few = len(changes[group.reward]) < MIN_RUNS
            flag = "too few runs" if few else joined(falling) if falling else "none" if up else "trained reward not up"
            rows.append((label, *(mean_text(changes[name], digits[name], "+") for name in rewards), flag))
            long += [
                {
                    **context(group),
                    "split": split,
                    "steps": steps,
                    "label": label,
                    "reward": name,
                    **summarised(changes[name]),
                    "falls_while_trained_rises": name in falling,
                    "run_ids": run_ids(group, label, changes[name]),
                }
                for name in rewards
            ]
        blocks.append((f"{split} prompts, {steps} sampling step{'s' * (steps > 1)}", tuple(rows)))
    total = len(blocks) * len(methods)
    if any(
        len(group.cell(label, group.reward, split, k)) >= MIN_RUNS for label in methods for k in group.steps_evaluated
    ):
        counts = "; ".join(f"{name} fell in {fell[name]}" for name in rewards[1:])
        answer = (
            f"K = {group.steps}, trained on {group.reward}, {split} prompts: it rose in {rose} of {total} cases "
            f"(a method at a number of steps) by an interval above 0, and of these, by an interval below 0, "
            f"{counts}."
        )
    else:
        answer = f"K = {group.steps}, trained on {group.reward}: fewer than {MIN_RUNS} runs a method establish nothing."
    note = (
        f"Changes from the start: {MEANS}. Fell: what was not trained on and has an interval below 0 where the "
        "trained reward's is above 0; a held-out scorer that falls there says that the reward was hacked, "
        "diversity that pictures of a prompt became alike."
    )
    return Table(
        f"hacking{group.suffix}",
        f"What rose and what fell, {group.title}",
        note_of(note, blocks, group.profile),
        ("method", *rewards, "fell"),
        tuple(blocks),
        pd.DataFrame(long),
        answer,
    )


def _digits(group: Group, reward: str) -> int:
    return decimals_of(group.values.loc[group.values["reward"] == reward, "value"])


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
