"""`sdpo-bench reproduce`: its options."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from sdpo_bench.cli.output import TakesPlugins
from sdpo_bench.records.missing_plugins import naming_plugins


@dataclass(frozen=True)
class Reproduce(TakesPlugins):
    """Run a profile of the benchmark, print its tables and compare them with the committed results.

    examples:
      sdpo-bench reproduce                                    # quick: every method, minutes on a laptop's CPU
      sdpo-bench reproduce --profile full --dry-run           # list the runs and estimated times
      sdpo-bench reproduce --resume                           # continue after an interruption
      sdpo-bench reproduce --methods sdpo ddpo --seeds 0 1 2  # fewer methods, more seeds
      sdpo-bench reproduce --profile sd-turbo --rewards aesthetic --workers 4  # the paper's setting, on 4 GPUs
      sdpo-bench reproduce --profile sd-turbo --rewards aesthetic --processes-per-run 4  # each run on 4 GPUs
      sdpo-bench reproduce --profile full --launcher slurm --launcher-options timeout_min=120  # a cluster
    """

    profile: str = "quick"
    """quick; smoke (a minute, tests the install); sweep, sweep-k8, sweep-k20, sweep-k50, sweep-jpeg, sweep-jpeg-k20
    (learning rates); recent, recent-colourfulness, recent-sweep, recent-sweep-edge (the methods of 2024 to 2026 on
    two rewards, and their learning rates), recent-shared (one rate for all), recent-guard (GRPO-Guard by K);
    first-look (K = 4 against K = 20); full (all methods, ablations, rewards, K: a night and more); paper-k20,
    paper-k4 (the paper's number of samples, one learning rate for all methods: days), paper-k20-quarter (a quarter of
    that: hours), paper-k20-rates, paper-k4-rates, paper-pilot (other shared rates), paper-k50, paper-k20-jpeg
    (another K or reward), paper-k20-tuned, paper-k4-tuned (each method's own rate), paper-k20-settings,
    paper-k20-prompts, paper-k20-lora-rates (settings of the paper, one at a time), paper-why-k4, paper-why-k20 (as
    many optimiser steps for all, and what public code does otherwise); sd-turbo (the paper's setting, on GPUs)."""
    results: Annotated[Path, arg(aliases=["--out"])] = Path("runs")
    """The folder to write to, with a subfolder for each profile. results/ has the committed results to compare with."""
    methods: tuple[str, ...] = ()
    """Run these methods or ablations instead of the profile's."""
    seeds: tuple[int, ...] = ()
    """Run these seeds instead of the profile's."""
    workers: int | None = None
    """The number of runs at the same time, each on one thread or one GPU. Default: one per physical core or per GPU.
    Several runs of the embedded model may share a GPU. With slurm or ray: runs that are submitted at a time, by default
    1000."""
    processes_per_run: int = 1
    """The number of processes that share each run, on a GPU each or a thread each: the same run, sooner
    (docs/scale.md). Default for --workers: as many runs at a time as there are GPUs, or cores, for."""
    device: Literal["cpu", "cuda"] | None = None
    """The device of the runs; default: cpu, for sd-turbo cuda. Results of different devices never share a table."""
    rewards: tuple[str, ...] = ()
    """For sd-turbo: train only on these of its rewards."""
    model: str | None = None
    """For sd-turbo: a folder with that model, or another model. The folder must be named sd-turbo for a comparison with
    the paper's curves."""
    revision: str | None = None
    """For sd-turbo: a commit of the hub model, instead of the pinned one."""
    learning_rates: tuple[str, ...] = ()
    """For sd-turbo, METHOD=RATE: learning rates of methods, instead of the one that all share for a reward, such as
    ddpo=3e-5 d3po=1e-5. Methods that are not named keep that one."""
    utilisation: float | None = None
    """For sd-turbo's time estimate: the fraction of the GPU's peak that runs reach. Default: measured from finished
    runs if there are any, otherwise 0.4."""
    peak_tflops: float | None = None
    """For sd-turbo's time estimate: the GPU's peak TFLOP/s in half precision. Default: 989, an H100's."""
    launcher: Literal["local", "slurm", "ray"] = "local"
    """Where the runs are made: on this machine; as SLURM jobs; as tasks of a running Ray cluster (docs/scale.md).
    --results must then be on a disk that all machines share."""
    launcher_options: tuple[str, ...] = ()
    """For slurm and ray, KEY=VALUE: what submitit's update_parameters takes, such as timeout_min=240
    slurm_partition=gpu, or what a Ray task takes, such as num_cpus=2 address=HOST:6379."""
    part: str | None = None
    """I/N: make only the I-th of N parts of the runs, with --resume. Parts may run at the same time into the same
    --results; the one that ends last makes the tables."""
    resume: bool = False
    """Keep finished runs and continue the others from their checkpoints."""
    dry_run: bool = False
    """Only list the runs, with estimated times."""

    def __call__(self) -> int:
        from sdpo_bench.experiments.runner import reproduce

        given = dataclasses.asdict(self)
        del given["plugin"]
        several = ("methods", "seeds", "rewards", "learning_rates", "launcher_options")
        with naming_plugins(self.results / self.profile.replace("-", "_") / "raw"):
            return reproduce(**given | {name: given[name] or None for name in several})
