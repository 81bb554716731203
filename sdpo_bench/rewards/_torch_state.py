"""Rewards are often other people's code, which may change PyTorch's settings for the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def unchanged_torch() -> Iterator[None]:
    """Puts back, at its end, what code within may have set: default dtype and device, gradient mode, random state,
    number of threads, deterministic algorithms, whether denormal numbers are taken for 0, and how convolutions and
    products are computed, oneDNN's included."""
    cudnn = torch.backends.cudnn
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    onednn = torch.backends.mkldnn.enabled, torch.backends.mkldnn.deterministic
    denormals = _flushes_denormals()
    precision = torch.get_float32_matmul_precision()
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
            yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        torch.set_grad_enabled(grad)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = flags
        torch.backends.mkldnn.enabled, torch.backends.mkldnn.deterministic = onednn
        if _flushes_denormals() != denormals:
            torch.set_flush_denormal(denormals)
        if torch.get_float32_matmul_precision() != precision:
            torch.set_float32_matmul_precision(precision)


def _flushes_denormals() -> bool:
    """Whether this thread's processor takes denormal numbers for 0: PyTorch can set that, but not say it."""
    return bool((torch.tensor(1e-40, dtype=torch.float32, device="cpu") * 1.0) == 0)
