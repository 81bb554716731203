"""Text in Markdown, as tables and model cards have it. Without pandas: every process that trains imports this."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sdpo_bench.terminal import printable

DASH = "–"

# What Markdown would take for markup in a label or reward of the records: tags and comments, entities, links and
# pictures, cells' borders, code; and a backslash, which would take the escape away.
_MARKUP = re.compile(r"(`[^`<\[\\|&\n]*`)|[\\`|]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|\](?=[(\[])|!(?=\[)")


def escaped(text: str) -> str:
    """Text of the tables as Markdown, in which it says the same: `code` without signs of markup stays, and so does
    **bold**; every other sign is escaped, so that no label is run, drawn or followed as a link."""

    def escape(found: re.Match[str]) -> str:
        return found[1] or {"<": "&lt;", "&": "&amp;"}.get(found[0], "\\" + found[0])

    return _MARKUP.sub(escape, printable(text))


def alt(text: str) -> str:
    """A figure's description between the brackets of its link."""
    return re.sub(r"(?<!\\)[\[\]]", r"\\\g<0>", escaped(text))


def grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in GitHub's Markdown."""
    lines = ["| " + " | ".join(map(escaped, cells)) + " |" for cells in (header, *rows)]
    return [lines[0], "|---" * len(header) + "|", *lines[1:]]
