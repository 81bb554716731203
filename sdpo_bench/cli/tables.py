"""`sdpo-bench tables`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from sdpo_bench.errors import UserError
from sdpo_bench.terminal import echo


@dataclass(frozen=True)
class Tables:
    """Make tables, figures and report anew from raw records; the same records give the same bytes.

    examples:
      sdpo-bench tables             # all in results/: profiles, the paper's curves
      sdpo-bench tables runs/quick  # one
      sdpo-bench tables --check     # change nothing, list what would differ
      sdpo-bench tables results/full --pack  # before committing: evaluations take a third of the space
    """

    folders: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Profiles' folders, as results/quick; default: all in results/."""
    check: bool = False
    """Write nothing; exit with code 1 where a committed file is not what the records give."""
    pack: bool = False
    """Compress the finished runs' eval.jsonl of the named folders to eval.jsonl.gz; both are read alike."""

    def __call__(self) -> int:
        from sdpo_bench.analysis.outputs import reference_results, shown, sources, write_all
        from sdpo_bench.records.reader import pack

        results = reference_results()
        folders = [*self.folders] or sorted(path for path in results.glob("*") if sources(path))
        if not folders:
            raise UserError(f"{shown(results)} has no profile's records; `sdpo-bench reproduce` makes some")
        for folder in folders:
            if not sources(folder):
                raise UserError(f"{folder} has no raw/ folder of records; give a profile's folder, as results/quick "
                                "(a device's benchmarks: python -m benchmarks.kernel_results)")  # fmt: skip
        if self.pack:
            if self.check or not self.folders:
                raise UserError("--pack changes records: name their folders, and leave out --check")
            for folder in folders:
                echo(f"{shown(folder)}: {pack(folder)} compressed")
        if self.check:
            return check_tables(folders)
        for folder in folders:
            write_all(folder)
            echo(f"{shown(folder)}: tables, figures and report written")
        return 0


def check_tables(folders: Sequence[Path]) -> int:
    """Compares generated files byte by byte with what the records give now."""
    from sdpo_bench.analysis.outputs import files, shown
    from sdpo_bench.records.generated import differences

    wrong = [f"{shown(folder / name)}: {why}" for folder in folders
             for name, why in differences(folder, files(folder)).items()]  # fmt: skip
    echo("\n".join(wrong) if wrong else f"{len(folders)} folders: all files are what their records give")
    if wrong:
        print(
            "error: the files above differ; `sdpo-bench tables` writes them anew. (Pictures are the same to the byte "
            "only with the versions in constraints.txt.)",
            file=sys.stderr,
        )
    return 1 if wrong else 0
