"""Packed records: the same as those of the runs' folders, whatever is interrupted, damaged or missing."""

import contextlib
import dataclasses
import gzip
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.synthetic_records import EPOCHS, make_config, provenance, train_row, write_profile, write_run

from sdpo_bench.analysis.compare import compare, rendered
from sdpo_bench.analysis.outputs import files, sources, write_all
from sdpo_bench.cli.main import main
from sdpo_bench.errors import UserError
from sdpo_bench.experiments import cost_model
from sdpo_bench.records import packed as form
from sdpo_bench.records import packing
from sdpo_bench.records.files import RecordError, encode_rows
from sdpo_bench.records.frames import eval_frame
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.lookup import find_run, nearest_run, recorded_weights, stored_run
from sdpo_bench.records.packing import check_values, pack_profile, unpack_profile
from sdpo_bench.records.pictures import grid
from sdpo_bench.records.plan import unfinished_runs, write_plan
from sdpo_bench.records.reader import finished_runs, load_profile, load_run, run_ids
from sdpo_bench.records.run_folder import row_digests
from sdpo_bench.records.writer import RunWriter

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A profile of folders, which tests copy: three labels, two seeds, one run of them unfinished."""
    profile = write_profile(tmp_path_factory.mktemp("raw") / "quick", seeds=2, labels=("SDPO", "DDPO"))
    write_run(profile, make_config("REBEL", 0, eval_interim_noises=1))
    write_run(profile, make_config("REBEL", 1, eval_interim_noises=1), finished=False)
    write_plan(profile, [run.config for run in load_profile(profile)])
    return profile


@pytest.fixture
def profile(raw, tmp_path):
    return Path(shutil.copytree(raw, tmp_path / "quick"))


def read(folder):
    """All that is read of a profile, comparable."""
    runs = [load_profile(folder, means=means) for means in (False, True)]
    return [[(run.config, run.provenance, run.train, run.eval, run.dense, run.done) for run in part] for part in runs]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_packed_records_are_those_of_the_folders(profile):
    before, made, pending = read(profile), files(profile), unfinished_runs(profile)
    frame = eval_frame(load_profile(profile))
    assert pack_profile(profile) == 6
    assert read(profile) == before
    assert eval_frame(load_profile(profile)).equals(frame)
    assert unfinished_runs(profile) == pending != []
    assert files(profile) == made, "tables, figures, pictures and pages"
    assert [path.name for path in (profile / "raw").iterdir()] == [pending[0]["run_id"]], "the unfinished run stays"
    assert sources(profile) == [profile / "raw", profile / "packed.json", profile / "plan.json"]
    assert check_values(profile) == []
    assert pack_profile(profile) == 0


def test_the_same_records_give_the_same_bytes(raw, tmp_path):
    for name in ("one", "other"):
        pack_profile(shutil.copytree(raw, tmp_path / name))
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


@given(st.data())
@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink a failing case would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_round_trip(tmp_path_factory, data):
    """Any values, prompts, noises, splits and epochs that a run may write come back as they were."""
    root = tmp_path_factory.mktemp("round")
    texts = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)
    value = st.one_of(st.floats(-1e3, 1e3), st.sampled_from([0.0, -0.0, 1e-40, 1e99, -1e99, 123456.0, 1e-6]))
    number = st.integers(-(2**64) + 1, 2**64 - 1)
    for seed in range(data.draw(st.integers(1, 3))):
        config = make_config("SDPO", seed, eval_interim_noises=data.draw(st.sampled_from([1, 2])))
        with RunWriter(root / "p" / "raw" / config["run_id"]) as writer:
            writer.write_config(config)
            writer.write_provenance(provenance(command=data.draw(texts)))
            for epoch in range(1, data.draw(st.integers(1, 3))):
                writer.append_train(train_row(epoch, config))
            for epoch in data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True)):
                noises = data.draw(st.lists(number, min_size=1, max_size=3, unique=True))
                splits = data.draw(
                    st.dictionaries(
                        texts,
                        st.dictionaries(
                            texts, st.lists(value, min_size=len(noises), max_size=len(noises)), min_size=1, max_size=3
                        ),
                        min_size=1,
                        max_size=2,
                    )
                )
                counts = dict.fromkeys(("samples", "reward_queries", "optimiser_steps", "model_evaluations"), epoch)
                row = {"epoch": epoch, **counts, "reward": data.draw(texts), "steps": 4, "noise_seeds": noises}
                further = data.draw(st.sampled_from([{}, {"note": {"of": "a later version"}}]))
                writer.append_eval({**row, **further, "values": splits})
            writer.finish({"epochs": 1, "seconds": {"train": 1.5}})
    folders = {path.name: (load_run(path), row_digests(path)) for path in (root / "p" / "raw").iterdir()}
    before = read(root / "p")
    pack_profile(root / "p")
    found, expected = (json.dumps(records, sort_keys=True) for records in (read(root / "p"), before))
    assert found == expected  # texts tell -0.0 from 0.0
    assert check_values(root / "p") == []
    unpack_profile(root / "p", root / "out")
    for name, (run, digests) in folders.items():
        again = load_run(root / "out" / "raw" / name)
        assert (encode_rows(again.eval), again.config, again.done) == (encode_rows(run.eval), run.config, run.done)
        assert row_digests(root / "out" / "raw" / name) == digests


def test_runs_are_added_as_new_parts(profile):
    """And the earlier part is never written again; a run in a folder and packed is the folder's."""
    write_run(profile, make_config("PRDP", 0))
    pack_profile(profile)
    first = {name: content for name, content in contents(profile).items() if "part-1" in name}
    assert {*first} == {"values/part-1.parquet", "pictures/part-1.zip"}
    write_run(profile, make_config("D3PO", 0))
    mixed, made = read(profile), files(profile)
    assert pack_profile(profile) == 1
    assert read(profile) == mixed
    assert files(profile) == made
    assert {name: content for name, content in contents(profile).items() if "part-1" in name} == first
    assert (profile / "values" / "part-2.parquet").exists()
    assert [run.label for run in load_profile(profile, means=True)].count("D3PO") == 1
    assert check_values(profile) == []


