"""The configuration of a run: one flat frozen dataclass, every default with its source beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sdpo_bench.errors import UserError, choose
from sdpo_bench.methods import METHODS, build_method
from sdpo_bench.prompts import ALL, splits
from sdpo_bench.records.files import slug
from sdpo_bench.records.identity import FILES
from sdpo_bench.records.schema import is_line
from sdpo_bench.rewards import canonical

SCHEMA = 1
EMBEDDED = "embedded"
DENSE = ("anchored", "exact", "terminal", "linear", "queries2", "queries4", "adaptive")
SAMPLERS = ("auto", "ddim", "euler_ancestral", "flow_sde", "lcm")
LATER = (
    "adapter", "channels_last", "compile", "dtype", "eval_last_rewards", "eval_last_steps",
    "eval_interim_noises", "gradient_checkpointing", "group_size", "guidance", "noise_level", "offload_trajectories",
    "probe_every", "prompt_stats_buffer", "prompt_stats_min_count", "resolution",
    "reward_batch", "reward_dtype", "sampler", "step_shuffle", "vae_slicing",
)  # fmt: skip
"""Fields that came after the first results: config.json leaves them out at their defaults, so that run ids stay."""

LONGEST_NAME = 100  # letters of a label or a reward: names of folders and of tables have both, and at most 255
MOST_SEED = 2**64 - 1  # the generators' seeds have 64 bits


@dataclass(frozen=True)
class RunConfig:
    """One training run. Sources: [official] the authors' settings for SD-Turbo (arXiv 2411.11727, its repository);
    [quick] measured on the embedded model, see docs/testbed.md."""

    method: str = "sdpo"
    """What is trained: see `sdpo-bench train --help` for the methods."""
    options: dict[str, float] = field(default_factory=dict)
    """The method's own options, as name value pairs, where they differ from its defaults."""
    reward: str = "alignment"
    """The reward that is optimised: a name, or a sum such as 0.5*pickscore+0.5*aesthetic (docs/rewards.md)."""
    reward_dtype: Literal["float32", "float16"] = "float32"
    """Precision of the networks of rewards with published weights. [official: float32]"""
    reward_batch: int = 32
    """Most pictures in one forward pass of these networks; less memory with fewer. [load_reward's default]"""
    model: str = EMBEDDED
    """A diffusers pipeline's folder, a hub id such as stabilityai/sd-turbo, or "embedded"; docs/models.md lists the
    kinds."""
    revision: str | None = None
    """The commit of a hub model, for reproducible runs."""
    adapter: str | None = None
    """A LoRA that is added to the model before any training and stays frozen, such as LCM-LoRA: a folder, a file, or
    OWNER/NAME[/FILE][@REVISION] on the hub."""
    resolution: int | None = None
    """Height and width of pictures, in pixels; default: the model's own."""
    sampler: Literal["auto", "ddim", "euler_ancestral", "lcm", "flow_sde"] = "auto"
    """auto: ddim for Stable Diffusion kinds [official], flow_sde for flow-matching ones."""
    guidance: float = 1.0
    """Classifier-free guidance, with the empty prompt; 1 is none [official]. A model that takes guidance as an input
    gets it as one."""
    steps: int = 4
    """K, the number of denoising steps in training. [SD-Turbo is made for 1 to 4.]"""
    epochs: int = 50
    """Rounds of sampling and training. [official: about 115 at SD-Turbo's size]"""
    pairs: int = 32
    """Pairs (groups) of samples per epoch. [official: 128 over 4 GPUs, 32 on each]"""
    pairs_per_update: int = 16
    """Pairs whose gradients make an optimiser step. [official: batch 2 x accumulation 8]"""
    group_size: int | None = None
    """Samples of a prompt that share their initial noise; default: the method's own, 2 (a pair) but for grpo's 8."""
    updates: Literal["auto", "step", "trajectory"] = "auto"
    """An optimiser step for each denoising step of a batch of pairs (SDPO's way) or for its whole
    trajectories (DDPO's way); auto takes the method's own."""
    dense: Literal["anchored", "exact", "terminal", "linear", "queries2", "queries4", "adaptive"] = "anchored"
    """Rewards of methods that take one at every step: averaged from three queries (the paper's), queried at every step,
    the final one everywhere (the sparse ablation), from the same three interpolated linearly in time, or averaged from
    two, four, or as many queries as a sample needs. Other methods always take the final reward."""
    step_shuffle: bool = True
    """Each pair trains its steps in an order of its own [official], or all from the noisiest to the last."""
    train_last_step: bool = True
    """Train the last step, as the official code does. Its noise comes after the picture that is scored."""
    finetune: Literal["lora", "full"] = "lora"
    """LoRA on the UNet's attention [official], or all of its weights, as the profiles of the embedded model do."""
    lora_rank: int = 4
    """[official: 4]"""
    lora_alpha: int = 4
    """[official: 4]"""
    learning_rate: float = 1e-4
    """AdamW's. [official: 1e-4 for the Aesthetic reward]"""
    weight_decay: float = 1e-4
    """[official: 1e-4]"""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm. [official: 1.0]"""
    clip_range: float | None = None
    """Of the log-ratio of a step, in means over latent dimensions; default 1e-4 at 16,384 dimensions [official],
    scaled with one over the square root of the number of dimensions."""
    advantage_clip: float = 5.0
    """[official: 5]"""
    prompt_stats_buffer: int = 32
    """Recent samples of each prompt whose returns its advantages are normalised by. [official: 32]"""
    prompt_stats_min_count: int = 16
    """A prompt with fewer recent samples takes the statistics of the epoch's whole batch. [official: 16]"""
    eta: float = 1.0
    """DDIM's noise level. [official: 1]"""
    noise_level: float = 0.7
    """flow_sde's noise level, a. [arXiv 2505.05470, appendix B.3]"""
    seed: int = 0
    """Seed of the run; every sample has its own, derived from it."""
    eval_every: int = 10
    """Epochs between evaluations; the last epoch is always evaluated."""
    eval_start: bool = True
    """Evaluate before training too. Profiles leave it to one run without epochs, the row "start"."""
    eval_steps: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of sampling steps at which the model is evaluated. [official: 1 2 4 8 16 50]"""
    eval_last_steps: tuple[int, ...] = ()
    """More numbers of sampling steps, evaluated after the last epoch only: many steps take long."""
    eval_noises: int = 4
    """Fixed initial noises for each evaluation prompt, the same for every run."""
    eval_interim_noises: int | None = None
    """Of these noises, evaluations before the last take only so many; default: all."""
    eval_seed: int = 0
    """Which set of fixed noises. Tuning runs use another one than reported runs."""
    eval_rewards: tuple[str, ...] = ("alignment", "alignment_heldout")
    """Rewards that the evaluation reports beside the one that is optimised."""
    eval_last_rewards: tuple[str, ...] = ()
    """More of them, for the evaluation after the last epoch only."""
    eval_splits: tuple[str, ...] = ("seen", "unseen")
    """Prompt lists that are evaluated: seen, unseen, tuning (for choosing settings, never reported)."""
    train_split: Literal["seen", "tuning"] = "seen"
    """The prompt list that is trained on; tuning runs have one of their own."""
    prompts: str | None = None
    """A file with training prompts, one a line; default: 30 of the 45 animals of DDPO; "animals": all of them, as
    the paper."""
    unseen_prompts: str | None = None
    """A file with prompts that are evaluated but not trained on."""
    checkpoint_every: int = 10
    """Epochs between checkpoints."""
    probe_every: int = 0
    """Epochs between comparisons of the predicted dense rewards with exact ones, on fresh samples that are not trained
    on (docs/records.md, dense.jsonl); 0: none."""
    rows: int = 64
    """Most latents in one forward pass: lower it where memory is short. 0: as many as a GPU's memory allows, found by
    trying; on a CPU 64."""
    pad_rows: int = 16
    """A forward pass has at least this many rows (repeated, then dropped): below it CPU libraries choose other
    kernels, and a sample's result would depend on the batch it is in."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the frozen weights; a LoRA is float32 always, latents float16 or float32."""
    gradient_checkpointing: bool = False
    """Compute the denoiser's activations anew in the backward pass: less memory, a forward pass more."""
    vae_slicing: bool = False
    """Decode pictures one by one: less memory."""
    offload_trajectories: bool = False
    """Keep an epoch's latents in the host's memory, not the device's."""
    compile: bool = False
    """torch.compile the denoiser."""
    channels_last: bool = False
    """Convolutions in the channels-last layout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    label: str = ""
    """The row's name in tables; default: the method's title."""

    def __post_init__(self) -> None:
        choose("method", self.method, METHODS)
        build_method(self.method, self.options)
        object.__setattr__(self, "reward", canonical(self.reward, optimised=True))
        for name in ("eval_rewards", "eval_last_rewards"):
            object.__setattr__(self, name, tuple(dict.fromkeys(map(canonical, getattr(self, name)))))
        choose("reward precision", self.reward_dtype, ("float32", "float16"))
        choose("dense reward", self.dense, DENSE)
        choose("updates", self.updates, ("auto", "step", "trajectory"))
        choose("finetune", self.finetune, ("lora", "full"))
        choose("sampler", self.sampler, SAMPLERS)
        choose("dtype", self.dtype, ("float32", "float16", "bfloat16"))
        choose("train split", self.train_split, ("seen", "tuning"))
        for split in self.eval_splits:
            choose("evaluation split", split, ("seen", "unseen", "tuning"))
        sizes = ("pairs", "pairs_per_update", "eval_every", "eval_noises", "pad_rows", "lora_rank", "reward_batch")
        for name in (*sizes, "prompt_stats_buffer", "prompt_stats_min_count"):
            if getattr(self, name) < 1:
                raise UserError(f"{flag(name)} is {getattr(self, name)}; expected at least 1")
        for name, most in (("prompt_stats_min_count", "prompt_stats_buffer"), ("eval_interim_noises", "eval_noises")):
            if not 1 <= (1 if getattr(self, name) is None else getattr(self, name)) <= getattr(self, most):
                raise UserError(f"{flag(name)} is {getattr(self, name)}; expected 1 to {flag(most)} "
                                f"({getattr(self, most)})")  # fmt: skip
        for name in ("epochs", "checkpoint_every", "probe_every", "rows", "seed", "eval_seed", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{flag(name)} is {getattr(self, name)}; expected 0 or more")
        for name in ("learning_rate", "max_grad_norm", "advantage_clip", "clip_range", "lora_alpha", "resolution"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UserError(f"{flag(name)} is {value}; expected a number > 0")
        if not 0 <= self.eta <= 1:
            raise UserError(f"--eta is {self.eta}; expected 0 (DDIM) to 1 (DDPM)")
        if not 0 <= self.noise_level < math.inf:
            raise UserError(f"--noise-level is {self.noise_level}; expected 0 (no noise) or more")
        if not 1 <= self.guidance < math.inf:
            raise UserError(f"--guidance is {self.guidance}; expected 1 (none) or more")
        for name in ("seed", "eval_seed"):
            if getattr(self, name) > MOST_SEED:
                raise UserError(f"{flag(name)} is {getattr(self, name)}; expected 0 to 2^64 - 1 ({MOST_SEED})")
        for name in ("label", "reward"):
            if len(slug(getattr(self, name))) > LONGEST_NAME:
                raise UserError(f"{flag(name)} has {len(slug(getattr(self, name)))} letters; expected at most "
                                f"{LONGEST_NAME}, for folders and tables are named after it")  # fmt: skip
        self._check_group()
        if self.finetune == "full" and self.dtype != "float32":
            raise UserError(f"--finetune full trains the weights themselves, which {self.dtype} is too coarse for; "
                            f"use --dtype float32, or --finetune lora")  # fmt: skip
        if self.epochs and self.label == "start":
            raise UserError("--label start is the untrained model's; choose another")
        if self.label and not is_line(self.label):
            raise UserError(f"--label is {self.label!r}; expected a line of text, without control characters")
        if self.steps < 2:
            raise UserError(
                f"--steps is {self.steps}; expected at least 2: the samples of a pair share their initial noise, so "
                f"after one step both show the same picture and no reward difference is left to learn from"
            )
        if not self.eval_steps or min(self.eval_steps) < 1:
            raise UserError(f"--eval-steps is {self.eval_steps}; expected numbers of sampling steps, each at least 1")
        if self.eval_last_steps and (min(self.eval_last_steps) < 1 or {*self.eval_steps} & {*self.eval_last_steps}):
            raise UserError(
                f"--eval-last-steps is {self.eval_last_steps}; expected numbers of sampling steps, each at least 1, "
                f"that --eval-steps lacks"
            )
        if self.pairs % self.pairs_per_update:
            raise UserError(
                f"--pairs is {self.pairs}; expected a multiple of --pairs-per-update ({self.pairs_per_update})"
            )
        if not self.label:
            object.__setattr__(self, "label", METHODS[self.method].title if self.epochs else "start")

    def _check_group(self) -> None:
        method, size = METHODS[self.method], self.samples_per_group
        if size < 2:
            raise UserError(f"--group-size is {size}; expected at least 2: the samples of a prompt are compared")
        if method.pairwise and size != 2:
            raise UserError(f"--group-size is {size}; {method.title} learns from pairs, so expected 2")
        if method.normalizer == "group" and size < 4:
            raise UserError(
                f"--group-size is {size}; {method.title} takes advantages by the statistics of a group, and of two "
                f"samples one would always have 1 and the other -1; expected at least 4"
            )

    @property
    def samples_per_group(self) -> int:
        """G, the samples of a prompt that share their initial noise."""
        return METHODS[self.method].group_size if self.group_size is None else self.group_size

    def to_json(self) -> dict[str, Any]:
        """The configuration as config.json holds it: with schema, the method's options resolved, and of files and
        folders their names, for a run is the same wherever they lie."""
        row = {"schema": SCHEMA} | dataclasses.asdict(self)
        row |= {name: file_name(row[name]) for name in FILES}
        options = dataclasses.asdict(build_method(row.pop("method"), row.pop("options")))
        row["method"] = {"name": self.method} | options if self.epochs else {"name": "start"}
        row["updates"] = self.resolved_updates
        row["group_size"] = None if self.samples_per_group == 2 else self.samples_per_group  # of earlier runs it was 2
        given = [split for split, path in (("seen", self.prompts), ("unseen", self.unseen_prompts)) if path]
        if given:  # a changed file makes another run
            lists = [self.prompt_lists[split] for split in given]
            row["prompts_sha256"] = [hashlib.sha256("\n".join(prompts).encode()).hexdigest() for prompts in lists]
        default = {f.name: f.default for f in dataclasses.fields(RunConfig)}
        return {
            k: list(v) if isinstance(v, tuple) else v
            for k, v in row.items()
            if k != "device" and not (k in LATER and v == default[k])
        }

    @cached_property
    def prompt_lists(self) -> dict[str, list[str]]:
        """`splits` of the run's prompts. Their files are read once: what is changed in them later is not this run's."""
        return splits(self.prompts, self.unseen_prompts)

    @property
    def resolved_updates(self) -> str:
        return METHODS[self.method].updates if self.updates == "auto" else self.updates

    @property
    def trained_steps(self) -> int:
        """How many of the K steps are trained: all, or all but the last."""
        return self.steps if self.train_last_step else self.steps - 1


def file_name(path: str | None) -> str | None:
    """The name of a file or folder; a hub id, "embedded" and "animals" are names as they are."""
    if path is None or path in (EMBEDDED, ALL):
        return path
    local = path.startswith((".", "~", "/")) or Path(path).exists()
    return os.path.basename(os.path.abspath(os.path.expanduser(path))) if local else path


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    return "--" + name.replace("_", "-")
