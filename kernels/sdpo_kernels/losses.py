"""The clipped losses of SDPO and of PPO (DDPO, the GRPO family) from the model's output, with their gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sdpo_kernels import _checks
from sdpo_kernels._backend import resolve_backend
from sdpo_kernels.transition import _log_prob

LOG_RATIO_BOUND = 20.0  # exp(20) = 5e8: beyond it the ratio is held, so that neither loss nor gradient overflows


class SDPOLoss(NamedTuple):
    """loss [P] (or [N]), log_prob [P, 2] (or [N]), clipped bool, shaped like loss."""

    loss: Tensor
    log_prob: Tensor
    clipped: Tensor


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

    Latents [P, 2, ...], `coefficients` [P, 5], `old_log_prob` and `advantages` [P, 2], `weight` [P].

        D_i = rho_i - old_i,  u = w (D_1 - D_2) - dA,  c = w (clip D_1 - clip D_2) - dA,  loss = max(u^2, c^2)
    """
    resolve_backend(backend)
    shape = _checks.latents(2, model_output=model_output, sample=sample, prev_sample=prev_sample)
    pairs = shape[0]
    if shape[1] != 2:
        raise ValueError(f"model_output has shape {shape}; expected [P, 2, ...], the two samples of a pair")
    _checks.coefficients(coefficients, pairs, sample.device, stochastic=True)
    for name, t in (("old_log_prob", old_log_prob), ("advantages", advantages)):
        _checks.rows(name, t, (pairs, 2), sample.device)
    _checks.rows("weight", weight, (pairs,), sample.device)
    _checks.positive("clip_range", clip_range)
    _checks.positive("advantage_clip", advantage_clip)

    log_prob = _log_prob(
        model_output.flatten(0, 1),
        sample.flatten(0, 1),
        prev_sample.flatten(0, 1),
        coefficients.repeat_interleave(2, 0),
    ).reshape(pairs, 2)
    log_ratio = log_prob - old_log_prob
    clipped_ratio = log_ratio.clamp(-clip_range, clip_range)
    advantages = advantages.clamp(-advantage_clip, advantage_clip)
    target = advantages[:, 0] - advantages[:, 1]
    unclipped = (weight * (log_ratio[:, 0] - log_ratio[:, 1]) - target).square()
    clipped = (weight * (clipped_ratio[:, 0] - clipped_ratio[:, 1]) - target).square()
    return SDPOLoss(torch.maximum(unclipped, clipped), log_prob, (log_ratio.abs() > clip_range).any(1))


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

    Latents [N, ...], `coefficients` [N, 5], `old_log_prob` and `advantages` [N].

        q = exp(rho - old),  loss = max(-A q, -A clip(q, 1 - e, 1 + e))
    """
    resolve_backend(backend)
    shape = _checks.latents(1, model_output=model_output, sample=sample, prev_sample=prev_sample)
    _checks.coefficients(coefficients, shape[0], sample.device, stochastic=True)
    for name, t in (("old_log_prob", old_log_prob), ("advantages", advantages)):
        _checks.rows(name, t, shape[:1], sample.device)
    _checks.positive("clip_range", clip_range)
    _checks.positive("advantage_clip", advantage_clip)

    log_prob = _log_prob(model_output, sample, prev_sample, coefficients)
    ratio = (log_prob - old_log_prob).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    advantages = advantages.clamp(-advantage_clip, advantage_clip)
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range))
    return SDPOLoss(loss, log_prob, (ratio - 1).abs() > clip_range)


def _with_grad(loss_function, grad_scale: float, model_output: Tensor, *args, **kwargs) -> tuple[SDPOLoss, Tensor]:
    with torch.enable_grad():
        m = model_output.detach().requires_grad_()
        result = loss_function(m, *args, **kwargs)
        (grad,) = torch.autograd.grad(result.loss.sum() * grad_scale, m)
    return SDPOLoss(result.loss.detach(), result.log_prob.detach(), result.clipped), grad


def sdpo_loss_and_grad(model_output: Tensor, *args, grad_scale: float = 1.0, **kwargs) -> tuple[SDPOLoss, Tensor]:
    """`sdpo_loss` and d sum(grad_scale * loss) / d model_output, without a graph through the caller's model."""
    return _with_grad(sdpo_loss, grad_scale, model_output, *args, **kwargs)


def ppo_clip_loss_and_grad(model_output: Tensor, *args, grad_scale: float = 1.0, **kwargs) -> tuple[SDPOLoss, Tensor]:
    """`ppo_clip_loss` and d sum(grad_scale * loss) / d model_output."""
    return _with_grad(ppo_clip_loss, grad_scale, model_output, *args, **kwargs)
