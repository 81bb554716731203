"""Estimates the time and disk space of runs: measured seconds on a CPU, counted operations on a GPU."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_bench.config import EMBEDDED, RunConfig, file_name
from sdpo_bench.dense_rewards import most_queries
from sdpo_bench.errors import UserError
from sdpo_bench.experiments.profiles import config_from_json
from sdpo_bench.methods import build_method
from sdpo_bench.records.files import RecordError
from sdpo_bench.records.reader import packed_only
from sdpo_bench.rewards import need_start
from sdpo_bench.training.epoch_plan import trained_steps


@dataclass(frozen=True)
class Cost:
    """Seconds of one unit of each kind of work, on one core. `source` says where they come from."""

    sample: float = 1.2e-3  # a denoising step of a picture
    reward: float = 2.0e-3  # a reward query: decoding and scoring
    train: float = 2.5e-3  # a trained step of a picture, forward and backward
    evaluate: float = 1.2e-3  # a denoising step of an evaluated picture, its share of decoding and scoring included
    startup: float = 3.0  # of a run
    source: str = "constants of one core of a 2025 server CPU (no committed records to learn from)"

    def seconds(self, config: RunConfig, processes: int = 1) -> float:
        """Expected duration of a run, if several processes are so many times as fast as one."""
        units = work(config)
        return self.startup + sum(getattr(self, kind) * amount for kind, amount in units.items()) / processes


@dataclass(frozen=True)
class GPUCost:
    """Time on a GPU from the arithmetic of SD-Turbo's networks, counted at 512 x 512 pixels. The reward networks take
    less than a hundredth of it and are left out."""

    forward: float = 0.804  # TFLOP: the UNet, for a latent
    backward: float = 0.973  # TFLOP: its gradient, to a LoRA
    decode: float = 2.515  # TFLOP: the VAE, to a picture
    peak: float = 989.0  # TFLOP/s: an H100 SXM in half precision, dense (NVIDIA's data sheet)
    utilisation: float = 0.4  # assumed: what the training step aims at
    startup: float = 60.0  # seconds: loading the pipeline and four reward networks

    def __post_init__(self) -> None:
        if not 0 < self.utilisation <= 1:
            raise UserError(f"--utilisation is {self.utilisation}; expected more than 0, at most 1")
        if not 0 < self.peak < math.inf:
            raise UserError(f"--peak-tflops is {self.peak}; expected a number > 0")

    @property
    def source(self) -> str:
        return (
            f"counted operations at an assumed {self.utilisation:.0%} of {self.peak:g} TFLOP/s; --utilisation and "
            f"--peak-tflops change that, finished runs replace it by their seconds"
        )

    def seconds(self, config: RunConfig, processes: int = 1) -> float:
        """Expected duration of a run, if several processes, each on a GPU, are so many times as fast as one."""
        rows, images = passes(config), sum(sampled_images(config))
        train = rows["train"] * (self.forward + self.backward)
        evaluate = images * (sum(config.eval_steps) * self.forward + len(config.eval_steps) * self.decode)
        decode = work(config)["reward"] * self.decode
        tflop = (rows["sample"] + rows["log_prob"]) * self.forward + train + decode + evaluate
        return self.startup + tflop / (self.peak * self.utilisation * processes)


def passes(config: RunConfig) -> dict[str, int]:
    """Forward passes of the UNet on single latents in a run's training: for sampling, for log-probs without a gradient
    (of the reference and of old weights; for losses over whole trajectories), and for training. A group that shares its
    initial noise shares its first step."""
    method = build_method(config.method, config.options)
    samples = config.pairs * config.epochs * config.samples_per_group
    repeated = (samples - config.pairs * config.epochs) * config.shares_noise  # first steps that are another sample's
    trained = samples * config.steps_each
    if method.learns_from in ("step", "trajectory"):
        trained -= round(repeated * trained_first_steps(config))
    if method.learns_from == "reward":
        trained = 0
    without = {"noised": method.old_output, "trajectory": True}.get(method.learns_from, False)
    term = method.reward_gradient(config.steps)
    inner = config.inner_epochs
    return {
        "sample": samples * config.steps - repeated,
        "log_prob": trained * (method.reference + inner * (method.reference_output + without)),
        "train": inner * (trained + (samples * (term.noisings or term.last_steps) if term is not None else 0)),
    }


def trained_first_steps(config: RunConfig) -> float:
    """How often a sample's first step is trained, a mean over the epochs."""
    drawn = config.steps_each / (config.train_window or config.trained_steps)
    first = [trained_steps(config, epoch)[0] == 0 for epoch in range(1, config.epochs + 1)]
    return drawn * sum(first) / max(len(first), 1)


def evaluated_images(config: RunConfig) -> int:
    """Images that all evaluations of a run draw at one number of sampling steps."""
    before = (config.eval_start or not config.epochs) + math.ceil(config.epochs / config.eval_every) - 1
    return images_each(config) + before * images_each(config) * interim_noises(config) // config.eval_noises


