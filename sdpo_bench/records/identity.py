"""Identifies the run of a configuration: its id, and the settings that may change later."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdpo_bench.records import schema
from sdpo_bench.records.files import RecordError, bad_record, read_object, slug, to_json

SCHEMA = 1


EXECUTION = (
    "channels_last",
    "checkpoint_every",
    "compile",
    "gradient_checkpointing",
    "offload_trajectories",
    "pad_rows",
    "reward_batch",
    "rows",
    "vae_slicing",
)


CADENCE = ("eval_every", "eval_interim_noises", "eval_start", "probe_every")


CHANGEABLE = (*EXECUTION, *CADENCE, "epochs")
"""Settings with which a run may go on though it was begun with others: how it is executed, when it is evaluated, and
for how long it is trained."""


FILES = ("adapter", "model", "prompts", "unseen_prompts")


def run_id(config: Mapping[str, Any]) -> str:
    """The name of a run: `<label>-<reward>-k<K>-s<seed>-<8 hex digits>`.

    The digits are of the SHA-256 of the configuration's canonical JSON, without `run_id` and `label`, as the run was
    begun (see `continued`): two runs share a name only if they are the same run, and renaming a method's row does not
    change the digits.
    """
    begun = config.get("begun", {})
    content = to_json(
        {
            key: value
            for key, value in (dict(config) | begun).items()
            if key not in ("run_id", "label", "begun") and not (key in begun and value is None)
        }
    )
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return f"{stem(config)}-{digest}"


def stem(config: Mapping[str, Any]) -> str:
    """A run's id without the hexadecimal digits."""
    return f"{slug(config['label'])}-{slug(config['reward'])}-k{config['steps']}-s{config['seed']}"


def first_difference(stored: Any, new: Any, path: str = "") -> str | None:
    """The first key, in sorted order, at which two configurations differ; None if they are equal."""
    return next(_differences(stored, new, path), None)


def _differences(stored: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(new, dict):
        for key in sorted(stored.keys() | new.keys()):
            where = f"{path}.{key}" if path else key
            if key not in stored or key not in new:
                side, value = ("stored", stored[key]) if key in stored else ("new", new[key])
                yield f"{where} (only {side}: {value!r})"
            else:
                yield from _differences(stored[key], new[key], where)
    elif stored != new:
        yield f"{path} (stored {stored!r}, new {new!r})"


def identity(config: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that identify a run. Files are compared by their names, which configurations hold; configurations of
    an earlier version have paths."""
    kept = {key: value for key, value in config.items() if key not in (*CHANGEABLE, "run_id", "begun")}
    for key in FILES:
        other = like.get(key)
        if isinstance(other, str) and isinstance(kept.get(key), str) and Path(kept[key]).name == other:
            kept[key] = other
    return kept


def differences(stored: Mapping[str, Any], new: Mapping[str, Any], extended: bool = True) -> list[str]:
    """Texts for the settings of `new` with which the run of the configuration `stored` cannot continue. `extended`: it
    may have more epochs."""
    found = list(_differences(identity(stored, new), identity(new, stored)))
    if new["epochs"] < stored["epochs"] or (new["epochs"] > stored["epochs"] and not extended):
        found.append(f"epochs (stored {stored['epochs']}, new {new['epochs']})")
    return found


def continued(stored: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with which the run of `stored` continues under the settings of `new`, which differ only in
    `CHANGEABLE`. `begun` keeps the first values, null for those that were left out, because the run's id comes from
    them."""
    begun = {key: stored.get(key) for key in CHANGEABLE} | stored.get("begun", {})
    begun = {key: value for key, value in begun.items() if value != new.get(key)}
    config = {key: value for key, value in stored.items() if key not in (*CHANGEABLE, "begun")}
    config |= {key: new[key] for key in CHANGEABLE if key in new}
    return config | ({"begun": begun} if begun else {})


def check_config(config: Mapping[str, Any], path: Path) -> None:
    if "schema" in config and config["schema"] != SCHEMA:
        raise RecordError(
            f"{path}: schema {schema.shortened(config['schema'])}, not {SCHEMA}; use the version that wrote it"
        )
    if found := schema.problem(config, {"schema": schema.COUNT} | schema.CONFIG, schema.CONFIG_OPTIONAL):
        raise bad_record(path, f"the configuration: {found}")
    begun = config.get("begun", {})
    if not isinstance(begun, dict) or begun.keys() - {*CHANGEABLE}:
        raise bad_record(path, "'begun' is not an object with earlier settings of a run")
    if config["run_id"] != (expected := run_id(config)):
        raise bad_record(path, f"run_id {config['run_id']!r} is not this configuration's, {expected!r}")
    if config["run_id"] != path.parent.name:
        raise RecordError(f"{path}: the folder has another name; rename it to {config['run_id']}")


def read_config(path: Path) -> dict[str, Any]:
    config = read_object(path)
    check_config(config, path)
    return config
