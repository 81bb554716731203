"""One epoch: sample, score, advantages, updates. A method is only its loss and its returns."""

from __future__ import annotations

import dataclasses
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import sdpo_kernels
import torch
from torch import Tensor

from sdpo_bench import dense_rewards
from sdpo_bench.config import RunConfig
from sdpo_bench.distributed import (
    SINGLE_PROCESS,
    ProcessGroup,
    distribute_like,
    full_tensor_on_cpu,
    to_local,
)
from sdpo_bench.errors import UserError
from sdpo_bench.policies import Policy
from sdpo_bench.policies.base import Passes
from sdpo_bench.rewards import Reward
from sdpo_bench.training import dense_probe
from sdpo_bench.training.advantages import GroupNormalizer, PerPromptNormalizer
from sdpo_bench.training.critic import Critic, features_of
from sdpo_bench.training.divergence import TrainingDiverged, likely_causes
from sdpo_bench.training.epoch_plan import PROBE, EpochPlan, MicroBatch, SampleDraw, draw_samples
from sdpo_bench.training.sampling import joined, sample
from sdpo_bench.training.scoring import score
from sdpo_bench.training.updates import Updater, UpdateStats
from sdpo_bench.types import Counts, DenseRewards, Trajectory


class Rollout(NamedTuple):
    """Samples of this process, and their scores.

    reference_log_prob: [B, 2, S], where the method takes it
    rewards: of this process's pairs
    features: `features_of` the trajectory, where a critic takes them
    sampled: time.perf_counter() when the last sample was made
    """

    trajectory: Trajectory
    reference_log_prob: Tensor | None
    rewards: DenseRewards
    features: Tensor | None
    sampled: float


class Totals(NamedTuple):
    """Totals of all processes in an epoch.

    updates: UpdateStats of [updates] tensors, on the CPU
    finite: whether all of it, and all weights, are finite
    fingerprints: of each process's weights
    passes: of all processes
    rows: of the largest forward pass that every process can make
    """

    updates: UpdateStats
    finite: bool
    fingerprints: list[int]
    passes: Passes
    rows: int


@dataclass(frozen=True)
class EpochMetrics:
    """An epoch in numbers. `counts` are those of the run so far, `seconds` by phase. `explained_variance`: see
    `Critic.explained`. `rows` is None where a forward pass had as many as the configuration says."""

    epoch: int
    counts: Counts
    loss: float
    reward_mean: float
    reward_std: float
    kl: float | None
    prompt_stats_share: float
    clip_fraction: float
    log_ratio_max: float
    grad_norm: float
    seconds: dict[str, float]
    explained_variance: list[float] | None
    rows: int | None

    def to_row(self) -> dict[str, Any]:
        """A row of train.jsonl (docs/records.md)."""
        row = dataclasses.asdict(self)
        row |= row.pop("counts")
        return {key: value for key, value in row.items() if value is not None}


