"""Records: identity, durability, exclusion, refusal of what is corrupt or foreign."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import study_records
from support.synthetic_records import (
    EPOCHS,
    compress,
    eval_row,
    make_config,
    provenance,
    train_row,
    write_profile,
    write_run,
)

from sdpo_bench.analysis.comparisons import load_results
from sdpo_bench.errors import UserError
from sdpo_bench.records.files import RecordError, RunLocked, share
from sdpo_bench.records.frames import COUNTERS, EVAL_COLUMNS, TRAINED, eval_frame, mean_frame
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.plan import PLAN_KEYS, planned_protocol, unfinished_runs, write_plan
from sdpo_bench.records.reader import load_profile, load_run
from sdpo_bench.records.writer import RunWriter


@pytest.fixture
def config():
    return make_config()


@pytest.fixture
def begun(tmp_path, config):
    """A run of three epochs, unfinished: (folder, configuration)."""
    folder = tmp_path / "raw" / config["run_id"]
    with RunWriter(folder) as writer:
        writer.write_config(config)
        writer.write_provenance(provenance())
        for epoch in (1, 2, 3):
            writer.append_train(train_row(epoch, config))
            writer.append_eval(eval_row(epoch, config, "alignment", 4))
    return folder, config


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# Identity ---------------------------------------------------------------------------------------------------


def test_run_id_is_readable_and_ignores_order_label_and_itself(config):
    name = run_id(config)
    assert name.startswith("sdpo-alignment-k4-s0-")
    assert run_id(dict(reversed(config.items()))) == name
    assert run_id({**config, "run_id": "other"}) == name
    assert run_id({**config, "label": "Ours"})[-8:] == name[-8:]
    assert run_id(json.loads(json.dumps(config))) == name


@given(st.sampled_from(["seed", "learning_rate", "pairs", "method"]), st.integers(2, 10**6))
def test_run_id_changes_with_every_setting(key, value):
    config = make_config()
    changed = {**config, key: {"name": "sdpo", "clip": value} if key == "method" else value}
    expected = changed[key] == config[key]
    assert (run_id(changed)[-8:] == run_id(config)[-8:]) == expected


# Writing ----------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(begun):
    folder, config = begun
    record = load_run(folder)
    assert record.config == config
    assert [row["epoch"] for row in record.train] == [1, 2, 3]
    assert record.done is None
    assert not list(folder.glob(".*"))  # neither lock nor temporary files stay


@pytest.mark.parametrize("name", ["train.jsonl", "eval.jsonl", "dense.jsonl"])
@pytest.mark.parametrize("change", ["lost", "gained", "compressed", "older"])
def test_rows_of_a_finished_run_are_those_with_which_it_ended(tmp_path, name, change):
    folder = write_run(tmp_path / "profile", make_config())
    path, done = folder / name, folder / "done.json"
    rows = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if change == "compressed":
        compress(folder)
        assert load_run(folder).done
        return
    if change == "older":  # without digests it is read as before
        summary = json.loads(done.read_text())
        assert summary.pop("records_sha256").keys() == {"train.jsonl", "eval.jsonl"}
        done.write_text(json.dumps(summary))
    if change == "gained":
        lists = dict.fromkeys(("mae", "bias", "std", "corr", "return_corr", "return_sign"), [0.0] * 4)
        extra = {"budget": "2", "queries_per_sample": 2} | lists
        row = json.loads(rows[-1]) if rows else extra
        rows.append((json.dumps(row | {"epoch": EPOCHS + 1}) + "\n").encode())
    path.write_bytes(b"".join(rows if change == "gained" else rows[:-1]))
    if change == "older":
        assert load_run(folder).done
    else:
        with pytest.raises(RecordError, match=f"{name}: its SHA-256 is not the one in done.json"):
            load_run(folder)


@pytest.mark.parametrize("name", ["train.jsonl", "eval.jsonl", "dense.jsonl", "eval.jsonl.gz"])
def test_a_flipped_bit_in_the_rows_of_a_finished_run_is_reported_by_name(tmp_path, monkeypatch, name):
    """At places all over the file, digits and letters among them, where the row is sound otherwise."""
    monkeypatch.setattr(study_records, "EVAL_STEPS", (1,))
    monkeypatch.setattr(study_records, "LAST_STEPS", (2,))
    profile = study_records.write_study(tmp_path, ("SDPO",), seeds=1)
    (folder,) = profile.glob("raw/sdpo-*")
    if name.endswith(".gz"):
        for run in profile.glob("raw/*"):
            compress(run)
    whole, before = (folder / name).read_bytes(), load_run(folder)
    places = [*range(12), *range(12, len(whole), len(whole) // 150 + 1), *range(len(whole) - 10, len(whole))]
    by_digest = 0
    for place in places:
        for bit in (0, 5):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            (folder / name).write_bytes(changed)
            if name.endswith(".gz") and 3 <= place < 10:  # flags without a meaning, time, system: the same rows
                assert load_run(folder) == before
                continue
            with pytest.raises(RecordError, match=re.escape(str(folder / name.removesuffix(".gz")))) as caught:
                load_profile(profile)
            by_digest += "its SHA-256 is not the one in done.json" in str(caught.value)
    if not name.endswith(".gz"):
        assert by_digest > 20, "no other check sees these"


def test_values_have_six_digits_and_numpy_is_accepted(tmp_path, config):
    folder = tmp_path / config["run_id"]
    row = eval_row(1, config, "alignment", 4)
    row["values"] = {"seen": {"cat": np.array([1 / 3, 12345.678]).astype(np.float32)}}
    row["noise_seeds"], row["samples"] = [0, 1], np.int64(64)
    with RunWriter(folder) as writer:
        writer.append_eval(row)
    stored = json.loads((folder / "eval.jsonl").read_text())
    assert stored["values"]["seen"]["cat"] == [0.333333, 12345.7]
    assert stored["samples"] == 64


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused(begun, value):
    folder, config = begun
    before = snapshot(folder)
    with RunWriter(folder) as writer:
        with pytest.raises(RecordError, match="NaN or infinite"):
            writer.append_train({**train_row(4, config), "loss": value})
        row = eval_row(4, config, "alignment", 4)
        row["values"]["seen"]["cat"][0] = value
        with pytest.raises(RecordError, match="NaN or infinite"):
            writer.append_eval(row)
    assert snapshot(folder) == before


def test_another_configuration_is_refused_and_nothing_overwritten(begun):
    folder, config = begun
    before = snapshot(folder)
    other = {**config, "learning_rate": 3e-4, "method": {**config["method"], "clip": 1e-4}}
    other["run_id"] = run_id(other)
    with RunWriter(folder) as writer:
        writer.write_config(config)  # the same: nothing happens
        with pytest.raises(RecordError, match="another name"):
            writer.write_config(other)
        with pytest.raises(RecordError, match=r"differ first at label .*'SDPO'.*'Sdpo'"):
            writer.write_config({**config, "label": "Sdpo"})
    (folder / "config.json").write_text(json.dumps(other))
    with RunWriter(folder) as writer, pytest.raises(RecordError, match=r"differ first at learning_rate.*0\.0003"):
        writer.write_config(config)
    (folder / "config.json").write_bytes(before["config.json"])
    assert snapshot(folder) == before


def test_provenance_keeps_the_earlier_one_of_a_resumed_run(begun):
    folder, _ = begun
    with RunWriter(folder) as writer:
        writer.write_provenance(provenance())
        assert "earlier" not in load_run(folder).provenance
        writer.write_provenance(provenance(commit="f" * 40))
        writer.write_provenance(provenance(commit="f" * 40))
    stored = load_run(folder).provenance
    assert stored["commit"] == "f" * 40
    assert [p["commit"] for p in stored["earlier"]] == [provenance()["commit"]]


def test_a_repeated_evaluation_replaces_the_first(begun):
    folder, config = begun
    row = eval_row(2, config, "alignment", 4)
    row["values"]["seen"]["cat"][0] = 0.75
    with RunWriter(folder) as writer:
        writer.append_eval(row)
    rows = load_run(folder).eval
    assert len(rows) == 3
    assert next(r for r in rows if r["epoch"] == 2)["values"]["seen"]["cat"][0] == 0.75


# Crashes ----------------------------------------------------------------------------------------------------


def test_truncate_drops_later_rows_torn_lines_and_done(begun):
    folder, config = begun
    with RunWriter(folder) as writer:
        writer.finish({"epochs": 3})
    for name in ("train.jsonl", "eval.jsonl"):
        with open(folder / name, "ab") as file:
            file.write(b'{"epoch": 4, "sam')
    with RunWriter(folder) as writer:
        with pytest.raises(RecordError, match="torn"):
            writer.append_train(train_row(4, config))
        writer.truncate(2)
        record = load_run(folder)
        assert record.done is None
        assert [row["epoch"] for row in record.train] == [1, 2] == [row["epoch"] for row in record.eval]
        writer.append_train(train_row(3, config))
    assert [row["epoch"] for row in load_run(folder).train] == [1, 2, 3]


def test_a_line_without_its_end_is_torn_even_if_it_parses(begun):
    folder, _ = begun
    path = folder / "train.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    assert len(load_run(folder).train) == 2  # unfinished: left out
    (folder / "done.json").write_text("{}")
    with pytest.raises(RecordError, match=r"train\.jsonl, line 3: the last line is torn"):
        load_run(folder)


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_any_cut_of_the_log_can_be_resumed(begun, cut):
    folder, config = begun
    path = folder / "train.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: max(len(whole) - cut, 0)])
    with RunWriter(folder) as writer:
        writer.truncate(3)
        left = [row["epoch"] for row in load_run(folder).train]
        assert left == [1, 2, 3][: len(left)]
        for epoch in (1, 2, 3)[len(left) :]:
            writer.append_train(train_row(epoch, config))
    assert path.read_bytes() == whole


def test_a_full_disk_leaves_what_was_there(begun, monkeypatch):
    folder, config = begun
    before = snapshot(folder)
    write, full = os.write, []

    def half(descriptor, data):  # as a disk does that fills up in the middle of a line
        full.append(write(descriptor, data[: len(data) // 2]))
        return full[-1]

    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunWriter(folder) as writer:
        monkeypatch.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space left") as caught:
            writer.append_train(train_row(4, config))
        assert caught.value.errno == errno.ENOSPC
        assert full
        monkeypatch.setattr(os, "write", write)
        monkeypatch.setattr(os, "fsync", no_space)
        for action in (
            lambda: writer.append_train(train_row(4, config)),
            lambda: writer.append_eval(eval_row(2, config, "alignment", 4)),
            lambda: writer.truncate(1),
            lambda: writer.write_provenance(provenance(commit="f" * 40)),
            lambda: writer.finish({"epochs": 3}),
        ):
            with pytest.raises(OSError, match="No space left"):
                action()
        monkeypatch.undo()
        assert {k: v for k, v in snapshot(folder).items() if k != ".lock"} == before
        writer.append_train(train_row(4, config))


def test_two_processes_exclude_each_other(begun):
    folder, _ = begun
    code = (
        "import sys; from sdpo_bench.records.files import RunLocked; from sdpo_bench.records.writer import RunWriter\n"
        "try:\n    RunWriter(sys.argv[1]); print('open')\nexcept RunLocked as error:\n    print('locked', error)"
    )

    def other() -> str:
        return subprocess.run(
            [sys.executable, "-c", code, str(folder)],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        ).stdout

    with RunWriter(folder):
        answer = other()
        assert answer.startswith("locked")
        assert f"process {os.getpid()} on {socket.gethostname()}" in answer
        with pytest.raises(RunLocked):
            RunWriter(folder)
    assert other().startswith("open")
    RunWriter(folder).close()  # the other process ended without closing: its lock went with it


def test_a_disk_without_locks_is_refused(begun, monkeypatch):
    """A refused lock is not a held one: the run would be left to a process that does not exist."""
    folder, _ = begun

    def unsupported(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(UserError, match=r"gives no file locks \(Function not implemented\).*another disk"):
        RunWriter(folder)


def test_a_closed_writer_writes_nothing(begun):
    folder, config = begun
    writer = RunWriter(folder)
    writer.close()
    with pytest.raises(RuntimeError, match="closed"):
        writer.append_train(train_row(4, config))


# Reading ----------------------------------------------------------------------------------------------------


def finish(folder):
    with RunWriter(folder) as writer:
        writer.finish({"epochs": 3})


def with_rate(rate):
    """A change of a configuration's learning rate, or without one where it is None."""

    def change(text: str) -> str:
        config = json.loads(text) | {"learning_rate": rate}
        return json.dumps({key: value for key, value in config.items() if value is not None})

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", lambda text: text[:40], r"config\.json, line \d+: not JSON"),
        ("config.json", lambda text: text.replace('"schema": 1', '"schema": 2'), "schema 2"),
        ("config.json", lambda text: text.replace('"pairs": 32', '"pairs": 64'), "is not this configuration's"),
        ("config.json", lambda text: "[]", "not a JSON object"),
        ("provenance.json", lambda text: "{}", "lacks commit"),
        ("train.jsonl", lambda text: text.replace('"samples"', '"smaples"', 1), r"train\.jsonl, line 1: lacks samples"),
        ("train.jsonl", lambda text: text + text.splitlines(True)[0], r"line 4: epoch 1 does not follow"),
        ("train.jsonl", lambda text: text + text.splitlines(True)[2], r"line 4: epoch 3 does not follow"),
        ("eval.jsonl", lambda text: text + text.splitlines(True)[1], r"eval\.jsonl, line 4: .* twice"),
        (
            "eval.jsonl",
            lambda text: text.replace('"noise_seeds":[0,', '"noise_seeds":[', 1),
            r"line 1: .*4 values for 3",
        ),
        ("eval.jsonl", lambda text: text.replace('"epoch":2', '"epoch":"2"'), r"eval\.jsonl, line 2"),
        ("eval.jsonl", lambda text: "\x00\n" + text, r"eval\.jsonl, line 1: not JSON"),
        ("eval.jsonl", lambda text: "", "without an evaluation"),
        ("eval.jsonl", lambda text: re.sub(r'"seen":\{.*?\}', '"seen":{}', text, count=1), "at least one prompt"),
        ("eval.jsonl", lambda text: re.sub(r'"cat":\[[^,]*,', '"cat":[NaN,', text, count=1), "line 1: not JSON .*NaN"),
        ("eval.jsonl", lambda text: re.sub(r'"cat":\[[^,]*,', '"cat":[1e999,', text, count=1), "not a finite number"),
        ("eval.jsonl", lambda text: re.sub(r'"cat":\[[^,]*,', '"cat":[true,', text, count=1), "not a finite number"),
        ("eval.jsonl", lambda text: text.replace('"reward":"alignment"', '"reward":["alignment"]', 1), "'reward' is"),
        (
            "eval.jsonl",
            lambda text: text.replace('"steps":4', '"steps":0', 1),
            "'steps' is 0, not a whole number, 1 or",
        ),
        (
            "train.jsonl",
            lambda text: text.replace('"train":0.6', '"train":"0.6"', 1),
            "'seconds' is .*not an object of",
        ),
        (
            "provenance.json",
            lambda text: text.replace('"cpu: Test Processor"', "3"),
            "'device' is 3, not a line of text",
        ),
        ("provenance.json", lambda text: text[:-2] + ', "earlier": [1]}', "'earlier' is not a list of objects"),
        ("done.json", lambda text: '{"seconds_per_epoch": {"train": null}}', "'seconds_per_epoch' is"),
        ("config.json", lambda text: "[" * 100_000, "nested too deeply"),
        ("done.json", lambda text: "{", r"done\.json, line 1"),
        *(
            ("config.json", with_rate(rate), "the configuration: .*learning_rate")
            for rate in (None, [], {}, "1e-4", 0, -1, True)
        ),
    ],
)
def test_a_corrupt_record_is_named_with_its_line_and_a_remedy(begun, name, change, message):
    folder, _ = begun
    finish(folder)
    load_run(folder)
    (folder / name).write_text(change((folder / name).read_text()))
    with pytest.raises(RecordError, match=message) as caught:
        load_profile(folder.parents[1])
    assert any(word in str(caught.value) for word in ("--resume", "use the version"))


