"""The records of a profile, from the folders of its runs (`run_folder`), from its packed files (`packed`), or from
both.

A run that is in both is the one of the folder, if that has a config.json: packing removes that file first.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from sdpo_bench.records.files import RecordError
from sdpo_bench.records.packed import index, is_packed, packed_ids, read_packed, with_values
from sdpo_bench.records.run_folder import PRETRAINED, RunRecord, evaluation_means, row_digests, shown_label
from sdpo_bench.records.run_folder import load_run as load_folder

__all__ = [
    "PRETRAINED",
    "RunRecord",
    "evaluation_means",
    "finished_runs",
    "has_records",
    "load_profile",
    "load_run",
    "packed_only",
    "row_digests",
    "run_folders",
    "run_ids",
    "shown_label",
]


def has_records(folder: str | os.PathLike[str]) -> bool:
    """Whether this is the folder of a profile: with folders of runs, or packed."""
    return (Path(folder) / "raw").is_dir() or is_packed(Path(folder))


def run_folders(profile: str | os.PathLike[str]) -> list[Path]:
    """The folders of runs, finished or not, sorted. Packed runs are left out; only weights remain of them. RecordError
    for a folder without records."""
    if not has_records(profile):
        raise RecordError(
            f"{Path(profile) / 'raw'}: no such folder; give a profile's results, for example results/quick"
        )
    return _raw_folders(Path(profile), packed_ids(Path(profile)))


def _raw_folders(profile: Path, packed: Collection[str]) -> list[Path]:
    paths = sorted((profile / "raw").iterdir()) if (profile / "raw").is_dir() else []
    return [
        path
        for path in paths
        if path.is_dir()
        and not path.name.startswith(".")
        and ((path / "config.json").exists() or path.name not in packed)
    ]


def packed_only(profile: Path) -> dict[str, RunRecord]:
    """The packed runs by id that have no folder. Callers must not change them."""
    found = index(profile)
    return {name: run for name, run in found.items() if not _has_folder(profile, name)}


def _has_folder(profile: Path, run_id: str) -> bool:
    """Whether a run's folder holds records; only weights of a packed run may be left there."""
    return (profile / "raw" / run_id / "config.json").exists()


def run_ids(profile: Path) -> list[str]:
    """Ids of all runs that exist, finished or not, sorted; empty for a missing folder."""
    packed = packed_ids(profile)
    return sorted({*packed, *(path.name for path in _raw_folders(profile, packed))})


def finished_runs(profile: Path) -> list[str]:
    """Ids of the finished runs, sorted; empty for a missing folder. The contents of folders are not read."""
    found = {path.name for path in _raw_folders(profile, ()) if (path / "done.json").exists()}
    return sorted(found | {name for name in packed_ids(profile) if not _has_folder(profile, name)})


def load_run(folder: str | os.PathLike[str]) -> RunRecord:
    """The run of a folder `<profile>/raw/<run id>`, finished or not, or the packed run of that id, with every value.

    Errors: `RecordError` for anything that is not a sound record; of an unfinished run a torn last line is left out.
    `UserError` without pyarrow, for a packed run.
    """
    path = Path(folder).absolute()
    packed = path.parent.name == "raw" and not (path / "config.json").exists()
    if packed and path.name in packed_ids(path.parents[1]):
        (run,) = load_profile(path.parents[1], names=[path.name])
        return run
    return load_folder(folder)


def load_profile(
    folder: str | os.PathLike[str], means: bool = False, names: Collection[str] | None = None
) -> list[RunRecord]:
    """The finished runs of `results/<profile>`, sorted by model, reward, training steps, label, seed and id.

    `means`: for tables, in a fraction of the memory. Evaluations then have, instead of `values` by split, prompt and
    noise, their `means` by split, the means over interim noises (`interim_means`), and their `prompts`. `names`: only
    these ids.

    Errors: `RecordError`; `UserError` without pyarrow, for the values of packed runs.
    """
    runs: list[RunRecord] = []
    known: dict[tuple[str, ...], tuple[str, ...]] = {}  # lists of prompts, each kept once
    folders = [path for path in run_folders(folder) if names is None or path.name in names]
    for path in folders:
        if (path / "done.json").exists():
            runs.append(run := load_run(path))
            for row in run.eval if means else ():
                interim = evaluation_means(row, run.interim_noises) if run.interim_noises else None
                row["means"] = evaluation_means(row)
                row["interim_means"] = row["means"] if interim is None else interim
                prompts = {split: tuple(sorted(prompts)) for split, prompts in row.pop("values").items()}
                row["prompts"] = {split: known.setdefault(texts, texts) for split, texts in prompts.items()}
    if (packed := read_packed(Path(folder))) is not None:
        own = {path.name for path in run_folders(folder)}
        chosen = [name for name in packed.runs if name not in own and (names is None or name in names)]
        runs += [packed.runs[name] for name in chosen] if means else with_values(packed, chosen)
    return sorted(runs, key=lambda run: run.sort_key)
