"""Raw records of runs: the only source of every table and figure.

One folder per run, `results/<profile>/raw/<run id>/`, holding `config.json`, `provenance.json`, `train.jsonl`
(a row per epoch), `eval.jsonl` (a row per evaluation epoch, reward and number of sampling steps), optionally
`dense.jsonl` (a row per probed epoch and query budget: how far predicted dense rewards are from exact ones),
`grid_before.png` and `grid_after.png`, and `done.json`, written last: a folder without it is an unfinished
run and enters no table. Every write is durable (fsync) and either happens wholly or leaves what was there.
Imports neither torch nor anything that does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import hashlib
import json
import math
import os
import re
import secrets
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import schema

SCHEMA = 1
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
ROWS = ("train.jsonl", "eval.jsonl", "dense.jsonl")
CHECKPOINT = "checkpoint.pt"
RERUN = "restore it from version control, or delete the run's folder and run the profile with --resume"


class RecordError(ValueError):
    """A record is corrupt, foreign or of another schema; the message names the file, the line and what to
    do."""


class RunLocked(RuntimeError):
    """Another process is writing this run's folder."""


def _bad(where: Path | str, what: str, line: int | None = None) -> RecordError:
    return RecordError(f"{where}{f', line {line}' if line else ''}: {what}; {RERUN}")


def slug(text: str) -> str:
    """Lower-case letters, digits and single dashes: a piece of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _plain(value: Any) -> Any:
    """numpy's scalars and arrays, for json."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a record holds numbers, texts, lists and dicts, not {type(value).__name__}")


