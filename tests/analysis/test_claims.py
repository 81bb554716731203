"""The paper's claims: what our runs must show for a verdict, and where they are compared at all."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.synthetic_records import counters, make_config, provenance, train_row
from support.table_files import csv_rows, markdown_tables

from sdpo_bench.analysis.comparisons import Group, load_groups
from sdpo_bench.analysis.outputs import write_all
from sdpo_bench.analysis.paper import final_values, load_curves, shows
from sdpo_bench.analysis.statistics import Interval
from sdpo_bench.analysis.tables import claims
from sdpo_bench.analysis.tables.base import DASH
from sdpo_bench.analysis.tables.claims import Claim, beside_table, claims_table, order_claims, speedups
from sdpo_bench.records.writer import RunWriter

STEPS = (1, 2, 4, 8, 16, 50)
EPOCHS = (5, 10, 15, 20)
Curve = Callable[[str, int, int, int], float]


def write(profile: Path, curve: Curve, seeds: dict[str, int], **changes: object) -> Group:
    """A profile in the paper's setting with runs whose value is curve(label, seed, epoch, steps), and its one group."""
    setting = {"model": "stabilityai/sd-turbo", "reward": "aesthetic", "steps": 50, "pairs": 128, **changes}
    for label, count in {"start": 1, **seeds}.items():
        for seed in range(count):
            config = make_config(label, seed, **setting | ({} if label == "start" else {"epochs": EPOCHS[-1]}))
            with RunWriter(profile / "raw" / config["run_id"]) as writer:
                writer.write_config(config)
                writer.write_provenance(provenance("cuda: Test GPU"))
                for epoch in range(1, config["epochs"] + 1):
                    writer.append_train(train_row(epoch, config))
                for epoch in EPOCHS if config["epochs"] else (0,):
                    for steps in STEPS:
                        values = {"seen": {"cat": [curve(label, seed, epoch, steps)] * 2}}
                        writer.append_eval(
                            {
                                "epoch": epoch,
                                **counters(epoch, config),
                                "reward": setting["reward"],
                                "steps": steps,
                                "values": values,
                                "noise_seeds": [0, 1],
                            }
                        )
                writer.finish({"epochs": config["epochs"], "seconds": {}, "seconds_per_epoch": {}})
    (group,) = load_groups(profile)
    return group


def line(label: str, seed: int, epoch: int, steps: int) -> float:
    """Straight lines from 6: at 1 step SDPO rises most, at 2 steps not, at 4 steps which it is depends on the seed."""
    slope = {"SDPO": {1: 0.2, 2: 0.01, 4: 0.1 + 0.1 * (-1) ** seed}.get(steps, 0.2), "DDPO": 0.1, "REBEL": 0.05}
    return 6 + epoch * slope.get(label, 0.0) + 0.001 * seed


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "sd_turbo"
    write(folder, line, {"SDPO": 6, "DDPO": 6, "REBEL": 4})
    write_all(folder)
    return folder


@pytest.fixture
def group(profile) -> Group:
    return load_groups(profile)[0]


def test_verdicts_of_intervals():
    def of(low: float, high: float, n: int = 5, paper: float = 1.0, neutral: float = 0.0) -> str:
        return Claim("x", 1, paper, neutral, {}, Interval((low + high) / 2, low, high, n)).verdict

    assert of(0.1, 0.2) == "supported"
    assert of(-0.2, -0.1) == "contradicted"
    assert of(-0.1, 0.2) == of(0.1, 0.2, n=4) == of(-0.2, -0.1, n=4) == "not decided"
    assert of(0.1, 0.2, paper=-1.0) == "contradicted"
    assert of(-0.2, -0.1, paper=-1.0) == "supported"
    assert of(0.1, 0.9, paper=2.0, neutral=1.0) == "contradicted"
    assert of(1.1, 1.9, paper=2.0, neutral=1.0) == "supported"
    assert of(1.1, 1.9, paper=np.nan, neutral=1.0) == DASH
    assert Claim("x", 1, 1.0, 0.0, {}, None).verdict == "not measured"


def test_order(group):
    found = {(claim.text, claim.steps): claim for claim in order_claims(group, load_curves())}
    assert len(found) == 18
    assert all(claim.paper > 0 for claim in found.values()), "the paper's order is the same at every step count"
    expected = {1: "supported", 2: "contradicted", 4: "not decided", 50: "supported"}
    assert {k: found["SDPO above DDPO", k].verdict for k in expected} == expected
    assert found["SDPO above DDPO", 1].values == pytest.approx(dict.fromkeys(range(6), 2.0))
    assert found["SDPO above DDPO", 1].ours == pytest.approx((2.0, 2.0, 2.0, 6))
    assert found["DDPO above REBEL", 8].verdict == "not decided", "four pairs of runs, however clear"
    assert found["REBEL above D3PO", 8].verdict == "not measured"
    paper = final_values(load_curves()).set_index(["steps", "method"])["final"]
    assert found["DDPO above REBEL", 8].paper == paper[8, "DDPO"] - paper[8, "REBEL"]


