"""DDPO: denoising diffusion policy optimisation, importance-sampled with PPO's clip (arXiv 2305.13301)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sdpo_kernels
from torch import Tensor

from sdpo_bench.methods.base import Method, StepLoss
from sdpo_bench.types import StepBatch


@dataclass(frozen=True)
class DDPO(Method):
    """loss = max{ -A q, -A clip(q, 1 - e, 1 + e) } with q the step's probability ratio and A the normalised final
    reward; each sample on its own, a group's loss is the mean over its samples."""

    name = "ddpo"
    title = "DDPO"
    row = 3
    colour = "#d55e00"
    marker = "^"
    pairwise = False

    def loss(self, output: Tensor, batch: StepBatch, *, clip_range: float, advantage_clip: float) -> StepLoss:
        result = sdpo_kernels.ppo_clip_loss(
            output.flatten(0, 1), *self.arguments(batch), clip_range=clip_range, advantage_clip=advantage_clip
        )
        return self.of_groups(result, output.shape[1])

    def loss_and_grad(
        self, output: Tensor, batch: StepBatch, *, grad_scale: float, **clips: Any
    ) -> tuple[StepLoss, Tensor]:
        result, grad = sdpo_kernels.ppo_clip_loss_and_grad(
            output.flatten(0, 1), *self.arguments(batch), grad_scale=grad_scale / output.shape[1], **clips
        )
        return self.of_groups(result, output.shape[1]), grad.view_as(output)

    def arguments(self, batch: StepBatch) -> tuple[Tensor, ...]:
        """The kernel's arguments, of the groups' samples one after the other."""
        latents = batch.sample.flatten(0, 1), batch.prev_sample.flatten(0, 1)
        rows = batch.coefficients.repeat_interleave(batch.advantages.shape[1], 0)
        return *latents, rows, batch.old_log_prob.flatten(), batch.advantages.flatten()

    def log_prob(self, output: Tensor, batch: StepBatch) -> Tensor:
        """The log-probs [P, G] of the stored steps."""
        log_prob = sdpo_kernels.gaussian_log_prob(output.flatten(0, 1), *self.arguments(batch)[:3])
        return log_prob.unflatten(0, output.shape[:2])

    def of_groups(self, result: tuple[Tensor, Tensor, Tensor], size: int) -> StepLoss:
        loss, log_prob, clipped = (x.unflatten(0, (-1, size)) for x in result)
        return StepLoss(loss.mean(1), log_prob, clipped.any(1))
