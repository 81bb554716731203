"""Chooses the implementation: `auto` takes the fastest that the device has; an explicit choice never falls back."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

BACKENDS = ("auto", "torch", "triton")

HAVE_TRITON = importlib.util.find_spec("triton") is not None


def _checked(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(
            f"backend={name!r} does not exist; choose one of {', '.join(BACKENDS)} (as an argument, or in the "
            f"environment as SDPO_KERNELS_BACKEND)"
        )
    return name


# Of the process, not of a thread: torch.compile can guard a global, but not a ContextVar.
_current = os.environ.get("SDPO_KERNELS_BACKEND", "auto")


# Triton's interpreter takes tensors on the CPU. Triton looks once too, where a kernel is defined.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def settings() -> tuple[str, bool, bool]:
    """The state that `resolve_backend` reads in addition to its arguments."""
    return _current, HAVE_TRITON, INTERPRETED


def resolve_backend(
    name: str | None = None, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> str:
    """Returns the backend, `torch` or `triton`, for tensors of this device and dtype.

    The choice is `name`; without it the surrounding `backend(...)`, then the environment's SDPO_KERNELS_BACKEND, then
    `auto`: Triton for CUDA tensors, PyTorch for others and for float64. If the choice cannot run, it raises an error
    (ValueError; TypeError for float64; RuntimeError without Triton) and does not fall back.
    """
    name = _checked(_current if name is None else name)
    device = torch.device(device)
    if name == "torch" or (name == "auto" and (device.type != "cuda" or dtype == torch.float64)):
        return "torch"
    if not HAVE_TRITON:
        raise RuntimeError(
            "Triton is not installed, which CUDA tensors use: pip install triton, or choose backend='torch' "
            "(SDPO_KERNELS_BACKEND=torch in the environment)"
        )
    if device.type != "cuda" and not INTERPRETED:
        raise ValueError(
            f"backend='triton' needs CUDA tensors, and the device is {device}; choose 'auto' or 'torch' (as an "
            f"argument, or in the environment as SDPO_KERNELS_BACKEND)"
        )
    if dtype == torch.float64:
        raise TypeError("backend='triton' has no float64; choose 'auto' or 'torch', or float16, bfloat16 or float32")
    return "triton"


def of(name: str | None, *tensors: Tensor) -> str:
    """Calls `resolve_backend` for these tensors, which are on one device."""
    wide = any(t.dtype == torch.float64 for t in tensors)
    return resolve_backend(name, tensors[0].device, torch.float64 if wide else torch.float32)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Makes every operation of the process use the backend `name` in this context, unless the call names another."""
    global _current
    previous, _current = _current, _checked(name)
    try:
        yield
    finally:
        _current = previous
