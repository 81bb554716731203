"""What each method needs to reach DDPO's final reward: samples, queries, model evaluations, steps."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import pandas as pd

from sdpo_bench.analysis.comparisons import START, Group, Values, shown_split
from sdpo_bench.analysis.tables.base import DASH, Block, Subject, Table, context, note_of, run_ids
from sdpo_bench.analysis.tables.means import MEANS, mean_text, summarised
from sdpo_bench.records.frames import COUNTERS
from sdpo_bench.records.reader import RunRecord

TARGET = "DDPO"  # whose final reward the others are to reach


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
        Subject.REACH,
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
