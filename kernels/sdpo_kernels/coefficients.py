"""Coefficient tables (a, b, c, d, sigma) from a diffusers scheduler, computed in float64 on the host.

This version builds DDIM's, for models that predict epsilon, v or the sample.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def trailing_timesteps(steps: int, train_steps: int = 1000) -> Tensor:
    """int64 [K], noisiest first: t = round(T - i T / K) - 1, diffusers' "trailing" spacing (arXiv 2305.08891)."""
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps is {steps}; expected 1 to {train_steps}, the number of training timesteps")
    # The increment as numpy.arange(N, 0, -N / K) computes it: its rounding error decides the halves in diffusers.
    increment = (train_steps - train_steps / steps) - train_steps
    return (train_steps + torch.arange(steps, dtype=torch.float64) * increment).round().long() - 1


def ddim(scheduler: Any, steps: int, *, eta: float = 1.0, stochastic_steps: int | None = None) -> tuple[Tensor, Tensor]:
    """DDIM (arXiv 2010.02502, eq. 12 and 16): timesteps int64 [K] and coefficients float64 [K, 5].

    A step's previous timestep is the next one of the schedule, and 0 for the last step. The first
    `stochastic_steps` of the steps (default: all) need sigma > 0, since their log-prob is wanted.
    Raises ValueError where the schedule leaves sigma = 0 there, or where a coefficient is not finite.
    """
    prediction = scheduler.config.prediction_type
    if prediction not in PREDICTION_TYPES:
        raise ValueError(f"the scheduler's prediction_type is {prediction!r}; expected one of {PREDICTION_TYPES}")
    abar = scheduler.alphas_cumprod.double().cpu()
    timesteps = trailing_timesteps(steps, len(abar))
    abar_t = abar[timesteps]
    abar_prev = abar[torch.cat([timesteps[1:], timesteps.new_zeros(1)])]
    variance = eta**2 * (1 - abar_prev) / (1 - abar_t) * (1 - abar_t / abar_prev)
    sigma = variance.clamp_min(0).sqrt()
    A, S = abar_t.sqrt(), (1 - abar_t).sqrt()
    Ap, D = abar_prev.sqrt(), (1 - abar_prev - sigma**2).clamp_min(0).sqrt()
    zero, one = torch.zeros_like(A), torch.ones_like(A)
    rows = {
        "epsilon": (Ap / A, D - Ap * S / A, 1 / A, -S / A, sigma),
        "sample": (D / S, Ap - D * A / S, zero, one, sigma),
        "v_prediction": (Ap * A + D * S, D * A - Ap * S, A, -S, sigma),
    }[prediction]
    table = torch.stack(rows, 1)
    for k in range(steps):
        if not torch.isfinite(table[k]).all():
            raise ValueError(
                f"step {k} (timestep {int(timesteps[k])}) has a coefficient that is not finite: this schedule has zero "
                f"signal there, which prediction_type {prediction!r} cannot use"
            )
        if k < (steps if stochastic_steps is None else stochastic_steps) and not sigma[k] > 0:
            raise ValueError(
                f"step {k} (timestep {int(timesteps[k])}) has sigma = 0, so it has no log-prob to train; choose fewer "
                f"steps, eta > 0, or leave the step out of training (--no-train-last-step for the last one)"
            )
    return timesteps, table