def test_many_runs_are_compressed(profile, monkeypatch):
    before = read(profile)
    pack_profile(profile)
    assert (profile / "runs.jsonl").exists()
    monkeypatch.setattr(packing, "LARGE", (profile / "runs.jsonl").stat().st_size + 1)
    folder = write_run(profile, make_config("D3PO", 0))
    pack_profile(profile)
    assert {"runs.jsonl.gz"} == {path.name for path in profile.glob("runs.jsonl*")}
    assert [[run for run in part if run[0]["run_id"] != folder.name] for part in read(profile)] == before


def test_weights_and_checkpoints_stay(profile):
    folder = find_run(profile / "raw", make_config("SDPO", 0))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "weights").write_bytes(b"w")
    pack_profile(profile)
    assert contents(folder) == {"adapter/weights": b"w"}
    assert folder.name in finished_runs(profile)
    assert [run["run_id"] for run in unfinished_runs(profile)] == [
        make_config("REBEL", 1, eval_interim_noises=1)["run_id"]
    ]
    write_run(profile, make_config("D3PO", 0))
    pack_profile(profile)
    assert contents(folder) == {"adapter/weights": b"w"}


def test_pictures_are_of_one_run_a_method_and_none_of_a_sweep(profile):
    for seed in (0, 1):
        write_run(profile, make_config("D3PO", seed, train_split="tuning"))
    runs = {run.run_id: grid(run, "after") for run in load_profile(profile)}
    pack_profile(profile)
    packed = {run.run_id: grid(run, "after") for run in load_profile(profile)}
    kept = {name for name, picture in packed.items() if picture is not None}
    assert kept == {make_config(label, 0)["run_id"] for label in ("SDPO", "DDPO")} | {
        make_config("REBEL", 0, eval_interim_noises=1)["run_id"]
    }
    assert all(packed[name] == runs[name] for name in kept)


class Killed(BaseException):
    """As if the process had ended at that call."""


