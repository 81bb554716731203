"""Tables of what a record has beside the operations' speed: the host's time for a call, and an epoch's phases.

Made from the benchmarks' `extra_info` (docs/benchmarks.md). Imports no PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._targets import EAGER_KERNELS, HOST_RATIO
from sdpo_bench.analysis.tables.base import DASH, Table
from sdpo_bench.catalogue import METHODS

HOST_NUMBERS = ("launches", "bare_us", "call_us", "above_us", "ratio")
PHASES = ("sampling", "reward", "dense reward", "training", "optimiser", "decode")
PHASE_NUMBERS = ("seconds", "flop", "flop_per_s", "utilisation", "peak_flop_per_s")


def part_tables(infos: Iterable[Mapping[str, Any]], prefix: str, title: str) -> list[Table]:
    """The tables that a record has the numbers for. prefix: the beginning of their names; title: that of their
    titles."""
    infos = list(infos)
    host, phases = host_frame(infos), phase_frame(infos)
    found = [] if host.empty else [host_table(host, f"{prefix}_host_time", f"{title}: the host's time for a call")]
    if not phases.empty:
        found.append(phase_table(phases, f"{prefix}_phases", f"{title}: an epoch of the embedded model, by phase"))
    return found


def host_frame(infos: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A row per operation whose host time was measured."""
    found = {info["host_time"]: [info[column] for column in HOST_NUMBERS] for info in infos if "host_time" in info}
    rows = [(name, *found[name]) for name in sorted(found, key=list(EAGER_KERNELS).index)]
    return pd.DataFrame(rows, columns=["operation", *HOST_NUMBERS])


def host_table(rows: pd.DataFrame, name: str, title: str) -> Table:
    lines = [
        (
            row["operation"],
            str(row["launches"]),
            *(f"{row[column]:.1f}" for column in ("bare_us", "call_us", "above_us")),
            f"{row['ratio']:.2f}x",
            "met" if row["ratio"] <= HOST_RATIO else "missed",
        )
        for row in rows.to_dict("records")
    ]
    note = (
        "Least microseconds of the host; the driver executes nothing, so no GPU is needed. bare: the launches of the "
        f"operation's kernels alone; call: the operation. Target: a call takes at most {HOST_RATIO:.2f} times its bare "
        "launches."
    )
    header = ("operation", "launches", "bare", "call", "call - bare", "call / bare", "target")
    return Table(name, title, note, header, (("", tuple(lines)),), rows)


def phase_frame(infos: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A row per phase of an epoch, by K and method, in an epoch's order. A phase whose work is not counted as FLOP has
    no speed."""
    rows = []
    for info in (info for info in infos if "phase" in info):
        speed = (info["flop_per_s"], info["utilisation"]) if info["flop"] else (np.nan, np.nan)
        numbers = (info["seconds"], info["flop"], *speed, info["peak_flop_per_s"])
        rows.append((info["steps"], info["method"], info["phase"], info["variant"], *numbers))
    found = pd.DataFrame(rows, columns=["steps", "method", "phase", "variant", *PHASE_NUMBERS])
    methods = [entry.name for entry in METHODS]
    order = found.assign(method=found["method"].map(methods.index), phase=found["phase"].map(PHASES.index)).sort_values(
        ["steps", "method", "phase", "variant"]
    )
    return found.loc[order.index].reset_index(drop=True)


def phase_table(rows: pd.DataFrame, name: str, title: str) -> Table:
    """A block per method and K."""
    titles = {entry.name: entry.title for entry in METHODS}
    blocks = []
    for (steps, method), group in rows.groupby(["steps", "method"], sort=False):
        lines = [
            (
                f"{row['phase']}, {row['variant']}" if row["variant"] else row["phase"],
                f"{row['seconds']:.3g}",
                f"{row['flop'] / 1e9:.4g}" if row["flop"] else DASH,
                DASH if np.isnan(row["utilisation"]) else f"{row['flop_per_s'] / 1e9:.4g}",
                DASH if np.isnan(row["utilisation"]) else f"{row['utilisation']:.0%}",
            )
            for row in group.to_dict("records")
        ]
        blocks.append((f"{titles[str(method)]}, K = {steps}", tuple(lines)))
    note = (
        "Medians; FLOP of products, convolutions and attention, backward included. of peak: their speed over that of "
        f"a large float32 product in the same process, {rows['peak_flop_per_s'].iloc[0] / 1e9:.4g} GFLOP/s. Both "
        "kinds of reward include the decoding of the pictures. training: forward passes, losses and gradients; "
        "optimiser: clipping and AdamW's steps, in which no FLOP are counted."
    )
    return Table(name, title, note, ("phase", "seconds", "GFLOP", "GFLOP/s", "of peak"), tuple(blocks), rows)
