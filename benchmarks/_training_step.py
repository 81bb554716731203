"""An epoch's seconds and peak memory, part by part, of the suite's trainer and of the official loop; and whether both
compute the same."""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import sdpo_kernels
import torch
from torch import Tensor

from benchmarks._official_loop import OfficialLoop, Samples
from benchmarks._sd_turbo import RANK, TINY, Architecture, cast, fast, flop, fused, materialised, pipeline
from sdpo_bench import RunConfig, Trainer, dense_rewards, load_reward
from sdpo_bench.policies import StableDiffusionPolicy
from sdpo_bench.rewards import Reward
from sdpo_bench.training.epoch_plan import MicroBatch
from sdpo_bench.training.sampling import INITIAL_NOISE

PARTS = ("sample", "reward", "train")
# Distance from float64, relative to the largest entry, that a loop in float32 is allowed. At the last step of K = 4 the
# rounding of the model's output is magnified 24 times, |d mean/d output| / sigma. Libraries differ in how they round
# (cuDNN chooses other convolutions for another layout), so that what counts is how far the official loop itself lies
# from float64, with the layouts and the attention of both: a loop may be ROUNDING times as far, but no more than MOST
# times what is allowed anywhere.
AGREEMENT, AT_THE_LAST_STEP = 1e-5, 3e-4
ROUNDING, MOST = 4, 10


def settings(**changes: Any) -> RunConfig:
    """K = 4; the rest as the official setting has it, but for what is changed. The reward takes the device no time: it
    is not what is measured."""
    fixed: dict[str, Any] = {
        "steps": 4,
        "reward": "colourfulness",
        "lora_rank": RANK,
        "lora_alpha": RANK,
        "eval_rewards": (),
        "eval_steps": (4,),
    }
    return RunConfig(**fixed | changes)


class Clock:
    """Seconds and peak memory (bytes; of a GPU) since the last lap, added up by part."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.seconds: dict[str, float] = defaultdict(float)
        self.memory: dict[str, int] = defaultdict(int)
        self._wait()
        self._last = time.perf_counter()

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def lap(self, part: str) -> None:
        self._wait()
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now
        if self.cuda:
            self.memory[part] = max(self.memory[part], torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()


class TimedTrainer(Trainer):
    """The suite's trainer, with a lap of the clock where sampling and where rewards end."""

    clock: Clock | None = None

    def sample(self, plan: Any, pairs: torch.Tensor | None = None) -> Any:
        trajectory = super().sample(plan, pairs)
        self._lap("sample")
        return trajectory

    def optimizer_batches(self, plan: Any) -> Any:
        self._lap("reward")
        return super().optimizer_batches(plan)

    def _lap(self, part: str) -> None:
        if self.clock is not None:
            self.clock.lap(part)


class Result(NamedTuple):
    """Of an epoch: seconds and peak memory by part, forwards of the UNet in samples, of which `trained` have a
    backward, pictures decoded."""

    seconds: dict[str, float]
    memory: dict[str, int]
    forwards: int
    trained: int
    pictures: int


