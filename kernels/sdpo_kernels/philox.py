"""Counter-based normal noise: the numbers of a sample depend only on its seed, never on the batch.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and Box-Muller, with the
seed as the key and (block, step) as the counter; so a GPU kernel can draw the same numbers in registers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


def _mulhilo(m: int, x: Tensor) -> tuple[Tensor, Tensor]:
    # int64 multiplication wraps, which leaves all 64 bits of the unsigned product in place.
    product = x * m
    return (product >> 32) & _MASK, product & _MASK


def philox_4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32 on int64 tensors that hold uint32 values (broadcast against each other)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        hi0, lo0 = _mulhilo(_M0, c0)
        hi1, lo1 = _mulhilo(_M1, c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def normal(seeds: Tensor, shape: Sequence[int], step: int = 0) -> Tensor:
    """Standard normal noise, float32 [N, *shape], from int64 `seeds` [N] and the index of the denoising step.

    The noise of row i is a function of (seeds[i], step) only. Raises TypeError unless `seeds` is int64 [N].
    """
    if seeds.dtype != torch.int64 or seeds.ndim != 1:
        raise TypeError(f"seeds has dtype {seeds.dtype} and shape {tuple(seeds.shape)}; expected int64 [N]")
    size = math.prod(shape)
    block = torch.arange((size + 3) // 4, dtype=torch.int64, device=seeds.device)[None]
    zero = torch.zeros_like(block)
    key = ((seeds & _MASK)[:, None], ((seeds >> 32) & _MASK)[:, None])
    words = philox_4x32((block, zero + step, zero, zero), key)
    # (0, 1]: the log below stays finite.
    u = [((w >> 8).to(torch.float32) + 1.0) * (1.0 / (1 << 24)) for w in words]
    pairs = []
    for a, b in ((u[0], u[1]), (u[2], u[3])):
        radius = torch.sqrt(-2.0 * torch.log(a))
        pairs += [radius * torch.cos(2 * math.pi * b), radius * torch.sin(2 * math.pi * b)]
    return torch.stack(pairs, -1).flatten(1)[:, :size].reshape(len(seeds), *shape)
