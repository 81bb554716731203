"""The command line. Modules that import PyTorch are imported where they are used, so that --help comes at once."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from sdpo_bench.errors import UserError, is_full_disk
from sdpo_bench.interruption import Interrupted, exit_code, watched
from sdpo_bench.terminal import echo


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
    """quick; smoke (a minute, shows that all works); sweep, sweep-k8, sweep-k20, sweep-k50, sweep-jpeg, sweep-jpeg-k20
    (learning rates); first-look (K = 4 against K = 20); full (all methods, ablations, rewards, K: a night and more);
    paper-k20, paper-k4 (the paper's number of samples, one learning rate for all methods: days), paper-k20-rates,
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
        from sdpo_bench.reproduce import reproduce

        given = dataclasses.asdict(self)
        several = ("methods", "seeds", "rewards")
        return reproduce(**given | {name: given[name] or None for name in several})


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a model, or one with the weights that a run saved, on fixed prompts and fixed noise.

    examples:
      sdpo-bench evaluate                                       # the embedded model as it is
      sdpo-bench evaluate --weights runs/train/raw/RUN/adapter  # after training
      sdpo-bench evaluate --model stabilityai/sd-turbo --rewards jpeg_compressibility --eval-steps 1 4
    """

    model: str = "embedded"
    """A diffusers pipeline's folder, a hub id, or "embedded"."""
    revision: str | None = None
    """The commit of a hub model."""
    adapter: str | None = None
    """A frozen LoRA that the model had when it was trained: a folder, a file, or OWNER/NAME[/FILE][@REVISION]."""
    resolution: int | None = None
    """Height and width of pictures, in pixels; default: the model's own."""
    sampler: Literal["auto", "ddim", "euler_ancestral", "lcm", "flow_sde"] = "auto"
    """auto: ddim for Stable Diffusion kinds, flow_sde for flow-matching ones."""
    guidance: float = 1.0
    """Classifier-free guidance; 1 is none."""
    eta: float = 1.0
    """DDIM's noise level; 0 is the deterministic sampler."""
    noise_level: float = 0.7
    """flow_sde's noise level; 0 is the deterministic sampler."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the weights."""
    vae_slicing: bool = False
    """Decode pictures one by one: less memory."""
    weights: Path | None = None
    """A run's `adapter` or `model` folder."""
    lora_rank: int | None = None
    """Refuse an adapter in --weights of another rank; the rank itself is read from the file."""
    lora_alpha: float | None = None
    """Refuse an adapter in --weights of another alpha; read from the file too."""
    rewards: tuple[str, ...] = ("alignment", "alignment_heldout")
    """Rewards to report; `sdpo-bench train --help` lists them."""
    reward_dtype: Literal["float32", "float16"] = "float32"
    """Precision of the networks of rewards with published weights."""
    reward_batch: int = 32
    """Most pictures in one forward pass of these networks."""
    eval_steps: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of sampling steps."""
    eval_noises: int = 4
    """Fixed initial noises for each prompt."""
    eval_seed: int = 0
    """Which set of fixed noises."""
    prompts: str | None = None
    """A file with prompts, one a line; default: 30 of the 45 animals of DDPO, and 5 unseen."""
    unseen_prompts: str | None = None
    """A file with more prompts, reported apart."""
    rows: int = 64
    """Most latents in one forward pass: lower it where memory is short."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    out: Path | None = None
    """Also write every value, as JSON, to this file."""

    def __call__(self) -> int:
        if not self.rewards:
            raise UserError("--rewards is empty; expected at least one reward")
        if self.out is not None and not self.out.absolute().parent.is_dir():
            raise UserError(f"--out {self.out}: the folder {self.out.absolute().parent} does not exist")
        from sdpo_bench.config import RunConfig
        from sdpo_bench.evaluation import evaluate_model
        from sdpo_bench.records import write_atomic

        quiet_libraries()
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        weights, rewards, out, rank, alpha = map(given.pop, ("weights", "rewards", "out", "lora_rank", "lora_alpha"))
        full = weights is not None and (weights / "model_index.json").is_file()
        config = RunConfig(
            **given, reward=rewards[0], eval_rewards=rewards, finetune="full" if full else "lora", epochs=0
        )
        rows = evaluate_model(config, weights, rank, alpha)
        echo(evaluation_table(rows))
        if out is not None:
            write_atomic(out, (json.dumps(rows, indent=1) + "\n").encode())
            echo(f"every value: {out}")
        return 0


@dataclass(frozen=True)
class Tables:
    """Make tables, figures and report anew from raw records; the same records give the same bytes.

    examples:
      sdpo-bench tables             # all in results/: profiles, the paper's curves, the kernels' benchmarks
      sdpo-bench tables runs/quick  # one
      sdpo-bench tables --check     # change nothing, list what would differ
      sdpo-bench tables results/full --pack  # before committing: evaluations take a third of the space
    """

    folders: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Profiles' folders, as results/quick, or devices', as results/kernels/DEVICE; default: all in results/."""
    check: bool = False
    """Write nothing; exit with code 1 where a committed file is not what the records give."""
    pack: bool = False
    """Compress the finished runs' eval.jsonl of the named folders to eval.jsonl.gz; both are read alike."""

    def __call__(self) -> int:
        from sdpo_bench.kernel_results import FAMILIES
        from sdpo_bench.records import pack
        from sdpo_bench.results import reference_results, shown, sources, write_all

        results = reference_results()
        present = [*results.glob("*"), *(path for family in FAMILIES for path in results.glob(f"{family}/*"))]
        folders = [*self.folders] or sorted(path for path in present if sources(path))
        if not folders:
            raise UserError(f"{shown(results)} has no profile's records; `sdpo-bench reproduce` makes some")
        for folder in folders:
            if not sources(folder):
                raise UserError(f"{folder} has no raw/ folder of records; give a profile's folder, as results/quick")
        if self.pack:
            if self.check or not self.folders:
                raise UserError("--pack changes records: name their folders, and leave out --check")
            for folder in folders:
                echo(f"{shown(folder)}: {pack(folder)} compressed")
        if self.check:
            return check_tables(folders)
        for folder in folders:
            write_all(folder)
            echo(f"{shown(folder)}: tables, figures and report written")
        return 0


@dataclass(frozen=True)
class Compare:
    """Compare two methods, models or commits: differences of the trained reward paired by seed, with 95 % intervals,
    and the probability that a run of the first beats one of the second. Reads records only.

    examples:
      sdpo-bench compare SDPO DDPO                                 # two rows of results/full
      sdpo-bench compare sdpo start --profile quick --results runs # before and after
      sdpo-bench compare "SDPO (exact)" SDPO --format markdown
      sdpo-bench compare runs/quick results/quick                  # your results and the committed ones: two commits
    """

    a: tyro.conf.Positional[str]
    """A label of the profile (as in its tables, or in lower case with hyphens), or a folder of results."""
    b: tyro.conf.Positional[str]
    """What is subtracted: another label, or another folder, whose rows of the same label are compared."""
    profile: str = "full"
    """Whose records, of two labels."""
    results: Path | None = None
    """Where the profiles' folders are; default: the committed results/."""
    format: Literal["text", "markdown", "csv"] = "text"
    """How it is printed."""

    def __call__(self) -> int:
        from sdpo_bench.compare import compare, rendered
        from sdpo_bench.provenance import repository

        results = self.results or (repository() or Path()) / "results"
        echo(rendered(compare(self.a, self.b, results / self.profile.replace("-", "_")), self.format))
        return 0


@dataclass(frozen=True)
class Doctor:
    """Check this installation: versions, device, embedded model, scorers, results; says what to do about problems.
    With --model: whether a run of it fits the device, before any weights are downloaded.

    examples:
      sdpo-bench doctor
      sdpo-bench doctor --model stabilityai/sd-turbo --method sdpo --dtype float16 --pairs 32 --rows 16
      sdpo-bench doctor --model path/to/folder --memory 80  # on a device with 80 GiB
    """

    model: str | None = None
    """A diffusers pipeline's folder, a hub id, or "embedded". The options below are those of train."""
    revision: str | None = None
    """The commit of a hub model."""
    method: str = "sdpo"
    """Methods differ in how many pictures of an epoch they have scored."""
    steps: int = 4
    """K, the number of denoising steps in training."""
    pairs: int = 32
    """Pairs of samples per epoch."""
    pairs_per_update: int = 16
    """Pairs whose gradients make an optimiser step."""
    rows: int = 64
    """Most latents in one forward pass; 0: as many as fit."""
    dense: Literal["anchored", "exact", "terminal", "linear", "queries2", "queries4", "adaptive"] = "anchored"
    """Which steps are scored."""
    finetune: Literal["lora", "full"] = "lora"
    """A LoRA, or all weights."""
    lora_rank: int = 4
    """Of the LoRA."""
    resolution: int | None = None
    """Height and width of pictures, in pixels; default: the model's own."""
    guidance: float = 1.0
    """Above 1 a latent takes two rows."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the frozen weights."""
    gradient_checkpointing: bool = False
    """Compute activations anew in the backward pass."""
    vae_slicing: bool = False
    """Decode pictures one by one."""
    offload_trajectories: bool = False
    """Keep an epoch's latents in the host's memory."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    rewards: tuple[str, ...] = ()
    """The rewards of the run: networks with published weights take memory too."""
    memory: float | None = None
    """GiB of a device that is not here, in place of this machine's."""

    def __call__(self) -> int:
        from sdpo_bench.doctor import examine, fits

        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        memory, rewards = given.pop("memory"), given.pop("rewards")
        if self.model is None:
            changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
            if changed:
                raise UserError(f"--{changed[0].replace('_', '-')} is about a model; name one with --model")
            return examine()
        if memory is not None and not memory > 0:
            raise UserError(f"--memory is {memory}; expected GiB, more than 0")
        from sdpo_bench.config import RunConfig

        quiet_libraries()
        return fits(RunConfig(**given, reward="jpeg_compressibility", eval_rewards=rewards), memory)


def quiet_libraries() -> None:
    """No bars for reading files that are here; those of downloads, huggingface_hub's own, stay."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def evaluation_table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over prompts and noises, a line per reward and split, a column per number of steps."""
    steps = list(dict.fromkeys(row["steps"] for row in rows))
    cells: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        for split, prompts in row["values"].items():
            values = [value for noises in prompts.values() for value in noises]
            cells.setdefault((row["reward"], split), {})[row["steps"]] = sum(values) / len(values)
    width = max(len("reward, prompts"), *(len(f"{reward}, {split}") for reward, split in cells))
    lines = [f"{'reward, prompts':<{width}}" + "".join(f"{f'{k} steps':>10}" for k in steps)]
    for (reward, split), means in cells.items():
        lines.append(f"{f'{reward}, {split}':<{width}}" + "".join(f"{means[k]:>10.4f}" for k in steps))
    return "\n".join(lines)


def check_tables(folders: Sequence[Path]) -> int:
    """Compares generated files byte by byte with what the records give now."""
    from sdpo_bench.generated import differences
    from sdpo_bench.results import files, shown

    wrong = [f"{shown(folder / name)}: {why}" for folder in folders
             for name, why in differences(folder, files(folder)).items()]  # fmt: skip
    echo("\n".join(wrong) if wrong else f"{len(folders)} folders: all files are what their records give")
    if wrong:
        print(
            "error: the files above differ; `sdpo-bench tables` writes them anew. (Pictures are the same to the byte "
            "only with the versions in constraints.txt.)",
            file=sys.stderr,
        )
    return 1 if wrong else 0


def train_command() -> type:
    """`sdpo-bench train`: RunConfig's fields, and where to write. Built on use, for RunConfig needs PyTorch."""
    from sdpo_bench.config import RunConfig
    from sdpo_bench.methods import METHODS
    from sdpo_bench.rewards import PRETRAINED, REWARDS

    def options(cls: type) -> str:
        found = [f"{f.name} {f.default}" for f in dataclasses.fields(cls)]
        return f" ({', '.join(found)})" if found else ""

    methods = "\n".join(f"  {name}: {cls.title}{options(cls)}" for name, cls in METHODS.items())

    @dataclass(frozen=True)
    class Train(RunConfig):
        out: Path = field(default=Path("runs/train"))
        """Where to write: the run gets a folder of its own in OUT/raw/."""
        resume: bool = False
        """Go on with the same run from its checkpoint, also with more epochs or other settings of execution."""
        tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
        """Also report to this dashboard, whose package must be installed; its files go to OUT/tracker/."""
        shard: bool = False
        """Share the weights of --finetune full out over the processes (FSDP)."""

        def __call__(self) -> int:
            config = RunConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(RunConfig)})
            return train(config, self.out, self.resume, self.tracker, self.shard)

    Train.__doc__ = f"""Train a model with one method on one reward.

examples:
  sdpo-bench train --method ddpo --learning-rate 3e-3 --no-train-last-step
  sdpo-bench train --method sdpo --options gamma 0.95 --reward jpeg_compressibility --steps 8
  sdpo-bench train --model stabilityai/sd-turbo --revision COMMIT --dtype float16 --rows 8 \\
      --reward jpeg_compressibility --eval-rewards jpeg_compressibility
  accelerate launch --num_processes 4 -m sdpo_bench train --method sdpo    # 4 GPUs, the same run: docs/scale.md

methods, with their options and defaults:
{methods}

rewards: {", ".join(REWARDS)}
rewards with published weights, which docs/rewards.md says how to get: {", ".join(PRETRAINED)}"""
    return Train


