"""The runs of a profile: their folders, expected durations and states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpo_bench.config import RunConfig
from sdpo_bench.experiments import cost_model
from sdpo_bench.records.lookup import find_run, list_folders


@dataclass
class Run:
    """A run of the profile and its state."""

    config: RunConfig
    folder: Path
    estimate: float
    state: str = "pending"  # done, locked, failed: as the worker reports
    epoch: int = 0
    epochs_here: int = 0  # trained by this process: a resumed run's earlier ones took no time now
    message: str = ""
    details: str = ""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def fraction(self) -> float:
        return 1.0 if self.state != "pending" else self.epoch / max(self.config.epochs, 1)


def plan(
    folder: Path, configs: Sequence[RunConfig], cost: cost_model.Cost | cost_model.GPUCost, processes: int = 1
) -> list[Run]:
    """The profile's runs with their folders and estimated seconds, where so many processes share each run."""
    raw = folder / "raw"
    there = list_folders(raw)
    return [Run(config, find_run(raw, config.to_json(), there), cost.seconds(config, processes)) for config in configs]
