"""Argument checks: each error names the argument, what came and what is expected."""

from __future__ import annotations

import torch
from torch import Tensor

LATENT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def latents(lead: int, **tensors: Tensor) -> tuple[int, ...]:
    """All `tensors` share one shape with at least `lead` + 1 dimensions, one device and a float dtype."""
    (first, reference), *_ = tensors.items()
    for name, t in tensors.items():
        if t.dtype not in LATENT_DTYPES:
            raise TypeError(f"{name} has dtype {t.dtype}; expected one of {[str(d) for d in LATENT_DTYPES]}")
        if t.ndim < lead + 1:
            raise ValueError(f"{name} has shape {tuple(t.shape)}; expected {lead} leading dimension(s) and a latent")
        if t.shape != reference.shape:
            raise ValueError(f"{name} has shape {tuple(t.shape)}; expected {first}'s {tuple(reference.shape)}")
        if t.device != reference.device:
            raise ValueError(f"{name} is on {t.device}; expected {first}'s device {reference.device}")
    return tuple(reference.shape)


def rows(name: str, t: Tensor, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype | None = None) -> None:
    """`t` has exactly this shape, lies on this device and (if given) has this dtype."""
    if tuple(t.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(t.shape)}; expected {shape}")
    if t.device != device:
        raise ValueError(f"{name} is on {t.device}; expected {device}")
    if dtype is not None and t.dtype != dtype:
        raise TypeError(f"{name} has dtype {t.dtype}; expected {dtype}")


def coefficients(t: Tensor, n: int, device: torch.device, *, stochastic: bool) -> None:
    """Rows (a, b, c, d, sigma), finite; sigma > 0 where a log-prob is wanted."""
    rows("coefficients", t, (n, 5), device)
    if t.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"coefficients has dtype {t.dtype}; expected float32")
    if t.device.type == "cpu":  # on an accelerator this would synchronise: the builders check there
        if not bool(torch.isfinite(t).all()):
            raise ValueError("coefficients holds a value that is not finite; expected finite (a, b, c, d, sigma)")
        if stochastic and not bool((t[:, 4] > 0).all()):
            raise ValueError("coefficients has sigma <= 0; expected sigma > 0, since a log-prob is wanted")


def positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} is {value}; expected a number > 0")