def interrupted(monkeypatch, number, calls=("replace", "unlink", "rename", "rmdir", "open", "mkdir")):
    """Makes the `number`th call that changes a folder end with Killed; whether it came that far."""
    count = 0

    def counted(original):
        def call(*arguments, **options):
            nonlocal count
            changes = original is not os_open or arguments[1] & os.O_CREAT
            count += bool(changes)
            if count >= number and changes:  # nor does what would clean up
                raise Killed
            return original(*arguments, **options)

        return call

    os_open = os.open
    for name in calls:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    return lambda: count >= number


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One packed run, and two in folders, of which one was packed too, as an interrupted call leaves it."""
    folder = tmp_path_factory.mktemp("small") / "quick"
    write_run(folder, make_config("SDPO", 0, epochs=10))
    pack_profile(folder)
    write_run(folder, make_config("DDPO", 0, epochs=10))
    write_run(folder, make_config("DDPO", 1, epochs=10), pictures=False)
    return folder


def test_an_interruption_loses_nothing_and_is_made_good(small, tmp_path, monkeypatch):
    """At every call that creates, replaces or removes a file or folder: what is read stays the same, and another call
    leaves what an uninterrupted one does."""
    expected, number, reached = read(small), 0, True
    whole = shutil.copytree(small, tmp_path / "whole")
    pack_profile(whole)
    while reached:
        number += 1
        folder = shutil.copytree(small, tmp_path / str(number))
        with monkeypatch.context() as patched:
            done = interrupted(patched, number)
            with contextlib.suppress(Killed):
                pack_profile(folder)
            reached = done()
        assert read(folder) == expected, number
        assert run_ids(folder) == finished_runs(folder) == sorted(run.run_id for run in load_profile(whole))
        pack_profile(folder)
        assert contents(folder) == contents(whole), number
        shutil.rmtree(folder)
    assert number > 30


def test_an_interrupted_unpacking_leaves_whole_runs_alone(small, tmp_path, monkeypatch):
    packed = shutil.copytree(small, tmp_path / "packed")
    pack_profile(packed)
    expected, number, reached = read(packed), 0, True
    unpack_profile(packed, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    while reached:
        number += 1
        out = tmp_path / str(number)
        with monkeypatch.context() as patched:
            done = interrupted(patched, number)
            with contextlib.suppress(Killed):
                unpack_profile(packed, out)
            reached = done()
        for path in (out / "raw").glob("[!.]*"):
            assert load_run(path).done
        assert unpack_profile(packed, out) == 3
        assert read(out) == expected
        assert contents(out) == whole
    assert number > 20


def names_of(folder):
    return sorted(json.loads((folder / "packed.json").read_text())["files"])


@pytest.mark.parametrize("means", [True, False])
@pytest.mark.parametrize("change", ["missing", "damaged"])
def test_a_missing_or_damaged_file_is_named_and_nothing_is_written(profile, capsys, monkeypatch, change, means):
    write_all(profile)
    monkeypatch.setattr(packing, "LARGE", 0)
    pack_profile(profile)
    write_run(profile, make_config("D3PO", 0))  # so that there is something to add
    assert names_of(profile) == [
        "curves.csv.gz",
        "pictures/part-1.zip",
        "provenance.json",
        "runs.jsonl.gz",
        "values/part-1.parquet",
    ]
    for name in names_of(profile):
        path = profile / name
        content = path.read_bytes()
        path.unlink()
        if change == "damaged":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        before = contents(profile)
        with pytest.raises(
            RecordError, match=f"{name}: {'missing' if change == 'missing' else 'not as it was packed'}"
        ):
            load_profile(profile, means=means)
        for command in ([], ["--pack"], ["--check"], ["--unpack", str(profile.parent / "out")]):
            assert main(["tables", str(profile), *command]) == 2
            assert f"error: {path}: " in capsys.readouterr().err
        assert contents(profile) == before
        path.write_bytes(content)
    assert not (profile.parent / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: None, "packed.json: missing"),
        (lambda manifest: "[]", "not a JSON object"),
        (lambda manifest: json.dumps(manifest | {"schema": 2}), "schema 2, not 1; use the version that wrote it"),
        (lambda manifest: json.dumps({"schema": 1, "files": {"../x": "0" * 64}}), "'files' is not an object"),
        (lambda manifest: json.dumps({"schema": 1, "files": {}}), "does not list runs"),
    ],
)
def test_an_unsound_manifest_is_named(profile, change, message, capsys):
    pack_profile(profile)
    path = profile / "packed.json"
    text = change(json.loads(path.read_text()))
    path.unlink()
    if text is not None:
        path.write_text(text)
    assert main(["tables", str(profile)]) == 2
    assert message in capsys.readouterr().err


def reseal(folder, name, content):
    """Puts other content into a packed file, with its digest."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "packed.json").read_text())
    manifest["files"][name] = form.sha256(content)
    (folder / "packed.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"run,epoch", b"run,epochs", "the columns are not run, epoch"),
        (b",seen,0.", b",seen,x.", r"curves\.csv\.gz, line 2: not an evaluation of a packed run"),
        (b",seen,0.", b",seen,nan,0.", r"curves\.csv\.gz"),
        (b",0\nd", b",7\nd", "not an evaluation of a packed run"),
    ],
)
def test_unsound_curves_are_named(profile, old, new, message):
    pack_profile(profile)
    text = gzip.decompress((profile / "curves.csv.gz").read_bytes())
    assert old in text
    reseal(profile, "curves.csv.gz", gzip.compress(text.replace(old, new, 1)))
    with pytest.raises(RecordError, match=message):
        load_profile(profile, means=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"part": 3}, r"packed\.json lists no values/part-3\.parquet"),
        ({"provenance": 9}, r"provenance\.json has no provenance 9"),
        ({"train": [{"epoch": 1}]}, "lacks samples"),
        ({"done": {"seconds": 1}}, "'seconds' is 1"),
        ({"evaluated": [{}]}, "'evaluated' is"),
        ({"pictures": {"after": "pictures/part-9.zip"}}, "does not list its pictures"),
        ({"config": {"schema": 1}}, "the configuration: lacks"),
    ],
)
def test_an_unsound_run_is_named(profile, change, message):
    pack_profile(profile)
    first, *others = (profile / "runs.jsonl").read_bytes().splitlines(keepends=True)
    line = json.dumps(json.loads(first) | change).encode() + b"\n"
    reseal(profile, "runs.jsonl", b"".join([line, *others]))
    with pytest.raises(RecordError, match=message):
        load_profile(profile, means=True)


