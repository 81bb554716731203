"""The configuration of a run: frozen dataclasses by subject, every default with its source beside it.

`RunConfig` has the fields of all groups at one level, as config.json and the command line have them; commands take the
groups that they need. PyTorch is imported where a configuration is checked, so that `--help` does not wait for it.

Sources: [official] the authors' settings for SD-Turbo (arXiv 2411.11727, its repository); [quick] measured on the
embedded model, see docs/testbed.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from sdpo_bench.catalogue import DENSE_REWARDS, SAMPLERS
from sdpo_bench.errors import UserError, choose
from sdpo_bench.prompts import ALL, splits
from sdpo_bench.records.files import slug
from sdpo_bench.records.identity import FILES
from sdpo_bench.records.schema import is_line

if TYPE_CHECKING:
    from sdpo_bench.methods import Method

    Dense = str
    Sampler = str
else:
    Dense = Literal[("auto", *(entry.name for entry in DENSE_REWARDS))]
    Sampler = Literal[tuple(SAMPLERS)]

C = TypeVar("C", bound="Group")

SCHEMA = 1
EMBEDDED = "embedded"
LATER = (
    "adapter",
    "channels_last",
    "compile",
    "dtype",
    "eval_last_rewards",
    "eval_last_steps",
    "eval_interim_noises",
    "gradient_checkpointing",
    "group_size",
    "guidance",
    "inner_epochs",
    "noise_level",
    "offload_trajectories",
    "probe_every",
    "prompt_stats_buffer",
    "prompt_stats_min_count",
    "resolution",
    "reward_batch",
    "reward_dtype",
    "sampler",
    "shared_noise",
    "step_shuffle",
    "train_share",
    "train_window",
    "train_window_epochs",
    "vae_slicing",
)
"""Fields that came after the first results: config.json leaves them out at their defaults, so that run ids stay."""

NOISE_LEVELS = {"flow_sde": 0.7, "flow_cps": 0.8, "dance_sde": 0.3, "tcd": 0.3}
"""--noise-level where it is not given, of the samplers that have one. [flow_sde: arXiv 2505.05470, appendix B.3;
flow_cps: the README of github.com/yifan123/flow_grpo, for every model and number of steps; dance_sde:
github.com/XueZeyue/DanceGRPO, finetune_flux_grpo.sh; tcd: diffusers' TCDScheduler]"""

LONGEST_NAME = 100  # letters of a label or a reward: names of folders and of tables have both, and at most 255
MOST_SEED = 2**64 - 1  # the generators' seeds have 64 bits
SPLITS = ("seen", "unseen", "tuning")


def ranged(default: Any, expected: str, valid: Callable[[Any], bool]) -> Any:
    """A field with its default, its valid values in words, and a test of them. A default of None is valid too."""
    return field(default=default, metadata={"expected": expected, "valid": valid})


def at_least(least: int, default: float | None) -> Any:
    return ranged(default, f"{least} or more" if least == 0 else f"at least {least}", lambda x: least <= x < math.inf)


def positive(default: float | None) -> Any:
    return ranged(default, "a number > 0", lambda value: value > 0 and math.isfinite(value))


def seed_of(default: int) -> Any:
    return ranged(default, f"0 to 2^64 - 1 ({MOST_SEED})", lambda value: 0 <= value <= MOST_SEED)


def step_counts(default: tuple[int, ...]) -> Any:
    return ranged(default, "numbers of sampling steps, each at least 1", lambda value: min(value, default=1) >= 1)


@dataclass(frozen=True)
class Group:
    """Fields of one subject."""

    def check(self) -> None:
        """UserError where fields of the group do not fit each other."""


@cache
def choices(group: type) -> dict[str, tuple[Any, ...]]:
    """The fields of a group that take one of several values, and these."""
    hints = get_type_hints(group)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


def check_fields(config: Any, group: type) -> None:
    """UserError where a field of `group` has a value that it can't have."""
    for name, valid in choices(group).items():
        choose(name.replace("_", " "), getattr(config, name), valid)
    for f in dataclasses.fields(group):
        value = getattr(config, f.name)
        if "valid" in f.metadata and not (value is None and f.default is None) and not f.metadata["valid"](value):
            raise UserError(f"{flag(f.name)} is {value}; expected {f.metadata['expected']}")


def flat(command: Any) -> dict[str, Any]:
    """The fields of a command and of its groups, at one level."""
    given: dict[str, Any] = {}
    for f in dataclasses.fields(command):
        value = getattr(command, f.name)
        given |= flat(value) if isinstance(value, Group) else {f.name: value}
    return given


def filled(command: C, values: Mapping[str, Any]) -> C:
    """A command with these values in its fields and in those of its groups: the inverse of `flat`."""
    changes = {}
    for f in dataclasses.fields(command):
        value = getattr(command, f.name)
        changes[f.name] = filled(value, values) if isinstance(value, Group) else values.get(f.name, value)
    return dataclasses.replace(command, **changes)


@dataclass(frozen=True)
class RunSettings(Group):
    """The method, the model, the reward, and the length of the training."""

    method: str = "sdpo"
    """The method of training: see `sdpo-bench train --help` for the methods."""
    options: dict[str, float] = field(default_factory=dict)
    """The method's own options, as name value pairs, where they differ from its defaults."""
    reward: str = "alignment"
    """The reward that is optimised: a name, or a sum such as 0.5*pickscore+0.5*aesthetic (docs/rewards.md)."""
    epochs: int = at_least(0, 50)
    """Rounds of sampling and training. [official: 100 for the Aesthetic reward, 114 in the figure] `train` of the
    embedded model takes the study's: 25 with --steps 4, fewer with more."""
    seed: int = seed_of(0)
    """Seed of the run; every sample has its own, derived from it."""
    label: str = ""
    """The row's name in tables; default: the method's title."""

    def check(self) -> None:
        from sdpo_bench.methods import build_method

        build_method(self.method, self.options)
        for name in ("label", "reward"):
            if len(slug(getattr(self, name))) > LONGEST_NAME:
                raise UserError(
                    f"{flag(name)} has {len(slug(getattr(self, name)))} letters; expected at most "
                    f"{LONGEST_NAME}, since folders and tables are named after it"
                )
        if self.epochs and self.label in ("start", "pretrained"):
            raise UserError(f"--label {self.label} is reserved for the pretrained model; choose another")
        if self.label and not is_line(self.label):
            raise UserError(f"--label is {self.label!r}; expected a line of text, without control characters")


@dataclass(frozen=True)
class ModelConfig(Group):
    """The model, as it is before training."""

    model: str = EMBEDDED
    """A diffusers pipeline's folder, a hub id such as stabilityai/sd-turbo, or "embedded"; docs/models.md lists the
    kinds."""
    revision: str | None = None
    """The commit of a hub model, for reproducible runs."""
    adapter: str | None = None
    """A LoRA that is added to the model before any training and stays frozen, such as LCM-LoRA: a folder, a file, or
    `OWNER/NAME[/FILE][@REVISION]` on the hub."""
    resolution: int | None = positive(None)
    """Height and width of pictures, in pixels; default: the model's own."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the frozen weights; a LoRA is float32 always, latents float16 or float32."""


@dataclass(frozen=True)
class SamplerConfig(Group):
    """How pictures are sampled, in training and in evaluations."""

    sampler: Sampler = "auto"
    """auto: ddim for Stable Diffusion kinds [official], flow_sde for flow-matching ones."""
    guidance: float = ranged(1.0, "1 (none) or more", lambda value: 1 <= value < math.inf)
    """Classifier-free guidance, with the empty prompt; 1 is none [official]. A model that takes guidance as an input
    gets it as one."""
    eta: float = ranged(1.0, "0 (DDIM) to 1 (DDPM)", lambda value: 0 <= value <= 1)
    """DDIM's noise level. [official: 1]"""
    noise_level: float | None = at_least(0, None)
    """Noise of flow_sde (a in its paper), flow_cps, dance_sde (eta) and tcd (gamma); flow_cps and tcd take 1 at most.
    default: their authors', 0.7, 0.8, 0.3 and 0.3."""


@dataclass(frozen=True)
class RolloutConfig(Group):
    """An epoch's samples and their rewards."""

    steps: int = at_least(1, 4)
    """K, the number of denoising steps in training. [SD-Turbo is made for 1 to 4.]"""
    pairs: int = at_least(1, 32)
    """Pairs (groups) of samples per epoch. [official: 128 over 4 GPUs, 32 on each]"""
    group_size: int | None = at_least(2, None)
    """Samples of a prompt in a group; default: the method's own, 2 (a pair) but for grpo's 8."""
    shared_noise: bool | None = None
    """Whether the samples of a group start from the same initial noise; default: the method's own, False for those that
    learn from finished samples and for draft. [official: shared]"""
    train_split: Literal["seen", "tuning"] = "seen"
    """The prompt list that is trained on; tuning runs have one of their own."""
    dense: Dense = "auto"
    """Rewards of methods that take one at every step: see `sdpo-bench train --help` for them. auto takes the method's
    own: anchored, or exact for ddpo_dense and dense_grpo. Other methods always take the final reward."""
    probe_every: int = at_least(0, 0)
    """Epochs between comparisons of the predicted dense rewards with exact ones, on fresh samples that are not trained
    on (docs/records.md, dense.jsonl); 0: none."""


@dataclass(frozen=True)
class OptimizerConfig(Group):
    """The trained weights and the optimiser."""

    finetune: Literal["lora", "full"] = "lora"
    """LoRA on the UNet's attention [official], or all of its weights, as the profiles of the embedded model do and
    `train` of it by default."""
    lora_rank: int = at_least(1, 4)
    """[official: 4]"""
    lora_alpha: int = positive(4)
    """[official: 4]"""
    learning_rate: float = positive(1e-4)
    """AdamW's. [official: 1e-4 for the Aesthetic reward] `train` of the embedded model takes the method's own, of the
    sweeps."""
    weight_decay: float = at_least(0, 1e-4)
    """[official: 1e-4]"""
    max_grad_norm: float = positive(1.0)
    """Gradients are clipped to this norm. [official: 1.0]"""
    clip_range: float | None = positive(None)
    """Clip range of a step's log-ratio, in means over latent dimensions; default 1e-4 at 16,384 dimensions [official]
    (GRPO-Guard: 4e-6), scaled with one over the square root of the number of dimensions."""
    advantage_clip: float = positive(5.0)
    """[official: 5]"""
    prompt_stats_buffer: int = at_least(1, 32)
    """Recent samples of each prompt whose returns its advantages are normalised by. [official: 32]"""
    prompt_stats_min_count: int = at_least(1, 16)
    """A prompt with fewer recent samples takes the statistics of the epoch's whole batch. [official: 16]"""
    pairs_per_update: int = at_least(1, 16)
    """Pairs whose gradients make an optimiser step. [official: batch 2 x accumulation 8]"""
    updates: Literal["auto", "step", "trajectory"] = "auto"
    """An optimiser step for each denoising step of a batch of pairs (SDPO's way) or for its whole
    trajectories (DDPO's way); auto takes the method's own."""
    inner_epochs: int = at_least(1, 1)
    """Passes over an epoch's samples: more of them make more optimiser steps of the same samples. [official: 1]"""
    step_shuffle: bool = True
    """Each pair trains its steps in an order of its own [official], or all from the noisiest to the last."""
    train_last_step: bool = True
    """Train the last step, as the official code does. Its noise comes after the picture that is scored, so `train` of
    the embedded model leaves it out by default, as the study does."""
    train_window: int | None = at_least(1, None)
    """Train only so many neighbouring steps at a time; while training samples are made the others draw no noise
    (MixGRPO, arXiv 2507.21802). Default: all steps."""
    train_window_epochs: int = at_least(1, 25)
    """Epochs after which that window moves on by a step. [MixGRPO: 25]"""
    train_share: float = ranged(1.0, "above 0, to 1", lambda value: 0 < value <= 1)
    """The share of these steps that each pair trains, drawn anew every epoch. [DanceGRPO, arXiv 2505.07818: 0.6]"""

    def check(self) -> None:
        check_part(self, "prompt_stats_min_count", "prompt_stats_buffer")


@dataclass(frozen=True)
class EvaluationConfig(Group):
    """Prompts, noises and numbers of sampling steps of evaluations."""

    prompts: str | None = None
    """A file with training prompts, one a line; default: 30 of the 45 animals of DDPO; "animals": all of them, as
    the paper."""
    unseen_prompts: str | None = None
    """A file with prompts that are evaluated but not trained on."""
    eval_steps: tuple[int, ...] = step_counts((1, 2, 4, 8))
    """Numbers of sampling steps at which the model is evaluated. [official: 1 2 4 8 16 50]"""
    eval_noises: int = at_least(1, 4)
    """Fixed initial noises for each evaluation prompt, the same for every run."""
    eval_seed: int = seed_of(0)
    """Which set of fixed noises. Tuning runs use another one than reported runs."""


@dataclass(frozen=True)
class TrainingEvaluationConfig(EvaluationConfig):
    """Prompts, noises, numbers of sampling steps and rewards of evaluations, and when they are made."""

    eval_rewards: tuple[str, ...] = ("alignment", "alignment_heldout")
    """Rewards that the evaluation reports beside the one that is optimised. `train` also takes auto: alignment and
    alignment_heldout where their scorers know all prompts (the 45 animals), else none."""
    eval_splits: tuple[str, ...] = ("seen", "unseen")
    """Prompt lists that are evaluated: seen, unseen, tuning (for choosing settings, never reported)."""
    eval_start: bool = True
    """Evaluate before training too. Profiles leave it to one run without epochs, the row "pretrained"."""
    eval_every: int = at_least(1, 10)
    """Epochs between evaluations; the last epoch is always evaluated."""
    eval_interim_noises: int | None = None
    """Noises for each prompt in evaluations before the last; default: as many as in the last."""
    eval_last_steps: tuple[int, ...] = step_counts(())
    """More numbers of sampling steps, evaluated after the last epoch only: many steps take long."""
    eval_last_rewards: tuple[str, ...] = ()
    """More of them, for the evaluation after the last epoch only."""
    checkpoint_every: int = at_least(0, 10)
    """Epochs between checkpoints."""

    def check(self) -> None:
        for split in self.eval_splits:
            choose("evaluation split", split, SPLITS)
        check_part(self, "eval_interim_noises", "eval_noises")
        if not self.eval_steps:
            raise UserError("--eval-steps is empty; expected numbers of sampling steps, each at least 1")
        if {*self.eval_steps} & {*self.eval_last_steps}:
            raise UserError(f"--eval-last-steps is {self.eval_last_steps}; expected numbers that --eval-steps lacks")


@dataclass(frozen=True)
class MemoryConfig(Group):
    """Where and how passes are computed: device, memory, speed."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    rows: int = at_least(0, 64)
    """Most latents in one forward pass: lower it where memory is short. 0: as many as a GPU's memory allows, found by
    trying; on a CPU 64."""
    pad_rows: int = at_least(1, 16)
    """A forward pass has at least this many rows (repeated, then dropped): below it CPU libraries choose other
    kernels, and a sample's result would depend on the batch it is in."""
    vae_slicing: bool = False
    """Decode pictures one by one: less memory."""
    reward_dtype: Literal["float32", "float16"] = "float32"
    """Precision of the networks of rewards with published weights. [official: float32]"""
    reward_batch: int = at_least(1, 32)
    """Most pictures in one forward pass of these networks; less memory with fewer. [load_reward's default]"""
    compile: bool = False
    """torch.compile the denoiser."""
    channels_last: bool = False
    """Convolutions in the channels-last layout."""


@dataclass(frozen=True)
class TrainingMemoryConfig(MemoryConfig):
    """Where and how passes are computed: device, memory, speed."""

    gradient_checkpointing: bool = False
    """Compute the denoiser's activations anew in the backward pass: less memory, a forward pass more."""
    offload_trajectories: bool = False
    """Keep an epoch's latents in the host's memory, not the device's."""


def check_part(config: Any, name: str, whole: str) -> None:
    """UserError where the field `name` is not 1 to the field `whole`; None is all of it."""
    value, most = getattr(config, name), getattr(config, whole)
    if value is not None and not 1 <= value <= most:
        raise UserError(f"{flag(name)} is {value}; expected 1 to {flag(whole)} ({most})")


@dataclass(frozen=True)
class RunConfig(
    RunSettings,
    ModelConfig,
    SamplerConfig,
    RolloutConfig,
    OptimizerConfig,
    TrainingEvaluationConfig,
    TrainingMemoryConfig,
):
    """One training run: the fields of all groups."""

    def __post_init__(self) -> None:
        from sdpo_bench.rewards import canonical, check_noises

        object.__setattr__(self, "reward", canonical(self.reward, optimised=self.epochs > 0))
        for name in ("eval_rewards", "eval_last_rewards"):
            object.__setattr__(self, name, tuple(dict.fromkeys(map(canonical, getattr(self, name)))))
        groups: tuple[type[Group], ...] = RunConfig.__bases__  # type: ignore[assignment]
        for group in groups:
            check_fields(self, group)
            group.check(self)
        if self.finetune == "full" and self.dtype != "float32":
            raise UserError(
                f"--finetune full needs more precision than {self.dtype} has; use --dtype float32, or --finetune lora"
            )
        if self.pairs % self.pairs_per_update:
            raise UserError(
                f"--pairs is {self.pairs}; expected a multiple of --pairs-per-update ({self.pairs_per_update})"
            )
        self.check_group()
        self.check_trained_steps()
        self.check_reward_gradient()
        interim = self.eval_interim_noises or self.eval_noises
        check_noises((self.reward, *self.eval_rewards), self.eval_noises, interim)
        check_noises(self.eval_last_rewards, self.eval_noises, self.eval_noises)
        if not self.label:
            object.__setattr__(self, "label", self.method_class.title if self.epochs else "start")

    def check_group(self) -> None:
        """UserError for a group that the method can't take."""
        method, size = self.method_class, self.samples_per_group
        if method.pairwise and size != 2:
            raise UserError(f"--group-size is {size}; {method.title} learns from pairs, so expected 2")
        if self.shares_noise and not method.stochastic:
            raise UserError(
                f"--shared-noise True: {method.title} samples without step noise, so the samples of a group would all "
                f"be the same; leave it out"
            )
        if method.normalizer == "group" and size < 4:
            raise UserError(
                f"--group-size is {size}; {method.title} normalises advantages within a group, and those of two "
                f"samples would always be 1 and -1; expected at least 4"
            )

    def check_trained_steps(self) -> None:
        """UserError for steps that the method can't train."""
        from sdpo_bench.methods import METHODS, build_method

        method = self.method_class
        if self.steps < 2 and method.learns_from in ("step", "trajectory"):
            others = [name for name, cls in METHODS.items() if cls.learns_from in ("noised", "reward")]
            raise UserError(
                f"--steps is {self.steps}; expected at least 2: {method.title} learns from log-probs, and the only "
                f"step's noise comes after the picture that is scored; or choose a method that learns from finished "
                f"samples or from the reward's gradient: {', '.join(others)}"
            )
        if self.steps < 2 and self.shares_noise:
            raise UserError(
                f"--steps is {self.steps}; expected at least 2: the samples of a pair share their initial noise, so "
                f"after one step both show the same picture and no reward difference is left to learn from "
                f"(or give --shared-noise False)"
            )
        if self.trained_steps < 1:
            raise UserError(
                "--steps is 1, and the last step is left out of training, so nothing is left; give more steps"
            )
        if not self.train_last_step and build_method(self.method, self.options).all_noise_levels:
            raise UserError(
                "--no-train-last-step: noise levels are drawn from all timesteps (option any_level), "
                "so there is no last step to leave out; choose one of both"
            )
        if self.inner_epochs > 1 and method.learns_from in ("noised", "reward"):
            raise UserError(
                f"--inner-epochs is {self.inner_epochs}; {method.title} takes no ratio to the policy that "
                f"sampled, and a second pass would have the noise of the first; expected 1"
            )
        if self.train_share < 1 and method.learns_from not in ("step", "noised"):
            raise UserError(f"--train-share: {method.title} does not learn from single steps; leave it out")
        if self.train_window is not None:
            if method.learns_from != "step":
                raise UserError(f"--train-window: {method.title} takes no log-probs of single steps; leave it out")
            if self.train_window > self.trained_steps:
                raise UserError(
                    f"--train-window is {self.train_window}; expected at most {self.trained_steps}, the steps that are "
                    f"trained (--steps, --no-train-last-step)"
                )
            if self.train_window == 1 and self.trained[-1] == self.steps - 1:
                raise UserError(
                    "--train-window is 1, so in some epochs only the last step would draw noise and be trained, and "
                    "that noise comes after the picture that is scored; give --no-train-last-step, or at least 2"
                )

    def check_reward_gradient(self) -> None:
        """UserError where the method needs the reward's gradient, and can't have it."""
        from sdpo_bench.methods import build_method
        from sdpo_bench.rewards import differentiable, not_differentiable

        method = build_method(self.method, self.options)
        if not self.epochs or method.reward_gradient(self.steps) is None:
            return
        if lacking := not_differentiable(self.reward):
            raise UserError(
                f"--reward {self.reward}: {' and '.join(lacking)} has no gradient, which {method.title} learns from; "
                f"choose one of: {', '.join(differentiable())}"
            )
        if self.resolved_updates == "step":
            raise UserError(
                f"--updates step: {method.title} takes the reward's gradient of whole samples, once in each update; "
                f"leave it out"
            )

    def to_json(self) -> dict[str, Any]:
        """The configuration as config.json holds it: with schema, the method's options resolved, and of files and
        folders their names, for a run is the same wherever they lie."""
        from sdpo_bench.methods import build_method

        row = {"schema": SCHEMA} | dataclasses.asdict(self)
        row |= {name: file_name(row[name]) for name in FILES}
        method = build_method(row.pop("method"), row.pop("options"))
        row["method"] = method.to_json() if self.epochs else {"name": "start"}
        row["updates"] = self.resolved_updates
        row["dense"] = self.resolved_dense
        row["group_size"] = None if self.samples_per_group == 2 else self.samples_per_group  # of earlier runs it was 2
        if self.shared_noise == self.method_class.shared_noise:  # which was every run's
            row["shared_noise"] = None
        if self.noise_level == NOISE_LEVELS.get(self.sampler, NOISE_LEVELS["flow_sde"]):  # which was every sampler's
            row["noise_level"] = None
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
        return self.method_class.updates if self.updates == "auto" else self.updates

    @property
    def resolved_dense(self) -> str:
        return self.method_class.dense_reward if self.dense == "auto" else self.dense

    @property
    def query_plan(self) -> str:
        """The dense reward that is queried: of methods without dense rewards the final one."""
        return self.resolved_dense if self.method_class.dense else "terminal"

    @property
    def method_class(self) -> type[Method]:
        from sdpo_bench.methods import METHODS

        return METHODS[self.method]

    @property
    def samples_per_group(self) -> int:
        """G, the samples of a prompt in a group."""
        return self.method_class.group_size if self.group_size is None else self.group_size

    @property
    def shares_noise(self) -> bool:
        """Whether the samples of a group start from the same initial noise."""
        return self.method_class.shared_noise if self.shared_noise is None else self.shared_noise

    @property
    def trained_steps(self) -> int:
        """How many of the K steps are trained: all, or all but the last."""
        return len(self.trained)

    @property
    def trained(self) -> range:
        """The steps that are trained, of 0 to K - 1. A method that learns from the reward's gradient alone has one
        entry for a sample, which stands at the last step."""
        if self.method_class.learns_from == "reward":
            return range(self.steps - 1, self.steps)
        return range(self.steps if self.train_last_step and self.method_class.trains_last_step else self.steps - 1)

    @property
    def steps_each(self) -> int:
        """How many steps of a sample are trained in an epoch."""
        return max(1, round(self.train_share * (self.train_window or self.trained_steps)))


def file_name(path: str | None) -> str | None:
    """The name of a file or folder; a hub id, "embedded" and "animals" are names as they are."""
    return None if path is None else os.path.basename(absolute(path)) if _is_path(path) else path


def absolute(path: str) -> str:
    """The absolute path of a file or folder, for processes elsewhere; names as they are."""
    return os.path.abspath(os.path.expanduser(path)) if _is_path(path) else path


def _is_path(path: str) -> bool:
    return path not in (EMBEDDED, ALL) and (path.startswith((".", "~", "/")) or Path(path).exists())


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    return "--" + name.replace("_", "-")
