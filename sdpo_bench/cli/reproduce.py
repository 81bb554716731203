"""`sdpo-bench reproduce`: its options."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Reproduce:
    """Run a profile of the benchmark, print its tables and compare them with the committed results.

    examples:
      sdpo-bench reproduce                                    # quick: every method, minutes on a laptop's CPU
      sdpo-bench reproduce --profile full --dry-run           # what would be run, and for how long
      sdpo-bench reproduce --resume                           # go on after an interruption
      sdpo-bench reproduce --methods sdpo ddpo --seeds 0 1 2  # fewer methods, more seeds
      sdpo-bench reproduce --profile sd-turbo --rewards aesthetic --workers 4  # the paper's setting, on 4 GPUs
    """

    profile: str = "quick"
    """quick; smoke (a minute, shows that all works); sweep, sweep-k8, sweep-k20, sweep-k50, sweep-jpeg,
    sweep-jpeg-k20 (learning rates); recent, recent-sweep (the methods of 2024 to 2026, and their learning rates);
    first-look (K = 4 against K = 20); full (all methods, ablations, rewards, K: a night and more); paper-k20,
    paper-k4 (the paper's number of samples, one learning rate for all methods: days), paper-k20-rates,
    paper-k4-rates, paper-pilot (other shared rates); sd-turbo (the paper's setting, on GPUs)."""
    results: Path = Path("runs")
    """Where to write: a folder for each profile. The committed results are in results/, which is the reference."""
    methods: tuple[str, ...] = ()
    """These methods or ablations in place of the profile's."""
    seeds: tuple[int, ...] = ()
    """These seeds in place of the profile's."""
    workers: int | None = None
    """Runs at the same time, each on one thread or one GPU. Default: one per physical core, or per GPU, which
    more than one run of the embedded model may share."""
    device: Literal["cpu", "cuda"] | None = None
    """Where the runs are made; default: a CPU, of sd-turbo a GPU. Results of different devices never share a table."""
    rewards: tuple[str, ...] = ()
    """Of sd-turbo: train on these of its rewards."""
    model: str | None = None
    """Of sd-turbo: a folder with that model (named sd-turbo: else the paper's curves are not shown), or another one."""
    revision: str | None = None
    """Of sd-turbo: another commit of the hub model than the pinned one."""
    utilisation: float | None = None
    """Of sd-turbo: assume that runs do this part of a GPU's arithmetic; default: what finished runs took, else 0.4."""
    peak_tflops: float | None = None
    """Of sd-turbo: a GPU's TFLOP/s in half precision; default: 989, an H100's."""
    resume: bool = False
    """Keep finished runs, go on with the others from their checkpoints."""
    dry_run: bool = False
    """Only list the runs, with estimated times."""

    def __call__(self) -> int:
        from sdpo_bench.experiments.runner import reproduce

        given = dataclasses.asdict(self)
        several = ("methods", "seeds", "rewards")
        return reproduce(**given | {name: given[name] or None for name in several})
