"""Runs on clusters: submitit's local executor, and a Ray cluster of two nodes on this machine."""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import TINY
from support import launching
from support.run_files import contents

from sdpo_bench import interruption, plugins
from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.experiments import launchers, pool, profiles, remote, runner
from sdpo_bench.experiments.runs import Run
from sdpo_bench.records.reader import finished_runs, load_run
from sdpo_bench.training.checkpoint import load_checkpoint
from sdpo_bench.training.loop import train

LACKING = [name for name in ("ray", "submitit") if importlib.util.find_spec(name) is None]
LIMIT = 900.0  # seconds, of a machine that is busy with much else


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory):
    """What came of runs whose worker or machine was lost: see support/launching.py."""
    if LACKING:
        pytest.skip(f"{' and '.join(LACKING)} not installed: pip install -e '.[ray,slurm]'")
    root = tmp_path_factory.mktemp("launched")
    script = Path(launching.__file__)
    env = os.environ | {launching.ROOT: str(root), plugins.VARIABLE: str(script), "RAY_USAGE_STATS_ENABLED": "0"}
    env["RAY_worker_niceness"] = "0"  # by default 15: on a busy machine the workers would take many minutes
    env["RAY_health_check_period_ms"] = "500"  # by default 3,000: a lost node would be noticed after 15 s
    with open(root / "output.txt", "w") as output:
        process = subprocess.Popen(
            [sys.executable, str(script), str(tiny_model)], env=env, stdout=output, stderr=output
        )
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            code = "out of time"
        finally:  # of the cluster nothing stays, come what may
            for child in [] if process.poll() is not None else psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            process.kill()
            process.wait()
    assert code == 0, (root / "output.txt").read_text()[-5000:]
    return root, json.loads((root / "found.json").read_text())


@pytest.mark.parametrize(
    ("name", "how"),
    [("first", "lost on Ray"), ("second", "lost on Ray"), ("third", "lost by submitit")],
)
def test_a_lost_run_is_taken_up_by_another_worker(made, name, how):
    """Its worker was killed, or its machine: it goes on after its checkpoint; every epoch is recorded once."""
    _, found = made
    run = found[name]
    assert run["state"] == "done", run
    record = load_run(run["folder"])
    assert [row["epoch"] for row in record.train] == [1, 2, 3, 4], how
    assert record.done is not None
    told = [line for line in found["told"].splitlines() if line.startswith(record.run_id)]
    begins = [line.partition(": ")[2] for line in told if "begins at" in line]
    assert begins[0] == "begins at epoch 1 of 4"
    assert begins[1].startswith("begins at epoch 2 of 4")
    assert len(begins) == 2
    assert sum("another worker takes it up" in line for line in told) == 1
    assert "done" in told[-1]
    assert run["files"] == 0, "none of the launcher's, where no run has failed"


def test_a_lost_worker_and_a_lost_machine(made):
    """Both kinds of loss happened, on two nodes, and are named."""
    root, found = made
    nodes = {json.loads((root / f"{name}.json").read_text())["node"] for name in ("first", "second")}
    assert len(nodes) == 2
    losses = [line for line in found["told"].splitlines() if "another worker takes it up" in line]
    assert any("WorkerCrashedError" in line for line in losses), losses
    assert any("Node" in line for line in losses), losses
    assert any("SLURM job" in line for line in losses), losses


def test_a_taken_up_run_is_the_run(made):
    """The bytes of a run without an interruption, in another process; and the plug-in is in its provenance."""
    root, found = made
    folder = Path(found["third"]["folder"])
    assert contents(folder) == contents(root / "whole" / folder.name)
    provenance = load_run(folder).provenance
    assert provenance["threads"] == 1
    assert Path(launching.__file__).name in provenance["plugins"]


def test_a_signal_stops_the_runs_elsewhere(made):
    """They save the state after their last whole epoch and release their folders."""
    root, found = made
    assert (root / "interrupted").exists()
    folder = Path(found["fourth"]["folder"])
    assert not (folder / "done.json").exists()
    assert not (folder / ".lock").exists()
    epochs = [row["epoch"] for row in load_run(folder).train]
    assert epochs == list(range(1, len(epochs) + 1))
    assert load_checkpoint(folder / "checkpoint.pt", folder.name)["epoch"] == len(epochs) > 0


