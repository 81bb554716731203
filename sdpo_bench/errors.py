"""Errors a user can cause: one clear line that says what to do; the command line exits with code 2."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message names what came, what is expected, and what to do."""


def choose(kind: str, name: str, valid: Iterable[str]) -> str:
    """`name`, if it is one of `valid`; otherwise a UserError that lists them."""
    valid = sorted(valid)
    if name not in valid:
        raise UserError(f"unknown {kind} {name!r}; choose one of: {', '.join(valid)}")
    return name
