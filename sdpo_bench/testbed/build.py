"""Rebuilds the embedded model from the repository.

    python -m sdpo_bench.testbed.build --out build/testbed            # reuses finished stages; --force starts afresh
    python -m sdpo_bench.testbed.build --out build/testbed --install  # and copies the result into the package
    python -m sdpo_bench.testbed.build --out /tmp/x --smoke           # every stage with a few iterations, < 1 min

Stages: the autoencoder beside the scorers, then the denoiser in two processes that average their gradients, then the
quality report. Never more than two busy processes of one thread each. Deterministic on a given machine: same bytes.
"""

import argparse
import json
import multiprocessing
import shutil
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from sdpo_bench.testbed.animals import ASSETS
from sdpo_bench.testbed.data import WIDE
from sdpo_bench.testbed.quality import measure
from sdpo_bench.testbed.train_autoencoder import train_autoencoder
from sdpo_bench.testbed.train_denoiser import train_denoiser
from sdpo_bench.testbed.train_scorer import train_scorer

#: encoder, seed, learning rate
SCORERS = {"alignment": ("conv", 21, 2e-3), "alignment_heldout": ("transformer", 31, 1e-3)}


@dataclass(frozen=True)
class Settings:
    """Numbers of iterations; a batch of the denoiser is per process."""

    autoencoder: int = 7000
    autoencoder_batch: int = 16
    scorer: int = 3000
    scorer_batch: int = 64
    denoiser: int = 800
    denoiser_batch: int = 48
    variants: int = 16  # training latents per class
    real_pictures: int = 2048
    generated_per_prompt: int = 16


FULL = Settings()
SMOKE = Settings(3, 4, 3, 8, 3, 4, 8, 64, 1)


def run_stage(stage: str, out: Path, settings: Settings, rank: int) -> None:
    """Run one stage in this process (the denoiser: one of its two ranks) and write its outputs under `out`."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if stage == "autoencoder":
        vae = train_autoencoder(11, settings.autoencoder, settings.autoencoder_batch, 2e-3)
        vae.save_pretrained(out / "work" / "vae")
    elif stage in SCORERS:
        encoder, seed, rate = SCORERS[stage]
        scorer = train_scorer(encoder, seed, settings.scorer, settings.scorer_batch, rate, WIDE)
        scorer.save(out / "scorers" / stage, seed=seed)
    elif stage == "denoiser":
        train_denoiser(out, settings.denoiser, settings.denoiser_batch, settings.variants, rank)
    else:
        measure(out, settings.real_pictures, settings.generated_per_prompt, asdict(settings))


def _worker(stages: tuple[str, ...], out: Path, settings: Settings, rank: int) -> None:
    """A process: run `stages` in turn, with its output in a log, and mark each as finished."""
    (out / "logs").mkdir(exist_ok=True)
    with (out / "logs" / f"{stages[0]}_{rank}.log").open("w", buffering=1) as log:
        sys.stdout = sys.stderr = log
        try:
            for stage in stages:
                start = time.time()
                run_stage(stage, out, settings, rank)
                if rank == 0:
                    (out / "done" / f"{stage}.json").write_text(json.dumps({"seconds": round(time.time() - start, 1)}))
        except Exception:
            traceback.print_exc()
            raise


def _together(work: list[tuple[tuple[str, ...], int]], out: Path, settings: Settings) -> None:
    """Run (stages, rank) side by side, at most two, each in a process of its own; finished stages are left out."""
    # Forked, so that the heavy imports are paid for once; this process itself never computes with torch.
    context = multiprocessing.get_context("fork")
    processes = []
    for stages, rank in work:
        left = tuple(s for s in stages if not (out / "done" / f"{s}.json").exists())
        if left:
            processes.append(context.Process(target=_worker, args=(left, out, settings, rank)))
    start = time.time()
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"a stage failed; see {out / 'logs'}")
    if processes:
        print(f"{' + '.join(s for stages, _ in work for s in stages)}: {time.time() - start:.0f} s", flush=True)


def build(out: Path, settings: Settings = FULL, force: bool = False) -> None:
    """Runs every stage that is not finished in `out`. SystemExit names the logs if a stage fails.

    Raises ValueError if `out` holds stages made with other settings.
    """
    if force and out.exists():
        shutil.rmtree(out)
    (out / "done").mkdir(parents=True, exist_ok=True)
    (out / "work").mkdir(exist_ok=True)
    made_with = out / "settings.json"
    if made_with.exists() and json.loads(made_with.read_text()) != asdict(settings):
        raise ValueError(f"{out} holds stages made with other settings; use --force or another folder")
    made_with.write_text(json.dumps(asdict(settings), indent=1) + "\n")
    _together([(("autoencoder",), 0), (tuple(SCORERS), 0)], out, settings)
    (out / "work" / "meeting").unlink(missing_ok=True)  # where an interrupted run's two processes met
    _together([(("denoiser",), 0), (("denoiser",), 1)], out, settings)
    _together([(("quality",), 0)], out, settings)


def install(out: Path) -> None:
    """Copy the pipeline and the scorers into the package's assets, the quality record into results/testbed."""
    results = ASSETS.parent.parent / "results" / "testbed"
    for source, target in [("embedded_model", ASSETS / "embedded_model"), ("scorers", ASSETS / "scorers")]:
        shutil.copytree(out / source, target, dirs_exist_ok=True)
    shutil.copytree(out / "quality", results, dirs_exist_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Rebuild the embedded few-step model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the result, logs and finished stages")
    parser.add_argument("--smoke", action="store_true", help="a few iterations of every stage: a test, no model")
    parser.add_argument("--force", action="store_true", help="delete --out first instead of reusing finished stages")
    parser.add_argument("--install", action="store_true", help="copy the result into the package and results/testbed")
    args = parser.parse_args()
    if args.install and args.smoke:
        parser.error("--smoke makes no model worth installing")
    build(args.out, SMOKE if args.smoke else FULL, args.force)
    if args.install:
        install(args.out)


if __name__ == "__main__":
    main()
