"""The profiles: lists of run configurations. Only this file decides what is compared.

Within a profile everything but the method (and its learning rate, chosen by a sweep of the same size for each) is
the same: model, prompts, initial noises, LoRA, optimiser, epochs, samples, evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sdpo_bench.config import RunConfig, flag
from sdpo_bench.errors import UserError, choose
from sdpo_bench.experiments.learning_rates import SWEEP, given_rates, learning_rate
from sdpo_bench.experiments.variants import (
    ABLATIONS,
    GROUPS,
    INNER,
    PAPER_METHODS,
    RECENT,
    SETTINGS,
    STUDIED,
    VARIANTS,
    WHY,
    Options,
)
from sdpo_bench.methods import METHODS
from sdpo_bench.prompts import ALL


def canonical(profile: str) -> str:
    """The profile's name as in its results folder: hyphens become underscores."""
    return choose("profile", profile.replace("-", "_"), PROFILES)


# Fewer epochs where an epoch costs more, so that no K takes most of the time. All methods of a K have the same, and
# learning rates are chosen at this length.
EPOCHS = {4: 25, 8: 15, 20: 10, 50: 5}


COMMON: Options = {
    "device": "cpu",  # the profiles' results are one processor's; a GPU's would be a table of their own
    "finetune": "full",  # 2.4 M weights: no need to save memory
    "eval_start": False,  # the row "pretrained" does that once for all
    "train_last_step": False,  # its noise comes after the picture that is scored (docs/methods/sdpo.md)
}


# The paper's setting, of the authors' repository (results/paper/settings.csv): per reward the learning rate, the pairs
# of an optimiser step (batch x accumulation x 4 GPUs) and the epochs, of Aesthetic as many as their figure shows:
# 29,184 samples.
SD_TURBO_REWARDS: dict[str, Options] = {
    "aesthetic": {"learning_rate": 1e-4, "pairs_per_update": 64, "epochs": 114},
    "imagereward": {"learning_rate": 5e-5, "pairs_per_update": 128, "epochs": 200},
    "hpsv2": {"learning_rate": 5e-5, "pairs_per_update": 128, "epochs": 200},
    "pickscore": {"learning_rate": 6e-5, "pairs_per_update": 64, "epochs": 200},
}


SD_TURBO: Options = {
    "model": "stabilityai/sd-turbo",
    "revision": "b261bac6fd2cf515557d5d0707481eafa0485ec2",  # as public projects pin it (docs/sd_turbo.md)
    "device": "cuda",
    "steps": 50,
    "pairs": 128,
    "prompts": "animals",  # the paper trains on all 45 and shows its rewards on them
    "eval_splits": ("seen",),
    "eval_steps": (1, 2, 4, 8, 16, 50),
    "eval_every": 5,  # a point every 1,280 samples and one at the end, for a tenth more computing
    "eval_start": False,
    "dtype": "float16",  # of all but the trained weights [official]
    "rows": 8,  # 0.7 GiB of activations a latent
    "checkpoint_every": 1,  # 10 MB; an epoch takes minutes, and processes that share a run can't stop within one
}


def start(**changes: Any) -> RunConfig:
    """The model before any training, from which every method starts."""
    return RunConfig(**{**COMMON, "eval_start": True, "epochs": 0, **changes})


def run(name: str, seed: int, **changes: Any) -> RunConfig:
    """One run of a variant. `changes` are the profile's; the variant's own settings are applied last."""
    variant = VARIANTS[name]
    steps = changes.get("steps", 4)
    settings: Options = COMMON | {"label": variant.label, "epochs": EPOCHS.get(steps, 50)}
    if "learning_rate" not in changes:
        settings["learning_rate"] = learning_rate(name, steps, changes.get("reward", "alignment"))
    return RunConfig(
        method=variant.method, seed=seed, **in_groups(variant.method, settings | changes | variant.changes)
    )


