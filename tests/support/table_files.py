"""Reads the files in tables/ of a profile: pages with a section for each table, and CSVs that tables share."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd


def markdown_tables(profile: Path) -> dict[str, str]:
    """The Markdown of each table of a profile, by name: a section of a page, headed by that name."""
    found: dict[str, str] = {}
    for page in sorted((profile / "tables").glob("*.md")):
        _, *parts = re.split(r"^## (.*)\n", page.read_text(), flags=re.M)
        sections = dict(zip(parts[::2], parts[1::2], strict=True))
        assert not found.keys() & sections.keys(), "every table stands on one page"
        found |= sections
    return found


def csv_rows(profile: Path, name: str, steps: int) -> pd.DataFrame:
    """The rows of a CSV that are of runs trained with K = `steps`."""
    frame = pd.read_csv(profile / "tables" / f"{name}.csv")
    return frame[frame["training_steps"] == steps]
