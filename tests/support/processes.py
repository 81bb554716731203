"""Runs of several processes, as `accelerate launch` starts them, in tests."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

from sdpo_bench.distributed import ProcessGroup, join


def launch(size: int, function: Callable[..., Any], *arguments: Any) -> list[BaseProcess]:
    """Starts function(ranks, *arguments) in `size` processes. Forked: new interpreters would import for longer than
    the function takes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    processes: list[BaseProcess] = []
    for rank in range(size):
        process = fork.Process(target=_member, args=(rank, size, port, function, arguments))
        process.start()
        processes.append(process)
    return processes


def _member(rank: int, size: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    ranks: ProcessGroup = join("cpu")
    assert (ranks.rank, ranks.size) == (rank, size)
    function(ranks, *arguments)
    ranks.close()


def run(size: int, function: Callable[..., Any], *arguments: Any) -> list[int | None]:
    """Exit codes of function(ranks, *arguments) in `size` processes; one that hangs is ended after 100 s."""
    processes = launch(size, function, *arguments)
    for process in processes:
        process.join(100)
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, "processes wait for each other"
    return [process.exitcode for process in processes]
