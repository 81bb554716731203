"""The Gaussian step of every sampler, and its log-probability.

Each operation has a public function (checks, backend), a PyTorch reference (the formula), and a registration as a
`torch.library` operation, which torch.compile and autograd see as one. The Triton kernels of the same formulas are in
transition_triton.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sdpo_kernels import _backend, _checks, _dispatch
from sdpo_kernels.philox import normal

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class DDIMStep(NamedTuple):
    """prev_sample and predicted_clean [N, ...] in the sample's dtype; log_prob float32 [N] of prev_sample."""

    prev_sample: Tensor
    predicted_clean: Tensor
    log_prob: Tensor


def sum_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of sums: float32, or float64 if an argument has it."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


# The step


def ddim_step(
    model_output: Tensor,
    sample: Tensor,
    coefficients: Tensor,
    *,
    seeds: Tensor | None = None,
    step: int = 0,
    noise: Tensor | None = None,
    backend: str | None = None,
) -> DDIMStep:
    """One denoising step: next = a x + b m + sigma z, predicted clean = c x + d m.

    `model_output` and `sample` are [N, ...], `coefficients` float32 [N, 5]. The noise z is drawn from `seeds`
    (int64 [N], with `step` the index of the denoising step) or given as `noise`: exactly one of them. The log-prob
    is that of the stored next latent, after rounding to its dtype, by the arithmetic that training uses; it is
    not finite where sigma = 0. Not differentiable.
    """
    chosen, direct = _dispatch.prepare(_check_step, backend, model_output, sample, coefficients, seeds, noise)
    if not 0 <= step < 2**31:
        raise ValueError(f"step is {step}; expected 0 to 2^31 - 1")
    operation = _ddim_step.direct if direct and type(step) is int else _ddim_step
    return DDIMStep(*operation(model_output, sample, coefficients, seeds, step, noise, chosen))


def _check_step(backend: str | None, m, x, coefficients, seeds, noise) -> str:
    shape = _checks.latents(1, model_output=m, sample=x)
    _checks.coefficients(coefficients, shape[0], x, m)
    if (seeds is None) == (noise is None):
        raise ValueError("give exactly one of seeds and noise")
    if seeds is not None:
        _checks.rows("seeds", seeds, shape[:1], x.device, torch.int64)
    if noise is not None:
        _checks.latents(1, sample=x, noise=noise)
    return _backend.of(backend, x, m)


