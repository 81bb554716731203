"""Packs the finished runs of a profile into the files of `packed`, and unpacks them into folders."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sdpo_bench.errors import UserError
from sdpo_bench.records import packed as form
from sdpo_bench.records import schema
from sdpo_bench.records.files import (
    ROWS,
    RecordError,
    encode_rows,
    read_content,
    remove_temporaries,
    temporary_name,
    to_json,
    write_atomic,
)
from sdpo_bench.records.generated import alone
from sdpo_bench.records.packed import NEW, Packed, path_of, read_files, read_manifest, with_values
from sdpo_bench.records.pictures import WHEN, entry_name, grid, zipped
from sdpo_bench.records.reader import has_records, run_folders
from sdpo_bench.records.run_folder import RunRecord, evaluation_means, load_run
from sdpo_bench.records.writer import RunWriter

LOCK = ".packed.lock"
LARGE = 100_000  # bytes of runs.jsonl from which on it is compressed
PICTURES = 400_000  # bytes of pictures in a file, about


RECORDS = ("config.json", "provenance.json", *ROWS, *(f"{name}.gz" for name in ROWS), "done.json")


TUNING = "tuning"  # prompts on which learning rates are chosen: nobody looks at such runs' pictures


def pack_profile(folder: str | os.PathLike[str]) -> int:
    """Packs the finished runs in `results/<profile>/raw` and removes their records there. Returns their number.

    Unfinished runs, weights and checkpoints stay in raw/. Until packed.json is written, in one step, the folders are
    what counts, and after it the packed files: an interrupted call loses nothing, and another one ends it.

    Errors: `RecordError` for unsound records, packed or not, and for a run that the packed form can't hold;
    `UserError` without pyarrow; `RunLocked` for a run that another process writes. Nothing is removed then.
    """
    profile = Path(folder)
    if not has_records(profile):
        raise RecordError(f"{profile / 'raw'}: no such folder; give a profile's results, for example results/quick")
    form.parquet("packing")
    with alone(profile, LOCK):
        _settle(profile)
        before = form.read_packed(profile) or Packed(profile, {})
        found = {path: _signature(path) for path in run_folders(profile) if (path / "done.json").exists()}
        runs = {run.run_id: run for run in map(load_run, found)}
        same = _same(before, runs)
        fresh = {name: run for name, run in runs.items() if name not in same}
        if fresh:
            contents = _contents(before, fresh)
            files = {name: digest for name, digest in before.files.items() if name.startswith(("values/", "pictures/"))}
            files |= {name: form.sha256(content) for name, content in contents.items()}
            _write_new(profile, contents, before.files)
            _check(read_files(profile, files), before, fresh)
            manifest = {"schema": form.SCHEMA, "files": files}
            write_atomic(profile / form.MANIFEST, (to_json(manifest, indent=1) + "\n").encode())
            _settle(profile)
        for path, signature in found.items():
            _remove(path, signature)
        _remove_rest(profile)
    return len(runs)


def _signature(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of records in a run's folder."""
    return {name: form.sha256((folder / name).read_bytes()) for name in RECORDS if (folder / name).exists()}


def _same(before: Packed, runs: Mapping[str, RunRecord]) -> set[str]:
    """The runs in folders that are packed already, because an earlier call was interrupted."""
    again = [name for name in runs if name in before.runs]
    return {run.run_id for run in with_values(before, again) if _difference(run, runs[run.run_id]) is None}


# What is written --------------------------------------------------------------------------------------------------


def _contents(before: Packed, fresh: Mapping[str, RunRecord]) -> dict[str, bytes]:
    """The files to write, by name: new versions of those that hold all runs, and new parts of values and images."""
    runs = {**before.runs, **fresh}
    provenances = sorted({to_json(run.provenance): run.provenance for run in runs.values()}.items())
    numbers = {text: number for number, (text, _) in enumerate(provenances)}
    part = _next(before, "values/part-")
    archives = _pictures(_next(before, "pictures/part-"), runs, fresh)
    pictures: dict[str, dict[str, str]] = {}
    for name, entries in archives.items():
        for run_id, when in entries:
            pictures.setdefault(run_id, {})[when] = name
    lines, offset = dict(before.lines), 0
    for name in sorted(fresh):
        lines[name] = _line(fresh[name], part, offset, pictures.get(name, {}))
        offset += _count(fresh[name])
    lines = {name: lines[name] | {"provenance": numbers[to_json(runs[name].provenance)]} for name in sorted(lines)}
    text = encode_rows(lines.values())
    name = form.RUNS if len(text) < LARGE else form.RUNS_GZ
    return {
        name: text if name == form.RUNS else gzip.compress(text, mtime=0),
        form.PROVENANCE: _json_list([run for _, run in provenances]),
        form.CURVES: gzip.compress(_curves([runs[name] for name in sorted(runs)], lines).encode(), mtime=0),
        form.part_name(part): _part([fresh[name] for name in sorted(fresh)]),
        **{
            name: zipped({entry_name(*key): content for key, content in entries.items()})
            for name, entries in archives.items()
        },
    }


