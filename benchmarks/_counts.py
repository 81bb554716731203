"""What is counted, outside of any timing: eager kernels and their traffic, and the FLOP of an epoch's parts."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._operations import OPERATIONS, Case, Draw, size

NO_KERNEL = ("aten::promote_types", "aten::empty", "aten::empty_like", "aten::detach")
PEAK_SIDE = {"cpu": 1536, "cuda": 8192}  # of the square matrices whose product is the peak
PEAK_ROUNDS = 5


def touched(t: Tensor) -> int:
    """Bytes of memory behind a tensor: an expanded dimension is there once."""
    count = 1
    for length, stride in zip(t.shape, t.stride(), strict=True):
        count *= length if stride else 1
    return count * t.element_size()


class Kernels(TorchDispatchMode):
    """Counts ATen operations that are a kernel each, and the bytes of the tensors that they take and give."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view and function.name().partition(".")[0] not in NO_KERNEL:
            self.count += 1
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
            self.bytes += sum(map(touched, tensors))
        return result


def eager(operation: str, dtype: str) -> tuple[int, float]:
    """Kernels of eager PyTorch's expression of an operation, and their traffic over the least; K = 4, 16x128x128."""
    case = Case(operation, (16, 128, 128), 1, dtype, 4 if operation == "anchor_similarity" else 0)
    inputs = OPERATIONS[operation].draw(Draw(case, torch.device("cpu")))
    with Kernels() as counted:
        outputs = OPERATIONS[operation].drive(OPERATIONS[operation].plain)(*inputs)
    return counted.count, counted.bytes / size([*inputs, *outputs])


def flop(call: Callable[[], object]) -> int:
    """Of the products, convolutions and attentions of a call, backward included: two a multiplication and addition.

    Other operations (elementwise, norms, softmax) are not counted. An attention of a kind that PyTorch's counter does
    not know would be left out without a word, so it counts the products that attention is made of instead.
    """
    kernels = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with kernels, FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def peak(device: torch.device) -> float:
    """FLOP/s of a large float32 product on the device, as this process is set up: the best of a few."""
    side = PEAK_SIDE[device.type]
    a, b = (torch.ones(side, side, device=device) for _ in range(2))
    out = torch.empty_like(a)
    best = float("inf")
    for _ in range(PEAK_ROUNDS + 1):  # the first loads and allocates, and is the slowest
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
