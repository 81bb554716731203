"""Runs a profile: worker processes, progress, resumption; then tables, figures, report and the comparison."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from sdpo_bench import experiments, interruption
from sdpo_bench.config import EMBEDDED, RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.paper import load_curves, shows
from sdpo_bench.provenance import PACKAGE, code_version, repository
from sdpo_bench.records import FILES, find_run, load_run, write_plan
from sdpo_bench.results import reference_results, shown, write_all
from sdpo_bench.rewards import find_weights
from sdpo_bench.terminal import echo, printable

RESULTS = Path("runs")  # not results/, which holds the committed reference
PHASES = {"sampling": "sample", "reward": "reward", "training": "train"}  # of an epoch, as records name them
CPU_PEAK = {"peak": 1.0}  # TFLOP/s: about a server's processor in single precision
STOPPING = 120.0  # seconds in which a worker saves what it has; it looks for signals between forward passes
PLAIN_EVERY = 30.0  # seconds between status lines where there is no terminal


@dataclass
class Run:
    """A run of the profile and what has become of it."""

    config: RunConfig
    folder: Path
    estimate: float
    state: str = "pending"  # done, locked, failed: as the worker reports
    epoch: int = 0
    epochs_here: int = 0  # trained by this process: a resumed run's earlier ones took no time now
    message: str = ""
    details: str = ""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def fraction(self) -> float:
        return 1.0 if self.state != "pending" else self.epoch / max(self.config.epochs, 1)


def physical_cores() -> int:
    """Physical cores that this process may use: a second thread of one core makes training no faster."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def clock(seconds: float) -> str:
    """A duration for people: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none without CUDA."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


def plan(folder: Path, configs: Sequence[RunConfig], cost: experiments.Cost | experiments.GPUCost) -> list[Run]:
    """The profile's runs with their folders and estimated seconds."""
    return [Run(config, find_run(folder / "raw", config.to_json()), cost.seconds(config)) for config in configs]


def list_runs(runs: Sequence[Run], workers: int, source: str, gpu: bool = False) -> str:
    """What --dry-run prints; of a profile for GPUs the disk space too."""
    width = max(len(run.name) for run in runs)
    lines = [f"{'run':<{width}}  epochs   estimate  state"]
    for run in runs:
        state = "done" if (run.folder / "done.json").exists() else "begun" if run.folder.exists() else "to do"
        lines.append(f"{run.name:<{width}}  {run.config.epochs:>6}  {clock(run.estimate):>9}  {state}")
    left = sum(run.estimate for run in runs if not (run.folder / "done.json").exists())
    lines.append(
        f"{len(runs)} runs, about {clock(left / workers)} left with {workers} worker{'s' * (workers > 1)} "
        f"(estimated from {source})"
    )
    if gpu:
        lines.append(f"{left / 3600:.0f} GPU hours; {space(runs, workers)}; downloads apart (docs/sd_turbo.md)")
    return "\n".join(lines)


def space(runs: Sequence[Run], workers: int) -> str:
    """Disk space of runs, in words: of checkpoints only those of the runs being made."""
    parts: dict[str, float] = {}
    for run in runs:
        for kind, size in experiments.disk(run.config).items():
            so_far = parts.get(kind, 0.0)
            parts[kind] = max(so_far, size * workers) if kind == "checkpoints" else so_far + size
    text = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in parts.items())
    return f"{sum(parts.values()) / 1e9:.1f} GB of disk at most ({text})"


# Workers --------------------------------------------------------------------------------------------------------


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
            [sys.executable, "-m", "sdpo_bench.worker"],
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
        config = run.config.to_json() | {"device": run.config.device}
        config |= {name: path for name in FILES if (path := getattr(run.config, name)) is not None}  # not by name
        job = {"config": config, "folder": str(run.folder), "argv": sys.argv}
        with contextlib.suppress(BrokenPipeError):  # it has died: "ended" is on its way
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        """Ends the process, which first saves the last whole epoch of the run that it is making."""
        self.process.terminate()
        try:
            self.process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


