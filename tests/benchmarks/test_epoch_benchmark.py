"""The epoch's benchmark: its FLOP are counted right, and its record tells each phase's share of the measured peak."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import forked
from torch.nn import functional as F

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # the benchmarks are no part of the installed package

from benchmarks import _counts  # noqa: E402
from benchmarks._part_tables import part_tables  # noqa: E402

N, C, H = 3, 8, 16


def backward():
    layer = torch.nn.Linear(C, H, bias=False)
    layer(torch.randn(N, C, requires_grad=True)).sum().backward()


def attention():
    q = torch.randn(2, 1, N, C)
    F.scaled_dot_product_attention(q, q, q)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: torch.randn(N, C) @ torch.randn(C, H), 2 * N * C * H),
        (lambda: F.conv2d(torch.randn(N, C, 5, 5), torch.randn(H, C, 3, 3), padding=1), 2 * N * C * H * 9 * 25),
        (backward, 3 * 2 * N * C * H),
        (attention, 2 * (2 * N * N * C) * 2),
        (lambda: torch.randn(N).exp(), 0),
    ],
)
def test_flop_by_hand(call, expected):
    assert _counts.flop(call) == expected


def test_peak_is_the_best_products_speed(monkeypatch):
    ticks = iter([0, 9, 10, 12, 20, 21, 30, 34])  # the first is slow; the best takes 1 s
    monkeypatch.setattr(_counts, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(_counts, "PEAK_ROUNDS", 3)
    monkeypatch.setattr(_counts, "PEAK_SIDE", {"cpu": 10})
    assert _counts.peak(torch.device("cpu")) == 2 * 10**3


def test_bytes_of_an_expanded_tensor_count_once():
    assert _counts.touched(torch.zeros(3, 1).expand(3, 100)) == 3 * 4


def test_record_has_each_phases_share_of_the_peak(tmp_path):
    path = tmp_path / "epoch.json"
    chosen = "fused or sdpo-4 and (terminal or test_optimiser)"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "benchmarks/test_epoch.py",
        "--benchmark-only",
        "-k",
        chosen,
        f"--benchmark-json={path}",
    ]
    env = {k: v for k, v in os.environ.items() if "XDIST" not in k} | {"CUDA_VISIBLE_DEVICES": ""}
    done = forked.run(command, env, ROOT)
    assert done.returncode == 0, done.stdout
    infos = [(entry["extra_info"], entry["stats"]["median"]) for entry in json.loads(path.read_text())["benchmarks"]]
    assert {info["phase"] for info, _ in infos} == {"reward", "optimiser", "decode"}
    assert {(info["method"], info["steps"]) for info, _ in infos} == {("sdpo", 4)}
    assert len({info["peak_flop_per_s"] for info, _ in infos}) == 1, "measured once, in the same process"
    for info, seconds in infos:
        assert (info["flop"] > 1e9) == (info["phase"] != "optimiser"), "AdamW has no products"
        assert info["seconds"] == pytest.approx(seconds, rel=1e-3)
        assert info["flop_per_s"] == pytest.approx(info["flop"] / seconds, rel=1e-3)
        assert info["utilisation"] == pytest.approx(info["flop_per_s"] / info["peak_flop_per_s"], rel=1e-3)
    flop = {info["phase"]: info["flop"] for info, _ in infos}
    assert flop["reward"] > flop["decode"], "the same 64 pictures are decoded, then scored"
    assert [len(table.blocks[0][1]) for table in part_tables([info for info, _ in infos], "", "")] == [3]
