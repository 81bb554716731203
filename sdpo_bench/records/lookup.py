"""Finds the run of a configuration in a results folder, as a folder or packed."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_bench.records.files import CHECKPOINT, RecordError, bad_record, read_object, read_rows
from sdpo_bench.records.identity import (
    check_config,
    continued,
    differences,
    first_difference,
    identity,
    run_id,
    stem,
)
from sdpo_bench.records.packed import index, packed_provenances
from sdpo_bench.records.run_folder import check_provenance


@dataclass(frozen=True)
class Stored:
    """The records of a run. `folder` is its own, which a packed run lacks. `extensible`: it can get more epochs."""

    folder: Path
    config: dict[str, Any]
    finished: bool
    extensible: bool
    packed: bool


def stored_run(folder: Path) -> Stored | None:
    """The run of a folder `<profile>/raw/<run id>`, or the packed run of that id; None if there is neither."""
    path = folder / "config.json"
    if path.exists():
        finished = (folder / "done.json").exists()
        extensible = not finished or (folder / CHECKPOINT).exists()
        return Stored(folder, read_object(path), finished, extensible, False)
    if folder.parent.name == "raw" and (run := index(folder.parents[1]).get(folder.name)) is not None:
        return Stored(folder, run.config, True, False, True)
    return None


def fewer_epochs(folder: Path, config: Mapping[str, Any]) -> str | None:
    """A text that says what to do if `config` asks for fewer epochs than the run in `folder` has; otherwise None."""
    stored = stored_run(folder)
    if stored is None or config["epochs"] >= stored.config["epochs"]:
        return None
    epochs = stored.config["epochs"]
    has = f"has {epochs} epochs finished" if stored.finished else f"was begun with {epochs} epochs"
    remedy = (
        "evaluate its saved weights with `sdpo-bench evaluate`"
        if stored.finished
        else f"give --epochs {epochs} or more"
    )
    return (
        f"{folder}: the run {has}, so it can't have fewer (--epochs {config['epochs']}); {remedy}, or make "
        "another run in another folder"
    )


def resumed(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with which the run in `folder` continues under `config`: see `continued`. RecordError if the
    folder holds another run, or a run with more epochs."""
    path = folder / "config.json"
    stored = read_object(path)
    if found := first_difference(identity(stored, config), identity(config, stored)):
        raise RecordError(
            f"{path} belongs to another configuration: they differ first at {found}; "
            "use another results folder, or delete this run's"
        )
    check_config(stored, path)
    if refused := fewer_epochs(folder, config):
        raise RecordError(refused)
    return continued(stored, config)


def recorded_epoch(folder: Path) -> int:
    """The last epoch in train.jsonl; 0 if there is none."""
    return max((row["epoch"] for row in read_rows(folder / "train.jsonl", torn_ok=True)), default=0)


def _recorded_epochs(stored: Stored) -> int:
    """The number of recorded epochs."""
    if stored.packed:
        return len(index(stored.folder.parents[1])[stored.folder.name].train)
    return len(read_rows(stored.folder / "train.jsonl", torn_ok=True))


def recorded_weights(folder: Path) -> dict[str, dict[str, str | None]]:
    """Digests of the model and the adapter with which a run was begun; empty if it is new, or of a version that
    recorded none."""
    found = _provenance(folder).get("weights", {})
    if not isinstance(found, dict) or not all(isinstance(part, dict) for part in found.values()):
        raise bad_record(folder / "provenance.json", "'weights' is not an object of objects")
    return found


def _provenance(folder: Path) -> dict[str, Any]:
    """Provenance of a run, in a folder or packed; empty if there is none."""
    path = folder / "provenance.json"
    if path.exists():
        return read_object(path)
    stored = stored_run(folder)
    return index(folder.parents[1])[folder.name].provenance if stored is not None and stored.packed else {}


def recorded_plugins(place: Path) -> dict[str, dict[str, Any]]:
    """The plug-ins with which the run in the folder `place` was made, or the runs of a folder `raw`, packed ones among
    them. By their sources: what provenance.json has of each (plugins/__init__.py, `Plugin.record`)."""
    if place.name == "raw":
        found = {path: read_object(path) for path in sorted(place.glob("*/provenance.json"))}
        provenances = packed_provenances(place.parent)
    else:
        found, provenances = {place / "provenance.json": _provenance(place)}, []
    for path, provenance in found.items():
        if provenance:
            check_provenance(provenance, path)
    return {source: record for p in (*found.values(), *provenances) for source, record in p.get("plugins", {}).items()}


Folders = Mapping[str, Sequence[str]]
"""Names of runs by their ids without the digits, as `list_folders` gives them."""


def list_folders(raw: Path) -> Folders:
    """The runs in `raw`, or packed beside it. One look at the disk for many runs: with a look for each, 10,000 runs in
    a folder took minutes."""
    found: dict[str, list[str]] = {}
    there = {entry.name for entry in os.scandir(raw)} if raw.is_dir() else set()
    for name in sorted(there | {*index(raw.parent)}):
        if re.fullmatch("[0-9a-f]{8}", name[-8:]):
            found.setdefault(name[:-9], []).append(name)
    return found


def find_run(raw: Path, config: Mapping[str, Any], folders: Folders | None = None) -> Path:
    """The folder in `raw` for the run of this configuration. It is the folder that holds the run, perhaps begun with
    other `CHANGEABLE` settings and so with another name, or a new one. For a packed run it is the earlier folder.
    `folders`: those of `raw`, where many runs are looked for."""
    own = raw / run_id(config)
    if stored_run(own) is not None:
        return own
    found = [run for run in _alike(raw, config, folders) if not differences(run.config, config, run.extensible)]
    # Of several (each of an earlier version, or begun without --resume) the one that has come furthest.
    furthest = max(found, key=_recorded_epochs, default=None)
    return own if furthest is None else furthest.folder


def nearest_run(
    raw: Path, config: Mapping[str, Any], besides: Collection[str] = (), folders: Folders | None = None
) -> tuple[Path, list[str]] | None:
    """The run in `raw` with the label, reward, K and seed of this configuration that differs least, and its
    differences; None if there is none. Runs named in `besides` are ignored."""
    found = [
        (run.folder, differences(run.config, config, run.extensible))
        for run in _alike(raw, config, folders)
        if run.folder.name not in besides
    ]
    return min(found, key=lambda entry: len(entry[1]), default=None)


def _alike(raw: Path, config: Mapping[str, Any], folders: Folders | None) -> list[Stored]:
    """The runs in `raw`, or packed beside it, with the same label, reward, K and seed."""
    names = (list_folders(raw) if folders is None else folders).get(stem(config), ())
    found = [stored for name in names if (stored := stored_run(raw / name)) is not None]
    for stored in found:
        check_config(stored.config, stored.folder / "config.json")
    keys = ("label", "reward", "steps", "seed")
    return [stored for stored in found if all(stored.config[key] == config[key] for key in keys)]