def test_check_compares_means_with_values(profile, capsys):
    write_all(profile)
    pack_profile(profile)
    assert main(["tables", str(profile), "--check"]) == 0
    text = gzip.decompress((profile / "curves.csv.gz").read_bytes()).decode()
    lines = text.splitlines(keepends=True)
    cells = lines[-1].split(",")
    cells[5] = repr(math.nextafter(float(cells[5]), 1))
    reseal(profile, "curves.csv.gz", gzip.compress("".join([*lines[:-1], ",".join(cells)]).encode()))
    (wrong,) = check_values(profile)
    assert wrong.startswith(f"{cells[0]}: curves.csv.gz has other means than its values, first at epoch {cells[1]}")
    capsys.readouterr()
    assert main(["tables", str(profile), "--check"]) == 1
    assert wrong in capsys.readouterr().out


def test_check_compares_where_values_stand(profile):
    import pyarrow
    import pyarrow.parquet as pq

    pack_profile(profile)
    table = pq.read_table(profile / "values" / "part-1.parquet")
    for name, other in (("prompt", "yak"), ("epoch", 7), ("noise_seed", 5), ("run", "other")):
        column = table.column(name).to_pylist()
        column[3] = other
        changed = table.set_column(table.column_names.index(name), name, pyarrow.array(column))
        pq.write_table(changed, profile / "changed")
        reseal(profile, "values/part-1.parquet", (profile / "changed").read_bytes())
        (wrong,) = check_values(profile)
        assert wrong.startswith(table.column("run")[3].as_py())
        assert "has its values in other places" in wrong


def test_values_stand_in_the_part_under_their_names(profile):
    """For whoever reads the parquet without this package."""
    import pandas as pd

    frame = eval_frame(load_profile(profile))
    pack_profile(profile)
    table = pd.read_parquet(profile / "values" / "part-1.parquet")
    assert list(table.columns) == ["run", "epoch", "reward", "steps", "split", "prompt", "noise_seed", "value"]
    keys = list(table.columns[:-1])
    both = frame[[*keys, "value"]].merge(table.astype({"value": float}), on=keys, suffixes=("", "_packed"))
    assert len(both) == len(frame) == len(table)
    assert (both["value"] - both["value_packed"]).abs().max() < 1e-6


