"""Prompt lists: what is trained on, what is held out, and what learning rates are chosen on."""

from __future__ import annotations

from pathlib import Path

from sdpo_bench.errors import UserError

ANIMALS = Path(__file__).parent / "assets" / "prompts.txt"
ALL = "animals"  # the name of that file on every machine: a path would be part of the run's id


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a text file, one a line; blank lines are skipped. "animals" are the paper's 45."""
    file = ANIMALS if path == ALL else Path(path)
    try:
        prompts = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts file {path} can't be read ({error}); expected text, one prompt a line") from error
    if not prompts:
        raise UserError(f"prompts file {path} is empty; expected one prompt a line")
    return prompts


def splits(seen: str | None = None, unseen: str | None = None) -> dict[str, list[str]]:
    """seen: trained on and reported; unseen: reported only; tuning: for choosing settings only.

    The default is the paper's 45 animals (DDPO's list): of every nine, the fifth is unseen, the third and the ninth
    are tuning. With files of one's own there is no tuning list.
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
    both = sorted(set(out["seen"]) & set(out["unseen"]))
    if both:
        raise UserError(f"prompts {both[:5]} are both trained on and held out; take them out of one file")
    return out | {"tuning": []}
