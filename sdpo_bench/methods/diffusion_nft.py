"""DiffusionNFT: online reinforcement with the forward process (arXiv 2509.16117)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sdpo_bench.methods.base import Method, StepLoss, option, positive, weighted_error
from sdpo_bench.types import NoisedBatch


@dataclass(frozen=True)
class DiffusionNFT(Method):
    """Finished samples are noised anew; the model moves toward those that are better than their group, and away from
    the others:

    loss = c / b [ r d(x0(m+) - x0) / w+ + (1 - r) d(x0(m-) - x0) / w- ] + kl d(m - m_ref),
    m+ = b m + (1 - b) m_old,  m- = (1 + b) m_old - b m,  r = clip(A, -c, c) / (2 c) + 1/2,

    m the model's output, m_old that of the weights that sampled, x0(m) the clean latent that an output predicts, d the
    mean of squares over the latent, w+- the detached mean absolute errors of x0(m+-), c the advantage clip.
    A group's mean and the standard deviation of the epoch's rewards make the advantages. Samples are made without step
    noise, each from an x_T of its own, by old weights, which follow the trained ones after each epoch, n optimiser
    steps into the run: old = e old + (1 - e) trained, e = min(decay_rate n, decay_max).

    Where m = m_old the loss is c d / (b w), whatever the rewards are; its gradient is A times that of d / w, whatever b
    is. Options [the authors']: beta (b) 1, kl 1e-4, decay_rate 0.001, decay_max 0.5.
    """

    name = "diffusion_nft"
    title = "DiffusionNFT"
    row = 12
    colour = "#117733"
    marker = "h"
    clips_ratio = False
    learns_from = "noised"
    pairwise = False
    shared_noise = False
    stochastic = False
    normalizer = "group_mean"
    group_size = 8

    beta: float = positive(1.0)
    kl: float = option(1e-4, "0 or more", lambda value: value >= 0)
    decay_rate: float = option(0.001, "0 or more", lambda value: value >= 0)
    decay_max: float = option(0.5, "0 to below 1", lambda value: 0 <= value < 1)

    @property
    def old_output(self) -> bool:
        return True

    @property
    def reference_output(self) -> bool:
        return self.kl > 0

    @property
    def keeps_old_weights(self) -> bool:
        return True

    def old_decay(self, updates: int) -> float:
        return min(self.decay_rate * updates, self.decay_max)

    def loss(self, output: Tensor, batch: NoisedBatch, *, clip_range: float, advantage_clip: float) -> StepLoss:
        assert batch.old_output is not None
        old, step = batch.old_output, self.beta * (output - batch.old_output)
        optimality = batch.advantages.clamp(-advantage_clip, advantage_clip) / (2 * advantage_clip) + 0.5
        better, worse = (weighted_error(old + sign * step, batch) for sign in (1, -1))
        loss = advantage_clip / self.beta * (optimality * better + (1 - optimality) * worse)
        if self.kl:
            assert batch.reference_output is not None
            loss = loss + self.kl * (output - batch.reference_output).square().flatten(2).mean(2)
        clipped = (batch.advantages.abs() > advantage_clip).any(1)
        return StepLoss(loss.mean(1), -batch.error(output), clipped)
