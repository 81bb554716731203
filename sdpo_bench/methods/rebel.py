"""REBEL: regression to relative rewards (arXiv 2404.16767; on few-step image models by RLCM, arXiv 2404.03673)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo_bench.methods.base import Method, StepLoss, option, pair_difference, positive
from sdpo_bench.types import TrajectoryBatch


@dataclass(frozen=True)
class REBEL(Method):
    """loss = ( eta_r [sum_k (rho_a - old_a) - sum_k (rho_b - old_b)] - (A_a - A_b) )^2, no clipping of ratios.

    Options: scale (eta_r); batch_sum, an ablation (docs/methods/rebel.md). A is the normalised final reward.
    """

    name = "rebel"
    title = "REBEL"
    row = 5
    colour = "#009e73"
    marker = "D"
    clips_ratio = False
    learns_from = "trajectory"

    scale: float = positive(1.0)
    batch_sum: float = option(1.0, "a whole number, 1 or more", lambda value: value >= 1 and value % 1 == 0, later=True)

    def loss(self, output: Tensor, batch: TrajectoryBatch, *, clip_range: float, advantage_clip: float) -> StepLoss:
        target = pair_difference(batch.advantages.clamp(-advantage_clip, advantage_clip))
        difference = pair_difference((output - batch.old_log_prob).sum(-1))
        if self.batch_sum > 1:  # the other pairs' differences too, but not those of the policy that sampled
            parts = pair_difference(output.sum(-1)).split(int(self.batch_sum))
            difference = difference + torch.cat([part.sum() - part for part in parts])
        loss = (self.scale * difference - target).square()
        return StepLoss(loss, output, torch.zeros_like(loss, dtype=torch.bool))