def test_compressed_evaluations_are_the_same_records(begun):
    folder, _ = begun
    finish(folder)
    before = load_run(folder)
    compress(folder)
    assert load_run(folder) == before
    packed = folder / "eval.jsonl.gz"
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(RecordError, match=r"eval\.jsonl\.gz: not gzip"):
        load_run(folder)


def test_a_moved_folder_is_refused(begun):
    folder, _ = begun
    finish(folder)
    moved = folder.rename(folder.with_name("mine"))
    with pytest.raises(RecordError, match="rename it to sdpo-alignment-k4-s0"):
        load_run(moved)


def test_only_finished_runs_count(tmp_path):
    write_profile(tmp_path, seeds=1, labels=("SDPO",))
    pending = make_config("DDPO")
    write_run(tmp_path, pending, finished=False)
    (tmp_path / "raw" / "killed-at-once").mkdir()
    assert [run.label for run in load_profile(tmp_path)] == ["SDPO", "pretrained"]
    assert {config["run_id"] for config in unfinished_runs(tmp_path)} == {pending["run_id"], "killed-at-once"}


def test_a_planned_run_gives_way_to_one_with_other_settings(tmp_path):
    first, other = (make_config("DDPO", learning_rate=rate) for rate in (1e-4, 3e-5))
    write_plan(tmp_path, [first, make_config("SDPO")])
    (tmp_path / "raw").mkdir()
    write_plan(tmp_path, [other])
    assert {run["run_id"] for run in unfinished_runs(tmp_path)} == {other["run_id"], make_config("SDPO")["run_id"]}
    assert first["run_id"] != other["run_id"]