class Bench:
    """Both loops on one pipeline and its one LoRA, so that they have the same weights in the same memory."""

    def __init__(
        self,
        architecture: Architecture,
        device: torch.device,
        dtype: torch.dtype,
        pairs: int = 8,
        reward: Reward | None = None,
    ) -> None:
        self.architecture, self.device = architecture, device
        self.agreement = Agreement({}, [])
        self.seconds: dict[str, float] = {}  # of an epoch, by variant
        self.pipeline = pipeline(architecture, device)
        self.config = settings(device=device.type, pairs=pairs, pairs_per_update=pairs, rows=2 * pairs)
        self.reward = reward or load_reward(self.config.reward)
        self.trainer = TimedTrainer(self.config, StableDiffusionPolicy(self.pipeline, self.config), self.reward)
        cast(self.pipeline, dtype)  # only now: peft would make a LoRA of half-precision weights in half precision
        self.trained = self.trainer.policy.parameters
        self.initial = [p.detach().clone() for p in self.trained]
        counted = sum(p.numel() for p in self.trained)
        if counted != architecture.weights["lora"]:
            raise AssertionError(f"{architecture.name}: the LoRA has {counted:,} weights")
        if any(p.dtype != torch.float32 for p in self.trained):
            raise AssertionError("the LoRA is not in float32")

    @torch.no_grad()
    def reset(self) -> None:
        """The weights as they were before any update, and no memory kept from what ran before."""
        for p, was in zip(self.trained, self.initial, strict=True):
            p.copy_(was)
        self.trainer.optimiser.state.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def set_rows(self, rows: int) -> None:
        """As `--rows`: latents in one forward pass of our loop, and with them the padding of a CPU."""
        policy = self.trainer.policy
        policy.rows = rows
        policy.pad_rows = min(self.config.pad_rows, rows) if self.device.type == "cpu" else 1

    def official(self, microbatch: int) -> OfficialLoop:
        return OfficialLoop(self.pipeline, self.reward, self.config, microbatch)

    def exact(self, microbatch: int) -> OfficialLoop:
        """The official loop on copies of the models in float64: what both loops are judged by."""
        names = ("unet", "vae", "text_encoder")
        copies = {name: copy.deepcopy(getattr(self.pipeline, name)).double() for name in names}
        rest = {"tokenizer": self.pipeline.tokenizer, "scheduler": self.pipeline.scheduler}
        return OfficialLoop(SimpleNamespace(**copies, **rest), self.reward, self.config, microbatch)

    def ours_epoch(self, epoch: int) -> Result:
        policy = self.trainer.policy
        before = policy.passes.forward
        queries = self.trainer.counts.reward_queries
        self.trainer.clock = clock = Clock(self.device)
        self.trainer.train_epoch(epoch).to_row()
        clock.lap("train")
        self.trainer.clock = None
        if tuple(clock.seconds) != PARTS:
            raise AssertionError(f"the trainer went through {tuple(clock.seconds)}")
        forwards = policy.passes.forward - before
        sampled = self.config.pairs * (2 * self.config.steps - 1)  # the first step has one output for both
        return Result(
            clock.seconds, clock.memory, forwards, forwards - sampled, self.trainer.counts.reward_queries - queries
        )

    def official_epoch(self, loop: OfficialLoop, epoch: int) -> Result:
        loop.calls = loop.pictures = 0
        trainer = self.trainer
        prompts = [trainer.prompts[i % len(trainer.prompts)] for i in range(self.config.pairs)]
        updates = trainer.optimizer_batches(trainer.plan(epoch))
        clock = Clock(self.device)
        samples = loop.sample(prompts, clock.lap)
        advantages = loop.advantages(samples)
        clock.lap("reward")
        loop.train(samples, advantages, updates)
        clock.lap("train")
        return Result(clock.seconds, clock.memory, loop.calls, 2 * self.config.pairs * self.config.steps, loop.pictures)

    def flop(self, result: Result) -> dict[str, int]:
        """What an epoch's forwards, backwards and decodes amount to, by part."""
        one = flop(self.architecture)
        sampled = result.forwards - result.trained
        return {
            "sample": sampled * one.forward,
            "reward": result.pictures * one.decode,
            "train": result.trained * (one.forward + one.backward),
        }

    @torch.no_grad()
    def on_policy(self) -> float:
        """Largest |log-ratio| of the suite's unchanged policy over an epoch's pairs and steps."""
        trainer = self.trainer
        trajectory = trainer.sample(trainer.plan(1))
        differences = [
            (trainer.log_prob(trajectory, pairs, steps) - trajectory.log_prob[pairs, :, steps]).abs().max()
            for group in trainer.optimizer_batches(trainer.plan(1))
            for pairs, steps in group
        ]
        return max(x.item() for x in differences)

    def official_on_policy(self, loop: OfficialLoop) -> float:
        samples = loop.sample(self.trainer.prompts[: self.config.pairs], lambda part: None)
        return loop.on_policy(samples)


