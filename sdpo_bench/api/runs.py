"""Training, evaluating, comparing and reading results from Python: docs/python.md."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from PIL.Image import Image

from sdpo_bench.analysis import compare as comparison
from sdpo_bench.analysis.changes import change_frame, training_changes
from sdpo_bench.api.files import Settings, checked, read_settings, typed_settings
from sdpo_bench.api.settings import Resolved, resolved
from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.experiments.progress import EpochDisplay
from sdpo_bench.interruption import watched
from sdpo_bench.records.frames import eval_frame, mean_frame, training_frame
from sdpo_bench.records.lookup import find_run
from sdpo_bench.records.missing_plugins import naming_plugins
from sdpo_bench.records.pictures import WHEN, picture
from sdpo_bench.records.provenance import repository
from sdpo_bench.records.reader import RunRecord, load_profile, load_run
from sdpo_bench.terminal import quiet_libraries
from sdpo_bench.training import loop
from sdpo_bench.training.evaluation import evaluate_model

Given = RunConfig | Mapping[str, Any] | str | Path | None
"""A configuration: complete, or settings that the model's defaults complete, or a file with these (docs/config.md)."""


class Run:
    """A run in a folder: its settings, its values as data frames, its pictures and its weights."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def folder(self) -> Path:
        return self.record.folder

    @cached_property
    def _valued(self) -> RunRecord:
        """The record with every value. Those of `Results` have means, which take a fraction of the memory."""
        return load_run(self.folder) if any("means" in row for row in self.record.eval) else self.record

    @property
    def config(self) -> dict[str, Any]:
        """Every setting, as config.json has it."""
        return self.record.config

    @cached_property
    def means(self) -> pd.DataFrame:
        """A row per evaluation, reward, number of sampling steps and split: the mean over prompts and noises."""
        return mean_frame([self.record])

    @cached_property
    def values(self) -> pd.DataFrame:
        """Every evaluated value, one row each."""
        return eval_frame([self._valued])

    @cached_property
    def training(self) -> pd.DataFrame:
        """A row per epoch: reward, loss, gradient norm, counts, seconds."""
        return training_frame([self.record])

    @cached_property
    def changes(self) -> pd.DataFrame:
        """What training changed: `first` and `second` are the means before and after, `low` and `high` the ends of the
        difference's 95 % interval over prompts. Empty where the run was not evaluated before training."""
        return change_frame(training_changes(self._valued))

    @cached_property
    def pictures(self) -> dict[str, Image]:
        """Grids of pictures "before" and "after" training, as PIL images: a row for each number of steps, a column for
        each prompt. Empty where none are kept: packed records have those of each method's run with the lowest seed."""
        found = {when: picture(self.record, when) for when in WHEN}
        return {when: image for when, image in found.items() if image is not None}

    @property
    def weights(self) -> Path | None:
        """The folder with the trained weights: `adapter`, a LoRA for `pipeline.load_lora_weights`, or `model`, a
        pipeline for `from_pretrained`; None where there is none."""
        return next((path for name in ("adapter", "model") if (path := self.folder / name).is_dir()), None)


def train(
    config: Given = None,
    *,
    out: str | Path = "runs/train",
    resume: bool = True,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    **settings: Any,
) -> Run:
    """Trains a run into `out`/raw/RUN_ID and returns it. `settings` are `RunConfig`'s fields, and override `config`.

    A `RunConfig` is taken as it is. What a mapping, a file or `settings` alone leave out takes the model's defaults, as
    `sdpo-bench train` does. With `resume` a finished run is read, and an unfinished one goes on from its checkpoint.
    `on_epoch` gets the events of `sdpo_bench.training.loop.train`; by default they are shown on stderr. UserError says
    what is wrong with the settings.
    """
    found = _configured(config, settings)
    quiet_libraries()
    folder = find_run(Path(out) / "raw", found.config.to_json())
    if found.note:
        print(found.note, file=sys.stderr)
    with EpochDisplay(found.config.label, found.config.epochs, terminal=sys.stderr.isatty()) as display, watched():
        loop.train(found.config, folder, resume=resume, on_epoch=on_epoch or display.show, keep=True)
    return Run(load_run(folder))