def _json_list(entries: Sequence[Mapping[str, Any]]) -> bytes:
    return ("[\n" + ",\n".join(to_json(entry, indent=1) for entry in entries) + "\n]\n").encode()


def _next(before: Packed, prefix: str) -> int:
    taken = [int(name.removeprefix(prefix).partition(".")[0]) for name in before.files if name.startswith(prefix)]
    return 1 + max(taken, default=0)


def _count(run: RunRecord) -> int:
    return sum(len(values) for row in run.eval for prompts in row["values"].values() for values in prompts.values())


def _line(run: RunRecord, part: int, offset: int, pictures: dict[str, str]) -> dict[str, Any]:
    """A run's line of runs.jsonl, without the number of its provenance."""
    known = {*schema.EVAL}
    extra = {
        str(number): others
        for number, row in enumerate(run.eval)
        if (others := {key: value for key, value in row.items() if key not in known})
    }
    return {
        "run_id": run.run_id,
        "config": run.config,
        "train": run.train,
        "dense": run.dense,
        "done": run.done,
        "evaluated": list(_evaluated(run).values()),
        "extra": extra,
        "part": part,
        "offset": offset,
        "pictures": pictures,
    }


def _evaluated(run: RunRecord) -> dict[str, dict[str, Any]]:
    """The distinct prompts and noises of a run's evaluations, by their JSON."""
    return {text: found for row in run.eval for found in (_measured(row),) for text in (to_json(found),)}


def _measured(row: Mapping[str, Any]) -> dict[str, Any]:
    prompts = row["prompts"] if "prompts" in row else row["values"]
    return {"noise_seeds": row["noise_seeds"], "prompts": {split: sorted(names) for split, names in prompts.items()}}


def _curves(runs: Iterable[RunRecord], lines: Mapping[str, Mapping[str, Any]]) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(form.CURVE_COLUMNS)
    for run in runs:
        places = {to_json(found): number for number, found in enumerate(lines[run.run_id]["evaluated"])}
        for row in run.eval:
            means, interim = evaluation_means(row), evaluation_means(row, run.interim_noises)
            counts = [row[counter] for counter in schema.COUNTS]
            for split in sorted(means):
                # Left out where it is the same, which it is for most runs.
                other = repr(interim[split]) if interim[split] != means[split] else ""
                head = [run.run_id, row["epoch"], row["reward"], row["steps"], split, repr(means[split]), other]
                writer.writerow([*head, *counts, places[to_json(_measured(row))]])
    return buffer.getvalue()


def _columns(runs: Sequence[RunRecord]) -> tuple[dict[str, tuple[list[str], np.ndarray]], dict[str, Any]]:
    """The columns of a part: texts as (distinct texts, codes), and numbers."""
    heads: list[tuple[str, int, str, int, str]] = []  # run, epoch, reward, steps, split
    sizes: list[int] = []  # number of values of each of `heads`
    prompts: list[str] = []
    counts: list[int] = []  # number of values of each of `prompts`
    noises: list[int] = []
    values: list[float] = []
    for run in runs:
        for row in run.eval:
            for split, by_prompt in sorted(row["values"].items()):
                names = sorted(by_prompt)
                lengths = [len(by_prompt[name]) for name in names]
                heads.append((run.run_id, row["epoch"], row["reward"], row["steps"], split))
                sizes.append(sum(lengths))
                prompts += names
                counts += lengths
                noises += row["noise_seeds"] * len(names)
                values += chain.from_iterable(by_prompt[name] for name in names)
    ids, epochs, rewards, steps, splits = zip(*heads, strict=True)
    texts = {"run": ids, "reward": rewards, "split": splits}
    numbers = {"epoch": epochs, "steps": steps}
    return (
        {key: _codes(column, sizes) for key, column in texts.items()} | {"prompt": _codes(prompts, counts)},
        {key: np.repeat(np.array(column, np.int64), sizes) for key, column in numbers.items()}
        | {"noise_seed": noises, "value": np.array(values, np.float64)},
    )


