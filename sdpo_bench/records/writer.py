"""Writes the folder of one run."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdpo_bench.errors import UserError
from sdpo_bench.records.files import (
    ROWS,
    RecordError,
    RunLocked,
    encode_rows,
    read_content,
    read_object,
    read_rows,
    remove_temporaries,
    to_json,
    write_atomic,
)
from sdpo_bench.records.identity import check_config, first_difference
from sdpo_bench.records.lookup import resumed, stored_run
from sdpo_bench.records.run_folder import check_evaluation, evaluation_key, load_run, row_digests

HELD = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)  # the errors of a lock that another process holds


class RunWriter:
    """Writes the folder of one run. A second writer, in this process or another, gets `RunLocked`.

        with RunWriter(folder) as writer:
            writer.write_config(config); writer.write_provenance(provenance)
            writer.truncate(epoch)                      # only to resume after that epoch
            writer.append_train(row); writer.append_eval(row)
            writer.finish(summary)

    Errors: `RunLocked`; `UserError` on a disk without file locks; `RecordError` for a folder that holds another
    configuration, a corrupt file or a value that is not finite; `OSError` as the disk gives it, the records then being
    as before the call.
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
                holder = os.pread(lock, 300, 0).decode(errors="replace").strip()
                os.close(lock)
                if error.errno not in HELD:  # as on Lustre that is mounted without flock: two writers could meet
                    raise UserError(
                        f"{self.folder}: its disk gives no file locks ({error.strerror}), which keep a second writer "
                        f"out; mount it with them (Lustre: -o flock), or choose a folder on another disk"
                    ) from error
                raise RunLocked(
                    f"{self.folder} is being written by process {holder or '?'}: wait for it, or "
                    "end it; a lock left by a dead process is released by itself"
                ) from error
            # The holder before us removes its lock file: make sure that ours is the one others will find.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self._lock_path).st_ino == os.fstat(lock).st_ino:
                    os.ftruncate(lock, 0)
                    with contextlib.suppress(OSError):  # the number is only for the message
                        os.pwrite(lock, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
                    return lock
            os.close(lock)

    def close(self) -> None:
        """Releases the folder."""
        if self._lock is not None:
            lock, self._lock = self._lock, None
            try:
                self._lock_path.unlink(missing_ok=True)
            finally:
                os.close(lock)

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _path(self, name: str) -> Path:
        if self._lock is None:
            raise RuntimeError(f"the writer of {self.folder} is closed")
        return self.folder / name

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Stores the configuration. A folder that already holds it stays unchanged; a folder that holds another is
        refused. A run that continues with other `CHANGEABLE` settings is no longer finished."""
        path, new = self._path("config.json"), json.loads(to_json(config))
        check_config(new, path)
        if path.exists():
            new = resumed(self.folder, new)
            if read_object(path) == new:
                return
            self._path("done.json").unlink(missing_ok=True)
        elif stored_run(self.folder) is not None:
            raise RecordError(
                f"{self.folder}: the run is finished and packed; `sdpo-bench tables {self.folder.parents[1]} --unpack "
                "OUT` gives its folder back"
            )
        write_atomic(path, (to_json(new, indent=1) + "\n").encode())

    def write_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Stores where the run was made. The earlier provenances of a resumed run stay, under `earlier`."""
        path, new = self._path("provenance.json"), dict(provenance)
        if path.exists():
            stored = read_object(path)
            earlier = stored.pop("earlier", [])
            if first_difference(stored, json.loads(to_json(new))):
                earlier = [*earlier, stored]
            if earlier:
                new["earlier"] = earlier
        write_atomic(path, (to_json(new, indent=1) + "\n").encode())

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        path, line = self._path(name), encode_rows([row])
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
        """Adds the row of an epoch, durably. Its counters are cumulative; its seconds are of this epoch."""
        self._append("train.jsonl", row)

    def append_eval(self, row: Mapping[str, Any]) -> None:
        """Adds the row of an evaluation, durably, with values at 6 significant digits.

        A row of the same epoch, reward and step count (an evaluation repeated after a resume) is replaced.
        """
        row = json.loads(to_json(row))
        for prompts in row["values"].values():
            for prompt, values in prompts.items():
                prompts[prompt] = [float(f"{value:.6g}") for value in values]
        check_evaluation(row, f"{self._path('eval.jsonl')}, new row")
        self._replace("eval.jsonl", row, evaluation_key)

    def append_dense(self, row: Mapping[str, Any]) -> None:
        """Adds the row of a probe for one query budget, durably. A row of the same epoch and budget is replaced."""
        self._replace("dense.jsonl", row, lambda other: (other["epoch"], other["budget"]))

    def _replace(self, name: str, row: Mapping[str, Any], key: Callable[[Mapping[str, Any]], object]) -> None:
        """Appends `row`, replacing a row with the same key."""
        rows = read_rows(self._path(name), torn_ok=False)
        others = [other for other in rows if key(other) != key(row)]
        if len(others) < len(rows):
            write_atomic(self._path(name), encode_rows([*others, row]))
        else:
            self._append(name, row)

    def truncate(self, epoch: int) -> None:
        """Prepares the folder for resumption after `epoch`: removes later rows, a torn last line and `done.json`, and
        unpacks compressed rows."""
        self._path("done.json").unlink(missing_ok=True)
        for name in ROWS:
            path = self._path(name)
            if (stored := read_content(path)) is not None:
                content = encode_rows(row for row in read_rows(path, torn_ok=True) if row["epoch"] <= epoch)
                if content != stored or not path.exists():
                    write_atomic(path, content)
                path.with_suffix(".jsonl.gz").unlink(missing_ok=True)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes `done.json` with digests of the rows; from then on the run counts. Refuses a folder that does not
        load."""
        load_run(self.folder)
        summary = dict(summary) | {"records_sha256": row_digests(self.folder)}
        write_atomic(self._path("done.json"), (to_json(summary, indent=1) + "\n").encode())
