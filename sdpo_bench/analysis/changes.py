"""Changes between two evaluations on the same prompts and noises: before and after training, or of two runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import pandas as pd

from sdpo_bench.analysis.statistics import Interval, mean_interval
from sdpo_bench.analysis.tables.base import Block, Table, decimals_of, step_header
from sdpo_bench.records.reader import RunRecord

Row = Mapping[str, Any]  # of eval.jsonl

NOISE = "within noise"
NOTE = (
    "Every prompt has the same initial noises on both sides. A difference is within noise where its 95 % interval over "
    "the prompts (Student's t) has 0 in it. That is the chance of the prompts alone: another training seed may change "
    "more, so train several."
)


class Change(NamedTuple):
    """Means of a reward over the prompts of a split and the noises that both evaluations have. `difference` is the
    second minus the first; its interval is over prompts, and NaN where there is one prompt."""

    reward: str
    split: str
    steps: int
    first: float
    second: float
    difference: Interval

    @property
    def word(self) -> str:
        """NOISE, "clear" where the interval leaves out 0, nothing where there is none."""
        if math.isnan(self.difference.low):
            return ""
        return NOISE if self.difference.low <= 0 <= self.difference.high else "clear"


def changes(first: Iterable[Row], second: Iterable[Row]) -> list[Change]:
    """The change of each reward, split and number of sampling steps that both evaluations have, over the prompts and
    noises that both have."""
    known = {(row["reward"], row["steps"]): row for row in first}
    found = []
    for row in second:
        if (other := known.get((row["reward"], row["steps"]))) is None:
            continue
        for split in sorted(row["values"].keys() & other["values"].keys()):
            x, y = _by_prompt(other, split, row), _by_prompt(row, split, other)
            if shared := [prompt for prompt in x if prompt in y]:
                difference = mean_interval([y[prompt] - x[prompt] for prompt in shared])
                before, after = (math.fsum(side[prompt] for prompt in shared) / len(shared) for side in (x, y))
                found.append(Change(row["reward"], split, row["steps"], before, after, difference))
    return found


def _by_prompt(row: Row, split: str, other: Row) -> dict[str, float]:
    """A prompt's mean over the noises that the other evaluation has too."""
    places = [place for place, seed in enumerate(row["noise_seeds"]) if seed in other["noise_seeds"]]
    if not places:
        return {}
    return {
        prompt: math.fsum(values[place] for place in places) / len(places)
        for prompt, values in row["values"][split].items()
    }


def last_evaluation(run: RunRecord) -> list[Row]:
    """The rows of a run's last evaluation."""
    return evaluation_at(run, max(row["epoch"] for row in run.eval))


def evaluation_at(run: RunRecord, epoch: int) -> list[Row]:
    return [row for row in run.eval if row["epoch"] == epoch]


def training_changes(run: RunRecord) -> list[Change]:
    """Changes by training in a run; empty where it was not evaluated before. The trained reward comes first."""
    last = last_evaluation(run)
    before = evaluation_at(run, 0) if last[0]["epoch"] else []
    return sorted(changes(before, last), key=lambda change: change.reward != run.config["reward"])


Sides = Sequence[tuple[str, Literal["first", "second"]]]
"""The rows of means in a table of changes: their texts, and which side each is."""
TRAINING: Sides = (("before", "first"), ("after", "second"))


def change_table(name: str, title: str, found: Sequence[Change], sides: Sides = TRAINING, note: str = "") -> Table:
    """A block for each reward and split: the means of both sides, their difference, and a word where it is noise."""
    steps = list(dict.fromkeys(change.steps for change in found))
    blocks: list[Block] = []
    for reward, split in dict.fromkeys((change.reward, change.split) for change in found):
        by = {change.steps: change for change in found if (change.reward, change.split) == (reward, split)}
        n = 1 + decimals_of(value for change in by.values() for value in (change.first, change.second))
        blocks.append(
            (
                f"{reward}, {split} prompts",
                (
                    *(_cells(head, steps, {k: f"{getattr(by[k], side):.{n}f}" for k in by}) for head, side in sides),
                    _cells("difference", steps, {k: f"{change.difference.value:+.{n}f}" for k, change in by.items()}),
                    _cells("", steps, {k: change.word for k, change in by.items()}),
                ),
            )
        )
    return Table(name, title, NOTE + note, step_header("", steps), tuple(blocks), change_frame(found))


def _cells(head: str, steps: Sequence[int], cells: Mapping[int, str]) -> tuple[str, ...]:
    return head, *(cells.get(k, "") for k in steps)


def change_frame(found: Iterable[Change]) -> pd.DataFrame:
    """A row per change: `low` and `high` are the ends of the difference's interval over `prompts` prompts."""
    rows = [
        {
            "reward": change.reward,
            "split": change.split,
            "steps": change.steps,
            "first": change.first,
            "second": change.second,
            "difference": change.difference.value,
            "low": change.difference.low,
            "high": change.difference.high,
            "prompts": change.difference.n,
        }
        for change in found
    ]
    return pd.DataFrame(rows)
