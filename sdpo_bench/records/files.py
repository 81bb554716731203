"""Files of records: JSON that is checked when it is read, and atomic writes."""

from __future__ import annotations

import gzip
import json
import os
import re
import secrets
import stat
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdpo_bench.records import schema

ROWS = ("train.jsonl", "eval.jsonl", "dense.jsonl")


CHECKPOINT = "checkpoint.pt"
RERUN = "restore it from version control, or delete the run's folder and run the profile with --resume"


class RecordError(ValueError):
    """A record is corrupt, foreign or of another schema. The message names the file and line and says what to do."""


class RunLocked(RuntimeError):
    """Another process is writing this run's folder."""


def bad_record(where: Path | str, what: str, line: int | None = None) -> RecordError:
    return RecordError(f"{where}{f', line {line}' if line else ''}: {what}; {RERUN}")


def slug(text: str) -> str:
    """Lower-case letters, digits and single dashes: a piece of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _plain(value: Any) -> Any:
    """Converts numpy's scalars and arrays for json."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a record holds numbers, texts, lists and dicts, not {type(value).__name__}")


def to_json(value: Any, indent: int | None = None) -> str:
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
        raise RecordError("not written, lists or objects are nested too deeply") from error


def temporary_name(name: str) -> str:
    return f".{name}.{secrets.token_hex(8)}.tmp"


def remove_temporaries(folder: Path, names: Collection[str] | None = None) -> None:
    """Removes temporary files that a killed `write_atomic` left in a folder, for files of these names or for all. Only
    one process may write them."""
    for path in folder.glob(".*.tmp"):
        found = re.fullmatch(r"\.(.+)\.[0-9a-f]{16}\.tmp", path.name)
        if found and (names is None or found[1] in names):
            path.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Replaces the content of a file completely or not at all, also if the disk is full or the power fails.

    A link is replaced, not followed. Until then the content is in a temporary file of this call (`temporary_name`). If
    two writers write at the same time, the later content stays.
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


def share(folder: Path) -> None:
    """Gives the files of a folder the permissions of a new file: safetensors writes files that only their owner can
    read."""
    probe = folder / temporary_name("permissions")  # the umask itself can only be read by changing it
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def parse_json(content: bytes, path: Path, line: int | None = None) -> Any:
    """Parses JSON in which NaN and infinity are not numbers. RecordError for anything else."""
    try:
        value = _DECODER.decode(content.decode())
        if b"\\ud" in content or b"\\uD" in content:  # half a character, which no file's text can hold
            json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:
        raise bad_record(path, f"not JSON ({error})", line or getattr(error, "lineno", 1)) from error
    except RecursionError as error:
        raise bad_record(path, "not a record: lists or objects are nested too deeply", line) from error
    return value


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise bad_record(path, f"cannot be read ({error.strerror})") from error


def read_content(path: Path) -> bytes | None:
    """The content of a .jsonl file or of its .gz; None if there is neither."""
    packed = path.with_suffix(path.suffix + ".gz")
    if path.exists():
        return read_bytes(path)
    if not packed.exists():
        return None
    try:
        return gzip.decompress(read_bytes(packed))
    except (OSError, EOFError, zlib.error) as error:
        raise bad_record(packed, f"not gzip ({error})") from error


def read_rows(path: Path, torn_ok: bool) -> list[dict[str, Any]]:
    """The rows of a .jsonl file or of its .gz. With `torn_ok` a last line without its line end (a torn write) is left
    out."""
    content = read_content(path)
    if content is None:
        return []
    lines, rows = content.split(b"\n"), []
    if lines.pop() and not torn_ok:
        raise bad_record(path, "the last line is torn", len(lines) + 1)
    for number, line in enumerate(lines, 1):
        row = parse_json(line, path, number)
        if not isinstance(row, dict) or not schema.is_count(row.get("epoch")):
            raise bad_record(path, "not a row with an integer 'epoch'", number)
        rows.append(row)
    return rows


def read_object(path: Path) -> dict[str, Any]:
    value = parse_json(read_bytes(path), path)
    if not isinstance(value, dict):
        raise bad_record(path, "not a JSON object", 1)
    return value


def encode_rows(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(to_json(row) + "\n" for row in rows).encode()
