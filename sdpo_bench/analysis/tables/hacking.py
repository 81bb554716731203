"""What else changed when the trained reward rose: reward hacking and diversity."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from sdpo_bench.analysis.comparisons import START, Group, shown_split
from sdpo_bench.analysis.tables.base import (
    MIN_RUNS,
    Block,
    Subject,
    Table,
    context,
    decimals_of,
    joined,
    note_of,
    run_ids,
)
from sdpo_bench.analysis.tables.means import MEANS, clearly, mean_text, summarised

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
        Subject.HACKING,
    )


def _digits(group: Group, reward: str) -> int:
    return decimals_of(group.values.loc[group.values["reward"] == reward, "value"])