def test_samples(group):
    """DDPO ends at 8: SDPO's line of 0.2 an epoch is above that after 10 epochs, so at the evaluation of 15."""
    assert speedups(group, "DDPO", 1) == pytest.approx(dict.fromkeys(range(6), 20 / 15))
    assert speedups(group, "DDPO", 2) == dict.fromkeys(range(6), 0.0)
    # REBEL ends at 7, which SDPO's evaluation of 10 epochs is the first to be above.
    assert speedups(group, "REBEL", 1) == pytest.approx(dict.fromkeys(range(4), 2.0))
    assert speedups(group, "D3PO", 1) == {}
    frame = claims_table(group).frame.set_index(["claim", "steps"])
    rows = frame.loc["SDPO needs fewer samples than DDPO"]
    assert list(rows["verdict"])[:3] == ["supported", "contradicted", "not decided"]
    assert rows.loc[50, "paper"] == pytest.approx(29184 / 14336)
    assert rows.loc[50, "value"] == pytest.approx(20 / 15)
    assert list(frame.loc["SDPO needs fewer samples than D3PO"]["verdict"]) == ["", *["not measured"] * 5]
    assert np.isnan(frame.loc["SDPO needs fewer samples than REBEL"]["low"]).all()


def test_a_curve_that_falls_back_has_not_stayed_above(tmp_path, monkeypatch):
    """Above the rival early and late: what counts is from where on it stays. Above all the time: its first evaluation.
    A row written before training has no samples to count."""
    shape = {"SDPO": {5: 9.0, 10: 6.0, 15: 9.0, 20: 9.0}, "DDPO": dict.fromkeys(EPOCHS, 7.0)}

    def curve(label: str, seed: int, epoch: int, steps: int) -> float:
        return 9.0 if steps == 50 and label == "SDPO" else shape.get(label, {}).get(epoch, 5.0)

    monkeypatch.setattr(sys.modules[__name__], "EPOCHS", (0, *EPOCHS))
    group = write(tmp_path / "x", curve, {"SDPO": 1, "DDPO": 1})
    assert speedups(group, "DDPO", 8) == pytest.approx({0: 20 / 15})
    assert speedups(group, "DDPO", 50) == pytest.approx({0: 4.0})


def test_tables_say_where_each_number_is_from(profile, group):
    text = markdown_tables(profile)["claims_aesthetic_k50"]
    row = next(line for line in text.splitlines() if line.startswith("| SDPO above DDPO"))
    first, second, third = (cell.strip() for cell in row.strip("|").split("|")[1:4])
    assert first == "supported: +2.00 [+2.00, +2.00] (n=6); paper +0.73"
    assert second.startswith("contradicted: -1.80 [-1.80, -1.80] (n=6); paper +1.16")
    assert third.startswith("not decided: ")
    assert "| REBEL above D3PO | not measured: paper +0.32 |" in text
    assert f"| SDPO needs fewer samples than D3PO | {DASH} | not measured: paper 6.00x |" in text
    beside = markdown_tables(profile)["paper_aesthetic_k50"]
    assert "| SDPO, paper | 7.20 | 7.89 | 8.04 | 8.15 | 8.20 | 8.14 |" in beside
    assert "| pretrained, paper | 6.09 |" in beside
    assert "| pretrained | 6.00 (n=1) |" in beside
    assert f"| D3PO | {DASH} |" in beside
    frame = csv_rows(profile, "paper_aesthetic", 50).set_index(["label", "steps"])
    assert frame.loc[("DDPO", 8), "n"] == 6
    assert frame.loc[("DDPO", 8), "value"] == pytest.approx(8.0025, abs=1e-3)
    assert beside_table(group).frame["paper"].notna().sum() == 5 * 6


def test_the_report_counts_the_verdicts(profile, group):
    frame = claims_table(group).frame
    counts = frame["verdict"].value_counts()
    sentence = claims_table(group).answer
    assert sentence == (
        f"Of the paper's 35 claims about this setting: {counts['supported']} supported, {counts['contradicted']} "
        f"contradicted, {counts['not decided']} not decided, {counts['not measured']} not measured."
    )
    readme = (profile / "README.md").read_text()
    assert f"- {sentence}" in readme
    assert "(tables/methods.md#claims_aesthetic_k50)" in readme
    assert "(tables/paper_aesthetic.csv)" in readme
    assert "Published, SD-Turbo, Aesthetic Score" in (profile / "report.html").read_text()


@pytest.mark.parametrize("changes", [{"model": "embedded"}, {"steps": 4}, {"reward": "hpsv2"}, {"model": "/x/other"}])
def test_other_settings_are_not_compared(tmp_path, changes):
    """The embedded model least of all: another model, another scale."""
    group = write(tmp_path / "x", line, {"SDPO": 1, "DDPO": 1}, **changes)
    assert not claims.applies(group)
    names = {path.name for path in write_all(tmp_path / "x")}
    assert not any(re.match("paper|claims", name) for name in names)


def test_a_local_copy_counts_by_its_folders_name():
    assert shows("stabilityai/sd-turbo", "aesthetic", 50)
    assert shows("/data/models/SD-Turbo/", "aesthetic", 50)
    assert not shows("/data/sd-turbo/other", "aesthetic", 50)