def _dumps(value: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(
            value,
            sort_keys=True,
            allow_nan=False,
            default=_plain,
            indent=indent,
            separators=(",", ": ") if indent else (",", ":"),
        )
    except ValueError as error:
        raise RecordError(f"not written, a value is NaN or infinite ({error}): has it diverged?") from error
    except RecursionError as error:
        raise RecordError("not written, lists or objects lie too deep in each other") from error


def run_id(config: Mapping[str, Any]) -> str:
    """Name of a run: `<label>-<reward>-k<K>-s<seed>-<8 hex digits>`.

    The digits are of the SHA-256 of the configuration's canonical JSON, without `run_id` and `label`, as the run was
    begun (see `continued`): two runs share a name only if they are the same run, and renaming a method's row does not
    change the digits.
    """
    begun = config.get("begun", {})
    content = _dumps(
        {
            key: value
            for key, value in (dict(config) | begun).items()
            if key not in ("run_id", "label", "begun") and not (key in begun and value is None)
        }
    )
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return f"{_stem(config)}-{digest}"


def _stem(config: Mapping[str, Any]) -> str:
    return f"{slug(config['label'])}-{slug(config['reward'])}-k{config['steps']}-s{config['seed']}"


def _difference(stored: Any, new: Any, path: str = "") -> str | None:
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


def _identity(config: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run this run and no other. Files are compared by their names, which is what configurations hold; an
    earlier version's have paths."""
    kept = {key: value for key, value in config.items() if key not in (*CHANGEABLE, "run_id", "begun")}
    for key in FILES:
        other = like.get(key)
        if isinstance(other, str) and isinstance(kept.get(key), str) and Path(kept[key]).name == other:
            kept[key] = other
    return kept


def differences(stored: Mapping[str, Any], new: Mapping[str, Any], extended: bool = True) -> list[str]:
    """In words, each setting of `new` with which the run of the configuration `stored` can't go on. `extended`: it can
    with more epochs."""
    found = list(_differences(_identity(stored, new), _identity(new, stored)))
    if new["epochs"] < stored["epochs"] or (new["epochs"] > stored["epochs"] and not extended):
        found.append(f"epochs (stored {stored['epochs']}, new {new['epochs']})")
    return found


def continued(stored: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the run of `stored` that goes on with the settings of `new`, which differ in `CHANGEABLE`
    alone. `begun` keeps what they were at first, null for what was left out: the run's id comes from it."""
    begun = {key: stored.get(key) for key in CHANGEABLE} | stored.get("begun", {})
    begun = {key: value for key, value in begun.items() if value != new.get(key)}
    config = {key: value for key, value in stored.items() if key not in (*CHANGEABLE, "begun")}
    config |= {key: new[key] for key in CHANGEABLE if key in new}
    return config | ({"begun": begun} if begun else {})


def resumed(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with which the run in `folder` goes on under `config`: see `continued`. RecordError where the
    folder holds another run, or a run of more epochs."""
    path = folder / "config.json"
    stored = _object(path)
    if found := _difference(_identity(stored, config), _identity(config, stored)):
        raise RecordError(
            f"{path} belongs to another configuration: they differ first at {found}; "
            "use another results folder, or delete this run's"
        )
    _check_config(stored, path)
    if others := differences(stored, config):
        raise RecordError(
            f"{path}: the run has other settings: {', '.join(others)}; it can go on with as many epochs, or more"
        )
    return continued(stored, config)


def recorded_epoch(folder: Path) -> int:
    """The last epoch in train.jsonl; 0 if there is none."""
    return max((row["epoch"] for row in _lines(folder / "train.jsonl", torn_ok=True)), default=0)


def recorded_weights(folder: Path) -> dict[str, dict[str, str]]:
    """Digests of the model and the adapter that a run was begun with; empty where it is new, or of a version that
    recorded none."""
    path = folder / "provenance.json"
    found = _object(path).get("weights", {}) if path.exists() else {}
    if not isinstance(found, dict) or not all(isinstance(part, dict) for part in found.values()):
        raise _bad(path, "'weights' is not an object of objects")
    return found


def _may_be_extended(folder: Path) -> bool:
    return (folder / CHECKPOINT).exists() or not (folder / "done.json").exists()


def find_run(raw: Path, config: Mapping[str, Any]) -> Path:
    """The folder in `raw` of the run of this configuration: the one that holds it, perhaps begun with other
    `CHANGEABLE` settings and so named after them, or else a new one."""
    own = raw / run_id(config)
    if (own / "config.json").exists():
        return own
    found = [path for path, stored in _alike(raw, config) if not differences(stored, config, _may_be_extended(path))]
    # Of several (each of an earlier version, or begun without --resume) the one that has come furthest.
    return max(found, key=lambda path: len(_lines(path / "train.jsonl", torn_ok=True)), default=own)


def nearest_run(raw: Path, config: Mapping[str, Any]) -> tuple[Path, list[str]] | None:
    """Of the runs in `raw` with the label, reward, K and seed of this configuration the one that differs least, and in
    what; None where there is none."""
    found = [(path, differences(stored, config, _may_be_extended(path))) for path, stored in _alike(raw, config)]
    return min(found, key=lambda entry: len(entry[1]), default=None)


def _alike(raw: Path, config: Mapping[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    """Folders and configurations of the runs in `raw` with the same label, reward, K and seed."""
    paths = sorted(raw.glob(f"{_stem(config)}-{'[0-9a-f]' * 8}/config.json"))
    found = [(path.parent, _object(path)) for path in paths]
    for folder, stored in found:
        _check_config(stored, folder / "config.json")
    keys = ("label", "reward", "steps", "seed")
    return [(folder, stored) for folder, stored in found if all(stored[key] == config[key] for key in keys)]


def temporary_name(name: str) -> str:
    return f".{name}.{secrets.token_hex(8)}.tmp"


def remove_temporaries(folder: Path, names: Collection[str] | None = None) -> None:
    """Removes what `write_atomic` left in a folder where it was killed, of files of these names, or of all. Only for
    who writes them alone."""
    for path in folder.glob(".*.tmp"):
        found = re.fullmatch(r"\.(.+)\.[0-9a-f]{16}\.tmp", path.name)
        if found and (names is None or found[1] in names):
            path.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Replaces a file's content wholly or not at all, also when the disk is full or the power goes.

    A link is replaced, not followed. Until then the content lies in a file of this call's own, `temporary_name`: of
    two writers at the same time the later one's stays.
    """
    temporary = path.with_name(temporary_name(path.name))
    # O_EXCL: never a file, or a link to one, that somebody else has put there.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself
    finally:
        os.close(folder)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _parsed(content: bytes, path: Path, line: int | None = None) -> Any:
    """JSON, in which NaN and infinity are not numbers; RecordError where it is not."""
    try:
        value = _DECODER.decode(content.decode())
        if b"\\ud" in content or b"\\uD" in content:  # half a character, which no file's text can hold
            json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:
        raise _bad(path, f"not JSON ({error})", line or getattr(error, "lineno", 1)) from error
    except RecursionError as error:
        raise _bad(path, "not a record: lists or objects lie too deep in each other", line) from error
    return value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _bad(path, f"cannot be read ({error.strerror})") from error


def _content(path: Path) -> bytes | None:
    """Of a .jsonl, or of its .gz; None where there is neither."""
    packed = path.with_suffix(path.suffix + ".gz")
    if path.exists():
        return _read(path)
    if not packed.exists():
        return None
    try:
        return gzip.decompress(_read(packed))
    except (OSError, EOFError, zlib.error) as error:
        raise _bad(packed, f"not gzip ({error})") from error


def _lines(path: Path, torn_ok: bool) -> list[dict[str, Any]]:
    """The rows of a .jsonl, or of its .gz; a last line without its line end (a torn write) is left out if `torn_ok`."""
    content = _content(path)
    if content is None:
        return []
    lines, rows = content.split(b"\n"), []
    if lines.pop() and not torn_ok:
        raise _bad(path, "the last line is torn", len(lines) + 1)
    for number, line in enumerate(lines, 1):
        row = _parsed(line, path, number)
        if not isinstance(row, dict) or not schema.is_count(row.get("epoch")):
            raise _bad(path, "not a row with an integer 'epoch'", number)
        rows.append(row)
    return rows


def _object(path: Path) -> dict[str, Any]:
    value = _parsed(_read(path), path)
    if not isinstance(value, dict):
        raise _bad(path, "not a JSON object", 1)
    return value


def _encode(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(_dumps(row) + "\n" for row in rows).encode()


def _eval_key(row: Mapping[str, Any]) -> tuple[int, str, int]:
    return row["epoch"], row["reward"], row["steps"]


class RunWriter:
    """Writes one run's folder, alone: a second writer, in this process or another, gets `RunLocked`.

        with RunWriter(folder) as writer:
            writer.write_config(config); writer.write_provenance(provenance)
            writer.truncate(epoch)                      # only to resume after that epoch
            writer.append_train(row); writer.append_eval(row)
            writer.finish(summary)

    Errors: `RunLocked`; `RecordError` for a folder that holds another configuration, a corrupt file or a
    value that is not finite; `OSError` as the disk gives it, the records then being as before the call.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock_path = self.folder / ".lock"
        self._lock: int | None = self._acquire()
        remove_temporaries(self.folder)

    def _acquire(self) -> int:
        while True:
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
                os.close(lock)
                raise RunLocked(
                    f"{self.folder} is being written by process {holder or '?'}: wait for it, or "
                    "end it; a lock left by a dead process is released by itself"
                ) from error
            # The holder before us removes its lock file: make sure that ours is the one others will find.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self._lock_path).st_ino == os.fstat(lock).st_ino:
                    os.ftruncate(lock, 0)
                    with contextlib.suppress(OSError):  # the number is only for the message
                        os.pwrite(lock, str(os.getpid()).encode(), 0)
                    return lock
            os.close(lock)

    def close(self) -> None:
        """Releases the folder."""
        if self._lock is not None:
            self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _path(self, name: str) -> Path:
        if self._lock is None:
            raise RuntimeError(f"the writer of {self.folder} is closed")
        return self.folder / name

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Stores the configuration; a folder that already holds it is left as it is, one that holds another
        is refused. Where the run goes on with other `CHANGEABLE` settings it is no longer finished."""
        path, new = self._path("config.json"), json.loads(_dumps(config))
        _check_config(new, path)
        if path.exists():
            new = resumed(self.folder, new)
            if _object(path) == new:
                return
            self._path("done.json").unlink(missing_ok=True)
        write_atomic(path, (_dumps(new, indent=1) + "\n").encode())

    def write_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Stores where the run was made. Of a resumed run made elsewhere the earlier provenances stay, under
        `earlier`."""
        path, new = self._path("provenance.json"), dict(provenance)
        if path.exists():
            stored = _object(path)
            earlier = stored.pop("earlier", [])
            if _difference(stored, json.loads(_dumps(new))):
                earlier = [*earlier, stored]
            if earlier:
                new["earlier"] = earlier
        write_atomic(path, (_dumps(new, indent=1) + "\n").encode())

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        path, line = self._path(name), _encode([row])
        with open(path, "a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                raise RecordError(f"{path}: the last line is torn; truncate(epoch), to resume, removes it")
            try:
                if os.write(file.fileno(), line) != len(line):
                    raise OSError(errno.ENOSPC, "No space left on device", str(path))
                os.fsync(file.fileno())
            except BaseException:
                os.ftruncate(file.fileno(), size)  # takes no space
                raise

    def append_train(self, row: Mapping[str, Any]) -> None:
        """Adds an epoch's row, durably; its counters are cumulative, its seconds of this epoch."""
        self._append("train.jsonl", row)

    def append_eval(self, row: Mapping[str, Any]) -> None:
        """Adds an evaluation's row, durably, values at 6 significant digits.

        A row of the same epoch, reward and step count (an evaluation repeated after a resume) is replaced.
        """
        row = json.loads(_dumps(row))
        for prompts in row["values"].values():
            for prompt, values in prompts.items():
                prompts[prompt] = [float(f"{value:.6g}") for value in values]
        _check_eval(row, f"{self._path('eval.jsonl')}, new row")
        self._replace("eval.jsonl", row, _eval_key)

    def append_dense(self, row: Mapping[str, Any]) -> None:
        """Adds a probe's row for one query budget, durably; a row of the same epoch and budget is replaced."""
        self._replace("dense.jsonl", row, lambda other: (other["epoch"], other["budget"]))

    def _replace(self, name: str, row: Mapping[str, Any], key: Callable[[Mapping[str, Any]], object]) -> None:
        """Appends `row`, in place of one with the same key."""
        rows = _lines(self._path(name), torn_ok=False)
        others = [other for other in rows if key(other) != key(row)]
        if len(others) < len(rows):
            write_atomic(self._path(name), _encode([*others, row]))
        else:
            self._append(name, row)

    def truncate(self, epoch: int) -> None:
        """Makes the folder fit to be resumed after `epoch`: later rows, a torn last line and `done.json`
        go, compressed rows are as before."""
        self._path("done.json").unlink(missing_ok=True)
        for name in ROWS:
            path = self._path(name)
            if (stored := _content(path)) is not None:
                content = _encode(row for row in _lines(path, torn_ok=True) if row["epoch"] <= epoch)
                if content != stored or not path.exists():
                    write_atomic(path, content)
                path.with_suffix(".jsonl.gz").unlink(missing_ok=True)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes `done.json`, from which on the run counts, with digests of its rows; refuses a folder that does not
        load."""
        load_run(self.folder)
        summary = dict(summary) | {"records_sha256": _digests(self.folder)}
        write_atomic(self._path("done.json"), (_dumps(summary, indent=1) + "\n").encode())


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


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    if "schema" in config and config["schema"] != SCHEMA:
        raise RecordError(
            f"{path}: schema {schema.shortened(config['schema'])}, not {SCHEMA}; use the version that wrote it"
        )
    if found := schema.problem(config, {"schema": schema.COUNT} | schema.CONFIG, schema.CONFIG_OPTIONAL):
        raise _bad(path, f"the configuration: {found}")
    begun = config.get("begun", {})
    if not isinstance(begun, dict) or begun.keys() - {*CHANGEABLE}:
        raise _bad(path, "'begun' is not an object with earlier settings of a run that went on with others")
    if config["run_id"] != (expected := run_id(config)):
        raise _bad(path, f"run_id {config['run_id']!r} is not this configuration's, {expected!r}")
    if config["run_id"] != path.parent.name:
        raise RecordError(f"{path}: the folder has another name; rename it to {config['run_id']}")


def _config(path: Path) -> dict[str, Any]:
    config = _object(path)
    _check_config(config, path)
    return config


def _check_eval(row: Mapping[str, Any], where: str) -> None:
    if found := schema.evaluation_problem(row):
        raise _bad(where, found)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the folder's files of rows, by name, of a compressed one as it was before."""
    found = {}
    for name in ROWS:
        if (content := _content(folder / name)) is not None:
            found[name] = hashlib.sha256(content).hexdigest()
    return found


def _check_digests(folder: Path, done: Mapping[str, Any]) -> None:
    """RecordError where a finished run has not the rows with which it ended. Earlier versions recorded no digests."""
    if "records_sha256" not in done:
        return
    expected, found = done["records_sha256"], _digests(folder)
    if not isinstance(expected, dict):
        raise _bad(folder / "done.json", "'records_sha256' is not an object")
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise _bad(
                folder / name,
                "not the rows with which the run ended (done.json has their SHA-256): some were lost, added or changed",
            )


def load_run(folder: str | os.PathLike[str]) -> RunRecord:
    """Reads and checks one run's folder, finished or not.

    Errors: `RecordError`, for anything that is not a sound record; of an unfinished run a torn last line is
    left out.
    """
    folder = Path(folder)
    done = _object(folder / "done.json") if (folder / "done.json").exists() else None
    config = _config(folder / "config.json")
    provenance = _object(folder / "provenance.json")
    earlier = provenance.get("earlier", [])
    for part in (provenance, *earlier) if isinstance(earlier, list) else (None,):
        if not isinstance(part, dict):
            raise _bad(folder / "provenance.json", "'earlier' is not a list of objects")
        if found := schema.problem(part, schema.PROVENANCE, schema.PROVENANCE_OPTIONAL):
            raise _bad(folder / "provenance.json", found)
    if done is not None and (found := schema.problem(done, {}, schema.DONE_OPTIONAL)):
        raise _bad(folder / "done.json", found)
    train = _lines(folder / "train.jsonl", torn_ok=done is None)
    evaluations = _lines(folder / "eval.jsonl", torn_ok=done is None)
    for number, row in enumerate(train, 1):
        if found := schema.problem(row, schema.TRAIN):
            raise _bad(folder / "train.jsonl", found, number)
        if number > 1 and row["epoch"] <= train[number - 2]["epoch"]:
            raise _bad(folder / "train.jsonl", f"epoch {row['epoch']} does not follow", number)
    keys = set()
    for number, row in enumerate(evaluations, 1):
        _check_eval(row, f"{folder / 'eval.jsonl'}, line {number}")
        if _eval_key(row) in keys:
            raise _bad(folder / "eval.jsonl", "this epoch, reward and step count is there twice", number)
        keys.add(_eval_key(row))
    if done is not None and not evaluations:
        raise _bad(folder / "eval.jsonl", "a finished run without an evaluation")
    dense = _lines(folder / "dense.jsonl", torn_ok=done is None)
    probed = set()
    for number, row in enumerate(dense, 1):
        if found := schema.dense_problem(row, config["steps"]):
            raise _bad(folder / "dense.jsonl", found, number)
        if (row["epoch"], row["budget"]) in probed:
            raise _bad(folder / "dense.jsonl", "this epoch and budget is there twice", number)
        probed.add((row["epoch"], row["budget"]))
    if done is not None:
        _check_digests(folder, done)
    return RunRecord(folder, config, provenance, train, evaluations, dense, done)


def _folders(profile: str | os.PathLike[str]) -> list[Path]:
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
    for path in _folders(folder):
        if (path / "done.json").exists():
            runs.append(run := load_run(path))
            for row in run.eval if means else ():
                row["interim_means"] = evaluation_means(row, run.interim_noises)
                row["means"] = evaluation_means(row)
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


PLAN_KEYS = tuple(schema.PLANNED)


def write_plan(folder: str | os.PathLike[str], configs: Iterable[Mapping[str, Any]], whole: bool = False) -> None:
    """Adds runs to the profile's plan.json, so that its tables know which ones are still to be made: of each
    configuration what tables go by, a line each, sorted. `whole`: they are all, what was planned before is dropped."""
    path = Path(folder) / "plan.json"
    before = [] if whole else _plan(path)
    rows = {row["run_id"]: row for row in before} | {c["run_id"]: {k: c[k] for k in PLAN_KEYS} for c in configs}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, ("[\n" + ",\n".join(_dumps(rows[key]) for key in sorted(rows)) + "\n]\n").encode())


def _plan(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = _parsed(_read(path), path)
    if not isinstance(rows, list):
        raise _bad(path, "not a list of planned runs")
    for row in rows:
        found = schema.problem(row, schema.PLANNED) if isinstance(row, dict) else "an entry is no object"
        if found or row.keys() != {*PLAN_KEYS}:
            raise _bad(path, f"not a list of planned runs ({found or f'keys other than {PLAN_KEYS}'})")
    return list(rows)


def unfinished_runs(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Configurations of the profile's runs without `done.json`, sorted by id: whole ones of those that were begun
    (only `run_id` where none was written yet), `PLAN_KEYS` of those in plan.json that were not."""
    paths = {path.name: path for path in _folders(folder)}
    pending = {
        name: _config(path / "config.json") if (path / "config.json").exists() else {"run_id": name}
        for name, path in paths.items()
        if not (path / "done.json").exists()
    }
    planned = {row["run_id"]: row for row in _plan(Path(folder) / "plan.json") if row["run_id"] not in paths}
    return [config for _, config in sorted((planned | pending).items())]


def evaluation_means(row: Mapping[str, Any], noises: int | None = None) -> dict[str, float]:
    """Means over prompts and noises of a row of eval.jsonl, by split; over the first `noises` if given."""
    if "means" in row:
        return dict(row["interim_means" if noises else "means"])
    found = {}
    for split, prompts in sorted(row["values"].items()):
        values = list(chain.from_iterable(seeds[:noises] for seeds in prompts.values()))
        found[split] = math.fsum(values) / len(values)
    return found


def _heads(runs: Iterable[RunRecord]) -> Iterator[tuple[RunRecord, dict[str, Any], tuple[Any, ...]]]:
    """Each evaluation with the first columns of its rows in a frame."""
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
    """Every evaluated value, one row each: columns `EVAL_COLUMNS`; `steps` are sampling steps,
    `training_steps` the run's own K, `split` is seen or unseen prompts, the counters are cumulative at that
    evaluation."""
    rows = [
        (*head, split, prompt, seed, value, run.config["steps"], run.device)
        for run, e, head in _heads(records)
        for split, prompts in sorted(e["values"].items())
        for prompt, seeds in sorted(prompts.items())
        for seed, value in zip(e["noise_seeds"], seeds, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(EVAL_COLUMNS))


def mean_frame(records: Iterable[RunRecord], interim: bool = False) -> pd.DataFrame:
    """As `eval_frame`, but the mean over prompts and noises: a row per run, epoch, reward, step count and
    split. `interim`: over the noises that all of a run's evaluations have, so that they can be compared."""
    rows = [
        (*head, split, mean, run.config["steps"], run.device)
        for run, e, head in _heads(records)
        for split, mean in evaluation_means(e, run.interim_noises if interim else None).items()
    ]
    columns = [column for column in EVAL_COLUMNS if column not in ("prompt", "noise_seed")]
    return pd.DataFrame(rows, columns=columns)
