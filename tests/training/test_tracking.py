"""Dashboards get copies of the records, from the first process alone."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from conftest import TINY
from PIL import Image
from support import processes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sdpo_bench.cli import main
from sdpo_bench.config import RunConfig
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.reader import load_run
from sdpo_bench.training.loop import train
from sdpo_bench.training.sinks import Tracker, flat


def tracked(ranks, config, root):
    folder = root / run_id(config.to_json())
    tracker = Tracker("tensorboard", root / "tracker", folder.name, config.to_json(), cpu=True)
    train(config, folder, ranks=ranks, tracker=tracker)
    tracker.close()


def test_tensorboard(tiny_model, tmp_path):
    config = RunConfig(model=str(tiny_model), **TINY)
    assert processes.run(2, tracked, config, tmp_path) == [0, 0]
    folder = tmp_path / run_id(config.to_json())
    record = load_run(folder)
    (events,) = (tmp_path / "tracker" / record.run_id).iterdir()  # one run, and no other beneath it
    found = EventAccumulator(str(events)).Reload()
    values = [(event.step, event.value) for event in found.Scalars("reward_mean")]
    assert values == [(row["epoch"], pytest.approx(row["reward_mean"])) for row in record.train]
    for name in ("reward_std", "kl", "seconds/train"):
        assert [event.value for event in found.Scalars(name)] == [
            pytest.approx(flat(row)[name], rel=1e-5) for row in record.train
        ]
    assert "_hparams_/experiment" in found.Tags()["tensors"] or found.summary_metadata["_hparams_/experiment"]
    pictures = found.Images("pictures")
    assert [image.step for image in pictures] == [0, 2]
    assert (pictures[0].height, pictures[0].width) == (32, 128)  # two step counts, eight prompts of 16 pixels
    for image, name in zip(pictures, ("before", "after"), strict=True):
        shown, saved = Image.open(BytesIO(image.encoded_image_string)), Image.open(folder / f"grid_{name}.png")
        assert np.array_equal(shown, saved)
    means = {
        row["epoch"]: sum(value for values in row["values"]["seen"].values() for value in values) / 30
        for row in record.eval
        if row["reward"] == "colourfulness" and row["steps"] == 2
    }
    values = {event.step: event.value for event in found.Scalars("evaluation/colourfulness/seen/2 steps")}
    assert values == pytest.approx(means, rel=1e-5)


def test_nested_values_become_flat():
    assert flat({"a": {"b": 1, "c": {"d": 2.5}}, "e": (1, 2), "f": "x"}) == {
        "a/b": 1,
        "a/c/d": 2.5,
        "e": "(1, 2)",
        "f": "x",
    }


def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch, capsys, tiny_model):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sdpo_bench.training.sinks.find_spec", lambda name: None)
    assert main.main(["train", "--model", str(tiny_model), "--device", "cpu", "--tracker", "wandb"]) == 2
    expected = "error: --tracker wandb: its package is not installed; python -m pip install wandb\n"
    assert capsys.readouterr().err == expected
    assert not list(tmp_path.iterdir())
