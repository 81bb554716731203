"""The paper's curves: as digitised, and the quoted numbers as computed from them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sdpo_bench.analysis.paper import (
    CURVES,
    FOLDER,
    SAMPLES,
    SDPO_STEPS,
    final_values,
    load_curves,
    paper_files,
    samples_to_part,
    samples_to_reach,
)
from sdpo_bench.records.files import RecordError


@pytest.fixture(scope="module")
def curves():
    return load_curves()


def test_curves_are_complete(curves):
    assert len(curves) == 6 * 4 * 115
    for _, curve in curves.groupby(["steps", "method"]):
        np.testing.assert_array_equal(curve["samples"], np.arange(0, 29184 + 1, 256))
    assert (curves["low"] <= curves["mean"]).all()
    assert (curves["mean"] <= curves["high"]).all()


def test_final_values(curves):
    table = final_values(curves).set_index(["steps", "method"]).round(2)
    assert list(table.loc[(1, "SDPO")]) == [6.09, 7.20, 7.47]
    assert list(table.loc[(50, "DDPO")]) == [5.48, 7.02, 7.11]
    assert (table["final"].unstack()["SDPO"] > table["final"].unstack()["DDPO"]).all()


def test_samples_to_reach(curves):
    table = samples_to_reach(curves).set_index(["steps", "baseline"])
    assert list(table["samples"].unstack()["DDPO"]) == [12288, 13056, 13056, 13568, 13824, 14336]
    assert np.isnan(table.loc[(1, "D3PO"), "samples"])
    # The figure for which the paper is read: twice DDPO's speed per sample, but behind it per reward query.
    ddpo = table.xs("DDPO", level="baseline")
    assert ((ddpo["speedup"] > 1.9) & (ddpo["speedup"] < 2.5)).all()
    assert (ddpo["speedup_per_query"] < 1).all()


def test_samples_to_reach_by_hand():
    samples = np.arange(0, 20 * 256, 256)
    flat = {"DDPO": 0.5, "REBEL": -1.0, "D3PO": 99.0}
    rows = [(4, "SDPO", s, s / 2560, 0.0, 1.0) for s in samples]
    rows += [(4, name, s, value, 0.0, 1.0) for name, value in flat.items() for s in samples]
    table = samples_to_reach(pd.DataFrame(rows, columns=["steps", "method", "samples", "mean", "low", "high"]))
    found = dict(zip(table["baseline"], table["samples"], strict=True))
    assert found["DDPO"] == 1536  # the first above 0.5 on a straight line
    assert np.isnan(found["REBEL"])  # above from the start
    assert np.isnan(found["D3PO"])  # never


def test_samples_to_part(curves):
    ddpo = samples_to_part(curves).set_index(["baseline", "steps"]).loc["DDPO"]
    assert dict(ddpo["band"]) == {1: 17920, 2: 12288, 4: 7680, 8: 7168, 16: 6912, 50: 6912}
    assert ddpo.loc[1, "line"] == 8704
    at = curves[(curves["steps"] == 1) & (curves["samples"] == 8448)].set_index("method")["mean"]
    assert at["SDPO"] <= at["DDPO"]  # the last such sample count


def test_samples_to_part_by_hand():
    samples = (0, 256, 512, 768)
    sdpo = [(4, "SDPO", s, mean, mean - 1, mean + 1) for s, mean in zip(samples, (5, 6, 9, 10), strict=True)]
    others = {"DDPO": (5, 7, 7, 7), "REBEL": (4, 4, 4, 4), "D3PO": (9, 9, 9, 10)}
    rows = [
        (4, name, s, mean, mean - 1, mean + 0.5)
        for name, means in others.items()
        for s, mean in zip(samples, means, strict=True)
    ]
    table = samples_to_part(pd.DataFrame([*sdpo, *rows], columns=["steps", "method", "samples", "mean", "low", "high"]))
    found = table.set_index("baseline")[["line", "band"]].to_dict("index")
    assert found["DDPO"] == {"line": 512, "band": 512}  # equal at 0, below at 256; 9 - 1 is above 7 + 0.5
    assert found["REBEL"] == {"line": 0, "band": 256}  # 5 - 1 is not above 4 + 0.5, 6 - 1 is
    assert np.isnan(list(found["D3PO"].values())).all()  # level at the end is not above


def test_the_papers_totals_are_those_of_the_curves_and_the_settings(curves):
    settings = pd.read_csv(FOLDER / "settings.csv").set_index("reward").loc["aesthetic"]
    pairs = settings["batch_size"] * settings["gradient_accumulation_steps"] * settings["gpus"]
    epochs = SAMPLES / (2 * settings["pairs_per_epoch"])
    assert curves["samples"].max() == SAMPLES
    assert epochs * settings["pairs_per_epoch"] / pairs * settings["sampling_steps"] == SDPO_STEPS


def test_committed_tables_are_what_the_curves_give(tmp_path):
    (tmp_path / CURVES).write_bytes((FOLDER / CURVES).read_bytes())
    assert paper_files(tmp_path) == {f"tables/{path.name}": path.read_bytes() for path in (FOLDER / "tables").iterdir()}


def test_a_missing_or_foreign_file_is_refused(tmp_path):
    with pytest.raises(RecordError, match="results/paper"):
        load_curves(tmp_path)
    (tmp_path / CURVES).write_text("a,b\n1,2\n")
    with pytest.raises(RecordError, match="line 1: columns"):
        load_curves(tmp_path)
