"""Runs of several processes, as `accelerate launch` starts them, in tests."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sdpo_bench.distributed import ProcessGroup, join
from sdpo_bench.records.reader import load_run


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


def comparable(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, torch.Tensor]]:
    record = load_run(folder)
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in record.train]
    weights = folder / "adapter" if record.config["finetune"] == "lora" else folder / "model" / "unet"
    return rows, record.eval, load_file(next(weights.glob("*.safetensors")))


def same(folder: Path, other: Path) -> None:
    """Two runs of two epochs, by different numbers of processes, differ only by rounding."""
    (rows, evaluations, weights), (rows2, evaluations2, weights2) = comparable(folder), comparable(other)
    assert [row["epoch"] for row in rows] == [1, 2]
    for row, row2 in zip(rows, rows2, strict=True):
        assert row.keys() == row2.keys()
        assert all(value == pytest.approx(row2[key], rel=2e-3, abs=1e-5) for key, value in row.items())
    assert evaluations[0]["values"] == evaluations2[0]["values"], "of the pretrained model"
    for row, row2 in zip(evaluations, evaluations2, strict=True):
        assert (row["epoch"], row["reward"], row["steps"]) == (row2["epoch"], row2["reward"], row2["steps"])
        for split, prompts in row["values"].items():
            assert list(prompts) == list(row2["values"][split])
            for prompt, values in prompts.items():
                near = 5e-3 if row["reward"] == "jpeg_compressibility" else 1e-4  # JPEG's sizes are whole bytes
                assert values == pytest.approx(row2["values"][split][prompt], abs=near)
    assert all((weights[name] - weights2[name]).abs().max() < 1e-6 for name in weights)
