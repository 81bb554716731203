"""Training, evaluating, comparing and reading results from Python."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

import pytest
from conftest import TINY
from PIL import Image

import sdpo_bench
from sdpo_bench.api.runs import weights_folder
from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.records.files import RecordError
from sdpo_bench.records.reader import run_ids

RESULTS = Path(__file__).parents[2] / "results"
SETTINGS = TINY | {"epochs": 1, "eval_rewards": (), "eval_steps": (2,), "eval_noises": 2}


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory) -> sdpo_bench.Run:
    return sdpo_bench.train(SETTINGS, out=tmp_path_factory.mktemp("runs"), model=str(tiny_model))


def test_weights_of_a_runs_folder(tmp_path):
    for names, meant in ((["adapter"], "adapter"), (["model"], "model"), (["adapter", "model"], ""), ([], "")):
        folder = tmp_path / "-".join(["run", *names])
        for name in names:
            (folder / name).mkdir(parents=True)
        assert weights_folder(folder) == folder / meant
    (packed, *_) = run_ids(RESULTS / "quick")
    run = RESULTS / "quick" / "raw" / packed
    for given in (run, run / "model"):
        with pytest.raises(
            UserError, match=rf"packed runs hold no weights; .*`sdpo-bench train --config {re.escape(str(run))}`"
        ):
            sdpo_bench.evaluate(weights=given)


def test_what_a_run_has(trained):
    assert trained.config["reward"] == "jpeg_compressibility"
    assert trained.folder.name == trained.config["run_id"]
    assert sorted(trained.means["epoch"].unique()) == [0, 1]
    assert len(trained.values) == 2 * (30 + 5) * 2, "epochs, prompts, noises"
    assert trained.training["seconds_train"].notna().all()
    assert len(trained.training) == 1
    assert set(trained.changes["split"]) == {"seen", "unseen"}
    assert trained.changes["difference"].tolist() == pytest.approx(
        (trained.changes["second"] - trained.changes["first"]).tolist()
    )
    assert [*trained.pictures] == ["before", "after"]
    for when, picture in trained.pictures.items():
        assert picture.size == (8 * 16, 1 * 16), "prompts and numbers of steps, of 16 pixels"
        with Image.open(trained.folder / f"grid_{when}.png") as file:
            assert picture.tobytes() == file.tobytes(), "without loss"
    assert trained.weights == trained.folder / "adapter"
    assert repr(trained) == f"Run({str(trained.folder)!r})"


def test_a_finished_run_is_read(trained, tiny_model):
    """In a notebook a cell may run again: by the same settings, by its own file, by a complete configuration."""
    out, before = trained.folder.parents[1], (trained.folder / "done.json").stat().st_mtime_ns
    model = {"model": str(tiny_model)}
    again = [
        sdpo_bench.train(SETTINGS, out=out, **model),
        sdpo_bench.train(trained.folder / "config.json", out=str(out), **model),
        sdpo_bench.train(RunConfig(**SETTINGS, **model), out=out),
    ]
    assert {run.folder for run in again} == {trained.folder}
    assert (trained.folder / "done.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="already holds a run"):
        sdpo_bench.train(SETTINGS, out=out, resume=False, **model)


def test_evaluate(trained, tiny_model):
    """A run's weights give what it recorded; another number of steps and reward can be asked for."""
    model = str(tiny_model)
    frame = sdpo_bench.evaluate(trained, model=model)
    recorded = trained.values.query("epoch == 1")
    key = ["reward", "steps", "split", "prompt", "noise_seed"]
    both = frame.merge(recorded[[*key, "value"]], on=key)
    assert len(both) == len(frame) == len(recorded)
    assert both["value_x"].tolist() == pytest.approx(both["value_y"].tolist(), rel=1e-5)
    other = sdpo_bench.evaluate(model=model, rewards=["colourfulness"], eval_steps=[1], eval_splits=["unseen"])
    assert set(other["reward"]) == {"colourfulness"}
    assert set(other["steps"]) == {1}
    assert len(other) == 5 * RunConfig.eval_noises


def test_bad_settings():
    with pytest.raises(UserError, match="the settings: unknown key 'stepz'; did you mean steps"):
        sdpo_bench.train(stepz=4)
    with pytest.raises(UserError, match="the settings: steps is 'four'; expected a whole number"):
        sdpo_bench.train({"steps": "four"})
    with pytest.raises(UserError, match="rewards is empty"):
        sdpo_bench.evaluate(rewards=())


def test_load_results():
    """Of packed records: means without pyarrow's values, a row per run, every epoch."""
    results = sdpo_bench.load_results(RESULTS / "quick")
    assert repr(results).endswith(f"quick', {len(results.runs)} runs)")
    assert set(results.means["label"]) >= {"pretrained", "SDPO", "DDPO"}
    assert set(results.runs["label"]) == set(results.means["label"])
    assert results.runs["device"].str.startswith("cpu: ").all()
    assert {"run_id", "learning_rate", "method.name"} <= {*results.runs.columns}
    assert len(results.training) == results.runs["epochs"].sum()
    pretrained = results.means.query("label == 'pretrained' and reward == 'alignment' and split == 'seen'")
    (row,) = pretrained.query("steps == 4").value
    assert f"{row:.3f}" == "0.698", "README's"


def test_a_packed_run_has_what_a_run_has():
    """Its pictures, and every value, though the records of `Results` have means."""
    records = {run.run_id: run for run in sdpo_bench.load_results(RESULTS / "quick").records}
    name = next(name for name in records if name.startswith("sdpo-alignment-k4-s0"))
    of_results, run = sdpo_bench.Run(records[name]), sdpo_bench.Run(sdpo_bench.load_run(records[name].folder))
    with zipfile.ZipFile(RESULTS / "quick" / "pictures" / "part-1.zip") as kept:
        found = {when: kept.read(f"{name}_{when}.webp") for when in run.pictures}
    assert [*found] == ["after"], "the pictures before training are the start's"
    with Image.open(io.BytesIO(found["after"])) as image:
        assert {one.pictures["after"].tobytes() for one in (run, of_results)} == {image.tobytes()}
    assert of_results.values.equals(run.values)
    assert of_results.means["value"].tolist() == pytest.approx(run.means["value"].tolist())
    assert of_results.changes.equals(run.changes)
    with pytest.raises(UserError, match="holds no weights"):
        sdpo_bench.evaluate(run)
    with pytest.raises(RecordError, match=r"config\.json"):
        sdpo_bench.load_run(RESULTS / "quick" / "raw" / "none")


def test_compare():
    frame = sdpo_bench.compare("SDPO", "DDPO", profile="quick", results=RESULTS)
    assert set(frame["label"]) == {"SDPO"}
    assert set(frame["n"]) == {2}


def test_the_record_is_a_file_that_train_reads_again(trained):
    assert json.loads((trained.folder / "config.json").read_text()) == trained.config
