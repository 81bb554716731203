"""`sdpo-bench train`."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, arg

from sdpo_bench.catalogue import DENSE_REWARDS, SAMPLERS
from sdpo_bench.cli.output import TakesPlugins, evaluation_table
from sdpo_bench.cli.parsing import parse
from sdpo_bench.config import (
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    RunConfig,
    RunSettings,
    SamplerConfig,
    TrainingEvaluationConfig,
    TrainingMemoryConfig,
    filled,
    flat,
)
from sdpo_bench.errors import UserError
from sdpo_bench.interruption import Interrupted, exit_code, watched
from sdpo_bench.records.missing_plugins import naming_plugins
from sdpo_bench.terminal import echo, quiet_libraries


def train_command() -> type:
    """`sdpo-bench train`: RunConfig's fields and where to write. Built when used: listing methods needs PyTorch."""
    from sdpo_bench.methods import METHODS
    from sdpo_bench.rewards import EXTERNAL, PRETRAINED, REWARDS

    def options(cls: type) -> str:
        found = [f"{f.name} {f.default}" for f in dataclasses.fields(cls)]
        return f" ({', '.join(found)})" if found else ""

    methods = "\n".join(f"  {name}: {cls.title}{options(cls)}" for name, cls in METHODS.items())

    dense = "\n".join(f"  {entry.name}: {entry.meaning}" for entry in DENSE_REWARDS)
    samplers = "\n".join(f"  {name}: {meaning}" for name, meaning in SAMPLERS.items())

    @dataclass(frozen=True)
    class Train(TakesPlugins, RunSettings):
        model: OmitArgPrefixes[ModelConfig] = field(default_factory=ModelConfig)
        sampler: OmitArgPrefixes[SamplerConfig] = field(default_factory=SamplerConfig)
        rollout: OmitArgPrefixes[RolloutConfig] = field(default_factory=RolloutConfig)
        optimizer: OmitArgPrefixes[OptimizerConfig] = field(default_factory=OptimizerConfig)
        evaluation: OmitArgPrefixes[TrainingEvaluationConfig] = field(default_factory=TrainingEvaluationConfig)
        memory: OmitArgPrefixes[TrainingMemoryConfig] = field(default_factory=TrainingMemoryConfig)
        out: Path = field(default=Path("runs/train"))
        """The folder to write to. The run's folder is in OUT/raw/."""
        resume: bool = False
        """Continue the same run from its checkpoint. More epochs and other settings of execution are allowed."""
        tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
        """Also report to this dashboard, whose package must be installed; its files go to OUT/tracker/."""
        shard: bool = False
        """Divide the weights of --finetune full among the processes (FSDP)."""
        push_to_hub: str | None = None
        """Upload the trained weights and their model card to this repository of the Hugging Face hub, OWNER/NAME. It is
        made if there is none, with the privacy that its owner's settings say."""
        config: Annotated[Path | None, arg(metavar="FILE")] = None
        """Take the settings of this file, YAML or JSON, or of a run (its folder, or its config.json): docs/config.md.
        Flags override them."""
        dump_config: Annotated[Path | None, arg(metavar="[FILE]")] = None
        """Print every setting, or write them to a file, as --config reads them, and train nothing."""

    Train.__doc__ = f"""Train a model with one method on one reward.

examples:
  sdpo-bench train --method ddpo                                 # the embedded model, in 1 to 2 minutes
  sdpo-bench train --method sdpo --options gamma 0.95 --reward jpeg_compressibility --epochs 10
  sdpo-bench train --reward colourfulness --prompts mine.txt     # your own prompts, one a line
  sdpo-bench train --method grpo --dump-config grpo.yaml         # all settings of a run, as a file
  sdpo-bench train --config grpo.yaml --seed 1                   # flags override the file
  sdpo-bench train --config results/quick/raw/RUN_ID             # a committed run again
  sdpo-bench train --model stabilityai/sd-turbo --revision COMMIT --dtype float16 --rows 8 \\
      --reward jpeg_compressibility --eval-rewards jpeg_compressibility
  accelerate launch --num_processes 4 -m sdpo_bench train --method sdpo    # 4 GPUs, the same run: docs/scale.md

methods, with their options and defaults:
{methods}

dense rewards, for methods that use a reward at every step:
{dense}

samplers:
{samplers}

rewards: {", ".join(name for name in REWARDS if REWARDS[name].optimisable)}
measured only, with --eval-rewards: {", ".join(name for name in REWARDS if not REWARDS[name].optimisable)}
rewards with published weights (how to get them: docs/rewards.md): {", ".join(PRETRAINED)}
rewards that need a server or a library (docs/rewards.md): {", ".join(EXTERNAL)}"""
    return Train