def test_options():
    given = ["timeout_min=240", "slurm_partition=gpu", 'resources={"A100": 1}', "address=head:6379", "qos=a=b"]
    assert launchers.parse_options(given) == {
        "timeout_min": 240,
        "slurm_partition": "gpu",
        "resources": {"A100": 1},
        "address": "head:6379",
        "qos": "a=b",
    }
    for text in ("gpu", "=4", "a b=1"):
        with pytest.raises(UserError, match="expected KEY=VALUE"):
            launchers.parse_options([text])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"launcher_options": ["num_cpus=2"]}, "are for --launcher slurm or ray"),
        ({"launcher": "ray", "launcher_options": ["num_cpus"]}, "expected KEY=VALUE"),
        ({"part": "0/3"}, "--part is 0/3; expected I/N with I from 1 to N"),
        ({"part": "4/3"}, "--part is 4/3"),
        ({"part": "2"}, "--part is 2"),
    ],
)
def test_bad_options_leave_nothing(tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        runner.reproduce("smoke", results=tmp_path, **options)
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif("submitit" in LACKING, reason="submitit is not installed")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cluster": "local", "walltime": 9}, "need to be prefixed by an executor name"),
        ({"cluster": "local", "timeout_min": "long"}, "timeout_min.*expected type"),
        ({"cluster": "cloud"}, "any executor named cloud"),
        ({}, r"Could not detect .srun.*start it where sbatch is found.*cluster=local"),
    ],
)
def test_bad_options_of_submitit(tmp_path, monkeypatch, options, words):
    monkeypatch.setenv("PATH", str(tmp_path))  # without SLURM's programs
    with pytest.raises(UserError, match=words):
        launchers.start("slurm", options, tmp_path / "files", 0)


def test_parts_share_all_runs():
    runs = list(range(10))
    parts = [runs[runner.share(f"{number}/3")] for number in (1, 2, 3)]
    assert sorted(run for part in parts for run in part) == runs
    assert {len(part) for part in parts} == {3, 4}
    assert runs[runner.share(None)] == runs


@pytest.fixture
def profile(tiny_model, monkeypatch):
    """A profile of three runs without an epoch, of the tiny model."""
    configs = [RunConfig(model=str(tiny_model), label=f"run {n}", **TINY | {"epochs": 0}) for n in range(3)]
    made = profiles.Profile(lambda methods, seeds: configs, ("sdpo",), (0,))
    monkeypatch.setitem(profiles.PROFILES, "three", made)
    monkeypatch.setattr(runner, "execute", make_here)


def make_here(runs, *_, **__):
    """As `pool.execute`, without processes, whose start takes longer than these runs."""
    for run in runs:
        if run.state == "pending":
            train(run.config, run.folder, resume=True)
            run.state = "done"


def test_the_part_that_ends_last_makes_the_tables(profile, tmp_path, capsys):
    assert runner.reproduce("three", results=tmp_path, part="2/2") == 0
    folder = tmp_path / "three"
    assert len(finished_runs(folder)) == 1
    assert not (folder / "README.md").exists()
    said = capsys.readouterr().err
    assert "part 2/2: 1 of the profile's 3 runs are finished; the part that ends last makes the tables" in said
    assert runner.reproduce("three", results=tmp_path, part="1/2") == 0, "a later part adds to the folder"
    assert len(finished_runs(folder)) == 3
    assert (folder / "README.md").exists()
    assert "3 of 3 runs finished" in capsys.readouterr().out
    assert runner.reproduce("three", results=tmp_path, part="1/2") == 0, "an array's job that is started again"


def test_a_part_that_is_stopped_goes_on(profile, tmp_path, monkeypatch, capsys):
    """With its own runs alone: the others are another part's, which may be at work."""
    made = []

    def stopped(runs, *_, **__):
        with pool.termination_interrupts():
            make_here(runs[:1])
            signal.raise_signal(signal.SIGTERM)

    def continued(runs, *_, **__):
        made.extend(run.config.label for run in runs if run.state == "pending")
        make_here(runs)

    monkeypatch.setattr(runner, "execute", stopped)
    assert runner.reproduce("three", results=tmp_path, part="1/2") == 143
    again = f"--profile three --results {tmp_path} --part 1/2 --resume"
    assert again in capsys.readouterr().err.splitlines()[-1]
    assert len(finished_runs(tmp_path / "three")) == 1
    monkeypatch.setattr(runner, "execute", continued)
    assert runner.reproduce("three", results=tmp_path, part="1/2", resume=True) == 0
    assert made == ["run 2"], "run 0 is finished, run 1 is the other part's"
    assert "part 1/2: 2 of the profile's 3 runs are finished" in capsys.readouterr().err


