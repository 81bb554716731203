"""The study's tables on records whose answers are known by hand."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.study_records import group_of, record

from sdpo_bench.analysis.comparisons import EQUAL, Group, at_equal, smallest_total
from sdpo_bench.analysis.overview import overview
from sdpo_bench.analysis.tables.ablations import ablation_table
from sdpo_bench.analysis.tables.base import ABOUT, Table
from sdpo_bench.analysis.tables.build import build_tables
from sdpo_bench.analysis.tables.critic import critic_table
from sdpo_bench.analysis.tables.dense import dense_budgets_table, dense_steps_table, step_ranges
from sdpo_bench.analysis.tables.hacking import hacking_table
from sdpo_bench.analysis.tables.orders import order_table, ranking
from sdpo_bench.analysis.tables.paper_order import paper_order_table
from sdpo_bench.analysis.tables.protocol import protocol_table, rate_order_table
from sdpo_bench.analysis.tables.reach import cost_to_reach, reach_table
from sdpo_bench.analysis.tables.values import cost_table, equal_table, main_table
from sdpo_bench.records import protocols
from sdpo_bench.records.frames import COUNTERS
from sdpo_bench.rewards import REWARDS

WOBBLE = (-0.002, -0.001, 0.0, 0.001, 0.002)  # over seeds; its t interval is 0 +- HALF
HALF = stats.t.ppf(0.975, 4) * np.std(WOBBLE, ddof=1) / np.sqrt(5)


def ends(finals: dict[str, float], wobble: bool = True, steps: int = 4, k: tuple[int, ...] = (1, 2)) -> Group:
    """Five runs of each label that end at the given alignment, the start at 0.4; every second label wobbles."""
    runs = [record("start", 0, {0: {("alignment", n): 0.4 for n in k}}, [], steps)]
    for i, (label, final) in enumerate(finals.items()):
        runs += [
            record(
                label,
                seed,
                {10: {("alignment", n): final + (WOBBLE[seed] if wobble and i % 2 else 0) for n in k}},
                [],
                steps,
            )
            for seed in range(5)
        ]
    return group_of(runs, steps)


def row(table: Table, block: str, name: str) -> tuple[str, ...]:
    rows = dict(table.blocks)[block]
    return next(cells[1:] for cells in rows if cells[0] == name)


def test_the_papers_order_by_k():
    """K = 4: DDPO above SDPO; K = 20: SDPO above DDPO; REBEL and D3PO differ by less than the seeds."""
    four = ends({"SDPO": 0.5, "DDPO": 0.6, "REBEL": 0.5, "D3PO": 0.4995})
    twenty = ends({"SDPO": 0.7, "DDPO": 0.6, "REBEL": 0.5, "D3PO": 0.4995}, steps=20)
    table = paper_order_table([four, twenty])
    assert table is not None
    found = row(table, "SDPO above DDPO, seen prompts", "alignment, K = 4")[0]
    assert found == f"contradicted: -0.100 [{-0.1 - HALF:+.3f}, {-0.1 + HALF:+.3f}] (n=5)"
    assert row(table, "SDPO above DDPO, seen prompts", "alignment, K = 20")[1].startswith("supported: +0.100 [")
    assert row(table, "REBEL above D3PO, seen prompts", "alignment, K = 4")[0].startswith("not decided: +0.0")
    assert table.answer == (
        "The paper's order at equal samples, seen prompts, at these runs' learning rates and lengths (table protocol). "
        "SDPO above DDPO: of 4 cases 2 support it (all of alignment at K = 20), 2 contradict it (all of alignment at K "
        "= 4). DDPO above REBEL: of 4 cases 4 support it (all of alignment at K = 4 and 20), 0 contradict it. REBEL "
        "above D3PO: of 4 cases 0 support it, 0 contradict it. All of it is supported nowhere throughout."
    )
    whole = paper_order_table([four, ends({"SDPO": 0.7, "DDPO": 0.6, "REBEL": 0.5, "D3PO": 0.4}, steps=20)])
    assert whole.answer.endswith("All of it is supported throughout for alignment at K = 20.")
    part = paper_order_table([ends({"SDPO": 0.7, "DDPO": 0.6})])
    assert part.answer.endswith(
        "SDPO above DDPO: of 2 cases 2 support it (all of alignment at K = 4), 0 contradict "
        "it. All of it is supported nowhere throughout."
    )
    assert "12 intervals are shown" in table.note
    frame = table.frame.set_index(["training_steps", "claim", "steps"])
    assert frame.loc[(4, "SDPO above DDPO", 1), ["low", "high"]].tolist() == pytest.approx([-0.1 - HALF, -0.1 + HALF])
    few = group_of([run for run in four.runs if run.config["seed"] < 4])
    assert all(
        text.startswith("not decided: -0.098, -0.099, -0.100, -0.101 (n=4)")
        for text in row(paper_order_table([few]), "SDPO above DDPO, seen prompts", "alignment, K = 4")
    )
    undecided = "nothing is decided (fewer than 5 seeds, or intervals that hold 0)."
    assert paper_order_table([few]).answer.endswith(undecided)
    assert "intervals are shown" not in paper_order_table([few]).note
    assert paper_order_table([ends({"SDPO": 0.5})]) is None


def rated(rates: dict[str, float], steps: int = 4) -> Group:
    return group_of(
        [
            record("start", 0, {0: {("alignment", 1): 0.4}}, [], steps),
            *(
                record(label, seed, {10: {("alignment", 1): 0.5}}, [], steps, learning_rate=rate)
                for label, rate in rates.items()
                for seed in range(2)
            ),
        ],
        steps,
    )


def test_protocol_and_length_of_an_order():
    """Ten epochs, each of 64 samples and 4 optimiser steps by the synthetic training rows."""
    own = rated({"SDPO": 1e-5, "DDPO": 1e-4, "PRDP": 3e-4}, steps=20)
    for run in own.runs:  # SDPO: 0.55 in the mean over 10 epochs, 0.3 less with a seed
        for epoch in run.train:
            share = 0.6 if run.label == "DDPO" else epoch["epoch"] / 10
            epoch["prompt_stats_share"] = share - 0.3 * (run.label == "SDPO" and run.config["seed"] == 0)
    table = protocol_table([rated({"SDPO": 1e-4, "D3PO": 1e-4}), own])
    assert [row for _, rows in table.blocks for row in rows] == [
        (
            "alignment, K = 4",
            "0.0001",
            "not run",
            "not run",
            "0.0001",
            "640 (2.2 %)",
            "40 (0.4 %)",
            "not run",
            "not run",
            "40",
            "SDPO 1,920; D3PO 640",
            "not recorded",
        ),
        (
            "alignment, K = 20",
            "1e-05",
            "0.0001",
            "not run",
            "not run",
            "640 (2.2 %)",
            "40 (0.4 %)",
            "40",
            "not run",
            "not run",
            "SDPO 1,920; DDPO 640",
            "SDPO 40 %; DDPO 60 %",
        ),
        (
            "the paper: sd-turbo, aesthetic, K = 50",
            *["0.0001"] * 4,
            "29,184",
            "11,400",
            *["228"] * 3,
            "SDPO 87,552; DDPO, REBEL, D3PO 29,184",
            "98 %",
        ),
    ]
    assert table.frame["own_prompt_statistics"].dropna().tolist() == pytest.approx([0.4, 0.6])
    assert table.frame["reward_queries"].tolist() == [1920, 640, 1920, 640]
    assert table.answer == (
        "What is said about the order of the methods holds for this protocol (tuned) and length: learning rates of "
        "their own on alignment at K = 20; one learning rate for all on alignment at K = 4; 2.2 % of the 29,184 "
        "samples of a run in the paper's figure and 0.4 % of the 11,400 optimiser steps that SDPO takes there. Orders "
        "at one rate for all methods are in the table order_rate of the profiles that sweep learning rates."
    )
    assert "order_rate" not in protocol_table([rated({"SDPO": 1e-4, "DDPO": 1e-4})]).answer
    assert protocol_table([rated({"SDPO": 1e-5, "PRDP": 1e-4})]) is None


@pytest.mark.parametrize(
    ("rates", "name", "meaning"),
    [
        ({"SDPO": 1e-4, "DDPO": 1e-4}, "shared", "all methods have one learning rate"),
        ({"SDPO": 1e-4, "DDPO": 3e-5}, "tuned", "methods have learning rates of their own, which were given with"),
        # Each of several rates is shared, also where some runs are still to be made.
        ({"SDPO 0.0001": 1e-4, "DDPO 0.0001": 1e-4, "SDPO 3e-05": 3e-5}, "shared", "all methods have one"),
    ],
)
def test_a_protocol_follows_from_the_records(rates, name, meaning):
    """Where a profile's methods share a rate unless they are given others."""
    group = dataclasses.replace(rated(rates), profile="sd_turbo")
    assert protocols.described("sd_turbo", group.runs).startswith(f"{name} ({meaning}")
    if "DDPO" in rates:
        assert f"holds for this protocol ({name}) and length" in protocol_table([group]).answer
    assert protocols.protocol_of("paper_k4", group.runs) == name
    moved = dataclasses.replace(group, profile="moved", planned="shared")
    assert (moved.protocol, dataclasses.replace(moved, planned="").protocol) == (name, "")
    assert protocols.described("moved", group.runs, "shared").startswith(f"{name} ({meaning}")
    if "DDPO" in rates:
        assert set(protocol_table([moved]).frame["protocol"]) == {name}
    assert protocols.protocol_of("full", group.runs) == "tuned"