@_dispatch.operation("ddim_step")
def _ddim_step(
    m: Tensor, x: Tensor, coefficients: Tensor, seeds: Tensor | None, step: int, noise: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    _checks.coefficient_values(coefficients, stochastic=False)
    if backend == "triton":
        import sdpo_kernels.transition_triton as kernels

        return kernels.ddim_step(m, x, coefficients, seeds, step, noise)
    dtype = sum_dtype(m, x, coefficients)
    a, b, c, d, sigma = columns(coefficients, x.ndim, dtype)
    if noise is None:
        assert seeds is not None
        noise = normal(seeds, x.shape[1:], step)
    prev = (a * x.to(dtype) + b * m.to(dtype) + sigma * noise.to(dtype)).to(x.dtype)
    clean = (c * x.to(dtype) + d * m.to(dtype)).to(x.dtype)
    return prev, clean, log_prob_reference(m, x, prev, coefficients)


@_ddim_step.register_fake
def _(m, x, coefficients, seeds, step, noise, backend):
    empty = torch.empty_like(x, memory_format=torch.contiguous_format)
    return empty, torch.empty_like(empty), x.new_empty(x.shape[0], dtype=sum_dtype(m, x, coefficients))


# Its log-prob


def columns(coefficients: Tensor, ndim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """a, b, c, d, sigma, each to be broadcast against latents of `ndim` dimensions."""
    return tuple(c.reshape(-1, *[1] * (ndim - 1)) for c in coefficients.to(dtype).unbind(1))


def residual(m: Tensor, x: Tensor, prev: Tensor, coefficients: Tensor) -> Tensor:
    """r = prev - (a x + b m) [N, ...]."""
    dtype = sum_dtype(m, x, prev, coefficients)
    a, b, *_ = columns(coefficients, x.ndim, dtype)
    return prev.to(dtype) - (a * x.to(dtype) + b * m.to(dtype))


def log_prob_reference(m: Tensor, x: Tensor, prev: Tensor, coefficients: Tensor) -> Tensor:
    """rho = -sum r^2 / (2 sigma^2 E) - log sigma - log(2 pi) / 2 of [N, ...] latents with E elements each."""
    r = residual(m, x, prev, coefficients)
    sigma = coefficients[:, 4].to(r.dtype)
    return -r.square().flatten(1).mean(1) / (2 * sigma.square()) - sigma.log() - HALF_LOG_2PI


def log_prob_grad_reference(slope: Tensor, m: Tensor, x: Tensor, prev: Tensor, coefficients: Tensor) -> Tensor:
    """slope d rho / d m = slope b r / (sigma^2 E), rounded once; `slope` [N] is the loss's derivative by rho."""
    r = residual(m, x, prev, coefficients)
    b, sigma = coefficients[:, 1].to(r.dtype), coefficients[:, 4].to(r.dtype)
    factor = slope.to(r.dtype) * b / (sigma.square() * r[0].numel())
    return (factor.reshape(-1, *[1] * (r.ndim - 1)) * r).to(m.dtype)


def gaussian_log_prob(
    model_output: Tensor, sample: Tensor, prev_sample: Tensor, coefficients: Tensor, *, backend: str | None = None
) -> Tensor:
    """Log-prob [N] of `prev_sample` under the step from `sample`, mean over the latent's elements.

    All latents [N, ...], `coefficients` float32 [N, 5] with sigma > 0; differentiable in `model_output`.
    """
    tensors = (model_output, sample, prev_sample, coefficients)
    chosen, direct = _dispatch.prepare(_check_log_prob, backend, *tensors)
    return (_gaussian_log_prob.direct if direct else _gaussian_log_prob)(*tensors, chosen)


def _check_log_prob(backend: str | None, m, x, prev, coefficients) -> str:
    shape = _checks.latents(1, model_output=m, sample=x, prev_sample=prev)
    _checks.coefficients(coefficients, shape[0], x, m, prev)
    _checks.constants(sample=x, prev_sample=prev, coefficients=coefficients)
    return _backend.of(backend, m, x, prev)


@_dispatch.operation("gaussian_log_prob")
def _gaussian_log_prob(m: Tensor, x: Tensor, prev: Tensor, coefficients: Tensor, backend: str) -> Tensor:
    _checks.coefficient_values(coefficients, stochastic=True)
    if backend == "triton":
        import sdpo_kernels.transition_triton as kernels

        return kernels.gaussian_log_prob(m, x, prev, coefficients)
    return log_prob_reference(m, x, prev, coefficients)


@_gaussian_log_prob.register_fake
def _(m, x, prev, coefficients, backend):
    return x.new_empty(x.shape[0], dtype=sum_dtype(m, x, prev, coefficients))


@_dispatch.operation("log_prob_grad")
def log_prob_grad(slope: Tensor, m: Tensor, x: Tensor, prev: Tensor, coefficients: Tensor, backend: str) -> Tensor:
    """slope d rho / d m: latents [N, ...] with slope [N], or pairs [P, 2, ...] with slope [P, 2]."""
    if backend == "triton":
        import sdpo_kernels.transition_triton as kernels

        return kernels.log_prob_grad(slope, m, x, prev, coefficients)
    lead = slope.ndim - 1
    rows = coefficients.repeat_interleave(slope[0].numel(), 0)
    grad = log_prob_grad_reference(slope.flatten(), m.flatten(0, lead), x.flatten(0, lead), prev.flatten(0, lead), rows)
    return grad.reshape(m.shape)


@log_prob_grad.register_fake
def _(slope, m, x, prev, coefficients, backend):
    return torch.empty_like(m, memory_format=torch.contiguous_format)


def _setup(ctx, inputs, output):
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, slope):
    m, x, prev, coefficients = ctx.saved_tensors
    return log_prob_grad(slope.contiguous(), m, x, prev, coefficients, ctx.backend), None, None, None, None


_gaussian_log_prob.register_autograd(_backward, setup_context=_setup)
