"""The one list of targets that the operations' speeds are held against: per operation and clock, derived from counts.

What was counted stands here as tables; tests/benchmarks/test_targets.py counts the eager kernels and their traffic
anew, and holds docs/kernels.md against what follows from them. What is assumed of an H100 has names of its own. Imports
no PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd

SINGLE = 16_384  # elements of a sample up to which it is one tile: transition_triton.py
FEW_PAIRS = 8

# Of eager PyTorch's expression, K = 4, PyTorch 2.13: kernels, and traffic (at 16x128x128) over the least.
EAGER_KERNELS = {
    "ddim_step": {"fp16": 24, "fp32": 22},
    "ddim_step_noise_given": {"fp16": 23, "fp32": 21},
    "gaussian_log_prob": {"fp16": 13, "fp32": 13},
    "sdpo_loss_and_grad": {"fp16": 75, "fp32": 74},
    "ppo_clip_loss_and_grad": {"fp16": 57, "fp32": 56},
    "anchor_similarity": {"fp16": 39, "fp32": 38},
}
EAGER_TRAFFIC = {
    "ddim_step": {"fp16": 20.2, "fp32": 10.2},
    "ddim_step_noise_given": {"fp16": 15.6, "fp32": 8.0},
    "gaussian_log_prob": {"fp16": 13.0, "fp32": 7.0},
    "sdpo_loss_and_grad": {"fp16": 18.5, "fp32": 9.25},
    "ppo_clip_loss_and_grad": {"fp16": 18.5, "fp32": 9.25},
    "anchor_similarity": {"fp16": 56.5, "fp32": 26.7},
}
# Microseconds of the host for a call of ours: measured without a GPU by test_host_time.py (docs/kernels.md).
HOST_US = {
    "ddim_step": 21.0,
    "ddim_step_noise_given": 22.0,
    "gaussian_log_prob": 20.0,
    "sdpo_loss_and_grad": 33.0,
    "ppo_clip_loss_and_grad": 30.0,
    "anchor_similarity": 26.0,
}
# A call's host time over its bare launches: at most 25 us above one, on a core on which that takes 11 us.
HOST_RATIO = 1 + 25 / 11
# Instructions of a thread for 16 elements, fp16, one tile: counted in the compiled code (docs/kernels.md).
INSTRUCTIONS = {
    "ddim_step": 980,
    "ddim_step_noise_given": 460,
    "gaussian_log_prob": 367,
    "sdpo_loss_and_grad": 747,
    "ppo_clip_loss_and_grad": 471,
}
TWICE = {"sdpo_loss_and_grad": 7 / 4, "ppo_clip_loss_and_grad": 7 / 4}  # transfers over the least, in many tiles

# Assumed of an H100 and its host.
HOST_US_PER_KERNEL = 5.0  # eager PyTorch's launch
SMALL_KERNEL_US = 2.0  # the device's least time for a kernel
CLOCK_MHZ = 1750.0
CYCLES = 8  # of a multiprocessor that issues 4 instructions a cycle, for one instruction of 32 warps
# Set beforehand, not derived.
COPY = 1.15  # times the copy's time, from LARGE bytes on, for each byte that must move
LARGE = 64e6
COMPILE_SMALL, COMPILE_LARGE = 2.0, 1.6


def down(value: float) -> float:
    """To two digits, never more than was derived."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.floor(value / step + 1e-9) * step, 6)


def up(value: float) -> float:
    """To two digits after the point, never less than was derived."""
    return math.ceil(value * 100 - 1e-9) / 100


def small_us(operation: str) -> float | None:
    """The device's microseconds for ours at 4x64x64, a program per sample or pair: its own time and the instructions'.
    None where the instructions were not counted."""
    count = INSTRUCTIONS.get(operation)
    return None if count is None else SMALL_KERNEL_US + count * CYCLES / CLOCK_MHZ