def sweep_of(
    points: dict[float, dict[str, tuple[float, float]]], steps: int = 4, seeds: tuple[int, ...] = (100,)
) -> Group:
    """A sweep's runs that end at these values with 1 and 2 sampling steps, by learning rate and label."""
    return group_of(
        [
            record("start", 0, {0: {("alignment", 1): 0.4, ("alignment", 2): 0.4}}, [], steps, "tuning"),
            *(
                record(
                    f"{label} {rate:g}",
                    seed,
                    {10: {("alignment", 1): one, ("alignment", 2): two}},
                    [],
                    steps,
                    "tuning",
                    learning_rate=rate,
                )
                for rate, methods in points.items()
                for label, (one, two) in methods.items()
                for seed in seeds
            ),
        ],
        steps,
    )


RATES = {
    3e-5: {"SDPO": (0.8, 0.7), "DDPO": (0.7, 0.75), "REBEL": (0.6, 0.6), "D3PO": (0.5, 0.6), "PRDP": (0.9, 0.9)},
    1e-5: {
        "SDPO": (0.8, 0.81),
        "DDPO": (0.7, 0.71),
        "REBEL": (0.6, 0.61),
        "D3PO": (0.5, 0.51),
        "DDPO (per step)": (0.9, 0.8),
        "REBEL (per step)": (0.7, 0.9),
        "SDPO (per trajectory)": (0.4, 0.4),
    },
    1e-4: {"SDPO": (0.8, 0.8), "DDPO": (0.9, 0.9), "REBEL": (0.6, 0.6)},
}


