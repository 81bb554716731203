"""Flow-DPPO: GRPO with a mask by the divergence from the policy that sampled (arXiv 2606.11025)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdpo_bench.methods.base import StepLoss, positive
from sdpo_bench.methods.grpo import GRPO, divergence
from sdpo_bench.types import StepBatch

UNCLIPPED = 1e9  # beyond any ratio, which the kernel holds at exp(20)


@dataclass(frozen=True)
class FlowDPPO(GRPO):
    """GRPO with a mask in place of the clip:

    loss = -A q M + kl KL,  M = 0 where D > threshold and A (q - 1) > 0, else 1,
    D = d(mu - mu_old) / (2 sigma^2),

    the KL per latent dimension of the step from the policy that sampled (2606.11025, eq. 14, 17 and 18). Beyond the
    threshold only steps back are learnt from. Options: threshold 1e-5 [the authors' code]; kl, as GRPO's.
    """

    name = "flow_dppo"
    title = "Flow-DPPO"
    row = 10
    colour = "#999933"
    marker = "8"
    clips_ratio = False

    threshold: float = positive(1e-5)

    @property
    def old_output(self) -> bool:
        return True

    def loss(self, output: Tensor, batch: StepBatch, *, clip_range: float, advantage_clip: float) -> StepLoss:
        masked = self.masked(output, batch)
        result = super().loss(output, without(batch, masked), clip_range=UNCLIPPED, advantage_clip=advantage_clip)
        return result._replace(clipped=masked.any(1))

    def loss_and_grad(self, output: Tensor, batch: StepBatch, **options: Any) -> tuple[StepLoss, Tensor]:
        masked = self.masked(output, batch)
        result, grad = super().loss_and_grad(output, without(batch, masked), **options | {"clip_range": UNCLIPPED})
        return result._replace(clipped=masked.any(1)), grad

    @torch.no_grad()
    def masked(self, output: Tensor, batch: StepBatch) -> Tensor:
        """Whether a sample is beyond the threshold and its loss would move it further: bool [P, G]."""
        assert batch.old_output is not None
        rows = batch.coefficients.repeat_interleave(output.shape[1], 0)
        moved = divergence(output.flatten(0, 1), batch.old_output.flatten(0, 1), rows).view_as(batch.advantages)
        log_ratio = self.log_prob(output, batch) - batch.old_log_prob
        return (moved > self.threshold) & (batch.advantages * log_ratio > 0)


def without(batch: StepBatch, masked: Tensor) -> StepBatch:
    """`batch` whose `masked` samples have no advantage, and so neither loss nor gradient."""
    return replace(batch, advantages=torch.where(masked, 0, batch.advantages))