def evaluate(
    run: Run | Given = None,
    *,
    weights: str | Path | None = None,
    rewards: tuple[str, ...] | list[str] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Evaluates a run's weights, or a model: a row per reward, number of steps, split, prompt and noise.

    Of a `Run` the settings are its own, and `weights` by default too. Otherwise the settings are as of `train`, and
    without `weights` the model is evaluated as it is. `rewards`: by default those of the settings.
    """
    if isinstance(run, Run):
        weights = weights or run.weights
        if weights is None and run.config["epochs"]:
            raise UserError(f"{run.folder} holds no weights; give `weights`, or train the run again")
        made: Path | None = run.folder
        run = checked(run.config, str(run.folder)).values
    else:
        made = Path(weights).absolute().parent if weights else None
    path = Path(weights) if weights else None
    quiet_libraries()
    with naming_plugins(made, in_python=True):
        config = _configured(run, {"epochs": 0, "eval_last_steps": (), "eval_last_rewards": (), **settings}).config
        chosen = tuple(rewards) if rewards is not None else (config.reward, *config.eval_rewards)
        if not chosen:
            raise UserError("rewards is empty; expected at least one reward")
        rows = evaluate_model(evaluation_config(config, chosen, path), path)
    columns = ["reward", "steps", "split", "prompt", "noise_seed", "value"]
    return pd.DataFrame(
        [
            (row["reward"], row["steps"], split, prompt, noise, value)
            for row in rows
            for split, prompts in row["values"].items()
            for prompt, found in prompts.items()
            for noise, value in zip(row["noise_seeds"], found, strict=True)
        ],
        columns=columns,
    )


def evaluation_config(config: RunConfig, rewards: tuple[str, ...], weights: Path | None) -> RunConfig:
    """The configuration with which these weights, a run's `adapter` or `model`, are evaluated with these rewards."""
    full = weights is not None and (weights / "model_index.json").is_file()
    return replace(
        config, reward=rewards[0], eval_rewards=rewards, finetune="full" if full else "lora", epochs=0, label=""
    )


def compare(
    a: Run | str | Path, b: Run | str | Path, *, profile: str = "full", results: str | Path | None = None
) -> pd.DataFrame:
    """The differences of two runs, of two labels of a profile, or of two folders of results, as `sdpo-bench compare`
    prints them: a row per pair and number of steps."""
    folder = Path(results) if results else (repository() or Path()) / "results"
    first, second = (str(side.folder if isinstance(side, Run) else side) for side in (a, b))
    tables = comparison.compare(first, second, folder / profile.replace("-", "_"))
    return pd.concat([table.frame for table in tables], ignore_index=True)


class Results:
    """The finished runs of a folder such as results/quick or runs/train, as data frames."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.records = load_profile(folder, means=True)

    def __repr__(self) -> str:
        return f"Results({str(self.folder)!r}, {len(self.records)} runs)"

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row per run: every setting, its device and its commit."""
        own = [{"device": run.device, "commit": run.provenance["commit"]} for run in self.records]
        rows = [run.config | more for run, more in zip(self.records, own, strict=True)]
        return pd.json_normalize(rows, max_level=1) if rows else pd.DataFrame()

    @cached_property
    def means(self) -> pd.DataFrame:
        """A row per run, evaluation, reward, number of sampling steps and split: the mean over prompts and noises."""
        return mean_frame(self.records)

    @cached_property
    def values(self) -> pd.DataFrame:
        """Every evaluated value, one row each: millions for a large study."""
        return eval_frame(load_profile(self.folder))

    @cached_property
    def training(self) -> pd.DataFrame:
        """A row per run and epoch."""
        return training_frame(self.records)


def load_results(folder: str | Path) -> Results:
    """The finished runs of a folder of results, packed or not. RecordError for unsound records."""
    return Results(folder)


def _configured(config: Given, settings: Mapping[str, Any]) -> Resolved:
    """The configuration that is meant, with `settings` in place of some."""
    changes = typed_settings(settings, "the settings")
    if isinstance(config, RunConfig):
        return Resolved(replace(config, **changes))
    if isinstance(config, str | Path):
        return resolved(read_settings(Path(config)), changes)
    return resolved(checked(config or {}, "the settings") if config else Settings(), changes)
