"""The paper's curves: as digitised, and the quoted numbers as computed from them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sdpo_bench.paper import CURVES, FOLDER, final_values, load_curves, samples_to_reach, write_paper_tables
from sdpo_bench.records import RecordError


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


def test_committed_tables_are_what_the_curves_give(tmp_path):
    (tmp_path / CURVES).write_bytes((FOLDER / CURVES).read_bytes())
    written = write_paper_tables(tmp_path)
    assert {path.name: path.read_bytes() for path in written} == {
        path.name: path.read_bytes() for path in (FOLDER / "tables").iterdir()}


def test_a_missing_or_foreign_file_is_refused(tmp_path):
    with pytest.raises(RecordError, match="results/paper"):
        load_curves(tmp_path)
    (tmp_path / CURVES).write_text("a,b\n1,2\n")
    with pytest.raises(RecordError, match="line 1: columns"):
        load_curves(tmp_path)
