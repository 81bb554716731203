"""The clipped losses of SDPO and of PPO (DDPO, the GRPO family) from the model's output, with their gradients.

The file is arranged like transition.py; the Triton kernels are in losses_triton.py. Both use the closed form of the
loss's derivative by the log-prob (`slope`), so the gradient needs no second pass through autograd.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sdpo_kernels import _backend, _checks, _dispatch
from sdpo_kernels.transition import log_prob_grad, log_prob_reference, sum_dtype

LOG_RATIO_BOUND = 20.0  # exp(20) = 5e8: beyond it the ratio is held, so that neither loss nor gradient overflows


class SDPOLoss(NamedTuple):
    """loss [P] (or [N]), log_prob [P, 2] (or [N]), clipped bool, shaped like loss."""

    loss: Tensor
    log_prob: Tensor
    clipped: Tensor


def larger(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """max(first, second) and its derivatives by both, 1/2 each if they are equal. NaN propagates."""
    of_first = (first > second).to(first) + 0.5 * (first == second)
    return torch.maximum(first, second), of_first, 1 - of_first


def sdpo_reference(
    log_prob: Tensor, old: Tensor, advantages: Tensor, weight: Tensor, clip_range: float, advantage_clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """SDPO's loss [P], whether a log-ratio is clipped [P], and the slope [P, 2]: the derivative of the loss by log_prob
    [P, 2].

    D_i = rho_i - old_i,  u = w (D_1 - D_2) - dA,  c = w (clip D_1 - clip D_2) - dA,  loss = max(u^2, c^2)
    """
    old, advantages, w = (t.to(log_prob.dtype) for t in (old, advantages, weight))
    D = log_prob - old
    A = advantages.clamp(-advantage_clip, advantage_clip)
    near = D.clamp(-clip_range, clip_range)
    u = w * (D[:, 0] - D[:, 1]) - (A[:, 0] - A[:, 1])
    c = w * (near[:, 0] - near[:, 1]) - (A[:, 0] - A[:, 1])
    loss, gu, gc = larger(u.square(), c.square())
    inside = (D.abs() <= clip_range).to(D)
    by_first, by_second = (2 * w * (gu * u + gc * c * inside[:, i]) for i in (0, 1))
    return loss, (D.abs() > clip_range).any(1), torch.stack([by_first, -by_second], 1)


def ppo_reference(
    log_prob: Tensor, old: Tensor, advantages: Tensor, clip_range: float, advantage_clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """PPO's loss, whether the ratio is clipped, and the loss's derivative by log_prob, each [N].

    q = exp(rho - old),  loss = max(-A q, -A clip(q, 1 - e, 1 + e))
    """
    D = log_prob - old.to(log_prob.dtype)
    q = D.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    A = advantages.to(log_prob.dtype).clamp(-advantage_clip, advantage_clip)
    clipped = (q < 1 - clip_range) | (q > 1 + clip_range)
    loss, gu, gc = larger(-A * q, -A * q.clamp(1 - clip_range, 1 + clip_range))
    slope = -A * q * (gu + gc * ~clipped) * (D.abs() <= LOG_RATIO_BOUND)
    return loss, clipped, slope


# SDPO


def sdpo_loss(
    model_output: Tensor,
    sample: Tensor,
    prev_sample: Tensor,
    coefficients: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    weight: Tensor,
    *,
    clip_range: float,
    advantage_clip: float = 5.0,
    backend: str | None = None,
) -> SDPOLoss:
    """SDPO's clipped reward-difference loss of P pairs at one step each (arXiv 2411.11727).

    Latents [P, 2, ...], `coefficients` [P, 5], `old_log_prob` and `advantages` [P, 2], `weight` [P]; the formula
    is `sdpo_reference`'s. Differentiable in `model_output`.
    """
    tensors = (model_output, sample, prev_sample, coefficients, old_log_prob, advantages, weight)
    chosen, direct = _dispatch.prepare(_check_pairs, backend, *tensors)
    _check_ranges(clip_range, advantage_clip)
    operation = _sdpo_loss.direct if direct else _sdpo_loss
    return SDPOLoss(*operation(*tensors, clip_range, advantage_clip, chosen)[:3])


def sdpo_loss_and_grad(
    model_output: Tensor,
    sample: Tensor,
    prev_sample: Tensor,
    coefficients: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    weight: Tensor,
    *,
    clip_range: float,
    advantage_clip: float = 5.0,
    grad_scale: float = 1.0,
    backend: str | None = None,
) -> tuple[SDPOLoss, Tensor]:
    """`sdpo_loss` and d sum(grad_scale * loss) / d model_output, scaled before it is rounded to model_output's dtype.

    For `torch.autograd.backward(model_output, grad)`: exact, and one pass over the latents less than autograd's.
    """
    tensors = (model_output.detach(), sample, prev_sample, coefficients, old_log_prob, advantages, weight)
    chosen, direct = _dispatch.prepare(_check_pairs, backend, *tensors)
    _check_ranges(clip_range, advantage_clip)
    operation = _sdpo_loss_and_grad.direct if direct else _sdpo_loss_and_grad
    *loss, grad = operation(*tensors, clip_range, advantage_clip, grad_scale, chosen)
    return SDPOLoss(*loss), grad


def _check_pairs(backend: str | None, m, x, prev, coefficients, old, advantages, weight) -> str:
    shape = _checks.latents(2, model_output=m, sample=x, prev_sample=prev)
    if shape[1] != 2:
        raise ValueError(f"model_output has shape {tuple(shape)}; expected [P, 2, ...], the two samples of a pair")
    _checks.coefficients(coefficients, shape[0], x, m, prev)
    _checks.rows("old_log_prob", old, shape[:2], x.device)
    _checks.rows("advantages", advantages, shape[:2], x.device)
    _checks.rows("weight", weight, shape[:1], x.device)
    _check_constants(x, prev, coefficients, old, advantages)
    _checks.constants(weight=weight)
    return _backend.of(backend, m, x, prev)


def _check_constants(x, prev, coefficients, old, advantages) -> None:
    _checks.constants(sample=x, prev_sample=prev, coefficients=coefficients, old_log_prob=old, advantages=advantages)


def _check_ranges(clip_range: float, advantage_clip: float) -> None:
    _checks.positive("clip_range", clip_range)
    _checks.positive("advantage_clip", advantage_clip)


@_dispatch.operation("sdpo_loss")
def _sdpo_loss(
    m: Tensor,
    x: Tensor,
    prev: Tensor,
    coefficients: Tensor,
    old: Tensor,
    advantages: Tensor,
    weight: Tensor,
    clip_range: float,
    advantage_clip: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss [P], log_prob [P, 2], clipped [P], slope [P, 2]."""
    _checks.coefficient_values(coefficients, stochastic=True)
    if backend == "triton":
        import sdpo_kernels.losses_triton as kernels

        arguments = (m, x, prev, coefficients, old, advantages, weight, clip_range, advantage_clip)
        return kernels.sdpo_loss(*arguments)
    rows = coefficients.repeat_interleave(2, 0)
    log_prob = log_prob_reference(m.flatten(0, 1), x.flatten(0, 1), prev.flatten(0, 1), rows).reshape(m.shape[:2])
    loss, clipped, slope = sdpo_reference(log_prob, old, advantages, weight, clip_range, advantage_clip)
    return loss, log_prob, clipped, slope


