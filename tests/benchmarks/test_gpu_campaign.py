"""The GPU campaign: its clock, its resumption and its records on stand-ins, every command once on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _pytest.mark.expression import Expression
from conftest import TINY
from support import forked
from support.forked import Forked

from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.experiments import profiles

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # the benchmarks are no part of the installed package

from benchmarks import gpu_campaign, test_kernels, test_training_step  # noqa: E402
from benchmarks.gpu_campaign import Piece, Place, merge, run_part, run_piece  # noqa: E402
from benchmarks.kernel_results import OPERATIONS, load, record_files, record_path  # noqa: E402
from benchmarks.kernel_results import write_all as write_kernel_tables  # noqa: E402

MADE: dict[str, Any] = {
    "commit": "a" * 40,
    "dirty": False,
    "versions": {"torch": "0.0.0"},
    "device": "cuda: Made-up GPU",
    "sources": {"kernels": "b" * 64},
}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(gpu_campaign, "GRACE", 1.0)
    monkeypatch.setattr(gpu_campaign, "LEAST", 2.0)


def script(name: str, text: str, **options: Any) -> Piece:
    return Piece(name, [sys.executable, "-c", text], **options)


WAITS = "import time; print('begun', flush=True); time.sleep(60)"
SAVES = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('saved')"
STUBBORN = "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(60)"


# The clock ------------------------------------------------------------------------------------------------------


def test_a_piece(tmp_path):
    log = tmp_path / "log"
    found = run_piece(script("good", "print('RESULT {\"a\": 1}')"), 30, log)
    assert (found["state"], found["exit_code"], found["result"]) == ("done", 0, {"a": 1})
    found = run_piece(script("bad", "raise SystemExit('why')"), 30, log)
    assert (found["state"], found["exit_code"], found["output"]) == ("failed", 1, "why\n")
    assert "### good" in log.read_text()
    assert "why" in log.read_text()
    assert run_piece(Piece("tool", ["x"], needs="no-such-program"), 30, log) == {
        "state": "left",
        "why": "no-such-program is not on the PATH",
    }


@pytest.mark.parametrize(("text", "output"), [(SAVES, "saved"), (STUBBORN, "")])
def test_a_piece_ends_in_time(tmp_path, text, output):
    begin = time.monotonic()
    found = run_piece(script("slow", text), 4, tmp_path / "log")
    assert time.monotonic() - begin < 8
    assert (found["state"], found["why"]) == ("left", "its time was up")
    assert output in found["output"]


def test_a_part_ends_in_time_and_says_what_is_left(tmp_path):
    pieces = [script("good", ""), script("bad", "raise SystemExit(3)"), script("slow", WAITS), script("late", "")]
    record = run_part(1, pieces, tmp_path, [], MADE, budget=6)
    assert record["seconds"] < 9
    written = json.loads((tmp_path / "part-1.json").read_text())
    assert (written["done"], written["failed"], written["left"]) == (["good"], ["bad"], ["slow", "late"])
    assert written["pieces"]["late"]["why"] == "the part's time was up"
    assert written["pieces"]["bad"]["exit_code"] == 3
    assert MADE.items() <= written.items()


def test_what_is_done_is_not_done_again(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    mark = tmp_path / "mark"
    writes = f"open({str(mark)!r}, 'a').write('x')"
    run_part(1, [script("a", writes), script("b", "raise SystemExit(1)")], first, [], MADE, 30)
    again = [script("a", writes), script("b", writes)]
    record = run_part(1, again, second, [tmp_path / "none", first], MADE, 30)
    assert mark.read_text() == "xx", "b alone"
    assert {name: found["state"] for name, found in record["pieces"].items()} == {"a": "done", "b": "done"}
    run_part(1, again, second, [], MADE, 30)
    assert mark.read_text() == "xx"
    run_part(1, again, tmp_path / "other", [second], MADE | {"sources": {"kernels": "c" * 64}}, 30)
    assert mark.read_text() == "xxxx", "other code"
    (second / "part-1.json").write_text('{"schema": 1')
    run_part(1, again, tmp_path / "third", [second], MADE, 30)
    assert mark.read_text() == "xxxxxx", "damaged"
    run_part(1, [script("a", writes, always=True)], second, [first], MADE, 30)
    assert mark.read_text() == "xxxxxxx"


# Records --------------------------------------------------------------------------------------------------------


def benchmarks_record(*names: str, when: str = "2020-01-01", **changes: Any) -> dict[str, Any]:
    from test_kernel_results import made_up as of_kernels
    from test_training_step_benchmark import made_up as of_step

    record = of_kernels()
    kernel, step = record["benchmarks"][0], of_step()["benchmarks"][0]
    record["benchmarks"] = [(kernel if name.startswith("test_kernel[") else step) | {"name": name} for name in names]
    record["datetime"] = when
    record["machine_info"] |= changes
    return record


def write(folder: Path, record: dict[str, Any]) -> Path:
    path = record_path(folder / "kernels", record["machine_info"])
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    return path


def names(path: Path) -> list[str]:
    return [entry["name"] for entry in load(path)["benchmarks"]]


def test_a_benchmark_whose_record_is_gone_is_measured_again(tmp_path):
    first, pieces = tmp_path / "first", [script("a", "", record=True)]
    path = write(first, benchmarks_record("test_kernel[a]"))
    run_part(4, pieces, first, [], MADE, 30)
    assert gpu_campaign.done_before(4, pieces[0], [first], MADE)
    path.write_text("{")
    assert gpu_campaign.done_before(4, pieces[0], [first], MADE) is None
    path.unlink()
    assert gpu_campaign.done_before(4, pieces[0], [first], MADE) is None


def test_merged_records_are_what_tables_read(tmp_path):
    results = tmp_path / "results"
    newer = benchmarks_record("test_kernel[b]", "test_training_step[x]", when="2020-01-02")
    newer["skipped"] = {"test_kernel[c]": "too large"}
    write(tmp_path / "3", newer)
    write(tmp_path / "4", benchmarks_record("test_kernel[a]", "test_kernel[b]", "test_kernel[c]"))
    written = merge([tmp_path / "3", tmp_path / "4"], results)
    kernels, step = written
    assert kernels.parent == results / "kernels" / "cuda-made-up-gpu"
    assert step.parent == results / "training_step" / "cuda-made-up-gpu"
    assert names(kernels) == ["test_kernel[a]", "test_kernel[b]"], "c's later word is that it was skipped"
    assert load(kernels)["skipped"] == {"test_kernel[c]": "too large"}
    assert names(step) == ["test_training_step[x]"]
    assert record_files(step.parent) == [step]
    assert "official, micro-batch 1" in write_kernel_tables(step.parent)[-1].read_text()
    write(tmp_path / "5", benchmarks_record("test_kernel[d]", when="2020-01-03"))
    merge([tmp_path / "5"], results)
    assert names(kernels) == ["test_kernel[a]", "test_kernel[b]", "test_kernel[d]"], "what was merged before stays"
    assert names(step) == ["test_training_step[x]"]


def test_what_does_not_belong_together_is_not_merged(tmp_path):
    write(tmp_path / "4", benchmarks_record("test_kernel[a]"))
    write(tmp_path / "5", benchmarks_record("test_kernel[b]", versions={"torch": "9"}))
    with pytest.raises(UserError, match="different versions"):
        merge([tmp_path / "4", tmp_path / "5"], tmp_path / "results")
    assert not (tmp_path / "results").exists()
    with pytest.raises(UserError, match="no records of benchmarks"):
        merge([tmp_path / "none"], tmp_path / "results")


def test_runs_come_back_without_models(tmp_path, monkeypatch):
    runs, out = tmp_path / "runs", tmp_path / "out"
    out.mkdir()
    for name in ("one", "two"):
        folder = runs / "smoke" / "raw" / name
        (folder / "model").mkdir(parents=True)
        for file in ("config.json", "done.json", "checkpoint.pt", "model/weights"):
            (folder / file).write_text("x" * 100)
    monkeypatch.setattr(gpu_campaign, "ARCHIVE", 300)
    (runs / "smoke" / "raw" / "three").mkdir()
    (runs / "smoke" / "raw" / "three" / "config.json").write_text("killed while it was wri")
    found = gpu_campaign.pack_runs(runs, out)
    assert found["finished"] == ["one", "two"]
    assert "three" in found["begun"]["three"]["error"]
    assert [path.name for path in sorted(out.iterdir())] == ["runs-1.tar.gz", "runs-2.tar.gz"]
    with tarfile.open(out / "runs-1.tar.gz") as archive:
        assert archive.getnames() == ["smoke/raw/one/config.json", "smoke/raw/one/done.json"]
    gpu_campaign.unpack_runs([out], tmp_path / "again")
    assert (tmp_path / "again" / "smoke" / "raw" / "two" / "done.json").exists()


# The commands ---------------------------------------------------------------------------------------------------


def selected(piece: Piece, ids: list[str]) -> list[str]:
    expression = Expression.compile(piece.command[piece.command.index("-k") + 1])
    return [name for name in ids if expression.evaluate(lambda part, name=name: part in name)]


def test_every_case_is_measured_once(tmp_path):
    """On a GPU, whose cases no CPU runs."""
    place = Place(tmp_path, tmp_path)
    pieces = [piece for part in (4, 5, 6, 7) for piece in gpu_campaign.PARTS[part][1](place)]
    cases = [f"test_kernel[{case}]" for case in test_kernels.cases("core")]
    assert sorted(name for piece in pieces for name in selected(piece, cases)) == sorted(cases)
    variants = [f"test_training_step[{variant}]" for variant in test_training_step.variants(True)]
    pieces = gpu_campaign.PARTS[3][1](place)
    assert sorted(name for piece in pieces for name in selected(piece, variants)) == sorted(variants)
    few = test_kernels.extremes(test_kernels.cases("core"))
    assert len(few) == 2 * 8  # six operations; two of them at K = 4 and at K = 50
    assert {case.dtype for case in few} == {"float16"}


def check_part(part: int, out: Path, code: int | None, output: str) -> None:
    record = json.loads((out / f"part-{part}.json").read_text())
    left = [name for name in record["left"] if "not on the PATH" not in record["pieces"][name]["why"]]
    assert (record["failed"], left) == ([], []), output
    assert code == (3 if record["left"] else 0)
    assert record["device"].startswith("cpu")
    assert len(list(out.iterdir())) <= 3


def test_dry_in_processes_of_its_own(tmp_path):
    """Part 1, as a person starts it: its kernels are interpreted, for which a process must be new."""
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu_campaign.sh", "1", "--dry", "--out", tmp_path / "1", "--work", tmp_path / "work"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment(),
    )
    check_part(1, tmp_path / "1", done.returncode, done.stdout + done.stderr)


@pytest.fixture
def forked_pieces(monkeypatch, tiny_model):
    """Pieces are forked from here, as importing would take most of their time; `smoke` is a run of the tiny model."""
    stand_in = SimpleNamespace(Popen=forked.popen, **{name: getattr(subprocess, name) for name in SUBPROCESS})
    monkeypatch.setattr(gpu_campaign, "subprocess", stand_in)
    config = RunConfig(model=str(tiny_model), **TINY | {"epochs": 1})
    monkeypatch.setitem(profiles.PROFILES, "smoke", profiles.Profile(lambda *_: [config], ("sdpo",), (0,)))


SUBPROCESS = ("DEVNULL", "STDOUT", "TimeoutExpired", "SubprocessError", "run")


def test_dry(tmp_path, forked_pieces):
    """The commands of all other parts."""
    for part in range(2, 9):
        out = tmp_path / str(part)
        arguments = [str(part), "--dry", "--out", str(out), "--work", str(tmp_path / "work")]
        with open(tmp_path / "output.txt", "w") as output:
            code = Forked(lambda a=arguments: sys.exit(gpu_campaign.main(a)), output, environment(), tmp_path).wait()
        check_part(part, out, code, (tmp_path / "output.txt").read_text())
    assert json.loads((tmp_path / "8" / "part-8.json").read_text())["runs"]["finished"]
    results = tmp_path / "results"
    kernels, step = merge([tmp_path / str(part) for part in range(3, 8)], results)
    assert {name.removeprefix("test_kernel[").split("-")[0] for name in names(kernels)} == {*OPERATIONS}
    assert len(names(step)) == 1
    assert load(step)["benchmarks"][0]["extra_info"]["disagreement"] == []


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if "XDIST" not in k and k != "OUT"} | {"PYTHON": sys.executable}


def test_what_is_asked_for_wrongly(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("OUT", raising=False)
    assert gpu_campaign.main(["1", "--dry"]) == 2
    assert "OUT is not set" in capsys.readouterr().err

    def absent(*_: Any, **__: Any) -> None:
        raise FileNotFoundError

    # In this module alone: git's answer is kept for the whole process.
    stand_in = SimpleNamespace(run=absent, SubprocessError=subprocess.SubprocessError)
    monkeypatch.setattr(gpu_campaign, "subprocess", stand_in)
    assert gpu_campaign.main(["1", "--out", str(tmp_path)]) == 2
    assert "nvidia-smi finds no GPU here" in capsys.readouterr().err
