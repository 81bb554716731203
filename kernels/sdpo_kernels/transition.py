"""The Gaussian step of every sampler, and its log-probability."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sdpo_kernels import _checks
from sdpo_kernels._backend import resolve_backend
from sdpo_kernels.philox import normal

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class DDIMStep(NamedTuple):
    """prev_sample and predicted_clean [N, ...] in the sample's dtype; log_prob float32 [N] of prev_sample."""

    prev_sample: Tensor
    predicted_clean: Tensor
    log_prob: Tensor


def _wide(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


def _column(coefficients: Tensor, index: int, ndim: int) -> Tensor:
    return coefficients[:, index].reshape(-1, *[1] * (ndim - 1))


def _log_prob(model_output: Tensor, sample: Tensor, prev_sample: Tensor, coefficients: Tensor) -> Tensor:
    """rho = -sum (prev - a x - b m)^2 / (2 sigma^2 N) - log sigma - log(2 pi) / 2, for [N, ...] latents."""
    a, b = (_column(coefficients, i, sample.ndim) for i in (0, 1))
    sigma = coefficients[:, 4]
    residual = _wide(prev_sample) - (a * _wide(sample) + b * _wide(model_output))
    return -residual.square().flatten(1).mean(1) / (2 * sigma.square()) - sigma.log() - HALF_LOG_2PI


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
    not finite where sigma = 0.
    """
    resolve_backend(backend)
    shape = _checks.latents(1, model_output=model_output, sample=sample)
    _checks.coefficients(coefficients, shape[0], sample.device, stochastic=False)
    if (seeds is None) == (noise is None):
        raise ValueError("give exactly one of seeds and noise")
    if seeds is not None:
        _checks.rows("seeds", seeds, shape[:1], sample.device, torch.int64)
        noise = normal(seeds, shape[1:], step)
    else:
        assert noise is not None
        _checks.rows("noise", noise, shape, sample.device)
    a, b, c, d, sigma = (_column(coefficients, i, sample.ndim) for i in range(5))
    x, m = _wide(sample), _wide(model_output)
    prev_sample = (a * x + b * m + sigma * _wide(noise)).to(sample.dtype)
    predicted_clean = (c * x + d * m).to(sample.dtype)
    return DDIMStep(prev_sample, predicted_clean, _log_prob(model_output, sample, prev_sample, coefficients))


def gaussian_log_prob(
    model_output: Tensor, sample: Tensor, prev_sample: Tensor, coefficients: Tensor, *, backend: str | None = None
) -> Tensor:
    """Log-prob [N] of `prev_sample` under the step from `sample`, mean over the latent's elements.

    All latents [N, ...], `coefficients` float32 [N, 5] with sigma > 0; differentiable in `model_output`.
    """
    resolve_backend(backend)
    shape = _checks.latents(1, model_output=model_output, sample=sample, prev_sample=prev_sample)
    _checks.coefficients(coefficients, shape[0], sample.device, stochastic=True)
    return _log_prob(model_output, sample, prev_sample, coefficients)
