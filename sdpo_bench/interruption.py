"""SIGINT and SIGTERM stop a run at a point where the state after its last whole epoch can be saved.

A handler only notes the signal. The run checks for it between denoising steps and between optimiser steps. A program
that calls `train` without installing the handlers has Python's own KeyboardInterrupt, and nothing here takes effect.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal stopped the work. `said` says what was saved."""

    def __init__(self, number: int, said: str = "") -> None:
        super().__init__(said)
        self.number, self.said = number, said


def exit_code(error: KeyboardInterrupt) -> int:
    """The exit code after a signal: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT)


class _Watch:
    number: int | None = None
    may_stop: Callable[[], bool] | None = None

    def __init__(self, launched: bool) -> None:
        self.launched = launched

    def handle(self, number: int, _: FrameType | None) -> None:
        # A launcher sends SIGTERM after a SIGINT that its processes have had themselves.
        if self.number is not None and not (self.launched and self.number != number):
            os._exit(128 + number)
        first, self.number = self.number is None, number
        if self.may_stop is None:
            raise Interrupted(number)
        if first:  # not by print, which the signal may have interrupted
            os.write(2, b"\nstopping as soon as the state is saved; a second signal stops at once\n")


_watch: _Watch | None = None


@contextlib.contextmanager
def watched(launched: bool = False) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM raise `Interrupted`; in `deferred` parts only where these allow it. A second signal
    ends the process at once. `launched`: whether a launcher started this process with others."""
    global _watch
    before = {}
    _watch = _Watch(launched)
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN:  # as of a shell's background job
                before[number] = handler or signal.SIG_DFL
                signal.signal(number, _watch.handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _watch = None


@contextlib.contextmanager
def deferred(may_stop: Callable[[], bool]) -> Iterator[None]:
    """Inside, a signal raises `Interrupted` at the next `check` at which `may_stop()` is true, and at the latest at the
    end."""
    if _watch is not None:
        _watch.may_stop = may_stop
    try:
        yield
    finally:
        if _watch is not None:
            _watch.may_stop = None
    if (number := pending()) is not None:
        raise Interrupted(number, "the run is finished")


def is_watched() -> bool:
    return _watch is not None


def is_deferred() -> bool:
    """Whether only `check` raises signals, instead of raising them where they arrive."""
    return _watch is not None and _watch.may_stop is not None


def pending() -> int | None:
    """The signal that has arrived, if any."""
    return None if _watch is None else _watch.number


def check() -> None:
    """Raises `Interrupted` if a signal has arrived and the work may stop here."""
    if _watch is not None and _watch.number is not None and _watch.may_stop is not None and _watch.may_stop():
        raise Interrupted(_watch.number)
