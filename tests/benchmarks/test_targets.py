"""The targets of the operations: what they are derived from is counted anew, and the docs hold the same list."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # the benchmarks are no part of the installed package

from benchmarks import _counts, _targets  # noqa: E402
from benchmarks._targets import EAGER_KERNELS, EAGER_TRAFFIC, HOST_US, TARGETS, down, up  # noqa: E402
from benchmarks.kernel_results import OPERATIONS, target_table  # noqa: E402

KERNELS_MD = (ROOT / "docs" / "kernels.md").read_text()


@pytest.mark.parametrize("width", ["fp16", "fp32"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_eager_is_counted(name, width):
    kernels, traffic = _counts.eager(name, {"fp16": "float16", "fp32": "float32"}[width])
    assert kernels == EAGER_KERNELS[name][width]
    assert traffic == pytest.approx(EAGER_TRAFFIC[name][width], rel=0.005)


def test_every_operation_has_targets():
    assert list(dict.fromkeys(target.operation for target in TARGETS)) == list(OPERATIONS)


def test_bounds_by_hand():
    found = {(t.operation, t.clock, t.rival, t.regime, t.dtypes): t.bound for t in TARGETS}
    small, every = _targets.SMALL, _targets.ALL_DTYPES
    assert found["gaussian_log_prob", "call", "eager", small, every] == 3.2, "13 * 5 / 20 = 3.25"
    assert found["sdpo_loss_and_grad", "graph", "eager", small, every] == 27, "74 * 2 / (2 + 747 * 8 / 1750)"
    assert found["ddim_step", "graph", "copy", small, every] == 3.24, "(2 + 980 * 8 / 1750) / 2"
    twice = f"{_targets.FROM}, read twice"
    assert found["ppo_clip_loss_and_grad", "graph", "eager", twice, ("fp32",)] == 4.5, "9.25 / (1.15 * 7 / 4) = 4.596"
    assert ("anchor_similarity", "graph", "eager", small, every) not in found, "its instructions are not counted"
    assert (down(48.7), down(4.49), down(7.0), up(2.0125), up(1.15)) == (48, 4.4, 7, 2.02, 1.15)


def test_docs_have_the_same_list():
    assert _targets.markdown() in KERNELS_MD
    for name, kernels in EAGER_KERNELS.items():
        counts = f"| {kernels['fp16']} / {kernels['fp32']} |"
        ratios = f" {EAGER_TRAFFIC[name]['fp16']:g} / {EAGER_TRAFFIC[name]['fp32']:g} |"
        assert f"| `{name}` {counts}{ratios}" in KERNELS_MD, name


def test_host_times_are_the_docs():
    rows = re.findall(r"^\| `(\w+)` \| [\d.]+(?: \(2\))? \| (?:\d+|–) \| (\d+) \| [\d.]+ \|$", KERNELS_MD, re.MULTILINE)
    assert {name: float(us) for name, us in rows} == HOST_US


def row(**changes):
    return {
        "clock": "graph",
        "operation": "sdpo_loss_and_grad",
        "steps": 0,
        "dtype": "fp16",
        "shape": "16x128x128",
        "elements": 2**18,
        "pairs": 128,
        "bytes": 5e8,
        "ours_us": 1.9,
        "copy_us": 1.0,
        "speedup_eager": 8.95,
        "speedup_compile": 2.0,
    } | changes


def verdicts(*rows):
    long = target_table(pd.DataFrame(rows), "x").frame
    return {(r["regime"], r["target"], r["dtypes"]): r["verdict"] for r in long.to_dict("records") if r["cases"]}


def test_a_case_is_held_against_its_own_regime():
    twice = f"{_targets.FROM}, read twice"
    half = ", ".join(_targets.WIDTHS["fp16"])
    bound = next(t for t in TARGETS if t.regime == twice and t.operation == "sdpo_loss_and_grad" and t.rival == "eager")
    met = row(speedup_eager=bound.bound)
    assert set(verdicts(met).values()) == {"met"}
    assert {key[0] for key in verdicts(met)} == {twice}
    slower = verdicts(row(speedup_eager=bound.bound - 0.1))
    assert slower[twice, bound.text, half] == "missed"
    assert verdicts(row(bytes=1e6)) == {}, "neither small nor large"
    assert verdicts(row(clock="events")) == {}, "no target of that clock"
    one = verdicts(row(elements=16384, shape="4x64x64", ours_us=1.2))
    assert one[f"{_targets.FROM}, one tile", "≤ 1.15x the copy's time", "all"] == "missed"
