"""The first screen: sentences on records whose answers are known by hand."""

from __future__ import annotations

import re

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
        "DDPO is highest in 2 of 3 cells (seen prompts), in 2 of them by an interval above 0; on alignment, K = 4 "
        "where it leads, it is ahead of the next by +0.100 [+0.100, +0.100] (1 step)."
    )
    assert found["The paper's order"] == (
        "Of 3 cells, SDPO is above DDPO by an interval above 0 in 1, and below it in 2; on alignment, K = 4 the "
        "difference is -0.100 [-0.100, -0.100] (1 step)."
    )
    whole = overview([first, second, third], build_tables([first, second, third]))
    assert [(title, rows[0]) for title, rows in whole.winners.blocks] == [
        ("alignment, K = 4", ("samples", "DDPO > SDPO by +0.100")),
        ("alignment, K = 20", ("samples", "SDPO > DDPO by +0.200")),
        ("alignment, K = 50", ("samples", "DDPO > SDPO by +0.200")),
    ]
    # One evaluation, at the end, says nothing about SDPO at fewer queries.
    held_equal = ["samples", "model evaluations", "optimiser steps"]
    assert [[what for what, *_ in rows] for _, rows in whole.winners.blocks] == [held_equal] * 3
    assert [place["k"] for place in whole.places] == ["4", "20", "50"]


def test_the_smallest_and_the_largest_lead_have_their_steps_and_intervals():
    group = group_of(
        [
            record(
                label,
                seed,
                {10: {("alignment", k): 0.5 + above * (k / 100 + seed / 1000) for k in (1, 2, 4)}},
                [],
            )
            for label, above in (("SDPO", 1), ("DDPO", 0))
            for seed in range(5)
        ]
    )
    found = verdicts(group)["Best at equal samples"]
    assert found.endswith("ahead of the next by +0.012 [+0.010, +0.014] (1 step) to +0.042 [+0.040, +0.044] (4 steps).")


def test_methods_with_the_rewards_gradient_are_left_out_once_more():
    group = ends({"DRaFT": 0.9, "SDPO": 0.6, "DDPO": 0.7})
    for run in group.runs:
        if run.label == "DRaFT":
            run.train[-1]["reward_gradients"] = 64
    found = verdicts(group)
    assert found["Best at equal samples"].startswith("DRaFT is highest in 1 of 1 cells")
    assert found["Best at equal samples, without the reward's gradient"].startswith("DDPO is highest in 1 of 1 cells")
    [(_, rows)] = overview([group], build_tables([group])).winners.blocks
    assert rows[:2] == (
        ("samples", "DRaFT > DDPO by +0.200"),
        ("samples, without the reward's gradient", "DDPO > SDPO by +0.100"),
    )
    assert not [name for name in verdicts(ends({"SDPO": 0.6, "DDPO": 0.7})) if "gradient" in name]


def test_the_papers_order_at_equal_queries():
    """SDPO, at 0.6 where it has asked for as many rewards as DDPO in all, is below it; above it at the end."""
    curves = {"SDPO": {4: 0.5, 20: 0.9}, "DDPO": {4: 0.5, 20: 0.8}, "pretrained": {0: 0.4}}
    runs = [
        record(label, seed, {epoch: {("alignment", 1): value} for epoch, value in values.items()}, [])
        for label, values in curves.items()
        for seed in range(5 if label != "pretrained" else 1)
    ]
    text = verdicts(group_of(runs))["The paper's order"]
    assert text.startswith("Of 1 cells, SDPO is above DDPO by an interval above 0 in 1, and below it in 0; ")
    assert text.endswith(". At equal reward queries it is above in 0 of 1, and below in 1.")


def test_two_seeds_decide_nothing():
    found = verdicts(ends({"SDPO": 0.8, "DDPO": 0.7}, seeds=2))
    assert FEW in found["Best at equal samples"]
    assert (
        found["The paper's order"]
        == f"SDPO against DDPO: {FEW}; on alignment, K = 4 the difference is +0.100 (1 step)."
    )


def test_without_runs_nothing_is_said():
    empty = overview([], [])
    assert (empty.verdicts, empty.winners) == ((), None)
    alone = ends({"SDPO": 0.8})
    [(_, rows)] = overview([alone], build_tables([alone])).winners.blocks
    assert rows[0] == ("samples", "SDPO > pretrained by +0.402")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    groups = load_groups(write_study(tmp_path_factory.mktemp("results") / "full"))
    return dict(overview(groups, build_tables(groups)).verdicts)


def test_all_questions_of_a_study_have_a_sentence(study):
    assert list(study) == [
        *("Best at equal samples", "The paper's order", "Reward hacking", "Best at equal reward queries"),
        *("Best at equal model evaluations", "Best at equal optimiser steps"),
        *("Ablations", "Dense rewards", "Cost to reach DDPO's reward"),
    ]
    assert study["Ablations"].startswith("On alignment, K = 4, ")
    assert "of 2 ablations" in study["Ablations"]
    assert "standard deviations" in study["Dense rewards"]
    assert study["Cost to reach DDPO's reward"].startswith("SDPO reaches it in 0 of 20 cases")
    assert re.fullmatch(
        r"Where the trained reward rose, the held-out scorer fell in \d of \d+ cases of alignment; on alignment, K = 4 "
        r"its lowest change is [\w-]+'s, \+0\.\d{3} \[\+0\.\d{3}, \+0\.\d{3}\] at \d+ sampling steps?\.",
        study["Reward hacking"],
    )
