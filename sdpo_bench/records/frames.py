"""The records of runs as data frames: single values, or means per run, epoch, reward, step count and split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from sdpo_bench.records import schema
from sdpo_bench.records.reader import RunRecord, evaluation_means

COUNTERS = tuple(schema.COUNTS)


EVAL_COLUMNS = (
    "run",
    "label",
    "method",
    "model",
    "reward_trained",
    "reward",
    "seed",
    *COUNTERS,
    "epoch",
    "steps",
    "split",
    "prompt",
    "noise_seed",
    "value",
    "training_steps",
    "device",
)


def _heads(runs: Iterable[RunRecord]) -> Iterator[tuple[RunRecord, dict[str, Any], tuple[Any, ...]]]:
    """Yields each evaluation with the first columns of its rows in a frame."""
    for run in runs:
        c = run.config
        for e in run.eval:
            yield (
                run,
                e,
                (
                    c["run_id"],
                    c["label"],
                    c["method"]["name"],
                    c["model"],
                    c["reward"],
                    e["reward"],
                    c["seed"],
                    *(e[counter] for counter in COUNTERS),
                    e["epoch"],
                    e["steps"],
                ),
            )


def eval_frame(records: Iterable[RunRecord]) -> pd.DataFrame:
    """Every evaluated value, one row each, with columns `EVAL_COLUMNS`. `steps` are sampling steps, `training_steps` is
    the run's K, `split` is seen or unseen prompts. The counters are cumulative at that evaluation."""
    rows = [
        (*head, split, prompt, seed, value, run.config["steps"], run.device)
        for run, e, head in _heads(records)
        for split, prompts in sorted(e["values"].items())
        for prompt, seeds in sorted(prompts.items())
        for seed, value in zip(e["noise_seeds"], seeds, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(EVAL_COLUMNS))


def mean_frame(records: Iterable[RunRecord], interim: bool = False) -> pd.DataFrame:
    """Like `eval_frame`, with the mean over prompts and noises: a row per run, epoch, reward, step count and split.
    `interim`: over the noises that all evaluations of a run have, so that these can be compared."""
    rows = [
        (*head, split, mean, run.config["steps"], run.device)
        for run, e, head in _heads(records)
        for split, mean in evaluation_means(e, run.interim_noises if interim else None).items()
    ]
    columns = [column for column in EVAL_COLUMNS if column not in ("prompt", "noise_seed")]
    return pd.DataFrame(rows, columns=columns)
