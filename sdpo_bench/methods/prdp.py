"""PRDP: proximal reward difference prediction (arXiv 2402.08714)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo_bench.methods.base import Method, StepLoss, pair_difference, positive
from sdpo_bench.types import TrajectoryBatch


@dataclass(frozen=True)
class PRDP(Method):
    """loss = max{ (D - dA/beta)^2, (Dc - dA/beta)^2 }, D the pair's difference of summed log-ratios to the pretrained
    model, Dc with each step's log-prob clipped around the sampling policy's.

    Option: beta. dA is the difference of normalised final rewards where the paper has raw ones, so that one beta
    serves rewards of any scale.
    """

    name = "prdp"
    title = "PRDP"
    row = 6
    colour = "#cc79a7"
    marker = "P"
    learns_from = "trajectory"
    reference = True

    beta: float = positive(1.0)

    def loss(self, output: Tensor, batch: TrajectoryBatch, *, clip_range: float, advantage_clip: float) -> StepLoss:
        assert batch.reference_log_prob is not None
        change = output - batch.old_log_prob
        near = batch.old_log_prob + change.clamp(-clip_range, clip_range)
        target = pair_difference(batch.advantages.clamp(-advantage_clip, advantage_clip)) / self.beta
        losses = [
            (pair_difference((log_prob - batch.reference_log_prob).sum(-1)) - target).square()
            for log_prob in (output, near)
        ]
        return StepLoss(torch.maximum(*losses), output, (change.abs() > clip_range).flatten(1).any(1))
