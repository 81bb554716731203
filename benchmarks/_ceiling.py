"""A Triton kernel that does nothing but move memory: it reads three tensors and writes their sum. What it reaches is
the ceiling of an operation that reads and writes as many bytes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # elements of a program: 8 warps of 16 to a thread


@triton.jit
def _move(a, b, c, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    total = tl.load(a + at, inside) + tl.load(b + at, inside) + tl.load(c + at, inside)
    tl.store(out + at, total, inside)


def move(a: Tensor, b: Tensor, c: Tensor, out: Tensor) -> Tensor:
    """out = a + b + c; contiguous, of one shape and dtype."""
    _move[(triton.cdiv(out.numel(), BLOCK),)](a, b, c, out, out.numel(), BLOCK=BLOCK, num_warps=8)
    return out


def ceilings(size: int, dtype: torch.dtype, sets: int, device: torch.device) -> list[Callable[[], Tensor]]:
    """Calls that move `size` bytes each (within 4 elements), on `sets` tensors in turn."""
    n = max(size // (4 * dtype.itemsize), 1)

    def call() -> Callable[[], Tensor]:
        a, b, c = (torch.rand(n, device=device).to(dtype) for _ in range(3))
        out = torch.empty_like(a)
        return lambda: move(a, b, c, out)

    return [call() for _ in range(sets)]
