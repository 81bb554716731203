"""The optimiser's side of training: log-probs along stored trajectories, losses, gradients, optimiser steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import sdpo_kernels
import torch
from torch import Tensor

from sdpo_bench.config import RunConfig
from sdpo_bench.distributed import SINGLE_PROCESS, ProcessGroup, full_tensor, to_local
from sdpo_bench.methods import build_method
from sdpo_bench.policies import Policy
from sdpo_bench.training.epoch_plan import MicroBatch
from sdpo_bench.training.oom import retry_on_oom
from sdpo_bench.types import Counts, StepBatch, Trajectory, TrajectoryBatch

CLIP_RANGE, CLIP_DIMENSIONS = 1e-4, 16_384  # [official], on latents of 4 x 64 x 64

T = TypeVar("T")


class UpdateStats(NamedTuple):
    """An optimiser step in numbers, each a tensor without dimensions on the policy's device.

    loss and clip_fraction: of this process's entries, times its share of all of them: the processes' sum is the mean
    log_ratio_max: the largest |log-ratio| of this process's entries
    grad_norm: of the gradient of all processes, before clipping
    """

    loss: Tensor
    clip_fraction: Tensor
    log_ratio_max: Tensor
    grad_norm: Tensor


class BackwardPass(NamedTuple):
    """loss [P], clipped bool [P] and log-ratios [P, G] or [P, G, S] of the entries whose gradients were summed."""

    loss: Tensor
    clipped: Tensor
    log_ratio: Tensor


@dataclass
class VisitedLogProbs:
    """Log-probs [B, G, S] of a trajectory, each of the last time in this epoch that its step was trained."""

    trajectory: Trajectory
    log_prob: Tensor


class Updater:
    """Takes optimiser steps on stored trajectories.

    Gradients of micro-batches are summed in each process, and then over the processes, before a step.
    """

    def __init__(self, config: RunConfig, policy: Policy, ranks: ProcessGroup = SINGLE_PROCESS) -> None:
        self.config, self.policy, self.ranks = config, policy, ranks
        self.method = build_method(config.method, config.options)
        self.optimiser = torch.optim.AdamW(
            policy.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, eps=1e-8, fused=True
        )
        self.counts = Counts()
        scale = math.sqrt(CLIP_DIMENSIONS / math.prod(policy.latent_shape))
        self.clips = {
            "clip_range": config.clip_range or CLIP_RANGE * scale,
            "advantage_clip": config.advantage_clip,
        }
        self._visited: VisitedLogProbs | None = None

    @property
    def max_pairs(self) -> int:
        """Pairs of the largest forward pass."""
        return max(1, self.policy.rows // self.config.samples_per_group)

    def retry_on_oom(self, work: Callable[[], T]) -> T:
        return retry_on_oom(self.policy, work)

    def index(self, x: Tensor, device: torch.device | None = None) -> Tensor:
        """An index tensor on a device, the policy's by default. From pinned memory, since the host would otherwise wait
        at every copy until the GPU has nothing left to do."""
        device = self.policy.device if device is None else device
        return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)

    # The model's output and log-prob along stored trajectories

    def latents(
        self, trajectory: Trajectory, pairs: Tensor, steps: Tensor, sample: Tensor | slice = slice(None)
    ) -> Tensor:
        """Stored latents on the policy's device.

        pairs, steps: int64 [P], on the host
        sample: the index of the sample in each pair, int64 [P]; default: both

        Returns [P, G, C, H, W], or [P, C, H, W] with `sample`.
        """
        stored = trajectory.latents  # on the policy's device, or with --offload-trajectories on the host
        where = (pairs, sample, steps)
        found = stored[tuple(self.index(x, stored.device) if isinstance(x, Tensor) else x for x in where)]
        return found.to(self.policy.device)

    def predict(self, trajectory: Trajectory, pairs: Tensor, steps: Tensor) -> Tensor:
        """The model's output [P, G, C, H, W] at each pair's step. A pair shares its first input, so its output too."""
        # Of G P rows (pair 0's samples, pair 1's samples, ...) the model sees all but the later samples at step 0,
        # which would be the first sample's once more.
        G = self.config.samples_per_group
        needed = torch.stack([torch.ones_like(steps, dtype=torch.bool), *[steps > 0] * (G - 1)], 1).flatten()
        rows = needed.nonzero()[:, 0]
        row_pairs, row_steps = (x.repeat_interleave(G)[rows] for x in (pairs, steps))
        latents = self.latents(trajectory, row_pairs, row_steps, rows % G)
        row_pairs, row_steps = self.index(row_pairs), self.index(row_steps)
        output = self.policy.predict(
            trajectory.input_scale[row_steps].reshape(-1, 1, 1, 1) * latents,
            trajectory.timesteps[row_steps],
            tuple(c[row_pairs] for c in trajectory.conditions),
        )
        # Back to G P rows: a row that was left out takes the output of the last row before it.
        return output[self.index(needed.cumsum(0) - 1)].unflatten(0, (len(pairs), G))

    def log_prob(self, trajectory: Trajectory, pairs: Tensor, steps: Tensor) -> Tensor:
        """Log-prob [P, G] of each pair's stored step under the current policy."""
        G = self.config.samples_per_group
        return sdpo_kernels.gaussian_log_prob(
            self.predict(trajectory, pairs, steps).flatten(0, 1),
            self.latents(trajectory, pairs, steps).flatten(0, 1),
            self.latents(trajectory, pairs, steps + 1).flatten(0, 1),
            trajectory.coefficients[self.index(steps)].repeat_interleave(G, 0),
        ).unflatten(0, (len(pairs), G))

    @torch.no_grad()
    def reference_log_prob(self, trajectory: Trajectory) -> Tensor:
        """Log-probs [B, G, S] of the stored steps under the pretrained model."""
        pairs = torch.arange(len(trajectory.prompts))
        with self.policy.reference():
            parts = [
                torch.cat([self.log_prob(trajectory, p, torch.full_like(p, k)) for p in pairs.split(self.max_pairs)])
                for k in range(self.config.trained_steps)
            ]
        return torch.stack(parts, -1)

    @torch.no_grad()
    def reference_output(self, trajectory: Trajectory, pairs: Tensor, steps: Tensor) -> Tensor | None:
        """The pretrained model's output [P, G, C, H, W], where the method takes it."""
        if not self.method.reference_output:
            return None
        with self.policy.reference():
            return self.predict(trajectory, pairs, steps)

    # Optimiser steps

    def update(
        self,
        batch: Sequence[MicroBatch],
        trajectory: Trajectory,
        advantages: Tensor,
        reference_log_prob: Tensor | None = None,
    ) -> UpdateStats:
        """One optimiser step on `batch`.

        advantages: float32 [B, G, K], on the policy's device
        reference_log_prob: [B, G, S], for methods that take it
        """
        backward = self.trajectory_backward if self.method.whole_trajectory else self.step_backward

        def attempt() -> BackwardPass:
            self.optimiser.zero_grad(set_to_none=True)
            # By now passes may have to be smaller than when the batch was made.
            parts = [part for micro_batch in batch for part in micro_batch.split(self.max_pairs)]
            return backward(parts, trajectory, advantages, reference_log_prob)

        done = self.retry_on_oom(attempt)
        self.sum_gradients()
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(self.policy.parameters, self.config.max_grad_norm))
        self.optimiser.step()
        self.counts.optimiser_steps += 1
        share = count_pairs(batch) / self.config.pairs_per_update
        return UpdateStats(
            share * done.loss.mean(), share * done.clipped.float().mean(), done.log_ratio.abs().max(), norm
        )

    def sum_gradients(self) -> None:
        """Adds the gradients of all processes.

        Here, and not by DistributedDataParallel: its hooks know nothing of a backward pass in several parts or of a
        second attempt. Each loss is a mean over the entries of all processes, so that the sum is its gradient.
        """
        gradients = [p.grad for p in self.policy.parameters if p.grad is not None]
        if self.ranks.sharded:  # FSDP has averaged them
            torch._foreach_mul_([to_local(grad) for grad in gradients], self.ranks.size)
        else:
            self.ranks.all_reduce_sum(gradients)

    def step_backward(
        self,
        batch: Sequence[MicroBatch],
        trajectory: Trajectory,
        advantages: Tensor,
        reference_log_prob: Tensor | None,
    ) -> BackwardPass:
        """Gradients of a loss that is a mean over single steps."""
        steps_each = sum(len(pairs) for pairs, _ in batch) // count_pairs(batch)
        entries = self.config.pairs_per_update * steps_each  # of all processes
        parts = []
        for pairs, steps in batch:
            output = self.predict(trajectory, pairs, steps)
            reference_output = self.reference_output(trajectory, pairs, steps)
            sample, following = (self.latents(trajectory, pairs, k) for k in (steps, steps + 1))
            pairs, steps = self.index(pairs), self.index(steps)
            step_batch = StepBatch(
                step=steps,
                sample=sample,
                prev_sample=following,
                coefficients=trajectory.coefficients[steps],
                old_log_prob=trajectory.log_prob[pairs, :, steps],
                advantages=advantages[pairs, :, steps],
                reference_log_prob=None if reference_log_prob is None else reference_log_prob[pairs, :, steps],
                reference_output=reference_output,
            )
            result, grad = self.method.loss_and_grad(output.detach(), step_batch, grad_scale=1 / entries, **self.clips)
            output.backward(grad)
            parts.append(BackwardPass(result.loss, result.clipped, result.log_prob - step_batch.old_log_prob))
        return BackwardPass(*(torch.cat(x) for x in zip(*parts, strict=True)))

    def trajectory_backward(
        self,
        batch: Sequence[MicroBatch],
        trajectory: Trajectory,
        advantages: Tensor,
        reference_log_prob: Tensor | None,
    ) -> BackwardPass:
        """Gradients of a loss that sums log-probs over a trajectory's steps, exactly, in the memory of one step.

        First the log-probs without a graph, and the loss's derivative by each; then step by step through the model.
        With an update per step, steps not in this batch keep the log-prob of their last visit in the epoch.
        """
        S = self.config.trained_steps
        if self._visited is None or self._visited.trajectory is not trajectory:
            self._visited = VisitedLogProbs(trajectory, trajectory.log_prob[..., :S].clone())
        current = self._visited.log_prob
        with torch.no_grad():
            for pairs, steps in batch:
                current[self.index(pairs), :, self.index(steps)] = self.log_prob(trajectory, pairs, steps)
        members = self.index(torch.cat([pairs for pairs, _ in batch]).unique())
        trajectory_batch = TrajectoryBatch(
            old_log_prob=trajectory.log_prob[members][..., :S],
            advantages=advantages[members][..., -1],
            reference_log_prob=None if reference_log_prob is None else reference_log_prob[members],
        )
        leaf = current[members].requires_grad_()
        result = self.method.loss(leaf, trajectory_batch, **self.clips)
        gradient = torch.zeros_like(current)
        (gradient[members],) = torch.autograd.grad(result.loss.sum() / self.config.pairs_per_update, leaf)
        for pairs, steps in batch:
            self.log_prob(trajectory, pairs, steps).backward(gradient[self.index(pairs), :, self.index(steps)])
        return BackwardPass(result.loss.detach(), result.clipped, leaf.detach() - trajectory_batch.old_log_prob)

    def forget_visits(self) -> None:
        """At the beginning of an epoch: no log-prob is known from an earlier update."""
        self._visited = None


def count_pairs(batch: Sequence[MicroBatch]) -> int:
    """The number of different pairs in the micro-batches."""
    return len(torch.cat([pairs for pairs, _ in batch]).unique())
