"""Triton kernels of the formulas in similarity.py: one read gives the Gram matrix of a trajectory's predictions.

The matrix units need at least 16 rows, and a few-step trajectory has fewer. So several sections of the latents are
stacked as rows, and the blocks of the product that pair a section with itself are summed.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdpo_kernels.transition_triton import OPTIONS, launch

MOST_STEPS = 128  # a Gram matrix of more does not fit in the registers
FLOOR = tl.constexpr(1e-12)  # below it a latent's norm counts as this, as in torch.nn.functional.normalize


@triton.jit
def gram_kernel(
    clean_ptr, gram_ptr, n_stride, k_stride,
    E: tl.constexpr, K: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, LENGTH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program per part of a sample: multiplies [ROWS, LENGTH] elements by their transpose, in blocks of BLOCK
    columns.

    Row r holds step r % STEPS of stretch r // STEPS; STEPS is K rounded up to a power of two.
    """
    n = (tl.program_id(0) // PARTS).to(tl.int64)
    part = tl.program_id(0) % PARTS
    row = tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    step = row % STEPS
    stretch = part * (ROWS // STEPS) + row // STEPS
    start = clean_ptr + n * n_stride + step.to(tl.int64) * k_stride
    gram = tl.zeros([ROWS, ROWS], dtype=tl.float32)
    for begin in range(0, LENGTH, BLOCK):
        offsets = stretch[:, None] * LENGTH + (begin + column)[None, :]
        inside = (step[:, None] < K) & (offsets < E)
        tile = tl.load(start[:, None] + offsets, mask=inside, other=0.0)
        gram = tl.dot(tile, tl.trans(tile), gram, input_precision="tf32x3")
    place = (tl.program_id(0).to(tl.int64) * ROWS + row[:, None]) * ROWS + row[None, :]
    tl.store(gram_ptr + place, gram)


@triton.jit
def cosines_kernel(
    gram_ptr, first_ptr, anchor_ptr, last_ptr, index_ptr,
    K: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program per sample: adds the parts' Gram matrices in order and computes the cosines and the anchor."""
    n = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, STEPS)[:, None]
    j = tl.arange(0, STEPS)[None, :]
    gram = tl.zeros([STEPS, STEPS], dtype=tl.float32)
    for part in range(PARTS):
        for stretch in tl.static_range(ROWS // STEPS):
            base = gram_ptr + ((n * PARTS + part) * ROWS + stretch * STEPS) * ROWS + stretch * STEPS
            gram += tl.load(base + i * ROWS + j)
    norm = tl.sqrt(tl.sum(tl.where(i == j, gram, 0.0), axis=1))
    norm = tl.where(norm < FLOOR, FLOOR, norm)
    step = tl.arange(0, STEPS)
    of_first = tl.sum(tl.where(step == 0, norm, 0.0), axis=0)
    of_last = tl.sum(tl.where(step == K - 1, norm, 0.0), axis=0)
    first = tl.sum(tl.where(j == 0, gram, 0.0), axis=1) / (norm * of_first)
    last = tl.sum(tl.where(j == K - 1, gram, 0.0), axis=1) / (norm * of_last)
    if K > 2:
        total = first + last
        total = tl.where(total != total, float("-inf"), total)  # NaN counts as least, as in torch.argmin
        total = tl.where((step >= 1) & (step <= K - 2), total, float("inf"))
        index = tl.min(tl.where(total == tl.min(total, axis=0), step, STEPS), axis=0)
    else:
        index = K - 1
    of_anchor = tl.sum(tl.where(step == index, norm, 0.0), axis=0)
    anchor = tl.sum(tl.where(j == index, gram, 0.0), axis=1) / (norm * of_anchor)
    tl.store(first_ptr + n * K + step, first, mask=step < K)
    tl.store(anchor_ptr + n * K + step, anchor, mask=step < K)
    tl.store(last_ptr + n * K + step, last, mask=step < K)
    tl.store(index_ptr + n, index)


@functools.cache
def shape(elements: int, steps: int, item: int) -> dict[str, int]:
    """Divides a sample of K steps with E elements of `item` bytes each; depends only on the sample's size."""
    width = triton.next_power_of_2(steps)
    rows = max(16, width)
    # A part's Gram matrix is written and read again: so that this is a tenth of its latents at most.
    length = max(1024, 32 * rows)
    return {
        "K": steps,
        "STEPS": width,
        "ROWS": rows,
        "LENGTH": length,
        "BLOCK": 64 if item == 2 else 32 if rows < 64 else 16,  # fp32 is multiplied in three parts, in more registers
        "PARTS": triton.cdiv(elements, length * (rows // width)),
        "num_warps": 4 if rows <= 64 else 8,
    }


def anchor_similarity(clean: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, steps = clean.shape[:2]
    if steps > MOST_STEPS:
        raise ValueError(f"predicted_clean has {steps} steps; backend='triton' takes {MOST_STEPS}, 'torch' any number")
    elements = clean.shape[2:].numel()
    s = shape(elements, steps, clean.element_size())
    gram = clean.new_empty(n, s["PARTS"], s["ROWS"], s["ROWS"], dtype=torch.float32)
    first, anchor, last = (gram.new_empty(n, steps) for _ in range(3))
    index = gram.new_empty(n, dtype=torch.int64)
    launch(
        gram_kernel, n * s["PARTS"], clean.device, clean, gram, clean.stride(0), clean.stride(1),
        E=elements, **s, **OPTIONS,
    )  # fmt: skip
    s = {name: size for name, size in s.items() if name not in ("LENGTH", "BLOCK")}
    launch(cosines_kernel, n, clean.device, gram, first, anchor, last, index, **s, **OPTIONS)
    return first, anchor, last, index
