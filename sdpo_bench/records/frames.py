"""The records of runs as data frames: single values, or means per run, epoch, reward, step count and split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pandas as pd

from sdpo_bench.records import schema
from sdpo_bench.records.reader import RunRecord, evaluation_means

COUNTERS = tuple(schema.COUNTS)


TRAINED = ("backward_passes", "reward_gradients", "compute")  # of train.jsonl alone, or derived from it


SPENT = (*COUNTERS, *TRAINED)


BACKWARD = 2  # forward passes that a backward pass costs: one by the inputs, one by the weights, as is usual to count


class MeanRow(NamedTuple):
    """A row of `mean_frame`: a run's mean value of a reward in one evaluation, number of sampling steps and split."""

    run: str
    label: str
    method: str
    model: str
    reward_trained: str
    reward: str
    seed: int
    samples: int
    reward_queries: int
    optimiser_steps: int
    model_evaluations: int
    backward_passes: float
    reward_gradients: float
    compute: float
    epoch: int
    steps: int
    split: str
    value: float
    training_steps: int
    device: str


_VALUE = MeanRow._fields.index("value")
EVAL_COLUMNS = (*MeanRow._fields[:_VALUE], "prompt", "noise_seed", *MeanRow._fields[_VALUE:])


def spending(run: RunRecord) -> dict[int, tuple[float, ...]]:
    """Totals of `TRAINED` after each epoch of a run, and before the first: `compute` is the denoiser's forward passes
    plus `BACKWARD` times its backward passes. Empty for a run of a version that did not record them."""
    if not all("backward_passes" in row for row in run.train):
        return {}
    return {0: (0,) * len(TRAINED)} | {
        row["epoch"]: (
            row["backward_passes"],
            row.get("reward_gradients", 0),
            row["model_evaluations"] + BACKWARD * row["backward_passes"],
        )
        for row in run.train
    }


UNRECORDED = (math.nan,) * len(TRAINED)


def _heads(runs: Iterable[RunRecord]) -> Iterator[tuple[RunRecord, dict[str, Any], tuple[Any, ...]]]:
    """Yields each evaluation with the first columns of its rows in a frame."""
    for run in runs:
        c, spent = run.config, spending(run)
        for e in run.eval:
            yield (
                run,
                e,
                (
                    c["run_id"],
                    run.label,
                    c["method"]["name"],
                    c["model"],
                    c["reward"],
                    e["reward"],
                    c["seed"],
                    *(e[counter] for counter in COUNTERS),
                    *spent.get(e["epoch"], UNRECORDED),
                    e["epoch"],
                    e["steps"],
                ),
            )


def eval_frame(records: Iterable[RunRecord]) -> pd.DataFrame:
    """Every evaluated value, one row each, with columns `EVAL_COLUMNS`. `steps` are sampling steps, `training_steps` is
    the run's K, `split` is seen or unseen prompts. The counters are cumulative at that evaluation; `TRAINED` are NaN
    where a run did not record them."""
    rows = [
        (*head, split, prompt, seed, value, run.config["steps"], run.device)
        for run, e, head in _heads(records)
        for split, prompts in sorted(e["values"].items())
        for prompt, seeds in sorted(prompts.items())
        for seed, value in zip(e["noise_seeds"], seeds, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(EVAL_COLUMNS))


def training_frame(records: Iterable[RunRecord]) -> pd.DataFrame:
    """The rows of train.jsonl, one an epoch, each with its run's id, label, method and seed; the seconds of a row are
    columns of their own."""
    rows = [
        {
            "run": run.run_id,
            "label": run.label,
            "method": run.config["method"]["name"],
            "seed": run.config["seed"],
            **{key: value for key, value in row.items() if key != "seconds"},
            **{f"seconds_{part}": seconds for part, seconds in row["seconds"].items()},
        }
        for run in records
        for row in run.train
    ]
    return pd.DataFrame(rows)


def mean_frame(records: Iterable[RunRecord], interim: bool = False) -> pd.DataFrame:
    """Like `eval_frame`, with the mean over prompts and noises: a `MeanRow` per run, epoch, reward, step count and
    split. `interim`: over the noises that all evaluations of a run have, so that these can be compared."""
    rows = [
        (*head, split, mean, run.config["steps"], run.device)
        for run, e, head in _heads(records)
        for split, mean in evaluation_means(e, run.interim_noises if interim else None).items()
    ]
    return pd.DataFrame(rows, columns=list(MeanRow._fields))
