"""D3PO: direct preference for denoising diffusion policy optimisation (arXiv 2311.13231)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import sdpo_kernels
from torch import Tensor
from torch.nn import functional as F

from sdpo_bench.methods.base import Method, StepLoss, option, positive
from sdpo_bench.types import StepBatch


@dataclass(frozen=True)
class D3PO(Method):
    """loss = -logsigmoid( beta [ h_a clip(rho_a - ref_a) + h_b clip(rho_b - ref_b) ] ), h = +-1 for the sample with the
    higher and the lower final reward, 0 on a tie; the ratio is clipped to 1 +- ratio_clip, in log space.

    Options [official D3PO]: beta 0.1, ratio_clip 0.1.
    """

    name = "d3po"
    title = "D3PO"
    row = 7
    colour = "#000000"
    marker = "X"
    clips_ratio = False
    weighs_advantages = False
    reference = True

    beta: float = positive(0.1)
    ratio_clip: float = option(0.1, "a number between 0 and 1", lambda value: 0 < value < 1)

    def loss(self, output: Tensor, batch: StepBatch, *, clip_range: float, advantage_clip: float) -> StepLoss:
        assert batch.reference_log_prob is not None
        log_prob = sdpo_kernels.gaussian_log_prob(
            output.flatten(0, 1),
            batch.sample.flatten(0, 1),
            batch.prev_sample.flatten(0, 1),
            batch.coefficients.repeat_interleave(2, 0),
        ).reshape(output.shape[:2])
        log_ratio = log_prob - batch.reference_log_prob
        # Clipping exp() and taking its log would give NaN gradients far out.
        low, high = math.log1p(-self.ratio_clip), math.log1p(self.ratio_clip)
        preference = (batch.advantages - batch.advantages.flip(1)).sign()
        loss = -F.logsigmoid(self.beta * (preference * log_ratio.clamp(low, high)).sum(1))
        return StepLoss(loss, log_prob, ((log_ratio < low) | (log_ratio > high)).any(1))
