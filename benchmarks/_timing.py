"""What a call takes: medians in microseconds, by up to three clocks.

- `call`: host clock around one call and the wait for it, from an idle device: its launches are wholly included.
- `events` (CUDA): events around a call, the L2 cache flushed before, as `triton.testing.do_bench` does. The flush is
  queued ahead, so launches count only where they keep the device waiting.
- `graph` (CUDA): replays of a CUDA graph of many calls, over so many inputs that they do not fit in the L2 cache:
  the device's work alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import psutil
import torch
from torch import cuda

Calls = Sequence[Callable[[], object]]  # the same call on different copies of its inputs, taken in turn
Times = dict[str, dict[str, float]]  # clock -> median, iqr, rounds
BUDGET = 0.03  # seconds that a clock spends on a rival; but at least FEWEST rounds
FEWEST, MOST = 10, 200
FLUSH, ROTATED = 2.0, 1.5  # times the L2 cache: what is written to empty it, and what inputs in turn amount to
MOST_SETS = 512  # small inputs: that many still amount to more than the cache
GRAPH = 2e-3  # seconds of work in a graph: against this its own launch is small


def rounds(seconds: float) -> int:
    """How often to repeat what takes this long."""
    return int(min(max(BUDGET / max(seconds, 1e-9), FEWEST), MOST))


def summary(seconds: Sequence[float]) -> dict[str, float]:
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)) * 1e6
    return {"median": round(float(median), 3), "iqr": round(float(high - low), 3), "rounds": len(seconds)}


class HostTimer:
    """Times calls on the CPU; what does not depend on the device is here."""

    clocks: tuple[str, ...] = ("call",)
    device = torch.device("cpu")
    backend = "torch"  # by name: where the kernels are missing that is an error, not another backend's time

    def __init__(self) -> None:
        self._copies: dict[int, Times] = {}

    def synchronize(self) -> None:
        """Waits until the device has done all that was asked of it."""

    def free(self) -> int:
        """Bytes of memory that nobody uses."""
        return psutil.virtual_memory().available

    def sets(self, size: int) -> int:
        """How many copies of inputs of `size` bytes to take in turn."""
        return 2

    def measure(self, calls: Calls) -> Times:
        for i in range(3):  # compiles, loads, allocates
            calls[i % len(calls)]()
        seconds = {"call": self._call(calls, FEWEST)}
        estimate = float(np.median(seconds["call"]))
        seconds = {clock: getattr(self, f"_{clock}")(calls, rounds(estimate)) for clock in self.clocks}
        return {clock: summary(values) for clock, values in seconds.items()}

    def copy(self, size: int) -> Times:
        """Of a copy on the device that reads and writes `size` bytes in all; measured once for each size."""
        if size not in self._copies:
            count = self.sets(size // 2)
            sources = [torch.rand(max(size // 8, 1), device=self.device) for _ in range(count)]
            self._copies[size] = self.measure([partial(torch.empty_like(s).copy_, s) for s in sources])
        return self._copies[size]

    def _call(self, calls: Calls, count: int) -> list[float]:
        seconds = []
        for i in range(count):
            self.synchronize()
            start = time.perf_counter()
            calls[i % len(calls)]()
            self.synchronize()
            seconds.append(time.perf_counter() - start)
        return seconds


class CudaTimer(HostTimer):
    """Times calls on the current CUDA device."""

    clocks = ("call", "events", "graph")
    backend = "triton"

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("cuda", cuda.current_device())
        self.cache = cuda.get_device_properties(self.device).L2_cache_size
        self._flush = torch.empty(int(FLUSH * self.cache), dtype=torch.uint8, device=self.device)

    def synchronize(self) -> None:
        cuda.synchronize()

    def free(self) -> int:
        cuda.empty_cache()
        return cuda.mem_get_info()[0]

    def sets(self, size: int) -> int:
        return min(math.ceil(ROTATED * self.cache / max(size, 1)), MOST_SETS)

    def _events(self, calls: Calls, count: int) -> list[float]:
        events = [(cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)) for _ in range(count)]
        for i, (start, end) in enumerate(events):
            self._flush.zero_()
            start.record()
            calls[i % len(calls)]()
            end.record()
        self.synchronize()
        return [start.elapsed_time(end) * 1e-3 for start, end in events]

    def _graph(self, calls: Calls, count: int) -> list[float]:
        # Calls in the graph: each input the same number of times, for about GRAPH seconds by the events.
        estimate = max(float(np.median(self._events(calls, FEWEST))), 1e-6)
        turns = [*calls] * min(max(round(GRAPH / (estimate * len(calls))), 1), 20)
        kept: list[object] = [None] * len(calls)  # results, so that each call writes to memory of its own
        stream = cuda.Stream()
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):  # what a call sets up for a stream must exist before the capture
            for i in range(3):
                calls[i % len(calls)]()
        cuda.current_stream().wait_stream(stream)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph, stream=stream):
            for i, call in enumerate(turns):
                kept[i % len(calls)] = call()
        graph.replay()
        events = [(cuda.Event(enable_timing=True), cuda.Event(enable_timing=True))
                  for _ in range(min(rounds(estimate * len(turns)), 50))]  # fmt: skip
        for start, end in events:
            start.record()
            graph.replay()
            end.record()
        self.synchronize()
        return [start.elapsed_time(end) * 1e-3 / len(turns) for start, end in events]