def test_a_plan_names_the_protocol_of_its_runs(tmp_path):
    """So a folder keeps it under any name; a plan of an earlier version has none, one of several protocols none that
    holds for all."""
    first, second = make_config("DDPO"), make_config("SDPO")
    write_plan(tmp_path, [first])
    assert planned_protocol(tmp_path) == ""
    write_plan(tmp_path, [second], protocol="shared")
    assert planned_protocol(tmp_path) == "shared"
    write_plan(tmp_path, [first], protocol="sweep")
    assert planned_protocol(tmp_path) == ""
    write_plan(tmp_path, [first, second], protocol="sweep")
    write_profile(tmp_path, seeds=1, labels=("SDPO", "DDPO"))
    results = load_results(tmp_path)
    assert (results.planned, results.groups[0].protocol) == ("sweep", "sweep")
    path = tmp_path / "plan.json"
    path.write_text(path.read_text().replace("sweep", "luck"))
    with pytest.raises(RecordError, match="'protocol' is 'luck', not one of tuned, shared, sweep"):
        planned_protocol(tmp_path)


def test_planned_runs_are_unfinished_until_they_are_made(tmp_path):
    write_profile(tmp_path, seeds=1, labels=("SDPO",))
    made, begun, later = (load_profile(tmp_path)[0].config, make_config("DDPO"), make_config("DDPO", steps=8))
    write_run(tmp_path, begun, finished=False)
    write_plan(tmp_path, [made])
    write_plan(tmp_path, [begun, later])
    assert unfinished_runs(tmp_path) == sorted([begun, {k: later[k] for k in PLAN_KEYS}], key=lambda c: c["run_id"])
    before = (tmp_path / "plan.json").read_bytes()
    write_plan(tmp_path, [later, made])
    assert (tmp_path / "plan.json").read_bytes() == before
    write_plan(tmp_path, [later], whole=True)
    assert [run["label"] for run in unfinished_runs(tmp_path)] == [begun["label"], later["label"]]
    write_plan(tmp_path, [made], whole=True)
    assert unfinished_runs(tmp_path) == [begun]
    for content in ("[{}]", "{", "[1]"):
        (tmp_path / "plan.json").write_text(content)
        with pytest.raises(RecordError, match=r"plan\.json.*not (a list of planned runs|JSON)"):
            unfinished_runs(tmp_path)