# Correct first --------------------------------------------------------------------------------------------------


def noise_of(trainer: Trainer) -> Any:
    """The noise of the trainer's first epoch, as the official loop asks for it."""
    shape, device = trainer.policy.latent_shape, trainer.policy.device
    draw = trainer.plan(1).samples
    initial, steps = draw.initial_seeds.to(device), draw.step_seeds.to(device)

    def noise(side: int, k: int, rows: slice) -> Tensor:
        if k < 0:
            return sdpo_kernels.normal(initial[rows], shape, INITIAL_NOISE)
        return sdpo_kernels.normal(steps[rows, side].contiguous(), shape, k)

    return noise


class Energy(Reward):
    """Mean square of a picture: smooth, where the suite's own rewards count in 8-bit steps."""

    name = "energy"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images.square().mean((1, 2, 3)).cpu()


class Agreement(NamedTuple):
    """errors: of each loop, by what was compared, relative to the largest entry of float64's; `failures` says what is
    too far off, and is empty where both loops compute the same."""

    errors: dict[str, dict[str, float]]
    failures: list[str]


def agreement(device: torch.device, microbatch: int = 2) -> Agreement:
    """How far both loops lie from float64, on the tiny architecture in float32, with the same pairs, steps and noise:
    latents, log-probs, rewards, returns, and losses and gradients of whole `updates`. The official loop is judged with
    its own layout and attention and with ours.
    """
    # TF32 is off: on a GPU a policy sees to it.
    found = Agreement({}, [])
    for name, errors in differences(Bench(TINY, device, torch.float32, pairs=4, reward=Energy()), microbatch):
        if name == CLIPPED:
            if not 0.1 < errors["ours"] < 0.9:
                found.failures.append(
                    f"{errors['ours']:.0%} of the losses were clipped: one branch was hardly compared"
                )
            continue
        least = AT_THE_LAST_STEP if "last step" in name else AGREEMENT
        rounding = max(error for loop, error in errors.items() if loop != "ours")
        allowed = min(max(least, ROUNDING * rounding), MOST * least)
        found.failures.extend(
            f"{name}: {loop} is off by {error:.3g} of the largest entry; allowed are {allowed:.3g}"
            for loop, error in errors.items()
            if not error <= allowed
        )
        found.errors[name] = {loop: error for loop, error in errors.items() if math.isfinite(error)}
    return found


CLIPPED = "clipped"


def off(exact: Tensor, **loops: Tensor) -> dict[str, float]:
    """How far each loop's tensor lies from float64's, relative to the largest entry; infinitely where it has another
    shape or an entry that is not finite."""
    largest = exact.abs().max().clamp_min(1e-30)
    return {
        loop: ((x.double() - exact).abs().max() / largest).item()
        if x.shape == exact.shape and bool(torch.isfinite(x).all())
        else math.inf
        for loop, x in loops.items()
    }


