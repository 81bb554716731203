"""GRPO: group relative policy optimisation of diffusion models (Flow-GRPO, arXiv 2505.05470; DanceGRPO, 2505.07818)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdpo_bench.methods.base import StepLoss, option
from sdpo_bench.methods.ddpo import DDPO
from sdpo_bench.types import StepBatch


@dataclass(frozen=True)
class GRPO(DDPO):
    """DDPO's loss with advantages by the statistics of the sample's own group of G, and a KL penalty:

    loss = max{ -A q, -A clip(q, 1 - e, 1 + e) } + kl KL,  A = (R - mean of the group) / (std of the group),
    KL = d(mu - mu_ref) / (2 sigma^2),  d the mean of squares over the latent,

    (2505.05470). The group shares its initial noise, as in 2505.07818. Options: kl, the weight of the
    penalty; 0, the default, leaves it and the reference's forward passes out. step_weight, 1 to multiply the first term
    by sigma, the noise of the step, over its mean of the trained steps (TempFlow-GRPO, 2508.04324, eq. 7).
    """

    name = "grpo"
    title = "GRPO"
    row = 8
    colour = "#882255"
    marker = "*"
    normalizer = "group"
    group_size = 8

    kl: float = option(0.0, "0 or more", lambda value: value >= 0)
    step_weight: float = option(0.0, "0 (no) or 1", lambda value: value in (0, 1), later=True)

    @property
    def reference_output(self) -> bool:
        return self.kl > 0

    @property
    def weighs_by_sigma(self) -> bool:
        return self.step_weight > 0

    def loss(self, output: Tensor, batch: StepBatch, *, clip_range: float, advantage_clip: float) -> StepLoss:
        result = super().loss(output, batch, clip_range=clip_range, advantage_clip=advantage_clip)
        result = result._replace(loss=self.weighed(result.loss, batch))
        return result._replace(loss=result.loss + self.penalty(output, batch)) if self.kl else result

    def loss_and_grad(
        self, output: Tensor, batch: StepBatch, *, grad_scale: float, **clips: Any
    ) -> tuple[StepLoss, Tensor]:
        result, grad = super().loss_and_grad(output, batch, grad_scale=grad_scale, **clips)
        result, grad = result._replace(loss=self.weighed(result.loss, batch)), self.weighed(grad, batch)
        if not self.kl:
            return result, grad
        leaf = output.detach().requires_grad_()
        penalty = self.penalty(leaf, batch)
        (more,) = torch.autograd.grad(grad_scale * penalty.sum(), leaf)
        return result._replace(loss=result.loss + penalty.detach()), grad + more

    def weighed(self, x: Tensor, batch: StepBatch) -> Tensor:
        """x [P, ...], the policy's part of the loss or its gradient, by the weights of the steps."""
        if batch.relative_sigma is None:
            return x
        return x * batch.relative_sigma.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)

    def penalty(self, output: Tensor, batch: StepBatch) -> Tensor:
        """kl times the KL [P] of the step from the pretrained model's, a mean over the group."""
        assert batch.reference_output is not None
        return self.kl * divergence(output, batch.reference_output, batch.coefficients)


def divergence(output: Tensor, other: Tensor, rows: Tensor) -> Tensor:
    """KL [N] of a step's Gaussian from another model's, per latent dimension: outputs [N, ...], coefficients [N, 5].

    The means differ by b (m - m_other) alone: both models start from the same latent.
    """
    b, sigma = rows[:, 1], rows[:, 4]
    distance = (output - other).square().flatten(1).mean(1)
    return b.square() * distance / (2 * sigma.square())
