"""Errors that a user can cause: one clear line that says what to do. The command line exits with code 2."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message names the value, what is expected, and what to do."""


class UnknownName(UserError):
    """A name that nothing here has; perhaps that of a plug-in which is not given."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def choose(kind: str, name: str, valid: Iterable[str]) -> str:
    """Returns `name` if it is one of `valid`; otherwise raises an UnknownName that lists them."""
    valid = sorted(valid)
    if name not in valid:
        raise UnknownName(name, f"unknown {kind} {name!r}; choose one of: {', '.join(valid)}")
    return name


FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full_disk(error: BaseException) -> bool:
    """Whether a write failed for lack of space: the disk is full, a quota is used up or a file has its maximum size.

    The texts are compared too, because not every library that writes files raises OSError.
    """
    texts = (os.strerror(code) for code in FULL_DISK)
    return getattr(error, "errno", None) in FULL_DISK or any(text in str(error) for text in texts)