def differences(bench: Bench, microbatch: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Names and each loop's distance from float64, as they are found; and the share of losses that were clipped, as
    CLIPPED."""
    trainer, loop, exact = bench.trainer, bench.official(microbatch), bench.exact(microbatch)
    manners = {"official": materialised, "official, fused": fused}
    with fast(bench.pipeline):
        trajectory = trainer.sample(trainer.plan(1))
        provided = dense_rewards.compute_dense_rewards("anchored", trajectory, trainer.score)
        returns = trainer.method.returns(provided.values)
        advantages = trainer.normaliser(trajectory.prompts, returns).to(bench.device)
    noise, samples = noise_of(trainer), {}
    for name, manner in manners.items():
        with manner(bench.pipeline):
            samples[name] = loop.sample(trajectory.prompts, lambda part: None, noise)
    with materialised(exact.pipeline):
        reference = exact.sample(trajectory.prompts, lambda part: None, noise)

    def compared(ours: Tensor, part: Callable[[Samples], list[Tensor]]) -> dict[str, float]:
        return off(
            torch.stack(part(reference), 1),
            ours=ours,
            **{name: torch.stack(part(theirs), 1) for name, theirs in samples.items()},
        )

    yield "latents", compared(trajectory.latents[:, :, :-1], lambda x: x.before)
    yield "next latents", compared(trajectory.latents[:, :, 1:], lambda x: x.after)
    yield "log-probs", compared(trajectory.log_prob, lambda x: x.log_probs)
    yield "rewards", compared(provided.values, lambda x: x.rewards)
    yield "returns", compared(returns, loop.returns)
    # The learning rate is so small that every update sees the same weights, and they are not the ones that sampled.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p, wide in zip(bench.trained, exact.trained, strict=True):
            p += 0.01 * torch.randn(p.shape, generator=generator).to(p)
            wide.copy_(p)
    for optimiser in (trainer.optimiser, loop.optimiser, exact.optimiser):
        optimiser.param_groups[0].update(lr=1e-20, weight_decay=0.0)
    stored, shares = shared(samples["official"], trajectory, torch.float32), []
    exactly = shared(reference, trajectory, torch.float64)
    for number, (name, group) in enumerate(updates(trainer.config)):
        with fast(bench.pipeline):
            stats = trainer.update(group, trajectory, advantages, None)
            found = {"ours": (stats.loss.cpu(), stats.grad_norm.cpu(), gradient(bench.trained))}
        for theirs, manner in manners.items():
            with manner(bench.pipeline):
                found[theirs] = trained(loop, stored, advantages, group)
        with materialised(exact.pipeline):
            expected = trained(exact, exactly, advantages.double(), group)
        for what, *values in zip(("loss", "gradient norm", "gradient"), expected, *found.values(), strict=True):
            yield f"{what} {number} ({name})", off(values[0], **dict(zip(found, values[1:], strict=True)))
        shares.append(float(stats.clip_fraction))
    yield CLIPPED, {"ours": math.fsum(shares) / len(shares)}


def trained(
    loop: OfficialLoop, samples: Samples, advantages: Tensor, group: list[MicroBatch]
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient norm and gradient of one update of the official loop."""
    ((loss, norm),) = loop.train(samples, list(advantages.unbind(1)), [group])
    return torch.tensor(loss).double(), torch.tensor(norm).double(), gradient(loop.trained)


def updates(config: RunConfig) -> Iterator[tuple[str, list[MicroBatch]]]:
    """An update of all pairs at the last step, and one for each other step of the first pair, the next pairs being at
    the next steps; in micro-batches of unequal size."""
    pairs, others = torch.arange(config.pairs), config.steps - 1
    yield "last step", split(pairs, torch.full_like(pairs, others))
    for k in range(others):
        yield "other steps", split(pairs, (pairs + k) % others)


def split(pairs: Tensor, steps: Tensor) -> list[MicroBatch]:
    return [MicroBatch(pairs[1:], steps[1:]), MicroBatch(pairs[:1], steps[:1])]


def shared(samples: Samples, trajectory: Any, dtype: torch.dtype) -> Samples:
    """The official loop's samples with the trainer's latents and log-probs, bit for bit: a clip's edge is sharp."""
    latents, log_prob = trajectory.latents.to(dtype), trajectory.log_prob.to(dtype)
    return Samples(
        samples.prompts,
        samples.embeddings,
        samples.timesteps,
        list(latents[:, :, :-1].unbind(1)),
        list(latents[:, :, 1:].unbind(1)),
        list(log_prob.unbind(1)),
        samples.rewards,
    )


def gradient(parameters: list[torch.nn.Parameter]) -> Tensor:
    """All gradients, as one vector."""
    return torch.cat([p.grad.flatten().clone() for p in parameters if p.grad is not None])
