"""Raw records of runs: the only source of every table and figure.

One folder per run, `results/<profile>/raw/<run id>/`, holding `config.json`, `provenance.json`, `train.jsonl`
(a row per epoch), `eval.jsonl` (a row per evaluation epoch, reward and number of sampling steps), optionally
`dense.jsonl` (a row per probed epoch and query budget: how far predicted dense rewards are from exact ones),
`grid_before.png` and `grid_after.png`, and `done.json`, written last: a folder without it is an unfinished
run and enters no table. Every write is durable (fsync) and either happens wholly or leaves what was there.
Imports neither torch nor anything that does.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from sdpo_bench.records import schema
from sdpo_bench.records.files import ROWS, RecordError, bad_record, read_content, read_object, read_rows, write_atomic
from sdpo_bench.records.identity import read_config


def evaluation_key(row: Mapping[str, Any]) -> tuple[int, str, int]:
    return row["epoch"], row["reward"], row["steps"]


@dataclass(frozen=True)
class RunRecord:
    """A run as read from its folder: see the module's text. `done` is None for an unfinished run."""

    folder: Path
    config: dict[str, Any]
    provenance: dict[str, Any]
    train: list[dict[str, Any]]
    eval: list[dict[str, Any]]
    dense: list[dict[str, Any]]
    done: dict[str, Any] | None

    @property
    def run_id(self) -> str:
        return str(self.config["run_id"])

    @property
    def label(self) -> str:
        return str(self.config["label"])

    @property
    def device(self) -> str:
        return str(self.provenance["device"])

    @property
    def interim_noises(self) -> int | None:
        """Noises of an evaluation before the last, which may have more; None: all have the same."""
        return self.config.get("eval_interim_noises")

    @property
    def sort_key(self) -> tuple[str, str, int, str, int, str]:
        c = self.config
        return c["model"], c["reward"], c["steps"], c["label"], c["seed"], c["run_id"]


def check_evaluation(row: Mapping[str, Any], where: str) -> None:
    if found := schema.evaluation_problem(row):
        raise bad_record(where, found)


def row_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the folder's files of rows, by name, of a compressed one as it was before."""
    found = {}
    for name in ROWS:
        if (content := read_content(folder / name)) is not None:
            found[name] = hashlib.sha256(content).hexdigest()
    return found


def _check_digests(folder: Path, done: Mapping[str, Any]) -> None:
    """RecordError where a finished run has not the rows with which it ended. Earlier versions recorded no digests."""
    if "records_sha256" not in done:
        return
    expected, found = done["records_sha256"], row_digests(folder)
    if not isinstance(expected, dict):
        raise bad_record(folder / "done.json", "'records_sha256' is not an object")
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise bad_record(
                folder / name,
                "not the rows with which the run ended (done.json has their SHA-256): some were lost, added or changed",
            )


def load_run(folder: str | os.PathLike[str]) -> RunRecord:
    """Reads and checks one run's folder, finished or not.

    Errors: `RecordError`, for anything that is not a sound record; of an unfinished run a torn last line is
    left out.
    """
    folder = Path(folder)
    done = read_object(folder / "done.json") if (folder / "done.json").exists() else None
    config = read_config(folder / "config.json")
    provenance = read_object(folder / "provenance.json")
    earlier = provenance.get("earlier", [])
    for part in (provenance, *earlier) if isinstance(earlier, list) else (None,):
        if not isinstance(part, dict):
            raise bad_record(folder / "provenance.json", "'earlier' is not a list of objects")
        if found := schema.problem(part, schema.PROVENANCE, schema.PROVENANCE_OPTIONAL):
            raise bad_record(folder / "provenance.json", found)
    if done is not None and (found := schema.problem(done, {}, schema.DONE_OPTIONAL)):
        raise bad_record(folder / "done.json", found)
    train = read_rows(folder / "train.jsonl", torn_ok=done is None)
    evaluations = read_rows(folder / "eval.jsonl", torn_ok=done is None)
    for number, row in enumerate(train, 1):
        if found := schema.problem(row, schema.TRAIN):
            raise bad_record(folder / "train.jsonl", found, number)
        if number > 1 and row["epoch"] <= train[number - 2]["epoch"]:
            raise bad_record(folder / "train.jsonl", f"epoch {row['epoch']} does not follow", number)
    keys = set()
    for number, row in enumerate(evaluations, 1):
        check_evaluation(row, f"{folder / 'eval.jsonl'}, line {number}")
        if evaluation_key(row) in keys:
            raise bad_record(folder / "eval.jsonl", "this epoch, reward and step count is there twice", number)
        keys.add(evaluation_key(row))
    if done is not None and not evaluations:
        raise bad_record(folder / "eval.jsonl", "a finished run without an evaluation")
    dense = read_rows(folder / "dense.jsonl", torn_ok=done is None)
    probed = set()
    for number, row in enumerate(dense, 1):
        if found := schema.dense_problem(row, config["steps"]):
            raise bad_record(folder / "dense.jsonl", found, number)
        if (row["epoch"], row["budget"]) in probed:
            raise bad_record(folder / "dense.jsonl", "this epoch and budget is there twice", number)
        probed.add((row["epoch"], row["budget"]))
    if done is not None:
        _check_digests(folder, done)
    return RunRecord(folder, config, provenance, train, evaluations, dense, done)


def run_folders(profile: str | os.PathLike[str]) -> list[Path]:
    raw = Path(profile) / "raw"
    if not raw.is_dir():
        raise RecordError(f"{raw}: no such folder; give a profile's results, for example results/quick")
    return sorted(path for path in raw.iterdir() if path.is_dir() and not path.name.startswith("."))


def load_profile(folder: str | os.PathLike[str], means: bool = False) -> list[RunRecord]:
    """The finished runs of `results/<profile>`, sorted by model, reward, training steps, label, seed and id.

    `means`: for tables, in a fraction of the memory: in place of an evaluation's `values` by split, prompt and noise
    there are its `means` by split, those over interim noises (`interim_means`), and its `prompts`.
    """
    runs: list[RunRecord] = []
    known: dict[tuple[str, ...], tuple[str, ...]] = {}  # lists of prompts, each kept once
    for path in run_folders(folder):
        if (path / "done.json").exists():
            runs.append(run := load_run(path))
            for row in run.eval if means else ():
                interim = evaluation_means(row, run.interim_noises) if run.interim_noises else None
                row["means"] = evaluation_means(row)
                row["interim_means"] = row["means"] if interim is None else interim
                prompts = {split: tuple(sorted(prompts)) for split, prompts in row.pop("values").items()}
                row["prompts"] = {split: known.setdefault(names, names) for split, names in prompts.items()}
    return sorted(runs, key=lambda run: run.sort_key)


def pack(folder: str | os.PathLike[str]) -> int:
    """Compresses the evaluations of the finished runs of `results/<profile>`, eval.jsonl to eval.jsonl.gz, to a third;
    all that reads records reads both. The number of files that were compressed; a corrupt run is refused as it is."""
    runs = [run for run in load_profile(folder) if (run.folder / "eval.jsonl").exists()]
    for run in runs:
        path = run.folder / "eval.jsonl"
        write_atomic(path.with_suffix(".jsonl.gz"), gzip.compress(path.read_bytes(), mtime=0))
        path.unlink()
    return len(runs)


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
