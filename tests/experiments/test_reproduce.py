"""Orchestration: workers, resumption, locks, crashes and interruptions, on a tiny random model."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import TINY
from safetensors.torch import load_file, save_file
from support.run_files import contents
from support.synthetic_records import write_profile

from sdpo_bench.analysis.comparisons import load_results
from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.experiments import cost_model, pool, profiles, progress, runner, summary
from sdpo_bench.experiments.pool import execute
from sdpo_bench.experiments.progress import Progress
from sdpo_bench.experiments.runs import Run, plan
from sdpo_bench.experiments.workers import Worker
from sdpo_bench.records.files import RecordError
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.reader import load_profile
from sdpo_bench.records.writer import RunWriter
from sdpo_bench.rewards._weights import Source
from sdpo_bench.training.checkpoint import load_checkpoint


def configs(model: Path, count: int = 2, **changes: object) -> list[RunConfig]:
    return [RunConfig(model=str(model), seed=seed, **TINY | changes) for seed in range(count)]


def runs_in(folder: Path, configs: Sequence[RunConfig]) -> list[Run]:
    return plan(folder, configs, cost_model.Cost())


class Killing(Progress):
    """Kills, once, the worker that makes `victim`, half-way through."""

    victim: Run

    def update(self, worker=None, reward=None):
        if worker is not None and worker.run is self.victim and self.victim.epoch == 2:
            os.kill(worker.processes[0].pid, signal.SIGKILL)
        super().update(worker, reward)


@pytest.fixture(scope="module")
def executed(tiny_model, tmp_path_factory):
    """A profile with all that can happen to a run, by two workers: the runs by name, and what was printed.

    Starting a process costs seconds of imports, so it happens once for many tests.
    """
    first, second, other = configs(tiny_model, 3)
    folder = tmp_path_factory.mktemp("results") / "mine"
    settings = {
        "good": first,
        "bad": RunConfig(**vars(first) | {"model": str(tmp_path_factory.mktemp("no_model"))}),
        "killed": RunConfig(**vars(first) | {"seed": 9, "epochs": 500, "eval_every": 500}),
        "locked": other,
        "second": second,
    }
    runs = dict(zip(settings, runs_in(folder, list(settings.values())), strict=True))
    text = io.StringIO()
    progress = Killing(list(runs.values()), 2, text)
    progress.victim = runs["killed"]
    with RunWriter(runs["locked"].folder):
        execute(list(runs.values()), 2, progress)
    return folder, runs, text.getvalue()


@pytest.fixture
def finished(executed, tmp_path):
    """A copy of the two finished runs."""
    _, runs, _ = executed
    for name in ("good", "second"):
        shutil.copytree(runs[name].folder, tmp_path / "mine" / "raw" / runs[name].name)
    return tmp_path / "mine", runs_in(tmp_path / "mine", [runs[name].config for name in ("good", "second")])


def test_a_run_that_fails_leaves_the_others_alone(executed):
    """One that raises, one whose process is killed, one that another process holds; the others are made."""
    _, runs, text = executed
    states = {name: run.state for name, run in runs.items()}
    expected = {"good": "done", "bad": "failed", "killed": "failed", "locked": "locked", "second": "done"}
    assert states == expected, [(run.message, run.details) for run in runs.values()]
    assert "model_index.json does not exist" in runs["bad"].message
    assert not runs["bad"].folder.exists()
    assert "SIGKILL" in runs["killed"].message
    assert not (runs["killed"].folder / "done.json").exists()
    pace = r"[\d.]+ s an epoch \(sampling [\d.]+, reward [\d.]+, training [\d.]+\)"
    assert re.search(rf"{runs['good'].name}: done, {pace} \(1/5 runs, about", text)


def test_records_of_workers(executed):
    folder, runs, _ = executed
    records = load_profile(folder)
    assert {record.run_id for record in records} == {runs["good"].name, runs["second"].name}
    assert {record.provenance["threads"] for record in records} == {1}


@pytest.mark.parametrize("name", ["good", "second"])
def test_a_worker_makes_the_same_run_as_another_process(executed, tmp_path, name):
    """Runs that share a process share nothing else: the same bytes as alone, and after others."""
    from sdpo_bench.training.loop import train

    run = executed[1][name]
    train(run.config, tmp_path / run.name)
    assert contents(tmp_path / run.name) == contents(run.folder)


def test_plan_and_resume(finished, capsys, monkeypatch):
    folder, runs = finished
    with pytest.raises(UserError, match=r"already holds 2 runs: add --resume .* or --results OTHER"):
        runner.check_folder(folder, runs, resume=False)
    fresh = runs_in(folder, [run.config for run in runs])
    runner.check_folder(folder, fresh, resume=True)
    assert "another commit" not in capsys.readouterr().err
    monkeypatch.setattr(runner, "code_version", lambda: {"commit": "0" * 40})
    runner.check_folder(folder, fresh, resume=True)
    assert "note: 2 finished runs were made at another commit" in capsys.readouterr().err
    monkeypatch.undo()
    assert [run.state for run in fresh] == ["done", "done"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    execute(fresh, 2, Progress(fresh, 2, io.StringIO()))  # nothing to do, no worker starts
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    listed = summary.list_runs(fresh, 2, "nothing")
    assert listed.count(" done") == 2
    assert "2 runs, about 0 s left with 2 workers" in listed


def test_a_corrupt_record_is_named_before_anything_runs(finished, tmp_path):
    folder, runs = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    broken = copy / "raw" / runs[0].name / "eval.jsonl"
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(RecordError, match=f"{runs[0].name}/eval.jsonl"):
        runner.check_folder(copy, runs, resume=True)


def test_a_changed_profile_names_each_setting(finished):
    """Runs of other settings in the folder: no second runs beside them, which would enter the same tables."""
    folder, runs = finished
    before = sorted(folder.rglob("*"))
    changed = [dataclasses.replace(run.config, learning_rate=0.5, clip_range=0.25) for run in runs]
    named = (
        r"2 of the 2 runs are in .*mine with other settings \(.* and others\): clip_range \(.*new 0\.25.*\), "
        r"learning_rate \(stored .*, new 0\.5\); use their settings, or --results OTHER"
    )
    with pytest.raises(UserError, match=named):
        runner.check_folder(folder, runs_in(folder, changed), resume=True)
    for epochs in (1, 5):  # of finished runs without checkpoints
        others = [runs[0].config, dataclasses.replace(runs[1].config, epochs=epochs)]
        with pytest.raises(UserError, match=rf"1 of the 2 runs .*{runs[1].name}\): epochs \(stored 2, new {epochs}\);"):
            runner.check_folder(folder, runs_in(folder, others), resume=True)
    assert sorted(folder.rglob("*")) == before
    both = runs_in(folder, [*(run.config for run in runs), *changed])  # planned side by side, they are no slip
    runner.check_folder(folder, both, resume=True)
    assert [run.state for run in both] == ["done", "done", "pending", "pending"]
    planned = runs_in(folder, [dataclasses.replace(runs[0].config, seed=7)])
    runner.check_folder(folder, planned, resume=True)  # another seed is another run
    assert planned[0].state == "pending"


def test_finished_runs_of_other_weights_are_not_counted(finished, tiny_model, tmp_path):
    folder, runs = finished
    model = shutil.copytree(tiny_model, tmp_path / "elsewhere" / tiny_model.name)
    moved = [dataclasses.replace(run.config, model=str(model)) for run in runs]
    same = runs_in(folder, moved)
    runner.check_folder(folder, same, resume=True)
    assert [run.state for run in same] == ["done", "done"]
    (weights,) = (model / "unet").glob("*.safetensors")
    save_file({key: value * 1.01 for key, value in load_file(weights).items()}, weights)
    said = rf"2 of the 2 runs were made with other weights \(.*: model's unet/{weights.name} \(stored .*; restore these"
    with pytest.raises(UserError, match=said):
        runner.check_folder(folder, runs_in(folder, moved), resume=True)


def test_a_full_disk_stops_all(tiny_model, tmp_path, monkeypatch):
    """Every write fails with ENOSPC, as on a full disk: one clear error, no hour of failing runs."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os\nreal = os.fsync\ndef full(fd):\n    raise OSError(28, os.strerror(28))\nos.fsync = full\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site))
    runs = runs_in(tmp_path / "p", configs(tiny_model))
    with pytest.raises(UserError, match=r"the disk is full.*--resume"):
        execute(runs, 1, Progress(runs, 1, io.StringIO()))
    assert runs[1].state == "pending"


