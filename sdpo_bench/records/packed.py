"""The committed form of a profile's records: few files, with the same content as the folders of the runs.

`results/<profile>/` then holds, beside plan.json and what is generated,

    packed.json             schema, and the SHA-256 of every file below, by name
    runs.jsonl[.gz]         a line per finished run, sorted by id: configuration, rows of train.jsonl and dense.jsonl,
                            done.json, the number of its provenance, and where its values lie
    provenance.json         the distinct provenances
    curves.csv.gz           a line per evaluation and split: counts, and means over prompts and noises
    values/part-<n>.parquet every evaluated value; a part is never rewritten
    pictures/part-<n>.zip   grids of pictures, as WebP; the same

All but `values` is read with the standard library; values need pyarrow. This module reads; `packing` writes.
"""

from __future__ import annotations

import csv
import functools
import gzip
import hashlib
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from sdpo_bench.errors import UserError
from sdpo_bench.records import schema
from sdpo_bench.records.files import RecordError, parse_json, read_object
from sdpo_bench.records.identity import check_config
from sdpo_bench.records.run_folder import (
    RunRecord,
    check_dense,
    check_done,
    check_evaluations,
    check_provenance,
    check_train,
)

Found = TypeVar("Found")


MANIFEST = "packed.json"
SCHEMA = 1
NEW = ".new"  # ends the name of a file that packed.json lists already and that has not replaced the earlier one yet


RUNS, RUNS_GZ, PROVENANCE, CURVES = "runs.jsonl", "runs.jsonl.gz", "provenance.json", "curves.csv.gz"


NAMES = re.compile(
    r"runs\.jsonl(\.gz)?|provenance\.json|curves\.csv\.gz|values/part-\d+\.parquet|pictures/part-\d+\.zip"
)


CURVE_COLUMNS = ("run", "epoch", "reward", "steps", "split", "mean", "interim_mean", *schema.COUNTS, "evaluated")


RESTORE = "restore it from version control"


EVALUATED: schema.Schema = {
    "noise_seeds": schema.EVAL["noise_seeds"],
    "prompts": (
        "prompts by split",
        lambda value: (
            isinstance(value, dict)
            and bool(value)
            and all(schema.is_line(split) and isinstance(names, list) and names for split, names in value.items())
            and all(isinstance(name, str) for names in value.values() for name in names)
        ),
    ),
}


PACKED_RUN: schema.Schema = {
    "run_id": schema.LINE,
    "config": ("an object", lambda value: isinstance(value, dict)),
    "provenance": schema.COUNT,
    "train": ("a list of rows", lambda value: _rows(value)),
    "dense": ("a list of rows", lambda value: _rows(value)),
    "done": ("an object", lambda value: isinstance(value, dict)),
    "evaluated": (
        "a list of prompts and noises",
        lambda value: isinstance(value, list) and all(_object(v) and not schema.problem(v, EVALUATED) for v in value),
    ),
    "extra": ("an object of objects", lambda value: _object(value) and all(map(_object, value.values()))),
    "part": schema.POSITIVE,
    "offset": schema.COUNT,
    "pictures": (
        "files by 'before' and 'after'",
        lambda value: isinstance(value, dict) and all(isinstance(name, str) for name in value.values()),
    ),
}


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) and schema.is_count(row.get("epoch")) for row in value)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def part_name(number: int) -> str:
    return f"values/part-{number}.parquet"


@dataclass(frozen=True)
class Place:
    """Where the values of a run are: `count` values from `offset` in a part."""

    part: int
    offset: int
    count: int


@dataclass(frozen=True)
class Packed:
    """A packed profile as read from its files, whose digests were checked. `runs`, by id, have means instead of values,
    like `load_profile(folder, means=True)`; `lines` are their lines in runs.jsonl."""

    folder: Path
    files: dict[str, str]
    runs: dict[str, RunRecord] = field(default_factory=dict)
    lines: dict[str, dict[str, Any]] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)