WITHOUT_PYARROW = """
import sys
sys.modules["pyarrow"] = None  # as if it were not installed
from sdpo_bench.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_pyarrow_tables_are_made_and_values_are_not(profile, tmp_path):
    pack_profile(profile)
    write_all(profile)
    made = contents(profile)
    for path in (profile / "tables").iterdir():
        path.unlink()
    for command in ([], ["--check"], ["--pack"], ["--unpack", str(tmp_path / "out")]):
        arguments = [sys.executable, "-c", WITHOUT_PYARROW, "tables", str(profile), *command]
        done = subprocess.run(arguments, capture_output=True, text=True)
        assert done.returncode == (2 if command else 0), done.stderr
        assert not command or "needs pyarrow, which is not installed here" in done.stderr
        assert contents(profile) == made
    assert not (tmp_path / "out").exists()


def test_values_without_pyarrow_are_asked_for_in_words(profile, monkeypatch):
    pack_profile(profile)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert len(load_profile(profile, means=True)) == 6
    with pytest.raises(UserError, match="reading single values needs pyarrow, which is not installed here"):
        load_profile(profile)


def test_provenances_are_read_without_the_rest(profile):
    made = [run.provenance for run in load_profile(profile)]
    pack_profile(profile)
    (profile / form.CURVES).write_bytes(b"damaged")
    found = form.packed_provenances(profile)
    assert found
    assert all(provenance in made for provenance in found)
    assert all(provenance in found for provenance in made)


def test_unpacked_runs_are_the_folders_that_were_packed(raw, profile, tmp_path, capsys):
    pack_profile(profile)
    assert main(["tables", str(profile), "--unpack", str(tmp_path / "out")]) == 0
    assert "6 runs unpacked" in capsys.readouterr().out
    assert read(tmp_path / "out") == read(raw)
    for run in load_profile(raw):
        before, after = contents(run.folder), contents(tmp_path / "out" / "raw" / run.run_id)
        assert {name: content for name, content in before.items() if "grid" not in name} == {
            name: content for name, content in after.items() if "grid" not in name
        }
    assert (tmp_path / "out" / "plan.json").read_bytes() == (raw / "plan.json").read_bytes()
    assert unpack_profile(profile, tmp_path / "out") == 6, "once more: they are there"
    pack_profile(tmp_path / "out")  # and back, pictures too
    assert [grid(run, "after") for run in load_profile(tmp_path / "out")] == [
        grid(run, "after") for run in load_profile(profile)
    ]


def test_unpacking_overwrites_nothing(profile, tmp_path):
    pack_profile(profile)
    with pytest.raises(UserError, match="is the packed folder itself"):
        unpack_profile(profile, profile)
    first = load_profile(profile, means=True)[0].run_id
    (tmp_path / "out" / "raw" / first).mkdir(parents=True)
    with pytest.raises(UserError, match=f"{first} is in the way"):
        unpack_profile(profile, tmp_path / "out")
    assert contents(tmp_path / "out") == {}
    with pytest.raises(RecordError, match="--unpack needs packed runs"):
        unpack_profile(tmp_path / "out", tmp_path / "other")


def test_somebody_elses_file_in_the_way_is_not_overwritten(profile):
    before = contents(profile / "raw")
    for name in ("values/part-1.parquet", "provenance.json"):
        (profile / name).parent.mkdir(exist_ok=True)
        (profile / name).write_text("mine")
        with pytest.raises(UserError, match=f"{name} is in the way"):
            pack_profile(profile)
        assert (profile / name).read_text() == "mine"
        assert contents(profile / "raw") == before
        (profile / name).unlink()


def test_a_run_that_the_form_cannot_hold_is_refused(profile):
    """Rows that say the same but are spelled otherwise would have another SHA-256 when they come back."""
    folder = find_run(profile / "raw", make_config("SDPO", 0))
    path = folder / "eval.jsonl"
    path.write_text(path.read_text().replace('{"epoch":', '{ "epoch":'))
    done = json.loads((folder / "done.json").read_text())
    (folder / "done.json").write_text(json.dumps(done | {"records_sha256": row_digests(folder)}))
    before = contents(profile / "raw")
    with pytest.raises(RecordError, match="not packed, the rows of eval"):
        pack_profile(profile)
    assert contents(profile / "raw") == before
    assert not (profile / "packed.json").exists()


def test_a_run_that_is_written_meanwhile_stays(profile, monkeypatch):
    """With all its files: between reading and removing another process may go on with it."""
    folder, original = find_run(profile / "raw", make_config("SDPO", 0)), packing._check

    def meanwhile(*arguments):
        original(*arguments)
        (folder / "done.json").unlink()

    monkeypatch.setattr(packing, "_check", meanwhile)
    pack_profile(profile)
    assert {"config.json", "train.jsonl", "eval.jsonl"} <= {path.name for path in folder.iterdir()}
    assert folder.name in {run["run_id"] for run in unfinished_runs(profile)}


def test_compare_and_costs_read_packed_records(profile, tmp_path):
    other = shutil.copytree(profile, tmp_path / "other")
    text = rendered(compare("SDPO", "DDPO", profile), "text")
    both = rendered(compare(str(profile), str(other), profile), "csv")
    costs = cost_model.calibrate([profile])
    pack_profile(profile)
    assert rendered(compare("SDPO", "DDPO", profile), "text") == text
    assert rendered(compare(str(profile), str(other), profile), "csv") == both
    assert cost_model.calibrate([profile]) == costs


def test_packed_runs_are_found_by_their_configuration(profile):
    config = make_config("SDPO", 0)
    folder = find_run(profile / "raw", config)
    weights = {"model": {"unet.safetensors": "0" * 64}}
    text = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps(text | {"weights": weights}))
    pack_profile(profile)
    raw = profile / "raw"
    assert find_run(raw, config) == folder
    assert stored_run(folder).finished
    assert recorded_weights(folder) == weights
    assert find_run(raw, config | {"rows": 4}) == folder, "executed otherwise it is the same run"
    longer = config | {"epochs": EPOCHS + 1}
    assert find_run(raw, longer) != folder, "without a checkpoint it can't go on"
    assert nearest_run(raw, longer) == (folder, [f"epochs (stored {EPOCHS}, new {EPOCHS + 1})"])
    assert nearest_run(raw, config | {"learning_rate": 1.0})[0] == folder
    with pytest.raises(RecordError, match="the run is finished and packed"), RunWriter(folder) as writer:
        writer.write_config(config)


def test_a_profile_goes_on_over_packed_runs(tmp_path, capsys):
    """They count as finished, what is asked of them is compared with their configurations, and none is made anew."""
    from sdpo_bench.experiments.profiles import build
    from sdpo_bench.experiments.progress import speed
    from sdpo_bench.experiments.runner import check_folder, reproduce
    from sdpo_bench.experiments.runs import plan
    from sdpo_bench.experiments.summary import list_runs

    configs, folder = build("smoke"), tmp_path / "smoke"
    for config in configs:
        row = config.to_json()
        write_run(folder, row | {"run_id": run_id(row)}, pictures=False)
    names = {path.name for path in (folder / "raw").iterdir()}
    seconds = speed(load_profile(folder, means=True))
    pack_profile(folder)
    assert not (folder / "raw").exists()
    assert speed(load_profile(folder, means=True)) == seconds != ""

    runs = plan(folder, configs, cost_model.Cost())
    assert {run.name for run in runs} == names
    assert list_runs(runs, 1, "nothing").count("done") == len(runs) == 3
    with pytest.raises(UserError, match="already holds 3 runs: add --resume"):
        check_folder(folder, runs, resume=False)
    check_folder(folder, runs, resume=True)
    assert [run.state for run in runs] == ["done"] * 3

    for change in ({"learning_rate": 1.0}, {"epochs": 20}):  # without a checkpoint a run can't go on
        others = plan(folder, [dataclasses.replace(config, **change) for config in configs[1:]], cost_model.Cost())
        with pytest.raises(UserError, match=rf"2 of the 2 runs are in .* with other settings .*{next(iter(change))}"):
            check_folder(folder, others, resume=True)
    before = contents(folder)
    assert reproduce("smoke", results=tmp_path, resume=True, workers=1) == 0
    assert "0 runs to make, 3 finished before" in capsys.readouterr().err
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert {name for name in after if name.startswith("raw")} == set()
    damaged = folder / "values" / "part-1.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert main(["reproduce", "--profile", "smoke", "--results", str(tmp_path), "--resume"]) == 2
    assert f"error: {damaged}: not as it was packed" in capsys.readouterr().err
