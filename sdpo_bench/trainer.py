"""The one trainer: sample, reward, advantages, step-shuffled updates. A method is only its loss and its returns."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sdpo_kernels
import torch
from torch import Tensor

from sdpo_bench import dense
from sdpo_bench.advantages import Normaliser
from sdpo_bench.checkpoint import load_checkpoint, save_checkpoint
from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.evaluation import evaluate, evaluated_prompts, evaluation_rewards, save_grid
from sdpo_bench.methods import build_method
from sdpo_bench.policies import StableDiffusionPolicy, load_policy
from sdpo_bench.prompts import splits
from sdpo_bench.provenance import collect
from sdpo_bench.records import RunWriter, run_id
from sdpo_bench.rewards import Reward
from sdpo_bench.sampler import derive_seeds, sample
from sdpo_bench.types import Counts, StepBatch, Trajectory, TrajectoryBatch

GROUP = 2
CLIP_RANGE, CLIP_DIMENSIONS = 1e-4, 16_384  # [official], on latents of 4 x 64 x 64
PROMPTS, INITIAL, STEPS, ORDER = range(4)  # what an epoch's seeds are for

Microbatch = tuple[Tensor, Tensor]
"""Pairs int64 [P] and the step of each, int64 [P], on the CPU."""


class TrainingDiverged(UserError):
    """A loss, a gradient or a weight is no longer finite."""


class Trainer:
    """One run's state. `epoch(e)` trains epoch e, counted from 1, and returns its row for train.jsonl."""

    def __init__(self, config: RunConfig, policy: StableDiffusionPolicy, reward: Reward) -> None:
        self.config, self.policy, self.reward = config, policy, reward
        self.method = build_method(config.method, config.options)
        self.prompts = splits(config.prompts, config.unseen_prompts)[config.train_split]
        if not self.prompts:
            raise UserError(f"--train-split {config.train_split}: there are no such prompts beside files of one's own")
        policy.schedule(config.steps, eta=config.eta, trained_steps=config.trained_steps)  # refuses sigma = 0
        for steps in config.eval_steps:
            policy.schedule(steps, eta=config.eta)
        self.optimiser = torch.optim.AdamW(
            policy.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, eps=1e-8
        )
        self.normaliser = Normaliser()
        self.counts = Counts()
        scale = math.sqrt(CLIP_DIMENSIONS / math.prod(policy.latent_shape))
        self.clips = {
            "clip_range": config.clip_range or CLIP_RANGE * scale,
            "advantage_clip": config.advantage_clip,
        }

    def epoch(self, epoch: int) -> dict[str, Any]:
        """Samples, rewards and updates once. Raises TrainingDiverged, the weights being useless then."""
        evaluations, clock = self.policy.evaluations, [time.perf_counter()]
        self._last_visit = None
        trajectory = self.sample(epoch)
        reference = self.reference_log_prob(trajectory) if self.method.reference else None
        clock.append(time.perf_counter())
        provider = dense.PROVIDERS[self.config.dense if self.method.dense else "terminal"]
        rewards = provider(trajectory, self.score)
        advantages = self.normaliser(trajectory.prompts, self.method.returns(rewards.values)).to(self.policy.device)
        clock.append(time.perf_counter())
        log = [self.update(group, trajectory, advantages, reference) for group in self.groups(epoch)]
        loss, clipped, log_ratio, norm = torch.tensor([[float(x) for x in row] for row in log]).unbind(1)
        clock.append(time.perf_counter())
        finite = bool(torch.isfinite(loss).all() and torch.isfinite(norm).all())
        if not finite or not all(bool(torch.isfinite(p).all()) for p in self.policy.parameters):
            raise TrainingDiverged(
                f"training diverged in epoch {epoch}: a loss, gradient or weight is not finite; lower "
                f"--learning-rate ({self.config.learning_rate:g}) and start another run; this run's records and its "
                f"last checkpoint stay"
            )
        self.counts.samples += trajectory.log_prob[..., 0].numel()
        self.counts.reward_queries += rewards.queries
        self.counts.model_evaluations += self.policy.evaluations - evaluations
        return {
            "epoch": epoch,
            **dataclasses.asdict(self.counts),
            "loss": loss.mean().item(),
            "reward_mean": rewards.values[..., -1].mean().item(),
            "clip_fraction": clipped.mean().item(),
            "log_ratio_max": log_ratio.max().item(),
            "grad_norm": norm.mean().item(),
            "seconds": dict(zip(("sample", "reward", "train"), np.diff(clock).round(4).tolist(), strict=True)),
        }

    # Sampling and rewards

    def sample(self, epoch: int) -> Trajectory:
        """The epoch's pairs: random prompts, one x_T a pair, step noise for each sample."""
        config, seeds = self.config, (self.config.seed, epoch)
        choice = np.random.default_rng((*seeds, PROMPTS)).integers(len(self.prompts), size=config.pairs)
        return sample(
            self.policy,
            [self.prompts[i] for i in choice],
            steps=config.steps,
            initial_seeds=derive_seeds(*seeds, INITIAL, count=config.pairs),
            step_seeds=derive_seeds(*seeds, STEPS, count=config.pairs * GROUP).reshape(config.pairs, GROUP),
            eta=config.eta,
            trained_steps=config.trained_steps,
        )

    def score(self, latents: Tensor, prompts: list[str]) -> Tensor:
        rewards = self.reward(self.policy.decode(latents), prompts)
        if not bool(torch.isfinite(rewards).all()):
            raise UserError(f"reward {self.config.reward} gave a value that is not finite for a picture of this run")
        return rewards.to(latents.device)

    # The model's output and log-prob along stored trajectories

    def predict(self, trajectory: Trajectory, pairs: Tensor, steps: Tensor) -> Tensor:
        """The model's output [P, 2, C, H, W] at each pair's step. A pair shares its first input, so its output too."""
        needed = torch.stack([torch.ones_like(steps, dtype=torch.bool), steps > 0], 1).flatten()
        rows, device = needed.nonzero()[:, 0], self.policy.device
        output = self.policy.predict(
            trajectory.latents[pairs, :, steps].flatten(0, 1)[rows.to(device)],
            trajectory.timesteps[steps.repeat_interleave(GROUP)[rows].to(device)],
            trajectory.embeddings[pairs.repeat_interleave(GROUP)[rows].to(device)],
        )
        return output[(needed.cumsum(0) - 1).to(device)].unflatten(0, (len(pairs), GROUP))

    def log_prob(self, trajectory: Trajectory, pairs: Tensor, steps: Tensor) -> Tensor:
        """Log-prob [P, 2] of each pair's stored step under the current policy."""
        return sdpo_kernels.gaussian_log_prob(
            self.predict(trajectory, pairs, steps).flatten(0, 1),
            trajectory.latents[pairs, :, steps].flatten(0, 1),
            trajectory.latents[pairs, :, steps + 1].flatten(0, 1),
            trajectory.coefficients[steps.to(self.policy.device)].repeat_interleave(GROUP, 0),
        ).unflatten(0, (len(pairs), GROUP))

    @torch.no_grad()
    def reference_log_prob(self, trajectory: Trajectory) -> Tensor:
        """Log-probs [B, 2, S] of the stored steps under the pretrained model."""
        pairs = torch.arange(len(trajectory.prompts))
        with self.policy.reference():
            parts = [
                torch.cat([self.log_prob(trajectory, p, torch.full_like(p, k)) for p in pairs.split(self.microbatch)])
                for k in range(self.config.trained_steps)
            ]
        return torch.stack(parts, -1)

    def check_on_policy(self, epoch: int) -> float:
        """Largest |log-ratio| of the unchanged policy, over one batch of the coming epoch: how far the numerics of
        sampling and of training differ. On a CPU it must be exactly 0; the check enters no count.
        """
        evaluations = self.policy.evaluations
        trajectory = self.sample(epoch)
        largest = 0.0
        for pairs, steps in self.groups(epoch)[0]:
            old = trajectory.log_prob[pairs, :, steps]
            largest = max(largest, (self.log_prob(trajectory, pairs, steps).detach() - old).abs().max().item())
        self.policy.evaluations = evaluations
        if self.policy.device.type == "cpu" and largest != 0:
            raise UserError(
                f"the unchanged policy's log-ratio is {largest:.3g}, not 0: on this CPU a forward pass depends on its "
                f"number of rows; raise --pad-rows (now {self.config.pad_rows}, up to --rows; in a profile: COMMON in "
                f"sdpo_bench/experiments.py)"
            )
        if largest > self.clips["clip_range"] / 10:
            print(f"warning: on-policy log-ratio {largest:.3g} is over a tenth of the clip range", file=sys.stderr)
        return largest

    # Updates

    @property
    def microbatch(self) -> int:
        return max(1, self.policy.rows // GROUP)

    def groups(self, epoch: int) -> list[list[Microbatch]]:
        """The epoch's optimiser steps, each the micro-batches whose gradients it sums.

        Pairs are permuted; each pair has a permutation of the trained steps of its own, shared by its two samples
        (SDPO's step shuffling). "step": one denoising step of a batch of pairs; "trajectory": all of its steps.
        """
        config = self.config
        rng = np.random.default_rng((config.seed, epoch, ORDER))
        batches = torch.from_numpy(rng.permutation(config.pairs)).split(config.pairs_per_update)
        shuffled = torch.from_numpy(rng.permuted(np.tile(np.arange(config.trained_steps), (config.pairs, 1)), axis=1))

        def microbatches(batch: Tensor, position: int) -> Iterator[Microbatch]:
            return ((p, shuffled[p, position]) for p in batch.split(self.microbatch))

        positions = range(config.trained_steps)
        if config.resolved_updates == "step":
            return [list(microbatches(batch, j)) for j in positions for batch in batches]
        return [[m for j in positions for m in microbatches(batch, j)] for batch in batches]

    def update(
        self, group: list[Microbatch], trajectory: Trajectory, advantages: Tensor, reference: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One optimiser step: mean loss, fraction of clipped entries, largest |log-ratio|, gradient norm."""
        self.optimiser.zero_grad(set_to_none=True)
        backward = self.trajectory_backward if self.method.whole_trajectory else self.step_backward
        loss, clipped, log_ratio = backward(group, trajectory, advantages, reference)
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters, self.config.max_grad_norm)
        self.optimiser.step()
        self.counts.optimiser_steps += 1
        return loss.mean(), clipped.float().mean(), log_ratio.abs().max(), norm

    def step_backward(
        self, group: list[Microbatch], trajectory: Trajectory, advantages: Tensor, reference: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of a loss that is a mean over single steps."""
        entries = sum(len(pairs) for pairs, _ in group)
        parts = []
        for pairs, steps in group:
            batch = StepBatch(
                step=steps.to(self.policy.device),
                sample=trajectory.latents[pairs, :, steps],
                prev_sample=trajectory.latents[pairs, :, steps + 1],
                coefficients=trajectory.coefficients[steps.to(self.policy.device)],
                old_log_prob=trajectory.log_prob[pairs, :, steps],
                advantages=advantages[pairs, :, steps],
                reference_log_prob=None if reference is None else reference[pairs, :, steps],
            )
            output = self.predict(trajectory, pairs, steps)
            result, grad = self.method.loss_and_grad(output.detach(), batch, grad_scale=1 / entries, **self.clips)
            output.backward(grad)
            parts.append((result.loss, result.clipped, result.log_prob - batch.old_log_prob))
        loss, clipped, log_ratio = (torch.cat(x) for x in zip(*parts, strict=True))
        return loss, clipped, log_ratio

    def trajectory_backward(
        self, group: list[Microbatch], trajectory: Trajectory, advantages: Tensor, reference: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of a loss that sums log-probs over a trajectory's steps, exactly, in the memory of one step.

        First the log-probs without a graph, and the loss's derivative by each; then step by step through the model.
        With an update per step, steps not in this group keep the log-prob of their last visit in the epoch.
        """
        S = self.config.trained_steps
        if self._last_visit is None or self._last_visit[0] is not trajectory:
            self._last_visit = (trajectory, trajectory.log_prob[..., :S].clone())
        current = self._last_visit[1]
        with torch.no_grad():
            for pairs, steps in group:
                current[pairs, :, steps] = self.log_prob(trajectory, pairs, steps)
        members = torch.cat([pairs for pairs, _ in group]).unique()
        batch = TrajectoryBatch(
            old_log_prob=trajectory.log_prob[members][..., :S],
            advantages=advantages[members][..., -1],
            reference_log_prob=None if reference is None else reference[members],
        )
        leaf = current[members].requires_grad_()
        result = self.method.loss(leaf, batch, **self.clips)
        gradient = torch.zeros_like(current)
        (gradient[members],) = torch.autograd.grad(result.loss.sum() / len(members), leaf)
        for pairs, steps in group:
            self.log_prob(trajectory, pairs, steps).backward(gradient[pairs, :, steps])
        return result.loss.detach(), result.clipped, leaf.detach() - batch.old_log_prob

    _last_visit: tuple[Trajectory, Tensor] | None = None

    # Checkpoints

    def state(self) -> dict[str, Any]:
        return {
            "weights": self.policy.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "normaliser": self.normaliser.buffers,
            "counts": dataclasses.asdict(self.counts),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["weights"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.normaliser.buffers = state["normaliser"]
        self.counts = Counts(**state["counts"])


def train(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Runs `config` into `folder`, whose name is the run's id, and writes done.json last.

    With resume a finished run is left as it is, and an unfinished one goes on from its checkpoint: on a CPU to the
    same weights, bit for bit, as without the interruption. `on_epoch` gets {"epoch", "epochs", "phase", "seconds",
    "reward_mean"} after each epoch ("train") and each evaluation ("evaluate").
    """
    row = config.to_json()
    row["run_id"] = run_id(row)
    checkpoint = folder / "checkpoint.pt"

    def finished() -> bool:
        if not resume and ((folder / "config.json").exists() or checkpoint.exists()):
            raise UserError(f"{folder} already holds a run; go on with --resume, or choose another folder")
        if (folder / "done.json").exists():
            checkpoint.unlink(missing_ok=True)  # a kill may have come between the two
            return True
        return False

    if finished():
        return
    # All that can be refused is refused before anything is written.
    rewards = evaluation_rewards(config)
    policy = load_policy(config)
    trainer = Trainer(config, policy, rewards[config.reward])
    for reward in rewards.values():
        for prompts in (trainer.prompts, *evaluated_prompts(config).values()):
            reward.check_prompts(prompts)
    on_policy = trainer.check_on_policy(1) if config.epochs and not checkpoint.exists() else None
    seconds = {"sample": 0.0, "reward": 0.0, "train": 0.0, "evaluate": 0.0}
    done = 0

    def report(phase: str, epoch: int, spent: float, reward_mean: float | None = None) -> None:
        if on_epoch is not None:
            on_epoch(
                {"epoch": epoch, "epochs": config.epochs, "phase": phase, "seconds": spent, "reward_mean": reward_mean}
            )

    with RunWriter(folder) as writer:
        if finished():  # by another process, while this one was loading
            return
        if checkpoint.exists():
            state = load_checkpoint(checkpoint, row["run_id"])
            trainer.load_state(state)
            done, seconds = state["epoch"], state["seconds"]
        writer.write_config(row)
        writer.write_provenance(collect(policy.device, rewards))
        writer.truncate(done if checkpoint.exists() else -1)

        def evaluation(epoch: int) -> None:
            start = time.perf_counter()
            evaluations = policy.evaluations
            for result in evaluate(policy, config, rewards):
                writer.append_eval({"epoch": epoch, **dataclasses.asdict(trainer.counts), **result})
            policy.evaluations = evaluations
            seconds["evaluate"] += time.perf_counter() - start
            report("evaluate", epoch, time.perf_counter() - start)

        if done == 0 and (config.eval_start or config.epochs == 0):
            evaluation(0)
            save_grid(policy, config, folder / "grid_before.png")
        if on_policy is None and done < config.epochs:
            on_policy = trainer.check_on_policy(done + 1)
        for epoch in range(done + 1, config.epochs + 1):
            result = trainer.epoch(epoch)
            if epoch == 1:
                result["on_policy_log_ratio"] = on_policy
            writer.append_train(result)
            for phase, spent in result["seconds"].items():
                seconds[phase] += spent
            report("train", epoch, sum(result["seconds"].values()), result["reward_mean"])
            last = epoch == config.epochs
            if last or epoch % config.eval_every == 0:
                evaluation(epoch)
            if last or (config.checkpoint_every and epoch % config.checkpoint_every == 0):
                state = trainer.state() | {"run_id": row["run_id"], "epoch": epoch, "seconds": seconds}
                save_checkpoint(checkpoint, state)
        if config.epochs:
            policy.save(folder / ("adapter" if config.finetune == "lora" else "model"))
            save_grid(policy, config, folder / "grid_after.png")
        writer.finish(
            {
                "epochs": config.epochs,
                "seconds": {k: round(v, 3) for k, v in seconds.items()},
                "seconds_per_epoch": {
                    k: round(v / config.epochs, 4) if config.epochs else 0.0
                    for k, v in seconds.items()
                    if k != "evaluate"
                },
                "clip_range": trainer.clips["clip_range"],
                "trained_weights": sum(p.numel() for p in policy.parameters),
            }
        )
        checkpoint.unlink(missing_ok=True)