OWN = ("out", "resume", "tracker", "shard", "push_to_hub", "config", "dump_config", "plugin")
"""Options of `train` that are no settings of a run."""
STDOUT = Path("-")


def parse_train(arguments: Sequence[str], prog: str) -> Callable[[], int]:
    """The command of these arguments. What they do not give a --config file does, else the model's defaults."""
    from sdpo_bench.api.files import Settings, read_settings
    from sdpo_bench.api.settings import changed, defaults, of_model, resolve

    files, rest = file_options(arguments)
    file = read_settings(files.config) if files.config else Settings()
    cls = train_command()

    def parsed(values: Mapping[str, Any]) -> dict[str, Any]:
        # Without the options of a method: tyro would make a flag of each.
        return flat(parse(cls, rest, prog, filled(cls(), {**values, "options": {}})))

    base = defaults() | dict(file.values)
    if {"-h", "--help"} & {*rest}:
        parsed(base | {k: v for k, v in of_model(base).items() if k not in file.values})
    values = parsed(base)
    own = {name: values.pop(name) for name in OWN}
    options = {"method": values["method"], "options": values["options"]}
    values["options"] = changed({"method": base["method"], **file.values}, options)["options"]
    with naming_plugins(own["out"] / "raw"):
        found = resolve(values, said(rest), file)
    if files.dump_config:
        return partial(dump, found.config, files.dump_config)
    return partial(
        train,
        found.config,
        own["out"],
        own["resume"],
        own["tracker"],
        own["shard"],
        own["push_to_hub"],
        found.note,
    )


def said(arguments: Sequence[str]) -> set[str]:
    """The settings whose flags are among the arguments, be their values the defaults or not."""
    flags = {text.partition("=")[0][2:].replace("-", "_") for text in arguments if text.startswith("--")}
    return {f.name for f in dataclasses.fields(RunConfig)} & (flags | {name.removeprefix("no_") for name in flags})


