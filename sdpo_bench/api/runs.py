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
from sdpo_bench.api.unused import refuse_unused
from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.experiments.progress import EpochDisplay
from sdpo_bench.interruption import watched
from sdpo_bench.records.frames import eval_frame, mean_frame, training_frame
from sdpo_bench.records.lookup import find_run, stored_run
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
    """A run: its settings, its values as data frames, its pictures and its weights. `Run(load_run(folder))` reads one.

    Values are in the reward's own scale (docs/rewards.md). `steps` are numbers of sampling steps, `split` is "seen" or
    "unseen" prompts.
    """

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
        """Changes by training, a row per reward, split and number of steps: `first` and `second` are the means before
        and after, `low` and `high` the ends of the 95 % interval of their `difference` over `prompts` prompts. Empty
        where the run was not evaluated before training."""
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
    """Trains a run into the folder `out`/raw/RUN_ID and returns it.

    `config` is a complete `RunConfig`; or a mapping of its fields, or a file with them (docs/config.md), or nothing.
    What these leave out takes the model's defaults, as with `sdpo-bench train`. `settings` are fields too, and override
    `config`. With `resume` a finished run is read, and an unfinished one goes on from its checkpoint. `on_epoch` gets
    the events of `sdpo_bench.training.loop.train`; by default they are shown on stderr.

    Errors: `UserError` for bad settings, and where the folder holds a run that can't go on (without `resume`: any run);
    `RecordError` for unsound records; `RunLocked` while another process trains this run. Ctrl-C saves the state after
    the last whole epoch and raises KeyboardInterrupt.
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
    """Evaluates a run's weights, or a model, on fixed prompts and fixed noise.

    Of a `Run` the settings are its own, and the weights too. Else the settings are as of `train`, and `weights` is a
    run's folder, or `adapter` or `model` in it; without it the model is evaluated as it is. `settings` override others,
    such as `eval_steps`. `rewards`: by default those of the settings.

    Returns a row for each reward, number of steps, prompt and noise, with the columns reward, steps, split (seen or
    unseen prompts), prompt, noise_seed and value, in the reward's own scale (docs/rewards.md).

    Errors: `UserError` for bad settings, where there are no weights, and where a plug-in of the run is missing.
    """
    if isinstance(run, Run):
        weights = weights or run.weights
        if weights is None and run.config["epochs"]:
            raise UserError(f"{run.folder} holds no weights; give `weights`, or train the run again")
        made: Path | None = run.folder
        run = checked(run.config, str(run.folder)).values
    else:
        weights = weights_folder(Path(weights)) if weights else None
        made = weights.absolute().parent if weights else None
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


def weights_folder(given: Path) -> Path:
    """The folder with saved weights that is meant: a run's `adapter` or `model`, or a run's folder that holds one of
    them. UserError for a packed run, which holds none."""
    found = [given / name for name in ("adapter", "model") if (given / name).is_dir()]
    if len(found) == 1:
        return found[0]
    for run in (given, given.parent):
        stored = stored_run(run.absolute())
        if stored is not None and stored.packed:
            raise UserError(
                f"{given}: packed runs hold no weights; make them with `sdpo-bench train --config {run}`, and give the "
                f"folder that it prints"
            )
    return given


def evaluation_config(config: RunConfig, rewards: tuple[str, ...], weights: Path | None) -> RunConfig:
    """The configuration with which these weights, a run's `adapter` or `model`, are evaluated with these rewards."""
    full = weights is not None and (weights / "model_index.json").is_file()
    return replace(
        config, reward=rewards[0], eval_rewards=rewards, finetune="full" if full else "lora", epochs=0, label=""
    )


def compare(
    a: Run | str | Path, b: Run | str | Path, *, profile: str = "full", results: str | Path | None = None
) -> pd.DataFrame:
    """The differences a minus b, in the rewards' own scales, as `sdpo-bench compare` prints them.

    `a` and `b` are two runs (each a `Run`, or its folder, also of a packed run), two labels in the folder `profile` of
    `results` (by default the committed results), or two folders of results.

    Returns a row for each split and number of sampling steps, with the mean `difference` and the ends `low` and `high`
    of its 95 % interval. Runs are paired by prompt, in all rewards that both have: `value` and `baseline_value` are
    their means over `prompts` prompts. Labels are paired by seed, in the reward that they were trained on: `n` is the
    number of seeds (below five the interval is NaN), `probability` that a run of `a` beats one of `b`, and a row whose
    `steps` are "mean" is over all of them.

    Errors: `UserError` for what is not there, not finished, or was not evaluated alike; `RecordError` for unsound
    records.
    """
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
        rows = [run.config | {"label": run.label} | more for run, more in zip(self.records, own, strict=True)]
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
    """The finished runs of a folder of results, such as results/quick or runs/train, packed or not.

    Errors: `RecordError` for a folder without records, or unsound ones. `values` of packed runs needs pyarrow, else it
    raises `UserError`.
    """
    return Results(folder)


def _configured(config: Given, settings: Mapping[str, Any]) -> Resolved:
    """The configuration that is meant, with `settings` in place of some."""
    changes = typed_settings(settings, "the settings")
    if isinstance(config, RunConfig):
        complete = replace(config, **changes)
        refuse_unused(complete, changes)
        return Resolved(complete)
    if isinstance(config, str | Path):
        return resolved(read_settings(Path(config)), changes)
    return resolved(checked(config or {}, "the settings") if config else Settings(), changes)
