"""What commands that need no run cost: core seconds and peak memory, each in a process of its own.

    pytest benchmarks/test_commands.py --benchmark-only -s

`tables` reads a copy of results/full, the largest study. Process time depends little on other work of the machine.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

FULL = Path(__file__).parents[1] / "results" / "full"
GOALS = {"doctor": "under 10 s", "tables": "under 15 s and 500 MB"}


def cost(arguments: list[str], log: Path) -> tuple[float, float]:
    """Core seconds and peak MB of `sdpo-bench ARGUMENTS`."""
    with log.open("w") as output:
        command = [sys.executable, "-m", "sdpo_bench", *arguments]
        actions = [(os.POSIX_SPAWN_DUP2, output.fileno(), number) for number in (1, 2)]
        pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
    _, status, used = os.wait4(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, log.read_text()
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss's unit
    return used.ru_utime + used.ru_stime, used.ru_maxrss * unit / 1e6


@pytest.mark.parametrize("name", GOALS)
def test_command(benchmark, tmp_path, name):
    arguments = [name]
    if name == "tables":
        arguments.append(str(shutil.copytree(FULL, tmp_path / "full")))
    seconds, megabytes = benchmark.pedantic(cost, (arguments, tmp_path / "log.txt"), rounds=1)
    benchmark.extra_info |= {"command": name, "core_seconds": round(seconds, 2), "peak_mb": round(megabytes)}
    print(f"\n{name}: {seconds:.1f} core seconds, {megabytes:.0f} MB; goal: {GOALS[name]}")
