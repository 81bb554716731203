"""Tables: what a cell says, who meets whom, and that nothing but the records decides."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.study_records import group_of, record
from support.synthetic_records import (
    DEVICE,
    EPOCHS,
    STEPS,
    make_config,
    reported_profile,
    seal,
    write_profile,
    write_run,
)
from support.table_files import csv_rows, markdown_tables

from sdpo_bench.analysis import comparisons, outputs
from sdpo_bench.analysis.compare import compare_with_reference
from sdpo_bench.analysis.comparisons import load_groups, load_results, smallest_total
from sdpo_bench.analysis.outputs import write_all
from sdpo_bench.analysis.outputs import write_profile as write_profile_files
from sdpo_bench.analysis.tables import base
from sdpo_bench.analysis.tables.base import DASH, cell_text
from sdpo_bench.analysis.tables.build import build_tables, render_terminal
from sdpo_bench.analysis.tables.orders import ranking
from sdpo_bench.analysis.tables.pairs import Pair, paired_table
from sdpo_bench.analysis.tables.reach import reach_table
from sdpo_bench.analysis.tables.values import equal_table
from sdpo_bench.cli.main import main
from sdpo_bench.experiments import summary
from sdpo_bench.records import reader
from sdpo_bench.records.files import RecordError
from sdpo_bench.records.identity import continued
from sdpo_bench.records.reader import load_profile


@pytest.fixture(scope="module")
def profile():
    return reported_profile()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_profile(tmp_path_factory.mktemp("small") / "quick", seeds=2, labels=("SDPO", "DDPO"))


def rows(table: str) -> dict[str, list[str]]:
    """First row of each label of a Markdown table."""
    found: dict[str, list[str]] = {}
    for line in table.splitlines():
        if line.startswith("| ") and not line.startswith("| method"):
            label, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            found.setdefault(label, cells)
    return found


def test_a_cell_is_the_last_evaluations_mean_over_runs(profile):
    frame = csv_rows(profile, "main_alignment", 4)
    runs = [run for run in load_profile(profile) if run.label == "SDPO" and run.config["steps"] == 4]
    scores = []
    for run in runs:
        row = next(e for e in run.eval if (e["epoch"], e["reward"], e["steps"]) == (60, "alignment", 2))
        scores.append(np.mean(list(row["values"]["unseen"].values())))
    cell = frame[(frame["label"] == "SDPO") & (frame["steps"] == 2) & (frame["split"] == "unseen")].iloc[0]
    assert cell["value"] == pytest.approx(stats.trim_mean(scores, 0.25), abs=1e-6)
    assert cell["n"] == 5
    assert min(scores) - 1e-6 <= cell["low"] <= cell["value"] <= cell["high"] <= max(scores) + 1e-6
    seeds = list(map(int, cell["seeds"].split()))
    ids = csv_rows(profile, "runs", 4).set_index(["label", "seed"])["run_id"]
    assert [ids["SDPO", seed] for seed in seeds] == [run.run_id for run in runs]
    assert [float(v) for v in cell["runs"].split()] == pytest.approx(scores, abs=1e-6)


def test_tables_of_a_csv_have_the_same_columns_and_all_rows(profile):
    """Pandas reads the rows of several tables as those of one."""
    tables = build_tables(load_groups(profile))
    shared = Counter(table.csv for table in tables)
    assert shared["main_alignment.csv"] == 2
    assert shared["order.csv"] == 1
    for name in shared:
        frames = [table.frame for table in tables if table.csv == name]
        assert len({tuple(frame.columns) for frame in frames}) == 1, name
        written = pd.read_csv(profile / "tables" / name)
        assert list(written.columns) == list(frames[0].columns)
        assert len(written) == sum(map(len, frames))
        assert {"device", "model", "reward_trained", "training_steps"} <= {*written.columns}


def test_values_are_the_last_evaluations_alone(profile):
    for group in load_groups(profile):
        assert set(group.values.loc[group.values["label"] != "pretrained", "epoch"]) == {60}
        assert not group.values.duplicated(["run", "reward", "steps", "split"]).any()


def test_few_runs_are_shown_themselves_without_an_interval(profile):
    text = markdown_tables(profile)["main_alignment_k4"]
    found = rows(text)
    assert list(found) == ["pretrained", "SDPO", "DDPO", "REBEL", "PRDP"]
    assert re.fullmatch(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\] \(n=5\)", found["SDPO"][0])
    assert re.fullmatch(r"0\.\d{3}, 0\.\d{3} \(n=2\)", found["REBEL"][0])
    assert found["pretrained"][0].endswith("(n=1)")
    assert found["PRDP"] == [DASH] * len(STEPS)
    assert "nox -s reproduce -- --profile quick --results RESULTS --resume" in text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, DASH),
        ({0: 0.5}, "0.500 (n=1)"),
        ({0: 0.51249, 3: 0.519}, "0.512, 0.519 (n=2)"),
        (dict.fromkeys(range(5), 0.5), "0.500 [0.500, 0.500] (n=5)"),
    ],
)
def test_cell_text(values, text):
    assert cell_text(values, 3) == text


def test_training_steps_rewards_and_devices_do_not_meet(tmp_path):
    profile = write_profile(tmp_path / "mixed", seeds=1, labels=("SDPO",))
    write_run(profile, make_config("SDPO", 0, steps=20))
    write_run(profile, make_config("SDPO", 0, reward="jpeg"), rewards=("jpeg",))
    write_run(profile, make_config("DDPO"), device="cuda: Test GPU")
    found = {(g.device, g.reward, g.steps): g for g in load_groups(profile)}
    assert set(found) == {
        (DEVICE, "alignment", 4),
        (DEVICE, "alignment", 20),
        (DEVICE, "jpeg", 4),
        ("cuda: Test GPU", "alignment", 4),
    }
    assert found[DEVICE, "alignment", 20].labels == ["pretrained", "SDPO"]  # the one start serves every K
    assert found["cuda: Test GPU", "alignment", 4].labels == ["DDPO"]  # but not another device
    write_all(profile)
    assert {
        "main_alignment_k4",
        "main_alignment_k20",
        "main_jpeg_k4",
        "order",
        "main_alignment_k4_cuda-test-gpu",
        "order_cuda-test-gpu",
    } <= markdown_tables(profile).keys()
    main = pd.read_csv(profile / "tables" / "main_alignment.csv")
    assert {(DEVICE, 4), (DEVICE, 20), ("cuda: Test GPU", 4)} == set(
        zip(main["device"], main["training_steps"], strict=True)
    )


def test_two_configurations_under_one_label_are_told_apart(tmp_path):
    """By what differs, in the tables' rows; seeds stay together, and other labels and devices as they are."""
    profile = write_profile(tmp_path, seeds=2, labels=("SDPO", "DDPO"))
    for seed, device in ((0, DEVICE), (5, DEVICE), (7, "cuda: Test GPU")):
        config = make_config("SDPO", seed, learning_rate=3e-4, method={"name": "sdpo", "clip": 0.5})
        write_run(profile, config, device=device, pictures=False)
    group, other = load_groups(profile)
    first, second = "SDPO, clip 0.001, learning_rate 0.0001", "SDPO, clip 0.5, learning_rate 0.0003"
    assert group.labels == ["pretrained", "DDPO", first, second]
    assert [sorted(group.cell(label, "alignment", "seen", 4)) for label in (first, second)] == [[0, 1], [0, 5]]
    assert other.labels == ["SDPO"], "alone on its device"
    shown = {row[0] for table in build_tables([group]) for _, rows in table.blocks for row in rows}
    assert {"DDPO", first, second} <= shown


