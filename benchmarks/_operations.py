"""The measured operations: inputs, the library's call, the rivals' expression, and the comparison with float64.

The rivals' expression is written as trainers write it, in PyTorch's own operations, in float32 at least. In float64
it is the reference, so that no part of the library is checked against itself (but its noise, which is a definition).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import sdpo_kernels
import torch
from torch import Tensor
from torch.nn import functional as F

CLIP, ADVANTAGE_CLIP, STEP = 0.05, 5.0, 1
# Relative to the largest entry. What is stored in the latents' dtype can't be closer than its rounding.
STORED = {"float32": 5e-6, "float16": 1e-3, "bfloat16": 8e-3}
LOG_PROB, LOSS, COSINE = 1e-6, 2e-6, 1e-5
RIVALS = 10  # times the tolerances: a rival need only compute the same thing, and torch.compile leaves out roundings
CHUNK = 2**24  # elements of a latent that are compared at a time: float64 takes memory

Call = Callable[..., tuple[Tensor, ...]]
Comparison = tuple[str, Tensor, Tensor, float]  # output, as computed, as expected, tolerance


class Case(NamedTuple):
    """An operation at a size; `steps` is K of anchor_similarity, 0 elsewhere."""

    operation: str
    shape: tuple[int, ...]
    pairs: int
    dtype: str
    steps: int = 0

    def __str__(self) -> str:
        name = f"{self.operation}-K{self.steps}" if self.steps else self.operation
        return f"{name}-{'x'.join(map(str, self.shape))}-{self.pairs}-{self.dtype}"

    @property
    def elements(self) -> int:
        """Of the latents of all samples (and steps): of one of the operation's large tensors."""
        return 2 * self.pairs * max(self.steps, 1) * math.prod(self.shape)


# The rivals' expressions ----------------------------------------------------------------------------------------


def columns(coefficients: Tensor, ndim: int) -> list[Tensor]:
    return [column.reshape(-1, *[1] * (ndim - 1)) for column in coefficients.unbind(1)]


def log_prob(m: Tensor, x: Tensor, prev: Tensor, coefficients: Tensor) -> Tensor:
    a, b, _, _, sigma = columns(coefficients, x.ndim)
    mean = a * x + b * m
    value = -((prev - mean) ** 2) / (2 * sigma**2) - torch.log(sigma) - math.log(math.sqrt(2 * math.pi))
    return value.mean(dim=tuple(range(1, value.ndim)))


def plain_log_prob(m, x, prev, coefficients):
    return (log_prob(m, x, prev, coefficients),)


def plain_step(m, x, coefficients, seeds, noise=None, stored=None):
    """The rivals' noise is torch.randn: cheaper than noise by seeds, and another for another batch."""
    a, b, c, d, sigma = columns(coefficients, x.ndim)
    noise = torch.randn(x.shape, device=x.device) if noise is None else noise
    prev = (a * x + b * m + sigma * noise).to(x.dtype)
    clean = (c * x + d * m).to(x.dtype)
    return prev, clean, log_prob(m, x, prev if stored is None else stored, coefficients)


def plain_sdpo(m, x, prev, coefficients, old, advantages, weight):
    """The sum to differentiate; loss, log-prob and whether it was clipped."""
    flat = (t.flatten(0, 1) for t in (m, x, prev))
    rho = log_prob(*flat, coefficients.repeat_interleave(2, 0)).reshape(-1, 2)
    ratio = rho - old
    clipped = torch.clamp(ratio, -CLIP, CLIP)
    advantages = torch.clamp(advantages, -ADVANTAGE_CLIP, ADVANTAGE_CLIP)
    target = advantages[:, 0] - advantages[:, 1]
    first = (weight * (ratio[:, 0] - ratio[:, 1]) - target) ** 2
    second = (weight * (clipped[:, 0] - clipped[:, 1]) - target) ** 2
    loss = torch.maximum(first, second)
    return loss.sum() * x[0, 0].numel(), loss.detach(), rho.detach(), (ratio.abs() > CLIP).any(1)


