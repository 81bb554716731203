"""Triton kernels of the formulas in transition.py.

A table that depends only on the number of elements divides a sample into tiles. So a row's result is the same in any
batch, and the step's log-prob equals that of the losses to the bit, because they sum in the same order. Up to SINGLE
elements a sample is one tile, and one kernel finishes the log-prob. Above that, every tile stores its sum, and a
second, tiny kernel adds the sums in order. There are no atomics and no autotuning.
"""

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdpo_kernels.philox_triton import normal

SINGLE = 16384  # 4 x 64 x 64: two such tiles of residuals still fit in the registers of one multiprocessor
TILE = 2048
PER_THREAD = 16  # elements; two to four 16-byte accesses per tensor
HALF_LOG_2PI = tl.constexpr(0.5 * math.log(2 * math.pi))

# The compiler may not fuse multiplications and additions as it likes, differently in two kernels: where the formula
# wants a fused one, it says so.
OPTIONS = {"enable_fp_fusion": False}


@functools.cache  # Triton's helpers take longer than a launch
def tiles(elements: int) -> dict[str, int]:
    """Divides E elements of a sample into BLOCKS tiles of BLOCK elements, for programs of `num_warps` warps.

    WIDTH is BLOCKS rounded up to a power of two. VECTOR: all threads access 16 bytes at a time, in all kernels, or
    one element at a time. The compiler's own choice would differ between kernels, and so would the order of sums.
    """
    block = max(128, triton.next_power_of_2(elements)) if elements <= SINGLE else TILE
    blocks = triton.cdiv(elements, block)
    width, warps = triton.next_power_of_2(blocks), max(1, block // (32 * PER_THREAD))
    sizes = {"E": elements, "BLOCK": block, "BLOCKS": blocks, "WIDTH": width, "VECTOR": elements % 16 == 0}
    return sizes | {"num_warps": warps} | OPTIONS


def aligned(t: Tensor, lead: int, tiling: dict[str, int]) -> Tensor:
    """Returns `t`, or a copy if its samples could not be read 16 bytes at a time although their size allows it."""
    places = t.stride()
    if not tiling["VECTOR"] or (t.data_ptr() % 16 == 0 and places[0] % 16 == 0 and (lead == 1 or places[1] % 16 == 0)):
        return t
    return t.clone(memory_format=torch.contiguous_format)


def strides(t: Tensor, lead: int) -> tuple[int, int]:
    """Strides of the leading dimensions: (sample, 0) of [N, ...], (pair, sample in the pair) of [P, 2, ...]."""
    return t.stride(0), t.stride(1) if lead == 2 else 0


# Pieces


@triton.jit
def place(program, BLOCKS: tl.constexpr):
    """Row (int64: offsets can pass 2^31) and tile of a program; a row's tiles are neighbours."""
    return (program // BLOCKS).to(tl.int64), program % BLOCKS


@triton.jit
def elements(tile, one, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """Offsets of a tile's elements. They are multiplied by a 1 that the compiler cannot see, so that it does not merge
    accesses."""
    offsets = tl.arange(0, BLOCK)
    if not VECTOR:
        offsets *= one
    return tile * BLOCK + offsets


@triton.jit
def row_start(row, outer, inner, GROUP: tl.constexpr):
    """The start of sample `row`: groups of GROUP samples are `outer` apart, the samples of a group `inner` apart."""
    return (row // GROUP) * outer + (row % GROUP) * inner


@triton.jit
def load(pointer, offsets, E: tl.constexpr):
    return tl.load(pointer + offsets, mask=offsets < E, other=0.0).to(tl.float32)


@triton.jit
def residual(m_ptr, x_ptr, prev_ptr, coefficients, offsets, E: tl.constexpr):
    """r = prev - (a x + b m); 0 beyond the sample's end, where all three are loaded as 0."""
    a = tl.load(coefficients)
    b = tl.load(coefficients + 1)
    m = load(m_ptr, offsets, E)
    x = load(x_ptr, offsets, E)
    return load(prev_ptr, offsets, E) - tl.fma(b, m, a * x)


@triton.jit
def log_prob(total, sigma, E: tl.constexpr):
    """rho of a sample whose squared residuals have the sum `total`."""
    return tl.div_rn(-total, 2.0 * E * sigma * sigma) - tl.log(sigma) - HALF_LOG_2PI


@triton.jit
def sum_of_tiles(sums_ptr, row, BLOCKS: tl.constexpr, WIDTH: tl.constexpr):
    """Adds the sums that the tiles of a sample stored, in rows of WIDTH, with the same alignment for every row."""
    tile = tl.arange(0, WIDTH)
    return tl.sum(tl.load(sums_ptr + row * WIDTH + tile, mask=tile < BLOCKS, other=0.0), axis=0)


# Kernels


@triton.jit(do_not_specialize=["step", "one"])  # one kernel for all steps
def step_kernel(
    m_ptr, x_ptr, noise_ptr, seeds_ptr, coefficients_ptr, next_ptr, clean_ptr, log_prob_ptr, sums_ptr,
    m_stride, x_stride, noise_stride, coefficients_stride, step, one,
    E: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr,
    DRAW: tl.constexpr,
):  # fmt: skip
    """One program per tile: reads m and x (and the noise, or draws it: DRAW is its order in the threads) and writes
    next, predicted clean and log-prob."""
    row, tile = place(tl.program_id(0), BLOCKS)
    offsets = elements(tile, one, BLOCK, VECTOR)
    inside = offsets < E
    coefficients = coefficients_ptr + row * coefficients_stride
    a = tl.load(coefficients)
    b = tl.load(coefficients + 1)
    c = tl.load(coefficients + 2)
    d = tl.load(coefficients + 3)
    sigma = tl.load(coefficients + 4)
    m = load(m_ptr + row * m_stride, offsets, E)
    x = load(x_ptr + row * x_stride, offsets, E)
    if DRAW:
        z = normal(tl.load(seeds_ptr + row), step, offsets, tile * BLOCK, BLOCK, DRAW)
    else:
        z = load(noise_ptr + row * noise_stride, offsets, E)
    mean = tl.fma(b, m, a * x)
    stored = tl.fma(sigma, z, mean).to(next_ptr.dtype.element_ty)
    clean = tl.fma(d, m, c * x)
    tl.store(next_ptr + row * E + offsets, stored, mask=inside)
    tl.store(clean_ptr + row * E + offsets, clean.to(clean_ptr.dtype.element_ty), mask=inside)
    r = tl.where(inside, stored.to(tl.float32) - mean, 0.0)
    total = tl.sum(r * r, axis=0)
    if BLOCKS == 1:
        tl.store(log_prob_ptr + row, log_prob(total, sigma, E))
    else:
        tl.store(sums_ptr + row * WIDTH + tile, total)


@triton.jit(do_not_specialize=["one"])
def log_prob_kernel(
    m_ptr, x_ptr, prev_ptr, coefficients_ptr, log_prob_ptr, sums_ptr,
    m_outer, m_inner, x_outer, x_inner, prev_outer, prev_inner, coefficients_stride, one,
    E: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """One program per tile: reads m, x and prev."""
    row, tile = place(tl.program_id(0), BLOCKS)
    offsets = elements(tile, one, BLOCK, VECTOR)
    coefficients = coefficients_ptr + row_start(row, coefficients_stride, 0, GROUP)
    r = residual(
        m_ptr + row_start(row, m_outer, m_inner, GROUP),
        x_ptr + row_start(row, x_outer, x_inner, GROUP),
        prev_ptr + row_start(row, prev_outer, prev_inner, GROUP),
        coefficients,
        offsets,
        E,
    )
    total = tl.sum(r * r, axis=0)
    if BLOCKS == 1:
        tl.store(log_prob_ptr + row, log_prob(total, tl.load(coefficients + 4), E))
    else:
        tl.store(sums_ptr + row * WIDTH + tile, total)


@triton.jit
def finish_kernel(
    sums_ptr, coefficients_ptr, log_prob_ptr, coefficients_stride,
    E: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One program per sample: computes its log-prob from the sums of its tiles."""
    row = tl.program_id(0).to(tl.int64)
    sigma = tl.load(coefficients_ptr + row * coefficients_stride + 4)
    tl.store(log_prob_ptr + row, log_prob(sum_of_tiles(sums_ptr, row, BLOCKS, WIDTH), sigma, E))


@triton.jit(do_not_specialize=["one"])
def grad_kernel(
    slope_ptr, m_ptr, x_ptr, prev_ptr, coefficients_ptr, grad_ptr, scale,
    m_outer, m_inner, x_outer, x_inner, prev_outer, prev_inner, coefficients_stride, one,
    E: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """One program per tile: reads m, x and prev, writes scale * slope * b r / (sigma^2 E).

    The order is opposite to that of the log-prob's kernel, which has just read the same data: the last of them are
    still in the cache.
    """
    row, tile = place(tl.num_programs(0) - 1 - tl.program_id(0), BLOCKS)
    offsets = elements(tile, one, BLOCK, VECTOR)
    coefficients = coefficients_ptr + row_start(row, coefficients_stride, 0, GROUP)
    r = residual(
        m_ptr + row_start(row, m_outer, m_inner, GROUP),
        x_ptr + row_start(row, x_outer, x_inner, GROUP),
        prev_ptr + row_start(row, prev_outer, prev_inner, GROUP),
        coefficients,
        offsets,
        E,
    )
    factor = grad_factor(scale * tl.load(slope_ptr + row), coefficients, E)
    grad = (factor * r).to(grad_ptr.dtype.element_ty)
    tl.store(grad_ptr + row * E + offsets, grad, mask=offsets < E)


@triton.jit
def grad_factor(slope, coefficients, E: tl.constexpr):
    """slope b / (sigma^2 E), the factor of a residual."""
    b = tl.load(coefficients + 1)
    sigma = tl.load(coefficients + 4)
    return tl.div_rn(slope * b, sigma * sigma * E)


# Launches: contiguous results, on the device of the latents


def launch(kernel, programs: int, device: torch.device, *arguments, **options) -> None:
    if device.type != "cuda" or device.index == torch.cuda.current_device():  # to change it takes a launch's time
        kernel[(programs,)](*arguments, **options)
    else:
        with torch.cuda.device(device):
            kernel[(programs,)](*arguments, **options)


def table(coefficients: Tensor) -> Tensor:
    """float32 [N, 5], a row's five numbers side by side; the rows may be one (an expanded table's)."""
    coefficients = coefficients.float()
    return coefficients if coefficients.stride(1) == 1 else coefficients.contiguous()


def finish(sums: Tensor, coefficients: Tensor, log_prob: Tensor, tiling: dict[str, int]) -> None:
    sizes = {name: tiling[name] for name in ("E", "BLOCKS", "WIDTH")}
    arguments = (sums, coefficients, log_prob, coefficients.stride(0))
    launch(finish_kernel, len(log_prob), log_prob.device, *arguments, num_warps=1, **sizes, **OPTIONS)


def drawn_together(x: Tensor, tiling: dict[str, int]) -> int:
    """The number of neighbouring normal numbers that a thread draws: as many as it reads elements at once."""
    if not tiling["VECTOR"]:
        return 1
    return 8 if x.element_size() == 2 and tiling["BLOCK"] >= 256 else 4


def ddim_step(
    m: Tensor, x: Tensor, coefficients: Tensor, seeds: Tensor | None, step: int, noise: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    n, tiling, coefficients = x.shape[0], tiles(x.shape[1:].numel()), table(coefficients)
    m, x = aligned(m, 1, tiling), aligned(x, 1, tiling)
    if noise is not None:
        # Narrower than both, it would be read in another layout, and decide that of the sums.
        narrow = noise.element_size() < min(m.element_size(), x.element_size())
        noise = aligned(noise.float() if narrow else noise, 1, tiling)
    following = torch.empty_like(x, memory_format=torch.contiguous_format)
    clean, log_prob = torch.empty_like(following), x.new_empty(n, dtype=torch.float32)
    sums = None if tiling["BLOCKS"] == 1 else log_prob.new_empty(n, tiling["WIDTH"])
    launch(
        step_kernel, n * tiling["BLOCKS"], x.device,
        m, x, noise, None if seeds is None else seeds.contiguous(), coefficients, following, clean, log_prob, sums,
        m.stride(0), x.stride(0), 0 if noise is None else noise.stride(0), coefficients.stride(0), step, 1,
        DRAW=drawn_together(x, tiling) if noise is None else 0, **tiling,
    )  # fmt: skip
    if sums is not None:
        finish(sums, coefficients, log_prob, tiling)
    return following, clean, log_prob


def tile_sums(
    m: Tensor, x: Tensor, prev: Tensor, coefficients: Tensor, log_prob: Tensor, tiling: dict[str, int]
) -> Tensor | None:
    """The tiles' sums of squares [rows, WIDTH]; if a sample is one tile, its log-prob instead and None."""
    lead = log_prob.ndim
    sums = None if tiling["BLOCKS"] == 1 else log_prob.new_empty(log_prob.numel(), tiling["WIDTH"])
    launch(
        log_prob_kernel, log_prob.numel() * tiling["BLOCKS"], x.device,
        m, x, prev, coefficients, log_prob, sums,
        *strides(m, lead), *strides(x, lead), *strides(prev, lead), coefficients.stride(0), 1, GROUP=lead, **tiling,
    )  # fmt: skip
    return sums


def gaussian_log_prob(m: Tensor, x: Tensor, prev: Tensor, coefficients: Tensor) -> Tensor:
    tiling, coefficients = tiles(x.shape[1:].numel()), table(coefficients)
    m, x, prev = aligned(m, 1, tiling), aligned(x, 1, tiling), aligned(prev, 1, tiling)
    log_prob = x.new_empty(x.shape[0], dtype=torch.float32)
    sums = tile_sums(m, x, prev, coefficients, log_prob, tiling)
    if sums is not None:
        finish(sums, coefficients, log_prob, tiling)
    return log_prob


def log_prob_grad(
    slope: Tensor, m: Tensor, x: Tensor, prev: Tensor, coefficients: Tensor, scale: float = 1.0
) -> Tensor:
    lead, coefficients = slope.ndim, table(coefficients)
    tiling = tiles(m.shape[lead:].numel())
    m, x, prev = aligned(m, lead, tiling), aligned(x, lead, tiling), aligned(prev, lead, tiling)
    grad = torch.empty_like(m, memory_format=torch.contiguous_format)
    launch(
        grad_kernel, slope.numel() * tiling["BLOCKS"], m.device,
        slope.float().contiguous(), m, x, prev, coefficients, grad, scale,
        *strides(m, lead), *strides(x, lead), *strides(prev, lead), coefficients.stride(0),
        1, GROUP=lead, **tiling,
    )  # fmt: skip
    return grad