def _codes(texts: Sequence[str], repeats: Sequence[int]) -> tuple[list[str], np.ndarray]:
    """The distinct texts, sorted, and the index of each text among them, each repeated as often as `repeats` says."""
    distinct = sorted({*texts})
    codes = {text: code for code, text in enumerate(distinct)}
    return distinct, np.repeat(np.array([codes[text] for text in texts], np.int32), repeats)


def _part(runs: Sequence[RunRecord]) -> bytes:
    pyarrow, pq = form.parquet("packing")
    texts, numbers = _columns(runs)
    values = numbers["value"]
    with np.errstate(over="ignore", under="ignore"):
        single = values.astype(np.float32)
    # What is written has 6 significant digits, which single precision holds between 1e-37 and 1e38.
    if form.exact(single) == values.tolist():
        values = single
    try:
        noises = pyarrow.array(numbers["noise_seed"], pyarrow.int64())
    except OverflowError:  # a seed of 64 bits may be that large
        noises = pyarrow.array(list(map(str, numbers["noise_seed"])))
    columns = {
        key: pyarrow.DictionaryArray.from_arrays(pyarrow.array(codes), pyarrow.array(distinct, pyarrow.string()))
        for key, (distinct, codes) in texts.items()
    }
    table = pyarrow.table(
        {
            "run": columns["run"],
            "epoch": numbers["epoch"],
            "reward": columns["reward"],
            "steps": numbers["steps"],
            "split": columns["split"],
            "prompt": columns["prompt"],
            "noise_seed": noises,
            "value": values,
        }
    )
    buffer = io.BytesIO()
    others = [name for name in table.column_names if name != "value"]
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        compression_level=9,
        use_dictionary=others,
        column_encoding={"value": "BYTE_STREAM_SPLIT"},
    )
    return buffer.getvalue()


def _pictures(
    number: int, runs: Mapping[str, RunRecord], fresh: Collection[str]
) -> dict[str, dict[tuple[str, str], bytes]]:
    """The grids to add, from the `fresh` ones among these runs, by file, by run and time: those of each method's run
    with the lowest seed, which the page shows. There are none for ablations and for runs that choose a learning
    rate."""
    kept: dict[tuple[object, ...], RunRecord] = {}
    for run in sorted(runs.values(), key=lambda run: (run.config["seed"], run.run_id)):
        if " (" not in run.label and run.config.get("train_split") != TUNING:
            kept.setdefault((run.device, *(run.config[key] for key in ("model", "reward", "steps", "label"))), run)
    archives: dict[str, dict[tuple[str, str], bytes]] = {}
    size = PICTURES
    for run in sorted((run for run in kept.values() if run.run_id in fresh), key=lambda run: run.run_id):
        for when in WHEN:
            if (content := grid(run, when)) is None:
                continue
            if size + len(content) > PICTURES:
                name, size = f"pictures/part-{number}.zip", 0
                archives[name], number = {}, number + 1
            archives[name][run.run_id, when] = content
            size += len(content)
    return archives


def _write_new(profile: Path, contents: Mapping[str, bytes], before: Mapping[str, str]) -> None:
    """Writes files under names that are not read before packed.json lists them. UserError if a foreign file is in the
    way."""
    for name in contents:
        path = profile / name
        if path.parent.is_symlink() or (path.parent.exists() and not path.parent.is_dir()):
            raise UserError(
                f"{path.parent} is not a folder; move it away, packed records go into a folder of that name"
            )
        if (path.exists() or path.is_symlink()) and name not in before and name not in (form.RUNS, form.RUNS_GZ):
            raise UserError(f"{path} is in the way: packed.json does not list it; move it away. Nothing was packed")
    for name, content in contents.items():
        path = profile / f"{name}{NEW}"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, content)


