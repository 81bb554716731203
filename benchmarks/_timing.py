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
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import numpy as np
import psutil
import torch
from torch import cuda

Calls = Sequence[Callable[[], object]]  # the same call on different copies of its inputs, taken in turn
Sampler = Callable[[int], list[float]]  # so many rounds to their seconds
Times = dict[str, dict[str, float]]  # clock -> median, iqr, rounds
BUDGET = 0.03  # seconds that a clock spends on a rival; but at least FEWEST rounds
FEWEST, MOST = 10, 200
FLUSH, ROTATED = 2.0, 1.5  # times the L2 cache: what is written to empty it, and what inputs in turn amount to
MOST_SETS = 512  # small inputs: that many still amount to more than the cache
TURNS = 4  # in which the rivals of a case are measured one after the other
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

    def synchronize(self) -> None:
        """Waits until the device has done all that was asked of it."""

    def free(self) -> int:
        """Bytes of memory that nobody uses."""
        return psutil.virtual_memory().available

    def sets(self, size: int) -> int:
        """How many copies of inputs of `size` bytes to take in turn."""
        return 2

    def compare(
        self, rivals: Mapping[str, Calls], own_graphs: Collection[str] = ()
    ) -> tuple[dict[str, Times], dict[str, float]]:
        """Each rival's times, all in this process, in TURNS turns: what drifts meets all of them alike. Every other
        turn goes backwards. Then the first rival is measured once more: by clock, its median then over that
        before.

        own_graphs: rivals that replay CUDA graphs of their own, which no graph can hold: they have no `graph` clock.
        """
        estimates = {}
        for name, calls in rivals.items():
            for i in range(3):  # compiles, loads, allocates
                calls[i % len(calls)]()
            estimates[name] = float(np.median(self._call(calls, FEWEST)))
        times: dict[str, Times] = {name: {} for name in rivals}
        drift = {}
        for clock in self.clocks:
            names = [name for name in rivals if clock != "graph" or name not in own_graphs]
            samplers = {name: getattr(self, f"_{clock}_sampler")(rivals[name], estimates[name]) for name in names}
            seconds: dict[str, list[float]] = {name: [] for name in names}
            for turn in range(TURNS):
                for name in names[:: -1 if turn % 2 else 1]:
                    sample, count = samplers[name]
                    seconds[name] += sample(math.ceil(count / TURNS))
            sample, count = samplers[names[0]]
            again = sample(count)
            drift[clock] = round(float(np.median(again) / np.median(seconds[names[0]])), 4)
            for name in names:
                times[name][clock] = summary(seconds[name])
        return times, drift

    def copies(self, size: int) -> Calls:
        """Copies on the device that read and write `size` bytes in all."""
        sources = [torch.rand(max(size // 8, 1), device=self.device) for _ in range(self.sets(size // 2))]
        return [partial(torch.empty_like(s).copy_, s) for s in sources]

    def _call_sampler(self, calls: Calls, estimate: float) -> tuple[Sampler, int]:
        return partial(self._call, calls), rounds(estimate)

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
        self.device = torch.device("cuda", cuda.current_device())
        self.cache = cuda.get_device_properties(self.device).L2_cache_size
        self._pool = cuda.graph_pool_handle()
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

    def _events_sampler(self, calls: Calls, estimate: float) -> tuple[Sampler, int]:
        return partial(self._events, calls), rounds(estimate)

    def _graph_sampler(self, calls: Calls, estimate: float) -> tuple[Sampler, int]:
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
        # The graphs of all rivals share their memory: nobody reads what they leave, and never do two run at a time.
        with cuda.graph(graph, stream=stream, pool=self._pool):
            for i, call in enumerate(turns):
                kept[i % len(calls)] = call()
        kept.clear()
        graph.replay()

        def sample(count: int) -> list[float]:
            events = [(cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)) for _ in range(count)]
            for start, end in events:
                start.record()
                graph.replay()
                end.record()
            self.synchronize()
            return [start.elapsed_time(end) * 1e-3 / len(turns) for start, end in events]

        return sample, min(rounds(estimate * len(turns)), 50)
