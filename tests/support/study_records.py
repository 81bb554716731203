"""Records as the study's runs leave them: ablations, further rewards and diversity, step counts that are evaluated at
the end only, and dense rewards that were probed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdpo_bench.analysis.comparisons import Group
from sdpo_bench.records.frames import mean_frame
from sdpo_bench.records.reader import RunRecord
from sdpo_bench.records.writer import RunWriter
from support.synthetic_records import GAIN, eval_row, make_config, provenance, train_row

QUANTITIES = (
    "alignment",
    "alignment_heldout",
    "jpeg_compressibility",
    "colourfulness",
    "diversity",
    "diversity_heldout",
)
EPOCHS, EVAL_STEPS, LAST_STEPS = 4, (1, 2, 4, 8), (16, 50)
BUDGETS = {"terminal": 0.05, "2": 0.02, "3": 0.012, "4": 0.01, "adaptive": 0.008, "linear3": 0.015}  # error


def dense_row(epoch: int, budget: str, steps: int, seed: int) -> dict[str, object]:
    fall = np.linspace(1, 0.2, steps) * (1 + 0.05 * seed)
    mae = BUDGETS[budget] * fall * (1 + epoch / 10)
    corr = [None, *(0.9 - BUDGETS[budget] * fall[1:] * 5)]  # a pair shares its noise: its first step has no difference
    return {
        "epoch": epoch,
        "budget": budget,
        "queries_per_sample": 3.0,
        "mae": list(mae),
        "bias": list(mae / 2),
        "std": list(0.06 * fall),
        "corr": corr,
        "return_corr": list(0.95 - BUDGETS[budget] * fall * 4),
        "return_sign": [0.8] * steps,
    }


def write_study(
    profile: Path,
    labels: Sequence[str] = ("SDPO", "DDPO", "SDPO-gain", "SDPO (exact)", "DDPO (per step)"),
    seeds: int = 5,
    training_steps: Sequence[int] = (4,),
    rewards: Sequence[str] = ("alignment",),
) -> Path:
    """A profile of finished runs of all labels, seeds, K and rewards, and the start's."""
    common = {"eval_steps": EVAL_STEPS, "eval_last_steps": LAST_STEPS}
    configs = [make_config("start", epochs=0, **common)]
    configs += [
        make_config(label, seed, steps=k, reward=reward, epochs=EPOCHS, **common)
        for reward in rewards
        for k in training_steps
        for label in labels
        for seed in range(seeds)
        if "(" not in label or (reward, k) == (rewards[0], training_steps[0])
    ]
    for config in configs:
        folder = profile / "raw" / config["run_id"]
        with RunWriter(folder) as writer:
            writer.write_config(config)
            writer.write_provenance(provenance())
            start = config["label"] == "start"
            for epoch in () if start else range(1, EPOCHS + 1):
                writer.append_train(train_row(epoch, config))
            known = {**config, "label": config["label"] if config["label"] in GAIN else "D3PO"}
            for epoch in (0,) if start else (EPOCHS // 2, EPOCHS):
                for steps in (*EVAL_STEPS, *(LAST_STEPS if epoch in (0, EPOCHS) else ())):
                    for reward in QUANTITIES:
                        row = eval_row(0 if start else 15 * epoch, known, reward, min(steps, 8), 2)
                        sign = -1 if reward.startswith("diversity") else 1
                        for prompts in row["values"].values():
                            for prompt, values in prompts.items():
                                prompts[prompt] = [sign * value + (sign < 0) for value in values]
                        counts = {
                            key: row[key] // 15
                            for key in row
                            if key not in ("reward", "steps", "values", "noise_seeds")
                        }
                        writer.append_eval({**row, **counts, "steps": steps})
            if config["label"].startswith("SDPO"):
                for epoch in (0, EPOCHS // 2, EPOCHS):
                    for budget in BUDGETS:
                        writer.append_dense(dense_row(epoch, budget, config["steps"], config["seed"]))
            y, x = np.mgrid[:128, :256]
            cells = np.stack([(x // 32) * 30, (y // 32) * 60, x * 0 + 31 * len(config["label"])], -1).astype(np.uint8)
            Image.fromarray(cells).save(folder / f"grid_{'before' if start else 'after'}.png")
            writer.finish(
                {"epochs": config["epochs"], "seconds_per_epoch": {"sample": 0.23, "reward": 0.14, "train": 0.6}}
            )
    return profile


def copy_raw(profile: Path, target: Path) -> Path:
    """The profile's records alone, elsewhere."""
    shutil.copytree(profile / "raw", target / "raw")
    return target


QUERIES = {"SDPO": 3, "SDPO-causal": 3}  # of a sample; others 1
EPOCH = {"samples": 100, "optimiser_steps": 2, "model_evaluations": 400}


def record(
    label: str,
    seed: int,
    curves: dict[int, dict[tuple[str, int], float]],
    dense: list[dict[str, Any]],
    steps: int = 4,
    split: str = "seen",
    **changes: Any,
) -> RunRecord:
    """A finished run with `curves`: epoch to the values of (reward, sampling steps)."""
    config = make_config(label, seed, steps=steps, epochs=max(curves), **changes)
    rows = []
    for epoch, values in curves.items():
        counts = {name: amount * epoch for name, amount in EPOCH.items()}
        counts["reward_queries"] = counts["samples"] * QUERIES.get(label, 1)
        rows += [
            {
                "epoch": epoch,
                **counts,
                "reward": reward,
                "steps": k,
                "values": {split: {"cat": [value]}},
                "noise_seeds": [0],
            }
            for (reward, k), value in values.items()
        ]
    train = [
        train_row(epoch, config) | {"seconds": {"sample": 1.0, "reward": 0.5, "train": 2.5}}
        for epoch in range(1, max(curves) + 1)
    ]
    return RunRecord(Path(config["run_id"]), config, provenance(), train, rows, dense, {})


def group_of(runs: list[RunRecord], steps: int = 4) -> Group:
    return Group(
        "full",
        "cpu: Test Processor",
        "embedded",
        "alignment",
        steps,
        f"_alignment_k{steps}",
        tuple(runs),
        mean_frame(runs),
        (),
    )
