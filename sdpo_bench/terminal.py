"""Printing on the terminal: texts from records, models or arguments are made safe for it."""

from __future__ import annotations

import re
from typing import TextIO

# Of a text only line ends and tabs may move the cursor. Changes of writing direction would show it in another order.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with control characters escaped, such as "\\x1b", so that a terminal shows them and does not execute
    them."""
    if text.isprintable():  # nearly every text is; the search below takes longer
        return text
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def echo(text: str, file: TextIO | None = None) -> None:
    """Prints a text that may contain text from outside the suite."""
    print(printable(text), file=file, flush=True)


def quiet_libraries() -> None:
    """Turns off the progress bars for reading local files. huggingface_hub's bars for downloads stay."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
