"""What commands that need no run cost: core seconds and peak memory, each in a process of its own.

    pytest benchmarks/test_commands.py --benchmark-only -s

`tables` reads a copy of results/full, the largest study. Process time depends little on other work of the machine.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path(__file__).parents[1] / "results" / "full"
GOALS = {"doctor": "under 10 s", "tables": "under 15 s and 500 MB"}


# A process's peak memory is at least that of the one that started it: a small one starts the command.
STARTER = """
import os, subprocess, sys
with open(sys.argv[1], "w") as log:
    started = subprocess.Popen([sys.executable, "-m", "sdpo_bench", *sys.argv[2:]], stdout=log, stderr=log)
_, status, used = os.wait4(started.pid, 0)
print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss)
"""


def cost(arguments: list[str], log: Path) -> tuple[float, float]:
    """Core seconds and peak MB of `sdpo-bench ARGUMENTS`."""
    command = [sys.executable, "-c", STARTER, str(log), *arguments]
    code, seconds, memory = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert code == "0", log.read_text()
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss's unit
    return float(seconds), int(memory) * unit / 1e6


@pytest.mark.parametrize("name", GOALS)
def test_command(benchmark, tmp_path, name):
    arguments = [name]
    if name == "tables":
        arguments.append(str(shutil.copytree(FULL, tmp_path / "full")))
    seconds, megabytes = benchmark.pedantic(cost, (arguments, tmp_path / "log.txt"), rounds=1)
    benchmark.extra_info |= {"command": name, "core_seconds": round(seconds, 2), "peak_mb": round(megabytes)}
    print(f"\n{name}: {seconds:.1f} core seconds, {megabytes:.0f} MB; goal: {GOALS[name]}")