@_sdpo_loss.register_fake
def _(m, x, prev, coefficients, old, advantages, weight, clip_range, advantage_clip, backend):
    log_prob = m.new_empty(m.shape[:2], dtype=sum_dtype(m, x, prev, coefficients))
    return log_prob.new_empty(m.shape[0]), log_prob, m.new_empty(m.shape[0], dtype=torch.bool), log_prob.clone()


@_dispatch.operation("sdpo_loss_and_grad")
def _sdpo_loss_and_grad(
    m: Tensor,
    x: Tensor,
    prev: Tensor,
    coefficients: Tensor,
    old: Tensor,
    advantages: Tensor,
    weight: Tensor,
    clip_range: float,
    advantage_clip: float,
    grad_scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss [P], log_prob [P, 2], clipped [P], grad like m."""
    arguments = (m, x, prev, coefficients, old, advantages, weight, clip_range, advantage_clip)
    if backend == "triton":
        import sdpo_kernels.losses_triton as kernels

        _checks.coefficient_values(coefficients, stochastic=True)
        return kernels.sdpo_loss_and_grad(*arguments, grad_scale)
    loss, log_prob, clipped, slope = _sdpo_loss.direct(*arguments, backend)
    return loss, log_prob, clipped, log_prob_grad.direct(grad_scale * slope, m, x, prev, coefficients, backend)


@_sdpo_loss_and_grad.register_fake
def _(m, x, prev, coefficients, old, advantages, weight, clip_range, advantage_clip, grad_scale, backend):
    log_prob = m.new_empty(m.shape[:2], dtype=sum_dtype(m, x, prev, coefficients))
    grad = torch.empty_like(m, memory_format=torch.contiguous_format)
    return log_prob.new_empty(m.shape[0]), log_prob, m.new_empty(m.shape[0], dtype=torch.bool), grad


# PPO


def ppo_clip_loss(
    model_output: Tensor,
    sample: Tensor,
    prev_sample: Tensor,
    coefficients: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    *,
    clip_range: float,
    advantage_clip: float = 5.0,
    backend: str | None = None,
) -> SDPOLoss:
    """PPO's clipped loss of N samples at one step each, as DDPO uses it (arXiv 2305.13301, eq. for DDPO-IS).

    Latents [N, ...], `coefficients` [N, 5], `old_log_prob` and `advantages` [N]; the formula is `ppo_reference`'s.
    Differentiable in `model_output`.
    """
    tensors = (model_output, sample, prev_sample, coefficients, old_log_prob, advantages)
    chosen, direct = _dispatch.prepare(_check_samples, backend, *tensors)
    _check_ranges(clip_range, advantage_clip)
    operation = _ppo_clip_loss.direct if direct else _ppo_clip_loss
    return SDPOLoss(*operation(*tensors, clip_range, advantage_clip, chosen)[:3])


def ppo_clip_loss_and_grad(
    model_output: Tensor,
    sample: Tensor,
    prev_sample: Tensor,
    coefficients: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    *,
    clip_range: float,
    advantage_clip: float = 5.0,
    grad_scale: float = 1.0,
    backend: str | None = None,
) -> tuple[SDPOLoss, Tensor]:
    """`ppo_clip_loss` and d sum(grad_scale * loss) / d model_output, scaled before it is rounded."""
    tensors = (model_output.detach(), sample, prev_sample, coefficients, old_log_prob, advantages)
    chosen, direct = _dispatch.prepare(_check_samples, backend, *tensors)
    _check_ranges(clip_range, advantage_clip)
    operation = _ppo_clip_loss_and_grad.direct if direct else _ppo_clip_loss_and_grad
    *loss, grad = operation(*tensors, clip_range, advantage_clip, grad_scale, chosen)
    return SDPOLoss(*loss), grad


def _check_samples(backend: str | None, m, x, prev, coefficients, old, advantages) -> str:
    shape = _checks.latents(1, model_output=m, sample=x, prev_sample=prev)
    _checks.coefficients(coefficients, shape[0], x, m, prev)
    _checks.rows("old_log_prob", old, shape[:1], x.device)
    _checks.rows("advantages", advantages, shape[:1], x.device)
    _check_constants(x, prev, coefficients, old, advantages)
    return _backend.of(backend, m, x, prev)


@_dispatch.operation("ppo_clip_loss")
def _ppo_clip_loss(
    m: Tensor,
    x: Tensor,
    prev: Tensor,
    coefficients: Tensor,
    old: Tensor,
    advantages: Tensor,
    clip_range: float,
    advantage_clip: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss, log_prob, clipped, slope, each [N]."""
    _checks.coefficient_values(coefficients, stochastic=True)
    if backend == "triton":
        import sdpo_kernels.losses_triton as kernels

        return kernels.ppo_clip_loss(m, x, prev, coefficients, old, advantages, clip_range, advantage_clip)
    log_prob = log_prob_reference(m, x, prev, coefficients)
    loss, clipped, slope = ppo_reference(log_prob, old, advantages, clip_range, advantage_clip)
    return loss, log_prob, clipped, slope


@_ppo_clip_loss.register_fake
def _(m, x, prev, coefficients, old, advantages, clip_range, advantage_clip, backend):
    loss = m.new_empty(m.shape[0], dtype=sum_dtype(m, x, prev, coefficients))
    return loss, loss.clone(), m.new_empty(m.shape[0], dtype=torch.bool), loss.clone()


@_dispatch.operation("ppo_clip_loss_and_grad")
def _ppo_clip_loss_and_grad(
    m: Tensor,
    x: Tensor,
    prev: Tensor,
    coefficients: Tensor,
    old: Tensor,
    advantages: Tensor,
    clip_range: float,
    advantage_clip: float,
    grad_scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss, log_prob, clipped, each [N]; grad like m."""
    arguments = (m, x, prev, coefficients, old, advantages, clip_range, advantage_clip)
    if backend == "triton":
        import sdpo_kernels.losses_triton as kernels

        _checks.coefficient_values(coefficients, stochastic=True)
        return kernels.ppo_clip_loss_and_grad(*arguments, grad_scale)
    loss, log_prob, clipped, slope = _ppo_clip_loss.direct(*arguments, backend)
    return loss, log_prob, clipped, log_prob_grad.direct(grad_scale * slope, m, x, prev, coefficients, backend)


@_ppo_clip_loss_and_grad.register_fake
def _(m, x, prev, coefficients, old, advantages, clip_range, advantage_clip, grad_scale, backend):
    loss = m.new_empty(m.shape[0], dtype=sum_dtype(m, x, prev, coefficients))
    grad = torch.empty_like(m, memory_format=torch.contiguous_format)
    return loss, loss.clone(), m.new_empty(m.shape[0], dtype=torch.bool), grad


# Autograd, of both: d loss / d m = slope d rho / d m


def _setup(ctx, inputs, output):
    m, x, prev, coefficients, *_, ctx.backend = inputs
    ctx.save_for_backward(output[3], m, x, prev, coefficients)
    ctx.inputs = len(inputs)
    ctx.mark_non_differentiable(output[2], output[3])


def _backward(ctx, of_loss, of_log_prob, _clipped, _slope):
    slope, m, x, prev, coefficients = ctx.saved_tensors
    total = slope * of_loss.reshape(-1, *[1] * (slope.ndim - 1)) + of_log_prob
    grad = log_prob_grad(total, m, x, prev, coefficients, ctx.backend)
    return grad, *[None] * (ctx.inputs - 1)


_sdpo_loss.register_autograd(_backward, setup_context=_setup)
_ppo_clip_loss.register_autograd(_backward, setup_context=_setup)
