"""The table of what each method needs to reach DDPO's final reward: samples, queries, model evaluations, steps."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from sdpo_bench.analysis.comparisons import PRETRAINED, Group, Values
from sdpo_bench.analysis.tables.base import (
    BASELINE,
    COMPUTE,
    DASH,
    UNKNOWN,
    Block,
    Subject,
    Table,
    at_steps,
    context,
    counters_of,
    note_of,
    seeds_text,
)
from sdpo_bench.analysis.tables.means import MEANS, mean_text, summarised
from sdpo_bench.records.frames import SPENT

TARGET = "DDPO"  # whose final reward the others are to reach


COSTS = (*SPENT, "seconds")


NOTE = (
    f"Spent when a run's curve, straight between its evaluations, first reaches the last value of the {TARGET} "
    f"run of the same seed: {MEANS}. Where only some runs reach it, their values alone, by seed. Seconds: "
    "sampling, rewards and training as recorded, evaluations left out. 0: the pretrained model is there already."
)


NEVER = "never"  # a cell of a label none of whose runs reaches the target


def _curve(group: Group, run_id: str, split: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Values [points] and costs [points, 8] (`COSTS`) of a run's evaluations, from the pretrained model's on; seconds
    are those of sampling, reward and training up to there."""
    points = group.points(run_id, group.reward, split, steps)
    values = np.array([point.value for point in points], float)
    costs = np.array(
        [[*(getattr(point, name) for name in SPENT), group.seconds(run_id, point.epoch)] for point in points],
        float,
    ).reshape(-1, len(COSTS))
    start = group.curve_ends(PRETRAINED, split, steps)
    if points and points[0].epoch > 0 and start:
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


def _costs_by_seed(group: Group, label: str, split: str, steps: int) -> dict[int, np.ndarray | None]:
    """By seed, what a label's run spent to reach the last value of the `TARGET` run; None: it never does."""
    targets = group.curve_ends(TARGET, split, steps)
    runs = {int(run.config["seed"]): run.run_id for run in group.runs if run.label == label}
    return {
        seed: cost_to_reach(*_curve(group, runs[seed], split, steps), targets[seed])
        for seed in sorted(runs.keys() & targets.keys())
    }


def reach_table(group: Group) -> Table | None:
    """Spending of each method or ablation to reach the final reward of the DDPO run of the same seed; None without
    DDPO."""
    split = group.shown_split
    trained = [label for label in group.labels if label != PRETRAINED]
    if TARGET not in trained or len(trained) < 2:
        return None
    blocks: list[Block] = []
    long: list[dict[str, object]] = []
    texts = []
    shown = (*counters_of(group), "seconds")
    for steps in group.steps_evaluated:
        if any(len(_curve(group, run.run_id, split, steps)[0]) < 3 for run in group.runs if run.label == TARGET):
            continue  # evaluated at the end alone: nothing to interpolate between
        rows: dict[str, tuple[str, ...]] = {}
        for label in trained:
            found = _costs_by_seed(group, label, split, steps)
            reached = {seed: costs for seed, costs in found.items() if costs is not None}
            cells = {
                name: {seed: float(costs[i]) for seed, costs in reached.items() if not math.isnan(costs[i])}
                for i, name in enumerate(COSTS)
                if name in shown
            }
            rows[label] = (
                f"{len(reached)} of {len(found)}" if found else DASH,
                *(_cost_text(values, len(found), len(reached)) for values in cells.values()),
            )
            place = {**context(group), "split": split, "steps": steps, "label": label}
            counts = {"runs_compared": len(found), "seeds_compared": seeds_text(found), "reached": len(reached)}
            long += [{**place, **counts, "cost": name, **summarised(values)} for name, values in cells.items()]
        blocks.append((f"{split} prompts, {at_steps(steps)}", tuple((label, *row) for label, row in rows.items())))
        texts += _at_steps_text(steps, rows.get(BASELINE))
    if not blocks:
        return None
    return Table(
        f"reach{group.suffix}",
        f"Cost to reach {TARGET}'s final {group.reward}, {group.title}",
        note_of(f"{NOTE} {COMPUTE}" if "compute" in shown else NOTE, blocks, group.profile),
        ("method", "runs that reach it", *(name.replace("_", " ") for name in shown)),
        tuple(blocks),
        pd.DataFrame(long),
        _answer(group, split, texts),
        Subject.REACH,
    )


def _at_steps_text(steps: int, row: tuple[str, ...] | None) -> list[str]:
    """In how many runs SDPO reaches the target at a number of sampling steps, and what it spends."""
    if row is None or row[0] == DASH:
        return []
    reaching, samples, queries, *_ = row
    spent = f", {samples} samples and {queries} reward queries" if samples != NEVER else ""
    return [f"at {steps} step{'s' * (steps > 1)} in {reaching} runs{spent}"]


def _answer(group: Group, split: str, texts: list[str]) -> str:
    """The cost of SDPO, beside what the target's runs spent in all."""
    if not texts:
        return ""
    last = [run.train[-1] for run in group.runs if run.label == TARGET and run.train]
    samples, queries = ([row[name] for row in last] for name in ("samples", "reward_queries"))
    spent = f" ({TARGET} spent {np.mean(samples):,.0f} samples and {np.mean(queries):,.0f} queries)" if last else ""
    where = f"K = {group.steps}, {split} prompts"
    return f"{where}: {BASELINE} reaches {TARGET}'s final {group.reward}{spent} {'; '.join(texts)}."


def _cost_text(values: Values, compared: int, reached: int) -> str:
    """Mean and interval if every run has got there, else the values of those that have."""
    if not compared:
        return DASH
    if not values:
        return UNKNOWN if reached else NEVER
    if len(values) == compared:
        return mean_text(values, 0, ",")
    return ", ".join(f"{value:,.0f}" for value in values.values())
