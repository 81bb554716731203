"""Options of the benchmarks, and what their JSON holds: where it was made, but nothing that names the machine."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch: CPU times assume one thread

import json
import subprocess
from pathlib import Path

import pytest
import sdpo_kernels
import torch

from benchmarks.kernel_results import CPU_NOTE, STEP_CPU_NOTE, record_path, render, render_steps
from sdpo_bench.policies.precision import use_full_float32
from sdpo_bench.records import provenance

HERE = Path(__file__).parent
FAILED: list[str] = []
SKIPPED: dict[str, str] = {}


def pytest_addoption(parser):
    group = parser.getgroup("kernels")
    group.addoption(
        "--kernel-matrix",
        choices=("auto", "small", "core", "full"),
        default="auto",
        help="sizes to measure; auto: core on a GPU, small on a CPU",
    )
    group.addoption(
        "--kernel-compile",
        choices=("all", "extremes"),
        default="all",
        help="time torch.compile in all cases, or only in the smallest and largest in fp16",
    )
    group.addoption(
        "--kernel-results",
        type=Path,
        metavar="FOLDER",
        help="write FOLDER/<device>/<commit>.json, from which `nox -s tables` makes tables",
    )
    group.addoption(
        "--kernel-add",
        action="store_true",
        help="add to the record of the same device and commit; use it with -k to measure in parts",
    )
    group.addoption("--kernel-force", action="store_true", help="replace the record of the same device and commit")


def gpu() -> dict[str, object]:
    """What decides a GPU's speed; clocks and driver as nvidia-smi gives them, where it does."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    found: dict[str, object] = {
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "multiprocessors": properties.multi_processor_count,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }
    fields = ("driver_version", "clocks.max.sm", "clocks.max.mem", "clocks.sm", "clocks.mem", "power.limit")
    query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    if hasattr(properties, "uuid"):  # several GPUs: the one that is measured; it is not recorded
        query += ["-i", f"GPU-{properties.uuid}"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return found  # a container without it
    return found | dict(zip(fields, (value.strip() for value in answer.splitlines()[0].split(",")), strict=False))


def collect(config) -> dict[str, object]:
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    return provenance.collect(device) | {
        "backend": "triton" if cuda else "torch",
        "command": provenance.command(["pytest", *map(str, config.invocation_params.args)]),
        # The commit counts changes of the package and the kernels only, and a copy without git has none.
        "sources": {
            "kernels": provenance.source_hash(Path(sdpo_kernels.__file__).parent),
            "benchmarks": provenance.source_hash(HERE),
        },
        **({"gpu": gpu()} if cuda else {}),
    }


def pytest_configure(config):
    if torch.cuda.is_available():
        use_full_float32()  # as `train` has it
    folder = config.getoption("kernel_results")
    if folder is not None:
        here = collect(config)
        path = record_path(folder, here)
        if path.exists() and config.getoption("kernel_add"):
            config.kernel_earlier = json.loads(path.read_text())
            if config.kernel_earlier["machine_info"]["sources"] != here["sources"]:
                raise pytest.UsageError(f"{path} is of other code: --kernel-force replaces it")
        elif path.exists() and not config.getoption("kernel_force"):
            raise pytest.UsageError(
                f"{path} exists: this was measured before; --kernel-add adds to it, --kernel-force replaces it"
            )
        config.option.benchmark_json = path


def pytest_runtest_logreport(report):
    if "test_kernels" not in report.nodeid and "test_training_step" not in report.nodeid:
        return
    name = report.nodeid.partition("::")[2]
    if report.failed:
        FAILED.append(name)
    elif report.skipped and isinstance(report.longrepr, tuple):
        SKIPPED[name] = report.longrepr[2].removeprefix("Skipped: ")


def pytest_benchmark_generate_machine_info(config):
    return collect(config)


def pytest_benchmark_generate_commit_info(config):
    return provenance.code_version()


def pytest_benchmark_update_json(config, benchmarks, output_json):
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)  # of each round: the quartiles are enough
    output_json["failed"], output_json["skipped"] = FAILED, SKIPPED
    if earlier := getattr(config, "kernel_earlier", None):
        add(earlier, output_json)
    if config.option.benchmark_json is not None:  # it may have been saved with --benchmark-save instead
        config.option.benchmark_json.parent.mkdir(parents=True, exist_ok=True)


def add(earlier, record):
    """Puts into `record` what `earlier` has of the same code, but for what was run again."""
    again = {entry["name"] for entry in record["benchmarks"]} | {*record["failed"], *record["skipped"]}
    kept = [entry for entry in earlier["benchmarks"] if entry["name"] not in again]
    record["benchmarks"] = kept + record["benchmarks"]
    record["failed"] = [name for name in earlier["failed"] if name not in again] + record["failed"]
    skipped = {name: why for name, why in earlier["skipped"].items() if name not in again}
    record["skipped"] = skipped | record["skipped"]


def pytest_terminal_summary(terminalreporter, config):
    measured = [entry.extra_info for entry in config._benchmarksession.benchmarks]
    steps = [info for info in measured if "training_step" in info]
    if steps:
        terminalreporter.section("the training step and the official loop's algorithm: pairs per second")
        terminalreporter.write_line(render_steps(steps))
        if any(info["what"] == STEP_CPU_NOTE for info in steps):
            terminalreporter.write_line(f"\nnote: {STEP_CPU_NOTE}", yellow=True, bold=True)
    found = [info for info in measured if "operation" in info]
    if found:
        terminalreporter.section("operations and their rivals: medians in microseconds")
        terminalreporter.write_line(render(found))
        if any(info["what"] == CPU_NOTE for info in found):
            terminalreporter.write_line(f"\nnote: {CPU_NOTE}", yellow=True, bold=True)
