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
import time
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


def job(run: Run, processes: int = 1) -> dict[str, Any]:
    """The message that tells a worker to make a run, which `processes` share."""
    config = run.config.to_json() | {"device": run.config.device}
    # Files by their paths, where config.json has only their names.
    config |= {name: absolute(path) for name in FILES if (path := getattr(run.config, name)) is not None}
    return {"config": config, "folder": str(run.folder.absolute()), "argv": sys.argv, "processes": processes}


class Worker:
    """Makes one run after another, in a process or in several that share each run. Reports go to `events` as (worker,
    report).

    Of several processes the first one reports the progress. What ends a run is one report for all of them. If one fails
    or dies, the others are killed, because they may wait for it for ever, and the worker has ended.
    """

    def __init__(
        self,
        number: int,
        events: queue.SimpleQueue[tuple[Worker, dict[str, Any]]],
        gpus: str | None = None,
        processes: int = 1,
    ) -> None:
        self.number, self.events = number, events
        self.run: Run | None = None
        self.errors: list[str] = []
        self._lock = threading.Lock()
        self._answers: dict[int, dict[str, Any]] = {}
        self._told, self._ended = False, False
        env = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
        env |= {"CUDA_VISIBLE_DEVICES": gpus} if gpus is not None else {}  # all that it has: "cuda" is among them
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "sdpo_bench.experiments.worker_main"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=env | own,
                # Ctrl-C in the terminal goes to the parent alone, which ends its workers in order.
                start_new_session=True,
            )
            for own in self._ranks(processes)
        ]
        for rank in range(processes):
            threading.Thread(target=self._read_reports, args=(rank,), daemon=True).start()

    def _ranks(self, size: int) -> list[dict[str, str]]:
        """For each process the variables by which it finds the others, as torchrun sets them; for a single one none."""
        if size == 1:
            return [{}]
        from torch.distributed import TCPStore

        # Held here, as torchrun does, on a port that the system chooses: nobody else can take it before they start.
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        all_have = {
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        return [all_have | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]

    def _read_errors(self, rank: int) -> None:
        stream = self.processes[rank].stderr
        assert stream is not None
        for line in stream:
            self.errors = [*self.errors[-49:], line]

    def _read_reports(self, rank: int) -> None:
        process = self.processes[rank]
        reader = threading.Thread(target=self._read_errors, args=(rank,), daemon=True)
        reader.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith("\n"):  # else it died while writing: its end says so
                self._take(rank, json.loads(line))
        process.wait()
        reader.join(5)
        self._take(rank, None)

    def _take(self, rank: int, report: dict[str, Any] | None) -> None:
        """Passes on what a process reports, or None if it has ended."""
        with self._lock:
            if self._ended:
                return
            if report is None:
                self._ended = True
                self.events.put((self, self._end(rank)))
            elif report["kind"] == "progress":
                self.events.put((self, report))
            else:
                self._answers[rank] = report
                answers = self._answers.values()
                alone = len(self.processes) == 1
                # A process that has failed beside others ends, and `_end` says why.
                if len(answers) == len(self.processes) and (alone or all(x["kind"] != "failed" for x in answers)):
                    self._answers = {}
                    self.events.put((self, next(x for x in answers if x["kind"] != "other_failed")))

    def _end(self, rank: int) -> dict[str, Any]:
        """The report of the worker's end, of which a process was the first to end."""
        codes = [process.poll() for process in self.processes]
        if not self._told:
            for process in self.processes:
                process.kill()
        lost = [i for i, code in enumerate(codes) if code is not None and i not in self._answers]
        failed = [report for report in self._answers.values() if report["kind"] == "failed"]
        if failed and not lost:  # else they failed because another one was lost; the first is the cause
            return failed[0] | {"kind": "ended"}
        first = lost[0] if lost else rank
        name = "the worker process" if len(codes) == 1 else f"process {first} of {len(codes)}"
        message = f"{name} ended with {exit_words(self.processes[first].wait())}"
        return {"kind": "ended", "message": message, "details": "".join(self.errors), "full_disk": False}

    def give(self, run: Run) -> None:
        self.run = run
        for process in self.processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has died: "ended" is on its way
                process.stdin.write(json.dumps(job(run, len(self.processes))) + "\n")
                process.stdin.flush()

    def terminate(self) -> None:
        """Tells the processes to save the last whole epoch of their run and to end. Only once: a second signal would
        end them at once."""
        if not self._told:
            self._told = True
            for process in self.processes:
                process.terminate()

    def stop(self) -> None:
        """Ends the processes, which first save the last whole epoch of their run."""
        self.terminate()
        end = time.monotonic() + STOPPING
        for process in self.processes:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def exit_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return name + (" (out of memory?)" if code == -signal.SIGKILL else "")
