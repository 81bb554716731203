"""Tables and plots of the kernels' benchmark, from made-up files: the numbers here were measured nowhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sdpo_bench.analysis.figures import style
from sdpo_bench.analysis.outputs import write_all as write_kernel_tables
from sdpo_bench.cli.main import main
from sdpo_bench.errors import UserError
from sdpo_bench.kernel_results import CPU_NOTE, frame, load, rates, record_path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIZES = [((4, 64, 64), pairs, dtype) for dtype in ("float16", "float32") for pairs in (1, 8, 128)]
SIZES += [((16, 128, 128), 128, "float16")]


def times(us: float) -> dict[str, float]:
    return {"median": us, "iqr": us / 50, "rounds": 30}


def made_up(cpu: bool = False, slower: float = 1.0) -> dict[str, Any]:
    """As pytest-benchmark would write it, of a device that does not exist: a copy takes 2 us and 1 us per MB; ours 1.1
    times that, eager 30 and torch.compile 2.5 times ours, all `slower` but the copy."""
    device = "cpu: Made-up" if cpu else "cuda: Made-up GPU"
    entries: list[dict[str, Any]] = []
    operations = [("ddim_step", 0), ("sdpo_loss_and_grad", 0), ("anchor_similarity", 20)]
    for operation, steps in operations:
        for shape, pairs, dtype in SIZES:
            elements = 2 * pairs * shape[0] * shape[1] * shape[2] * max(steps, 1)
            moved = (1 if steps else 4) * elements * (2 if dtype == "float16" else 4)
            copy = 2 + moved / 1e6
            us = {"ours": 1.1 * copy * slower, "eager": 33 * copy, "compile": 2.75 * copy, "copy": copy}
            if cpu:
                del us["compile"]
            info = {
                "what": CPU_NOTE if cpu else "kernel", "operation": operation, "steps": steps, "shape": list(shape),
                "pairs": pairs, "dtype": dtype, "backend": "torch" if cpu else "triton", "device": device,
                "bytes": moved, "input_sets": 2, "errors": {"loss": 1e-7},
                "us": {clock: {name: times(value) for name, value in us.items()}
                       for clock in (("call",) if cpu else ("call", "events", "graph"))},
            }  # fmt: skip
            entries.append({"name": "test_kernel", "extra_info": info | rates(info), "stats": {"median": 1.0}})
    entries.append({"name": "test_sample", "extra_info": {"samples": 64, "device": "cpu"}, "stats": {"median": 1.0}})
    return {
        "machine_info": {
            "commit": COMMIT, "dirty": False, "versions": {"torch": "0.0.0", "python": "0.0.0"}, "device": device,
            "threads": 1, "command": "pytest benchmarks", "sources": {"kernels": "a" * 64, "benchmarks": "b" * 64},
            **({} if cpu else {"gpu": {"driver_version": "0.0", "l2_bytes": 1}}),
        },
        "commit_info": {"commit": COMMIT, "dirty": False},
        "benchmarks": entries, "datetime": "2020-01-01T00:00:00+00:00", "version": "0",
        "failed": [], "skipped": {},
    }  # fmt: skip


def write(root: Path, record: dict[str, Any]) -> Path:
    path = record_path(root / "results" / "kernels", record["machine_info"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes seconds; most tests are not about pictures."""
    monkeypatch.setattr(style, "_bytes", lambda figure, suffix: b"")


def test_names_of_records():
    made_by = made_up()["machine_info"]

    def name(**changes: Any) -> str:
        return record_path("kernels", made_by | changes).as_posix()

    assert name() == "kernels/cuda-made-up-gpu/0123456789ab.json"
    assert name(dirty=True) == "kernels/cuda-made-up-gpu/0123456789ab-dirty-aaaaaaaaaaaa.json"
    assert name(commit=None) == "kernels/cuda-made-up-gpu/source-aaaaaaaaaaaa.json"


def test_rates():
    info = {"bytes": 3_000_000, "us": {"graph": {"ours": times(2), "eager": times(50), "copy": times(1.5)}}}
    assert rates(info) == {
        "gb_per_s": {"graph": {"ours": 1500.0, "eager": 60.0, "copy": 2000.0}},
        "share_of_copy": {"graph": 0.75},
        "speedup": {"graph": {"eager": 25.0}},
    }


def test_the_same_records_give_the_same_bytes(tmp_path, capsys):
    folder = write(tmp_path, made_up(cpu=True)).parent
    written = write_kernel_tables(folder)
    first = contents(folder)
    assert {path.relative_to(folder).as_posix() for path in written} == first.keys() - {
        "0123456789ab.json",
        ".generated",
    }
    assert len(written) == 1 + 2 + 2  # README, table, figure
    write_kernel_tables(folder)
    assert contents(folder) == first
    assert b"2020" not in first["README.md"], "no dates"
    moved = write(tmp_path / "moved", made_up(cpu=True)).parent
    write_kernel_tables(moved)
    assert contents(moved) == first
    assert main(["tables", str(folder), "--check"]) == 0
    (folder / "README.md").write_text("mine")
    assert main(["tables", str(folder), "--check"]) == 1
    assert "README.md: other" in capsys.readouterr().out
    assert main(["tables", str(folder)]) == 2, "somebody has written into it"
    assert (folder / "README.md").read_text() == "mine"
    (folder / "README.md").unlink()
    assert main(["tables", str(folder)]) == 0
    assert contents(folder) == first