def train(config: Any, out: Path, resume: bool, tracker: str = "none", shard: bool = False) -> int:
    """One run, with a progress bar; says what it made. Of several processes the first one does."""
    from tqdm import tqdm

    from sdpo_bench.distributed import join
    from sdpo_bench.records import find_run, load_run
    from sdpo_bench.reproduce import beginning, speed
    from sdpo_bench.results import shown
    from sdpo_bench.tracking import Tracker
    from sdpo_bench.trainer import train as run

    quiet_libraries()
    row = config.to_json()
    folder = find_run(out / "raw", row)
    if resume and not (folder / "config.json").exists():
        refuse_other_settings(out / "raw", row)
    world = join(config.device, shard)
    followed = None
    if tracker != "none":
        followed = Tracker(tracker, out / "tracker", folder.name, config.to_json(), config.device == "cpu")
    terminal, begun = sys.stderr.isatty() and world.first, False
    with tqdm(total=config.epochs, desc=config.label, unit="epoch", disable=not terminal) as bar:

        def on_epoch(event: dict[str, Any]) -> None:
            nonlocal begun
            if event["phase"] == "begin":
                begun = True
                bar.write(f"{config.label}: {beginning(event)}", file=sys.stderr)
                bar.update(event["epoch"] - bar.n)
            if event["phase"] != "train":
                return
            bar.update(event["epoch"] - bar.n)
            bar.set_postfix(reward=f"{event['reward_mean']:.3f}")
            if not terminal and (event["epoch"] % 10 == 0 or event["epoch"] == config.epochs):
                text = f"{config.label}: epoch {event['epoch']}/{config.epochs}, reward {event['reward_mean']:.3f}"
                print(text, file=sys.stderr, flush=True)

        try:
            with watched(launched=world.size > 1):
                run(config, folder, resume=resume, on_epoch=on_epoch, world=world, tracker=followed, keep=True)
        except Interrupted as stop:
            bar.close()
            if world.first:
                again = f"stopped: {stop.said or 'what was saved stays'}. Go on with: {resuming(world.size)}"
                print(f"\n{again}", file=sys.stderr)
            return exit_code(stop)
    if not begun and world.first:
        print(f"{config.label}: finished before, all {config.epochs} epochs", file=sys.stderr)
    if followed is not None:
        followed.close()
    world.close()
    if not world.first:
        return 0
    record = load_run(folder)
    last = max(row["epoch"] for row in record.eval)
    echo(evaluation_table([row for row in record.eval if row["epoch"] == last]))
    echo(f"\n{speed(out, {folder.name})}\n\nrecords: {shown(folder)}")
    weights = folder / ("adapter" if config.finetune == "lora" else "model")
    if weights.is_dir():
        how = "pipeline.load_lora_weights" if config.finetune == "lora" else "StableDiffusionPipeline.from_pretrained"
        echo(f'weights: {how}("{shown(weights)}")')
    elif config.epochs:
        print(
            f"warning: {shown(weights)} was deleted, and no checkpoint is left to make it from: to have the weights, "
            f"delete {shown(folder)} and train the run again",
            file=sys.stderr,
        )
    return 0


