"""`sdpo-bench tables`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from sdpo_bench import plugins
from sdpo_bench.cli.output import TakesPlugins
from sdpo_bench.errors import UserError
from sdpo_bench.records.missing_plugins import missing_plugins, remedy
from sdpo_bench.terminal import echo


@dataclass(frozen=True)
class Tables(TakesPlugins):
    """Make tables, figures and report again from records. The same records give the same bytes.

    examples:
      sdpo-bench tables             # everything in results/: profiles, the paper's curves, a page over all profiles
      sdpo-bench tables runs/quick  # one profile
      sdpo-bench tables --check     # change nothing, list the differences
      sdpo-bench tables runs/quick --latex                # also write tables as LaTeX
      sdpo-bench tables results/full --pack               # before a commit: a few files instead of a folder per run
      sdpo-bench tables results/full --unpack runs/full   # turn packed runs into folders again
    """

    folders: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of profiles, such as results/quick; default: all in results/."""
    check: bool = False
    """Write nothing. Exit with code 1 if a committed file differs from what the records give, or a packed mean differs
    from that of its values (needs pyarrow)."""
    pack: bool = False
    """Pack the finished runs of the named folders into the form that is committed, and remove them from raw/. Weights,
    checkpoints and the images of one run per method are kept. Both forms are read alike (docs/records.md)."""
    latex: bool = False
    """Also write or compare the tables as LaTeX. Without it, LaTeX files of an earlier call are removed."""
    unpack: Path | None = None
    """Only write the packed runs of the named folder as folders again, into UNPACK/raw/."""

    def __call__(self) -> int:
        from sdpo_bench.analysis.across import Across, overall_files
        from sdpo_bench.analysis.outputs import reference_results, shown, sources, write_all
        from sdpo_bench.records.generated import write

        plugins.check()
        results = reference_results()
        folders = [*self.folders] or sorted(path for path in results.glob("*") if sources(path))
        if not folders:
            raise UserError(f"{shown(results)} has no records of a profile; `sdpo-bench reproduce` makes some")
        for folder in folders:
            if not sources(folder):
                raise UserError(
                    f"{folder} has no records, packed or in a raw/ folder; give the folder of a profile, such as "
                    "results/quick (for benchmarks use python -m benchmarks.kernel_results)"
                )
        if self.unpack is not None:
            return self._unpack(self.unpack)
        if self.pack:
            self._pack()
        whole = None if self.folders else results  # which then has a page over all profiles
        if self.check:
            for folder in folders:
                note_missing_plugins(folder)
            return check_tables(folders, self.latex, whole)
        across = Across()
        for folder in folders:
            write_all(folder, self.latex, across)
            note_missing_plugins(folder)
            echo(f"{shown(folder)}: tables, figures and report written")
        if whole is not None:
            write(whole, lambda: overall_files(across))
            echo(f"{shown(whole)}: README.md and figure over all profiles written")
        return 0

    def _pack(self) -> None:
        from sdpo_bench.analysis.outputs import shown
        from sdpo_bench.records.packing import pack_profile

        if self.check or not self.folders:
            raise UserError("--pack changes records: name their folders, and leave out --check")
        for folder in self.folders:
            echo(f"{shown(folder)}: {pack_profile(folder)} runs packed")

    def _unpack(self, out: Path) -> int:
        from sdpo_bench.analysis.outputs import shown
        from sdpo_bench.records.packing import unpack_profile

        if self.check or self.pack or len(self.folders) != 1:
            raise UserError("--unpack needs the name of one folder, without --check and --pack")
        echo(f"{shown(out / 'raw')}: {unpack_profile(self.folders[0], out)} runs unpacked")
        return 0


def note_missing_plugins(folder: Path) -> None:
    """Says which plug-ins the runs of a folder had methods from that are not given: these rows come last, in spare
    colours."""
    for source, record in missing_plugins(folder / "raw").items():
        if names := record["gives"].get("methods"):
            print(
                f"note: {', '.join(names)} in {folder} is of the plug-in {source}; {remedy(source, record)} for the "
                "place and colour that it gives",
                file=sys.stderr,
            )


def check_tables(folders: Sequence[Path], tex: bool = False, whole: Path | None = None) -> int:
    """Compares generated files byte by byte with what the records give, and packed means with their values. `whole`:
    the folder of all of them, which has a page over all profiles."""
    from sdpo_bench.analysis.across import Across, overall_files
    from sdpo_bench.analysis.comparisons import collector_paused
    from sdpo_bench.analysis.outputs import files, shown
    from sdpo_bench.records.generated import differences
    from sdpo_bench.records.packed import is_packed
    from sdpo_bench.records.packing import check_values

    across = Across()
    wrong = [
        f"{shown(folder / name)}: {why}"
        for folder in folders
        for name, why in differences(folder, files(folder, tex, across)).items()
    ]
    if whole is not None:
        wrong += [f"{shown(whole / name)}: {why}" for name, why in differences(whole, overall_files(across)).items()]
    with collector_paused():
        values = [f"{shown(folder)}, {why}" for folder in folders if is_packed(folder) for why in check_values(folder)]
    echo("\n".join([*wrong, *values]) or f"{len(folders)} folders: all files are what their records give")
    if wrong:
        print(
            "error: the files above differ; `sdpo-bench tables` writes them again. (Figures are the same to the byte "
            "only with the versions in constraints.txt.)",
            file=sys.stderr,
        )
    if values:
        print(
            "error: packed means differ from those of the values; restore the files from version control",
            file=sys.stderr,
        )
    return 1 if wrong or values else 0
