"""The table over all profiles, on records whose answers are known by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from support.study_records import group_of, record

from sdpo_bench.analysis.across import across_table, entries, page
from sdpo_bench.analysis.comparisons import Group, Results

WOBBLE = (-0.002, -0.001, 0.0, 0.001, 0.002)  # over seeds, of DDPO
HALF = stats.t.ppf(0.975, 4) * np.std(WOBBLE, ddof=1) / np.sqrt(5)


def group(
    finals: dict[str, tuple[float, float]],
    profile: str,
    steps: int = 4,
    seeds: int = 5,
    split: str = "seen",
    rates: dict[str, float] | None = None,
) -> Group:
    """Runs that end at these rewards with 1 and 2 sampling steps, 1,000 samples each."""
    runs = [record("start", 0, {0: {("alignment", k): 0.4 for k in (1, 2)}}, [], steps, split)]
    for label, values in finals.items():
        for seed in range(seeds):
            end = {("alignment", k + 1): value + WOBBLE[seed] * (label == "DDPO") for k, value in enumerate(values)}
            rate = (rates or {}).get(label, 1e-5)
            runs.append(record(label, seed, {10: end}, [], steps, split, learning_rate=rate))
    return dataclasses.replace(group_of(runs, steps), profile=profile)


def results(*groups: Group) -> Results:
    runs = [run for group in groups for run in group.runs]
    return Results(Path(groups[0].profile), runs, [*groups], [])


ORDERED = {"SDPO": (0.7, 0.8), "DDPO": (0.6, 0.75), "REBEL": (0.5, 0.6), "D3PO": (0.4, 0.5)}


@pytest.fixture(scope="module")
def found():
    shared = group(ORDERED, "paper_k20", 20)
    tuned = group({"SDPO": (0.7, 0.7), "DDPO": (0.8, 0.65), "SDPO (exact)": (0.9, 0.9)}, "full", rates={"DDPO": 1e-4})
    rated = {f"{label} 3e-05": x for label, x in (ORDERED | {"D3PO": (0.55, 0.4), "SDPO (exact)": (1, 1)}).items()}
    rated |= {"SDPO 0.0001": (0.2, 0.2), "DDPO 0.0001": (0.3, 0.3)}
    rates = {label: float(label.split(" ")[-1]) for label in rated}
    sweep = group(rated, "sweep", seeds=1, split="tuning", rates=rates)
    return [entry for each in (sweep, shared, tuned) for entry in entries(results(each))]


def text(mean: float) -> str:
    return f"{mean:+.3f} [{mean - HALF:+.3f}, {mean + HALF:+.3f}] (n=5)"


def test_a_row_for_each_reward_k_protocol_and_length(found):
    """DDPO is ahead of SDPO by 0.1 and behind by 0.05: by 0.025 in the mean. Where D3PO is above REBEL at one number of
    steps, the paper's order holds at the other alone. Ablations do not lead."""
    table = across_table(found)
    assert dict(table.blocks) == {
        "embedded on cpu: Test Processor": (
            (
                *("alignment", "4", "tuned", "1,000", "5", "DDPO", f"> SDPO {text(0.025)}"),
                *("1 of 2 (1 supported, 1 contradicted)", "not run: REBEL, D3PO", "full"),
            ),
            (
                *("alignment", "20", "shared, 1e-05", "1,000", "5", "SDPO", f"> DDPO {text(0.075)}"),
                *("2 of 2 (2 supported, 0 contradicted)", "2 of 2 (2 supported, 0 contradicted)", "paper_k20"),
            ),
        ),
        "embedded on cpu: Test Processor, tuning prompts": (
            (
                *("alignment", "4", "sweep, 3e-05", "1,000", "1", "SDPO", "~ DDPO +0.075 (n=1)"),
                *("2 of 2", "1 of 2", "sweep"),
            ),
            (
                *("alignment", "4", "sweep, 0.0001", "1,000", "1", "DDPO", "~ SDPO +0.100 (n=1)"),
                *("0 of 2", "not run: REBEL, D3PO", "sweep"),
            ),
        ),
    }
    assert table.answer == "Established leads in 2 of 4 rows: DDPO in 1; SDPO in 1."


def test_without_the_rewards_gradient_there_is_another_row():
    recent = group({"DRaFT": (0.9, 0.9), "SDPO": (0.7, 0.7), "DDPO": (0.6, 0.6)}, "recent")
    for run in recent.runs:
        if run.label == "DRaFT":
            run.train[-1]["reward_gradients"] = 64
    rows = [entry.texts for entry in entries(results(recent))]
    assert [(row[0], row[5], row[6].split(" +")[0]) for row in rows] == [
        ("alignment", "DRaFT", "> SDPO"),
        ("alignment, without its gradient", "SDPO", "> DDPO"),
    ]


def test_a_method_alone_leads_nothing():
    assert entries(results(group({"SDPO": (0.7, 0.7)}, "full"))) == []


def test_the_page_links_the_profiles(found):
    lines = page(found, []).decode().splitlines()
    assert lines[0] == "# Results"
    assert lines[-1] == (
        "Profiles: [full](full/README.md), [paper_k20](paper_k20/README.md), [sweep](sweep/README.md)."
    )
    assert sum(line.startswith("| alignment |") for line in lines) == 4
