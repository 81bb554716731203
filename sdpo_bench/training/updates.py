"""The optimiser's side of training: the model's output at samples, losses, gradients, optimiser steps."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import sdpo_kernels
import torch
from sdpo_kernels.coefficients import Schedule
from torch import Tensor

from sdpo_bench.config import RunConfig
from sdpo_bench.distributed import SINGLE_PROCESS, ProcessGroup, full_tensor, to_local
from sdpo_bench.methods import build_method
from sdpo_bench.methods.base import RewardGradient
from sdpo_bench.policies import Policy
from sdpo_bench.rewards import Reward
from sdpo_bench.training import reward_gradient
from sdpo_bench.training.epoch_plan import MicroBatch
from sdpo_bench.training.old_weights import OldWeights
from sdpo_bench.training.oom import retry_on_oom
from sdpo_bench.training.sampling import derive_seeds
from sdpo_bench.types import Counts, NoisedBatch, StepBatch, Trajectory, TrajectoryBatch

CLIP_DIMENSIONS = 16_384  # of the latents, 4 x 64 x 64, that a method's clip range belongs to [official]
NOISED = 1 << 21  # from here on step indices are those of fresh noise on finished samples

T = TypeVar("T")


class UpdateStats(NamedTuple):
    """An optimiser step in numbers, each a tensor without dimensions on the policy's device.

    loss, clip_fraction and kl: means of this process's entries, times its share of all of them: the processes' sum is
        the mean of all
    kl: of the log-prob under the policy that sampled minus the current one, whose expectation is the divergence of the
        two, per element of a latent
    log_ratio_max: the largest |log-ratio| of this process's entries
    grad_norm: of the gradient of all processes, before clipping
    """

    loss: Tensor
    clip_fraction: Tensor
    kl: Tensor
    log_ratio_max: Tensor
    grad_norm: Tensor


class BackwardPass(NamedTuple):
    """loss [P], clipped bool [P] and log-ratios [P, G] or [P, G, S] of the entries whose gradients were summed.

    Of noised samples the log-ratio is how much less their error is than the old model's, or the pretrained one's.
    """

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

    def __init__(self, config: RunConfig, policy: Policy, reward: Reward, ranks: ProcessGroup = SINGLE_PROCESS) -> None:
        self.config, self.policy, self.reward, self.ranks = config, policy, reward, ranks
        self.method = build_method(config.method, config.options)
        self.reward_gradient = self.method.reward_gradient(config.steps)
        self.old_weights = OldWeights(policy) if self.method.keeps_old_weights else None
        self.optimiser = torch.optim.AdamW(
            policy.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, eps=1e-8, fused=True
        )
        self.counts = Counts()
        scale = math.sqrt(CLIP_DIMENSIONS / math.prod(policy.latent_shape))
        self.clips = {
            "clip_range": config.clip_range or self.method.clip_range * scale,
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
        return self.stored(trajectory.latents, pairs, steps, sample)

    def stored(self, values: Tensor, pairs: Tensor, steps: Tensor, sample: Tensor | slice = slice(None)) -> Tensor:
        """Entries of `values` [B, G, steps, C, H, W] as `latents` gives them."""
        # They are on the policy's device, or with --offload-trajectories on the host.
        where = (pairs, sample, steps)
        found = values[tuple(self.index(x, values.device) if isinstance(x, Tensor) else x for x in where)]
        return found.to(self.policy.device)

    def predict(self, trajectory: Trajectory, pairs: Tensor, steps: Tensor) -> Tensor:
        """The model's output [P, G, C, H, W] at each pair's step. A pair shares its first input, so its output too."""
        # Of G P rows (pair 0's samples, pair 1's samples, ...) the model sees all but the later samples at step 0,
        # which would be the first sample's once more.
        G = self.config.samples_per_group
        own = steps > 0 if trajectory.shared_noise else steps >= 0
        needed = torch.stack([torch.ones_like(own), *[own] * (G - 1)], 1).flatten()
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
    def reference_output(self, predict: Callable[[], Tensor]) -> Tensor | None:
        """The output of `predict` with the pretrained model, if the method takes it."""
        if not self.method.reference_output:
            return None
        with self.policy.reference():
            return predict()

    @torch.no_grad()
    def old_output(self, predict: Callable[[], Tensor]) -> Tensor | None:
        """The output of `predict` with the old weights, if the method takes it."""
        if not self.method.old_output:
            return None
        assert self.old_weights is not None
        with self.old_weights.applied():
            return predict()

    def relative_sigma(self, trajectory: Trajectory) -> Tensor:
        """Each step's sigma over the mean of the trained steps', [K]. Steps outside a window draw no noise, and do not
        count."""
        sigma = trajectory.coefficients[:, 4]
        trained = sigma[: self.config.trained_steps]
        return sigma * (trained > 0).sum() / trained.sum()

    @contextlib.contextmanager
    def sampling_weights(self) -> Iterator[None]:
        """Within this context the policy has the weights that training samples are made with."""
        old = self.old_weights if self.method.samples_with_old_weights else None
        with old.applied() if old is not None else contextlib.nullcontext():
            yield

    def noised(self, trajectory: Trajectory, pairs: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Finished samples [P, G, C, H, W], and these with fresh noise of the given steps' levels.

        The noise derives from a sample's own seed, or its group's first, and the step, as a sampler's does; its step
        index has no other use.
        """
        G = self.config.samples_per_group
        clean = self.latents(trajectory, pairs, torch.full_like(pairs, trajectory.latents.shape[2] - 1))
        own = trajectory.step_seeds[pairs]
        seeds = self.index(own[:, :1].expand_as(own) if self.method.shared_noising else own).flatten()
        noise = torch.empty_like(clean.flatten(0, 1), dtype=torch.float32)
        rows = steps.repeat_interleave(G)
        for k in steps.unique().tolist():  # a kernel call draws the noise of one step index
            which = self.index((rows == k).nonzero()[:, 0])
            noise[which] = sdpo_kernels.normal(seeds[which], clean.shape[2:], NOISED + k)
        where = self.index(steps)
        signal, level = (x[where].reshape(-1, 1, 1, 1, 1) for x in (trajectory.signal_scale, trajectory.noise_scale))
        return clean, (signal * clean + level * noise.view_as(clean)).to(clean.dtype)

    @functools.cached_property
    def all_levels(self) -> Schedule:
        """The noise levels of all timesteps that the model has."""
        return self.policy.schedule(self.policy.most_steps, eta=self.config.eta)

    def at_any_level(self, trajectory: Trajectory, pairs: Tensor, steps: Tensor) -> tuple[Trajectory, Tensor]:
        """The trajectory with the noise levels of all of the model's timesteps in place of its K steps', and one of
        them, int64 [P], for each pair and step: drawn from the seed of the pair's first sample."""
        seeds = trajectory.step_seeds[pairs, 0].tolist()
        drawn = [derive_seeds(seed % 2**64, k, count=1) for seed, k in zip(seeds, steps.tolist(), strict=True)]
        finer = dataclasses.replace(
            trajectory,
            timesteps=self.all_levels.timesteps,
            coefficients=self.all_levels.table,
            input_scale=self.all_levels.input_scale.to(trajectory.input_scale.dtype),
            signal_scale=self.all_levels.signal_scale,
            noise_scale=self.all_levels.noise_scale,
        )
        return finer, torch.cat(drawn) % len(finer.timesteps)

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
        done = self.make_gradients(batch, trajectory, advantages, reference_log_prob)
        norm = self.step_optimiser()
        share = count_pairs(batch) / self.config.pairs_per_update
        return UpdateStats(
            share * done.loss.mean(),
            share * done.clipped.float().mean(),
            -share * done.log_ratio.mean(),
            done.log_ratio.abs().max(),
            norm,
        )

    def make_gradients(
        self,
        batch: Sequence[MicroBatch],
        trajectory: Trajectory,
        advantages: Tensor,
        reference_log_prob: Tensor | None = None,
    ) -> BackwardPass:
        """The first half of `update`: this process's gradients of the loss, in place of earlier ones."""
        backward = {
            "step": self.step_backward,
            "trajectory": self.trajectory_backward,
            "noised": self.noised_backward,
            "reward": None,
        }[self.method.learns_from]

        def attempt() -> BackwardPass:
            self.optimiser.zero_grad(set_to_none=True)
            # By now passes may have to be smaller than when the batch was made.
            parts = [part for micro_batch in batch for part in micro_batch.split(self.max_pairs)]
            done = [] if backward is None else [backward(parts, trajectory, advantages, reference_log_prob)]
            if self.reward_gradient is not None:
                done.append(self.reward_backward(self.reward_gradient, parts, trajectory))
            return done[0] if len(done) == 1 else done[0]._replace(loss=done[0].loss.mean() + done[1].loss)

        return self.retry_on_oom(attempt)

    def step_optimiser(self) -> Tensor:
        """The second half of `update`: gradients are summed over processes and clipped, and AdamW takes a step. Returns
        their norm before clipping."""
        self.sum_gradients()
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(self.policy.parameters, self.config.max_grad_norm))
        self.optimiser.step()
        self.counts.optimiser_steps += 1
        if (term := self.reward_gradient) is not None:  # an update takes it once for each of all processes' samples
            samples = self.config.pairs_per_update * self.config.samples_per_group
            self.counts.reward_gradients += samples * max(term.noisings, 1)
        return norm

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
            reference_output = self.reference_output(functools.partial(self.predict, trajectory, pairs, steps))
            sample, following = (self.latents(trajectory, pairs, k) for k in (steps, steps + 1))
            old_output = None if trajectory.outputs is None else self.stored(trajectory.outputs, pairs, steps)
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
                old_output=old_output,
                relative_sigma=self.relative_sigma(trajectory)[steps] if self.method.weighs_by_sigma else None,
            )
            result, grad = self.method.loss_and_grad(output.detach(), step_batch, grad_scale=1 / entries, **self.clips)
            output.backward(grad)
            parts.append(BackwardPass(result.loss, result.clipped, result.log_prob - step_batch.old_log_prob))
        return BackwardPass(*(torch.cat(x) for x in zip(*parts, strict=True)))

    def noised_backward(
        self,
        batch: Sequence[MicroBatch],
        trajectory: Trajectory,
        advantages: Tensor,
        reference_log_prob: Tensor | None,
    ) -> BackwardPass:
        """Gradients of a loss that is a mean over finished samples with fresh noise, at the noise levels of steps, or
        at as many drawn from all of the model's."""
        levels_each = sum(len(pairs) for pairs, _ in batch) // count_pairs(batch)
        entries = self.config.pairs_per_update * levels_each  # of all processes
        parts = []
        for pairs, steps in batch:
            advantage = advantages[self.index(pairs), :, self.index(steps)]
            levels = trajectory
            if self.method.all_noise_levels:
                levels, steps = self.at_any_level(trajectory, pairs, steps)
            clean, sample = self.noised(levels, pairs, steps)
            pairs, steps = self.index(pairs), self.index(steps)
            predict = functools.partial(self.predict_at, levels, sample, pairs, steps)
            # Before the graph of the trained weights: the others are put in their place for a while.
            old_output, reference_output = self.old_output(predict), self.reference_output(predict)
            noised_batch = NoisedBatch(
                step=steps,
                clean=clean,
                sample=sample,
                coefficients=levels.coefficients[steps],
                advantages=advantage,
                reference_output=reference_output,
                old_output=old_output,
            )
            output = predict()
            result, grad = self.method.loss_and_grad(
                output.detach(), noised_batch, grad_scale=1 / entries, **self.clips
            )
            output.backward(grad)
            compared = old_output if old_output is not None else reference_output
            before = result.log_prob if compared is None else -noised_batch.error(compared)
            parts.append(BackwardPass(result.loss, result.clipped, result.log_prob - before))
        return BackwardPass(*(torch.cat(x) for x in zip(*parts, strict=True)))

    def predict_at(self, trajectory: Trajectory, sample: Tensor, pairs: Tensor, steps: Tensor) -> Tensor:
        """The model's output [P, G, C, H, W] at latents [P, G, C, H, W] of given steps; indices on the device."""
        G = sample.shape[1]
        output = self.policy.predict(
            (trajectory.input_scale[steps].reshape(-1, 1, 1, 1, 1) * sample).flatten(0, 1),
            trajectory.timesteps[steps].repeat_interleave(G),
            tuple(c[pairs].repeat_interleave(G, 0) for c in trajectory.conditions),
        )
        return output.view_as(sample)

    def reward_backward(
        self, term: RewardGradient, batch: Sequence[MicroBatch], trajectory: Trajectory
    ) -> BackwardPass:
        """Gradients of -weight * reward, a mean over samples, back through the picture and the last steps."""
        members = torch.cat([pairs for pairs, _ in batch]).unique()
        G, losses = self.config.samples_per_group, []
        for pairs in members.split(self.max_pairs):
            rewards = reward_gradient.rewards_of_last_steps(
                self.policy, self.reward, trajectory, pairs, term.last_steps, term.noisings
            )
            loss = -term.weight * rewards.mean(1)
            (loss.sum() / self.config.pairs_per_update).backward()
            losses.append(loss.detach())
        loss = torch.cat(losses)
        return BackwardPass(loss, torch.zeros_like(loss, dtype=torch.bool), loss.new_zeros(len(loss), G))

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