def test_the_same_run_twice_is_refused(tmp_path):
    profile = write_profile(tmp_path, seeds=1, labels=("SDPO",))
    write_run(profile, make_config("SDPO", rows=8))
    with pytest.raises(RecordError, match="share the label 'SDPO' but differ in nothing, not even the seed"):
        load_groups(profile)


def test_runs_under_one_label_may_be_executed_differently(tmp_path):
    """Rows, and epochs that were added later; but not on other weights of the same name."""
    profile = write_profile(tmp_path, seeds=1, labels=("SDPO",))
    config = make_config("SDPO", 1, epochs=10, rows=32)
    write_run(profile, continued(config, config | {"epochs": EPOCHS, "rows": 8}))
    (group,) = load_groups(profile)
    assert [run.config["seed"] for run in group.runs if run.label == "SDPO"] == [0, 1]
    for number, path in enumerate(sorted(profile.glob("raw/sdpo-*/provenance.json"))):
        weights = {"model": {"unet/weights.safetensors": str(number)}}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": weights}))
    with pytest.raises(RecordError, match="share the label 'SDPO' but differ in the files of the model"):
        load_groups(profile)


def test_equal_queries(profile):
    """SDPO asks three times a sample: it is shown after 1,280 samples, its 20th epoch of 60."""
    group = next(g for g in load_groups(profile) if g.steps == 4)
    assert smallest_total(group, "reward_queries") == 3840
    found = rows(markdown_tables(profile)["equal_queries_alignment_k4"])
    assert found["SDPO"][0] == "1,280"
    assert found["DDPO"][0] == "3,840"
    frame = csv_rows(profile, "equal_queries_alignment", 4).set_index(["label", "split", "steps"])
    main = csv_rows(profile, "main_alignment", 4).set_index(["label", "split", "steps"])
    assert (frame.loc["DDPO"]["value"] == main.loc["DDPO"]["value"]).all()  # one query a sample: its last
    curves = group.curves[
        (group.curves["label"] == "SDPO")
        & (group.curves["epoch"] == 20)
        & (group.curves["reward"] == "alignment")
        & (group.curves["split"] == "seen")
        & (group.curves["steps"] == 4)
    ].sort_values("seed")
    shown = [float(v) for v in frame.loc[("SDPO", "seen", 4), "runs"].split()]
    assert shown == pytest.approx(curves["value"].tolist(), abs=1e-5)