def file_options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """--config and --dump-config, and the other arguments. UserError without a file."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--dump-config", "--dump_config", nargs="?", const=STDOUT, type=Path)
    try:
        return parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name} names no file; give a YAML or JSON file, or a run's folder") from None


def dump(config: RunConfig, path: Path) -> int:
    """Prints a configuration, or writes it to a file: JSON where its name ends so, else YAML."""
    from sdpo_bench.api.files import dumped

    text = dumped(config, path.suffix == ".json")
    if path == STDOUT:
        echo(text.rstrip())
    else:
        path.write_text(text, "utf-8")
        echo(f"written: {path}")
    return 0


def train(
    config: Any,
    out: Path,
    resume: bool,
    tracker: str = "none",
    shard: bool = False,
    push_to_hub: str | None = None,
    note: str = "",
) -> int:
    """Runs `config` with a progress bar and prints the results. With several processes only the first one prints."""
    from sdpo_bench.distributed import join
    from sdpo_bench.experiments.progress import EpochDisplay
    from sdpo_bench.records.lookup import find_run
    from sdpo_bench.training import hub
    from sdpo_bench.training.loop import saved_weights
    from sdpo_bench.training.loop import train as run
    from sdpo_bench.training.sinks import Tracker

    quiet_libraries()
    row = config.to_json()
    folder = find_run(out / "raw", row)
    if resume and not (folder / "config.json").exists():
        refuse_other_settings(out / "raw", row)
    ranks = join(config.device, shard)
    if push_to_hub and not config.epochs:
        raise UserError("--push-to-hub: with --epochs 0 there are no trained weights to upload")
    if push_to_hub:
        ranks.run_on_main(lambda: hub.prepare(push_to_hub))
    if note and ranks.is_main:
        print(note, file=sys.stderr, flush=True)
    followed = None
    if tracker != "none":
        followed = Tracker(tracker, out / "tracker", folder.name, config.to_json(), config.device == "cpu")
    display = EpochDisplay(config.label, config.epochs, terminal=sys.stderr.isatty() and ranks.is_main)
    try:
        with display, watched(launched=ranks.size > 1), naming_plugins(out / "raw"):
            run(config, folder, resume=resume, on_epoch=display.show, ranks=ranks, tracker=followed, keep=True)
    except Interrupted as stop:
        if ranks.is_main:
            again = f"stopped: {stop.said or 'saved files stay'}. Continue with: {resuming(ranks.size)}"
            print(f"\n{again}", file=sys.stderr)
        return exit_code(stop)
    if not display.begun and ranks.is_main:
        print(f"{config.label}: finished before, all {config.epochs} epochs", file=sys.stderr)
    if followed is not None:
        followed.close()
    ranks.close()
    if ranks.is_main:
        show_results(config, out, folder)
        if push_to_hub:
            echo(f"uploaded: {hub.upload(push_to_hub, saved_weights(config, folder), f'Weights of {folder.name}')}")
    return 0


def show_results(config: Any, out: Path, folder: Path) -> None:
    """Prints what a finished run changed, the seconds per epoch, and the folders of records and weights."""
    from sdpo_bench.analysis.changes import change_table, last_evaluation, training_changes
    from sdpo_bench.analysis.outputs import shown
    from sdpo_bench.analysis.render import text
    from sdpo_bench.experiments.progress import speed
    from sdpo_bench.records.reader import load_run
    from sdpo_bench.training.loop import saved_weights

    record = load_run(folder)
    last = last_evaluation(record)
    found = training_changes(record)
    known = {(change.reward, change.steps) for change in found}
    if found:
        title = f"{config.label}: before and after {last[0]['samples']:,} samples"
        echo(text(change_table("changes", title, found)))
    if rest := [row for row in last if (row["reward"], row["steps"]) not in known]:
        echo("\n" * bool(found) + evaluation_table(rest))
    echo(f"\n{speed([record])}\n\nrecords: {shown(folder)}")
    weights = saved_weights(config, folder)
    if weights.is_dir():
        how = "pipeline.load_lora_weights" if config.finetune == "lora" else "DiffusionPipeline.from_pretrained"
        echo(f'weights: {how}("{shown(weights)}")')
    elif config.epochs:
        print(
            f"warning: {shown(weights)} was deleted and there is no checkpoint to restore it from; to get the weights, "
            f"delete {shown(folder)} and train again",
            file=sys.stderr,
        )


def refuse_other_settings(raw: Path, row: dict[str, Any]) -> None:
    """UserError if --resume finds no run with these settings, but one with the same label, reward, K and seed.

    The other settings are then probably a mistake, and the user did not ask to begin at epoch 1.
    """
    from sdpo_bench.analysis.outputs import shown
    from sdpo_bench.records.lookup import fewer_epochs, nearest_run

    if (nearest := nearest_run(raw, row)) is not None:
        folder, found = nearest
        only_epochs = all(text.startswith("epochs ") for text in found)
        if only_epochs and (why := fewer_epochs(folder, row)):
            raise UserError(f"--resume: {why}, with another --label or --out")
        finished = (folder / "done.json").exists() and only_epochs
        why = ", and it is finished, so there is no checkpoint to continue from" if finished else ""
        raise UserError(
            f"--resume: {shown(folder)} has the same label, reward, K and seed, but other settings: "
            f"{', '.join(found)}{why}; use its settings, or for a new run another --label, or leave out --resume"
        )


def resuming(processes: int) -> str:
    """The command that continues a run of `train`."""
    if processes > 1:
        return "the same command with --resume"
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["sdpo-bench", *arguments, "--resume"])
