"""What a call of an operation costs the host, beside the bare launches of its kernels: no GPU is needed.

    pytest benchmarks/test_host_time.py --benchmark-only

Triton launches for a GPU that is not there (_stub_driver.py), so a call is all of the host's work but the driver's:
checks, allocations, and what Triton does at a launch. Microseconds depend on the machine; the ratio to the bare
launches, measured in turn with the calls in the same process, hardly does. CPU tensors stand for CUDA's: PyTorch's
allocators take about as long, and what only they need is left out (a look at the coefficients' values), as is what only
CUDA tensors need (a look at which device is current, about 0.3 us).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import sdpo_kernels
import torch
from sdpo_kernels import _backend, _checks

from benchmarks._stub_driver import recorded, stub_gpu
from benchmarks._targets import HOST_RATIO

ARCHITECTURE = 90
PAIRS, SHAPE = 4, (4, 16, 16)  # small: the host's time does not depend on it, but a CPU's large allocations take long
CALLS, ROUNDS = 5, 3000  # calls and bare launches in turn, so that both meet the machine alike
TRIES = 5  # a machine with other work takes longer, never shorter

Call = Callable[[], Any]


def operations() -> dict[str, Call]:
    """Name to a call as the trainer makes it: coefficients are rows of a table, latents views of trajectories."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    stored = draw(PAIRS, 2, 3, *SHAPE).half()
    m, x, prev = draw(PAIRS, 2, *SHAPE).half(), stored[:, :, 0], stored[:, :, 1]
    pairs = (m, x, prev, draw(PAIRS, 5).abs() + 0.1, draw(PAIRS, 2), draw(PAIRS, 2), draw(PAIRS))
    flat = tuple(t[:, 0] for t in (m, x, prev))
    rows, old, advantages = pairs[3], draw(PAIRS), draw(PAIRS)
    table, seeds = rows[:1].expand(PAIRS, 5), torch.arange(PAIRS)
    whole = [t.contiguous() for t in flat[:2]]
    noise = draw(PAIRS, *SHAPE)
    clean = stored.flatten(0, 1)
    return {
        "ddim_step": lambda: sdpo_kernels.ddim_step(*whole, table, seeds=seeds, step=3),
        "ddim_step_noise_given": lambda: sdpo_kernels.ddim_step(*whole, table, noise=noise),
        "gaussian_log_prob": lambda: sdpo_kernels.gaussian_log_prob(*flat, rows),
        "sdpo_loss_and_grad": lambda: sdpo_kernels.sdpo_loss_and_grad(*pairs, clip_range=0.1),
        "ppo_clip_loss_and_grad": lambda: sdpo_kernels.ppo_clip_loss_and_grad(
            *flat, rows, old, advantages, clip_range=0.1
        ),
        "anchor_similarity": lambda: sdpo_kernels.anchor_similarity(clean),
    }


def values_unread(coefficients: torch.Tensor, *, stochastic: bool) -> None:
    """Stands for _checks.coefficient_values, which returns at once for CUDA tensors. (A mock would take longer.)"""


@contextmanager
def launches_of_cpu_tensors() -> Iterator[None]:
    """Within it CPU tensors go the way of CUDA tensors, as far as the driver."""
    with (
        stub_gpu(ARCHITECTURE),
        mock.patch.object(_backend, "INTERPRETED", True),  # else Triton is refused CPU tensors
        mock.patch.object(_checks, "coefficient_values", values_unread),
        sdpo_kernels.backend("triton"),
        torch.no_grad(),
    ):
        yield


def bare(call: Call) -> Call:
    """The launches of a call, with its arguments, and nothing else."""
    with recorded() as launches:
        call()
    calls = [
        (
            launch.kernel[launch.options["grid"]],
            launch.arguments,
            {k: v for k, v in launch.options.items() if k not in ("grid", "warmup")},
        )
        for launch in launches
    ]

    def again() -> None:
        for kernel, arguments, options in calls:
            kernel(*arguments, **options)

    again.launches = len(calls)  # type: ignore[attr-defined]
    return again


def seconds(call: Call) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) / CALLS


def measure(call: Call, rounds: int = ROUNDS) -> dict[str, float]:
    """Least microseconds of a call and of its bare launches, and their ratio: whatever disturbs only adds to them."""
    launches = bare(call)
    times = [(seconds(launches), seconds(call)) for _ in range(rounds)]
    bare_us, call_us = (min(column) * 1e6 for column in zip(*times, strict=True))
    return {
        "launches": launches.launches,
        "bare_us": round(bare_us, 2),
        "call_us": round(call_us, 2),
        "above_us": round(call_us - bare_us, 2),
        "ratio": round(call_us / bare_us, 3),
    }


@pytest.mark.parametrize("name", operations())
def test_host_time(benchmark, name):
    call = operations()[name]
    with launches_of_cpu_tensors():
        for _ in range(TRIES):
            found = measure(call)
            if found["ratio"] <= HOST_RATIO:
                break
        benchmark.pedantic(call, rounds=10, iterations=CALLS, warmup_rounds=1)
    benchmark.group = "host time"
    benchmark.extra_info |= {"host_time": name, "architecture": ARCHITECTURE, **found}
    print(f"\n{name}: {found}")
    assert found["ratio"] <= HOST_RATIO, found
