"""REBEL: regression to relative rewards (arXiv 2404.16767; on few-step image models by RLCM, arXiv 2404.03673)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo_bench.methods.base import Method, StepLoss, pair_difference, positive
from sdpo_bench.types import TrajectoryBatch


@dataclass(frozen=True)
class REBEL(Method):
    """loss = ( eta_r [sum_k (rho_a - old_a) - sum_k (rho_b - old_b)] - (A_a - A_b) )^2, no clipping of ratios.

    Option: scale (eta_r). A is the normalised final reward.
    """

    name = "rebel"
    title = "REBEL"
    row = 5
    colour = "#009e73"
    marker = "D"
    learns_from = "trajectory"

    scale: float = positive(1.0)

    def loss(self, output: Tensor, batch: TrajectoryBatch, *, clip_range: float, advantage_clip: float) -> StepLoss:
        log_ratio = (output - batch.old_log_prob).sum(-1)
        target = pair_difference(batch.advantages.clamp(-advantage_clip, advantage_clip))
        loss = (self.scale * pair_difference(log_ratio) - target).square()
        return StepLoss(loss, output, torch.zeros_like(loss, dtype=torch.bool))