def read_manifest(folder: Path) -> dict[str, str] | None:
    """The SHA-256 of each packed file, by name; None for a folder without packed files. RecordError if the manifest of
    packed files is missing or invalid."""
    path = folder / MANIFEST
    if not path.exists():
        if there := [name for name in (RUNS, RUNS_GZ, CURVES) if (folder / name).exists()]:
            raise RecordError(f"{path}: missing, beside {there[0]}; {RESTORE}")
        return None
    found = read_object(path)
    if found.get("schema") != SCHEMA:
        raise RecordError(
            f"{path}: schema {schema.shortened(found.get('schema'))}, not {SCHEMA}; use the version that wrote it"
        )
    files = found.get("files")
    if not isinstance(files, dict) or not all(
        NAMES.fullmatch(name) and isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)
        for name, digest in files.items()
    ):
        raise RecordError(f"{path}: 'files' is not an object of SHA-256 by names of packed files; {RESTORE}")
    if (RUNS in files) == (RUNS_GZ in files) or not {PROVENANCE, CURVES} <= files.keys():
        raise RecordError(f"{path}: does not list runs, provenances and curves once each; {RESTORE}")
    return files


def is_packed(folder: Path) -> bool:
    return any((folder / name).exists() for name in (MANIFEST, RUNS, RUNS_GZ, CURVES))


def path_of(folder: Path, name: str, digest: str) -> Path | None:
    """The file with that content: under its name, or under the name of a file that was about to replace it."""
    for path in (folder / name, folder / f"{name}{NEW}"):
        if path.is_file() and sha256(path.read_bytes()) == digest:
            return path
    return None


def _content(folder: Path, name: str, digest: str) -> bytes:
    path = path_of(folder, name, digest)
    if path is None:
        what = "not as it was packed (packed.json has its SHA-256)" if (folder / name).exists() else "missing"
        raise RecordError(f"{folder / name}: {what}; {RESTORE}")
    return path.read_bytes()


def _unzipped(content: bytes, path: Path) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise RecordError(f"{path}: not gzip ({error}); {RESTORE}") from error


def read_packed(folder: Path) -> Packed | None:
    """The packed runs of a profile's folder; None if there are none. RecordError names a file that is missing, damaged
    or invalid. The SHA-256 of every file is checked."""
    files = read_manifest(folder)
    return None if files is None else read_files(folder, files)


def read_files(folder: Path, files: Mapping[str, str]) -> Packed:
    """The contents of these files, whether or not they have replaced the earlier ones yet."""
    for name, digest in files.items():
        if path_of(folder, name, digest) is None:
            _content(folder, name, digest)  # says which and why
    lines = _read_lines(folder, files)
    provenances = _read_provenances(folder, files)
    curves = _read_curves(folder, files, lines)
    packed = Packed(folder, dict(files), lines=lines)
    for run_id, line in lines.items():
        rows = curves.get(run_id, [])
        packed.runs[run_id] = _record(folder, files, line, provenances, rows)
        count = sum(len(names) * len(row["noise_seeds"]) for row in rows for names in row["prompts"].values())
        packed.places[run_id] = Place(line["part"], line["offset"], count)
    return packed


def runs_name(files: Mapping[str, str]) -> str:
    return RUNS if RUNS in files else RUNS_GZ


