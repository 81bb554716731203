"""The table of what a critic's prediction takes out of the advantages, by denoising step and time of training."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sdpo_bench.analysis.comparisons import Group, Values
from sdpo_bench.analysis.tables.base import Block, Subject, Table, context, file_suffix, note_of
from sdpo_bench.analysis.tables.dense import step_ranges
from sdpo_bench.analysis.tables.means import MEANS, mean_text, summarised
from sdpo_bench.records.reader import RunRecord

THIRDS = ("first third", "middle third", "last third")


NOTE = (
    "Share of the advantages' mean square that the critic's prediction removed (docs/methods/ddpo_critic.md), mean "
    "over the epochs of a third of the training, without the first, in which there is no critic yet. Below 0 the "
    f"prediction added to it. Each {MEANS}."
)


def _explained(run: RunRecord) -> np.ndarray:
    """The shares [epochs, K] of a run."""
    found = [row.get("explained_variance", ()) for row in run.train]
    return np.array([shares for shares in found if len(shares) == run.config["steps"]], float)


def critic_table(groups: list[Group]) -> Table | None:
    """Explained variance of each label with a critic, by denoising step. Groups of one device and model; None without
    such runs of at least four epochs."""
    blocks: list[Block] = []
    long: list[dict[str, object]] = []
    answers = []
    for group in groups:
        for label in group.labels:
            runs = {int(run.config["seed"]): run for run in group.runs if run.label == label}
            known = {seed: found for seed, run in sorted(runs.items()) if len(found := _explained(run)) >= len(THIRDS)}
            if not known:
                continue
            rows = []
            for name, steps in step_ranges(group.steps).items():
                cells = _by_third(known, steps)
                rows.append((name, *(mean_text(values, sign="+") for values in cells.values())))
                place = {**context(group), "label": label, "denoising_step": name}
                long += [{**place, "epochs": third, **summarised(values)} for third, values in cells.items()]
            title = f"{group.reward}, K = {group.steps}, {label}"
            blocks.append((title, tuple(rows)))
            ends = [f"{row[-1]} at {row[0]}" for row in (rows[0], rows[-1])]
            answers.append(f"{title}: {' and '.join(dict.fromkeys(ends))}")
    if not blocks:
        return None
    first = groups[0]
    return Table(
        f"critic{file_suffix(first)}",
        f"Variance explained by the critic, {first.model} on {first.device}",
        note_of(NOTE, blocks, first.profile),
        ("denoising step", *(f"{third} of the epochs" for third in THIRDS)),
        tuple(blocks),
        pd.DataFrame(long),
        f"Of the advantages' mean square the critic removes, in the last third of the epochs: {'; '.join(answers)}.",
        Subject.CRITIC,
    )


def _by_third(known: dict[int, np.ndarray], steps: list[int]) -> dict[str, Values]:
    """Means over these steps and the epochs of each third, by seed."""
    thirds = {seed: np.array_split(found[:, steps], len(THIRDS)) for seed, found in known.items()}
    return {name: {seed: float(parts[i].mean()) for seed, parts in thirds.items()} for i, name in enumerate(THIRDS)}
