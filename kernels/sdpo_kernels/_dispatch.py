"""Decides whether an operation must pass through torch.library, and keeps its checks, made once per layout of
arguments.

The passage takes longer than the launch of a kernel. It is needed where somebody watches: a compiler or tracer, which
records the operation; a transform or mode, which puts something in its place; autograd, which differentiates it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdpo_kernels import _backend

MOST_KEPT = 1024  # layouts; a training run has a few dozen

_passed: dict[tuple[Any, ...], str] = {}


def operation(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Registers a function with torch.library as `sdpo_kernels::name`; the function itself stays available as
    `.direct`."""

    def register(function: Callable[..., Any]) -> Any:
        registered: Any = torch.library.custom_op(f"sdpo_kernels::{name}", function, mutates_args=())
        registered.direct = function
        return registered

    return register


def watched() -> bool:
    """Whether operations are being recorded, transformed or replaced: torch.compile, torch.export, make_fx, torch.func,
    torch.jit.trace, FakeTensorMode and other modes."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._get_tracing_state()
    )


def prepare(check: Callable[..., str], backend: str | None, *tensors: Tensor | None) -> tuple[str, bool]:
    """Returns the tensors' backend, as `check(backend, *tensors)` does, and whether the operation may run directly.

    Directly: as a function, past torch.library. So it may where nobody watches, no gradient is wanted and all tensors
    are plain ones. There a check is made once for each layout of the tensors: it must not read their values.
    """
    if watched():
        return check(backend, *tensors), False
    differentiate = torch.is_grad_enabled()
    key: list[Any] = [check, backend, _backend.settings()]
    for t in tensors:
        if t is None:
            key.append(None)
        elif type(t) is not Tensor or (differentiate and t.requires_grad) or t.is_neg():
            # A subclass watches its operations, and a lazily negated tensor is the dispatcher's to negate.
            return check(backend, *tensors), False
        else:
            key += (t.shape, t.stride(), t.dtype, t.device)
    layout = tuple(key)
    chosen = _passed.get(layout)
    if chosen is None:
        chosen = check(backend, *tensors)
        if len(_passed) >= MOST_KEPT:
            _passed.clear()
        _passed[layout] = chosen
    return chosen, True