def test_no_results_is_an_error_that_says_so(tmp_path):
    with pytest.raises(RecordError, match="no such folder"):
        load_profile(tmp_path / "none")


def test_eval_frame_has_every_value_once(tmp_path):
    write_profile(tmp_path, seeds=2, labels=("SDPO",))
    runs = load_profile(tmp_path)
    frame, means = eval_frame(runs), mean_frame(runs)
    assert tuple(frame.columns) == EVAL_COLUMNS
    assert len(frame) == sum(len(v) for r in runs for e in r.eval for p in e["values"].values() for v in p.values())
    keys = ["run", "epoch", "reward", "steps", "split"]
    expected = frame.groupby(keys)["value"].mean()
    np.testing.assert_allclose(means.set_index(keys)["value"].sort_index(), expected.sort_index(), rtol=1e-12)
    row = frame[(frame["run"] == make_config(seed=1)["run_id"]) & (frame["epoch"] == 60) & (frame["steps"] == 8)]
    assert set(row["training_steps"]) == {4}
    assert set(row["label"]) == {"SDPO"}
    assert [row[counter].iloc[0] for counter in COUNTERS] == [3840, 11520, 240, 15360]
    assert row[[*TRAINED]].isna().all(axis=None), "this run did not record them"


def test_frames_have_the_counters_of_the_epoch_in_train_jsonl():
    """Of 400 forward passes an epoch a gradient goes back through 300: 400 + 2 * 300. None before the first."""
    run = study_records.record("DRaFT", 0, {0: {("alignment", 1): 0.4}, 3: {("alignment", 1): 0.5}}, [])
    for row in run.train:
        row |= {name: count * row["epoch"] for name, count in PASSES.items()}
    frame = mean_frame([run]).set_index("epoch")
    assert frame.loc[0, [*TRAINED]].tolist() == [0, 0, 0]
    assert frame.loc[3, [*TRAINED]].tolist() == [900, 192, 1200 + 2 * 900]
    assert eval_frame([run])["compute"].tolist() == [0, 3000]
    assert mean_frame([study_records.record("start", 0, {0: {("alignment", 1): 0.4}}, [])])["compute"].tolist() == [0]
    del run.train[0]["backward_passes"]  # begun by an earlier version, whose passes are not among the later counts
    assert mean_frame([run])[[*TRAINED]].isna().all(axis=None)


PASSES = {"model_evaluations": 400, "backward_passes": 300, "reward_gradients": 64}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_shared_files_are_as_new_ones(tmp_path, umask, mode):
    file = tmp_path / "unet" / "weights"
    file.parent.mkdir()
    file.touch(0o600)
    before = os.umask(umask)
    try:
        share(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert [*tmp_path.iterdir()] == [file.parent]