def with_evaluations(group, rows):
    """The group with these evaluations alone: (label, seed, epoch, sampling steps, value); 64 samples an epoch."""
    template = group.curves.iloc[0].to_dict()
    curves = [
        template
        | {
            "run": f"{label}-{seed}",
            "label": label,
            "seed": seed,
            "epoch": epoch,
            "steps": steps,
            "value": value,
            "samples": 64 * epoch,
            "split": "seen",
            "reward": "alignment",
            "reward_queries": 64 * epoch * {"SDPO": 3}.get(label, 1),
        }
        for label, seed, epoch, steps, value in rows
    ]
    return dataclasses.replace(group, curves=pd.DataFrame(curves))


def test_equal_queries_lie_between_evaluations(small, monkeypatch):
    """Budget 640: DDPO's end. SDPO has spent 384 and 960 at its first evaluations: 4 ninths of the way between them.
    Without the first nothing is known of it."""
    group = with_evaluations(
        load_groups(small)[0],
        [
            ("pretrained", 0, 0, 1, 0.4),
            ("pretrained", 0, 0, 16, 0.4),
            ("SDPO", 0, 2, 1, 0.52),
            ("SDPO", 0, 5, 1, 0.7),
            ("SDPO", 0, 10, 1, 0.9),
            ("SDPO", 0, 10, 16, 0.9),
            ("DDPO", 0, 5, 1, 0.5),
            ("DDPO", 0, 10, 1, 0.8),
            ("DDPO", 0, 10, 16, 0.8),
        ],
    )
    monkeypatch.setattr(comparisons, "smallest_total", lambda *_: 640)
    equal = comparisons.at_equal(group, "reward_queries")
    assert equal.cell("SDPO", "alignment", "seen", 1) == pytest.approx({0: 0.52 + 0.18 * 4 / 9})
    assert equal.cell("DDPO", "alignment", "seen", 1) == {0: 0.8}
    assert equal.cell("pretrained", "alignment", "seen", 1) == {0: 0.4}
    assert equal.steps_evaluated == [1]  # at 16 steps SDPO is known at its end alone
    later = dataclasses.replace(group, curves=group.curves[group.curves["epoch"] != 2])
    assert comparisons.at_equal(later, "reward_queries").left_out == ("SDPO",)
    ends = with_evaluations(group, [("pretrained", 0, 0, 1, 0.4), ("SDPO", 0, 10, 1, 0.9), ("DDPO", 0, 10, 1, 0.8)])
    assert comparisons.at_equal(ends, "reward_queries") is None


