"""Shows the progress of a profile on the terminal, and formats durations."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TextIO

from sdpo_bench.experiments.runs import Run
from sdpo_bench.experiments.workers import Worker
from sdpo_bench.records.reader import RunRecord
from sdpo_bench.terminal import echo, printable

PHASES = {"sampling": "sample", "reward": "reward", "training": "train"}  # of an epoch, as records name them


PLAIN_EVERY = 30.0  # seconds between status lines where there is no terminal
LISTED = 16  # runs in such a line at most


def clock(seconds: float) -> str:
    """A duration for people: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


@dataclass
class Progress:
    """Bars on a terminal (one for all runs, one for each local worker); otherwise a line from time to time."""

    runs: list[Run]
    workers: int  # at work at the same time
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    remote: bool = False

    def __post_init__(self) -> None:
        self.begin = self.last = time.monotonic()
        self.settled = sum(run.estimate for run in self.runs if run.state != "pending")
        self.bars: list[Any] = []
        if self.stream.isatty():
            from tqdm import tqdm

            for i in range(1 if self.remote else self.workers + 1):
                bar = tqdm(total=1.0, leave=not i, position=i, bar_format="{desc}|{bar}|", file=self.stream)
                self.bars.append(bar)

    def remaining(self) -> float:
        """Seconds left, from the speed so far, or from the estimate until there is one."""
        elapsed = time.monotonic() - self.begin
        left = sum(run.estimate * (1 - run.fraction) for run in self.runs)
        done = sum(run.estimate * run.epochs_here / max(run.config.epochs, 1) for run in self.runs)
        # The estimate counts as one worker-minute seen, so that the first epochs do not make the figure jump.
        prior = 60.0
        workers = max(self.workers, 1)
        speed = (done + prior * workers) / (elapsed + prior)
        return left / speed if speed > 0 else left / workers

    def status(self) -> str:
        finished = sum(run.state == "done" for run in self.runs)
        at_work = f"{self.workers} at work, " if self.remote else ""
        return f"{finished}/{len(self.runs)} runs, {at_work}about {clock(self.remaining())} left"

    def say(self, text: str) -> None:
        if self.bars:
            self.bars[0].write(printable(text), file=self.stream)
        else:
            echo(text, file=self.stream)

    def follow(self, run: Run, event: dict[str, Any]) -> None:
        """Takes note of a report of `training.loop.train`."""
        if event["phase"] == "begin":
            run.epoch = event["epoch"]
            self.say(f"{run.name}: {beginning(event)}")
        if event["phase"] == "train":
            run.epoch, run.epochs_here = event["epoch"], run.epochs_here + 1

    def settle(self, run: Run, state: str, message: str = "", details: str = "") -> None:
        """Takes note of how a run ended."""
        run.state, run.message, run.details = state, message, details
        words = {"done": f"done{pace(run.folder)}", "locked": "left to another process", "failed": f"FAILED: {message}"}
        self.say(f"{run.name}: {words[state]} ({self.status()})")

    def update(self, worker: Worker | None = None, reward: float | None = None) -> None:
        total = sum(run.estimate for run in self.runs)
        if self.bars:
            self.bars[0].n = sum(run.estimate * run.fraction for run in self.runs) / total
            self.bars[0].set_description_str(f"{'all':<40} {self.bars[0].n:>7.0%}  {self.status()} ")
            if worker is not None and worker.run is not None:
                bar, run = self.bars[worker.number], worker.run
                epochs = f"{run.epoch}/{run.config.epochs}"
                bar.n = run.fraction
                mean = "" if reward is None else f"reward {reward:.3f}"
                bar.set_description_str(f"{run.name:<40.40} {epochs:>7}  {mean:<{len(self.status())}} ")
        elif time.monotonic() - self.last > PLAIN_EVERY:
            self.last = time.monotonic()
            at_work = [f"{run.name} {run.epoch}/{run.config.epochs}" for run in self.runs if 0 < run.fraction < 1]
            more = [f"and {len(at_work) - LISTED} more"] if len(at_work) > LISTED else []
            self.say("; ".join([self.status(), *at_work[:LISTED], *more]))

    def close(self) -> None:
        for bar in reversed(self.bars):
            bar.close()


def beginning(event: dict[str, Any]) -> str:
    """A text that says at which epoch a run begins."""
    done, epochs, lost = event["epoch"], event["epochs"], event["recorded"] - event["epoch"]
    if not epochs:
        return "no epochs, only an evaluation"
    if done == epochs:
        return f"all {epochs} epochs are trained; the evaluation and the last files are left"
    text = f"begins at epoch {done + 1} of {epochs}"
    if lost and not done:
        return f"{text} again: {lost} recorded, but there is no checkpoint (deleted, or none was due yet)"
    return f"{text}; {lost} recorded after the checkpoint, repeated" if lost else text


def pace(folder: Path) -> str:
    """Seconds per epoch of a run that just finished; empty for a run without epochs."""
    done = folder / "done.json"
    seconds = json.loads(done.read_text())["seconds_per_epoch"] if done.exists() else {}
    if not any(seconds.values()):
        return ""
    parts = ", ".join(f"{name} {seconds[key]:.2f}" for name, key in PHASES.items())
    return f", {sum(seconds.values()):.2f} s an epoch ({parts})"


def speed(records: Iterable[RunRecord]) -> str:
    """A table of seconds per epoch for sampling, reward and training, by label and K, over the finished runs in the
    records."""
    rows: dict[tuple[str, int], list[dict[str, float]]] = {}
    for record in sorted(records, key=lambda record: record.run_id):
        if record.done is not None and record.config["epochs"]:
            rows.setdefault((record.label, record.config["steps"]), []).append(record.done["seconds_per_epoch"])
    heads = " ".join(f"{name:>9}" for name in (*PHASES, "all"))
    lines = [f"{'seconds per epoch':<19} {heads}"] if rows else []
    for (label, steps), found in rows.items():
        means = [sum(row[kind] for row in found) / len(found) for kind in PHASES.values()]
        cells = " ".join(f"{value:>9.2f}" for value in (*means, sum(means)))
        lines.append(f"{f'{label}, K = {steps}':<19} {cells}")
    return "\n".join(lines)


class EpochDisplay:
    """Shows the progress of a run: a bar on a terminal, otherwise a line every PLAIN_EVERY epochs."""

    PLAIN_EVERY = 10

    def __init__(self, label: str, epochs: int, terminal: bool) -> None:
        from tqdm import tqdm

        self.label, self.epochs, self.terminal = label, epochs, terminal
        self.begun = False
        self.bar = tqdm(total=epochs, desc=label, unit="epoch", disable=not terminal)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, event: dict[str, Any]) -> None:
        """Shows an event of the training loop (training/loop.py): the beginning of the run, or the end of an epoch."""
        if event["phase"] == "begin":
            self.begun = True
            self.bar.write(f"{self.label}: {beginning(event)}", file=sys.stderr)
            self.bar.update(event["epoch"] - self.bar.n)
        elif event["phase"] == "train":
            self.bar.update(event["epoch"] - self.bar.n)
            self.bar.set_postfix(reward=f"{event['reward_mean']:.3f}")
            if not self.terminal and (event["epoch"] % self.PLAIN_EVERY == 0 or event["epoch"] == self.epochs):
                text = f"{self.label}: epoch {event['epoch']}/{self.epochs}, reward {event['reward_mean']:.3f}"
                print(text, file=sys.stderr, flush=True)
