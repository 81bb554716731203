"""Checks of arguments: each error names the argument, its value and what is expected."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LATENT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def latents(lead: int, **tensors: Tensor) -> torch.Size:
    """Checks that all `tensors` have one shape with at least `lead` + 1 dimensions, one device, a float dtype, and
    samples that are contiguous. Returns the shape."""
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
        if t.numel() == 0:
            raise ValueError(f"{name} has shape {tuple(t.shape)}, which holds nothing; expected at least one element")
        if not contiguous_within(t, lead):
            raise ValueError(
                f"{name} has strides {t.stride()} for shape {tuple(t.shape)}; expected samples that are contiguous "
                f"in themselves (call .contiguous())"
            )
    return reference.shape


def contiguous_within(t: Tensor, lead: int) -> bool:
    """Whether the elements of each sample, after the `lead` leading dimensions, are contiguous."""
    expected = 1
    for size, stride in zip(reversed(t.shape[lead:]), reversed(t.stride()[lead:]), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def rows(name: str, t: Tensor, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Checks that `t` has exactly this shape, is on this device and has this dtype (by default any float dtype)."""
    if tuple(t.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(t.shape)}; expected {tuple(shape)}")
    if t.device != device:
        raise ValueError(f"{name} is on {t.device}; expected {device}")
    if dtype is None and t.dtype not in LATENT_DTYPES:
        raise TypeError(f"{name} has dtype {t.dtype}; expected one of {[str(d) for d in LATENT_DTYPES]}")
    if dtype is not None and t.dtype != dtype:
        raise TypeError(f"{name} has dtype {t.dtype}; expected {dtype}")


def coefficients(t: Tensor, n: int, *latents: Tensor) -> None:
    """Checks rows (a, b, c, d, sigma) of [N, 5]: float32, or float64 if one of the `latents` has it."""
    rows("coefficients", t, (n, 5), latents[0].device)
    wide = any(x.dtype == torch.float64 for x in latents)
    if t.dtype != torch.float32 and not (wide and t.dtype == torch.float64):
        raise TypeError(f"coefficients has dtype {t.dtype}; expected float32: call .float()")


def coefficient_values(t: Tensor, *, stochastic: bool) -> None:
    """Checks that values are finite, and sigma > 0 if a log-prob is needed. Only on the CPU, because reading values of
    an accelerator makes the host wait. There such a row gives a log-prob that is not finite, and
    `sdpo_kernels.coefficients` refuses it beforehand."""
    if t.device.type != "cpu":
        return
    if not bool(torch.isfinite(t).all()):
        raise ValueError("coefficients holds a value that is not finite; expected finite (a, b, c, d, sigma)")
    if stochastic and not bool((t[:, 4] > 0).all()):
        raise ValueError("coefficients has sigma <= 0; expected sigma > 0, since a log-prob is wanted")


def constants(**tensors: Tensor) -> None:
    """Refuses tensors that require a gradient: only the model's output is differentiated, and their gradient would be
    lost silently."""
    for name, t in tensors.items():
        if t.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} requires a gradient, but only model_output is differentiated; detach {name}")


def positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} is {value}; expected a finite number > 0")