def test_order_by_shared_rate():
    table = rate_order_table([sweep_of(RATES), sweep_of({1e-5: RATES[3e-5]}, steps=20)])
    assert table.header[-2:] == ("SDPO above DDPO", "whole order")
    blocks = dict(table.blocks)
    assert blocks["tuning prompts: the paper's methods"] == (
        (
            "alignment, K = 4",
            "1e-05",
            "SDPO 0.800, DDPO 0.700, REBEL 0.600, D3PO 0.500",
            "SDPO 0.810, DDPO 0.710, REBEL 0.610, D3PO 0.510",
            "2 of 2",
            "2 of 2",
        ),
        (
            "alignment, K = 4",
            "3e-05",
            "SDPO 0.800, DDPO 0.700, REBEL 0.600, D3PO 0.500",
            "DDPO 0.750, SDPO 0.700, REBEL 0.600, D3PO 0.600",
            "1 of 2",
            "1 of 2",
        ),
        (
            "alignment, K = 20",
            "1e-05",
            "SDPO 0.800, DDPO 0.700, REBEL 0.600, D3PO 0.500",
            "DDPO 0.750, SDPO 0.700, REBEL 0.600, D3PO 0.600",
            "1 of 2",
            "1 of 2",
        ),
    ), "without D3PO no row"
    assert blocks["tuning prompts: with an optimiser step for each denoising step"] == (
        (
            "alignment, K = 4",
            "1e-05",
            "DDPO (per step) 0.900, SDPO 0.800, REBEL (per step) 0.700",
            "REBEL (per step) 0.900, SDPO 0.810, DDPO (per step) 0.800",
            "1 of 2",
            "0 of 2",
        ),
    )
    assert table.answer == (
        "One learning rate for all methods, one tuning seed, no interval and no verdict: the paper's whole order, SDPO "
        "> DDPO > REBEL > D3PO, stands at every number of sampling steps on alignment at K = 4 at 1e-05. Of the "
        "paper's methods, SDPO is above DDPO in 4 of 6 cases; with an optimiser step for each denoising step, SDPO is "
        "above DDPO (per step) in 1 of 2 cases; with an optimiser step for each batch of trajectories, SDPO (per "
        "trajectory) is above DDPO in 0 of 2 cases."
    )
    assert table.note.startswith("One tuning seed: no interval, no verdict.")
    found = table.frame.set_index(["compared", "training_steps", "learning_rate", "steps"])
    found = found.loc[[("the paper's methods", 4, 3e-5, 2)]].set_index("label")
    assert found["rank"].to_dict() == {"DDPO": 1, "SDPO": 2, "REBEL": 3, "D3PO": 4}
    assert not found["whole_order"].any()
    assert found.loc["SDPO", "seeds"] == "100"


def test_a_tie_is_no_order_and_several_seeds_are_counted():
    level = {1e-5: RATES[1e-5] | {"D3PO": (0.6, 0.5)}}
    table = rate_order_table([sweep_of(level, seeds=(100, 101))])
    assert table.blocks[0][1][0][-2:] == ("2 of 2", "1 of 2")
    assert "2 tuning seeds, no interval" in table.answer
    assert "stands at every number of sampling steps at no rate." in table.answer
    assert rate_order_table([ends({"SDPO": 0.7, "DDPO": 0.6, "REBEL": 0.5, "D3PO": 0.4})]) is None, "no sweep"


def test_five_seeds_at_shared_rates_have_intervals():
    """Reported prompts, and the profile's main runs, which have no rate in their label, beside those at another."""
    group = ends({"SDPO": 0.7, "DDPO": 0.6, "REBEL": 0.6005, "D3PO": 0.4}, k=(1,))
    beside = ends({"SDPO 3e-05": 0.6, "DDPO 3e-05": 0.7, "REBEL 3e-05": 0.5, "D3PO 3e-05": 0.4}, k=(1,))
    for run in beside.runs:
        run.config["learning_rate"] = 3e-5
    both = [*group.runs, *(run for run in beside.runs if run.label != "pretrained")]
    together = dataclasses.replace(group_of(both), profile="paper_k4")
    table = rate_order_table([together])
    ((title, rows), *_) = table.blocks
    assert title == "seen prompts: the paper's methods"
    lead = "{:+.3f} [{:+.3f}, {:+.3f}] (n=5)"
    texts = [lead.format(x, x - HALF, x + HALF) for x in (-0.1, 0.1)]
    assert [cells[1:] for cells in rows] == [
        (
            "3e-05",
            f"DDPO 0.700 > SDPO 0.600 > REBEL 0.500 > D3PO 0.400; SDPO minus DDPO {texts[0]}",
            "0 of 1 (0 by an interval above 0)",
            "0 of 1",
        ),
        (
            "0.0001",
            f"SDPO 0.700 > REBEL 0.601 ~ DDPO 0.600 > D3PO 0.400; SDPO minus DDPO {texts[1]}",
            "1 of 1 (1 by an interval above 0)",
            "0 of 1",
        ),
    ]
    assert "tuning" not in table.note + table.answer
    assert "no verdict" not in table.note + table.answer
    assert "in 1 of 2 cases (1 by an interval above 0)" in table.answer
    found = table.frame.set_index(["learning_rate", "label"])
    assert found.loc[(1e-4, "REBEL"), ["ahead_of_next", "low", "high"]].tolist() == pytest.approx(
        [0.0005, 0.0005 - HALF, 0.0005 + HALF]
    )
    assert rate_order_table([dataclasses.replace(group, profile="full")]) is None, "each has its own rate there"
    few = [run for run in both if run.config["seed"] < 2]
    few = rate_order_table([dataclasses.replace(group_of(few), profile="paper_k4")])
    assert few.note.startswith("2 seeds: no interval, no verdict.")


