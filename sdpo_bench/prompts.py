"""Prompt lists: for training, held out, and for choosing learning rates."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from sdpo_bench.errors import UserError

ANIMALS = Path(__file__).parent / "assets" / "prompts.txt"
PICTURED = 8  # prompts of a run's grid of pictures
ALL = "animals"  # the name of that file on every machine: a path would be part of the run's id


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a UTF-8 text file, one per line. "animals" are the paper's 45.

    Only a line feed, with or without a carriage return, ends a line. Blank lines are skipped. Byte order marks and
    white space around a prompt are removed. UserError for a control character within a prompt, except tabs: no text
    encoder uses it, and it may mean that the file is something else.
    """
    file = ANIMALS if path == ALL else Path(path)
    try:
        text = file.read_bytes().decode("utf-8").replace("\ufeff", "")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts file {path} can't be read ({error}); expected text, one prompt a line") from error
    prompts = []
    for number, line in enumerate(text.split("\n"), 1):
        prompt = line.strip()
        for character in prompt:
            if unicodedata.category(character) == "Cc" and character != "\t":
                raise UserError(
                    f"prompts file {path}, line {number} has the control character U+{ord(character):04X}; remove it"
                )
        if prompt:
            prompts.append(prompt)
    if not prompts:
        raise UserError(f"prompts file {path} is empty; expected one prompt a line")
    return prompts


def compared(prompt: str) -> str:
    """A form of a prompt that is equal for two prompts that differ only in white space or in the form of their
    accents."""
    return " ".join(unicodedata.normalize("NFC", prompt).split())


def splits(seen: str | None = None, unseen: str | None = None) -> dict[str, list[str]]:
    """seen: trained on and reported; unseen: only reported; tuning: only for choosing settings.

    The default is the paper's 45 animals (DDPO's list): of every nine, the fifth is unseen, the third and the ninth are
    tuning. With other prompt files there is no tuning list.
    """
    animals = read_prompts(ANIMALS)
    default = {
        "seen": [p for i, p in enumerate(animals) if i % 9 not in (2, 4, 8)],
        "unseen": animals[4::9],
        "tuning": [p for i, p in enumerate(animals) if i % 9 in (2, 8)],
    }
    if seen is None and unseen is None:
        return default
    out = {"seen": read_prompts(seen) if seen else default["seen"], "unseen": read_prompts(unseen) if unseen else []}
    seen_forms = {compared(prompt) for prompt in out["seen"]}
    both = sorted({prompt for prompt in out["unseen"] if compared(prompt) in seen_forms})
    if both:
        raise UserError(f"prompts {both[:5]} are both trained on and held out; remove them from one file")
    return out | {"tuning": []}


def pictured(lists: dict[str, list[str]]) -> list[str]:
    """The prompts of a run's grid of pictures, a column each: the first ones that are seen, then unseen ones, half of
    all where there are so many."""
    unseen = lists["unseen"][: PICTURED // 2]
    return lists["seen"][: PICTURED - len(unseen)] + unseen
