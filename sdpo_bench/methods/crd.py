"""CRD: centered reward distillation (arXiv 2603.14128)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sdpo_bench.errors import UserError
from sdpo_bench.methods.base import Method, StepLoss, option, positive, weighted_error
from sdpo_bench.types import NoisedBatch


@dataclass(frozen=True)
class CRD(Method):
    """Finished samples are noised anew; how much less the model errs on a sample than the old weights do is its
    implicit reward, which is fitted to the rewards. A prompt's unknown constant leaves with the group's mean:

    loss = c / b (b (q - mean q) - (r - mean r))^2 + kl (s + (1 - s) r) d(m - m_ref),
    q = d(m_old - m*) / w_old - d(m - m*) / w,  r = clip(A, -c, c) / (2 c) + 1/2,

    means over the group, m the model's output, m* the output that would predict the sample, d the mean of squares over
    the latent, w and w_old the detached mean absolute errors, c the advantage clip, s = kl_least. A group's mean and
    the standard deviation of the epoch's rewards make the advantages. Samples are made without step noise, each from an
    x_T of its own, by the trained weights. The old ones follow after each epoch, n optimiser steps into the run:
    old = e old + (1 - e) trained, e = min(decay_start + decay_rate n, decay_max).

    Options [the authors', for OCR]: beta (b) 1, kl 0.1, kl_least 0.001 (the worst sample's part of kl; 1: the same for
    all), decay_start 0.25, decay_rate 0.005, decay_max 0.999.
    """

    name = "crd"
    title = "CRD"
    row = 13
    colour = "#661100"
    marker = "8"
    clips_ratio = False
    learns_from = "noised"
    pairwise = False
    shared_noise = False
    stochastic = False
    samples_with_old_weights = False
    normalizer = "group_mean"
    group_size = 8

    beta: float = positive(1.0)
    kl: float = option(0.1, "0 or more", lambda value: value >= 0)
    kl_least: float = option(0.001, "0 to 1", lambda value: 0 <= value <= 1)
    decay_start: float = option(0.25, "0 to below 1", lambda value: 0 <= value < 1)
    decay_rate: float = option(0.005, "0 or more", lambda value: value >= 0)
    decay_max: float = option(0.999, "0 to below 1", lambda value: 0 <= value < 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay_start > self.decay_max:
            raise UserError(
                f"option decay_start of crd is {self.decay_start:g}; expected at most decay_max ({self.decay_max:g})"
            )

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
        return min(self.decay_start + self.decay_rate * updates, self.decay_max)

    def loss(self, output: Tensor, batch: NoisedBatch, *, clip_range: float, advantage_clip: float) -> StepLoss:
        assert batch.old_output is not None
        # In the space of outputs, as the authors': there d / w is that of the clean latents over the output's scale.
        old, new = (weighted_error(m, batch) / batch.output_scale for m in (batch.old_output, output))
        implicit = old - new
        reward = batch.advantages.clamp(-advantage_clip, advantage_clip) / (2 * advantage_clip) + 0.5
        difference = self.beta * centred(implicit) - centred(reward)
        loss = advantage_clip / self.beta * difference.square()
        if self.kl:
            assert batch.reference_output is not None
            weight = self.kl * (self.kl_least + (1 - self.kl_least) * reward)
            loss = loss + weight * (output - batch.reference_output).square().flatten(2).mean(2)
        clipped = (batch.advantages.abs() > advantage_clip).any(1)
        return StepLoss(loss.mean(1), -batch.error(output), clipped)


def centred(x: Tensor) -> Tensor:
    """Less the group's mean, [P, G] both."""
    return x - x.mean(1, keepdim=True)
