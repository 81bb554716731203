"""The one trainer: sample, reward, advantages, step-shuffled updates. A method is only its loss and its returns."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import sdpo_kernels
import torch
from torch import Tensor

from sdpo_bench import dense_rewards, interruption
from sdpo_bench.config import RunConfig, flag
from sdpo_bench.distributed import (
    SINGLE_PROCESS,
    ProcessGroup,
    distribute_like,
    full_tensor,
    full_tensor_on_cpu,
    to_local,
)
from sdpo_bench.errors import UserError
from sdpo_bench.methods import METHODS, build_method
from sdpo_bench.policies import Policy
from sdpo_bench.rewards import Reward
from sdpo_bench.training import dense_probe
from sdpo_bench.training.advantages import PerPromptNormalizer
from sdpo_bench.training.oom import retry_on_oom
from sdpo_bench.training.sampling import derive_seeds, joined, sample
from sdpo_bench.training.scoring import score
from sdpo_bench.types import Counts, DenseRewards, StepBatch, Trajectory, TrajectoryBatch

GROUP = 2


CLIP_RANGE, CLIP_DIMENSIONS = 1e-4, 16_384  # [official], on latents of 4 x 64 x 64


PROMPTS, INITIAL, STEPS, ORDER, PROBE = range(5)  # what an epoch's seeds are for


T = TypeVar("T")


Microbatch = tuple[Tensor, Tensor]
"""Pairs int64 [P], counted among those of this process, and the step of each, int64 [P], on the CPU."""


class TrainingDiverged(UserError):
    """A loss, a gradient or a weight is no longer finite."""


def likely_causes(config: RunConfig) -> str:
    """What to change after a divergence: whatever of the settings is known to cause it, the learning rate where it is
    above the default or where nothing else is."""
    causes = []
    if config.dtype == "float16":
        causes.append("give --dtype bfloat16 or float32 (float16 overflows above 65504)")
    defaults = dataclasses.asdict(METHODS[config.method]())
    if given := [f"{name} {value:g}" for name, value in config.options.items() if value != defaults[name]]:
        causes.append(f"take --options {' '.join(given)} back to the method's defaults")
    for name in ("weight_decay", "max_grad_norm"):
        if getattr(config, name) > getattr(RunConfig, name):  # the class has the defaults
            causes.append(f"lower {flag(name)} ({getattr(config, name):g})")
    if not causes or config.learning_rate > RunConfig.learning_rate:
        causes.append(f"lower --learning-rate ({config.learning_rate:g})")
    return " or ".join(causes)


class Trainer:
    """One run's state. `epoch(e)` trains epoch e, counted from 1, and returns its row for train.jsonl.

    With several processes each samples, scores and trains its share of every optimiser step's pairs, so that no
    latents are sent. All know all rewards, and so the same advantages; gradients are summed before each step.
    """

    def __init__(self, config: RunConfig, policy: Policy, reward: Reward, ranks: ProcessGroup = SINGLE_PROCESS) -> None:
        self.config, self.policy, self.reward, self.ranks = config, policy, reward, ranks
        if ranks.size > config.pairs_per_update:
            raise UserError(
                f"{ranks.size} processes, but --pairs-per-update is {config.pairs_per_update}: some would have nothing "
                f"to do; launch at most {config.pairs_per_update}"
            )
        if config.compile and policy.device.type == "cpu":
            raise UserError(
                "--compile: on a CPU the graphs that PyTorch compiles for sampling and for training round differently, "
                "so that the unchanged policy's log-ratio is not 0; leave --compile out"
            )
        self.method = build_method(config.method, config.options)
        self.query_plan = config.dense if self.method.dense else "terminal"
        if dense_rewards.PLANS[self.query_plan].compares or config.probe_every:
            try:
                sdpo_kernels.resolve_backend(None, policy.storage)
            except ValueError as error:  # SDPO_KERNELS_BACKEND can run on the policy's device, but not there
                raise UserError(
                    f"--offload-trajectories keeps latents on the {policy.storage}, where their similarities are "
                    f"computed: {error}"
                ) from error
        self.prompts = config.prompt_lists[config.train_split]
        if not self.prompts:
            raise UserError(f"--train-split {config.train_split}: there are no such prompts beside files of one's own")
        policy.schedule(config.steps, eta=config.eta, trained_steps=config.trained_steps)  # refuses sigma = 0
        for steps in (*config.eval_steps, *config.eval_last_steps):
            policy.schedule(steps, eta=config.eta)
        self.optimiser = torch.optim.AdamW(
            policy.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, eps=1e-8, fused=True
        )
        self.normaliser = PerPromptNormalizer(config.prompt_stats_buffer, config.prompt_stats_min_count)
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
        pairs = self.pairs(epoch)

        trajectory, reference, provided, sampled = self.ranks.run_on_all(
            lambda: self.retry_on_oom(lambda: self.rollout(epoch))
        )
        clock.append(sampled)
        parts = self.ranks.gather((pairs, provided.values.cpu(), provided.queried.cpu(), provided.queries))
        numbers, values, asked, queries = zip(*parts, strict=True)
        order = torch.cat(numbers).argsort()
        rewards, queried = torch.cat(values)[order], torch.cat(asked)[order]
        known = dense_rewards.last_queried(rewards, queried) if self.method.baseline else None
        # In float64, so that rounding makes no difference between equal returns.
        returns = self.method.returns(rewards.double())
        advantages = self.normaliser(self.drawn_prompts(epoch), returns, known)[pairs]
        advantages = advantages.float().to(self.policy.device)
        clock.append(time.perf_counter())
        updates = [self.update(group, trajectory, advantages, reference) for group in self.groups(epoch)]
        # The first and only time that the host waits for the updates.
        log = torch.stack([torch.stack(row) for row in updates]).cpu()
        finite = torch.stack([torch.isfinite(to_local(p)).all() for p in self.policy.parameters]).all()
        spent = self.policy.evaluations - evaluations
        ends = self.ranks.gather((log, spent, bool(finite), self.fingerprint(), self.policy.rows))
        clock.append(time.perf_counter())
        logs = torch.stack([end[0] for end in ends])
        loss, clipped, log_ratio, norm = *logs[..., :2].sum(0).unbind(1), logs[..., 2].amax(0), log[:, 3]

        def check() -> None:
            if not bool(torch.isfinite(logs).all()) or not all(end[2] for end in ends):
                raise TrainingDiverged(
                    f"training diverged in epoch {epoch}: a loss, gradient or weight is not finite; "
                    f"{likely_causes(self.config)}, in another run; this run's records and its last checkpoint stay"
                )
            if len({end[3] for end in ends}) > 1:
                raise UserError(
                    f"after epoch {epoch} the processes no longer have the same weights: are their GPUs, drivers and "
                    f"versions of PyTorch the same? The last checkpoint stays"
                )

        self.ranks.run_on_all(check)
        self.counts.samples += self.config.pairs * GROUP
        self.counts.reward_queries += sum(queries)
        self.counts.model_evaluations += sum(end[1] for end in ends)
        row = {
            "epoch": epoch,
            **dataclasses.asdict(self.counts),
            "loss": loss.mean().item(),
            "reward_mean": rewards[..., -1].mean().item(),
            "prompt_stats_share": self.normaliser.own_statistics_share,
            "clip_fraction": clipped.mean().item(),
            "log_ratio_max": log_ratio.max().item(),
            "grad_norm": norm.mean().item(),
            "seconds": dict(zip(("sample", "reward", "train"), np.diff(clock).round(4).tolist(), strict=True)),
        }
        rows = min(end[4] for end in ends) * self.policy.branches
        return row if rows == self.config.rows else row | {"rows": rows}  # memory ran out, or `--rows 0` found them

    def fingerprint(self) -> int:
        """A number that differs where weights do; not computed where there is nothing to compare it with."""
        if self.ranks.size == 1 or self.ranks.sharded:  # each weight is there once
            return 0
        bits = {2: torch.int16, 4: torch.int32}
        sums = [p.detach().view(bits[p.element_size()]).sum(dtype=torch.int64) for p in self.policy.parameters]
        return hash(tuple(torch.stack(sums).tolist()))

    def retry_on_oom(self, work: Callable[[], T]) -> T:
        return retry_on_oom(self.policy, work)

    # Sampling and rewards

    def drawn_prompts(self, epoch: int) -> list[str]:
        """The prompts of all of the epoch's pairs, drawn at random."""
        choice = np.random.default_rng((self.config.seed, epoch, PROMPTS)).integers(
            len(self.prompts), size=self.config.pairs
        )
        return [self.prompts[i] for i in choice]

    def rollout(self, epoch: int) -> tuple[Trajectory, Tensor | None, DenseRewards, float]:
        """This process's pairs, the reference's log-probs where the method takes them, the rewards, and when sampling
        was done.

        Pairs are sampled some at a time, and a thread has them scored meanwhile: a reward on the processor, such as
        JPEG's, then keeps no GPU waiting. Both put their work into one queue of the GPU's, so that neither can see
        what the other has not finished. It ends with this call, whatever fails.
        """
        parts: list[Trajectory] = []
        scored: list[Future[DenseRewards]] = []
        with ThreadPoolExecutor(1) as thread:
            if self.policy.device.type == "cuda":  # of several GPUs the thread takes this process's too
                thread.submit(torch.cuda.set_device, torch.cuda.current_device())
            try:
                for pairs in self.pairs(epoch).split(self.policy.rows):  # forward passes of all rows from the start
                    for failed in scored:
                        if failed.done() and not self.ranks.sharded:
                            failed.result()
                    parts.append(self.sample(epoch, pairs))
                    scored.append(
                        thread.submit(dense_rewards.compute_dense_rewards, self.query_plan, parts[-1], self.score)
                    )
                trajectory = joined(parts)
                reference = self.reference_log_prob(trajectory) if self.method.reference else None
                sampled = time.perf_counter()
                rewards = [part.result() for part in scored]
                interruption.check()
            except BaseException:
                thread.shutdown(cancel_futures=True)
                raise
        values, queried = (torch.cat([getattr(part, name) for part in rewards]) for name in ("values", "queried"))
        return trajectory, reference, DenseRewards(values, queried, sum(part.queries for part in rewards)), sampled

    def sample(self, epoch: int, pairs: Tensor | None = None) -> Trajectory:
        """These pairs of the epoch, by default all of this process: random prompts, one x_T a pair, step noise for each
        sample."""
        config, seeds = self.config, (self.config.seed, epoch)
        pairs = self.pairs(epoch) if pairs is None else pairs
        prompts = self.drawn_prompts(epoch)
        return sample(
            self.policy,
            [prompts[i] for i in pairs],
            steps=config.steps,
            initial_seeds=derive_seeds(*seeds, INITIAL, count=config.pairs)[pairs],
            step_seeds=derive_seeds(*seeds, STEPS, count=config.pairs * GROUP).reshape(config.pairs, GROUP)[pairs],
            eta=config.eta,
            trained_steps=config.trained_steps,
        )

    def score(self, latents: Tensor, prompts: list[str]) -> Tensor:
        return score(self.reward, self.policy.pictures(latents), prompts).to(latents.device)

    def probe(self, epoch: int) -> list[dict[str, Any]]:
        """Rows for dense.jsonl after `epoch`: see `probe.compare`. Of samples that no epoch trains on, and that enter
        no count; every process makes all of them."""
        config, evaluations = self.config, self.policy.evaluations
        seeds = (config.seed, epoch, PROBE)
        choice = np.random.default_rng((*seeds, PROMPTS)).integers(len(self.prompts), size=config.pairs)

        def own() -> list[dict[str, Any]]:
            trajectory = sample(
                self.policy,
                [self.prompts[i] for i in choice],
                steps=config.steps,
                initial_seeds=derive_seeds(*seeds, INITIAL, count=config.pairs),
                step_seeds=derive_seeds(*seeds, STEPS, count=config.pairs * GROUP).reshape(config.pairs, GROUP),
                eta=config.eta,
            )
            return [{"epoch": epoch, **row} for row in dense_probe.compare(trajectory, self.score)]

        rows = self.ranks.run_on_all(lambda: self.retry_on_oom(own))
        self.policy.evaluations = evaluations
        return rows

    # The model's output and log-prob along stored trajectories

    def predict(self, trajectory: Trajectory, pairs: Tensor, steps: Tensor) -> Tensor:
        """The model's output [P, 2, C, H, W] at each pair's step. A pair shares its first input, so its output too."""
        needed = torch.stack([torch.ones_like(steps, dtype=torch.bool), steps > 0], 1).flatten()
        rows = needed.nonzero()[:, 0]
        row_pairs, row_steps = (x.repeat_interleave(GROUP)[rows] for x in (pairs, steps))
        latents = self.latents(trajectory, row_pairs, row_steps, rows % GROUP)
        row_pairs, row_steps = self.index(row_pairs), self.index(row_steps)
        output = self.policy.predict(
            trajectory.input_scale[row_steps].reshape(-1, 1, 1, 1) * latents,
            trajectory.timesteps[row_steps],
            tuple(c[row_pairs] for c in trajectory.conditions),
        )
        return output[self.index(needed.cumsum(0) - 1)].unflatten(0, (len(pairs), GROUP))

    def latents(
        self, trajectory: Trajectory, pairs: Tensor, steps: Tensor, sample: Tensor | slice = slice(None)
    ) -> Tensor:
        """Stored latents on the policy's device, from indices on the host: [P, 2, C, H, W], or [P, C, H, W] with an
        index of the `sample` in each pair."""
        stored = trajectory.latents  # on the policy's device, or with --offload-trajectories on the host
        where = (pairs, sample, steps)
        found = stored[tuple(self.index(x, stored.device) if isinstance(x, Tensor) else x for x in where)]
        return found.to(self.policy.device)

    def log_prob(self, trajectory: Trajectory, pairs: Tensor, steps: Tensor) -> Tensor:
        """Log-prob [P, 2] of each pair's stored step under the current policy."""
        return sdpo_kernels.gaussian_log_prob(
            self.predict(trajectory, pairs, steps).flatten(0, 1),
            self.latents(trajectory, pairs, steps).flatten(0, 1),
            self.latents(trajectory, pairs, steps + 1).flatten(0, 1),
            trajectory.coefficients[self.index(steps)].repeat_interleave(GROUP, 0),
        ).unflatten(0, (len(pairs), GROUP))

    def index(self, x: Tensor, device: torch.device | None = None) -> Tensor:
        """An index tensor on a device, the policy's by default. From pinned memory, since the host would otherwise wait
        at every copy until the GPU has nothing left to do."""
        device = self.policy.device if device is None else device
        return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)

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

        def log_ratio() -> float:
            trajectory, found = self.sample(epoch), 0.0
            for pairs, steps in self.groups(epoch)[0]:
                new = self.log_prob(trajectory, pairs, steps).detach()  # with a graph: some kernels differ without
                found = max(found, (new - trajectory.log_prob[pairs, :, steps]).abs().max().item())
            if self.policy.device.type == "cpu" and found != 0:
                raise UserError(
                    f"the unchanged policy's log-ratio is {found:.3g}, not 0: on this CPU a forward pass depends on "
                    f"its number of rows; raise --pad-rows (now {self.config.pad_rows}, up to --rows; in a profile: "
                    f"COMMON in sdpo_bench/experiments/profiles.py)"
                )
            return found

        largest = max(self.ranks.gather(self.ranks.run_on_all(lambda: self.retry_on_oom(log_ratio))))
        self.policy.evaluations = evaluations
        if largest > self.clips["clip_range"] / 10 and self.ranks.is_main:
            print(f"warning: on-policy log-ratio {largest:.3g} is over a tenth of the clip range", file=sys.stderr)
        return largest

    # Updates

    @property
    def microbatch(self) -> int:
        return max(1, self.policy.rows // GROUP)

    def order(self, epoch: int) -> tuple[list[Tensor], Tensor]:
        """The pairs of each optimiser step that this process trains, and the order [pairs, S] of each pair's steps."""
        config = self.config
        rng = np.random.default_rng((config.seed, epoch, ORDER))
        batches = torch.from_numpy(rng.permutation(config.pairs)).split(config.pairs_per_update)
        steps = np.tile(np.arange(config.trained_steps), (config.pairs, 1))
        shuffled = torch.from_numpy(rng.permuted(steps, axis=1) if config.step_shuffle else steps)
        return [self.ranks.local_slice(batch).contiguous() for batch in batches], shuffled

    def pairs(self, epoch: int) -> Tensor:
        """The epoch's pairs that are this process's, in ascending order."""
        return torch.cat(self.order(epoch)[0]).sort().values

    def groups(self, epoch: int) -> list[list[Microbatch]]:
        """The epoch's optimiser steps, each the micro-batches whose gradients it sums.

        Pairs are permuted; each pair has a permutation of the trained steps of its own, shared by its two samples
        (SDPO's step shuffling; without it all take them in order). "step": one denoising step of a batch of pairs;
        "trajectory": all of its steps, of which a micro-batch may hold several: large ones are faster.
        """
        batches, shuffled = self.order(epoch)
        pairs = self.pairs(epoch)

        def microbatches(batch: Tensor, positions: list[int]) -> list[Microbatch]:
            entries = torch.searchsorted(pairs, batch).repeat(len(positions))
            steps = shuffled[batch][:, positions].T.flatten()
            return list(zip(entries.split(self.microbatch), steps.split(self.microbatch), strict=True))

        positions = range(self.config.trained_steps)
        if self.config.resolved_updates == "step":
            return [microbatches(batch, [j]) for j in positions for batch in batches]
        return [microbatches(batch, [*positions]) for batch in batches]

    def update(
        self, group: list[Microbatch], trajectory: Trajectory, advantages: Tensor, reference: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One optimiser step: mean loss, fraction of clipped entries, largest |log-ratio|, gradient norm.

        Loss and fraction are of this process's entries, times its share of all of them.
        """
        backward = self.trajectory_backward if self.method.whole_trajectory else self.step_backward

        def attempt() -> tuple[Tensor, Tensor, Tensor]:
            self.optimiser.zero_grad(set_to_none=True)
            size = self.microbatch  # by now perhaps less than when the group was made
            parts = [part for pairs, steps in group for part in zip(pairs.split(size), steps.split(size), strict=True)]
            return backward(parts, trajectory, advantages, reference)

        loss, clipped, log_ratio = self.retry_on_oom(attempt)
        # Here, and not by DistributedDataParallel: its hooks know nothing of a backward pass in several parts or of a
        # second attempt. Each loss is a mean over the entries of all processes, so that the sum is its gradient.
        gradients = [p.grad for p in self.policy.parameters if p.grad is not None]
        if self.ranks.sharded:
            torch._foreach_mul_([to_local(grad) for grad in gradients], self.ranks.size)
        else:
            self.ranks.all_reduce_sum(gradients)
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(self.policy.parameters, self.config.max_grad_norm))
        self.optimiser.step()
        self.counts.optimiser_steps += 1
        share = self.pairs_in(group) / self.config.pairs_per_update
        return share * loss.mean(), share * clipped.float().mean(), log_ratio.abs().max(), norm

    @staticmethod
    def pairs_in(group: list[Microbatch]) -> int:
        return len(torch.cat([pairs for pairs, _ in group]).unique())

    def step_backward(
        self, group: list[Microbatch], trajectory: Trajectory, advantages: Tensor, reference: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of a loss that is a mean over single steps."""
        steps_each = sum(len(pairs) for pairs, _ in group) // self.pairs_in(group)
        entries = self.config.pairs_per_update * steps_each  # of all processes
        parts = []
        for pairs, steps in group:
            output = self.predict(trajectory, pairs, steps)
            sample, following = (self.latents(trajectory, pairs, k) for k in (steps, steps + 1))
            pairs, steps = self.index(pairs), self.index(steps)
            batch = StepBatch(
                step=steps,
                sample=sample,
                prev_sample=following,
                coefficients=trajectory.coefficients[steps],
                old_log_prob=trajectory.log_prob[pairs, :, steps],
                advantages=advantages[pairs, :, steps],
                reference_log_prob=None if reference is None else reference[pairs, :, steps],
            )
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
                current[self.index(pairs), :, self.index(steps)] = self.log_prob(trajectory, pairs, steps)
        members = self.index(torch.cat([pairs for pairs, _ in group]).unique())
        batch = TrajectoryBatch(
            old_log_prob=trajectory.log_prob[members][..., :S],
            advantages=advantages[members][..., -1],
            reference_log_prob=None if reference is None else reference[members],
        )
        leaf = current[members].requires_grad_()
        result = self.method.loss(leaf, batch, **self.clips)
        gradient = torch.zeros_like(current)
        (gradient[members],) = torch.autograd.grad(result.loss.sum() / self.config.pairs_per_update, leaf)
        for pairs, steps in group:
            self.log_prob(trajectory, pairs, steps).backward(gradient[self.index(pairs), :, self.index(steps)])
        return result.loss.detach(), result.clipped, leaf.detach() - batch.old_log_prob

    _last_visit: tuple[Trajectory, Tensor] | None = None

    # Checkpoints

    def progress(self) -> dict[str, Any]:
        """The small part of a checkpoint: a copy."""
        return {"normaliser": dict(self.normaliser.buffers), "counts": dataclasses.asdict(self.counts)}

    def weights(self) -> dict[str, Any]:
        """The large part: no copy, but where weights are shared out. All processes must call this then."""
        optimiser = self.optimiser.state_dict()
        moments = {n: {k: full_tensor_on_cpu(v) for k, v in entry.items()} for n, entry in optimiser["state"].items()}
        return {"weights": self.policy.state_dict(), "optimiser": optimiser | {"state": moments}}

    def state(self) -> dict[str, Any]:
        return self.weights() | self.progress()

    def load_state(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["weights"])
        weights = self.policy.parameters
        moments = {
            n: {k: distribute_like(v, weights[n]) if v.dim() else v for k, v in entry.items()}
            for n, entry in state["optimiser"]["state"].items()
        }
        self.optimiser.load_state_dict(state["optimiser"] | {"state": moments})
        self.normaliser.buffers = state["normaliser"]
        self.counts = Counts(**state["counts"])