# Progress -------------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """Bars on a terminal (one for all runs, one for each worker); elsewhere a line now and then."""

    runs: list[Run]
    workers: int
    stream: TextIO = field(default_factory=lambda: sys.stderr)

    def __post_init__(self) -> None:
        self.begin = self.last = time.monotonic()
        self.settled = sum(run.estimate for run in self.runs if run.state != "pending")
        self.bars: list[Any] = []
        if self.stream.isatty():
            from tqdm import tqdm

            for i in range(self.workers + 1):
                bar = tqdm(total=1.0, leave=not i, position=i, bar_format="{desc}|{bar}|", file=self.stream)
                self.bars.append(bar)

    def remaining(self) -> float:
        """Seconds left, at the speed seen so far; as estimated until there is one."""
        elapsed = time.monotonic() - self.begin
        left = sum(run.estimate * (1 - run.fraction) for run in self.runs)
        done = sum(run.estimate * run.epochs_here / max(run.config.epochs, 1) for run in self.runs)
        # The estimate counts as one worker-minute seen, so that the first epochs do not make the figure jump.
        prior = 60.0
        speed = (done + prior * self.workers) / (elapsed + prior)
        return left / speed if speed > 0 else left / self.workers

    def status(self) -> str:
        finished = sum(run.state == "done" for run in self.runs)
        return f"{finished}/{len(self.runs)} runs, about {clock(self.remaining())} left"

    def say(self, text: str) -> None:
        if self.bars:
            self.bars[0].write(printable(text), file=self.stream)
        else:
            echo(text, file=self.stream)

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
            self.say("; ".join([self.status(), *at_work]))

    def close(self) -> None:
        for bar in reversed(self.bars):
            bar.close()


@contextlib.contextmanager
def _termination_interrupts() -> Iterator[None]:
    """SIGTERM ends the runs as Ctrl-C does, but for the exit code."""

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


def execute(runs: list[Run], workers: int, progress: Progress | None = None, devices: Sequence[str] = ()) -> None:
    """Makes the pending runs, in order, workers on the GPUs that `devices` names, in turn. A failed run leaves
    the others alone; a full disk stops all.

    Raises KeyboardInterrupt, after the workers have ended.
    """
    pending = [run for run in runs if run.state == "pending"]
    waiting = list(pending)
    progress = progress or Progress(runs, workers)
    events: queue.SimpleQueue[tuple[Worker, dict[str, Any]]] = queue.SimpleQueue()
    staff: list[Worker] = []

    def hire(number: int) -> None:
        staff.append(Worker(number, events, devices[(number - 1) % len(devices)] if devices else None))

    def settle(worker: Worker, state: str, message: str = "", details: str = "") -> None:
        run, worker.run = worker.run, None
        assert run is not None
        run.state, run.message, run.details = state, message, details
        words = {"done": f"done{pace(run.folder)}", "locked": "left to another process", "failed": f"FAILED: {message}"}
        progress.say(f"{run.name}: {words[state]} ({progress.status()})")

    def next_run(worker: Worker) -> None:
        if waiting:
            worker.give(waiting.pop(0))
            progress.update(worker)
        else:
            staff.remove(worker)
            worker.stop()

    try:
        with _termination_interrupts():
            progress.update()
            for number in range(1, min(workers, len(waiting)) + 1):
                hire(number)
            while staff:
                try:
                    worker, event = events.get(timeout=1.0)
                except queue.Empty:
                    progress.update()
                    continue
                if worker not in staff:
                    continue  # the end of one that was told to stop
                run, kind = worker.run, event["kind"]
                if kind == "progress" and run is not None:
                    if event["phase"] == "begin":
                        run.epoch = event["epoch"]
                        progress.say(f"{run.name}: {beginning(event)}")
                    if event["phase"] == "train":
                        run.epoch, run.epochs_here = event["epoch"], run.epochs_here + 1
                    progress.update(worker, event["reward_mean"])
                    continue
                if kind == "ended":
                    staff.remove(worker)
                    # Dead before its first run: so would the next be.
                    died = f"the worker process ended with {_exit_words(event['code'])}"
                    if run is None:
                        raise UserError(f"{died} before its first run: {''.join(worker.errors[-3:]).strip()}")
                    settle(worker, "failed", died, "".join(worker.errors))
                    if waiting:
                        hire(worker.number)
                    continue
                if kind == "failed":
                    settle(worker, "failed", event["message"], event["details"] or "")
                    if event["full_disk"]:
                        raise UserError(f"the disk is full ({event['message']}): free space and go on with --resume")
                elif kind in ("done", "locked"):
                    settle(worker, kind)
                next_run(worker)
    finally:
        for worker in staff:  # all at once, for each may have an epoch's state to save
            worker.process.terminate()
        for worker in staff:
            worker.stop()
        progress.close()


