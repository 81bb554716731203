"""What training changed: means and differences by hand, and the word for what is noise."""

from __future__ import annotations

import pytest
from support.synthetic_records import make_config, write_run

from sdpo_bench.analysis.changes import NOISE, change_frame, change_table, changes, training_changes
from sdpo_bench.analysis.render import text
from sdpo_bench.records.reader import load_run


def row(values: dict[str, list[float]], noises=(0, 1), split: str = "seen", steps: int = 4) -> dict:
    return {"reward": "alignment", "steps": steps, "noise_seeds": list(noises), "values": {split: values}}


def test_differences_are_paired_by_prompt():
    """Differences 0.1, 0.2 and 0.3: mean 0.2, standard error 0.1 / sqrt(3), t of 2 degrees 4.302653."""
    first = row({"cat": [0.1, 0.3], "dog": [0.5, 0.5], "fox": [0.8, 1.0], "owl": [0.0, 0.0]})
    second = row({"fox": [1.1, 1.3], "cat": [0.2, 0.4], "dog": [0.7, 0.7], "eel": [9.0, 9.0]})
    (found,) = changes([first], [second])
    assert (found.first, found.second) == (pytest.approx(0.5333333), pytest.approx(0.7333333))
    assert found.difference.value == pytest.approx(0.2)
    assert found.difference.high - 0.2 == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert found.difference.n == 3
    assert found.word == NOISE, "0.2 - 0.248 is below 0"


def test_words():
    first = row({"cat": [0.0], "dog": [1.0]}, noises=(0,))
    assert changes([first], [row({"cat": [0.5], "dog": [1.51]}, (0,))])[0].word == "clear"
    assert changes([first], [row({"cat": [-0.5], "dog": [0.49]}, (0,))])[0].word == "clear"
    assert changes([row({"cat": [0.0]}, (0,))], [row({"cat": [1.0]}, (0,))])[0].word == "", "one prompt has no interval"


def test_only_what_both_have_is_compared():
    first, second = row({"cat": [0.1, 0.2]}, (0, 1)), row({"cat": [0.7, 0.3, 0.4]}, (9, 1, 2))
    (found,) = changes([first], [second])
    assert (found.first, found.second) == (0.2, 0.3), "noise 1"
    assert changes([first], [row({"cat": [0.1, 0.2]}, steps=8)]) == []
    assert changes([first], [row({"cat": [0.1, 0.2]}, split="unseen")]) == []
    assert changes([first], [row({"dog": [0.1, 0.2]})]) == []
    assert changes([first], [row({"cat": [0.1]}, (5,))]) == []


def test_a_runs_changes(tmp_path):
    run = load_run(write_run(tmp_path, make_config("DDPO", epochs=10), pictures=False))
    found = training_changes(run)
    assert [change.reward for change in found[:8]] == ["alignment"] * 8
    assert len(found) == 2 * 2 * 4
    lines = text(change_table("changes", "DDPO", found)).splitlines()
    assert lines[2].split() == ["alignment,", "seen", "prompts", "1", "step", "2", "steps", "4", "steps", "8", "steps"]
    assert [line.split(" ")[0] for line in lines[3:6]] == ["before", "after", "difference"]
    assert "over the prompts" in lines[-1]
    assert change_frame(found)["difference"].iloc[0] == pytest.approx(found[0].second - found[0].first)
    assert training_changes(load_run(write_run(tmp_path, make_config("start"), pictures=False))) == []
