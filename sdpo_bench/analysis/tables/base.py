"""Tables of a profile, as Markdown, CSV and LaTeX: a pure function of its raw records.

Runs meet in a table only if device, model, trained reward and number of training steps K agree. A cell is the
interquartile mean over runs, its 95 % bootstrap interval and n; a run's value is its mean over the fixed
prompts and noises at its last evaluation. Of fewer than 5 runs the values themselves are shown, by seed,
without an interval.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
import pandas as pd

from sdpo_bench.analysis.comparisons import Group, Values, name_part
from sdpo_bench.analysis.markup import DASH
from sdpo_bench.analysis.statistics import Interval, iqm, stratified_bootstrap
from sdpo_bench.records.frames import BACKWARD, COUNTERS, SPENT, spending


def file_suffix(group: Group) -> str:
    """The end of a file's name that says neither reward nor K."""
    return group.suffix.removeprefix(f"_{name_part(group.reward)}_k{group.steps}")


BASELINE = "SDPO"
MIN_RUNS = 5  # below this a bootstrap interval says more about luck than about the method
UNKNOWN = "not recorded"


RERUN = "nox -s reproduce -- --profile {0} --results RESULTS --resume"  # where RESULTS/{0} is


ABOUT = {
    "kid_start": "kid_start is the distance of the pictures from the pretrained model's, 0 before training: it "
    "rises with every change, wanted or not, also where pictures become blurred or alike.",
    "vendi": "vendi counts a prompt's different pictures, by pixels: where it falls, they became alike.",
    "vendi_heldout": "vendi_heldout counts a prompt's different pictures, by the held-out scorer's embeddings: where "
    "it falls, they became alike.",
}
"""Descriptions of the quantities that are no rewards, by their names."""


COMPUTE = (
    f"Compute is counted in passes of the denoiser for a latent: 1 for a forward pass, {BACKWARD} for a backward pass; "
    "the decoder and the reward model are left out."
)


Block = tuple[str, tuple[tuple[str, ...], ...]]  # title, rows of cell texts


class Subject(Enum):
    """The subject of a table, by which the report puts it under a question (`questions.QUESTIONS`). Tables of a subject
    have the same columns; its value names their CSV."""

    PROTOCOL = "protocol"
    ORDER = "order"
    ORDER_QUERIES = "order_queries"
    ORDER_EVALUATIONS = "order_evaluations"
    ORDER_COMPUTE = "order_compute"
    ORDER_STEPS = "order_steps"
    ORDER_RATE = "order_rate"
    ORDER_PAPER = "order_paper"
    ORDER_PAPER_QUERIES = "order_paper_queries"
    ORDER_PAPER_STEPS = "order_paper_steps"
    MAIN = "main"
    EQUAL_QUERIES = "equal_queries"
    EQUAL_EVALUATIONS = "equal_evaluations"
    EQUAL_COMPUTE = "equal_compute"
    EQUAL_STEPS = "equal_steps"
    DIFFERENCES = "differences"
    CLAIMS = "claims"
    PAPER = "paper"
    ABLATIONS = "ablations"
    DENSE_BUDGETS = "dense_budgets"
    DENSE_STEPS = "dense_steps"
    CRITIC = "critic"
    REACH = "reach"
    COST = "cost"
    HACKING = "hacking"
    OTHER_REWARDS = "other"


@dataclass(frozen=True)
class Table:
    """A table: `rows` of `blocks` (title, rows of cell texts, label first) for people, `frame` (long) for
    programs; `answer` says in a sentence what it shows, computed as the cells are. A table without a `subject` answers
    none of the report's questions. Tables of the same columns may share a CSV, `file`; by default each has its own."""

    name: str
    title: str
    note: str
    header: tuple[str, ...]
    blocks: tuple[Block, ...]
    frame: pd.DataFrame
    answer: str = ""
    subject: Subject | None = None
    file: str = ""

    @property
    def csv(self) -> str:
        """Name of the file that holds `frame`."""
        return f"{self.file or self.name}.csv"


def step_header(label: str, steps: Iterable[int], *last: str, first: tuple[str, ...] = ()) -> tuple[str, ...]:
    return label, *first, *(f"{k} step{'s' * (k > 1)}" for k in steps), *last