class Trainer(Updater):
    """One run's state: the weights in `policy`, the optimiser, the normaliser's buffers, the critic, the counts.

    With several processes each samples, scores and trains its slice of every batch, so that no latents are sent. All
    know all rewards, and so the same advantages; gradients are summed before each optimiser step.
    """

    def __init__(self, config: RunConfig, policy: Policy, reward: Reward, ranks: ProcessGroup = SINGLE_PROCESS) -> None:
        super().__init__(config, policy, reward, ranks)
        self.prompts = config.prompt_lists[config.train_split]
        self.normaliser: PerPromptNormalizer | GroupNormalizer = (
            PerPromptNormalizer(config.prompt_stats_buffer, config.prompt_stats_min_count)
            if self.method.normalizer == "buffer"
            else GroupNormalizer(batch_std=self.method.normalizer == "group_mean")
        )
        self.critic = Critic() if self.method.baseline == "critic" else None
        self.check_settings()

    def check_settings(self) -> None:
        """UserError for what can't be trained on this device or with these processes."""
        config, policy = self.config, self.policy
        if self.ranks.size > config.pairs_per_update:
            raise UserError(
                f"{self.ranks.size} processes, but --pairs-per-update is {config.pairs_per_update}: some would have "
                f"nothing to do; launch at most {config.pairs_per_update}"
            )
        if config.compile and policy.device.type == "cpu":
            raise UserError(
                "--compile: on a CPU the graphs that PyTorch compiles for sampling and for training round differently, "
                "so that the unchanged policy's log-ratio is not 0; leave --compile out"
            )
        if dense_rewards.PLANS[config.query_plan].compares or config.probe_every:
            try:
                sdpo_kernels.resolve_backend(None, policy.storage)
            except ValueError as error:  # SDPO_KERNELS_BACKEND can run on the policy's device, but not there
                raise UserError(
                    f"--offload-trajectories keeps latents on the {policy.storage}, where their similarities are "
                    f"computed: {error}"
                ) from error
        if not self.prompts:
            raise UserError(f"--train-split {config.train_split}: the given prompt files have no such split")
        plan = self.plan(1)  # what follows refuses sigma = 0, and a sampler without the steps that the method wants
        schedule = policy.schedule(
            config.steps, eta=config.eta, trained_steps=plan.log_prob_steps, noisy_steps=plan.noisy_steps
        )
        at_steps = self.method.learns_from == "noised" and not self.method.all_noise_levels
        if at_steps and not schedule.signal_scale[list(config.trained)].any():
            raise UserError(
                f"--steps is {config.steps}: {self.method.title} noises finished samples to the levels of the trained "
                f"steps, and here the only one is pure noise, which no sample is left in; give more steps"
            )
        for steps in (*config.eval_steps, *config.eval_last_steps):
            policy.schedule(steps, eta=config.eta)

    def plan(self, epoch: int) -> EpochPlan:
        return EpochPlan.draw(self.config, self.prompts, epoch, self.ranks)

    def optimizer_batches(self, plan: EpochPlan) -> list[list[MicroBatch]]:
        return plan.optimizer_batches(self.max_pairs)

    def train_epoch(self, epoch: int) -> EpochMetrics:
        """Trains epoch `epoch`, counted from 1. Raises TrainingDiverged, the weights being useless then."""
        began, passes = time.perf_counter(), self.policy.passes

        # Prompts, seeds, batches and the order of steps: the same on every process.
        plan = self.plan(epoch)

        # Trajectories of this process's pairs, reference log-probs, dense rewards.
        rollout = self.ranks.run_on_all(lambda: self.retry_on_oom(lambda: self.rollout(plan)))

        # Rewards of all processes, and so the same advantages everywhere.
        rewards, features = self.gather_samples(plan, rollout)
        advantages = self.advantages(plan, rewards, features)
        scored = time.perf_counter()

        # An optimiser step for each batch (or for each step of each batch).
        self.forget_visits()
        stats = [
            self.update(batch, rollout.trajectory, advantages, rollout.reference_log_prob)
            for batch in self.optimizer_batches(plan)
        ]

        if self.old_weights is not None:
            self.old_weights.follow(self.method.old_decay(self.counts.optimiser_steps))

        # The first and only time that the host waits for the updates.
        totals = self.gather_totals(stats, self.policy.passes.since(passes))
        phases = {"sample": rollout.sampled - began, "reward": scored - rollout.sampled}
        phases["train"] = time.perf_counter() - scored
        self.ranks.run_on_all(lambda: self.raise_if_diverged(epoch, totals))
        self.count(rewards, totals)
        return self.metrics(epoch, rewards, totals, phases)

    # Sampling and rewards

    def rollout(self, plan: EpochPlan) -> Rollout:
        """Samples and scores this process's pairs.

        Pairs are sampled some at a time, and a thread has them scored meanwhile: a reward on the processor, such as
        JPEG's, then keeps no GPU waiting. Both put their work into one queue of the GPU's, so that neither can see
        what the other has not finished. The thread ends with this call, whatever fails.
        """
        parts: list[Trajectory] = []
        scored: list[Future[DenseRewards]] = []
        with ThreadPoolExecutor(1) as thread:
            if self.policy.device.type == "cuda":  # of several GPUs the thread takes this process's too
                thread.submit(torch.cuda.set_device, torch.cuda.current_device())
            try:
                for pairs in plan.pairs.split(self.policy.rows):  # forward passes of all rows from the start
                    for failed in scored:
                        if failed.done() and not self.ranks.sharded:
                            failed.result()
                    parts.append(self.sample(plan, pairs))
                    scored.append(
                        thread.submit(
                            dense_rewards.compute_dense_rewards, self.config.query_plan, parts[-1], self.score
                        )
                    )
                trajectory = joined(parts)
                reference = self.reference_log_prob(trajectory) if self.method.reference else None
                sampled = time.perf_counter()
                rewards = [part.result() for part in scored]
            except BaseException:
                thread.shutdown(cancel_futures=True)
                raise
        features = None if self.critic is None else features_of(trajectory)
        return Rollout(trajectory, reference, DenseRewards.cat(rewards), features, sampled)

    def sample(self, plan: EpochPlan, pairs: Tensor | None = None) -> Trajectory:
        """Trajectories of these pairs, int64 [P]; default: all of this process. They are made as the method wants
        them: the samples of a group share x_T or not, and the steps draw noise or not."""
        draw = plan.samples.of(plan.pairs if pairs is None else pairs)
        with self.sampling_weights():
            return self.sample_draw(
                draw,
                trained_steps=plan.log_prob_steps,
                noisy_steps=plan.noisy_steps,
                keep_outputs=self.method.learns_from == "step" and self.method.old_output,
            )

    def sample_draw(self, draw: SampleDraw, **options: Any) -> Trajectory:
        return sample(
            self.policy,
            draw.prompts,
            steps=self.config.steps,
            initial_seeds=draw.initial_seeds,
            step_seeds=draw.step_seeds,
            eta=self.config.eta,
            **options,
        )

    def score(self, latents: Tensor, prompts: list[str]) -> Tensor:
        """Rewards float32 [N] of the pictures of `latents` [N, C, H, W]."""
        return score(self.reward, self.policy.pictures(latents, self.config.steps), prompts).to(latents.device)

    def gather_samples(self, plan: EpochPlan, rollout: Rollout) -> tuple[DenseRewards, Tensor | None]:
        """The rewards and features of all processes' pairs, in the order of the epoch's pairs, on the CPU."""
        pairs, rewards, features = zip(
            *self.ranks.gather((plan.pairs, rollout.rewards.cpu(), rollout.features)), strict=True
        )
        order = torch.cat(pairs).argsort()
        return DenseRewards.cat(rewards).of(order), None if self.critic is None else torch.cat(features)[order]

    def advantages(self, plan: EpochPlan, rewards: DenseRewards, features: Tensor | None = None) -> Tensor:
        """Advantages float32 [B, G, K] of this process's pairs, from all processes' rewards and features."""
        known = None
        if self.method.baseline == "reward":
            always = dense_rewards.PLANS[self.config.query_plan].always(self.config.steps)
            known = dense_rewards.last_known(rewards.values, always)
        # In float64, so that rounding makes no difference between equal returns.
        returns = self.method.returns(rewards.values.double())
        advantages = self.normaliser(plan.samples.prompts, returns, known)
        if self.critic is not None and features is not None:
            advantages = self.critic.control(features, advantages)
        return advantages[plan.pairs].float().to(self.policy.device)

    def probe(self, epoch: int) -> list[dict[str, Any]]:
        """Rows for dense.jsonl after `epoch`: see `dense_probe.compare`. Of samples that no epoch trains on, and that
        enter no count; every process makes all of them."""
        draw = draw_samples(self.prompts, self.config.pairs, 2, self.config.seed, epoch, PROBE)
        passes = self.policy.passes

        def compare() -> list[dict[str, Any]]:
            trajectory = self.sample_draw(draw)
            return [{"epoch": epoch, **row} for row in dense_probe.compare(trajectory, self.score)]

        rows = self.ranks.run_on_all(lambda: self.retry_on_oom(compare))
        self.policy.passes = passes
        return rows

    # What an epoch was

    def gather_totals(self, stats: list[UpdateStats], passes: Passes) -> Totals:
        own = torch.stack([torch.stack(row) for row in stats]).cpu()
        finite = torch.stack([torch.isfinite(to_local(p)).all() for p in self.policy.parameters]).all()
        ends = self.ranks.gather((own, bool(finite), self.fingerprint(), passes, self.policy.rows))
        logs, weights_finite, fingerprints, all_passes, rows = zip(*ends, strict=True)
        log = torch.stack(logs)  # [processes, updates, 5]
        loss, clip_fraction, kl = log[..., :3].sum(0).unbind(1)  # each process has its share of them
        updates = UpdateStats(loss, clip_fraction, kl, log_ratio_max=log[..., 3].amax(0), grad_norm=own[:, 4])
        all_finite = bool(torch.isfinite(log).all()) and all(weights_finite)
        everyone = Passes(*map(sum, zip(*all_passes, strict=True)))
        return Totals(updates, all_finite, list(fingerprints), everyone, min(rows))

    def fingerprint(self) -> int:
        """A number that differs where weights do; not computed where there is nothing to compare it with."""
        if self.ranks.size == 1 or self.ranks.sharded:  # each weight is there once
            return 0
        bits = {2: torch.int16, 4: torch.int32}
        sums = [p.detach().view(bits[p.element_size()]).sum(dtype=torch.int64) for p in self.policy.parameters]
        return hash(tuple(torch.stack(sums).tolist()))

    def raise_if_diverged(self, epoch: int, totals: Totals) -> None:
        if not totals.finite:
            raise TrainingDiverged(
                f"training diverged in epoch {epoch}, with {self.config.steps} sampling steps: a loss, gradient or "
                f"weight is not finite; {likely_causes(self.config)}, in another run; this run's records and its last "
                f"checkpoint stay"
            )
        if len({*totals.fingerprints}) > 1:
            raise UserError(
                f"after epoch {epoch} the processes no longer have the same weights: are their GPUs, drivers and "
                f"versions of PyTorch the same? The last checkpoint stays"
            )

    def count(self, rewards: DenseRewards, totals: Totals) -> None:
        self.counts.samples += self.config.pairs * self.config.samples_per_group
        self.counts.reward_queries += rewards.queries
        self.counts.model_evaluations += totals.passes.forward
        self.counts.backward_passes += totals.passes.backward

    def metrics(self, epoch: int, rewards: DenseRewards, totals: Totals, phases: dict[str, float]) -> EpochMetrics:
        rows = totals.rows * self.policy.branches
        return EpochMetrics(
            epoch=epoch,
            counts=dataclasses.replace(self.counts),
            loss=totals.updates.loss.mean().item(),
            reward_mean=rewards.values[..., -1].mean().item(),
            reward_std=rewards.values[..., -1].std().item(),
            # Of finished samples with new noise the log-ratio is another quantity (BackwardPass).
            kl=totals.updates.kl.mean().item() if self.method.learns_from in ("step", "trajectory") else None,
            prompt_stats_share=self.normaliser.own_statistics_share,
            clip_fraction=totals.updates.clip_fraction.mean().item(),
            log_ratio_max=totals.updates.log_ratio_max.max().item(),
            grad_norm=totals.updates.grad_norm.mean().item(),
            seconds={phase: round(seconds, 4) for phase, seconds in phases.items()},
            explained_variance=None if self.critic is None else self.critic.explained,
            # They differ where memory ran out, or where `--rows 0` found how many fit.
            rows=None if rows == self.config.rows else rows,
        )

    def check_on_policy(self, epoch: int) -> float | None:
        """Largest |log-ratio| of the unchanged policy, over one batch of the coming epoch: how far the numerics of
        sampling and of training differ. On a CPU it must be exactly 0; the check enters no count. None for a method
        that takes no log-prob.
        """
        if self.method.learns_from not in ("step", "trajectory"):
            return None
        plan, passes = self.plan(epoch), self.policy.passes

        def log_ratio() -> float:
            trajectory, found = self.sample(plan), 0.0
            for pairs, steps in self.optimizer_batches(plan)[0]:
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
        self.policy.passes = passes
        if largest > self.clips["clip_range"] / 10 and self.ranks.is_main:
            print(f"warning: on-policy log-ratio {largest:.3g} is over a tenth of the clip range", file=sys.stderr)
        return largest

    # Checkpoints

    def progress(self) -> dict[str, Any]:
        """The small part of a checkpoint: a copy."""
        state = {"normaliser": dict(self.normaliser.buffers), "counts": dataclasses.asdict(self.counts)}
        return state if self.critic is None else state | {"critic": self.critic.state_dict()}

    def weights(self) -> dict[str, Any]:
        """The large part: no copy, but where weights are shared out. All processes must call this then."""
        optimiser = self.optimiser.state_dict()
        moments = {n: {k: full_tensor_on_cpu(v) for k, v in entry.items()} for n, entry in optimiser["state"].items()}
        state = {"weights": self.policy.state_dict(), "optimiser": optimiser | {"state": moments}}
        return state if self.old_weights is None else state | {"old_weights": self.old_weights.state_dict()}

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
        if self.old_weights is not None:
            self.old_weights.load_state_dict(state["old_weights"])
        self.normaliser.buffers = state["normaliser"]
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
        self.counts = Counts(**state["counts"])
