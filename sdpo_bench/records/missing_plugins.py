"""Plug-ins with which runs were made and that are not given now."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdpo_bench import plugins
from sdpo_bench.errors import UnknownName, UserError
from sdpo_bench.records.lookup import recorded_plugins


def missing_plugins(place: Path) -> dict[str, dict[str, Any]]:
    """The records of those plug-ins with which a run, or the runs of a folder `raw`, were made and that are not given,
    by their sources."""
    given = {plugin.source for plugin in plugins.found()}
    return {source: record for source, record in recorded_plugins(place).items() if source not in given}


def remedy(source: str, record: dict[str, Any], in_python: bool = False) -> str:
    """The end of an error message: how to give the plug-in of that record."""
    if "distribution" in record:
        return f"install {record['distribution']}"
    if in_python:
        return f"set {plugins.VARIABLE}={source} before sdpo_bench is first imported"
    return f"give --plugin {source}"


@contextlib.contextmanager
def naming_plugins(place: Path | None, in_python: bool = False) -> Iterator[None]:
    """Says in the error for an unknown name which plug-in it is of: the run in the folder `place`, or a run of a folder
    `raw`, was made with it. `in_python`: for a caller who has no command line."""
    try:
        yield
    except UnknownName as error:
        if place is None:
            raise
        for source, record in missing_plugins(place).items():
            if any(error.name in names for names in record["gives"].values()):
                made = f"runs in {place} were" if place.name == "raw" else f"{place} was"
                raise UserError(
                    f"{error.name} is of the plug-in {source}, with which {made} made; "
                    f"{remedy(source, record, in_python)}"
                ) from error
        raise
