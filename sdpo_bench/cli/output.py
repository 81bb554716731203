"""Output that several commands share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import UseAppendAction

from sdpo_bench import plugins
from sdpo_bench.errors import UnknownName, UserError
from sdpo_bench.records.lookup import recorded_plugins


@dataclass(frozen=True, kw_only=True)
class TakesPlugins:
    """A command whose names may be those of plug-ins. The command line gives them to sdpo_bench/plugins before this
    command is imported."""

    plugin: UseAppendAction[tuple[str, ...]] = ()
    """A Python file or an installed module with methods, rewards or policies of your own; give it again for more
    (docs/adding.md)."""


def missing_plugins(raw: Path) -> dict[str, dict[str, Any]]:
    """The records of those plug-ins with which runs in `raw` were made and that are not given, by their sources."""
    given = {plugin.source for plugin in plugins.found()}
    return {source: record for source, record in recorded_plugins(raw).items() if source not in given}


def remedy(source: str, record: dict[str, Any]) -> str:
    """What to do about a plug-in of that record, which is not given."""
    return f"install {record['distribution']}" if "distribution" in record else f"give --plugin {source}"


@contextlib.contextmanager
def naming_plugins(raw: Path) -> Iterator[None]:
    """Says in the error for an unknown name which plug-in the runs in `raw` had it from."""
    try:
        yield
    except UnknownName as error:
        for source, record in missing_plugins(raw).items():
            if any(error.name in names for names in record["gives"].values()):
                raise UserError(
                    f"{error.name} is of the plug-in {source}, with which runs in {raw} were made; "
                    f"{remedy(source, record)}"
                ) from error
        raise


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
