"""Rewards by their names: `pickscore`, `imagereward:published`, `0.5*pickscore+0.5*aesthetic`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from sdpo_bench.errors import UserError

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
TERM = re.compile(
    rf"\s*(?:(?P<weight>{NUMBER})\s*\*\s*)?(?P<name>[A-Za-z_][\w.-]*)(?:@(?P<revision>[\w./-]+))?(?::(?P<scale>\w+))?\s*"
)


@dataclass(frozen=True)
class Term:
    """One reward of a sum. `revision` replaces the pinned one; `published` asks for the other scale."""

    name: str
    weight: float = 1.0
    revision: str = ""
    published: bool = False

    @property
    def label(self) -> str:
        """The term without its weight."""
        return self.name + (f"@{self.revision}" if self.revision else "") + (":published" if self.published else "")

    def __str__(self) -> str:
        weight = repr(self.weight).removesuffix(".0")
        return self.label if self.weight == 1 else f"{weight}*{self.label}"


def parse(spec: str) -> list[Term]:
    """The terms of `[WEIGHT*]NAME[@REVISION][:SCALE]`, joined with +. UserError for anything else."""
    terms: list[Term] = []
    position = 0
    while True:
        match = TERM.match(spec, position)
        if not match or (match.end() < len(spec) and spec[match.end()] != "+"):
            raise UserError(
                f"reward {spec!r} can't be read at {spec[position:]!r}; expected NAME, NAME:published, "
                f"NAME@REVISION, or a sum such as 0.5*pickscore+0.5*aesthetic"
            )
        weight = float(match["weight"] or 1)
        if weight == 0 or not math.isfinite(weight):
            raise UserError(f"reward {spec!r}: weight {match['weight']} of {match['name']}; expected a number, not 0")
        if match["scale"] not in (None, "raw", "published"):
            raise UserError(f"reward {spec!r}: unknown scale {match['scale']!r}; choose one of: published, raw")
        terms.append(Term(match["name"], weight, match["revision"] or "", match["scale"] == "published"))
        if match.end() == len(spec):
            return terms
        position = match.end() + 1
