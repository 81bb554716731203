"""Which implementation runs: `auto` takes the fastest that the device has; an explicit choice never falls back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

BACKENDS = ("auto", "torch")
_current: ContextVar[str] = ContextVar("sdpo_kernels_backend", default="auto")


def resolve_backend(name: str | None = None) -> str:
    """The backend that an operation uses: its argument, else the surrounding `backend(...)`, else `auto`.

    Raises ValueError for a backend that does not exist here, rather than running another one in its place.
    """
    name = _current.get() if name is None else name
    if name not in BACKENDS:
        raise ValueError(f"backend={name!r} is not available; choose one of {', '.join(BACKENDS)}")
    return "torch"


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Within this context every operation uses the backend `name`."""
    resolve_backend(name)
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)