def test_samples_at_equal_queries_are_a_range(small, monkeypatch):
    """Runs of SDPO that asked 3, 2.5 and 2 times a sample had 213, 256 and 320 samples after 640 queries."""
    group = with_evaluations(
        load_groups(small)[0],
        [("pretrained", 0, 0, 1, 0.4), *(("SDPO", seed, 20, 1, 0.9) for seed in range(3)), ("DDPO", 0, 10, 1, 0.8)],
    )
    asked = {0: 3, 1: 2.5, 2: 2}
    trained = group.curves["label"] == "SDPO"
    group.curves.loc[trained, "reward_queries"] = [int(1280 * asked[seed]) for seed in group.curves["seed"][trained]]
    monkeypatch.setattr(comparisons, "smallest_total", lambda *_: 640)
    group.curves.loc[trained, "epoch"] = 10  # as DDPO's: numbers of steps that only the end has are left out
    begun = group.curves[trained].assign(epoch=1, samples=64)
    begun["reward_queries"] //= 20
    group = dataclasses.replace(group, curves=pd.concat([group.curves, begun], ignore_index=True))
    table = equal_table(group, "reward_queries", comparisons.at_equal(group, "reward_queries"))
    shown = {row[0]: row[1] for row in table.blocks[0][1]}
    assert shown == {"pretrained": "0", "SDPO": "213–320", "DDPO": "640"}


def test_the_mean_is_over_all_numbers_of_steps():
    """By hand: SDPO minus DDPO is 1, 2 and 6 at seed 0 and 4, 0 and -1 at seed 1, so 3 and 1 in the mean. Seed 2 has no
    evaluation with 50 steps, so no mean."""
    values = {
        "SDPO": [(11.0, 12.0, 16.0), (14.0, 10.0, 9.0), (10.0, 10.0)],
        "DDPO": [(10.0, 10.0, 10.0), (10.0, 10.0, 10.0), (10.0, 10.0)],
    }
    group = group_of(
        [
            record(label, seed, {10: {("alignment", k): value for k, value in zip((1, 4, 50), run, strict=False)}}, [])
            for label, runs in values.items()
            for seed, run in enumerate(runs)
        ]
    )
    table = paired_table("x", "x", "", "difference", [Pair("SDPO minus DDPO", group, "SDPO", group, "DDPO")])
    assert table.blocks[0][1] == (
        (
            "SDPO minus DDPO",
            "+1.00, +4.00, +0.00 (n=3)",
            "+2.00, +0.00, +0.00 (n=3)",
            "+6.00, -1.00 (n=2)",
            "+3.00, +1.00 (n=2)",
        ),
    )
    assert table.frame.set_index("steps").loc["mean", "difference"] == pytest.approx(2)
    assert table.answer.endswith("mean over 1, 4 and 50 steps: SDPO minus DDPO +3.00, +1.00 (n=2).")


@pytest.mark.parametrize("start_first", [True, False])
def test_the_start_is_paired_with_every_seed_of_a_method(start_first):
    group = group_of(
        [
            record("start", 0, {0: {("alignment", 1): 0.25}}, []),
            *(record("DDPO", seed, {10: {("alignment", 1): 0.5 * seed}}, []) for seed in (3, 5)),
        ]
    )
    labels = ("pretrained", "DDPO") if start_first else ("DDPO", "pretrained")
    cells = Pair("", group, labels[0], group, labels[1]).cells("seen", 1)
    expected = ({3: 0.25, 5: 0.25}, {3: 1.5, 5: 2.5})
    assert cells == (expected if start_first else expected[::-1])


def test_cost(profile):
    cost = csv_rows(profile, "cost_alignment", 4).set_index("label")
    assert list(cost.loc["SDPO", ["samples", "reward_queries", "optimiser_steps", "model_evaluations"]]) == [
        3840,
        11520,
        240,
        15360,
    ]
    assert cost.loc["SDPO", "seconds_train"] == pytest.approx(0.6)


