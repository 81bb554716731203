"""Dashboards that follow a run, through Accelerate. They get copies; the records stay the source of every result."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sdpo_bench.errors import UserError

TRACKERS = ("tensorboard", "wandb", "trackio")
PROJECT = "sdpo-bench"


class Tracker:
    """A run at one of TRACKERS. Every process has one, but only the first one reports. Nothing is written before
    `log`."""

    def __init__(self, name: str, folder: Path, run: str, config: dict[str, Any], cpu: bool = False) -> None:
        """`folder` is for the files of trackers that write any; `run` is the run's name. UserError if the tracker's
        package is not installed."""
        if find_spec(name) is None:
            raise UserError(f"--tracker {name}: its package is not installed; python -m pip install {name}")
        self.name, self.folder, self.run, self.config, self.cpu = name, folder, run, config, cpu
        self.accelerator: Any = None

    def start(self) -> None:
        from accelerate import Accelerator

        self.folder.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(cpu=self.cpu, log_with=self.name, project_dir=self.folder)
        # TensorBoard's folder has the project's name, the others know a project and its runs.
        options = {"tensorboard": {}, "wandb": {"name": self.run, "dir": str(self.folder)}}
        settings = flat(self.config)
        self.accelerator.init_trackers(
            self.run if self.name == "tensorboard" else PROJECT,
            config=None if self.name == "tensorboard" else settings,
            init_kwargs={self.name: options.get(self.name, {"name": self.run})},
        )
        if self.name == "tensorboard" and self.accelerator.is_main_process:
            # Accelerate, like add_hparams, would write the settings as two more runs, without values.
            from torch.utils.tensorboard.summary import hparams

            for summary in hparams(settings, {}):
                self.tracker.file_writer.add_summary(summary)

    @property
    def tracker(self) -> Any:
        """TensorBoard's SummaryWriter, or the run of another tracker; in the first process."""
        return self.accelerator.get_tracker(self.name, unwrap=True)

    def log(self, epoch: int, values: dict[str, Any]) -> None:
        """Logs the numbers of an epoch; nested ones as a/b."""
        if self.accelerator is None:
            self.start()
        numbers = {key: value for key, value in flat(values).items() if not isinstance(value, str)}
        self.accelerator.log(numbers, step=epoch)

    def log_pictures(self, epoch: int, grid: np.ndarray[Any, Any]) -> None:
        """Logs a picture, uint8 [H, W, 3]."""
        if not self.accelerator.is_main_process:
            return
        if self.name == "tensorboard":
            self.tracker.add_image("pictures", grid, epoch, dataformats="HWC")
        else:
            image = import_module(self.name).Image
            self.tracker.log({"pictures": image(grid)}, step=epoch)

    def log_evaluation(self, epoch: int, rows: Iterable[dict[str, Any]]) -> None:
        """Logs the means over prompts and noises of an evaluation's rows."""
        means = {}
        for row in rows:
            for split, prompts in row["values"].items():
                values = [value for noises in prompts.values() for value in noises]
                means[f"evaluation/{row['reward']}/{split}/{row['steps']} steps"] = sum(values) / len(values)
        self.log(epoch, means)

    def close(self) -> None:
        if self.accelerator is not None:
            self.accelerator.end_training()


def flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Flattens nested dicts to keys a/b. Values that are not numbers become text, as trackers require."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= flat(value, f"{path}{key}/")
        else:
            out[path + key] = value if isinstance(value, int | float | str) else str(value)
    return out