class Machines:
    """An engine without machines. `endings`: by a run's label, what becomes of its jobs, one after another: the epoch
    after which a job begins, None where it stays in the queue, and how it ends. "done" and "lost" end by themselves,
    "saves" some time after it was cancelled, "hangs" when it is killed. `signals`: by a function, a label and a number,
    the signal that comes in that call."""

    def __init__(self, endings, signals=()):
        self.endings, self.signals = {label: [*jobs] for label, jobs in endings.items()}, dict(signals)
        self.calls, self.patience, self.killed = collections.Counter(), [], set()

    def count(self, function, label):
        self.calls[function, label] += 1
        if number := self.signals.get((function, label, self.calls[function, label])):
            signal.raise_signal(number)

    def submit(self, jobs):
        return [self.start(job, *self.endings[job["config"]["label"]].pop(0)) for job in jobs]

    def start(self, job, epoch, ending):
        self.patience.append(job["patience"])
        if epoch is not None:
            event = {"kind": "progress", "phase": "begin", "epoch": epoch, "recorded": epoch, "epochs": 9}
            Path(job["reports"]).write_text(json.dumps(event) + "\n")
        if ending == "done":
            Path(job["folder"]).mkdir(parents=True)
            (Path(job["folder"]) / "done.json").write_text('{"seconds_per_epoch": {}}')
        return job["config"]["label"], ending

    def ended(self, job):
        label, ending = job
        self.count("ended", label)
        saved = ending == "saves" and self.calls["cancel", label] and self.calls["ended", label] > 4
        return ending in ("done", "lost") or saved or label in self.killed

    def ending(self, job):
        if job[1] == "lost":
            raise launchers.Died("node 7 failed")
        return {"kind": "done"}

    def cancel(self, job):
        self.count("cancel", job[0])

    def kill(self, job):
        self.killed.add(job[0])


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Makes runs by such an engine, one for each label: the runs by label, and the exit code if a signal came."""
    monkeypatch.setattr(remote, "LOOK_SECONDS", 0.01)

    def make(machines):
        monkeypatch.setattr(launchers, "start", lambda *_: machines)
        configs = [RunConfig(model="none", label=label, **TINY | {"epochs": 9}) for label in machines.endings]
        runs = {config.label: Run(config, tmp_path / "raw" / config.label, 60.0) for config in configs}
        try:
            runner.execute_elsewhere([*runs.values()], len(runs), tmp_path, "slurm", {})
        except KeyboardInterrupt as stop:
            return runs, interruption.exit_code(stop)
        return runs, None

    return make


FIRST = {("ended", "working", 2): signal.SIGTERM}


def test_the_first_signal_waits_for_the_runs_at_work(elsewhere, capsys):
    machines = Machines({"working": [(2, "saves")], "queued": [(None, "hangs")]}, FIRST)
    runs, code = elsewhere(machines)
    assert code == 143
    assert machines.calls["cancel", "working"] == machines.calls["cancel", "queued"] == 1
    assert machines.killed == {"queued"}, "the other one has ended by itself"
    assert {run.state for run in runs.values()} == {"pending"}
    assert "ending the jobs, 1 of which are at work; a second signal ends all at once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("second", "code"),
    [
        ({("ended", "working", 4): signal.SIGINT}, 130),
        ({("cancel", "working", 1): signal.SIGINT}, 130),  # before the other job was told to end
        ({}, 143),
    ],
    ids=["while it waits", "at once", "none"],
)
def test_a_second_signal_ends_all_jobs(elsewhere, monkeypatch, second, code):
    """Or STOPPING seconds do."""
    monkeypatch.setattr(remote, "STOPPING", 0.3 if code == 143 else 60.0)
    machines = Machines({"working": [(2, "hangs")], "queued": [(None, "hangs")]}, FIRST | second)
    assert elsewhere(machines)[1] == code
    assert machines.killed == {"working", "queued"}


def test_a_run_that_is_lost_too_often_fails_and_the_others_go_on(elsewhere, tmp_path, capsys):
    """One that gets further between its losses is not given up."""
    endings = {
        "unlucky": [(2, "lost")] * 3,
        "never begun": [(None, "lost")] * 3,
        "slow": [(0, "lost"), (0, "lost"), (3, "lost"), (3, "lost"), (5, "lost"), (9, "done")],
        "good": [(0, "done")],
    }
    machines = Machines(endings)
    runs, _ = elsewhere(machines)
    states = {"unlucky": "failed", "never begun": "failed", "slow": "done", "good": "done"}
    assert {label: run.state for label, run in runs.items()} == states
    assert not any(machines.endings.values()), "as often as was to be tried"
    assert machines.patience == [0.0] * 4 + [remote.PATIENCE] * 9
    assert not list(tmp_path.rglob("*.jsonl"))
    assert runner.report_unfinished(tmp_path, [*runs.values()], "AGAIN") == 1
    said = capsys.readouterr().err
    assert said.count("slow: node 7 failed; another worker takes it up") == 5
    assert "failed: unlucky: node 7 failed, 3 times in a row at epoch 2" in said
    assert "failed: never begun: node 7 failed, 3 times in a row at epoch 0" in said
    assert "error: 2 of 4 runs failed; try them again with: AGAIN" in said


@pytest.mark.parametrize(("name", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'sdpo-bench\[{name}\]'"):
        launchers.start(name, {}, tmp_path, 0)