def at_steps(steps: int) -> str:
    """1 sampling step, 2 sampling steps."""
    return f"{steps} sampling step{'s' * (steps > 1)}"


def joined(words: Iterable[object]) -> str:
    """a, b and c."""
    *head, last = [str(word) for word in words] or ["nothing"]
    return f"{', '.join(head)} and {last}" if head else last


def by_text(texts: Mapping[str, str]) -> str:
    """Labels with their texts, those of the same text together: "SDPO 4,000; DDPO, REBEL 1,600"."""
    found: dict[str, list[str]] = {}
    for label, text in texts.items():
        found.setdefault(text, []).append(label)
    return "; ".join(f"{', '.join(labels)} {text}" for text, labels in found.items())


def decimals_of(values: Iterable[float]) -> int:
    """3 below 10, 2 below 1000, else 1: so that a table's digits agree."""
    largest = max((abs(value) for value in values), default=0.0)
    return 3 if largest < 10 else 2 if largest < 1000 else 1


def summary(values: Values) -> Interval:
    """Interquartile mean over runs; the interval is NaN for fewer than `MIN_RUNS`, and so is the value for
    none."""
    if not values:
        return Interval(np.nan, np.nan, np.nan, 0)
    return _summary(tuple(values.values()))


@functools.lru_cache(maxsize=2**16)  # tables and figures show the same cells
def _summary(scores: tuple[float, ...]) -> Interval:
    if len(scores) < MIN_RUNS:
        return Interval(float(iqm(scores)), np.nan, np.nan, len(scores))
    return stratified_bootstrap(scores)


def cell_text(values: Values, decimals: int, sign: str = "", interval: Interval | None = None) -> str:
    """A cell: a dash, the runs' values (n < 5), or value [low, high]; always with n. `sign` is a format's."""
    if not values:
        return DASH
    n = f"(n={len(values)})"
    if len(values) < MIN_RUNS:
        return ", ".join(f"{value:{sign}.{decimals}f}" for value in values.values()) + f" {n}"
    value, low, high, _ = interval or summary(values)
    return f"{value:{sign}.{decimals}f} [{low:{sign}.{decimals}f}, {high:{sign}.{decimals}f}] {n}"


def seeds_text(seeds: Iterable[int]) -> str:
    """The seeds of the runs behind a row of a frame; `runs.csv` has the ids of the runs by seed."""
    return " ".join(map(str, seeds))


def run_columns(values: Values) -> dict[str, str]:
    """Columns of a frame: the values of the runs (or differences of pairs of runs), and their seeds."""
    return {"runs": " ".join(f"{value:.6g}" for value in values.values()), "seeds": seeds_text(values)}


def interval_columns(interval: Interval) -> dict[str, float]:
    """`low` and `high` of a table's frame: NaN below `MIN_RUNS`."""
    few = interval.n < MIN_RUNS
    return {"low": np.nan if few else interval.low, "high": np.nan if few else interval.high}


def interval_row(interval: Interval) -> dict[str, float]:
    """Columns `n`, `value`, `low` and `high` of a table's frame."""
    return {"n": interval.n, "value": interval.value, **interval_columns(interval)}


def context(group: Group) -> dict[str, object]:
    """First columns of a group's frames."""
    return {"device": group.device, "model": group.model, "reward_trained": group.reward, "training_steps": group.steps}


def counters_of(group: Group) -> tuple[str, ...]:
    """The counters that tables of cost show: all that a trained run of the group recorded."""
    recorded = any(run.train and spending(run) for run in group.runs)
    return SPENT if recorded else COUNTERS


def note_of(text: str, blocks: object, profile: str) -> str:
    """A table's note: with how many intervals it shows, and, if a cell is empty, with what fills it."""
    shown = repr(blocks)
    count = shown.count(" [")
    text += f" {count} intervals are shown, each of 95 % on its own." if count else ""
    hole = (
        f" A dash is a run that is missing; `{RERUN.format(profile)}` runs what the profile lacks, "
        f"where RESULTS holds {profile}/."
    )
    return text + (hole if repr(DASH) in shown else "")
