"""Realistic records for tests, written through `RunWriter` as a trainer does."""

from __future__ import annotations

import atexit
import functools
import gzip
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdpo_bench.records.identity import run_id
from sdpo_bench.records.run_folder import row_digests
from sdpo_bench.records.writer import RunWriter

DEVICE = "cpu: Test Processor"
GAIN = {"SDPO": (0.055, 3), "DDPO": (0.06, 1), "REBEL": (0.045, 1), "PRDP": (0.042, 1), "D3PO": (0.03, 1)}
STEPS = (1, 2, 4, 8)
PROMPTS = {"seen": ("cat", "dog", "fox"), "unseen": ("wolf", "owl")}
EPOCHS = 60


def make_config(label: str = "SDPO", seed: int = 0, **changes: Any) -> dict[str, Any]:
    name = "start" if label == "start" else label.lower()
    config = {
        "schema": 1,
        "label": label,
        "method": {"name": name, "clip": 1e-3},
        "model": "embedded",
        "reward": "alignment",
        "steps": 4,
        "dense": "anchored",
        "pairs": 32,
        "epochs": 0 if label == "start" else EPOCHS,
        "seed": seed,
        "learning_rate": 1e-4,
        **changes,
    }
    return {**config, "run_id": run_id(config)}


def provenance(device: str = DEVICE, **changes: Any) -> dict[str, Any]:
    return {
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "device": device,
        "threads": 1,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "backend": "torch",
        "command": "sdpo-bench reproduce",
        **changes,
    }


def counters(epoch: int, config: dict[str, Any]) -> dict[str, int]:
    samples = epoch * 2 * config["pairs"]
    queries = samples * GAIN.get(config["label"], (0, 1))[1]
    return {
        "samples": samples,
        "reward_queries": queries,
        "optimiser_steps": 4 * epoch,
        "model_evaluations": samples * config["steps"],
    }


def eval_row(epoch: int, config: dict[str, Any], reward: str, steps: int, noises: int = 4) -> dict[str, Any]:
    """Values rise from the start's by the method's gain, with a spread over seeds; the same noise everywhere."""
    base = {1: 0.455, 2: 0.472, 4: 0.455, 8: 0.428}[steps]
    spread = np.random.default_rng([config["seed"], steps, len(config["label"])]).normal(0, 0.006)
    rise = GAIN.get(config["label"], (0.0, 1))[0] * (1 - np.exp(-epoch / 20)) * (0.6 if reward != "alignment" else 1)
    noise = np.random.default_rng([7, steps]).normal(0, 0.05, noises)
    values = {
        split: {
            prompt: list(base - 0.02 * (split == "unseen") + 0.01 * i + noise + rise + spread * (epoch > 0))
            for i, prompt in enumerate(prompts)
        }
        for split, prompts in PROMPTS.items()
    }
    return {
        "epoch": epoch,
        **counters(epoch, config),
        "reward": reward,
        "steps": steps,
        "values": values,
        "noise_seeds": list(range(noises)),
    }


def train_row(epoch: int, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "epoch": epoch,
        **counters(epoch, config),
        "loss": 0.9,
        "reward_mean": 0.4 + epoch / 1000,
        "clip_fraction": 0.1,
        "log_ratio_max": 0.01,
        "grad_norm": 0.5,
        "seconds": {"sample": 0.23, "reward": 0.14, "train": 0.6},
    }


def write_run(
    profile: Path,
    config: dict[str, Any],
    device: str = DEVICE,
    finished: bool = True,
    pictures: bool = True,
    rewards: tuple[str, ...] = ("alignment", "alignment_heldout"),
) -> Path:
    folder = profile / "raw" / config["run_id"]
    epochs = config["epochs"]
    with RunWriter(folder) as writer:
        writer.write_config(config)
        writer.write_provenance(provenance(device))
        for epoch in range(1, epochs + 1):
            writer.append_train(train_row(epoch, config))
        for epoch in sorted({0, *range(0, epochs + 1, 10)}):
            for reward in rewards:
                for steps in STEPS:
                    writer.append_eval(eval_row(epoch, config, reward, steps))
        if pictures and config["label"] != "start":
            for when, shift in (("before", 0), ("after", 1 + 31 * len(config["label"]))):
                y, x = np.mgrid[:128, :256]
                cells = np.stack([(x // 32) * 30, (y // 32) * 60, x * 0 + shift], -1).astype(np.uint8)
                Image.fromarray(cells).save(folder / f"grid_{when}.png")
        if finished:
            writer.finish(
                {
                    "epochs": epochs,
                    "seconds": {"sample": 14.0, "reward": 8.0, "train": 36.0, "evaluate": 9.0},
                    "seconds_per_epoch": {"sample": 0.23, "reward": 0.14, "train": 0.6},
                }
            )
    return folder


def compress(folder: Path) -> None:
    """Leaves of a run's eval.jsonl its .gz alone, as earlier versions committed it."""
    path = folder / "eval.jsonl"
    path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()


def seal(folder: Path) -> None:
    """Gives a finished run the digests of rows that a test has changed, as if it had ended with them."""
    path = folder / "done.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"records_sha256": row_digests(folder)}))


def write_profile(
    profile: Path, seeds: int = 2, labels: tuple[str, ...] = tuple(GAIN), training_steps: tuple[int, ...] = (4,)
) -> Path:
    """A profile of every label in `labels` with `seeds` runs each, and the start's one."""
    write_run(profile, make_config("start"))
    for steps in training_steps:
        for label in labels:
            for seed in range(seeds):
                write_run(profile, make_config(label, seed, steps=steps))
    return profile


@functools.cache
def reported_profile() -> Path:
    """A profile with tables, figures and report, made once for all tests, which only read it: 5 runs of SDPO and DDPO
    each and 2 of REBEL at K = 4, 2 of SDPO and DDPO at K = 20, one unfinished."""
    from sdpo_bench.analysis.outputs import write_all

    root = Path(tempfile.mkdtemp(prefix="sdpo-bench-test-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    profile = write_profile(root / "quick", seeds=5, labels=("SDPO", "DDPO"))
    for label, steps in (("REBEL", 4), ("SDPO", 20), ("DDPO", 20)):
        for seed in range(2):
            write_run(profile, make_config(label, seed, steps=steps))
    write_run(profile, make_config("PRDP"), finished=False)
    write_all(profile)
    return profile
