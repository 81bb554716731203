"""Arguments of a command, and the parser's messages in one line."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any

import tyro

from sdpo_bench.errors import UserError


def parse(cls: type, arguments: Sequence[str], prog: str, default: Any = None) -> Any:
    """Parses the arguments of a command, an instance of `cls`. What is not given is that of `default`, another
    instance, or the class's own. UserError with tyro's message in one line if they are bad."""
    boxed = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxed):
            return tyro.cli(cls, args=list(arguments), prog=prog, default=default)
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(f"{unboxed(boxed.getvalue())}; see `{prog} --help`") from None


def unboxed(text: str) -> str:
    """The message in a box that tyro draws, without the frame, the copy of the help and the line breaks."""
    # The title is in the frame's first line, or above a line of dashes if the terminal has no frame characters.
    lines = [line.strip(" │") for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    sections = [" ".join(section.split()) for section in re.split("[─-]{20,}", "\n".join(lines))]
    message, *more = sections if "╭" in text else sections[1:]
    for prefix, words in (("Perhaps you meant: ", "perhaps you meant"), ("Argument helptext: ", "expected")):
        if more and more[0].startswith(prefix):
            option = re.match(r"--\S+( ([A-Z]{3,}|\{\S+|\[[^a-z]+\]))?", more[0].removeprefix(prefix))
            message = f"{message.rstrip('.')}; {words} {option[0] if option else ''}"
    return message.rstrip(".")
