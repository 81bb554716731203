"""A GPU that is not there: Triton specialises, compiles and launches for it on any machine, and nothing is executed.

What is real: `JITFunction.run`, which reads dtypes, alignment and values off the arguments, the compiler, and the
launch as far as the driver. What is not: loading the machine code and running it. Arguments are CPU tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

SHARED_MEMORY = {80: 166912, 90: 232448, 100: 232448}  # bytes that a program may have, by architecture


class StubDriver:
    """What Triton asks of a driver, answered for a GPU of `architecture` (90 is sm_90)."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": SHARED_MEMORY[architecture]},
            load_binary=lambda name, binary, shared, device: (name, name, 0, 0, 1024),
            unload_module=lambda module: None,
        )

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # Triton keeps kernels by device, so each architecture has to be another

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *arguments: None


class Launch(NamedTuple):
    kernel: JITFunction
    compiled: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]


@contextmanager
def stub_gpu(architecture: int) -> Iterator[None]:
    """Within it every kernel is compiled for `architecture`, and its launch does nothing."""
    with mock.patch.object(driver, "_active", StubDriver(architecture)):
        yield


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """The launches that are made within it, in order."""
    launches: list[Launch] = []
    run = JITFunction.run

    def recording(kernel: JITFunction, *arguments: Any, **options: Any) -> Any:
        given = dict(options)  # Triton adds to it
        compiled = run(kernel, *arguments, **options)
        launches.append(Launch(kernel, compiled, arguments, given))
        return compiled

    with mock.patch.object(JITFunction, "run", recording):
        yield launches