def test_ablations_stand_apart_from_methods():
    group = ends({"SDPO": 0.6, "SDPO (terminal)": 0.5, "SDPO (exact)": 0.6, "DDPO": 0.55, "DDPO (per step)": 0.65})
    names = {label for label, _ in ranking(group, "seen", 1)}
    assert names == {"pretrained", "SDPO", "DDPO"}
    tables = {table.name: table for table in build_tables([group])}
    assert [cells[0] for cells in tables["main_alignment_k4"].blocks[0][1]] == ["pretrained", "SDPO", "DDPO"]
    assert [cells[0] for cells in tables["differences_alignment_k4"].blocks[0][1]] == ["DDPO"]
    assert [cells[0] for cells in tables["cost_alignment_k4"].blocks[1][1]] == [
        "SDPO (exact)",
        "SDPO (terminal)",
        "DDPO (per step)",
    ]
    table = tables["ablations_alignment_k4"]
    assert [cells[0] for cells in table.blocks[0][1]] == [
        "SDPO (exact) minus SDPO",
        "SDPO (terminal) minus SDPO",
        "DDPO (per step) minus DDPO",
        "SDPO minus DDPO (per step)",
        "SDPO (exact) minus SDPO (terminal)",
    ]
    interval = f"[{-0.1 - HALF:+.3f}, {-0.1 + HALF:+.3f}]"
    assert row(table, "seen prompts: difference", "SDPO (terminal) minus SDPO") == (f"-0.100 {interval} (n=5)",) * 3
    assert row(table, "seen prompts: difference", "SDPO minus DDPO (per step)")[0] == "-0.050 [-0.050, -0.050] (n=5)"
    chances = row(table, "seen prompts: probability of improvement", "SDPO (terminal) minus SDPO")
    assert chances == ("0.00 [0.00, 0.36] (n=5, 5)",) * 3
    up = f"+0.100 [{0.1 - HALF:+.3f}, {0.1 + HALF:+.3f}]"
    assert table.answer == (
        "K = 4, alignment, seen prompts, mean over step counts: "
        f"above 0: DDPO (per step) minus DDPO {up} (n=5), SDPO (exact) minus SDPO (terminal) {up} (n=5); "
        f"below 0: SDPO (terminal) minus SDPO -0.100 {interval} (n=5), "
        "SDPO minus DDPO (per step) -0.050 [-0.050, -0.050] (n=5); "
        "not decided: SDPO (exact) minus SDPO."
    )
    assert ablation_table(ends({"SDPO": 0.6, "DDPO": 0.5})) is None


def test_an_ablation_without_its_method_has_no_row():
    assert ablation_table(ends({"DDPO": 0.6, "SDPO (terminal)": 0.5})) is None


def test_the_mean_of_the_steps_is_paired_too():
    """Differences of +0.1 at 1 step and -0.1 at 2 steps: their mean is 0, without spread."""
    runs = [
        record(label, seed, {10: {("alignment", 1): 0.5 + a + seed / 100, ("alignment", 2): 0.5 - a}}, [])
        for label, a in (("SDPO", 0.0), ("SDPO (exact)", 0.1))
        for seed in range(5)
    ]
    table = ablation_table(group_of(runs))
    assert row(table, "seen prompts: difference", "SDPO (exact) minus SDPO") == (
        "+0.100 [+0.100, +0.100] (n=5)",
        "-0.100 [-0.100, -0.100] (n=5)",
        "+0.000 [+0.000, +0.000] (n=5)",
    )


def probe(epoch: int, budget: str, mae: list[float], corr: list[float | None], queries: float) -> dict[str, Any]:
    """Exact rewards with a standard deviation of 0.1 and 0.3 at even and odd steps."""
    return {
        "epoch": epoch,
        "budget": budget,
        "queries_per_sample": queries,
        "mae": mae,
        "bias": mae,
        "std": [0.1 + 0.2 * (i % 2) for i in range(len(mae))],
        "corr": corr,
        "return_corr": [0.5] * len(mae),
        "return_sign": [0.75] * len(mae),
    }


