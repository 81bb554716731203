"""Worker processes from the parent's side, and the cores and GPUs that they may use."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from typing import Any

from sdpo_bench.config import absolute
from sdpo_bench.experiments.runs import Run
from sdpo_bench.records.identity import FILES

STOPPING = 120.0  # seconds in which a worker saves what it has; it looks for signals between forward passes


def physical_cores() -> int:
    """Physical cores that this process may use. A second thread on one core does not make training faster."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def gpus() -> list[str]:
    """The GPUs that this process may use, as in CUDA_VISIBLE_DEVICES; none without CUDA."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


def job(run: Run) -> dict[str, Any]:
    """What a worker needs to know to make a run."""
    config = run.config.to_json() | {"device": run.config.device}
    # Files by their paths, where config.json has only their names.
    config |= {name: absolute(path) for name in FILES if (path := getattr(run.config, name)) is not None}
    return {"config": config, "folder": str(run.folder.absolute()), "argv": sys.argv}


class Worker:
    """A process that makes one run after another. Its reports go to `events` as (worker, report)."""

    def __init__(
        self, number: int, events: queue.SimpleQueue[tuple[Worker, dict[str, Any]]], gpu: str | None = None
    ) -> None:
        self.number = number
        self.run: Run | None = None
        env = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
        env |= {"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {}  # its only one: "cuda" is it
        self.errors: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sdpo_bench.experiments.worker_main"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=env,
            # Ctrl-C in the terminal goes to the parent alone, which ends its workers in order.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()
        threading.Thread(target=self._read_reports, args=(events,), daemon=True).start()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors = [*self.errors[-49:], line]

    def _read_reports(self, events: queue.SimpleQueue[tuple[Worker, dict[str, Any]]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):  # else it died while writing: "ended" says so
                events.put((self, json.loads(line)))
        code = self.process.wait()
        self._reader.join(5)
        events.put((self, {"kind": "ended", "code": code}))

    def give(self, run: Run) -> None:
        assert self.process.stdin is not None
        self.run = run
        with contextlib.suppress(BrokenPipeError):  # it has died: "ended" is on its way
            self.process.stdin.write(json.dumps(job(run)) + "\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        """Ends the process, which first saves the last whole epoch of its current run."""
        self.process.terminate()
        try:
            self.process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def exit_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return name + (" (out of memory?)" if code == -signal.SIGKILL else "")
