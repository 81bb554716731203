"""SDPO: stepwise diffusion policy optimisation, by dense reward difference learning (arXiv 2411.11727)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sdpo_kernels
import torch
from torch import Tensor

from sdpo_bench.methods.base import Method, StepLoss, discount, option, positive
from sdpo_bench.types import StepBatch


@dataclass(frozen=True)
class SDPO(Method):
    """Regresses, at each step, the difference of the pair's log-ratios on the difference of their advantages:

    loss = max{ (w D - dA)^2, (w Dc - dA)^2 },  w = lambda^k / eta_s,  D = (rho_a - old_a) - (rho_b - old_b),
    Dc with each log-ratio clipped to +- e.  Options [official]: gamma, step_discount (lambda), scale (eta_s).
    """

    name = "sdpo"
    title = "SDPO"
    row = 1
    colour = "#0072b2"
    marker = "o"
    dense = True
    updates = "step"

    gamma: float = discount(0.99)
    step_discount: float = option(0.99, "a number > 0, at most 1", lambda value: 0 < value <= 1)
    scale: float = positive(1.0)

    def returns(self, rewards: Tensor) -> Tensor:
        """G[k] = R[k] + gamma G[k+1]."""
        out = rewards.clone()
        for k in range(rewards.shape[-1] - 2, -1, -1):
            out[..., k] += self.gamma * out[..., k + 1]
        return out

    def loss(self, output: Tensor, batch: StepBatch, *, clip_range: float, advantage_clip: float) -> StepLoss:
        arguments = self.arguments(batch)
        return StepLoss(
            *sdpo_kernels.sdpo_loss(output, *arguments, clip_range=clip_range, advantage_clip=advantage_clip)
        )

    def loss_and_grad(self, output: Tensor, batch: StepBatch, **options: Any) -> tuple[StepLoss, Tensor]:
        result, grad = sdpo_kernels.sdpo_loss_and_grad(output, *self.arguments(batch), **options)
        return StepLoss(*result), grad

    def arguments(self, batch: StepBatch) -> tuple[Tensor, ...]:
        weight = torch.pow(self.step_discount, batch.step.to(batch.advantages)) / self.scale
        return batch.sample, batch.prev_sample, batch.coefficients, batch.old_log_prob, batch.advantages, weight
