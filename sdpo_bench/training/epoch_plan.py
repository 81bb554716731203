"""The plan of an epoch: its prompts, seeds, batches and order of steps, all drawn before anything is sampled.

A pair is a group of G samples of a prompt that share their initial noise; G is 2 but for methods of larger groups.

Everything derives from (seed of the run, epoch): a resumed run draws the same plan, and so does every process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdpo_bench.config import RunConfig
from sdpo_bench.distributed import SINGLE_PROCESS, ProcessGroup
from sdpo_bench.training.sampling import derive_seeds

PROMPTS, INITIAL, STEPS, ORDER, PROBE = range(5)  # what an epoch's random numbers are for


class MicroBatch(NamedTuple):
    """The entries of one forward and backward pass, on the CPU.

    pairs: int64 [P], positions among the pairs of this process
    steps: int64 [P], the denoising step of each
    """

    pairs: Tensor
    steps: Tensor

    def split(self, size: int) -> list[MicroBatch]:
        """Micro-batches of at most `size` entries, in the same order."""
        parts = zip(self.pairs.split(size), self.steps.split(size), strict=True)
        return [MicroBatch(pairs, steps) for pairs, steps in parts]


class SampleDraw(NamedTuple):
    """The prompts and seeds that samples are made from.

    prompts: one a pair
    initial_seeds: int64 [pairs], of an x_T that the samples of a pair share, or [pairs, G], of each sample's own
    step_seeds: int64 [pairs, G], of the noise of the denoising steps
    """

    prompts: list[str]
    initial_seeds: Tensor
    step_seeds: Tensor

    def of(self, pairs: Tensor) -> SampleDraw:
        """The draw of these pairs, int64 [P]."""
        return SampleDraw([self.prompts[i] for i in pairs], self.initial_seeds[pairs], self.step_seeds[pairs])


def draw_samples(prompts: Sequence[str], count: int, group: int, *path: int, shared_noise: bool = True) -> SampleDraw:
    """`count` groups of `group` samples: random prompts, and seeds, all from the seed path (run seed, epoch, ...)."""
    choice = np.random.default_rng((*path, PROMPTS)).integers(len(prompts), size=count)
    each = (count,) if shared_noise else (count, group)
    return SampleDraw(
        [prompts[i] for i in choice],
        derive_seeds(*path, INITIAL, count=math.prod(each)).reshape(each),
        derive_seeds(*path, STEPS, count=count * group).reshape(count, group),
    )


def trained_steps(config: RunConfig, epoch: int) -> range:
    """The steps that are trained in `epoch`, of 0 to K - 1: all of `config.trained`, or a window of them that moves on
    by one step every --train-window-epochs, and begins anew behind the last (MixGRPO, arXiv 2507.21802)."""
    steps, size = config.trained, config.train_window
    if size is None:
        return steps
    first = (epoch - 1) // config.train_window_epochs % (len(steps) - size + 1)
    return steps[first : first + size]


def draw_step_order(config: RunConfig, trained: range, rng: np.random.Generator) -> Tensor:
    """The order in which each pair takes its trained steps, int64 [pairs, S].

    With step shuffling it is each pair's own; without, all go from the noisiest on.
    """
    order, count = np.tile(trained, (config.pairs, 1)), config.steps_each
    if config.step_shuffle or count < len(trained):
        order = rng.permuted(order, axis=1)[:, :count]
    return torch.from_numpy(order if config.step_shuffle else np.sort(order, axis=1))


class InnerEpoch(NamedTuple):
    """One pass over an epoch's samples.

    batches: for each batch of pairs_per_update pairs, those that this process trains, int64
    step_order: int64 [pairs, S], the order in which a pair's S trained steps are taken, shared by its samples
    """

    batches: list[Tensor]
    step_order: Tensor


@dataclass(frozen=True)
class EpochPlan:
    """An epoch's samples and the order in which they are trained.

    samples: the draw of all pairs, those of other processes too
    inner_epochs: the passes over them
    log_prob_steps: how many of the first steps need a log-prob, and so noise
    noisy_steps: the steps that draw noise while training samples are made; None: all that the sampler has noise for
    per_step: an optimiser step for each denoising step of a batch (SDPO), or for whole trajectories (DDPO)
    """

    epoch: int
    samples: SampleDraw
    inner_epochs: list[InnerEpoch]
    log_prob_steps: int
    noisy_steps: tuple[int, ...] | None
    per_step: bool

    @classmethod
    def draw(
        cls, config: RunConfig, prompts: Sequence[str], epoch: int, ranks: ProcessGroup = SINGLE_PROCESS
    ) -> EpochPlan:
        """The plan of `epoch`, counted from 1, for this process of `ranks`."""
        rng = np.random.default_rng((config.seed, epoch, ORDER))
        batches = [
            ranks.local_slice(batch).contiguous()
            for batch in torch.from_numpy(rng.permutation(config.pairs)).split(config.pairs_per_update)
        ]
        method, trained = config.method_class, trained_steps(config, epoch)
        inner_epochs = [InnerEpoch(batches, draw_step_order(config, trained, rng))]
        # Later passes have the same batches, so that every process keeps its pairs, in an order of their own.
        for _ in range(1, config.inner_epochs):
            turn = [batches[i] for i in rng.permutation(len(batches))]
            inner_epochs.append(InnerEpoch(turn, draw_step_order(config, trained, rng)))
        window = None if config.train_window is None else tuple(trained)
        return cls(
            epoch=epoch,
            samples=draw_samples(
                prompts,
                config.pairs,
                config.samples_per_group,
                config.seed,
                epoch,
                shared_noise=config.shares_noise,
            ),
            inner_epochs=inner_epochs,
            log_prob_steps=trained[-1] + 1 if method.learns_from in ("step", "trajectory") else 0,
            noisy_steps=window if method.stochastic else (),
            per_step=config.resolved_updates == "step",
        )

    @property
    def pairs(self) -> Tensor:
        """The pairs of this process, int64, in ascending order."""
        return torch.cat(self.inner_epochs[0].batches).sort().values

    def optimizer_batches(self, size: int) -> list[list[MicroBatch]]:
        """The epoch's optimiser steps: for each the micro-batches, of at most `size` entries, whose gradients it sums.

        With an update per trajectory a micro-batch may hold several steps of a pair: large ones are faster.
        """
        return [batch for inner_epoch in self.inner_epochs for batch in self._optimizer_batches(inner_epoch, size)]

    def _optimizer_batches(self, inner_epoch: InnerEpoch, size: int) -> list[list[MicroBatch]]:
        batches, step_order = inner_epoch
        orders = [step_order[batch].T for batch in batches]  # [S, pairs]
        if self.per_step:
            return [
                self._microbatches(batch, order[[j]], size)
                for j in range(step_order.shape[1])
                for batch, order in zip(batches, orders, strict=True)
            ]
        return [self._microbatches(batch, order, size) for batch, order in zip(batches, orders, strict=True)]

    def _microbatches(self, batch: Tensor, steps: Tensor, size: int) -> list[MicroBatch]:
        # From numbers of pairs in the epoch to positions among those of this process; all pairs at their first steps
        # [S, pairs], then all at the second, and so on.
        entries = torch.searchsorted(self.pairs, batch).repeat(len(steps))
        return MicroBatch(entries, steps.flatten()).split(size)