def refuse_other_settings(raw: Path, row: dict[str, Any]) -> None:
    """UserError where --resume finds no run with these settings, but one with the same label, reward, K and seed: the
    other settings are probably a slip, and to begin at epoch 1 is not what was asked for."""
    from sdpo_bench.records import nearest_run
    from sdpo_bench.results import shown

    if (nearest := nearest_run(raw, row)) is not None:
        folder, found = nearest
        finished = (folder / "done.json").exists() and all(text.startswith("epochs ") for text in found)
        why = ", and it is finished: there is no checkpoint to go on from" if finished else ""
        raise UserError(
            f"--resume: {shown(folder)} has the same label, reward, K and seed, but other settings: "
            f"{', '.join(found)}{why}; give its settings, or for another run another --label, or no --resume"
        )


def resuming(processes: int) -> str:
    """The command that goes on with a run of `train`."""
    if processes > 1:
        return "the same command with --resume"
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["sdpo-bench", *arguments, "--resume"])


NOT_WRITABLE = (
    errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG
)  # fmt: skip
COMMANDS: dict[str, Callable[[], type]] = {
    "reproduce": lambda: Reproduce,
    "train": train_command,
    "evaluate": lambda: Evaluate,
    "tables": lambda: Tables,
    "compare": lambda: Compare,
    "doctor": lambda: Doctor,
}
OVERVIEW = """usage: sdpo-bench COMMAND [OPTIONS]

A benchmark of reinforcement learning on few-step diffusion models.

  reproduce  run a profile of the benchmark and print its tables (start here)
  train      train a model with one method on one reward
  evaluate   evaluate a model, or the weights that a run saved
  tables     make tables, figures and report anew from raw records
  compare    compare two methods, models or commits
  doctor     check this installation

`sdpo-bench COMMAND --help` lists a command's options, with examples."""


