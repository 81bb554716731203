"""An epoch's sampling, rewards and training: the suite's loop against the official one's algorithm, on SD-Turbo's
architecture with random weights.

    pytest benchmarks/test_training_step.py --benchmark-only

Both run in one process, on the same weights. On a CPU the architecture is a tiny one of the same classes: it shows
that the command works, and says nothing about SD-Turbo; every output says so. First both loops must give the same
latents, log-probs, rewards, losses and gradients; where they do not, the record and the tables say so beside the times.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import sdpo_kernels
import torch

from benchmarks._sd_turbo import SD_TURBO, TINY, cast, fast, flop, fused, materialised, peak
from benchmarks._training_step import PARTS, Bench, Result, agreement
from benchmarks.kernel_results import STEP_CPU_NOTE, STEP_NOTE
from sdpo_bench.policies.precision import use_full_float32
from sdpo_bench.records.provenance import device_name, float32_precision

ON_GPU = torch.cuda.is_available()
ROUNDS = 3 if ON_GPU else 2
PAIRS = 8 if ON_GPU else 4


class Variant(NamedTuple):
    """A loop and its settings. rows: latents in a forward pass of ours, pairs in a micro-batch of the official loop.
    fused: the official loop with our attention and layout. backend: of our loss and sampler, where it is not the
    device's own. again: measured a second time, to see what changed meanwhile."""

    loop: str
    rows: int
    dtype: str
    compiled: bool = False
    fused: bool = False
    backend: str = "auto"
    again: bool = False

    def __str__(self) -> str:
        marks = {
            "compile": self.compiled,
            "fused": self.fused,
            self.backend: self.backend != "auto",
            "again": self.again,
        }
        return "-".join([f"{self.loop}-{self.rows}-{self.dtype}", *(mark for mark, there in marks.items() if there)])


def variants(on_gpu: bool) -> list[Variant]:
    """The official loop at its micro-batches of 1 and 2 pairs and at all pairs, as many as our largest forward has,
    also with our attention and layout: what batching and what fused attention give. Ours at several sizes, and with
    the operations in PyTorch: what the kernels give. In turns, and the first again at the end: a device gets warm."""
    dtype, pairs = ("float16", 8) if on_gpu else ("float32", 4)
    official = [Variant("official", rows, dtype) for rows in (1, 2, pairs)]
    official.append(Variant("official", pairs, dtype, fused=True))
    most = 2 * pairs
    ours = [Variant("ours", rows, dtype) for rows in ((2, 4, 8, most) if on_gpu else (2, most))]
    found = [variant for turn in itertools.zip_longest(official, ours) for variant in turn if variant is not None]
    found.append(Variant("ours", most, "bfloat16"))
    if on_gpu:  # on a CPU that backend is the one there is, and compiling takes minutes and says nothing
        found.append(Variant("ours", most, dtype, backend="torch"))
        found.append(Variant("ours", most, dtype, compiled=True))
    return [*found, official[0]._replace(again=True)]


@pytest.fixture(scope="module")
def bench():
    """What both loops run on; how far they agree is recorded with every variant."""
    device = torch.device("cuda" if ON_GPU else "cpu")
    agreed = agreement(device)
    for failure in agreed.failures:
        warnings.warn(f"the loops disagree: {failure}", stacklevel=1)
    made = Bench(SD_TURBO if ON_GPU else TINY, device, torch.float16 if ON_GPU else torch.float32, PAIRS)
    made.agreement = agreed
    return made


@contextlib.contextmanager
def precision_of(loop: str) -> Iterator[dict[str, str] | None]:
    """Ours runs as `train` does, without TF32; the official loop takes it for products, the LoRA's being in float32.
    Gives what is set, None on a CPU."""
    if not ON_GPU:
        yield None
        return
    torch.backends.cuda.matmul.allow_tf32 = loop == "official"
    try:
        yield float32_precision()
    finally:
        use_full_float32()


@pytest.mark.parametrize("variant", variants(ON_GPU), ids=str)
def test_training_step(benchmark, bench, variant):
    bench.reset()
    cast(bench.pipeline, getattr(torch, variant.dtype))
    results: list[Result] = []
    epochs = itertools.count(1)
    if variant.loop == "ours":
        bench.set_rows(variant.rows)
        manner, epoch, on_policy = fast(bench.pipeline, variant.compiled), bench.ours_epoch, bench.on_policy
    else:
        loop = bench.official(variant.rows)
        manner = fused(bench.pipeline) if variant.fused else materialised(bench.pipeline)
        epoch, on_policy = partial(bench.official_epoch, loop), partial(bench.official_on_policy, loop)
    try:
        with manner, sdpo_kernels.backend(variant.backend), precision_of(variant.loop) as float32:
            log_ratio = on_policy()
            benchmark.pedantic(lambda: results.append(epoch(next(epochs))), rounds=ROUNDS, warmup_rounds=1)
    except torch.OutOfMemoryError:
        bench.reset()
        pytest.skip("the device's memory is too small for it")
    benchmark.group = "training step"
    benchmark.extra_info |= describe(bench, variant, results[-ROUNDS:], log_ratio) | {"float32": float32}


def describe(bench: Bench, variant: Variant, results: list[Result], log_ratio: float) -> dict[str, object]:
    """What the record holds of a variant: docs/benchmarks.md says what each key is."""
    config, device = bench.config, device_name(bench.device)
    last = results[-1]
    seconds = {part: float(np.median([r.seconds[part] for r in results])) for part in PARTS}
    seconds["all"] = float(np.median([sum(r.seconds.values()) for r in results]))
    work = bench.flop(last)
    work["all"] = sum(work.values())
    bench.seconds.setdefault(str(variant), seconds["all"])
    before = bench.seconds.get(str(variant._replace(again=False))) if variant.again else None
    limit = peak(device) if bench.device.type == "cuda" and variant.dtype != "float32" else None
    memory = {part: max(r.memory[part] for r in results) for part in PARTS} if last.memory else None
    if memory:
        memory["all"] = max(memory.values())
    return {
        "what": STEP_NOTE if bench.architecture is SD_TURBO else STEP_CPU_NOTE,
        "training_step": variant._asdict(),
        "architecture": bench.architecture.name,
        "weights": bench.architecture.weights,
        "device": device,
        "pairs": config.pairs,
        "steps": config.steps,
        "pairs_per_update": config.pairs_per_update,
        "reward": config.reward,
        "agreement": {
            name: {loop: rounded(error) for loop, error in errors.items()}
            for name, errors in bench.agreement.errors.items()
        },
        "disagreement": bench.agreement.failures,
        "rounds": len(results),
        "seconds": {part: rounded(value) for part, value in seconds.items()},
        "pairs_per_s": {part: rounded(config.pairs / value) for part, value in seconds.items()},
        "forwards": last.forwards,
        "trained": last.trained,
        "pictures": last.pictures,
        "sample_flop": flop(bench.architecture)._asdict(),
        "flop": work,
        "peak_flop_per_s": limit,
        "utilisation": {part: rounded(work[part] / seconds[part] / limit) for part in work} if limit else None,
        "memory_bytes": memory,
        "drift": before and rounded(seconds["all"] / before),
        "log_ratio": rounded(log_ratio),
        "clip_range": rounded(bench.trainer.clips["clip_range"]),
    }


def rounded(value: float) -> float:
    return float(f"{value:.4g}")
