"""Gains at shared learning rates, on records whose answers are known by hand, and their figure."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib
import pytest
from support.study_records import group_of, record

from sdpo_bench.analysis.across import Across, overall_files
from sdpo_bench.analysis.comparisons import Results
from sdpo_bench.analysis.figures.rates import rate_curves, rate_drawing
from sdpo_bench.analysis.figures.style import KNOWN, TEXT, styles
from sdpo_bench.analysis.paper import METHODS
from sdpo_bench.analysis.rates import Rated, panels, rated
from sdpo_bench.records.frames import mean_frame

START = {1: 0.4, 2: 0.5}
ORDERED = dict(zip(METHODS, (0.4, 0.3, 0.2, 0.1), strict=True))


def results(profile, ends, seeds=1, split="tuning", missing=(), planned="sweep", epochs=10, **changes) -> Results:
    """Runs with these gains at 1 and at 2 sampling steps, or at both, by label and rate."""
    runs = [record("start", 0, {0: {("alignment", k): value for k, value in START.items()}}, [], split=split)]
    for (label, rate), gains in ends.items():
        first, second = gains if isinstance(gains, tuple) else (gains, gains)
        for seed in range(seeds):
            end = {("alignment", 1): 0.4 + first + seed / 1000, ("alignment", 2): 0.5 + second + seed / 1000}
            name = label if planned == "shared" else f"{label} {rate:g}"
            runs.append(record(name, seed, {epochs: end}, [], split=split, learning_rate=rate, **changes))
    group = dataclasses.replace(group_of(runs), profile=profile, missing=tuple(missing), planned=planned)
    assert mean_frame(runs).equals(group.curves)
    return Results(Path(profile), runs, [group], [], planned)


@pytest.fixture(scope="module")
def found() -> list[Rated]:
    """A sweep in which SDPO collapses at the higher rate, where the order holds at 1 step alone; and five seeds at one
    shared rate, and at another in a profile of its own."""
    low = {(label, 1e-5): gain for label, gain in ORDERED.items()}
    high = {("SDPO", 3e-4): (0.5, -3), ("DDPO", 3e-4): 0.4, ("REBEL", 3e-4): 0.3, ("D3PO", 3e-4): 0.2}
    ablations = {("SDPO (exact)", 1e-5): 0.9, ("DDPO (per step)", 1e-5): 0.35}
    sweep = results("sweep", low | high | ablations, missing=["REBEL 0.001", "SDPO (exact) 0.0003"])
    shared = {("SDPO", 1e-5): 0.2, ("DDPO", 1e-5): 0.1}
    main = results("paper_k4", shared, 5, "seen", ["D3PO", "pretrained"], "shared")
    beside = results("paper_k4_rates", {("SDPO", 3e-6): 0.1, ("DDPO", 3e-6): 0.15}, 5, "seen")
    longer = results("longer", shared, 5, "seen", epochs=20)
    alone = results("alone", {("SDPO", 1e-5): 0.2})
    other = results("recent_sweep", {("GRPO", 1e-5): 0.2, ("GRPO", 3e-4): 0.3})
    return panels(panel for each in (beside, other, longer, sweep, alone, main) for panel in rated(each))


def test_a_panel_for_each_setting_and_its_profiles(found):
    """Of one method at one rate there is nothing to see; two sweeps of other methods stay apart."""
    assert [(panel.profiles, panel.setting.samples, panel.setting.split) for panel in found] == [
        (("paper_k4", "paper_k4_rates"), 1000, "seen"),
        (("recent_sweep",), 1000, "tuning"),
        (("sweep",), 1000, "tuning"),
        (("longer",), 2000, "seen"),
    ]
    main, _, sweep, _ = found
    assert (main.rates, main.seeds, main.unfinished) == ([3e-6, 1e-5], "5", (("D3PO", 1e-5),))
    assert main.point("SDPO", 3e-6) == pytest.approx(0.102)
    assert sweep.names == {*METHODS, "DDPO (per step)"}


def test_the_order_is_counted_over_sampling_steps(found):
    sweep = found[2]
    assert [sweep.order(rate) for rate in (1e-5, 3e-4, 1e-3)] == [(2, 2), (1, 2), None]
    assert found[0].order(1e-5) is None


def test_nothing_vanishes_where_a_run_diverged_or_collapsed(found):
    sweep = found[2]
    assert sweep.unfinished == (("REBEL", 1e-3),)
    assert sweep.sunk == {("SDPO", 3e-4): pytest.approx(-1.25)}
    with matplotlib.rc_context(TEXT):
        figure = rate_curves(found, styles({name for panel in found for name in panel.names}))
    axis = figure.axes[2]
    drawn = {(line.get_color(), line.get_linestyle()): line for line in axis.get_lines()}
    sdpo = drawn[KNOWN["SDPO"][0], "-"]
    assert list(sdpo.get_xdata()) == [1e-5, 3e-4]
    assert list(sdpo.get_ydata()) == pytest.approx([0.4, -0.2])  # half of the highest gain, below 0
    assert list(drawn[KNOWN["SDPO"][0], "None"].get_xdata()) == [3e-4]
    assert list(drawn["#555555", "None"].get_xdata()) == [1e-3]
    assert [text.get_text() for text in axis.texts] == ["2 of 2", "1 of 2", "1,000 samples, n = 1, tuning prompts"]
    assert len(axis.patches) == 1, "the whole order at one rate"
    words = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert words[-3:] == ["the paper's order", "further below", "unfinished run"]
    bars = figure.axes[0].collections[0].get_segments()
    assert all(low < 0.102 < high or low < 0.202 < high for (_, low), (_, high) in bars)


def test_the_page_shows_the_figure_and_says_what_is_in_it(found):
    across = Across(rated=list(found))
    files = overall_files(across)
    assert sorted(files) == ["README.md", "figures/rates.svg"]
    assert files == overall_files(Across(rated=list(reversed(found))))
    page = files["README.md"].decode()
    assert "](figures/rates.svg)" in page
    assert (
        "3. [sweep](sweep/README.md): alignment, K = 4, 1,000 samples, n = 1, tuning prompts; embedded on cpu: Test "
        "Processor; below the panel: SDPO -1.250 at 3e-4; unfinished runs: REBEL at 1e-3\n"
    ) in page
    assert "on alignment, K = 4, 1,000 samples, n = 1, tuning prompts, at 1e-5." in rate_drawing(found).alt
    assert list(overall_files(Across())) == ["README.md"]
