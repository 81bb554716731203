"""plan.json lists all runs of a profile, so that its tables can say what is missing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdpo_bench.records import schema
from sdpo_bench.records.files import bad_record, parse_json, read_bytes, to_json, write_atomic
from sdpo_bench.records.identity import read_config
from sdpo_bench.records.packed import packed_ids
from sdpo_bench.records.protocols import PROTOCOLS
from sdpo_bench.records.reader import run_folders

PLAN_KEYS = tuple(schema.PLANNED)


PLANNED_OPTIONAL: schema.Schema = {
    "protocol": (f"one of {', '.join(PROTOCOLS)}", lambda value: isinstance(value, str) and value in PROTOCOLS)
}


def write_plan(
    folder: str | os.PathLike[str], configs: Iterable[Mapping[str, Any]], whole: bool = False, protocol: str = ""
) -> None:
    """Adds runs to the profile's plan.json, so that its tables know what is missing: for each configuration the keys
    that tables use, and the protocol (`protocols.PROTOCOLS`) if there is one; a line each, sorted. `whole`: these are
    all runs, and earlier entries are dropped. Else those are dropped in whose place a run with other settings, such as
    another learning rate, is planned now."""
    path = Path(folder) / "plan.json"
    named = {"protocol": protocol} if protocol else {}
    rows = {c["run_id"]: {k: c[k] for k in PLAN_KEYS} | named for c in configs}
    places = {_place(row) for row in rows.values()}
    rows |= {row["run_id"]: row for row in ([] if whole else _plan(path)) if _place(row) not in places}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, ("[\n" + ",\n".join(to_json(rows[key]) for key in sorted(rows)) + "\n]\n").encode())


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The key by which tables know a run."""
    return tuple(row[key] for key in PLAN_KEYS if key != "run_id")


def _plan(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = parse_json(read_bytes(path), path)
    if not isinstance(rows, list):
        raise bad_record(path, "not a list of planned runs")
    for row in rows:
        found = schema.problem(row, schema.PLANNED, PLANNED_OPTIONAL) if isinstance(row, dict) else "not an object"
        if found or not {*PLAN_KEYS} <= row.keys() <= {*PLAN_KEYS, *PLANNED_OPTIONAL}:
            raise bad_record(path, f"not a list of planned runs ({found or f'keys other than {PLAN_KEYS}'})")
    return list(rows)


def planned_protocol(folder: str | os.PathLike[str]) -> str:
    """The protocol that plan.json names; empty for plans of versions that named none, and for runs of several."""
    found = {row["protocol"] for row in _plan(Path(folder) / "plan.json") if "protocol" in row}
    return found.pop() if len(found) == 1 else ""


def unfinished_runs(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Configurations of the profile's runs without `done.json`, sorted by id: complete ones for runs that were begun
    (only `run_id` if none was written yet), and `PLAN_KEYS` for runs in plan.json that were not."""
    paths = {path.name: path for path in run_folders(folder)}
    pending = {
        name: read_config(path / "config.json") if (path / "config.json").exists() else {"run_id": name}
        for name, path in paths.items()
        if not (path / "done.json").exists()
    }
    there = paths.keys() | packed_ids(Path(folder))
    planned = {row["run_id"]: row for row in _plan(Path(folder) / "plan.json") if row["run_id"] not in there}
    return [config for _, config in sorted((planned | pending).items())]
