"""Makes the runs of a profile on a cluster: submits them, follows their reports, gives lost ones to other workers.

What a run and this process share is a folder on the disk. Each job appends its reports to a file of its own there
(`worker_main.make_run_there`). The lock of a run's folder keeps a second writer out (records/writer.py).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_bench.experiments.launchers import Died, Engine
from sdpo_bench.experiments.pool import refuse_full_disk, termination_interrupts
from sdpo_bench.experiments.progress import Progress
from sdpo_bench.experiments.runs import Run
from sdpo_bench.experiments.workers import STOPPING, job

LOOK_SECONDS = 5.0  # between looks at the jobs
MOST_LOSSES = 3  # of a run's workers in a row, between which its checkpoint got no further
PATIENCE = 180.0  # seconds in which the disk's server gives up the locks of a lost machine
DISK_SECONDS = 60.0  # after which a shared disk shows all machines what one of them has written
PASSED_ON = ("HF_", "SDPO_BENCH_", "TORCH_", "TRANSFORMERS_", "DIFFUSERS_", "CUBLAS_")


def environment() -> dict[str, str]:
    """The variables of this process that decide what a run is and where it finds its files, as workers need them."""
    found = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    return found | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}


@dataclass
class Task:
    """A run that was submitted. `read`: bytes of its reports so far; `began`: the epoch after which its job began."""

    run: Run
    reports: Path
    handle: Any = None
    read: int = 0
    began: int | None = None
    ended: float | None = None

    def events(self) -> list[dict[str, Any]]:
        """The reports since the last call, of which a last one may be half written yet."""
        with open(self.reports, "rb") as file:
            file.seek(self.read)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self.read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


@dataclass
class Losses:
    """How often in a row a run's worker was lost without getting further than epoch `began`."""

    count: int = 0
    began: int = -1


class RemoteRuns:
    """Pending runs, at most `size` of them submitted at a time. `folder`: for the reports, on the shared disk."""

    def __init__(self, runs: Sequence[Run], size: int, engine: Engine, folder: Path, progress: Progress) -> None:
        self.waiting = [run for run in runs if run.state == "pending"]
        self.size, self.engine, self.folder, self.progress = size, engine, folder, progress
        self.tasks: list[Task] = []
        self.losses: dict[str, Losses] = {}
        self.begun = False

    def make(self) -> None:
        """Returns when all runs are done, failed or left to others. An error or a signal first ends the jobs."""
        with termination_interrupts():
            try:
                self.submit()
                while self.tasks:
                    time.sleep(LOOK_SECONDS)
                    self.look()
                    self.submit()
                    self.progress.update()
            except BaseException:
                self.stop()
                raise
            finally:
                self.progress.close()

    def submit(self) -> None:
        count = self.size - len(self.tasks)
        runs, self.waiting = self.waiting[:count], self.waiting[count:]
        tasks, jobs = [], []
        for run in runs:
            losses = self.losses.setdefault(run.name, Losses())
            reports = self.folder / f"{run.name}.{losses.count}.{os.urandom(4).hex()}.jsonl"
            reports.parent.mkdir(parents=True, exist_ok=True)
            reports.touch()
            more = {"reports": str(reports.absolute()), "patience": PATIENCE if losses.count else 0.0}
            tasks.append(Task(run, reports))
            jobs.append(job(run) | more | {"environment": environment()})
        if jobs:
            for task, handle in zip(tasks, self.engine.submit(jobs), strict=True):
                task.handle = handle
                self.tasks.append(task)

    def look(self) -> None:
        for task in list(self.tasks):
            ended = self.engine.ended(task.handle)  # before the reports are read, so that they are the last
            for event in task.events():
                self.follow(task, event)
            if ended:
                self.end(task)
        self.progress.workers = sum(task.began is not None for task in self.tasks)

    def follow(self, task: Task, event: dict[str, Any]) -> None:
        if event["phase"] == "begin":
            if not self.begun:  # the time in the cluster's queue says nothing of the speed
                self.begun = True
                self.progress.begin = time.monotonic()
            task.began = event["epoch"]
        self.progress.follow(task.run, event)

    def end(self, task: Task) -> None:
        """Takes note of how a job ended."""
        try:
            ending = self.engine.ending(task.handle)
        except Died as error:
            self.lost(task, str(error))
            return
        kind = ending["kind"]
        if kind == "stopped":  # not by us
            self.lost(task, "its worker got a signal to stop")
        elif kind == "done" and not (task.run.folder / "done.json").exists():
            task.ended = task.ended or time.monotonic()
            if time.monotonic() - task.ended > DISK_SECONDS:
                why = f"finished, but {task.run.folder} has no done.json here: --results must be on a shared disk"
                self.settle(task, "failed", why)
        else:
            self.settle(task, kind, ending.get("message", ""), ending.get("details", ""))
            if kind == "failed":
                refuse_full_disk(ending)

    def lost(self, task: Task, why: str) -> None:
        """Gives the run of a lost worker to another one, unless that was tried often enough."""
        losses, run = self.losses[task.run.name], task.run
        further = task.began is not None and task.began > losses.began
        losses.count = 1 if further else losses.count + 1
        losses.began = max(losses.began, -1 if task.began is None else task.began)
        if losses.count < MOST_LOSSES:
            self.remove(task)
            self.waiting.insert(0, run)
            self.progress.say(f"{run.name}: {why}; another worker takes it up")
        else:
            self.settle(task, "failed", f"{why}, {losses.count} times in a row at epoch {max(losses.began, 0)}")

    def settle(self, task: Task, state: str, message: str = "", details: str = "") -> None:
        self.remove(task)
        self.progress.settle(task.run, state, message, details)

    def remove(self, task: Task) -> None:
        self.tasks.remove(task)
        task.reports.unlink(missing_ok=True)

    def stop(self) -> None:
        """Ends all jobs. Those at work first save their states; after another signal, or STOPPING seconds, they end at
        once."""
        at_work = [task for task in self.tasks if task.began is not None]
        words = f"ending the jobs, {len(at_work)} of which are at work; a second signal ends all at once"
        try:  # the second signal may come while the jobs are still being told: of many jobs that takes a while
            self.progress.say(f"\n{words}")
            for task in self.tasks:
                self.engine.cancel(task.handle)
            end = time.monotonic() + STOPPING
            while at_work and time.monotonic() < end:
                at_work = [task for task in at_work if not self.engine.ended(task.handle)]
                time.sleep(0.2)
        finally:
            for task in self.tasks:
                if not self.engine.ended(task.handle):
                    self.engine.kill(task.handle)