def _settle(profile: Path) -> None:
    """Finishes an interrupted call: files that packed.json lists get their names, other files of that call are
    removed."""
    files = read_manifest(profile) or {}
    for place in (profile, profile / "values", profile / "pictures"):
        prefix = "" if place == profile else f"{place.name}/"
        names = {f"{path.name.removesuffix(NEW)}" for path in place.glob(f"*{NEW}")}
        names = {name for name in names if form.NAMES.fullmatch(prefix + name)}
        if place.is_dir():
            temporaries = {path.name.rsplit(".", 2)[0][1:] for path in place.glob(".*.tmp")}
            ours = {name for name in temporaries if form.NAMES.fullmatch(prefix + name.removesuffix(NEW))}
            remove_temporaries(place, {*ours, *([form.MANIFEST] if place == profile else [])})
        for name in sorted(names):
            new, final = place / f"{name}{NEW}", place / name
            digest = files.get(prefix + name)
            if digest and path_of(profile, prefix + name, digest) == new:
                os.replace(new, final)
            else:
                new.unlink()
    for name in (form.RUNS, form.RUNS_GZ):
        if files and name not in files:
            (profile / name).unlink(missing_ok=True)


# What is checked --------------------------------------------------------------------------------------------------


def _check(packed: Packed, before: Packed, fresh: Mapping[str, RunRecord]) -> None:
    """RecordError unless the written files read the same as the runs' folders and the runs packed before."""
    for name, run in before.runs.items():
        if name not in fresh and packed.runs.get(name) != run:
            raise RecordError(f"{packed.folder}: not packed, {name} would read differently than before; report this")
    for run in with_values(packed, list(fresh)):
        if found := _difference(run, fresh[run.run_id]):
            raise RecordError(f"{fresh[run.run_id].folder}: not packed, {found}")
        means = packed.runs[run.run_id]
        for row, packed_row in zip(fresh[run.run_id].eval, means.eval, strict=True):
            if (evaluation_means(row), evaluation_means(row, run.interim_noises)) != (
                packed_row["means"],
                packed_row["interim_means"],
            ):
                raise RecordError(f"{fresh[run.run_id].folder}: not packed, a mean would read differently; report this")


def _difference(packed: RunRecord, run: RunRecord) -> str | None:
    """A text that says how a packed run differs from the run in a folder; None if it does not."""
    for what in ("config", "provenance", "train", "eval", "dense", "done"):
        if to_json(getattr(packed, what)) != to_json(getattr(run, what)):
            return f"{what} would read otherwise: it is not as `RunWriter` writes it"
    if run.done and "records_sha256" in run.done:
        for name in ROWS:
            content = read_content(run.folder / name)
            if content is not None and encode_rows(getattr(packed, name.removesuffix(".jsonl"))) != content:
                return f"the rows of {name} are not written as `RunWriter` writes them, so their SHA-256 would change"
    return None


def check_values(folder: str | os.PathLike[str]) -> list[str]:
    """A text for each packed run whose means are not those of its values, or whose values belong to other prompts,
    noises, rewards or epochs. UserError without pyarrow; RecordError for damaged files."""
    packed = form.read_packed(Path(folder))
    if packed is None:
        return []
    wrong, tables = [], {}
    for run in with_values(packed):
        place = packed.places[run.run_id]
        if place.part not in tables:
            tables = {place.part: form.read_part(packed, place.part)}
        if not _stand_alike(tables[place.part].slice(place.offset, place.count), run):
            wrong.append(
                f"{run.run_id}: {form.part_name(place.part)} has its values in other places than curves.csv.gz"
            )
            continue
        for row, means in zip(run.eval, packed.runs[run.run_id].eval, strict=True):
            found = (evaluation_means(row), evaluation_means(row, run.interim_noises))
            if found != (means["means"], means["interim_means"]):
                where = f"epoch {row['epoch']}, {row['reward']}, {row['steps']} steps"
                wrong.append(f"{run.run_id}: curves.csv.gz has other means than its values, first at {where}")
                break
    return wrong