def probed(steps: int = 4) -> Group:
    runs = []
    for seed in range(5):
        dense = []
        for epoch, scale in ((0, 1.0), (5, 9.0), (10, 2.0)):
            base = [0.02 * scale, 0.04 * scale] * (steps // 2)
            dense += [
                probe(epoch, "3", [x + WOBBLE[seed] for x in base], [None, *[0.8] * (steps - 1)], 3.0),
                probe(epoch, "4", [x / 2 + WOBBLE[seed] for x in base], [None, *[0.9] * (steps - 1)], 4.0),
            ]
        runs.append(record("SDPO", seed, {10: {("alignment", 1): 0.5}}, dense, steps))
    runs.append(record("SDPO (exact)", 0, {10: {("alignment", 1): 0.5}}, [probe(0, "3", [9.0] * 4, [None] * 4, 3.0)]))
    return group_of(runs, steps)


def test_accuracy_of_budgets():
    """Errors of 0.03 before and 0.06 after training on average, over a mean standard deviation of 0.2."""
    table = dense_budgets_table([probed()])
    assert [title for title, _ in table.blocks] == [
        "alignment, K = 4, SDPO, before training",
        "alignment, K = 4, SDPO, after 10 epochs",
    ]
    half = HALF / 0.2

    def text(value: float, sign: str = "", half: float = half) -> str:
        return f"{value:{sign}.3f} [{value - half:{sign}.3f}, {value + half:{sign}.3f}] (n=5)"

    before = row(table, "alignment, K = 4, SDPO, before training", "3")
    assert before == ("3", text(0.15), "", text(0.8, half=0), text(0.5, half=0), text(0.75, half=0))
    after = row(table, "alignment, K = 4, SDPO, after 10 epochs", "4")
    assert after[:4] == ("4", text(0.15), text(-0.15, "+", 0), text(0.9, half=0))  # paired: the wobble is shared
    assert text(0.3) in table.answer
    assert "4 smaller in 1, larger in 0 of 1" in table.answer
    assert "9" not in {title[-1] for title, _ in table.blocks}
    assert dense_budgets_table([ends({"SDPO": 0.5})]) is None


def test_accuracy_by_step():
    table = dense_steps_table([probed()])
    before = dict(table.blocks)["alignment, K = 4, SDPO, before training"]
    assert [cells[0] for cells in before] == ["step 1", "step 2", "step 3", "step 4"]
    assert before[0][1].startswith("0.200 [")
    assert before[1][1].startswith("0.133 [")
    assert before[0][2] == "", "the first step is shared by the pair: no correlation"
    assert before[1][2] == "0.800 [0.800, 0.800] (n=5)"
    assert table.answer.startswith(
        "The anchored prediction's error after training is largest at: alignment, K = 4: step 1, 0.400 ["
    )
    assert step_ranges(20) == {
        "steps 1 to 7": [*range(7)],
        "steps 8 to 14": [*range(7, 14)],
        "steps 15 to 20": [*range(14, 20)],
    }
    assert list(step_ranges(8)) == [f"step {k}" for k in range(1, 9)]
    thirds = dict(dense_steps_table([probed(20)]).blocks)["alignment, K = 20, SDPO, before training"]
    assert thirds[0][1].startswith(f"{(4 * 0.02 + 3 * 0.04) / (4 * 0.1 + 3 * 0.3):.3f} [")


def test_cost_to_reach():
    values, costs = np.array([0.0, 2.0, 1.0, 4.0]), np.array([[0.0], [10.0], [20.0], [30.0]])
    assert cost_to_reach(values, costs, 1.0) == [5.0]
    assert cost_to_reach(values, costs, 2.0) == [10.0]
    assert cost_to_reach(values, costs, 2.5) == [25.0]
    assert cost_to_reach(values, costs, -1.0) == [0.0]
    assert cost_to_reach(values, costs, 5.0) is None


def test_cost_to_reach_ddpos_reward():
    """DDPO ends at 0.6. SDPO is at 0.5 after 5 epochs and at 0.7 after 10, so there after 7.5, but for seed 4, which
    stays below. REBEL starts at 0.4 and reaches 0.8 after 5 epochs: there after 2.5."""
    shapes = {
        "SDPO": (0.5, 0.7),
        "DDPO": (0.55, 0.6),
        "REBEL": (0.8, 0.8),
        "D3PO": (0.4, 0.5),
        "REBEL (per step)": (0.8, 0.8),
    }
    runs = [record("start", 0, {0: {("alignment", 1): 0.4, ("alignment", 16): 0.4}}, [])]
    for (label, (half, end)), seed in itertools.product(shapes.items(), range(5)):
        last = 0.55 if (label, seed) == ("SDPO", 4) else end
        runs.append(
            record(
                label, seed, {5: {("alignment", 1): half}, 10: {("alignment", 1): last, ("alignment", 16): last}}, []
            )
        )
    table = reach_table(group_of(runs))
    block = "seen prompts, 1 sampling step"
    assert [title for title, _ in table.blocks] == [block], "of 16 steps only the end is known"
    assert row(table, block, "SDPO") == (
        "4 of 5",
        *(", ".join([text] * 4) for text in ("750", "2,250", "15", "3,000", "30")),
    )
    rebel = row(table, block, "REBEL")
    assert rebel[:3] == ("5 of 5", "250 [250, 250] (n=5)", "250 [250, 250] (n=5)")
    assert rebel[5] == "10 [10, 10] (n=5)"
    assert row(table, block, "REBEL (per step)")[1] == rebel[1], "an ablation too"
    assert row(table, block, "DDPO")[1] == "1,000 [1,000, 1,000] (n=5)"
    assert row(table, block, "D3PO") == ("0 of 5", *["never"] * 5)
    assert table.answer == (
        "K = 4, seen prompts: SDPO reaches DDPO's final alignment (DDPO spent 640 samples and 640 "
        "queries) at 1 step in 4 of 5 runs, 750, 750, 750, 750 samples and 2,250, 2,250, 2,250, "
        "2,250 reward queries."
    )
    assert reach_table(ends({"SDPO": 0.6, "REBEL": 0.5})) is None
    assert reach_table(ends({"SDPO": 0.6, "DDPO": 0.5})) is None, "one evaluation at the end is no curve"


def test_targets_are_those_of_the_same_seed():
    runs = [record("start", 0, {0: {("alignment", 1): 0.0}}, [])]
    for seed in range(2):
        runs += [
            record("DDPO", seed, {5: {("alignment", 1): 0.1}, 10: {("alignment", 1): 0.2 + 0.4 * seed}}, []),
            record("SDPO", seed, {5: {("alignment", 1): 0.4}, 10: {("alignment", 1): 0.8}}, []),
        ]
    table = reach_table(group_of(runs))
    assert row(table, "seen prompts, 1 sampling step", "SDPO")[1] == "250, 750 (n=2)"


def test_what_rose_and_what_fell():
    """SDPO's alignment rises and its held-out one falls; DDPO's rises and nothing falls; REBEL's does not rise. An
    ablation is shown and not counted."""
    end = {
        "SDPO": (0.6, 0.3, 0.15),
        "SDPO (terminal)": (0.6, 0.3, 0.2),
        "DDPO": (0.6, 0.45, 0.2),
        "REBEL": (0.4, 0.3, 0.1),
    }
    names = ("alignment", "alignment_heldout", "diversity")
    runs = [record("start", 0, {0: {(name, 1): value for name, value in zip(names, (0.4, 0.4, 0.2), strict=True)}}, [])]
    for (label, values), seed in itertools.product(end.items(), range(5)):
        wobble = WOBBLE[seed] * (2 if label == "REBEL" else 1)
        runs.append(
            record(
                label, seed, {10: {(name, 1): value + wobble for name, value in zip(names, values, strict=True)}}, []
            )
        )
    table = hacking_table(group_of(runs))
    assert table.header == ("method", *names, "fell")
    block = "seen prompts, 1 sampling step"
    assert row(table, block, "SDPO") == (
        *(f"{x:+.3f} [{x - HALF:+.3f}, {x + HALF:+.3f}] (n=5)" for x in (0.2, -0.1, -0.05)),
        "alignment_heldout and diversity",
    )
    assert row(table, block, "SDPO (terminal)")[-1] == "alignment_heldout"
    assert row(table, block, "DDPO")[-1] == "none"
    assert row(table, block, "REBEL")[-1] == "trained reward not up"
    assert table.answer == (
        "K = 4, trained on alignment, seen prompts: it rose in 2 of 3 cases (a method at a number of steps) by an "
        "interval above 0, and of these, by an interval below 0, alignment_heldout fell in 1; diversity fell in 1."
    )
    few = hacking_table(group_of([run for run in runs if run.config["seed"] < 2]))
    assert row(few, block, "SDPO")[-1] == "too few runs"
    assert few.answer == "K = 4, trained on alignment: fewer than 5 runs a method establish nothing."
    assert hacking_table(ends({"SDPO": 0.6})) is None, "only the trained reward was evaluated"


def test_quantities_that_are_no_rewards_are_explained():
    """kid_start rises from exactly 0, vendi falls; what is said of them stands where they do, and nowhere else."""
    assert {name for name in ABOUT if REWARDS[name].optimisable} == set()
    names = ("alignment", "kid_start", "vendi")
    before = {0: {(name, 1): value for name, value in zip(names, (0.4, 0.0, 1.4), strict=True)}}
    after = [
        {10: {(name, 1): value + WOBBLE[seed] for name, value in zip(names, (0.6, 0.3, 1.2), strict=True)}}
        for seed in range(5)
    ]
    runs = [record("start", 0, before, [])]
    runs += [record("SDPO", seed, values, []) for seed, values in enumerate(after)]
    group = group_of(runs)
    table = hacking_table(group)
    assert row(table, "seen prompts, 1 sampling step", "SDPO") == (
        *(f"{x:+.3f} [{x - HALF:+.3f}, {x + HALF:+.3f}] (n=5)" for x in (0.2, 0.3, -0.2)),
        "vendi",
    )
    assert [name for name in ABOUT if ABOUT[name] in table.note] == ["kid_start", "vendi"]
    other = main_table(group, "kid_start")
    assert "hacked" not in other.note
    assert ABOUT["kid_start"] in other.note
    assert row(other, "seen prompts", "pretrained") == ("0.000 (n=1)",)
    assert not any(text in main_table(group).note for text in ABOUT.values())


def test_the_order_counts_established_leads():
    table = order_table([ends({"SDPO": 0.6, "DDPO": 0.5}), ends({"SDPO": 0.5, "DDPO": 0.5005}, steps=20)])
    assert [cells[-1] for cells in table.blocks[0][1]] == [
        *["SDPO > DDPO > pretrained"] * 2,
        *["DDPO ~ SDPO > pretrained"] * 2,
    ]
    assert table.answer == (
        "Highest at equal samples, in how many of 4 cases (a reward, K, split of prompts, number of sampling steps; in "
        "brackets: ahead of the next by an interval above 0): SDPO 2 (2), DDPO 2 (0)."
    )


def test_at_equal_model_evaluations():
    """A method that makes twice as many for a sample is shown as it was after half of its samples."""
    points = {epoch: {("alignment", 1): 0.4 + epoch / 100} for epoch in (0, 10, 20)}
    runs = [record(label, seed, points, []) for label in ("SDPO", "DDPO") for seed in range(5)]
    for run in runs:
        if run.label == "SDPO":
            for row in run.eval:
                row["model_evaluations"] *= 2
    group = group_of([record("start", 0, {0: {("alignment", 1): 0.4}}, []), *runs])
    budget = smallest_total(group, "model_evaluations")
    assert budget == max(row["model_evaluations"] for row in runs[-1].eval)
    equal = at_equal(group, "model_evaluations")
    found = {label: equal.cell(label, "alignment", "seen", 1)[0] for label in ("SDPO", "DDPO")}
    assert found == pytest.approx({"SDPO": 0.5, "DDPO": 0.6})
    table = equal_table(group, "model_evaluations", equal)
    assert f"Every run after {budget:,} model evaluations, the smallest total of a trained run" in table.note
    order = order_table([equal], "model_evaluations")
    assert (order.name, order.blocks[0][1][0][-1]) == ("order_evaluations", "DDPO > SDPO > pretrained")


def stepping(steps: dict[str, int], points: dict[int, float]) -> Group:
    """Five runs of each label with these rewards by epoch, and so many optimiser steps an epoch; 100 samples each."""
    runs = [record(label, seed, {e: {("alignment", 1): v} for e, v in points.items()}, []) for label, seed in LABELLED]
    for run in runs:
        for row in run.eval:
            row["optimiser_steps"] = steps[run.label] * row["epoch"]
    return group_of([record("start", 0, {0: {("alignment", 1): 0.4}}, []), *runs])


LABELLED = [*itertools.product(("SDPO", "DDPO", "REBEL"), range(5))]


def test_at_equal_optimiser_steps():
    """DDPO and REBEL end with 40 steps after 20 epochs. SDPO has 10 an epoch: it had 40 after 4, two fifths of the way
    from its first evaluation's 0.5 with 20 steps to its second's 0.6 with 70."""
    group = stepping({"SDPO": 10, "DDPO": 2, "REBEL": 2}, {2: 0.5, 7: 0.6, 20: 0.7})
    assert smallest_total(group, "optimiser_steps") == 40
    equal = group.equal["optimiser_steps"]
    assert equal.left_out == ()
    found = {label: equal.cell(label, "alignment", "seen", 1)[0] for label in ("SDPO", "DDPO")}
    assert found == pytest.approx({"SDPO": 0.54, "DDPO": 0.7})
    table = order_table([equal], "optimiser_steps")
    assert table.name == "order_steps"
    assert table.blocks[1][1] == (("alignment", "4", "", "", "SDPO 400 and 40; DDPO, REBEL 2,000 and 40"),)
    rows = table.frame.set_index("label")
    assert rows.loc["SDPO", ["samples", "optimiser_steps", "rank"]].tolist() == [400, 40, 3]
    paper = paper_order_table([equal], "optimiser_steps")
    assert paper.name == "order_paper_steps"
    assert row(paper, "SDPO above DDPO, seen prompts", "alignment, K = 4")[0].startswith("contradicted: -0.160 [")
    whole = order_table([group])
    assert whole.blocks[1][1][0][-1] == "SDPO 2,000 and 200; DDPO, REBEL 2,000 and 40"


def test_methods_whose_runs_do_not_meet_in_optimiser_steps_are_named():
    """SDPO's first evaluation comes after 100 steps, when DDPO and REBEL have ended: nothing is known of it before."""
    group = stepping({"SDPO": 50, "DDPO": 2, "REBEL": 1}, {2: 0.5, 20: 0.7})
    equal = group.equal["optimiser_steps"]
    assert equal.left_out == ("SDPO",)
    missing = (
        "Not compared at equal optimiser steps, because the first evaluation of these runs comes after others have "
        "spent all theirs: SDPO on alignment at K = 4."
    )
    tables = {table.name: table for table in build_tables([group])}
    for name in ("order_steps", "equal_steps_alignment_k4", "order_paper_steps"):
        assert missing in tables[name].note, name
        assert "SDPO" not in {cell for _, rows in tables[name].blocks for row in rows for cell in row}, name
    assert tables["order_steps"].blocks[0][1][0][-1] == "REBEL > DDPO > pretrained"
    assert missing not in tables["order_queries"].note
    assert missing in dict(overview([group], [*tables.values()]).verdicts)["Best at equal optimiser steps"]

    alone = stepping({"SDPO": 50, "DDPO": 2, "REBEL": 50}, {2: 0.5, 20: 0.7})
    verdicts = dict(overview([alone], build_tables([alone])).verdicts)
    both = missing[:-1] + "; REBEL on alignment at K = 4."
    assert verdicts["Best at equal optimiser steps"] == both, "DDPO leads nobody"


@pytest.mark.parametrize("counter", EQUAL)
def test_no_counter_has_a_value_before_the_first_evaluation(counter):
    """DDPO has ended when SDPO is evaluated for the first time, whatever is counted."""
    runs = [
        record(label, seed, {10: {("alignment", 1): 0.6}, 20: {("alignment", 1): 0.7}}, [])
        for seed in range(5)
        for label in ("SDPO", "DDPO")
    ]
    for run in runs:
        for row in run.train + run.eval:
            row |= dict.fromkeys(COUNTERS, row["epoch"] * (5 if run.label == "SDPO" else 1))
            row |= {"backward_passes": 0, "reward_gradients": 0}
    group = group_of([record("start", 0, {0: {("alignment", 1): 0.4}}, []), *runs])
    assert group.equal[counter].left_out == ("SDPO",)


def test_what_a_critic_explains():
    """Twelve epochs with 0.1 at step 1 and 0.2 to 0.4 at the others, 0.01 more a seed and 0.1 in the last third."""
    runs = [record("DDPO-critic", seed, {13: {("alignment", 1): 0.5}}, []) for seed in range(5)]
    for run in runs:
        for epoch in run.train[1:]:
            more = run.config["seed"] / 100 + 0.1 * (epoch["epoch"] > 9)
            epoch["explained_variance"] = [(k + 1) / 10 + more for k in range(4)]
    table = critic_table([group_of(runs), ends({"SDPO": 0.5}, steps=20)])
    ((title, rows),) = table.blocks
    assert title == "alignment, K = 4, DDPO-critic"
    assert [cells[0] for cells in rows] == ["step 1", "step 2", "step 3", "step 4"]
    half = stats.t.ppf(0.975, 4) * np.std(np.arange(5) / 100, ddof=1) / np.sqrt(5)
    texts = [f"{x:+.3f} [{x - half:+.3f}, {x + half:+.3f}] (n=5)" for x in (0.12, 0.12, 0.22)]
    assert row(table, title, "step 1") == tuple(texts)
    assert row(table, title, "step 4")[2].startswith("+0.520 [")
    assert table.answer == (
        "Of the advantages' mean square the critic removes, in the last third of the epochs: alignment, K = 4, "
        f"DDPO-critic: {texts[2]} at step 1 and {row(table, title, 'step 4')[2]} at step 4."
    )
    cells = table.frame.set_index(["denoising_step", "epochs"])["value"]
    assert cells["step 2", "first third"] == pytest.approx(0.22)
    assert critic_table([ends({"SDPO": 0.5})]) is None


def with_passes(forward: dict[str, int], backward: dict[str, int]) -> Group:
    """Five runs of each label whose reward rises by a hundredth an epoch from 0.4, for 20 epochs, and their passes of
    the denoiser an epoch; those of a label without backward passes did not record them."""
    points = {epoch: {("alignment", 1): 0.4 + epoch / 100} for epoch in (10, 20)}
    runs = [record(label, seed, points, []) for label in forward for seed in range(5)]
    for run in runs:
        for row in run.train + run.eval:
            row["model_evaluations"] = forward[run.label] * row["epoch"]
        for row in run.train if run.label in backward else ():
            row |= {"backward_passes": backward[run.label] * row["epoch"], "reward_gradients": 10 * row["epoch"]}
    return group_of([record("start", 0, {0: {("alignment", 1): 0.4}}, []), *runs])


def test_at_equal_compute():
    """SDPO's epoch costs 100 + 2 * 150 = 400, DDPO's 100 + 2 * 50 = 200: 4,000 are 10 of SDPO's epochs. REBEL's are not
    known."""
    group = with_passes({"SDPO": 100, "DDPO": 100, "REBEL": 100}, {"SDPO": 150, "DDPO": 50})
    assert smallest_total(group, "compute") == 4000
    equal = group.equal["compute"]
    found = {label: equal.cell(label, "alignment", "seen", 1)[0] for label in ("SDPO", "DDPO")}
    assert found == pytest.approx({"SDPO": 0.5, "DDPO": 0.6})
    tables = {table.name: table for table in build_tables([group])}
    missing = "Not compared at equal compute, because these runs did not record their backward passes: REBEL on"
    for name in ("order_compute", "equal_compute_alignment_k4"):
        assert missing in tables[name].note
        assert "1 for a forward pass, 2 for a backward pass" in tables[name].note
    assert tables["order_compute"].blocks[0][1][0][-1] == "DDPO > SDPO > pretrained"
    assert "Best at equal compute" in dict(overview([group], [*tables.values()]).verdicts)
    assert group.equal["model_evaluations"].left_out == ()


def test_costs_have_backward_passes_and_compute():
    """REBEL reaches DDPO's 0.6 as all do, after 20 epochs; what it did not record, no table makes up."""
    group = with_passes({"SDPO": 100, "DDPO": 100, "REBEL": 100}, {"SDPO": 150, "DDPO": 50})
    table = cost_table(group)
    assert table.header[6:10] == ("model evaluations", "backward passes", "reward gradients", "compute")
    assert row(table, "", "SDPO")[5:9] == ("2,000", "3,000", "200", "8,000")
    assert row(table, "", "REBEL")[5:9] == ("2,000", *["not recorded"] * 3)
    assert table.frame.set_index("label")["compute"].dropna().to_dict() == {"SDPO": 8000, "DDPO": 4000}
    reach = reach_table(group)
    assert reach.header[5:9] == table.header[6:10]
    block = "seen prompts, 1 sampling step"
    assert row(reach, block, "SDPO")[5:8] == tuple(f"{n} [{n}, {n}] (n=5)" for n in ("3,000", "200", "8,000"))
    assert row(reach, block, "REBEL")[4:8] == ("2,000 [2,000, 2,000] (n=5)", *["not recorded"] * 3)
    costs = reach.frame.set_index(["label", "cost"])["value"]
    assert (costs["SDPO", "compute"], costs["DDPO", "compute"]) == (8000, 4000)
    old = with_passes({"SDPO": 100, "DDPO": 100}, {})
    assert "compute" not in {*cost_table(old).header, *reach_table(old).header}
    assert "compute" not in old.equal


def test_nothing_is_left_empty():
    """A profile with one method and no start has its values and costs, and no table without rows."""
    tables = build_tables([group_of([record("SDPO", 0, {10: {("alignment", 1): 0.5}}, [])])])
    assert [table.name for table in tables] == [
        "main_alignment_k4",
        "equal_queries_alignment_k4",
        "equal_evaluations_alignment_k4",
        "equal_steps_alignment_k4",
        "cost_alignment_k4",
        "order",
        "order_queries",
        "order_evaluations",
        "order_steps",
    ]
    assert all(isinstance(table.frame, pd.DataFrame) and rows for table in tables for _, rows in table.blocks)


def test_the_query_budget_is_the_methods():
    """An ablation that asks once a sample does not cut the methods' budget."""
    group = ends({"SDPO": 0.6, "SDPO (terminal)": 0.5})
    assert smallest_total(group, "reward_queries") == 3000
    assert at_equal(group, "reward_queries").cell("SDPO", "alignment", "seen", 1) == dict.fromkeys(range(5), 0.6)