def beginning(event: dict[str, Any]) -> str:
    """Where a run begins, in words."""
    done, epochs, lost = event["epoch"], event["epochs"], event["recorded"] - event["epoch"]
    if not epochs:
        return "no epochs, an evaluation alone"
    if done == epochs:
        return f"all {epochs} epochs are trained; what comes after them is left"
    text = f"begins at epoch {done + 1} of {epochs}"
    if lost and not done:
        return f"{text}, anew: {lost} recorded, but there is no checkpoint (deleted, or none was due yet)"
    return f"{text}; {lost} recorded after the checkpoint, made again" if lost else text


def pace(folder: Path) -> str:
    """Seconds per epoch of a run that was just finished; nothing for one without epochs."""
    done = folder / "done.json"
    seconds = json.loads(done.read_text())["seconds_per_epoch"] if done.exists() else {}
    if not any(seconds.values()):
        return ""
    parts = ", ".join(f"{name} {seconds[key]:.2f}" for name, key in PHASES.items())
    return f", {sum(seconds.values()):.2f} s an epoch ({parts})"


def _exit_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return name + (" (out of memory?)" if code == -signal.SIGKILL else "")


# The command ----------------------------------------------------------------------------------------------------


def check_folder(folder: Path, runs: Sequence[Run], resume: bool) -> None:
    """Refuses to add to results that are there unless told to; checks those that are to be kept."""
    present = [path for path in folder.glob("raw/*") if path.is_dir() and not path.name.startswith(".")]
    if present and not resume:
        raise UserError(
            f"{folder} already holds {len(present)} run{'s' * (len(present) > 1)}: add --resume to keep the finished "
            f"ones and go on with the others, or --results OTHER to start anew elsewhere"
        )
    ours, foreign, finished = code_version(), 0, {}
    for path in sorted(present):
        if (path / "done.json").exists():
            record = load_run(path)  # names a record that is corrupt, now rather than after hours
            finished[path.name] = record.config["epochs"]
            foreign += any(record.provenance.get(key) != ours.get(key) for key in ("commit", "source"))
    if foreign:
        print(
            f"note: {foreign} finished run{'s were' if foreign > 1 else ' was'} made at another commit "
            f"(provenance.json says which); --results OTHER makes all of them anew",
            file=sys.stderr,
        )
    for run in runs:
        if finished.get(run.name) == run.config.epochs:
            run.state = "done"


