"""Output that several commands share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tyro.conf import UseAppendAction


@dataclass(frozen=True, kw_only=True)
class TakesPlugins:
    """A command whose names may be those of plug-ins. The command line gives them to sdpo_bench/plugins before this
    command is imported."""

    plugin: UseAppendAction[tuple[str, ...]] = ()
    """A Python file or an installed module with methods, rewards or policies of your own; give it again for more
    (docs/adding.md)."""


def evaluation_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of means over prompts and noises: a line per reward and split, a column per number of steps."""
    steps = list(dict.fromkeys(row["steps"] for row in rows))
    cells: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        for split, prompts in row["values"].items():
            values = [value for noises in prompts.values() for value in noises]
            cells.setdefault((row["reward"], split), {})[row["steps"]] = sum(values) / len(values)
    width = max(len("reward, prompts"), *(len(f"{reward}, {split}") for reward, split in cells))
    lines = [f"{'reward, prompts':<{width}}" + "".join(f"{f'{k} steps':>10}" for k in steps)]
    for (reward, split), means in cells.items():
        lines.append(f"{f'{reward}, {split}':<{width}}" + "".join(f"{means[k]:>10.4f}" for k in steps))
    return "\n".join(lines)