def parse(cls: type, arguments: Sequence[str], prog: str) -> Any:
    """The command from its arguments. What tyro has to say about bad ones is brought into one line."""
    boxed = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxed):
            return tyro.cli(cls, args=list(arguments), prog=prog)
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(f"{unboxed(boxed.getvalue())}; see `{prog} --help`") from None


def unboxed(text: str) -> str:
    """The message of a box that tyro draws, without its frame, its copy of the help and its line breaks."""
    # The title is in the frame's first line; where the terminal has no such characters, above a line of dashes.
    lines = [line.strip(" │") for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    sections = [" ".join(section.split()) for section in re.split("[─-]{20,}", "\n".join(lines))]
    message, *more = sections if "╭" in text else sections[1:]
    for prefix, words in (("Perhaps you meant: ", "perhaps you meant"), ("Argument helptext: ", "expected")):
        if more and more[0].startswith(prefix):
            option = re.match(r"--\S+( ([A-Z]{3,}|\{\S+|\[[^a-z]+\]))?", more[0].removeprefix(prefix))
            message = f"{message.rstrip('.')}; {words} {option[0] if option else ''}"
    return message.rstrip(".")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 where something failed, 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # What concerns a user comes as an exception too, and then in one line; set before the libraries are imported, for
    # workers too.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "critical")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(OVERVIEW)
        return 0 if arguments else 2
    try:
        name, *rest = arguments
        if name == "--version":
            from importlib.metadata import version

            print(version("sdpo-bench"))
            return 0
        if name not in COMMANDS:
            raise UserError(f"unknown command {name!r}; choose one of: {', '.join(COMMANDS)}")
        code: int = parse(COMMANDS[name](), rest, f"sdpo-bench {name}")()
        return code
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt as stop:
        said = stop.said if isinstance(stop, Interrupted) else ""
        print("\nstopped" + f": {said}" * bool(said), file=sys.stderr)
        return exit_code(stop)
    except BrokenPipeError:  # a reader such as `head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from sdpo_bench.distributed import OtherFailed
        from sdpo_bench.records import RecordError, RunLocked

        if isinstance(error, OtherFailed):
            return 2
        if is_full_disk(error):
            message = f"the disk is full ({error}): free space and go on with --resume"
        elif isinstance(error, OSError) and error.errno in NOT_WRITABLE:
            message = f"{error.strerror}: {error.filename or 'while writing'}"
        elif isinstance(error, RecordError | RunLocked):
            message = str(error)
        else:
            raise
    echo("error: " + " ".join(message.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