def speed(folder: Path, names: set[str]) -> str:
    """Seconds per epoch of sampling, reward and training, by label and K, over the named finished runs."""
    rows: dict[tuple[str, int], list[dict[str, float]]] = {}
    for path in sorted(folder.glob("raw/*")):
        if path.name in names and (path / "done.json").exists():
            record = load_run(path)
            assert record.done is not None
            if record.config["epochs"]:
                rows.setdefault((record.label, record.config["steps"]), []).append(record.done["seconds_per_epoch"])
    heads = " ".join(f"{name:>9}" for name in (*PHASES, "all"))
    lines = [f"{'seconds per epoch':<19} {heads}"] if rows else []
    for (label, steps), found in rows.items():
        means = [sum(row[kind] for row in found) / len(found) for kind in PHASES.values()]
        cells = " ".join(f"{value:>9.2f}" for value in (*means, sum(means)))
        lines.append(f"{f'{label}, K = {steps}':<19} {cells}")
    return "\n".join(lines)


def summarise(folder: Path, profile: str, runs: Sequence[Run], seconds: float) -> str:
    """What is printed at the end, of a profile with at least one finished run."""
    from sdpo_bench.compare import compare_with_reference
    from sdpo_bench.groups import load_results
    from sdpo_bench.tables import render_terminal

    parts = [render_terminal(load_results(folder)), speed(folder, {run.name for run in runs})]
    reference = reference_results() / profile
    if reference.resolve() != folder.resolve():
        if any(reference.glob("raw/*/done.json")):
            title = f"Comparison with the committed results ({shown(reference)}):"
            parts.append(f"{title}\n\n{compare_with_reference(folder, reference)}")
        else:
            parts.append(f"No committed results of this profile ({shown(reference)}) to compare with.")
    finished = sum(run.state == "done" for run in runs)
    where = {
        "report": "report.html",
        "tables": "tables/",
        "figures": "figures/",
        "raw records, adapters": "raw/",
    }
    parts.append(
        f"{finished} of {len(runs)} runs finished, {clock(seconds)} now. They lie in {shown(folder)}:\n"
        + "\n".join(f"  {what:<22} {shown(folder / name)}{'/' * name.endswith('/')}" for what, name in where.items())
    )
    return "\n\n".join(part for part in parts if part)


def resume_command(
    profile: str,
    results: Path,
    methods: Sequence[str] | None,
    seeds: Sequence[int] | None,
    workers: int | None,
    device: str | None,
    **options: Sequence[str] | str | None,
) -> str:
    """The command that goes on after an interruption, with the arguments that were given."""
    given = {
        "--profile": [profile] * (profile != "quick"),
        "--results": [shown(results)] * (results != RESULTS),
        "--methods": methods or [],
        "--seeds": seeds or [],
        "--workers": [workers] if workers else [],
        "--device": [device] if device else [],
    } | {f"--{name}": [value] if isinstance(value, str) else value for name, value in options.items()}
    arguments = [str(part) for name, values in given.items() if values for part in (name, *values)]
    start = ["nox", "-s", "reproduce", "--"] if repository() else ["sdpo-bench", "reproduce"]
    return shlex.join([*start, *arguments, "--resume"])


def estimate_costs(
    folder: Path, config: RunConfig, changes: dict[str, float | None]
) -> experiments.Cost | experiments.GPUCost:
    """What to estimate times from, for a profile with runs such as `config`: finished runs of its kind if there are
    any, here or among the committed results; else, for a GPU, its arithmetic with `changes` to GPUCost."""
    given = {name: value for name, value in changes.items() if value is not None}
    if config.model == EMBEDDED:
        if given:
            raise UserError("--utilisation and --peak-tflops are for estimates of sd-turbo; leave them out")
        return experiments.calibrate(sorted(reference_results().glob("*")))
    assumed = experiments.GPUCost(**(CPU_PEAK if config.device == "cpu" else {}) | given)
    if given:
        return assumed
    known = sorted({*reference_results().glob("*"), folder})
    return experiments.calibrate(known, config.device, config.model, assumed)


