"""Protects PyTorch's settings from rewards, which are often other people's code and may change them for the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch

T = TypeVar("T")


@contextmanager
def unchanged_torch() -> Iterator[None]:
    """Restores the settings that code within may have changed: default dtype and device, gradient mode, random state,
    number of threads, deterministic algorithms, flushing of denormal numbers, and how convolutions and products are
    computed, including oneDNN's."""
    cudnn = torch.backends.cudnn
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    onednn = torch.backends.mkldnn.enabled, torch.backends.mkldnn.deterministic
    denormals = _flushes_denormals()
    precision = Precision.now()
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
        precision.put_back()


class Precision(NamedTuple):
    """How float32 is multiplied: PyTorch's two older flags, and since 2.9 a setting for each part of a library.

    The two contradict each other after a program has used both, and then PyTorch refuses to say the older ones: None.
    """

    products: str | None
    cudnn: bool | None
    parts: dict[str, str]

    @classmethod
    def now(cls) -> Precision:
        return cls(
            _unless_refused(torch.get_float32_matmul_precision),
            _unless_refused(lambda: torch.backends.cudnn.allow_tf32),
            {name: part.fp32_precision for name, part in _parts().items()},
        )

    def put_back(self) -> None:
        if Precision.now() == self:
            return
        # The older flags first: they set the parts too.
        if self.products is not None:
            torch.set_float32_matmul_precision(self.products)
        if self.cudnn is not None:
            torch.backends.cudnn.allow_tf32 = self.cudnn
        for name, part in _parts().items():
            part.fp32_precision = self.parts[name]


def _parts() -> dict[str, Any]:
    """The parts with a precision setting, by name; none before PyTorch 2.9."""
    if not hasattr(torch.backends, "fp32_precision"):
        return {}
    cudnn: Any = torch.backends.cudnn
    onednn: Any = torch.backends.mkldnn
    return {
        "CUDA products": torch.backends.cuda.matmul,
        "cuDNN convolutions": cudnn.conv,
        "cuDNN recurrent": cudnn.rnn,
        "oneDNN products": onednn.matmul,
        "oneDNN convolutions": onednn.conv,
        "oneDNN recurrent": onednn.rnn,
    }


def _unless_refused(get: Callable[[], T]) -> T | None:
    try:
        return get()
    except RuntimeError:
        return None


def _flushes_denormals() -> bool:
    """Whether this thread flushes denormal numbers to 0. PyTorch can set that, but not report it."""
    return bool((torch.tensor(1e-40, dtype=torch.float32, device="cpu") * 1.0) == 0)