def test_all_tables_include_the_kernels(tmp_path, monkeypatch, capsys, no_pictures):
    from sdpo_bench.analysis import outputs

    folder = write(tmp_path, made_up()).parent
    monkeypatch.setattr(outputs, "reference_results", lambda: tmp_path / "results")
    assert main(["tables"]) == 0
    assert (folder / "README.md").exists()
    assert "cuda-made-up-gpu" in capsys.readouterr().out


def test_a_gpus_numbers_and_targets(tmp_path, no_pictures):
    path = write(tmp_path, made_up())
    written = write_kernel_tables(path.parent)
    assert len(written) == 1 + 2 * 4 + 2 * 3  # README, tables (targets and three clocks), figures
    text = (path.parent / "README.md").read_text()
    assert "## 0123456789ab: kernels\n" in text
    assert CPU_NOTE not in text
    assert f"Commit `{COMMIT}`;" in text
    assert "driver_version 0.0" in text
    assert "| launches bound: 4x64x64, 1 to 8 pairs: ≥ 20x eager | 30x, met | 30x, met | 30x, met |" in text
    targets = (path.parent / "tables" / "0123456789ab_targets.md").read_text()
    assert "| sdpo_loss_and_grad | 4 | 30x met | 2.5x met | 1.1x met |" in targets
    assert "missed" not in text + targets
    table = (path.parent / "tables" / "0123456789ab_graph.md").read_text()
    # 2 latents of 4 x 64 x 64 float16, four times: 0.262 MB
    assert "| 4x64x64 fp16, 1 | 0.262 | 2.488 | 74.65 | 6.221 | 2.262 | 105.3 | 91% | 30x | 2.5x |" in table
    rows = pd.read_csv(path.parent / "tables" / "0123456789ab_events.csv")
    assert len(rows) == 3 * len(SIZES)
    assert list(rows["operation"].unique()) == ["ddim_step", "sdpo_loss_and_grad", "anchor_similarity"]


def test_targets_that_are_missed_say_so(tmp_path, no_pictures):
    path = write(tmp_path, made_up(slower=1.6))
    write_kernel_tables(path.parent)
    text = (path.parent / "tables" / "0123456789ab_targets.md").read_text()
    # Where launches bound 20x and 2x are asked for, and twice the copy's time; else 25x, 1.6x and 1.15 times.
    assert text.count("| all | 12 | 18.8x missed | 1.56x missed | 1.76x met |") == 3
    assert text.count("| all | 7 | 18.8x missed | 1.56x missed | 1.76x missed |") == 3
    text = (path.parent / "README.md").read_text()
    assert "≥ 20x eager | 18.8x, missed (0 of 3 operations meet it) |" in text
    assert "≤ 2x the copy's time | 1.76x, met |" in text


def test_a_cpu_file_says_that_it_is_not_of_kernels(tmp_path, no_pictures):
    path = write(tmp_path, made_up(cpu=True))
    write_kernel_tables(path.parent)
    text = (path.parent / "README.md").read_text()
    assert f"## 0123456789ab: {CPU_NOTE}\n" in text
    assert "Targets" not in text
    assert CPU_NOTE in (path.parent / "tables" / "0123456789ab_call.md").read_text().splitlines()[0]
    assert not list(path.parent.glob("tables/*targets*"))


def test_files_keep_to_their_sections(tmp_path, no_pictures):
    other = made_up()
    other["machine_info"]["commit"] = "f" * 40
    other["failed"], other["skipped"] = ["test_kernel[x]"], {"test_kernel[y]": "needs about 90.0 GB"}
    folder = write(tmp_path, made_up()).parent
    write(tmp_path, other)
    write_kernel_tables(folder)
    text = (folder / "README.md").read_text()
    assert text.index("## 0123456789ab: kernels") < text.index("## ffffffffffff: kernels")
    assert "**Wrong, so not timed: test_kernel[x]**" in text
    assert "Not measured: test_kernel[y]: needs about 90.0 GB" in text


def test_a_run_that_measured_nothing(tmp_path, no_pictures):
    record = made_up() | {"benchmarks": []}
    path = write(tmp_path, record)
    write_kernel_tables(path.parent)
    assert "No case was measured." in (path.parent / "README.md").read_text()


@pytest.mark.parametrize("text", ["", "[]", '{"benchmarks": [{}]}', '{"benchmarks": []}'])
def test_a_file_that_is_no_record(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"x\.json: not a record"):
        load(path)


def test_other_folders_json_is_no_record(tmp_path):
    from sdpo_bench.analysis.outputs import sources

    (tmp_path / "testbed").mkdir()
    (tmp_path / "testbed" / "quality.json").write_text("{}")
    assert sources(tmp_path / "testbed") == []


def test_frame_of_nothing():
    assert frame([{"samples": 64}]).empty


def test_tables_need_no_pytorch(tmp_path):
    folder = write(tmp_path, made_up(cpu=True)).parent
    script = (  # drawn, too
        "import pathlib, sys; from sdpo_bench.results import write_all; write_all(pathlib.Path(sys.argv[1])); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True)