def reproduce(
    profile: str = "quick",
    *,
    results: Path = RESULTS,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    workers: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    rewards: Sequence[str] | None = None,
    model: str | None = None,
    revision: str | None = None,
    utilisation: float | None = None,
    peak_tflops: float | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> int:
    """Runs a profile into `results/<profile>` and prints what came out; the command's exit code."""
    profile = experiments.canonical(profile)
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}; expected at least 1")
    given = {"rewards": rewards, "model": model, "revision": revision}
    options = {name: value for name, value in given.items() if value}
    place = device or experiments.PROFILES[profile].device
    built = experiments.build(profile, methods, seeds, **options)
    configs = [dataclasses.replace(config, device=place) for config in built]
    folder = results / profile
    cost = estimate_costs(folder, configs[0], {"utilisation": utilisation, "peak": peak_tflops})
    runs = plan(folder, configs, cost)
    devices = gpus() if place == "cuda" else []
    # By default a GPU is one worker's: of a large model processes that share it only take turns.
    count = min(workers or (physical_cores() if place == "cpu" else max(len(devices), 1)), len(runs))
    if dry_run:
        echo(list_runs(runs, count, cost.source, gpu=place == "cuda" and configs[0].model != EMBEDDED))
        return 0
    if place == "cuda" and not devices:
        raise UserError(
            f"profile {profile} runs on GPUs, and torch finds no CUDA device here: --dry-run lists its runs"
            if device is None
            else "--device cuda: torch finds no CUDA device here; use --device cpu"
        )
    if place == "cuda" and count > len(devices) and any(config.model != EMBEDDED for config in configs):
        raise UserError(
            f"--workers is {count}; expected at most one for each of the {len(devices)} GPUs here: only runs of the "
            f"embedded model, which leave a GPU idle between launches, gain by sharing one"
        )
    if any(shows(config.model, config.reward, config.steps) for config in configs):
        load_curves()  # the tables need them: better missed now than after hours
    check_folder(folder, runs, resume)
    index = PACKAGE / "assets" / "embedded_model" / "model_index.json"
    if any(config.model == EMBEDDED for config in configs) and not index.exists():
        raise UserError("the embedded model is missing from this copy: rebuild it with `nox -s testbed`")
    # Missed now, and once, not by each worker.
    left = [run for run in runs if run.state == "pending"]
    find_weights(
        {name for run in left for c in (run.config,) for name in (c.reward, *c.eval_rewards, *c.eval_last_rewards)}
    )
    # A part of a profile adds to what was planned; the profile as it is now replaces what it once was.
    whole = methods is None and seeds is None and not options
    write_plan(folder, [run.config.to_json() | {"run_id": run.name} for run in runs], whole)
    again = resume_command(profile, results, methods, seeds, workers, device, **options)
    estimate = sum(run.estimate for run in left) / count
    print(
        f"profile {profile}: {len(left)} runs to make"
        + (f", {len(runs) - len(left)} finished before" if len(left) < len(runs) else "")
        + f"; {count} worker{'s' * (count > 1)}, about {clock(estimate)}, results in {shown(folder)}",
        file=sys.stderr,
        flush=True,
    )
    begin = time.monotonic()
    try:
        execute(runs, count, devices=devices)
    except KeyboardInterrupt as stop:
        print(f"\nstopped; nothing is lost. Go on with: {again}", file=sys.stderr)
        return interruption.exit_code(stop)
    if any(run.state == "done" for run in runs):
        write_all(folder)
        echo(summarise(folder, profile, runs, time.monotonic() - begin))
    locked = [run for run in runs if run.state == "locked"]
    if locked:
        print(
            f"{len(locked)} runs are another process's: when it has finished, `{again}` adds them to the tables",
            file=sys.stderr,
        )
    failed = [run for run in runs if run.state == "failed"]
    for run in failed:
        echo(f"\nfailed: {run.name}: {run.message}", file=sys.stderr)
        if run.details:
            log = folder / "logs" / f"{run.name}.txt"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(run.details)
            print(f"  details: {shown(log)}", file=sys.stderr)
    if failed:
        print(f"error: {len(failed)} of {len(runs)} runs failed; try them again with: {again}", file=sys.stderr)
    return 1 if failed else 0