@dataclass(frozen=True)
class Target:
    """The least speed-up over a rival (or, of the copy, the most time relative to it), by one clock, in an operation's
    cases of a regime; `dtypes` and `inside` choose them."""

    regime: str
    clock: str
    operation: str
    rival: str
    bound: float
    dtypes: tuple[str, ...]
    inside: Callable[[pd.DataFrame], pd.Series]

    @property
    def text(self) -> str:
        return f"≤ {self.bound:g}x the copy's time" if self.rival == "copy" else f"≥ {self.bound:g}x {self.rival}"

    def cases(self, rows: pd.DataFrame) -> pd.DataFrame:
        mine = (rows["clock"] == self.clock) & (rows["operation"] == self.operation) & rows["dtype"].isin(self.dtypes)
        return rows[mine & self.inside(rows)]

    def value(self, cases: pd.DataFrame) -> float:
        """Of the worst case; NaN where nothing was measured."""
        ratio = cases["ours_us"] / cases["copy_us"] if self.rival == "copy" else cases[f"speedup_{self.rival}"]
        return float(ratio.max() if self.rival == "copy" else ratio.min())

    def met(self, value: float) -> bool:
        return value <= self.bound if self.rival == "copy" else value >= self.bound


def small(rows: pd.DataFrame) -> pd.Series:
    return (rows["shape"] == "4x64x64") & (rows["pairs"] <= FEW_PAIRS)


def one_tile(rows: pd.DataFrame) -> pd.Series:
    return (rows["bytes"] >= LARGE) & (rows["elements"] <= SINGLE)


def many_tiles(rows: pd.DataFrame) -> pd.Series:
    return (rows["bytes"] >= LARGE) & (rows["elements"] > SINGLE)


def large(rows: pd.DataFrame) -> pd.Series:
    return rows["bytes"] >= LARGE


SMALL = "4x64x64, 1 to 8 pairs"
FROM = "64 MB of least traffic and more"
ALL_DTYPES = ("fp16", "bf16", "fp32")
WIDTHS = {"fp16": ("fp16", "bf16"), "fp32": ("fp32",)}  # counted for: held against


def targets() -> Iterator[Target]:
    for name, kernels in EAGER_KERNELS.items():
        fewest = min(kernels.values())
        if name in HOST_US:
            bound = down(fewest * HOST_US_PER_KERNEL / HOST_US[name])
            yield Target(SMALL, "call", name, "eager", bound, ALL_DTYPES, small)
        if (us := small_us(name)) is not None:
            yield Target(SMALL, "graph", name, "eager", down(fewest * SMALL_KERNEL_US / us), ALL_DTYPES, small)
            yield Target(SMALL, "graph", name, "copy", up(us / SMALL_KERNEL_US), ALL_DTYPES, small)
        yield Target(SMALL, "graph", name, "compile", COMPILE_SMALL, ALL_DTYPES, small)
        kinds = [(FROM, 1.0, large)]
        if name in TWICE:
            kinds = [(f"{FROM}, one tile", 1.0, one_tile), (f"{FROM}, read twice", TWICE[name], many_tiles)]
        for regime, transfers, inside in kinds:
            for width, dtypes in WIDTHS.items():
                bound = down(EAGER_TRAFFIC[name][width] / (COPY * transfers))
                yield Target(regime, "graph", name, "eager", bound, dtypes, inside)
            yield Target(regime, "graph", name, "compile", COMPILE_LARGE, ALL_DTYPES, inside)
            yield Target(regime, "graph", name, "copy", up(COPY * transfers), ALL_DTYPES, inside)


TARGETS = tuple(targets())


def markdown() -> str:
    """The list as docs/kernels.md has it: a row for each operation and regime."""
    lines = ["| | regime | clock | eager | torch.compile | the copy's time |", "|---|---|---|---|---|---|"]
    rows: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for t in TARGETS:
        cells = rows.setdefault((t.operation, t.regime, t.clock), {})
        cells.setdefault(t.rival, []).append(f"{t.bound:g}")
    for (operation, regime, clock), cells in rows.items():
        eager, compiled = " / ".join(cells.get("eager", ["–"])), cells.get("compile", ["–"])[0]
        lines.append(f"| `{operation}` | {regime} | `{clock}` | {eager} | {compiled} | {cells.get('copy', ['–'])[0]} |")
    return "\n".join(lines)
