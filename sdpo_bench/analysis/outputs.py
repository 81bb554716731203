"""Folders of results and what is generated in them: profiles, the paper's curves.

Reads records only: imports no PyTorch.
"""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

from sdpo_bench.analysis.across import Across
from sdpo_bench.analysis.comparisons import Results, load_results
from sdpo_bench.analysis.paper import CURVES, paper_files
from sdpo_bench.analysis.report import profile_files
from sdpo_bench.records import generated
from sdpo_bench.records.packed import MANIFEST, is_packed
from sdpo_bench.records.provenance import repository


def reference_results() -> Path:
    """The committed results, for comparison."""
    return (repository() or Path.cwd()) / "results"


def shown(path: Path) -> str:
    """A path as short as it can be written here."""
    with contextlib.suppress(ValueError):
        return str(path.resolve().relative_to(Path.cwd()))
    return str(path)


def sources(folder: Path) -> list[Path]:
    """The files that a folder's tables are made from: a profile's records (raw or packed) and plan, or the paper's
    curves. Empty for a folder that holds none."""
    found = [path for path in (folder / "raw", folder / MANIFEST, folder / CURVES) if path.exists()]
    if not found and is_packed(folder):  # a manifest that is lost is told by whoever reads it
        found = [folder / MANIFEST]
    return [*found, folder / "plan.json"] if found and (folder / "plan.json").exists() else found


def files(folder: Path, tex: bool = False, across: Across | None = None) -> dict[str, bytes]:
    """All that is generated in a folder, by name: tables (`tex`: as LaTeX too), figures and pages. `across` gets what
    the page over all profiles shows of them."""
    if (folder / CURVES).is_file():
        return paper_files(folder, tex)
    results = load_results(folder)
    if across is not None:
        across.add(results)
    return profile_files(results, tex)


def write_profile(folder: Path) -> Results:
    """Writes tables, figures and report of a profile's folder, as `write_all`; the results that they show."""
    read: list[Results] = []

    def build() -> dict[str, bytes]:  # called when no other process writes there, of which it must see the records
        read.append(load_results(folder))
        return profile_files(read[0])

    generated.write(folder, build)
    return read[0]


def write_all(folder: Path, tex: bool = False, across: Across | None = None) -> list[Path]:
    """Tables, figures and report of a profile's folder, or what results/paper has of them; the files
    written. Errors: those of `generated.write`, `RecordError` for unsound records."""
    return generated.write(folder, partial(files, folder, tex, across))
