"""The library's operations against PyTorch's own, against torch.compile and against a copy of the same bytes.

    pytest benchmarks --benchmark-only                                # what this machine can measure
    pytest benchmarks/test_kernels.py --benchmark-only --kernel-matrix full

On a GPU the operations are the Triton kernels. On a CPU they are the library's PyTorch path at a few small sizes:
those times say nothing about kernels, and every output says so. Each case is compared with float64 first; where it
is wrong, nothing is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from benchmarks._operations import OPERATIONS, Case, Draw, check, forward, poisoned, size
from benchmarks._timing import CudaTimer, HostTimer
from benchmarks.kernel_results import CPU_NOTE, rates
from sdpo_bench.records.provenance import device_name

try:
    from benchmarks._ceiling import ceilings
except ImportError:  # Triton exists for Linux only; there is no GPU to measure then
    ceilings = None

SMALL, MIDDLE, LARGE = (4, 64, 64), (4, 128, 128), (16, 128, 128)
PAIRS = (1, 8, 32, 128)
SHARE = 0.4  # of the free memory: what a case may take
TEMPORARIES = 6  # float32 latents that the plain expression holds at a time, roughly


def cases(matrix: str) -> list[Case]:
    """small: seconds on a CPU. core: all regimes, minutes on a GPU. full: every combination; compiling takes long."""
    dtypes = ("float16", "bfloat16", "float32")
    if matrix == "small":
        sizes = [(SMALL, pairs, dtype) for dtype in ("float16", "float32") for pairs in (1, 8)]
    elif matrix == "core":
        sizes = [(SMALL, pairs, dtype) for dtype in dtypes for pairs in PAIRS]
        sizes += [(shape, pairs, dtype) for shape in (MIDDLE, LARGE) for dtype in dtypes[::2] for pairs in (8, 128)]
    else:
        sizes = [(shape, pairs, dtype) for shape in (SMALL, MIDDLE, LARGE) for dtype in dtypes for pairs in PAIRS]
    found = [Case(name, *at) for name in OPERATIONS if name != "anchor_similarity" for at in sizes]
    for steps in (4, 20) if matrix == "small" else (4, 20, 50):
        few = matrix == "core" and steps > 4
        chosen = [at for at in sizes if at[0] == SMALL and at[1] in (8, 128) and at[2] != "bfloat16"] if few else sizes
        found += [Case("anchor_similarity", *at, steps) for at in chosen]
    return found


def extremes(found: list[Case]) -> set[Case]:
    """Of each operation (and K) the smallest and the largest case in float16: compiling takes most of the time."""
    chosen = set()
    for key in {(case.operation, case.steps) for case in found}:
        half = [case for case in found if (case.operation, case.steps) == key and case.dtype == "float16"]
        chosen |= {min(half, key=lambda case: case.elements), max(half, key=lambda case: case.elements)}
    return chosen


def pytest_generate_tests(metafunc):
    matrix = metafunc.config.getoption("kernel_matrix", "auto")
    if matrix == "auto":
        matrix = "core" if torch.cuda.is_available() else "small"
    found = cases(matrix)
    few = extremes(found) if metafunc.config.getoption("kernel_compile", "all") == "extremes" else found
    metafunc.parametrize(("case", "compile_too"), [(case, case in few) for case in found], ids=[*map(str, found)])


@pytest.fixture(scope="module")
def timer():
    return CudaTimer() if torch.cuda.is_available() else HostTimer()


def compiled(expression, mode=None):
    """Of fixed sizes: the best that torch.compile does for this case, by its default or another mode."""
    return torch.compile(expression, fullgraph=True, dynamic=False, mode=mode)


def stepping(call):
    """Of a rival that replays CUDA graphs of its own: its last outputs may be overwritten."""

    def stepped(*inputs):
        torch.compiler.cudagraph_mark_step_begin()
        return call(*inputs)

    return stepped


def peers(operation, on_gpu: bool, compile_too: bool) -> dict[str, Callable]:
    """The rivals by name, ours not among them."""
    found = {"eager": operation.drive(operation.plain)}
    found |= {name: forward(call) for name, call in operation.peers.items()}
    if on_gpu and compile_too:
        torch._dynamo.reset()  # forgets the last case's
        found["compile"] = operation.drive(compiled(operation.plain))
        found["autotune"] = operation.drive(compiled(operation.plain, "max-autotune-no-cudagraphs"))
        found["cudagraphs"] = stepping(operation.drive(compiled(operation.plain, "reduce-overhead")))
        if "closed" in operation.peers:
            found["closed_compile"] = forward(compiled(operation.peers["closed"]))
    return found


def guard(case: Case, timer: HostTimer) -> None:
    """Skips what would need more than its share of the memory that is free."""
    latents = case.elements * getattr(torch, case.dtype).itemsize * (1 if case.steps else 4)
    # Three times: the operation's own, the copy's, the ceiling's.
    need = 3 * latents * timer.sets(latents) + TEMPORARIES * case.elements * 4
    free = timer.free()
    if need > SHARE * free:
        pytest.skip(f"needs about {need / 1e9:.1f} GB, more than {SHARE:.0%} of the {free / 1e9:.1f} GB that are free")


def test_kernel(benchmark, case, compile_too, timer):
    guard(case, timer)
    operation = OPERATIONS[case.operation]
    on_gpu = isinstance(timer, CudaTimer)
    rivals = {"ours": partial(operation.ours, backend=timer.backend), **peers(operation, on_gpu, compile_too)}

    inputs = operation.draw(Draw(case, timer.device))
    with poisoned():
        outputs = rivals["ours"](*inputs)
    errors = check(case, inputs, outputs)
    moved = size([*inputs, *outputs])
    del outputs
    for name in rivals.keys() - {"ours"}:
        check(case, inputs, rivals[name](*inputs), rival=True)

    sets = [inputs, *([t.clone() for t in inputs] for _ in range(timer.sets(size(inputs)) - 1))]
    calls = {name: [partial(call, *each) for each in sets] for name, call in rivals.items()}
    calls["copy"] = timer.copies(moved)
    if on_gpu:
        calls["ceiling"] = ceilings(moved, getattr(torch, case.dtype), timer.sets(moved), timer.device)
    times, drift = timer.compare(calls, own_graphs={"cudagraphs"})
    benchmark.group = case.operation
    benchmark.extra_info |= {
        "what": "kernel" if on_gpu else CPU_NOTE,
        **case._asdict(),
        "backend": timer.backend,
        "device": device_name(timer.device),
        "bytes": moved,
        "input_sets": len(sets),
        "errors": {name: float(f"{error:.3g}") for name, error in errors.items()},
        "us": {
            clock: {name: clocks[clock] for name, clocks in times.items() if clock in clocks} for clock in timer.clocks
        },
        "drift": drift,
    }
    benchmark.extra_info |= rates(benchmark.extra_info)

    def synchronised():
        rivals["ours"](*inputs)
        timer.synchronize()

    benchmark.pedantic(synchronised, rounds=10, warmup_rounds=1)
