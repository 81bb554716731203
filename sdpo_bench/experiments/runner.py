"""Runs a profile: worker processes, progress, resumption; then tables, figures, report and the comparison."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from sdpo_bench import interruption
from sdpo_bench.analysis.outputs import reference_results, shown, write_all
from sdpo_bench.analysis.paper import load_curves, shows
from sdpo_bench.config import EMBEDDED, RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.experiments import cost_model, profiles
from sdpo_bench.experiments.progress import Progress, beginning, clock, pace
from sdpo_bench.experiments.runs import Run, plan
from sdpo_bench.experiments.summary import RESULTS, list_runs, resume_command, summarise
from sdpo_bench.experiments.workers import Worker, exit_words, gpus, physical_cores
from sdpo_bench.records.lookup import fewer_epochs, nearest_run, recorded_weights, stored_run
from sdpo_bench.records.plan import write_plan
from sdpo_bench.records.provenance import PACKAGE, code_version
from sdpo_bench.records.reader import load_profile, run_ids
from sdpo_bench.rewards import find_weights
from sdpo_bench.terminal import echo

CPU_PEAK = {"peak": 1.0}  # TFLOP/s: about a server's processor in single precision


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
                    died = f"the worker process ended with {exit_words(event['code'])}"
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


# The command ----------------------------------------------------------------------------------------------------


def check_folder(folder: Path, runs: Sequence[Run], resume: bool) -> None:
    """Refuses to add to results that are there unless told to; checks those that are to be kept."""
    present = run_ids(folder)
    if present and not resume:
        raise UserError(
            f"{folder} already holds {len(present)} run{'s' * (len(present) > 1)}: add --resume to keep the finished "
            f"ones and go on with the others, or --results OTHER to start anew elsewhere"
        )
    ours, foreign, finished = code_version(), 0, {}
    # All are read, which names a record that is corrupt now rather than after hours.
    for record in load_profile(folder, means=True) if present else ():
        finished[record.run_id] = record.config["epochs"]
        foreign += any(record.provenance.get(key) != ours.get(key) for key in ("commit", "source"))
    if foreign:
        print(
            f"note: {foreign} finished run{'s were' if foreign > 1 else ' was'} made at another commit "
            f"(provenance.json says which); --results OTHER makes all of them anew",
            file=sys.stderr,
        )
    refuse_other_settings(folder, runs)
    refuse_other_weights(runs)
    for run in runs:
        if finished.get(run.name) == run.config.epochs:
            run.state = "done"


def refuse_other_settings(folder: Path, runs: Sequence[Run]) -> None:
    """UserError where the folder holds, for a run that it lacks, one of the same label, reward, K and seed with other
    settings: both would enter the same tables. The settings are named, each with the number of runs that differ in
    it."""
    planned = {run.name for run in runs}
    found: dict[str, int] = {}
    others: list[Path] = []
    for run in runs:
        if stored_run(run.folder) is not None:
            if why := fewer_epochs(run.folder, run.config.to_json()):
                raise UserError(f"--resume: {why}, with --results OTHER")
            continue
        nearest = nearest_run(folder / "raw", run.config.to_json(), besides=planned)
        if nearest is not None:
            others.append(nearest[0])
            for words in nearest[1]:
                found[words] = found.get(words, 0) + 1
    if others:
        counted = ", ".join(words if n == len(others) else f"{words}, of {n} runs" for words, n in found.items())
        raise UserError(
            f"--resume: {len(others)} of the {len(runs)} runs are in {shown(folder)} with other settings ("
            f"{others[0].name}{' and others' * (len(others) > 1)}): {counted}; give their settings, or --results OTHER "
            f"to make the runs anew elsewhere"
        )


def refuse_other_weights(runs: Sequence[Run]) -> None:
    """UserError where a run was made, or begun, with other weights under the same file names. Local files alone."""
    begun = [run for run in runs if recorded_weights(run.folder)]
    if not begun:  # what follows imports PyTorch
        return
    from sdpo_bench.training.weight_digests import replaced

    differ = [(run, words) for run in begun if (words := replaced(run.config, run.folder))]
    if differ:
        run, words = differ[0]
        raise UserError(
            f"--resume: {len(differ)} of the {len(runs)} runs were made with other weights ({shown(run.folder)}: "
            f"{', '.join(words)}); restore these files, or give --results OTHER to make the runs anew elsewhere"
        )


def estimate_costs(
    folder: Path, config: RunConfig, changes: dict[str, float | None]
) -> cost_model.Cost | cost_model.GPUCost:
    """What to estimate times from, for a profile with runs such as `config`: finished runs of its kind if there are
    any, here or among the committed results; else, for a GPU, its arithmetic with `changes` to GPUCost."""
    given = {name: value for name, value in changes.items() if value is not None}
    if config.model == EMBEDDED:
        if given:
            raise UserError("--utilisation and --peak-tflops are for estimates of sd-turbo; leave them out")
        return cost_model.calibrate(sorted(reference_results().glob("*")))
    assumed = cost_model.GPUCost(**(CPU_PEAK if config.device == "cpu" else {}) | given)
    if given:
        return assumed
    known = sorted({*reference_results().glob("*"), folder})
    return cost_model.calibrate(known, config.device, config.model, assumed)


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
    profile = profiles.canonical(profile)
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}; expected at least 1")
    given = {"rewards": rewards, "model": model, "revision": revision}
    options = {name: value for name, value in given.items() if value}
    place = device or profiles.PROFILES[profile].device
    built = profiles.build(profile, methods, seeds, **options)
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