def _read_lines(folder: Path, files: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    name = runs_name(files)
    path, content = folder / name, _content(folder, name, files[name])
    if name == RUNS_GZ:
        content = _unzipped(content, path)
    found: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(content.splitlines(), 1):
        line = parse_json(text, path, number)
        wrong = schema.problem(line, PACKED_RUN) if isinstance(line, dict) else "not an object"
        if not wrong and line["run_id"] in found:
            wrong = "this run is there twice"
        if not wrong and part_name(line["part"]) not in files:
            wrong = f"packed.json lists no {part_name(line['part'])}"
        if not wrong and line["pictures"].values() - files.keys():
            wrong = "packed.json does not list its pictures"
        if wrong:
            raise RecordError(f"{path}, line {number}: {wrong}; {RESTORE}")
        found[line["run_id"]] = line
    return found


def _read_provenances(folder: Path, files: Mapping[str, str]) -> list[dict[str, Any]]:
    path = folder / PROVENANCE
    found = parse_json(_content(folder, PROVENANCE, files[PROVENANCE]), path)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise RecordError(f"{path}: not a list of objects; {RESTORE}")
    for entry in found:
        check_provenance(entry, path)
    return found


def _read_curves(
    folder: Path, files: Mapping[str, str], lines: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Rows of evaluations by run, with means instead of values."""
    path = folder / CURVES
    text = _unzipped(_content(folder, CURVES, files[CURVES]), path).decode(errors="replace")
    reader = csv.reader(io.StringIO(text, newline=""))
    if tuple(next(reader, ())) != CURVE_COLUMNS:
        raise RecordError(f"{path}: the columns are not {', '.join(CURVE_COLUMNS)}; {RESTORE}")
    found: dict[str, list[dict[str, Any]]] = {}
    known: dict[tuple[str, ...], tuple[str, ...]] = {}  # lists of prompts, each kept once
    before: tuple[str, ...] = ()
    for cells in reader:
        try:
            run, epoch, reward, steps, split, mean, interim, *counts, evaluated = cells
            key = (run, epoch, reward, steps)
            if key != before:
                rows, before = found.setdefault(run, []), key
                head = dict(zip(("epoch", "steps", *schema.COUNTS), map(int, (epoch, steps, *counts)), strict=True))
                measured = lines[run]["evaluated"][int(evaluated)]
                names = {split: tuple(prompts) for split, prompts in measured["prompts"].items()}
                rows.append(
                    lines[run]["extra"].get(str(len(rows)), {})
                    | head
                    | {
                        "reward": reward,
                        "noise_seeds": list(measured["noise_seeds"]),
                        "means": {},
                        "interim_means": {},
                        "prompts": {split: known.setdefault(texts, texts) for split, texts in names.items()},
                    }
                )
            rows[-1]["means"][split] = float(mean)
            rows[-1]["interim_means"][split] = float(interim or mean)
        except (ValueError, KeyError, IndexError) as error:
            raise RecordError(
                f"{path}, line {reader.line_num}: not an evaluation of a packed run; {RESTORE}"
            ) from error
    return found


def _record(
    folder: Path,
    files: Mapping[str, str],
    line: Mapping[str, Any],
    provenances: Sequence[dict[str, Any]],
    rows: list[dict[str, Any]],
) -> RunRecord:
    """A run from its line, checked like a run in a folder."""
    run_id, where = line["run_id"], f"{folder / runs_name(files)}, {line['run_id']}"
    if line["provenance"] >= len(provenances):
        raise RecordError(f"{where}: {PROVENANCE} has no provenance {line['provenance']}; {RESTORE}")
    place = folder / "raw" / run_id
    check_config(line["config"], place / "config.json")
    check_done(line["done"], where)
    check_train(line["train"], f"{where}, train")
    check_dense(line["dense"], line["config"]["steps"], f"{where}, dense")
    if not rows:
        raise RecordError(f"{folder / CURVES}: no evaluation of {run_id}; {RESTORE}")
    check_means(rows, f"{folder / CURVES}, {run_id}")
    provenance = provenances[line["provenance"]]
    return RunRecord(
        place, line["config"], provenance, line["train"], rows, line["dense"], line["done"], dict(line["pictures"])
    )


def check_means(rows: Sequence[dict[str, Any]], where: str) -> None:
    """RecordError for evaluations in which a mean is not a number, a split has none, or which appear twice."""
    one = {"noise_seeds": [0]}  # a mean stands for the values of one noise; the seeds were checked with the run's line
    check_evaluations(
        [row | one | {"values": {split: {"": [mean]} for split, mean in row["means"].items()}} for row in rows], where
    )
    for row in rows:
        if not row["means"].keys() == row["prompts"].keys() == row["interim_means"].keys():
            raise RecordError(f"{where}: the splits are not those that were evaluated; {RESTORE}")
        if not all(map(schema.is_number, row["interim_means"].values())):
            raise RecordError(f"{where}: a mean over interim noises is not a number; {RESTORE}")


# Values -----------------------------------------------------------------------------------------------------------


def parquet(purpose: str) -> tuple[ModuleType, ModuleType]:
    """Returns pyarrow and its parquet module. UserError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{purpose} needs pyarrow, which is not installed here: python -m pip install pyarrow (tables of packed "
            "records do not need it)"
        ) from error
    return pyarrow, pyarrow.parquet


def read_part(packed: Packed, number: int, columns: Sequence[str] | None = None) -> Any:
    """The table of a part, a pyarrow.Table. RecordError if the file is not one."""
    pyarrow, pq = parquet("reading single values")
    name = part_name(number)
    content = _content(packed.folder, name, packed.files[name])
    try:
        return pq.read_table(io.BytesIO(content), columns=None if columns is None else list(columns))
    except (pyarrow.ArrowException, OSError) as error:
        raise RecordError(f"{packed.folder / name}: not a part of values ({error}); {RESTORE}") from error


def exact(values: np.ndarray) -> list[float]:
    """Values as they were recorded, from single precision, which holds their 6 significant digits."""
    if values.dtype == np.float32:
        return [float(f"{value:.6g}") for value in values.tolist()]
    return list(map(float, values))


def with_values(packed: Packed, names: Sequence[str] | None = None) -> Iterator[RunRecord]:
    """The runs of these ids (by default all), by part, each with every value instead of means. UserError without
    pyarrow."""
    chosen = [name for name in packed.runs if names is None or name in names]
    for number in sorted({packed.places[name].part for name in chosen}):
        column = read_part(packed, number, ["value"]).column("value").to_numpy()
        for name in chosen:
            place = packed.places[name]
            if place.part == number:
                values = column[place.offset : place.offset + place.count]
                if len(values) < place.count:
                    raise RecordError(f"{packed.folder / part_name(number)}: lacks values of {name}; {RESTORE}")
                yield _valued(packed.runs[name], exact(values))


def _valued(run: RunRecord, values: list[float]) -> RunRecord:
    rows, place = [], 0
    for row in run.eval:
        count = len(row["noise_seeds"])
        found: dict[str, dict[str, list[float]]] = {}
        for split in sorted(row["prompts"]):
            found[split] = {}
            for prompt in row["prompts"][split]:
                found[split][prompt] = values[place : place + count]
                place += count
        kept = {key: value for key, value in row.items() if key not in ("means", "interim_means", "prompts")}
        rows.append(kept | {"values": found})
    return replace(run, eval=rows)


# Lookups ----------------------------------------------------------------------------------------------------------


def packed_ids(folder: Path) -> frozenset[str]:
    """Ids of the packed runs of a profile's folder, read without the rest; empty if there are none."""
    return _cached(folder, _read_ids) if is_packed(folder) else frozenset()


def _read_ids(folder: Path) -> frozenset[str]:
    files = read_manifest(folder)
    return frozenset() if files is None else frozenset(_read_lines(folder, files))


def packed_provenances(folder: Path) -> list[dict[str, Any]]:
    """The distinct provenances of the packed runs, read without the rest; empty if there are none."""
    files = read_manifest(folder)
    return [] if files is None else _read_provenances(folder, files)


def index(folder: Path) -> dict[str, RunRecord]:
    """The packed runs by id, cached while their files do not change. Callers must not change them."""
    return _cached(folder, _read_runs) if is_packed(folder) else {}


def _read_runs(folder: Path) -> dict[str, RunRecord]:
    packed = read_packed(folder)
    return {} if packed is None else packed.runs


def _cached(folder: Path, read: Callable[[Path], Found]) -> Found:
    stats = []
    for path in sorted({folder / MANIFEST, *folder.glob("*.gz"), *folder.glob("*.json*"), *folder.glob("*/part-*")}):
        if path.is_file():
            stat = path.stat()
            stats.append((str(path), stat.st_size, stat.st_mtime_ns))
    found: Found = _remembered(os.path.realpath(folder), folder, tuple(stats), read)
    return found


@functools.lru_cache(maxsize=32)
def _remembered(
    real: str, folder: Path, stats: tuple[tuple[str, int, int], ...], read: Callable[[Path], Found]
) -> Found:
    return read(folder)