def test_differences_are_paired(profile):
    frame = csv_rows(profile, "differences_alignment", 4)
    assert set(frame["baseline"]) == {"SDPO"}
    assert set(frame["label"]) == {"DDPO", "REBEL"}
    # SDPO and DDPO have the same spread over seeds here: paired, it cancels.
    ddpo = frame[frame["label"] == "DDPO"]
    np.testing.assert_allclose(ddpo["high"] - ddpo["low"], 0, atol=1e-5)
    np.testing.assert_allclose(ddpo["difference"], 0.005 * (1 - np.exp(-3)), atol=1e-4)
    assert ((ddpo["probability"] > 0.5) & (ddpo["probability"] < 1)).all()
    assert frame[frame["label"] == "REBEL"]["low"].isna().all()


def test_order_and_what_establishes_it(profile):
    group = next(g for g in load_groups(profile) if g.steps == 4)
    order = ranking(group, "seen", 4)
    assert order[0] == ("DDPO", False)
    assert order[1] == ("SDPO", True)
    assert order[-1][0] == "pretrained"
    assert dict(order)["REBEL"] is False  # two runs establish nothing
    text = markdown_tables(profile)["order"]
    assert "| alignment | 4 | seen | 4 | DDPO > SDPO ~ REBEL ~ pretrained |" in text
    assert "| alignment | 20 | seen | 4 | DDPO ~ SDPO ~ pretrained |" in text


def test_another_reward_has_its_table(profile):
    text = markdown_tables(profile)["other_alignment_k4_alignment-heldout"]
    assert "No run here was trained on alignment_heldout" in text


def test_latex_is_escaped_and_balanced(profile, tmp_path):
    write_all(shutil.copytree(profile, tmp_path / "quick"), tex=True)
    text = (tmp_path / "quick" / "tables" / "other_alignment_k4_alignment-heldout.tex").read_text()
    assert r"alignment\_heldout" in text
    assert r"95 \%" in text
    assert text.count("{") == text.count("}")
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    assert {line.count("&") for line in body.splitlines() if "&" in line} == {len(STEPS)}


def test_terminal(small):
    text = render_terminal(load_results(small))
    assert text.splitlines()[0] == "alignment, trained on alignment with K = 4, embedded on " + DEVICE
    header, *body = (line for line in text.splitlines() if line.startswith(("seen", "pretrained", "SDPO", "DDPO")))
    table = pd.read_fwf(io.StringIO("\n".join([header, *body[:3]])), colspecs="infer")
    assert list(table.iloc[:, 0]) == ["pretrained", "SDPO", "DDPO"]
    assert max(map(len, [header, *body])) < 120


def test_comparison_with_itself_and_with_other_numbers(small, tmp_path):
    same = compare_with_reference(load_groups(small), load_groups(small))
    assert "24 of 24 values within tolerance" in same
    assert "OUTSIDE" not in same
    other = write_profile(tmp_path / "quick", seeds=1, labels=("DDPO",))
    for path in other.glob("raw/*/eval.jsonl"):
        path.write_text(path.read_text().replace("[0.5", "[0.9"))
        seal(path.parent)
    changed = compare_with_reference(load_groups(other), load_groups(small))
    assert "OUTSIDE" in changed
    assert "not in both" in changed  # SDPO is missing from mine
    lone = write_profile(tmp_path / "lone", seeds=1, labels=("DDPO",))
    assert "no spread" in compare_with_reference(load_groups(small), load_groups(lone))