def in_groups(method: str, settings: Options) -> Options:
    """Settings with the same number of samples per epoch and update as with pairs, in groups of the method's size."""
    size = settings.get("group_size") or METHODS[method].group_size
    counts = {name: settings.get(name, getattr(RunConfig, name)) for name in ("pairs", "pairs_per_update")}
    for name, count in counts.items():
        if 2 * count % size:
            raise UserError(
                f"{2 * count} samples ({name} {count}) cannot be divided into groups of {size}, as {method} needs"
            )
    return settings | {name: 2 * count // size for name, count in counts.items()} if size != 2 else settings


def smoke(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """About a minute: checks that everything runs from end to end. Its numbers say nothing about the methods."""
    small: Options = {"eval_steps": (1, 4), "eval_noises": 1, "eval_every": 5}
    runs = [run(name, seed, epochs=10, pairs=16, **small) for seed in seeds for name in methods]
    return [start(**small), *runs]


def quick(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """The default: every method in minutes on a laptop's CPU, at K = 4, for which few-step models are made."""
    settings: Options = {"eval_every": 9, "eval_interim_noises": 1}  # evaluations took 40 % of the time
    return [start(), *(run(name, seed, **settings) for seed in seeds for name in methods)]


def _sweep(
    methods: Sequence[str], seeds: Sequence[int], steps: int, rates: Sequence[float] = SWEEP, **changes: Any
) -> list[RunConfig]:
    # Prompts, noises and seeds of its own: learning rates are not chosen on what is reported.
    tuning: Options = {"train_split": "tuning", "eval_splits": ("tuning",), "eval_seed": 1, "eval_noises": 8}
    tuning |= {"steps": steps, "eval_every": EPOCHS[steps], **changes}
    return [start(**tuning)] + [
        run(name, seed, learning_rate=rate, label=f"{VARIANTS[name].label} {rate:g}", **tuning)
        for seed in seeds
        for rate in rates
        for name in methods
    ]


def sweep(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """The same learning rates for every method at K = 4, on tuning prompts. The results fill LEARNING_RATES."""
    return _sweep(methods, seeds, 4)


def sweep_k8(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Like `sweep`, at K = 8."""
    return _sweep(methods, seeds, 8)


def sweep_k20(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Like `sweep`, at K = 20, where a method that updates at every step takes five times as many steps."""
    return _sweep(methods, seeds, 20)


def sweep_k50(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Like `sweep`, at K = 50."""
    return _sweep(methods, seeds, 50)


def sweep_jpeg(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Like `sweep`, on JPEG compressibility, where other rates are best. The results fill REWARD_RATES."""
    return _sweep(methods, seeds, 4, reward="jpeg_compressibility")


def sweep_jpeg_k20(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Like `sweep_jpeg`, at K = 20."""
    return _sweep(methods, seeds, 20, reward="jpeg_compressibility")


def recent_sweep(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """The learning-rate sweep of the methods of 2024 to 2026."""
    return _sweep(methods, seeds, 4)


def recent_sweep_edge(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Higher rates for the methods of `recent_sweep` whose best one is its highest."""
    return _sweep(methods, seeds, 4, EDGE_RATES)


EDGE_RATES = (3e-4, 1e-3, 3e-3)  # the first is that edge


def recent(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """The methods of 2024 to 2026 beside SDPO, DDPO and REBEL at K = 4: equal samples, each with its swept rate."""
    return _recent(methods, seeds)


def recent_colourfulness(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """The runs of `recent`, trained on colourfulness at the learning rates of alignment."""
    return _recent(methods, seeds, reward="colourfulness")


RECENT_SHARED_RATE = 3e-5  # a step below the rate that most of these methods were tuned to


def recent_shared(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """The runs of `recent` with one learning rate for all methods."""
    return _recent(methods, seeds, learning_rate=RECENT_SHARED_RATE)


def recent_guard(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Does GRPO-Guard's correction of the ratio matter more at fewer steps? At K = 2, 4, 8 and 20, at equal samples and
    one learning rate."""
    return _recent(methods, seeds, (2, 4, 8, 20), learning_rate=RECENT_SHARED_RATE, epochs=EPOCHS[4])


def _recent(
    methods: Sequence[str], seeds: Sequence[int], steps: Sequence[int] = (4,), **changes: Any
) -> list[RunConfig]:
    settings: Options = MEASURED | {"eval_last_rewards": (*MEASURED["eval_last_rewards"], "vendi_heldout", "kid_start")}
    settings |= changes
    before = start(**{k: v for k, v in settings.items() if k not in ("epochs", "learning_rate")})
    return [before, *(run(name, seed, steps=k, **settings) for seed in seeds for k in steps for name in methods)]


def first_look(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Does the order of the methods change between K = 4 and K = 20?"""
    return [start()] + [run(name, seed, steps=k, eval_every=5) for seed in seeds for k in (4, 20) for name in methods]


REWARDS = ("alignment", "jpeg_compressibility", "colourfulness")


MEASURED: Options = {
    "eval_every": 5,
    "eval_last_steps": (16, 50),
    "eval_last_rewards": (*REWARDS, "diversity", "diversity_heldout"),
}


def full(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """The study (docs/findings_tuned.md). The runs are ordered by importance: methods at K = 4 and 20; ablations there;
    another reward; K = 8; a third reward; K = 50. Within a part all runs of a seed come before those of the next. So an
    interrupted study has the same number of seeds for every method, except in the part where it stopped."""
    mains = [name for name in methods if name not in ABLATIONS]
    ablations = [name for name in methods if name in ABLATIONS]

    def part(names: Sequence[str], steps: Sequence[int], reward: str = "alignment", every: int = 5) -> list[RunConfig]:
        settings: Options = MEASURED | {"eval_every": every}
        return [
            # What dense rewards miss is a question of the trajectories, which one method's stand for.
            run(name, seed, reward=reward, steps=k, **settings | {"probe_every": every * (name == "sdpo")})
            for seed in seeds
            for k in steps
            for name in names
        ]

    runs = [start(**MEASURED), *part(mains, (4, 20)), *part(ablations, (4, 20))]
    # Ablations on one reward: they ask what makes a method work, not what it is good for.
    second, third = REWARDS[1:]
    runs += part(mains, (4,), second)
    runs += part(mains, (8,))
    runs += part(mains, (4,), third)
    runs += part(mains, (20,), second)
    runs += part(mains, (20,), third)
    return [*runs, *part(mains, (50,), every=1)]  # it has 5 epochs


# The paper's comparison on the embedded model: its number of samples, and one learning rate shared by all methods.
PAPER_EPOCHS = 456  # of 64 samples: 29,184, as many as the paper's figure shows


# Chosen by profile paper_pilot, for SDPO, which takes the most optimiser steps and so is the first to diverge.
SHARED_RATE = 1e-5


RATES_BESIDE = (3e-6, 3e-5)  # a step of the sweeps below it and above


PAPER: Options = {
    "epochs": PAPER_EPOCHS,
    "eval_every": PAPER_EPOCHS // 24,
    "eval_steps": (1, 2, 4, 8, 16, 50),  # the paper's
    "eval_interim_noises": 2,  # on the way half of the pictures: evaluation takes a twentieth of a run's time
    "eval_last_rewards": MEASURED["eval_last_rewards"],
}


def _paper(
    methods: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    epochs: int = PAPER_EPOCHS,
    rate: float | None = SHARED_RATE,
    **changes: Any,
) -> list[RunConfig]:
    """All seeds of the paper's four methods, then the other methods. Without a `rate` each has its own."""
    first = [name for name in methods if name in PAPER_METHODS]
    settings = PAPER | changes | {"steps": steps, "epochs": epochs}
    settings |= {} if rate is None else {"learning_rate": rate}
    return [start(**{k: v for k, v in (PAPER | changes).items() if k != "epochs"})] + [
        run(name, seed, probe_every=PAPER_EPOCHS // 4 * (name == "sdpo"), **settings)
        for names in (first, [name for name in methods if name not in first])
        for seed in seeds
        for name in names
    ]


def _paper_rates(
    methods: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    epochs: int,
    rates: Sequence[float] = RATES_BESIDE,
    **changes: Any,
) -> list[RunConfig]:
    settings = PAPER | {"steps": steps, "epochs": epochs} | changes
    return [start(**{k: v for k, v in PAPER.items() if k != "epochs"})] + [
        run(name, seed, learning_rate=rate, label=f"{VARIANTS[name].label} {rate:g}", **settings)
        for seed in seeds
        for rate in rates
        for name in methods
    ]


def paper_pilot(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Chooses SHARED_RATE: the two lowest rates of the sweeps at K = 20, for 6,400 samples, on tuning prompts."""
    tuning: Options = {"train_split": "tuning", "eval_splits": ("tuning",), "eval_seed": 1, "steps": 20}
    tuning |= {"epochs": 100, "eval_every": 25, "eval_steps": PAPER["eval_steps"]}
    return [start(**tuning | {"epochs": 0})] + [
        run(name, seed, learning_rate=rate, label=f"{VARIANTS[name].label} {rate:g}", **tuning)
        for seed in seeds
        for name in methods
        for rate in (1e-5, 3e-5)
    ]


def paper_k20(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """The paper's comparison: its number of samples and one learning rate for all methods, at K = 20."""
    return _paper(methods, seeds, 20)


def paper_k20_quarter(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Like `paper_k20`, at a quarter of its length; also with as many optimiser steps for all."""
    return _paper(methods, seeds, 20, PAPER_EPOCHS // 4)


def paper_k20_rates(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Like `paper_k20`, with the shared rate one step lower and one step higher, at a quarter of the length."""
    return _paper_rates(methods, seeds, 20, PAPER_EPOCHS // 4)


def paper_k4(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Like `paper_k20`, at K = 4."""
    return _paper(methods, seeds, 4)


def paper_k4_rates(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Like `paper_k4`, with the shared rate one step lower and one step higher, at full length."""
    return _paper_rates(methods, seeds, 4, PAPER_EPOCHS)


def paper_why_k4(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Why the order at one shared rate is as it is: as many optimiser steps for all, and what public code does
    otherwise. Like `paper_k4` at a quarter of its length."""
    return _paper_why(methods, seeds, 4)


def paper_why_k20(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Like `paper_why_k4`, at K = 20."""
    return _paper_why(methods, seeds, 20)


def _paper_why(methods: Sequence[str], seeds: Sequence[int], steps: int) -> list[RunConfig]:
    epochs = PAPER_EPOCHS // 4
    settings = PAPER | {"epochs": epochs, "eval_every": epochs // 6, "learning_rate": SHARED_RATE, "steps": steps}
    return [start(**{k: v for k, v in PAPER.items() if k != "epochs"})] + [
        run(name, seed, **settings) for seed in seeds for name in methods
    ]


def paper_k20_tuned(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Like `paper_k20`, each method with the rate that its own sweep chose, at a fortieth of this length."""
    return _paper(methods, seeds, 20, rate=None)


def paper_k4_tuned(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Like `paper_k4`, each method with the rate that its own sweep chose, at an eighteenth of this length."""
    return _paper(methods, seeds, 4, rate=None)


def paper_k50(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Like `paper_k20`, at K = 50, the paper's, and at a quarter of the length."""
    return _paper(methods, seeds, 50, PAPER_EPOCHS // 4)


def paper_k20_jpeg(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Like `paper_k20_quarter`, on a reward that still rises at the end: JPEG compressibility, at its own rate."""
    return _paper(methods, seeds, 20, PAPER_EPOCHS // 4, SHARED_RATE_JPEG, reward="jpeg_compressibility")


SHARED_RATE_JPEG = 3e-5  # in `sweep_jpeg_k20` the step below the methods' best: none has diverged there


def paper_k20_settings(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Like `paper_k20_quarter`, with one of the paper's settings at a time: the last step trained, and 128 pairs an
    epoch with 64 an update."""
    return _paper(methods, seeds, 20, PAPER_EPOCHS // 4)


def paper_k20_prompts(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Like `paper_k20_quarter`, trained and evaluated on all 45 prompts, as the paper."""
    return _paper(methods, seeds, 20, PAPER_EPOCHS // 4, prompts=ALL, eval_splits=("seen",))


def paper_k20_lora_rates(methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    """Like `paper_k20_quarter`, with a LoRA of rank 4, as the paper, at several shared rates: it needs higher ones."""
    return _paper_rates(methods, seeds, 20, PAPER_EPOCHS // 4, LORA_RATES, finetune="lora")


LORA_RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # 1e-4 does not move it: it has 23,552 weights


def sd_turbo(
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    rewards: Sequence[str] = (),
    model: str | None = None,
    revision: str | None = None,
    learning_rates: Sequence[str] = (),
    **changes: Any,
) -> list[RunConfig]:
    """The paper's setting, on GPUs: SD-Turbo, K = 50, four published rewards, evaluated at 1 to 50 steps. Every run is
    evaluated on all four rewards, so that a choice of rewards gives some of the same runs. `learning_rates`: of methods
    that shall not have the reward's, as METHOD=RATE."""
    own_rates = {name: {"learning_rate": rate} for name, rate in given_rates(learning_rates, methods).items()}
    names = [choose("reward of this profile", name, SD_TURBO_REWARDS) for name in rewards or SD_TURBO_REWARDS]
    settings = SD_TURBO | {"eval_rewards": tuple(SD_TURBO_REWARDS)}
    if model is not None or revision is not None:
        settings |= {"model": model or settings["model"], "revision": revision}
    settings |= changes
    first, own = next(iter(SD_TURBO_REWARDS.items()))  # one start for all rewards, whichever are asked for
    before = RunConfig(**own | settings | {"reward": first, "eval_start": True, "epochs": 0})
    return [before] + [
        RunConfig(
            method=VARIANTS[name].method,
            label=VARIANTS[name].label,
            seed=seed,
            reward=reward,
            **in_groups(
                VARIANTS[name].method,
                SD_TURBO_REWARDS[reward] | settings | own_rates.get(name, {}) | VARIANTS[name].changes,
            ),
        )
        for seed in seeds
        for reward in names
        for name in methods
    ]


@dataclass(frozen=True)
class Profile:
    """How the runs of a profile are built, its default methods, seeds and device, the other options that the command
    line may set, and how its methods get their learning rates (records/protocols.py); `run` gives each its own."""

    build: Callable[..., list[RunConfig]]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    device: Literal["cpu", "cuda"] = "cpu"
    options: tuple[str, ...] = ()
    protocol: Literal["tuned", "shared", "sweep"] = "tuned"

    @property
    def purpose(self) -> str:
        return " ".join((self.build.__doc__ or "").split())


FIRST_LOOK = ("sdpo", "sdpo_causal", "ddpo", "rebel", "d3po")


TUNING_SEEDS = (100,)  # never reported


COMPARED = ("sdpo", "ddpo", "rebel", *RECENT, *GROUPS, "ddpo_dense")  # with the newer methods


PER_STEP = ("ddpo_per_step", "rebel_per_step", "sdpo_per_trajectory")  # as many optimiser steps as SDPO, or as DDPO


PAPER_REST = ("ddpo_critic", "prdp", "sdpo_causal", "ddpo_dense", *PER_STEP)


SWEPT = (*STUDIED, *PER_STEP)


# Their best rate in `recent_sweep` is its highest.
AT_THE_EDGE = ("grpo_guard", "pso", "draft", "rtdmd_lite")


PROFILES = {
    "quick": Profile(quick, STUDIED, (0, 1)),
    "smoke": Profile(smoke, ("sdpo", "ddpo"), (0,)),
    "sweep": Profile(sweep, SWEPT, TUNING_SEEDS, protocol="sweep"),
    "sweep_k8": Profile(sweep_k8, STUDIED, TUNING_SEEDS, protocol="sweep"),  # no ablation is run there
    "sweep_k20": Profile(sweep_k20, SWEPT, TUNING_SEEDS, protocol="sweep"),
    "sweep_k50": Profile(sweep_k50, STUDIED, TUNING_SEEDS, protocol="sweep"),
    "sweep_jpeg": Profile(sweep_jpeg, STUDIED, TUNING_SEEDS, protocol="sweep"),
    "recent_sweep": Profile(recent_sweep, (*RECENT, *GROUPS), TUNING_SEEDS, protocol="sweep"),
    "recent_sweep_edge": Profile(recent_sweep_edge, AT_THE_EDGE, TUNING_SEEDS, protocol="sweep"),
    "recent_shared": Profile(recent_shared, COMPARED, (0, 1, 2, 3, 4), protocol="shared"),
    "recent_guard": Profile(recent_guard, ("grpo", "grpo_guard"), (0, 1, 2, 3, 4), protocol="shared"),
    "recent": Profile(recent, COMPARED, (0, 1, 2, 3, 4)),
    "recent_colourfulness": Profile(recent_colourfulness, COMPARED, (0, 1, 2, 3, 4)),
    "sweep_jpeg_k20": Profile(sweep_jpeg_k20, STUDIED, TUNING_SEEDS, protocol="sweep"),
    "first_look": Profile(first_look, FIRST_LOOK, (0, 1, 2)),
    "full": Profile(full, (*STUDIED, *ABLATIONS), (0, 1, 2, 3, 4)),
    "paper_pilot": Profile(paper_pilot, ("sdpo",), TUNING_SEEDS, protocol="sweep"),
    "paper_k20": Profile(paper_k20, (*PAPER_METHODS, *PAPER_REST), (0, 1, 2, 3, 4), protocol="shared"),
    "paper_k4": Profile(paper_k4, (*PAPER_METHODS, *PAPER_REST), (0, 1, 2, 3, 4), protocol="shared"),
    "paper_k20_quarter": Profile(paper_k20_quarter, (*PAPER_METHODS, *PER_STEP), (0, 1, 2, 3, 4), protocol="shared"),
    "paper_k20_rates": Profile(paper_k20_rates, PAPER_METHODS, (0, 1, 2, 3, 4), protocol="shared"),
    "paper_k4_rates": Profile(paper_k4_rates, PAPER_METHODS, (0, 1, 2, 3, 4), protocol="shared"),
    "paper_why_k4": Profile(
        paper_why_k4,
        (*PAPER_METHODS, *PER_STEP, *INNER[4], *WHY, "prdp", "ddpo_critic"),
        (0, 1, 2, 3, 4),
        protocol="shared",
    ),
    "paper_why_k20": Profile(
        paper_why_k20,
        (*PAPER_METHODS, *PER_STEP, *INNER[20], *WHY, "prdp", "ddpo_critic"),
        (0, 1, 2, 3, 4),
        protocol="shared",
    ),
    "paper_k20_tuned": Profile(paper_k20_tuned, (*PAPER_METHODS, *PAPER_REST), (0, 1, 2, 3, 4)),
    "paper_k4_tuned": Profile(paper_k4_tuned, (*PAPER_METHODS, *PAPER_REST), (0, 1, 2, 3, 4)),
    "paper_k50": Profile(paper_k50, PAPER_METHODS, (0, 1, 2, 3, 4), protocol="shared"),
    "paper_k20_jpeg": Profile(paper_k20_jpeg, PAPER_METHODS, (0, 1, 2, 3, 4), protocol="shared"),
    "paper_k20_settings": Profile(paper_k20_settings, (*PAPER_METHODS, *SETTINGS), (0, 1, 2, 3, 4), protocol="shared"),
    "paper_k20_prompts": Profile(paper_k20_prompts, PAPER_METHODS, (0, 1, 2, 3, 4), protocol="shared"),
    "paper_k20_lora_rates": Profile(paper_k20_lora_rates, PAPER_METHODS, (0, 1, 2, 3, 4), protocol="shared"),
    "sd_turbo": Profile(sd_turbo, STUDIED, (0,), "cuda", ("rewards", "model", "revision", "learning_rates"), "shared"),
}


def build(
    profile: str, methods: Sequence[str] | None = None, seeds: Sequence[int] | None = None, **options: Any
) -> list[RunConfig]:
    """The runs of a profile, in the order in which they are made. `methods`, `seeds` and the profile's `options`
    replace its defaults."""
    chosen = PROFILES[canonical(profile)]
    names = [choose("method", name.replace("-", "_"), VARIANTS) for name in methods or chosen.methods]
    numbers = list(chosen.seeds if seeds is None else seeds)
    for what, values in (("--methods", names), ("--seeds", numbers)):
        if not values or len(set(values)) < len(values):
            raise UserError(f"{what} {' '.join(map(str, values))}: expected at least one, without repeats")
    if foreign := sorted(options.keys() - set(chosen.options)):
        flags = ", ".join(map(flag, foreign))
        able = ", ".join(name.replace("_", "-") for name, other in PROFILES.items() if {*foreign} <= {*other.options})
        raise UserError(f"profile {canonical(profile)} does not take {flags}; these do: {able}")
    return chosen.build(names, numbers, **options)


def config_from_json(row: dict[str, Any]) -> RunConfig:
    """The RunConfig whose `to_json` is `row`, the content of config.json."""
    fields = {f.name for f in dataclasses.fields(RunConfig)}
    values: Options = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k in fields}
    options = dict(values.pop("method"))
    name = options.pop("name")
    # The pretrained model's run has no method; it keeps the default one, which it never uses.
    return RunConfig(**values, **({} if name == "start" else {"method": name, "options": options}))
