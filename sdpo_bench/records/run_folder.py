"""Reads the folder of one run.

There is one folder per run, `results/<profile>/raw/<run id>/`. It has `config.json`, `provenance.json`, `train.jsonl`
(a row per epoch), `eval.jsonl` (a row per evaluation epoch, reward and number of sampling steps), optionally
`dense.jsonl` (a row per probed epoch and query budget: the errors of predicted dense rewards), `grid_before.png` and
`grid_after.png`, and `done.json`, written last. A folder without it is an unfinished run and enters no table. Every
write is durable (fsync) and atomic. The module imports neither torch nor anything that does.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from sdpo_bench.records import schema
from sdpo_bench.records.files import ROWS, bad_record, read_content, read_object, read_rows
from sdpo_bench.records.identity import read_config

PRETRAINED = "pretrained"  # the label, in tables, of the model before any finetuning


def shown_label(config: Mapping[str, Any]) -> str:
    """A run's label as tables show it: config.json calls the pretrained model "start"."""
    label = str(config["label"])
    return PRETRAINED if label == "start" else label


def evaluation_key(row: Mapping[str, Any]) -> tuple[int, str, int]:
    return row["epoch"], row["reward"], row["steps"]


@dataclass(frozen=True)
class RunRecord:
    """A run as read from its folder: see the module's docstring. `done` is None for an unfinished run."""

    folder: Path
    config: dict[str, Any]
    provenance: dict[str, Any]
    train: list[dict[str, Any]]
    eval: list[dict[str, Any]]
    dense: list[dict[str, Any]]
    done: dict[str, Any] | None
    pictures: dict[str, str] = field(default_factory=dict)
    """A packed run's pictures "before" and "after" training: files in the profile's folder."""

    @property
    def run_id(self) -> str:
        return str(self.config["run_id"])

    @property
    def label(self) -> str:
        return shown_label(self.config)

    @property
    def device(self) -> str:
        return str(self.provenance["device"])

    @property
    def interim_noises(self) -> int | None:
        """Noises of an evaluation before the last, which may have more; None if all have the same."""
        return self.config.get("eval_interim_noises")

    @property
    def sort_key(self) -> tuple[str, str, int, str, int, str]:
        c = self.config
        return c["model"], c["reward"], c["steps"], c["label"], c["seed"], c["run_id"]


def check_evaluation(row: Mapping[str, Any], where: str) -> None:
    if found := schema.evaluation_problem(row):
        raise bad_record(where, found)


def row_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the folder's .jsonl files, by name; of a compressed one before compression."""
    found = {}
    for name in ROWS:
        if (content := read_content(folder / name)) is not None:
            found[name] = hashlib.sha256(content).hexdigest()
    return found


def _check_digests(folder: Path, done: Mapping[str, Any]) -> None:
    """RecordError if the rows of a finished run changed since it ended. Earlier versions recorded no digests."""
    if "records_sha256" not in done:
        return
    expected, found = done["records_sha256"], row_digests(folder)
    if not isinstance(expected, dict):
        raise bad_record(folder / "done.json", "'records_sha256' is not an object")
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise bad_record(
                folder / name,
                "its SHA-256 is not the one in done.json: rows were lost, added or changed after the run ended",
            )


def check_provenance(provenance: Mapping[str, Any], where: Path | str) -> None:
    """RecordError if a provenance, or one of its `earlier` ones, lacks what tables need."""
    earlier = provenance.get("earlier", [])
    for part in (provenance, *earlier) if isinstance(earlier, list) else (None,):
        if not isinstance(part, dict):
            raise bad_record(where, "'earlier' is not a list of objects")
        if found := schema.problem(part, schema.PROVENANCE, schema.PROVENANCE_OPTIONAL):
            raise bad_record(where, found)


def check_done(done: Mapping[str, Any], where: Path | str) -> None:
    """RecordError if fields in the summary of a finished run are invalid."""
    if found := schema.problem(done, {}, schema.DONE_OPTIONAL):
        raise bad_record(where, found)


def check_train(rows: Sequence[Mapping[str, Any]], where: Path | str) -> None:
    """RecordError for a row of train.jsonl that is invalid or does not follow the one before."""
    for number, row in enumerate(rows, 1):
        if found := schema.problem(row, schema.TRAIN, schema.TRAIN_OPTIONAL):
            raise bad_record(where, found, number)
        if number > 1 and row["epoch"] <= rows[number - 2]["epoch"]:
            raise bad_record(where, f"epoch {row['epoch']} does not follow", number)


def check_evaluations(rows: Sequence[Mapping[str, Any]], where: Path | str) -> None:
    """RecordError for a row of eval.jsonl that is invalid or appears twice."""
    keys = set()
    for number, row in enumerate(rows, 1):
        check_evaluation(row, f"{where}, line {number}")
        if evaluation_key(row) in keys:
            raise bad_record(where, "this epoch, reward and step count appears twice", number)
        keys.add(evaluation_key(row))


def check_dense(rows: Sequence[Mapping[str, Any]], steps: int, where: Path | str) -> None:
    """RecordError for a row of dense.jsonl that is invalid for a run with this number of training steps, or appears
    twice."""
    probed = set()
    for number, row in enumerate(rows, 1):
        if found := schema.dense_problem(row, steps):
            raise bad_record(where, found, number)
        if (row["epoch"], row["budget"]) in probed:
            raise bad_record(where, "this epoch and budget appears twice", number)
        probed.add((row["epoch"], row["budget"]))


def load_run(folder: str | os.PathLike[str]) -> RunRecord:
    """Reads and checks one run's folder, finished or not.

    Errors: `RecordError`, for anything that is not a sound record; of an unfinished run a torn last line is
    left out.
    """
    folder = Path(folder)
    done = read_object(folder / "done.json") if (folder / "done.json").exists() else None
    config = read_config(folder / "config.json")
    provenance = read_object(folder / "provenance.json")
    check_provenance(provenance, folder / "provenance.json")
    if done is not None:
        check_done(done, folder / "done.json")
    train, evaluations, dense = (read_rows(folder / name, torn_ok=done is None) for name in ROWS)
    check_train(train, folder / "train.jsonl")
    check_evaluations(evaluations, folder / "eval.jsonl")
    check_dense(dense, config["steps"], folder / "dense.jsonl")
    if done is not None:
        if not evaluations:
            raise bad_record(folder / "eval.jsonl", "a finished run without an evaluation")
        _check_digests(folder, done)
    return RunRecord(folder, config, provenance, train, evaluations, dense, done)


def evaluation_means(row: Mapping[str, Any], noises: int | None = None) -> dict[str, float]:
    """Means over prompts and noises of a row of eval.jsonl, by split; over the first `noises` if given."""
    if "means" in row:
        return dict(row["interim_means" if noises else "means"])
    found = {}
    for split, prompts in sorted(row["values"].items()):
        seeds = [values[:noises] for values in prompts.values()] if noises else prompts.values()
        values = list(chain.from_iterable(seeds))
        found[split] = math.fsum(values) / len(values)
    return found