def test_modules_of_analysis_and_records_import_neither_torch_nor_training():
    """Whoever has the records alone can make the tables."""
    code = """
import importlib, pkgutil, sys
from sdpo_bench import analysis, records
names = [m.name for p in (analysis, records) for m in pkgutil.walk_packages(p.__path__, p.__name__ + ".")]
assert {"sdpo_bench.analysis.tables.pairs", "sdpo_bench.analysis.figures.build"} <= {*names}, names
assert "sdpo_bench.records.reader" in names
for name in names:
    importlib.import_module(name)
heavy = {"torch", "diffusers", "transformers", "triton"}
ours = {"sdpo_bench." + part for part in ("training", "experiments", "policies", "methods", "rewards", "cli", "config")}
wrong = sorted(m for m in sys.modules if m.split(".")[0] in heavy or ".".join(m.split(".")[:2]) in ours)
assert not wrong, wrong
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(base.__file__).parents[3])


@pytest.fixture
def reads(monkeypatch):
    """How often the folder of each run has been read."""
    counts = Counter[Path]()
    load_run = reader.load_run

    def counted(folder):
        counts[Path(folder).resolve()] += 1
        return load_run(folder)

    for module in list(sys.modules.values()):
        if getattr(module, "load_run", None) is load_run:
            monkeypatch.setattr(module, "load_run", counted)
    return counts


def run_folders_of(*profiles: Path) -> set[Path]:
    return {path.resolve() for profile in profiles for path in profile.glob("raw/*")}


def test_tables_reads_each_run_once(small, reads, monkeypatch, capsys):
    """Also for the page over all profiles, which is made and checked where no folder is named."""
    monkeypatch.setattr(outputs, "reference_results", lambda: small.parent)
    assert main(["tables"]) == 0
    reads.clear()
    assert main(["tables", "--check"]) == 0
    assert {*reads} == run_folders_of(small)
    assert {*reads.values()} == {1}
    page = small.parent / "README.md"
    assert "| alignment | 4 | tuned, 0.0001 |" not in page.read_text()
    assert "| alignment | 4 | tuned | 3,840 | 2 | DDPO | ~ SDPO +0.00" in page.read_text()
    page.write_text("edited")
    assert main(["tables", "--check"]) == 1
    assert f"{page}: other" in capsys.readouterr().out


def test_the_end_of_reproduce_reads_each_run_once(small, tmp_path, monkeypatch, reads):
    """Tables, terminal, comparison and speeds are made of the same records."""
    mine = tmp_path / "runs" / "quick"
    shutil.copytree(small, mine)
    shutil.copytree(small, tmp_path / "results" / "quick")
    monkeypatch.setattr(summary, "reference_results", lambda: tmp_path / "results")
    text = summary.summarise(write_profile_files(mine), "quick", [], 1.0)
    assert "within tolerance" in text
    assert (mine / "README.md").exists()
    assert {*reads} == run_folders_of(mine, tmp_path / "results" / "quick")
    assert {*reads.values()} == {1}


def test_curves_take_the_noises_that_all_evaluations_have(tmp_path):
    """Evaluations before the last have 2 of 4 noises: the main table takes all 4 at the end, and whatever compares
    evaluations with each other the first 2 everywhere, at the end and before training too."""
    profile = tmp_path / "quick"
    configs = [make_config("start", eval_interim_noises=2)]
    configs += [make_config(label, seed, eval_interim_noises=2) for label in ("SDPO", "DDPO") for seed in range(2)]
    for config in configs:
        path = write_run(profile, config) / "eval.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            if row["epoch"] < max(other["epoch"] for other in rows):
                row["noise_seeds"] = row["noise_seeds"][:2]
            for prompts in row["values"].values():
                for name, values in prompts.items():
                    # The noises that are left out lie far from the others.
                    prompts[name] = [*values[:2], *(value + 5 for value in values[2:])][: len(row["noise_seeds"])]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        seal(path.parent)
    (group,) = load_groups(profile)
    run = next(run for run in load_profile(profile) if run.label == "SDPO" and run.config["seed"] == 0)
    first = {point.epoch: point.value for point in group.points(run.run_id, "alignment", "seen", 2)}
    assert max(first.values()) < 1
    (last,) = (e for e in run.eval if (e["epoch"], e["reward"], e["steps"]) == (60, "alignment", 2))
    values = np.array(list(last["values"]["seen"].values()))
    assert values.shape[1] == 4
    assert group.cell("SDPO", "alignment", "seen", 2)[0] == pytest.approx(values.mean())
    assert group.curve_ends("SDPO", "seen", 2)[0] == first[60] == pytest.approx(values[:, :2].mean())
    assert (
        group.cell(comparisons.PRETRAINED, "alignment", "seen", 2)[0]
        > 2
        > group.curve_ends(comparisons.PRETRAINED, "seen", 2)[0]
    )
    equal = comparisons.at_equal(group, "reward_queries")
    assert max(equal.cell(label, "alignment", "seen", 2)[0] for label in ("pretrained", "SDPO", "DDPO")) < 1
    reached = reach_table(group).frame
    ends = reached[(reached["label"] == "DDPO") & (reached["cost"] == "samples")]
    assert set(ends["reached"]) == {2}, "DDPO reaches what it ends with itself"
