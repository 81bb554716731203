"""The worker processes of a profile: assigns runs to workers and records the results."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sdpo_bench import interruption
from sdpo_bench.errors import UserError
from sdpo_bench.experiments.progress import Progress
from sdpo_bench.experiments.runs import Run
from sdpo_bench.experiments.workers import Worker

POLL_SECONDS = 1.0  # between looks at the clock while no worker reports: the progress line counts the time


@contextlib.contextmanager
def termination_interrupts() -> Iterator[None]:
    """Makes SIGTERM end the runs like Ctrl-C, except for the exit code."""

    def interrupt(number: int, _: object) -> None:
        raise interruption.Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def refuse_full_disk(event: Mapping[str, Any]) -> None:
    """UserError for the report of a run that failed because the disk is full: so would all others."""
    if event["full_disk"]:
        raise UserError(f"the disk is full ({event['message']}): free space and continue with --resume")


def execute(
    runs: list[Run],
    workers: int,
    progress: Progress | None = None,
    devices: Sequence[str] = (),
    processes: int = 1,
) -> None:
    """Makes the pending runs, in order. Each worker has the GPUs that one of `devices` names, in turn, and so many
    `processes` that share its runs. A failed run does not affect the others; a full disk stops all.

    Raises KeyboardInterrupt, after the workers have ended.
    """
    WorkerPool(runs, workers, progress or Progress(runs, workers), devices, processes).make_runs()


class WorkerPool:
    """At most `size` workers, each of which makes waiting runs one after another."""

    def __init__(
        self, runs: Sequence[Run], size: int, progress: Progress, devices: Sequence[str], processes: int
    ) -> None:
        self.waiting = [run for run in runs if run.state == "pending"]
        self.size = min(size, len(self.waiting))
        self.progress = progress
        self.devices, self.processes = devices, processes
        self.events: queue.SimpleQueue[tuple[Worker, dict[str, Any]]] = queue.SimpleQueue()
        self.workers: list[Worker] = []

    def make_runs(self) -> None:
        """Returns when all runs are done. The workers have then ended, also if it raises an error."""
        try:
            with termination_interrupts():
                self.progress.update()
                for number in range(1, self.size + 1):
                    self._start_worker(number)
                while self.workers:
                    self._await_event()
        finally:
            for worker in self.workers:  # all at once, for each may have an epoch's state to save
                worker.terminate()
            for worker in self.workers:
                worker.stop()
            self.progress.close()

    def _start_worker(self, number: int) -> None:
        gpus = self.devices[(number - 1) % len(self.devices)] if self.devices else None
        self.workers.append(Worker(number, self.events, gpus, self.processes))

    def _await_event(self) -> None:
        try:
            worker, event = self.events.get(timeout=POLL_SECONDS)
        except queue.Empty:
            self.progress.update()
            return
        if worker in self.workers:  # else it is the end of one that was told to stop
            self._handle(worker, event)

    def _handle(self, worker: Worker, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind == "progress":
            assert worker.run is not None
            self.progress.follow(worker.run, event)
            self.progress.update(worker, event["reward_mean"])
        elif kind == "ended":
            self._replace(worker, event)
        else:
            if kind == "failed":
                self._settle(worker, "failed", event["message"], event["details"] or "")
                refuse_full_disk(event)
            elif kind in ("done", "locked"):
                self._settle(worker, kind)
            self._give_next_run(worker)

    def _replace(self, worker: Worker, event: dict[str, Any]) -> None:
        """Handles the end of a worker that was not told to stop."""
        self.workers.remove(worker)
        if worker.run is None:  # dead before its first run: so would the next be
            raise UserError(f"{event['message']} before its first run: {''.join(worker.errors[-3:]).strip()}")
        self._settle(worker, "failed", event["message"], event["details"])
        refuse_full_disk(event)
        if self.waiting:
            self._start_worker(worker.number)

    def _settle(self, worker: Worker, state: str, message: str = "", details: str = "") -> None:
        run, worker.run = worker.run, None
        assert run is not None
        self.progress.settle(run, state, message, details)

    def _give_next_run(self, worker: Worker) -> None:
        if self.waiting:
            worker.give(self.waiting.pop(0))
            self.progress.update(worker)
        else:
            self.workers.remove(worker)
            worker.stop()
