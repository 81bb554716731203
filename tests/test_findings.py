"""What is written about the study is what its tables say: numbers copied by hand go stale."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NUMBER = r"[+-]?\d[\d,]*(?:\.\d+)?"
INTERVAL = re.compile(rf"{NUMBER} \[{NUMBER}, {NUMBER}\]")


@pytest.mark.parametrize("page", ["docs/findings.md", "README.md"])
def test_every_interval_that_is_quoted_stands_in_a_table(page):
    tables = {found for path in (ROOT / "results" / "full" / "tables").glob("*.md")
              for found in INTERVAL.findall(path.read_text())}
    quoted = INTERVAL.findall(" ".join((ROOT / page).read_text().split()))
    assert len(quoted) > 10
    assert [interval for interval in quoted if interval not in tables] == []
