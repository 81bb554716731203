"""Trainings of the embedded model that the GPU campaign's part 2 makes:
`python -m benchmarks._gpu_training DEVICE FOLDER WHAT... [--dry]`.

Prints what it found as a line `RESULT {...}`; exits with 1 where something was wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdpo_bench.config import RunConfig
from sdpo_bench.methods import METHODS
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.reader import RunRecord, load_run
from sdpo_bench.training.loop import train

# Mean rewards of a batch of pictures. Before any update only rounding differs between devices; an update hands on what
# a GPU's sums in another order change. A CPU resumes to the bit.
ACROSS_DEVICES, AFTER_RESUMING = 2e-3, 1e-2


class Stopped(BaseException):
    """Ends a training between two epochs; no Exception, so that no checkpoint is written for it."""


def config(device: str, dry: bool, **changes: Any) -> RunConfig:
    fixed: dict[str, Any] = {
        "device": device,
        "epochs": 3,
        "pairs": 16,
        "pairs_per_update": 8,
        "eval_start": False,
        "eval_rewards": (),
        "eval_steps": (4,),
        "eval_noises": 1,
        "eval_splits": ("unseen",),
        "checkpoint_every": 1,
    }
    tiny: dict[str, Any] = {"pairs": 2, "pairs_per_update": 2, "steps": 2, "eval_steps": (1,)} if dry else {}
    return RunConfig(**fixed | tiny | changes)


def trained(made: RunConfig, folder: Path, **options: Any) -> RunRecord:
    path = folder / run_id(made.to_json())
    train(made, path, resume=True, **options)
    return load_run(path)


def summary(record: RunRecord) -> dict[str, Any]:
    """What a run's record says; AssertionError where it is no training."""
    assert record.done is not None, "not finished"
    numbers = [row[key] for row in record.train for key in ("loss", "grad_norm", "reward_mean")]
    assert all(map(math.isfinite, numbers)), "a loss, gradient or reward is not finite"
    assert any(row["grad_norm"] > 0 for row in record.train), "nothing was learnt from"
    return {
        "reward_mean": [row["reward_mean"] for row in record.train],
        "on_policy_log_ratio": record.train[0].get("on_policy_log_ratio"),
        "clip_range": record.done["clip_range"],
        "seconds_per_epoch": record.done["seconds_per_epoch"],
        **({"rows": record.provenance["rows"]} if "rows" in record.provenance else {}),
    }


def methods(device: str, dry: bool, folder: Path) -> dict[str, Callable[[], Any]]:
    """Every method."""
    names = list(METHODS)[:1] if dry else METHODS
    return {name: lambda name=name: summary(trained(config(device, dry, method=name), folder)) for name in names}


def settings(device: str, dry: bool, folder: Path) -> dict[str, Callable[[], Any]]:
    """Precisions, compilation, offloading, rows to be found, all weights; a CPU refuses some of them."""
    found: dict[str, dict[str, Any]] = {
        "bfloat16": {"dtype": "bfloat16"},
        "float16": {"dtype": "float16"},
        "rows 0": {"rows": 0},
        "offload": {"offload_trajectories": True},
        "full": {"finetune": "full"},
        "compile": {"compile": True},
    }
    names = ["offload"] if dry else found  # a CPU takes long over other precisions
    return {name: lambda name=name: summary(trained(config(device, dry, **found[name]), folder)) for name in names}


def repeats(device: str, dry: bool, folder: Path) -> dict[str, Callable[[], Any]]:
    """The first epoch's rewards against a CPU's, and a training that was stopped against one that was not."""

    def across() -> dict[str, Any]:
        one = {
            place: trained(config(place, dry, epochs=1), folder / place).train[0]["reward_mean"]
            for place in ("cpu", device)
        }
        difference = abs(one["cpu"] - one[device])
        assert difference <= ACROSS_DEVICES, f"the mean rewards are {difference:.3g} apart: {one}"
        return {"reward_mean": one, "difference": difference}

    def resumed() -> dict[str, Any]:
        made = config(device, dry)

        def stop(event: dict[str, Any]) -> None:
            if event["epoch"] == 2:
                raise Stopped

        try:
            trained(made, folder / "stopped", on_epoch=stop)
        except Stopped:
            pass
        else:
            raise AssertionError("the training was not stopped")
        rewards = [[row["reward_mean"] for row in trained(made, folder / name).train] for name in ("stopped", "whole")]
        difference = max(abs(a - b) for a, b in zip(*rewards, strict=True))
        allowed = 0 if device == "cpu" else AFTER_RESUMING
        assert difference <= allowed, f"the mean rewards are {difference:.3g} apart: {rewards}"
        return {"reward_mean": rewards, "difference": difference}

    return {"first epoch on a CPU": across, "resumed": resumed}


WORK = {"repeats": repeats, "methods": methods, "settings": settings}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("device")
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", nargs="+", choices=WORK)
    parser.add_argument("--dry", action="store_true")
    given = parser.parse_args()
    found, failed = {}, False
    for what in given.what:
        shutil.rmtree(given.folder / what, ignore_errors=True)  # of an earlier try
    work = [each for what in given.what for each in WORK[what](given.device, given.dry, given.folder / what).items()]
    for name, make in work:
        begin = time.monotonic()
        try:
            result = make()
        except Exception as error:  # the others are worth knowing
            traceback.print_exc()
            result, failed = {"error": f"{type(error).__name__}: {error}"}, True
        found[name] = result | {"seconds": round(time.monotonic() - begin, 1)}
        print(f"{name}: {found[name]}", flush=True)
    print(f"RESULT {json.dumps(found)}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