def sampled_images(config: RunConfig) -> tuple[int, int]:
    """Pictures that the evaluations before the last and the last one sample at one number of sampling steps: those that
    they evaluate, and the pretrained model's where a reward compares with them."""
    last = images_each(config)
    before = evaluated_images(config) - last
    always = need_start((config.reward, *config.eval_rewards))
    return before * (1 + always), last * (1 + (always or need_start(config.eval_last_rewards)))


def images_each(config: RunConfig) -> int:
    """Images of one evaluation at one number of sampling steps."""
    lists = config.prompt_lists
    return config.eval_noises * sum(len(lists[split]) for split in config.eval_splits)


def interim_noises(config: RunConfig) -> int:
    """Initial noises per prompt in an evaluation before the last."""
    return config.eval_interim_noises or config.eval_noises


LORA_WEIGHTS = 207_488  # of SD-Turbo's UNet at rank 1, counted: 829,952 at rank 4
PIXELS = 512


def disk(config: RunConfig) -> dict[str, float]:
    """Bytes on disk of a LoRA run of SD-Turbo: the final files, and the checkpoint, twice while it is replaced."""
    weights = 4.0 * LORA_WEIGHTS * config.lora_rank * (config.epochs > 0)
    lists = config.prompt_lists
    prompts = [p for split in config.eval_splits for p in lists[split]]
    evaluations = evaluated_images(config) / (len(prompts) * config.eval_noises)
    rewards = len({config.reward, *config.eval_rewards})
    row = 200 + sum(5 + len(p) + 9 * config.eval_noises for p in prompts)
    columns = min(8, sum(map(len, lists.values())))
    return {
        "adapters": weights,
        "records": 4000 + 420 * config.epochs + evaluations * rewards * len(config.eval_steps) * row,
        "pictures": 3.0 * PIXELS**2 * columns * len(config.eval_steps),  # as if PNG could not compress them
        "checkpoints": 2 * (3 * weights + 32 * 9 * config.steps * len(lists[config.train_split])),
    }


def work(config: RunConfig) -> dict[str, float]:
    """The number of units of each kind of work in a run: see `Cost`. UserError for prompts that cannot be read."""
    method = build_method(config.method, config.options)
    pictures = config.samples_per_group * config.pairs * config.epochs
    queries = most_queries(config.query_plan, config.steps, config.samples_per_group, config.shares_noise)
    again = (method.reference or method.reference_output) + (method.learns_from == "noised" and method.old_output)
    term = method.reward_gradient(config.steps)
    through = 0 if term is None else term.noisings or term.last_steps
    before, last = sampled_images(config)
    return {
        "sample": pictures * config.steps * (1 + again),
        "reward": config.pairs * config.epochs * queries,
        "train": pictures
        * config.inner_epochs
        * ((config.steps_each if method.learns_from != "reward" else 0) + through),
        "evaluate": (before + last) * sum(config.eval_steps) + last * sum(config.eval_last_steps),
    }


def _parsed(paths: Iterable[Path]) -> list[Any]:
    return [json.loads(path.read_text()) for path in paths]


def _finished(profile: Path) -> Iterator[Callable[[], Iterable[Any]]]:
    """The contents of done.json, config.json and provenance.json of each finished run of a profile, in folders or
    packed."""
    with contextlib.suppress(RecordError):
        for run in packed_only(profile).values():
            yield functools.partial(list, (run.done, run.config, run.provenance))
    for done in sorted(profile.glob("raw/*/done.json")):
        paths = (done, done.parent / "config.json", done.parent / "provenance.json")
        yield functools.partial(_parsed, paths)


def calibrate(
    results: Iterable[Path], device: str = "cpu", model: str = EMBEDDED, otherwise: Cost | GPUCost | None = None
) -> Cost | GPUCost:
    """Costs from the finished runs of `model` on a kind of device in the given profile folders. If there are none,
    returns `otherwise`, by default the constants.

    Read without the checks of `records`: an estimate should not fail for a record that no table uses.
    """
    seconds = dict.fromkeys(("sample", "reward", "train", "evaluate"), 0.0)
    units = dict.fromkeys(seconds, 0.0)
    runs = 0
    for profile in results:
        for read in _finished(profile):
            try:
                done, settings, provenance = read()
                spent, config, found = done["seconds"], config_from_json(settings), provenance["device"]
                processes = provenance.get("processes", 1)
                amounts = work(config)
            except (OSError, ValueError, KeyError, TypeError, UserError):
                continue
            if not found.startswith(device) or config.model != file_name(model):
                continue
            runs += 1
            for kind, amount in amounts.items():
                seconds[kind] += spent.get(kind, 0.0) * processes
                units[kind] += amount
    known = {kind: seconds[kind] / units[kind] for kind in seconds if units[kind] and seconds[kind]}
    if len(known) < len(seconds):
        return otherwise or Cost()
    return Cost(**known, source=f"{runs} recorded runs")
