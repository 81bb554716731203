"""The first screen: sentences on records whose answers are known by hand."""

from __future__ import annotations

import pytest
from support.study_records import group_of, record, write_study

from sdpo_bench.analysis.comparisons import load_groups
from sdpo_bench.analysis.overview import FEW, overview
from sdpo_bench.analysis.tables.build import build_tables


def ends(points: dict[str, float], seeds: int = 5, steps: int = 4):
    """A group of runs that end at these values, plus a thousandth a seed, from a start of 0.4."""
    return group_of(
        [
            record("start", 0, {0: {("alignment", 1): 0.4}}, [], steps),
            *(
                record(label, seed, {10: {("alignment", 1): value + seed / 1000}}, [], steps)
                for label, value in points.items()
                for seed in range(seeds)
            ),
        ],
        steps,
    )


def verdicts(*groups) -> dict[str, str]:
    return dict(overview([*groups], build_tables([*groups])).verdicts)


def test_who_is_best_and_by_how_much():
    first, second = ends({"SDPO": 0.6, "DDPO": 0.7}), ends({"SDPO": 0.9, "DDPO": 0.7}, steps=20)
    third = ends({"SDPO": 0.5, "DDPO": 0.7}, steps=50)
    found = verdicts(first, second, third)
    assert found["Best at equal samples"] == (
        "DDPO is highest in 2 of 3 cells (a reward, K and number of sampling steps; seen prompts), in 2 of them by an "
        "interval above 0; on alignment, K = 4 where it leads, it is ahead of the next by +0.100."
    )
    assert found["The paper's order"] == (
        "Of 3 cells, SDPO is above DDPO by an interval above 0 in 1, and below it in 2; on alignment, K = 4 the "
        "difference is -0.100."
    )
    (table, *_) = overview([first, second, third], build_tables([first, second, third])).winners
    assert table.blocks[0][1] == (
        ("alignment, K = 4", "DDPO > SDPO by +0.100"),
        ("alignment, K = 20", "SDPO > DDPO by +0.200"),
        ("alignment, K = 50", "DDPO > SDPO by +0.200"),
    )


def test_methods_with_the_rewards_gradient_are_left_out_once_more():
    group = ends({"DRaFT": 0.9, "SDPO": 0.6, "DDPO": 0.7})
    for run in group.runs:
        if run.label == "DRaFT":
            run.train[-1]["reward_gradients"] = 64
    found = verdicts(group)
    assert found["Best at equal samples"].startswith("DRaFT is highest in 1 of 1 cells")
    assert found["Best at equal samples, without the reward's gradient"].startswith("DDPO is highest in 1 of 1 cells")
    tables = {table.name: table for table in overview([group], build_tables([group])).winners}
    assert tables["winners_samples"].blocks[0][1] == (
        ("alignment, K = 4", "DRaFT > DDPO by +0.200"),
        ("alignment, K = 4, without the reward's gradient", "DDPO > SDPO by +0.100"),
    )
    assert not [name for name in verdicts(ends({"SDPO": 0.6, "DDPO": 0.7})) if "gradient" in name]


def test_two_seeds_decide_nothing():
    found = verdicts(ends({"SDPO": 0.8, "DDPO": 0.7}, seeds=2))
    assert FEW in found["Best at equal samples"]
    assert found["The paper's order"] == f"SDPO against DDPO: {FEW}; on alignment, K = 4 the difference is +0.100."


def test_without_runs_nothing_is_said():
    empty = overview([], [])
    assert (empty.verdicts, empty.winners) == ((), ())
    alone = ends({"SDPO": 0.8})
    table, *_ = overview([alone], build_tables([alone])).winners
    assert table.blocks[0][1] == (("alignment, K = 4", "SDPO > pretrained by +0.402"),)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    groups = load_groups(write_study(tmp_path_factory.mktemp("results") / "full"))
    return dict(overview(groups, build_tables(groups)).verdicts)


def test_all_questions_of_a_study_have_a_sentence(study):
    assert list(study) == [
        "Best at equal samples",
        "Best at equal reward queries",
        "Best at equal model evaluations",
        "Best at equal optimiser steps",
        "The paper's order",
        "Ablations",
        "Dense rewards",
        "Cost to reach DDPO's reward",
        "Reward hacking",
    ]
    assert study["Ablations"].startswith("On alignment, K = 4, ")
    assert "of 2 ablations" in study["Ablations"]
    assert "standard deviations" in study["Dense rewards"]
    assert study["Cost to reach DDPO's reward"].startswith("SDPO reaches it in 0 of 20 cases")
    assert study["Reward hacking"].startswith("Where the trained reward rose, the held-out scorer fell in ")