def plain_ppo(m, x, prev, coefficients, old, advantages):
    rho = log_prob(m, x, prev, coefficients)
    ratio = torch.exp(rho - old)
    advantages = torch.clamp(advantages, -ADVANTAGE_CLIP, ADVANTAGE_CLIP)
    loss = torch.maximum(-advantages * ratio, -advantages * torch.clamp(ratio, 1 - CLIP, 1 + CLIP))
    return loss.sum() * x[0].numel(), loss.detach(), rho.detach(), (ratio - 1).abs() > CLIP


def plain_anchor(clean, at=None):
    flat = clean.flatten(2)
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    first = F.cosine_similarity(flat, flat[:, :1], dim=-1)
    last = F.cosine_similarity(flat, flat[:, -1:], dim=-1)
    index = (first + last)[:, 1:-1].argmin(1) + 1
    anchor = flat[torch.arange(len(flat), device=flat.device), index if at is None else at]
    return first, F.cosine_similarity(flat, anchor[:, None], dim=-1), last, index


# The closed forms of the losses' gradients, in PyTorch's own operations ------------------------------------------


def closed_transition(m: Tensor, x: Tensor, prev: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """The log-prob [N], and its gradient by m times the number of a latent's elements."""
    a, b, _, _, sigma = columns(coefficients, x.ndim)
    residual = prev - (a * x + b * m)
    square = (residual**2).mean(dim=tuple(range(1, x.ndim)))
    spread = coefficients[:, 4]
    rho = -square / (2 * spread**2) - torch.log(spread) - math.log(math.sqrt(2 * math.pi))
    return rho, residual * (b / sigma**2)


def share_of_first(first: Tensor, second: Tensor) -> Tensor:
    """Of the gradient of max(first, second): 1, 1/2 where they are equal, 0."""
    return (first > second).to(first) + 0.5 * (first == second).to(first)


def closed_sdpo(m, x, prev, coefficients, old, advantages, weight):
    flat = (t.flatten(0, 1) for t in (m, x, prev))
    rho, factor = closed_transition(*flat, coefficients.repeat_interleave(2, 0))
    rho = rho.reshape(-1, 2)
    ratio = rho - old
    clipped = torch.clamp(ratio, -CLIP, CLIP)
    advantages = torch.clamp(advantages, -ADVANTAGE_CLIP, ADVANTAGE_CLIP)
    target = advantages[:, 0] - advantages[:, 1]
    plain = weight * (ratio[:, 0] - ratio[:, 1]) - target
    cut = weight * (clipped[:, 0] - clipped[:, 1]) - target
    share = share_of_first(plain**2, cut**2)
    outside = ratio.abs() > CLIP
    slope = 2 * weight[:, None] * ((share * plain)[:, None] + ((1 - share) * cut)[:, None] * ~outside)
    slope = torch.stack([slope[:, 0], -slope[:, 1]], 1)
    grad = (slope.reshape(-1, *[1] * (factor.ndim - 1)) * factor).to(m.dtype).reshape(m.shape)
    return torch.maximum(plain**2, cut**2), rho, outside.any(1), grad


def closed_ppo(m, x, prev, coefficients, old, advantages):
    rho, factor = closed_transition(m, x, prev, coefficients)
    ratio = torch.exp(rho - old)
    advantages = torch.clamp(advantages, -ADVANTAGE_CLIP, ADVANTAGE_CLIP)
    plain, cut = -advantages * ratio, -advantages * torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
    share = share_of_first(plain, cut)
    outside = (ratio - 1).abs() > CLIP
    slope = -advantages * ratio * (share + (1 - share) * ~outside)
    grad = (slope.reshape(-1, *[1] * (m.ndim - 1)) * factor).to(m.dtype)
    return torch.maximum(plain, cut), rho, outside, grad


def bmm_anchor(clean):
    """The Gram matrix by torch.bmm, in float32: squares of a latent's 16-bit entries exceed float16."""
    flat = clean.flatten(2)
    if flat.is_cuda and flat.dtype in (torch.float16, torch.bfloat16):
        gram = torch.bmm(flat, flat.mT, out_dtype=torch.float32)
    else:
        flat = flat.float()
        gram = torch.bmm(flat, flat.mT)
    norm = gram.diagonal(dim1=1, dim2=2).sqrt()
    cosine = gram / (norm[:, :, None] * norm[:, None, :])
    first, last = cosine[:, :, 0], cosine[:, :, -1]
    index = (first + last)[:, 1:-1].argmin(1) + 1
    return first, cosine[torch.arange(len(cosine), device=cosine.device), index], last, index


def forward(expression: Call) -> Call:
    return torch.no_grad()(expression)


def differentiated(expression: Call) -> Call:
    """The outputs and the gradient by the model's output; as the losses' own mean over a latent makes entries of half
    precision vanish, the sum is scaled by the number of elements."""

    def call(m: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        m = m.detach().requires_grad_()
        total, *outputs = expression(m, *rest)
        return (*outputs, *torch.autograd.grad(total, m))

    return call


# The library's calls --------------------------------------------------------------------------------------------


def our_step(m, x, coefficients, seeds, backend):
    return sdpo_kernels.ddim_step(m, x, coefficients, seeds=seeds, step=STEP, backend=backend)


def our_step_given(m, x, coefficients, noise, backend):
    return sdpo_kernels.ddim_step(m, x, coefficients, noise=noise, backend=backend)


def plain_step_given(m, x, coefficients, noise):
    return plain_step(m, x, coefficients, None, noise)


def our_log_prob(m, x, prev, coefficients, backend):
    return (sdpo_kernels.gaussian_log_prob(m, x, prev, coefficients, backend=backend),)


def our_loss(function: Callable, lead: int) -> Call:
    def call(m, *rest, backend):
        scale = float(math.prod(m.shape[lead:]))
        result, grad = function(
            m, *rest, clip_range=CLIP, advantage_clip=ADVANTAGE_CLIP, grad_scale=scale, backend=backend
        )
        return *result, grad

    return call


def our_anchor(clean, backend):
    return sdpo_kernels.anchor_similarity(clean, backend=backend)


# Inputs ---------------------------------------------------------------------------------------------------------


class Draw:
    """Random tensors of a case, the same for the same case; on the device."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.generator = torch.Generator(device).manual_seed(zlib.crc32(str(case).encode()))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator, device=self.device)

    def latents(self, *lead: int) -> Tensor:
        return self.normal(*lead, *self.case.shape).to(getattr(torch, self.case.dtype))

    def coefficients(self, n: int) -> Tensor:
        return torch.cat([self.uniform(-1.2, 1.2, n, 4), self.uniform(0.3, 1.0, n, 1)], 1)


def draw_step(draw: Draw) -> tuple[Tensor, ...]:
    n = 2 * draw.case.pairs
    seeds = torch.randint(2**62, (n,), generator=draw.generator, device=draw.device)
    return draw.latents(n), draw.latents(n), draw.coefficients(n), seeds


def draw_step_given(draw: Draw) -> tuple[Tensor, ...]:
    n = 2 * draw.case.pairs
    return draw.latents(n), draw.latents(n), draw.coefficients(n), draw.latents(n)


def draw_transition(draw: Draw, rows: Tensor) -> tuple[Tensor, ...]:
    """Outputs, latents, next latents and coefficients, of a sample for each row of coefficients."""
    n = len(rows)
    m, x = draw.latents(n), draw.latents(n)
    a, b, _, _, sigma = columns(rows, x.ndim)
    return m, x, (a * x + b * m + sigma * draw.normal(*x.shape)).to(x.dtype), rows


def old_log_prob(draw: Draw, *transition: Tensor) -> Tensor:
    """Off the present one by clearly less or clearly more than the clip range, so that every branch is taken and
    rounding decides none."""
    parts = zip(*(t.split(chunk_rows(transition[0])) for t in transition), strict=True)
    rho = torch.cat([log_prob(*(t.double() for t in part)) for part in parts])
    n = len(rho)
    share = torch.where(draw.normal(n) > 0, draw.uniform(0.3, 0.8, n), draw.uniform(1.2, 1.9, n))
    share[0] = 0.5  # one is always within: gradients that are all 0 would show little
    return (rho + CLIP * share * draw.normal(n).sign()).float()


def draw_log_prob(draw: Draw) -> tuple[Tensor, ...]:
    return draw_transition(draw, draw.coefficients(2 * draw.case.pairs))


def draw_ppo(draw: Draw) -> tuple[Tensor, ...]:
    transition = draw_log_prob(draw)
    return *transition, old_log_prob(draw, *transition), 2 * draw.normal(2 * draw.case.pairs)


def draw_sdpo(draw: Draw) -> tuple[Tensor, ...]:
    pairs = draw.case.pairs
    rows = draw.coefficients(pairs)
    transition = draw_transition(draw, rows.repeat_interleave(2, 0))  # a pair shares its step
    m, x, prev, old = (t.unflatten(0, (pairs, 2)) for t in (*transition[:3], old_log_prob(draw, *transition)))
    # Of opposite signs and not small: a target near 0 would leave the branch, and the relative error, to rounding.
    advantages = (0.5 + 2 * draw.normal(pairs, 2).abs()) * draw.normal(pairs, 1).sign()
    advantages[:, 1] *= -1
    return m, x, prev, rows, old, advantages, draw.uniform(0.2, 1.0, pairs)


def draw_anchor(draw: Draw) -> tuple[Tensor, ...]:
    """Trajectories that settle: each step the last one's picture and less and less of something else."""
    n, steps = 2 * draw.case.pairs, draw.case.steps
    noise = draw.uniform(0.2, 2.0, n, steps, *[1] * len(draw.case.shape))
    clean = torch.empty(n, steps, *draw.case.shape, dtype=getattr(torch, draw.case.dtype), device=draw.device)
    last = draw.normal(n, *draw.case.shape)
    for k in range(steps):
        clean[:, k] = last + noise[:, k] * draw.normal(n, *draw.case.shape)
    return (clean,)


# Comparison with float64 ----------------------------------------------------------------------------------------


def chunk_rows(t: Tensor) -> int:
    return max(CHUNK // max(t[0].numel(), 1), 1)


def compare_step(inputs, outputs, stored_tolerance) -> Iterator[Comparison]:
    given = inputs[3].is_floating_point()
    noise = (inputs[3] if given else sdpo_kernels.normal(inputs[3], inputs[0].shape[1:], STEP)).double()
    wide = [t.double() for t in inputs[:3]]
    expected = plain_step(*wide, inputs[3], noise, outputs[0].double())
    for name, got, want in zip(("prev_sample", "predicted_clean"), outputs, expected, strict=False):
        yield name, got, want, stored_tolerance
    yield "log_prob", outputs[2], expected[2], LOG_PROB * max(1.0, 1 / largest(expected[2]))


def compare_log_prob(inputs, outputs, stored_tolerance) -> Iterator[Comparison]:
    expected = log_prob(*(t.double() for t in inputs))
    yield "log_prob", outputs[0], expected, LOG_PROB * max(1.0, 1 / largest(expected))


def compare_loss(expression: Call) -> Callable[..., Iterator[Comparison]]:
    def compare(inputs, outputs, stored_tolerance) -> Iterator[Comparison]:
        expected = differentiated(expression)(*(t.double() for t in inputs))
        yield "loss", outputs[0], expected[0], LOSS
        yield "log_prob", outputs[1], expected[1], LOG_PROB * max(1.0, 1 / largest(expected[1]))
        yield "clipped", outputs[2], expected[2], 0.0
        yield "gradient", outputs[3], expected[3], stored_tolerance

    return compare


def compare_anchor(inputs, outputs, stored_tolerance) -> Iterator[Comparison]:
    clean = inputs[0].double()
    index = outputs[3].clamp(1, clean.shape[1] - 2)  # an index out of range would end the process on a GPU
    first, anchor, last, best = plain_anchor(clean, index)
    for name, got, want in zip(("first", "anchor", "last"), outputs, (first, anchor, last), strict=False):
        yield name, got, want, COSINE
    # Any index will do whose sum of similarities is the least, but for rounding.
    total = first + last
    chosen = total.gather(1, index[:, None]) + (index != outputs[3])[:, None]
    yield "anchor_index", chosen + 1, total.gather(1, best[:, None]) + 1, COSINE


def largest(t: Tensor) -> float:
    return float(t.double().abs().max()) or 1.0


@dataclass(frozen=True)
class Operation:
    draw: Callable[[Draw], tuple[Tensor, ...]]
    ours: Call
    plain: Call
    drive: Callable[[Call], Call]
    compare: Callable[..., Iterator[Comparison]]
    peers: Mapping[str, Call] = field(default_factory=dict)  # rivals of another algebra: all outputs


OPERATIONS = {
    "ddim_step": Operation(draw_step, our_step, plain_step, forward, compare_step),
    "ddim_step_noise_given": Operation(draw_step_given, our_step_given, plain_step_given, forward, compare_step),
    "gaussian_log_prob": Operation(draw_log_prob, our_log_prob, plain_log_prob, forward, compare_log_prob),
    "sdpo_loss_and_grad": Operation(
        draw_sdpo,
        our_loss(sdpo_kernels.sdpo_loss_and_grad, 2),
        plain_sdpo,
        differentiated,
        compare_loss(plain_sdpo),
        {"closed": closed_sdpo},
    ),
    "ppo_clip_loss_and_grad": Operation(
        draw_ppo,
        our_loss(sdpo_kernels.ppo_clip_loss_and_grad, 1),
        plain_ppo,
        differentiated,
        compare_loss(plain_ppo),
        {"closed": closed_ppo},
    ),
    "anchor_similarity": Operation(draw_anchor, our_anchor, plain_anchor, forward, compare_anchor, {"bmm": bmm_anchor}),
}


@contextmanager
def poisoned() -> Iterator[None]:
    """Within it new tensors are filled with NaN (booleans: True), so that what a kernel leaves unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill


def check(case: Case, inputs: Sequence[Tensor], outputs: Sequence[Tensor], rival: bool = False) -> dict[str, float]:
    """The largest error of each output, relative to its largest entry. AssertionError where one is too large."""
    errors: dict[str, float] = {}
    rows = chunk_rows(inputs[0])
    for start in range(0, len(inputs[0]), rows):
        part = slice(start, start + rows)
        compare = OPERATIONS[case.operation].compare
        comparisons = compare([t[part] for t in inputs], [t[part] for t in outputs], STORED[case.dtype])
        for name, got, want, tolerance in comparisons:
            if rival and name == "prev_sample" and case.operation == "ddim_step":
                continue  # of the rivals' own noise
            assert got.shape == want.shape, f"{case}: {name} has shape {tuple(got.shape)}, not {tuple(want.shape)}"
            error = float((got.double() - want.double()).abs().max()) / largest(want)
            limit = max(RIVALS * tolerance, STORED[case.dtype]) if rival else tolerance
            assert error <= limit, f"{case}: {name} is off by {error:.2g} of its largest entry; allowed are {limit:.2g}"
            errors[name] = max(errors.get(name, 0.0), error)
    return errors


def size(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