def _stand_alike(table: Any, run: RunRecord) -> bool:
    """Whether the rows of a part are those of this run's evaluations."""
    texts, numbers = _columns([run])
    for key, (distinct, codes) in texts.items():
        column = table.column(key).combine_chunks()
        if not hasattr(column, "dictionary"):
            column = column.dictionary_encode()
        known = {text: code for code, text in enumerate(distinct)}
        ours = np.array([known.get(text, -1) for text in column.dictionary.to_pylist()], np.int32)
        if not np.array_equal(ours[column.indices.to_numpy()], codes):
            return False
    noises = table.column("noise_seed")
    if list(map(int, noises.to_pylist())) != numbers["noise_seed"]:
        return False
    return all(np.array_equal(table.column(key).to_numpy(), numbers[key]) for key in ("epoch", "steps"))


# What is removed --------------------------------------------------------------------------------------------------


def _remove(folder: Path, signature: Mapping[str, str]) -> None:
    """Removes the records of a packed run from its folder. config.json is removed first; from then on the packed run
    counts. If anything changed since it was read, all of it stays."""
    with RunWriter(folder):
        if _signature(folder) == signature:
            _remove_records(folder)
    _remove_empty(folder)


def _remove_records(folder: Path) -> None:
    for name in (*RECORDS, *(f"grid_{when}.{kind}" for when in WHEN for kind in ("png", "webp"))):
        (folder / name).unlink(missing_ok=True)


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _remove_rest(profile: Path) -> None:
    """Removes what an interrupted call left of the folders of packed runs."""
    for name in form.packed_ids(profile):
        folder = profile / "raw" / name
        if folder.is_dir() and not (folder / "config.json").exists():
            with RunWriter(folder):  # which takes away its lock too, if that was left
                _remove_records(folder)
            _remove_empty(folder)
    _remove_empty(profile / "raw")


# Back -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Files:
    """The files of a run's folder, by name."""

    contents: dict[str, bytes]

    @classmethod
    def of(cls, run: RunRecord) -> _Files:
        objects = {"config.json": run.config, "provenance.json": run.provenance, "done.json": run.done}
        contents = {name: (to_json(value, indent=1) + "\n").encode() for name, value in objects.items()}
        rows = {"train.jsonl": run.train, "eval.jsonl": run.eval, "dense.jsonl": run.dense}
        written = (run.done or {}).get("records_sha256", {})
        contents |= {name: encode_rows(found) for name, found in rows.items() if found or name in written}
        pictures = {f"grid_{when}.webp": grid(run, when) for when in run.pictures}
        return cls(contents | {name: content for name, content in pictures.items() if content is not None})


def unpack_profile(folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> int:
    """Writes the folders of packed runs as they were, in `out`/raw, and returns their number. Each appears there
    completely or not at all. plan.json is copied too.

    Errors: `UserError`, before anything is written, where `out` has a run of that id with other records, and without
    pyarrow; `RecordError` for a folder without packed runs, or a damaged one.
    """
    profile, target = Path(folder), Path(out)
    packed = form.read_packed(profile)
    if packed is None:
        raise RecordError(f"{profile / form.MANIFEST}: no such file; --unpack needs packed runs")
    form.parquet("unpacking")
    raw = target / "raw"
    if target.resolve() == profile.resolve():
        raise UserError(f"--unpack {out} is the packed folder itself; give another folder")
    runs = {run.run_id: run for run in with_values(packed)}
    there = {name for name in runs if (raw / name).exists()}
    for name in sorted(there):
        if not (raw / name / "config.json").exists() or _difference(runs[name], load_run(raw / name)):
            raise UserError(f"{raw / name} is in the way, with other records; give another folder. Nothing was written")
    raw.mkdir(parents=True, exist_ok=True)
    for path in raw.glob(".*.tmp"):  # what an interrupted call left
        found = re.fullmatch(r"\.(.+)\.[0-9a-f]{16}\.tmp", path.name)
        if found and found[1] in runs and path.is_dir():
            shutil.rmtree(path)
    for name, run in runs.items():
        if name not in there:
            _write_folder(raw / name, _Files.of(run).contents)
            load_run(raw / name)
    if (profile / "plan.json").exists() and not (target / "plan.json").exists():
        write_atomic(target / "plan.json", (profile / "plan.json").read_bytes())
    return len(runs)


def _write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    temporary = folder.with_name(temporary_name(folder.name))  # begins with a dot: not taken for a run's
    temporary.mkdir()
    try:
        for name, content in contents.items():
            write_atomic(temporary / name, content)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