MAIN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from experiments.test_reproduce import configs
from sdpo_bench.experiments import profiles, runner
if __name__ == "__main__":
    runs = configs(Path({model!r}), 2, epochs=400, eval_every=400)
    profiles.PROFILES["slow"] = profiles.Profile(lambda methods, seeds: runs, ("sdpo",), (0,))
    runner.PACKAGE = Path({package!r})
    sys.exit(runner.reproduce("slow", part="2/2"))
"""


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at the worker through /proc")
def test_an_interruption_stops_the_workers(tiny_model, tmp_path):
    """Ctrl-C ends them in order and says how to go on, with the same part of the runs."""
    package = tmp_path / "package"
    (package / "assets" / "embedded_model").mkdir(parents=True)
    (package / "assets" / "embedded_model" / "model_index.json").touch()
    script = tmp_path / "main.py"
    script.write_text(MAIN.format(tests=str(Path(__file__).parents[1]), model=str(tiny_model), package=str(package)))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    raw = tmp_path / "runs" / "slow" / "raw"
    wait_for(lambda: any(raw.glob("*/checkpoint.pt")) or process.poll() is not None)
    (lock,) = raw.glob("*-s1-*/.lock")
    worker = int(lock.read_text().split()[0])
    assert alive(worker)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "nothing is lost. Continue with: nox -s reproduce -- --profile slow --part 2/2 --resume" in errors
    assert "Traceback" not in errors
    assert not alive(worker)
    assert not any(raw.glob("*/done.json"))
    assert [*raw.iterdir()] == [lock.parent], "seed 0 is the other part's"
    rows = (lock.parent / "train.jsonl").read_bytes().count(b"\n")
    assert load_checkpoint(lock.parent / "checkpoint.pt", lock.parent.name)["epoch"] == rows > 0


def test_a_worker_that_is_stopped_saves_the_last_whole_epoch(tiny_model, tmp_path):
    """No checkpoint is due; the same command then goes on after that epoch, and says so."""
    given = configs(tiny_model, 1, epochs=5000, eval_every=5000, checkpoint_every=5000)
    (run,) = runs_in(tmp_path, given)
    worker = Worker(1, queue.SimpleQueue())
    worker.give(run)
    rows = run.folder / "train.jsonl"
    wait_for(lambda: (rows.exists() and rows.read_bytes().count(b"\n") > 2) or worker.processes[0].poll() is not None)
    worker.stop()
    assert worker.processes[0].returncode == 143
    epoch = load_checkpoint(run.folder / "checkpoint.pt", run.name)["epoch"]
    assert epoch == rows.read_bytes().count(b"\n") > 2
    events: queue.SimpleQueue = queue.SimpleQueue()
    again = Worker(1, events)
    again.give(run)
    begin = next(event for _, event in iter(lambda: events.get(timeout=120), None) if event["kind"] != "ready")
    again.stop()
    assert progress.beginning(begin) == f"begins at epoch {epoch + 1} of 5000"


def test_a_worker_ends_with_its_parent():
    """A parent that dies without a word, as by kill -9, closes the pipe: no orphan goes on computing."""
    worker = Worker(1, queue.SimpleQueue())
    assert worker.processes[0].stdin is not None
    worker.processes[0].stdin.close()
    assert worker.processes[0].wait(120) == 1


def test_what_is_printed_at_the_end(tmp_path, monkeypatch):
    """The table, the comparison with the reference, seconds per epoch, and where everything lies."""
    monkeypatch.chdir(tmp_path)
    mine, reference = write_profile(tmp_path / "runs" / "quick", 1, ("SDPO", "REBEL")), tmp_path / "results" / "quick"
    shutil.copytree(mine, reference)
    monkeypatch.setattr(summary, "reference_results", lambda: tmp_path / "results")
    records = load_profile(mine)
    runs = [Run(RunConfig(), record.folder, 1.0, "done") for record in records]
    text = summary.summarise(load_results(mine), "quick", runs, 600.0)
    lines = [line.split() for line in text.splitlines()]
    assert ["SDPO,", "K", "=", "4", "0.23", "0.14", "0.60", "0.97"] in lines
    for part in (
        "REBEL",
        "seconds per epoch",
        "within tolerance",
        "Comparison with the committed results (results/quick)",
        "3 of 3 runs finished. This call took 10 min. Results are in runs/quick",
        "runs/quick/report.html",
    ):
        assert part in text
    itself = summary.summarise(load_results(reference), "quick", runs, 600.0)
    assert "Comparison" not in itself, "the reference is not its own"
    shutil.rmtree(reference)
    assert "No committed results of this profile" in summary.summarise(load_results(mine), "quick", runs, 600.0)


def test_remaining_time():
    config = RunConfig(epochs=10)
    runs = [Run(config, Path(str(i)), 100.0) for i in range(4)]
    display = Progress(runs, 2, io.StringIO())
    assert display.remaining() == pytest.approx(200, rel=0.02)
    runs[0].state = "done"
    runs[1].epoch = 5  # resumed half-way: no work of this process
    assert display.remaining() == pytest.approx(125, rel=0.02)
    display.begin -= 60  # a minute without an epoch: slower than expected
    assert display.remaining() > 200
    assert [progress.clock(s) for s in (5, 300, 3600 * 3 + 61)] == ["5 s", "5 min", "3 h 01 min"]


def test_resume_command():
    command = summary.resume_command("quick", Path("runs"), None, None, None, None)
    assert command == "nox -s reproduce -- --resume"
    command = summary.resume_command("full", Path("/a b"), ["sdpo"], [0, 1], 3, "cuda")
    assert command.startswith("nox -s reproduce -- --profile full --results '/a b' --methods sdpo --seeds 0 1")
    assert command.endswith("--workers 3 --device cuda --resume")
    there = {"launcher": "ray", "launcher_options": ["num_cpus=2", "address=a:1"], "part": None}
    command = summary.resume_command("quick", Path("runs"), None, None, None, None, **there)
    assert command.endswith("-- --launcher ray --launcher-options num_cpus=2 address=a:1 --resume")


def test_lacking_weights_are_missed_before_any_worker_starts(tiny_model, tmp_path, monkeypatch):
    """Once, by name, with what to do."""
    given = configs(tiny_model, 1, eval_rewards=("clipscore",))
    profile = profiles.Profile(lambda methods, seeds: given, ("sdpo",), (0,))
    monkeypatch.setitem(profiles.PROFILES, "lacking", profile)
    monkeypatch.setattr(pool, "Worker", lambda *_: pytest.fail("starts a worker"))
    monkeypatch.setattr(Source, "_download", lambda *_: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(UserError, match=r"reward clipscore: model.safetensors of openai/.* \(no network\); with a"):
        runner.reproduce("lacking", results=tmp_path)


def test_run_ids_of_a_plan(tiny_model, tmp_path):
    (run,) = runs_in(tmp_path, configs(tiny_model, 1))
    assert run.folder == tmp_path / "raw" / run_id(run.config.to_json())
    assert json.loads(json.dumps(run.config.to_json())) == run.config.to_json()
    assert run.estimate > 0
