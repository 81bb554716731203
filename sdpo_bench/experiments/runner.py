"""Runs a profile: checks, worker processes, resumption; then tables, figures, report and the comparison."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from sdpo_bench import interruption
from sdpo_bench.analysis.outputs import reference_results, shown, write_profile
from sdpo_bench.analysis.paper import load_curves, shows
from sdpo_bench.config import EMBEDDED, RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.experiments import cost_model, launchers, profiles
from sdpo_bench.experiments.pool import execute
from sdpo_bench.experiments.progress import Progress, clock
from sdpo_bench.experiments.remote import RemoteRuns
from sdpo_bench.experiments.runs import Run, plan
from sdpo_bench.experiments.summary import RESULTS, finished, list_runs, resume_command, summarise, workers_text
from sdpo_bench.experiments.workers import gpus, physical_cores
from sdpo_bench.records.lookup import fewer_epochs, list_folders, nearest_run, recorded_weights, stored_run
from sdpo_bench.records.plan import write_plan
from sdpo_bench.records.provenance import PACKAGE, code_version
from sdpo_bench.records.reader import load_profile, run_ids
from sdpo_bench.rewards import find_weights
from sdpo_bench.terminal import echo

CPU_PEAK = {"peak": 1.0}  # TFLOP/s: about a server's processor in single precision


def check_folder(folder: Path, runs: Sequence[Run], resume: bool) -> None:
    """Refuses to add to existing results unless told to, and checks those that are kept."""
    present = run_ids(folder)
    if present and not resume:
        raise UserError(
            f"{folder} already holds {len(present)} run{'s' * (len(present) > 1)}: add --resume to keep the finished "
            f"ones and continue the others, or --results OTHER to start again elsewhere"
        )
    ours, foreign, finished = code_version(), 0, {}
    # All are read, which names a record that is corrupt now rather than after hours.
    for record in load_profile(folder, means=True) if present else ():
        finished[record.run_id] = record.config["epochs"]
        foreign += any(record.provenance.get(key) != ours.get(key) for key in ("commit", "source"))
    if foreign:
        print(
            f"note: {foreign} finished run{'s were' if foreign > 1 else ' was'} made at another commit "
            f"(provenance.json says which); --results OTHER repeats all of them",
            file=sys.stderr,
        )
    refuse_other_settings(folder, runs)
    refuse_other_weights(runs)
    for run in runs:
        if finished.get(run.name) == run.config.epochs:
            run.state = "done"


def refuse_other_settings(folder: Path, runs: Sequence[Run]) -> None:
    """UserError if the folder has a run with the label, reward, K and seed of a missing run but other settings, because
    both would enter the same tables. The message names each setting and how many runs differ in it."""
    planned, there = {run.name for run in runs}, list_folders(folder / "raw")
    found: dict[str, int] = {}
    others: list[Path] = []
    for run in runs:
        if stored_run(run.folder) is not None:
            if why := fewer_epochs(run.folder, run.config.to_json()):
                raise UserError(f"--resume: {why}, with --results OTHER")
            continue
        nearest = nearest_run(folder / "raw", run.config.to_json(), planned, there)
        if nearest is not None:
            other, settings = nearest
            others.append(other)
            for words in settings:
                found[words] = found.get(words, 0) + 1
    if others:
        counted = ", ".join(words if n == len(others) else f"{words}, of {n} runs" for words, n in found.items())
        raise UserError(
            f"--resume: {len(others)} of the {len(runs)} runs are in {shown(folder)} with other settings ("
            f"{others[0].name}{' and others' * (len(others) > 1)}): {counted}; use their settings, or --results OTHER "
            f"to repeat the runs elsewhere"
        )


def refuse_other_weights(runs: Sequence[Run]) -> None:
    """UserError if a run was made or begun with other weights under the same file names. Checks only local files."""
    begun = [run for run in runs if recorded_weights(run.folder)]
    if not begun:  # what follows imports PyTorch
        return
    from sdpo_bench.training.weight_digests import replaced

    differ = [(run, words) for run in begun if (words := replaced(run.config, run.folder))]
    if differ:
        run, words = differ[0]
        raise UserError(
            f"--resume: {len(differ)} of the {len(runs)} runs were made with other weights ({shown(run.folder)}: "
            f"{', '.join(words)}); restore these files, or give --results OTHER to repeat the runs elsewhere"
        )


def estimate_costs(
    folder: Path, config: RunConfig, changes: dict[str, float | None]
) -> cost_model.Cost | cost_model.GPUCost:
    """The source of time estimates for a profile with runs such as `config`: finished runs of its kind, here or among
    the committed results; otherwise, for a GPU, its arithmetic with `changes` to GPUCost."""
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
    processes_per_run: int = 1,
    device: Literal["cpu", "cuda"] | None = None,
    rewards: Sequence[str] | None = None,
    model: str | None = None,
    revision: str | None = None,
    learning_rates: Sequence[str] | None = None,
    utilisation: float | None = None,
    peak_tflops: float | None = None,
    launcher: launchers.Launcher = "local",
    launcher_options: Sequence[str] | None = None,
    part: str | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> int:
    """Runs a profile into `results/<profile>` and prints the results. Returns the exit code."""
    profile = profiles.canonical(profile)
    check_launch(workers, processes_per_run, launcher, launcher_options)
    mine = share(part)
    given = {"rewards": rewards, "model": model, "revision": revision, "learning_rates": learning_rates}
    options = {name: value for name, value in given.items() if value}
    place = device or profiles.PROFILES[profile].device
    built = profiles.build(profile, methods, seeds, **options)
    configs = [dataclasses.replace(config, device=place) for config in built]
    folder = results / profile
    cost = estimate_costs(folder, configs[0], {"utilisation": utilisation, "peak": peak_tflops})
    check_processes(configs, processes_per_run)
    runs = plan(folder, configs, cost, processes_per_run)
    local = launcher == "local"
    devices = gpus() if place == "cuda" and local else []
    groups = groups_of(devices, processes_per_run)
    # By default a GPU is one worker's: of a large model processes that share it only take turns.
    here = max(physical_cores() // processes_per_run if place == "cpu" else len(groups), 1)
    count = min(workers or (here if local else launchers.MOST_SUBMITTED), len(runs[mine]))
    if dry_run:
        counted = place == "cuda" and configs[0].model != EMBEDDED
        echo(list_runs(runs[mine], count, cost.source, counted, processes_per_run))
        return 0
    if place == "cuda" and local:
        check_devices(profile, configs, count, devices, processes_per_run, asked_for=device is not None)
    check_inputs(folder, runs, resume or part is not None)
    # A part of a profile adds to what was planned; the profile as it is now replaces what it once was.
    whole = methods is None and seeds is None and not options
    planned = [run.config.to_json() | {"run_id": run.name} for run in runs]
    write_plan(folder, planned, whole, profiles.PROFILES[profile].protocol)
    place_options = {
        "processes_per_run": str(processes_per_run) if processes_per_run > 1 else None,
        "launcher": None if local else launcher,
        "launcher_options": launcher_options,
        "part": part,
    }
    again = resume_command(profile, results, methods, seeds, workers, device, **options, **place_options)
    announce(profile, folder, runs[mine], count, local, processes_per_run)
    begin = time.monotonic()
    try:
        if local:
            execute(runs[mine], count, devices=groups, processes=processes_per_run)
        else:
            execute_elsewhere(runs[mine], count, folder, launcher, launchers.parse_options(launcher_options or ()))
    except KeyboardInterrupt as stop:
        print(f"\nstopped; nothing is lost. Continue with: {again}", file=sys.stderr)
        return interruption.exit_code(stop)
    if part is not None and not all(map(finished, runs)):
        print(f"part {part}: {unfinished_parts(folder, runs)}", file=sys.stderr)
    elif any(run.state == "done" for run in runs):
        echo(summarise(write_profile(folder), profile, runs, time.monotonic() - begin))
    return report_unfinished(folder, runs[mine], again)


def check_launch(workers: int | None, processes: int, launcher: str, options: Sequence[str] | None) -> None:
    """UserError for bad options of where runs are made, before anything is read."""
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}; expected at least 1")
    if processes < 1:
        raise UserError(f"--processes-per-run is {processes}; expected at least 1")
    if processes > 1 and launcher != "local":
        raise UserError(
            f"--processes-per-run is for runs on this machine, not for --launcher {launcher}; use a job array with "
            f"--part, each job with the GPUs of a run (docs/scale.md)"
        )
    if options and launcher == "local":
        raise UserError("--launcher-options are for --launcher slurm or ray; leave them out")
    launchers.parse_options(options or ())


def share(part: str | None) -> slice:
    """The runs of part I/N: every N-th, so that all parts take about as long. All runs without a part."""
    if part is None:
        return slice(None)
    number, _, parts = part.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise UserError(f"--part is {part}; expected I/N with I from 1 to N, for example 3/8")
    return slice(int(number) - 1, None, int(parts))


def unfinished_parts(folder: Path, runs: Sequence[Run]) -> str:
    """A text about the runs of all parts, when some are not finished."""
    return (
        f"{sum(map(finished, runs))} of the profile's {len(runs)} runs are finished; the part that ends last makes the "
        f"tables; before that, `sdpo-bench tables {shown(folder)}` makes those of the finished runs"
    )


def execute_elsewhere(
    runs: list[Run], count: int, folder: Path, launcher: launchers.Launcher, options: dict[str, Any]
) -> None:
    """Makes the pending runs by a launcher, at most `count` of them submitted at a time. The launcher's files are kept
    if a run failed."""
    if all(run.state != "pending" for run in runs):
        return
    files = folder / "logs" / f"{launcher}-{secrets.token_hex(4)}"
    gpus_of_a_run = int(runs[0].config.device == "cuda")
    engine = launchers.start(launcher, options, files, gpus_of_a_run)
    RemoteRuns(runs, count, engine, files, Progress(runs, 0, remote=True)).make()
    if all(run.state != "failed" for run in runs):
        shutil.rmtree(files, ignore_errors=True)


def check_processes(configs: Sequence[RunConfig], processes: int) -> None:
    """UserError if the processes of a run cannot have equal shares of its optimiser steps."""
    for config in configs:
        if config.epochs and config.pairs_per_update % processes:
            raise UserError(
                f"--processes-per-run is {processes}, but an optimiser step of {config.label} on {config.reward} takes "
                f"{config.pairs_per_update} pairs or groups; expected a number that divides it"
            )


def groups_of(devices: Sequence[str], processes: int) -> list[str]:
    """The GPUs of each worker, as in CUDA_VISIBLE_DEVICES: one for each process of a run. Those left over stay idle."""
    return [",".join(group) for group in zip(*[iter(devices)] * processes, strict=False)]


def check_devices(
    profile: str, configs: Sequence[RunConfig], workers: int, devices: Sequence[str], processes: int, asked_for: bool
) -> None:
    """UserError if a profile cannot run on the GPUs of this machine. `asked_for`: whether --device was given."""
    if not devices:
        raise UserError(
            "--device cuda: torch finds no CUDA device here; use --device cpu"
            if asked_for
            else f"profile {profile} needs GPUs, but torch finds no CUDA device here; --dry-run lists its runs"
        )
    if processes > len(devices):
        raise UserError(
            f"--processes-per-run is {processes}, each on a GPU of its own; expected at most {len(devices)}, the "
            f"number of GPUs here"
        )
    most = len(devices) // processes
    if workers > most and any(config.model != EMBEDDED for config in configs):
        raise UserError(
            f"--workers is {workers}; expected at most {most}, since each takes {processes} of the {len(devices)} GPUs "
            f"here; only runs of the embedded model, which leave a GPU idle between launches, gain by sharing one"
        )


def check_inputs(folder: Path, runs: Sequence[Run], resume: bool) -> None:
    """Checks the inputs of the runs and their tables once at the start, not after hours or in each worker. Marks the
    runs that are finished."""
    configs = [run.config for run in runs]
    if any(shows(config.model, config.reward, config.steps) for config in configs):
        load_curves()  # for the tables
    check_folder(folder, runs, resume)
    index = PACKAGE / "assets" / "embedded_model" / "model_index.json"
    if any(config.model == EMBEDDED for config in configs) and not index.exists():
        raise UserError("the embedded model is missing from this copy: rebuild it with `nox -s testbed`")
    left = [run.config for run in runs if run.state == "pending"]
    find_weights({name for c in left for name in (c.reward, *c.eval_rewards, *c.eval_last_rewards)})


def announce(profile: str, folder: Path, runs: Sequence[Run], workers: int, local: bool, processes: int) -> None:
    """Prints the number of runs to make, the number of workers, the estimated time and the folder."""
    left = [run for run in runs if run.state == "pending"]
    estimate = sum(run.estimate for run in left) / workers
    size = workers_text(workers, processes) if local else f"at most {workers} submitted at a time"
    print(
        f"profile {profile}: {len(left)} runs to make"
        + (f", {len(runs) - len(left)} finished before" if len(left) < len(runs) else "")
        + f"; {size}, about {clock(estimate)}, results in {shown(folder)}",
        file=sys.stderr,
        flush=True,
    )


def report_unfinished(folder: Path, runs: Sequence[Run], again: str) -> int:
    """Names the runs that other processes are making and those that failed, and keeps the logs of the latter. Returns
    the exit code."""
    locked = [run for run in runs if run.state == "locked"]
    if locked:
        print(
            f"another process makes {len(locked)} of the runs; when it is finished, `{again}` adds them to the tables",
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
