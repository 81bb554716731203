"""Triton kernels of the formulas in losses.py.

Where a sample is one tile, one program does a whole pair (or sample): both residuals stay in its registers between
the sum and the gradient, so 3 reads and 1 write an element are all the traffic, in one launch. Larger samples take
three: the tiles' sums, the loss of every pair, the gradient (which reads again).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdpo_kernels.losses import LOG_RATIO_BOUND
from sdpo_kernels.transition_triton import (
    aligned,
    elements,
    grad_factor,
    launch,
    log_prob,
    log_prob_grad,
    residual,
    sum_of_tiles,
    table,
    tile_sums,
    tiles,
)

BOUND = tl.constexpr(LOG_RATIO_BOUND)


@triton.jit
def clip(value, low, high):
    """NaN stays NaN, which tl.clamp, tl.minimum and tl.maximum may drop."""
    return tl.where(value > high, high, tl.where(value < low, low, value))


@triton.jit
def larger(first, second):
    """max(first, second) and its derivative by the first: 1, 0, or 1/2 where they are equal. NaN propagates."""
    greater = (first > second) | (first != first)
    of_first = tl.where(first > second, 1.0, tl.where(first == second, 0.5, 0.0))
    return tl.where(greater, first, second), of_first


@triton.jit
def sdpo(rho1, rho2, old_ptr, advantages_ptr, weight_ptr, pair, clip_range, advantage_clip):
    """losses.sdpo_reference for one pair: loss, clipped, and the slopes by both log-probs."""
    w = tl.load(weight_ptr + pair)
    d1 = rho1 - tl.load(old_ptr + 2 * pair)
    d2 = rho2 - tl.load(old_ptr + 2 * pair + 1)
    a1 = clip(tl.load(advantages_ptr + 2 * pair), -advantage_clip, advantage_clip)
    a2 = clip(tl.load(advantages_ptr + 2 * pair + 1), -advantage_clip, advantage_clip)
    target = a1 - a2
    u = w * (d1 - d2) - target
    c = w * (clip(d1, -clip_range, clip_range) - clip(d2, -clip_range, clip_range)) - target
    loss, gu = larger(u * u, c * c)
    through = gu * u
    near = (1.0 - gu) * c
    slope1 = 2.0 * w * (through + near * (tl.abs(d1) <= clip_range).to(tl.float32))
    slope2 = -2.0 * w * (through + near * (tl.abs(d2) <= clip_range).to(tl.float32))
    clipped = (tl.abs(d1) > clip_range) | (tl.abs(d2) > clip_range)
    return loss, clipped, slope1, slope2


@triton.jit
def ppo(rho, old_ptr, advantages_ptr, row, clip_range, advantage_clip):
    """losses.ppo_reference for one sample: loss, clipped, slope."""
    d = rho - tl.load(old_ptr + row)
    q = tl.exp(clip(d, -BOUND, BOUND))
    a = clip(tl.load(advantages_ptr + row), -advantage_clip, advantage_clip)
    clipped = (q < 1.0 - clip_range) | (q > 1.0 + clip_range)
    loss, gu = larger(-a * q, -a * clip(q, 1.0 - clip_range, 1.0 + clip_range))
    inside = 1.0 - clipped.to(tl.float32)
    slope = -a * q * (gu + (1.0 - gu) * inside) * (tl.abs(d) <= BOUND).to(tl.float32)
    return loss, clipped, slope


@triton.jit
def store_grad(pointer, row, factor, r, offsets, E: tl.constexpr):
    tl.store(pointer + row * E + offsets, (factor * r).to(pointer.dtype.element_ty), mask=offsets < E)


@triton.jit(do_not_specialize=["one"])
def sdpo_kernel(
    m_ptr, x_ptr, prev_ptr, coefficients_ptr, sums_ptr, old_ptr, advantages_ptr, weight_ptr,
    loss_ptr, log_prob_ptr, clipped_ptr, slope_ptr, grad_ptr, clip_range, advantage_clip, scale,
    m_outer, m_inner, x_outer, x_inner, prev_outer, prev_inner, coefficients_stride, one,
    E: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr,
    GRAD: tl.constexpr,
):  # fmt: skip
    """One program per pair. With several tiles it starts from their sums; with one tile from the latents, and with GRAD
    it writes the gradient instead of the slopes."""
    pair = tl.program_id(0).to(tl.int64)
    coefficients = coefficients_ptr + pair * coefficients_stride
    sigma = tl.load(coefficients + 4)
    if BLOCKS == 1:
        offsets = elements(0, one, BLOCK, VECTOR)
        first = residual(
            m_ptr + pair * m_outer, x_ptr + pair * x_outer, prev_ptr + pair * prev_outer, coefficients, offsets, E
        )
        total1 = tl.sum(first * first, axis=0)
        second = residual(m_ptr + pair * m_outer + m_inner, x_ptr + pair * x_outer + x_inner,
                          prev_ptr + pair * prev_outer + prev_inner, coefficients, offsets, E)  # fmt: skip
        total2 = tl.sum(second * second, axis=0)
    else:
        total1 = sum_of_tiles(sums_ptr, 2 * pair, BLOCKS, WIDTH)
        total2 = sum_of_tiles(sums_ptr, 2 * pair + 1, BLOCKS, WIDTH)
    rho1 = log_prob(total1, sigma, E)
    rho2 = log_prob(total2, sigma, E)
    loss, clipped, slope1, slope2 = sdpo(
        rho1, rho2, old_ptr, advantages_ptr, weight_ptr, pair, clip_range, advantage_clip
    )
    tl.store(loss_ptr + pair, loss)
    tl.store(clipped_ptr + pair, clipped)
    tl.store(log_prob_ptr + 2 * pair, rho1)
    tl.store(log_prob_ptr + 2 * pair + 1, rho2)
    if not GRAD:
        tl.store(slope_ptr + 2 * pair, slope1)
        tl.store(slope_ptr + 2 * pair + 1, slope2)
    else:  # of one tile
        store_grad(grad_ptr, 2 * pair, grad_factor(scale * slope1, coefficients, E), first, offsets, E)
        store_grad(grad_ptr, 2 * pair + 1, grad_factor(scale * slope2, coefficients, E), second, offsets, E)


@triton.jit(do_not_specialize=["one"])
def ppo_kernel(
    m_ptr, x_ptr, prev_ptr, coefficients_ptr, sums_ptr, old_ptr, advantages_ptr,
    loss_ptr, log_prob_ptr, clipped_ptr, slope_ptr, grad_ptr, clip_range, advantage_clip, scale,
    m_stride, x_stride, prev_stride, coefficients_stride, one,
    E: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr,
    GRAD: tl.constexpr,
):  # fmt: skip
    """One program per sample; otherwise like sdpo_kernel."""
    row = tl.program_id(0).to(tl.int64)
    coefficients = coefficients_ptr + row * coefficients_stride
    if BLOCKS == 1:
        offsets = elements(0, one, BLOCK, VECTOR)
        r = residual(
            m_ptr + row * m_stride, x_ptr + row * x_stride, prev_ptr + row * prev_stride, coefficients, offsets, E
        )
        total = tl.sum(r * r, axis=0)
    else:
        total = sum_of_tiles(sums_ptr, row, BLOCKS, WIDTH)
    rho = log_prob(total, tl.load(coefficients + 4), E)
    loss, clipped, slope = ppo(rho, old_ptr, advantages_ptr, row, clip_range, advantage_clip)
    tl.store(loss_ptr + row, loss)
    tl.store(clipped_ptr + row, clipped)
    tl.store(log_prob_ptr + row, rho)
    if not GRAD:
        tl.store(slope_ptr + row, slope)
    else:  # of one tile
        store_grad(grad_ptr, row, grad_factor(scale * slope, coefficients, E), r, offsets, E)


def run(kernel, tensors, scalars, per_loss, grad_scale: float | None):
    """Launches both losses. `per_loss` is the number of rows of one loss: 2 (a pair) or 1.

    Returns loss, log_prob, clipped, slope (None if the gradient is computed in the same launch) and the gradient (None
    without a `grad_scale`).
    """
    m, x, prev, coefficients, *vectors = tensors
    coefficients, lead = table(coefficients), per_loss
    vectors = [v.float().contiguous() for v in vectors]
    tiling = tiles(m.shape[lead:].numel())
    m, x, prev = aligned(m, lead, tiling), aligned(x, lead, tiling), aligned(prev, lead, tiling)
    single = tiling["BLOCKS"] == 1
    log_prob = torch.empty_like(vectors[0])
    loss = log_prob.new_empty(len(m))
    clipped = torch.empty_like(loss, dtype=torch.bool)
    want_here = grad_scale is not None and single
    grad = torch.empty_like(m, memory_format=torch.contiguous_format) if want_here else None
    slope = None if want_here else torch.empty_like(log_prob)
    sums = None if single else tile_sums(m, x, prev, coefficients, log_prob, tiling)
    places = (*m.stride()[:lead], *x.stride()[:lead], *prev.stride()[:lead])
    launch(
        kernel, len(m), m.device,
        m, x, prev, coefficients, sums, *vectors, loss, log_prob, clipped, slope, grad,
        *map(float, scalars), 1.0 if grad_scale is None else float(grad_scale), *places, coefficients.stride(0), 1,
        GRAD=want_here, **(tiling if single else tiling | {"num_warps": 1}),
    )  # fmt: skip
    if grad_scale is not None and slope is not None:
        grad = log_prob_grad(slope, m, x, prev, coefficients, grad_scale)
    return loss, log_prob, clipped, slope, grad


def sdpo_loss(*arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return run(sdpo_kernel, arguments[:-2], arguments[-2:], 2, None)[:4]


def sdpo_loss_and_grad(*arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, log_prob, clipped, _, grad = run(sdpo_kernel, arguments[:-3], arguments[-3:-1], 2, arguments[-1])
    return loss, log_prob, clipped, grad


def ppo_clip_loss(*arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return run(ppo_kernel, arguments[:-2], arguments[-2:], 1, None)[:4]


def ppo_clip_loss_and_grad(*arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, log_prob, clipped, _, grad = run(ppo_kernel, arguments[:-3], arguments[-3:-1], 1, arguments[-1])
    return loss, log_prob, clipped, grad
