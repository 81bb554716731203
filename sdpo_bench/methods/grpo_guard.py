"""GRPO-Guard: GRPO with a centred ratio and equal weight of the steps (arXiv 2510.22319)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sdpo_kernels.losses import ppo_reference
from torch import Tensor

from sdpo_bench.errors import UserError
from sdpo_bench.methods.base import Method, StepLoss, option
from sdpo_bench.methods.grpo import GRPO
from sdpo_bench.types import StepBatch


@dataclass(frozen=True)
class GRPOGuard(GRPO):
    """GRPO with another ratio and a weight for each step:

    loss = 1 / |b| max{ -A q, -A clip(q, 1 - e, 1 + e) } + kl KL,
    log q = sigma (rho - old + d(mu - mu_old) / (2 sigma^2)) = mean of (mu - mu_old) z

    (2510.22319, eq. 8 and 12), z = (x[k+1] - mu_old) / sigma the noise that was drawn, b the derivative of mu by the
    output. log q has mean 0 at every step; GRPO's has -d(mu - mu_old) / (2 sigma^2). Options: kl, as GRPO's; reweight,
    0 to leave 1 / |b| out; step_weight, as GRPO's, in its place.
    """

    name = "grpo_guard"
    title = "GRPO-Guard"
    row = 9
    colour = "#44aa99"
    marker = "<"
    clip_range = 4e-6  # theirs, 2e-6 at 65,536 dimensions

    reweight: float = option(1.0, "0 (no) or 1", lambda value: value in (0, 1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reweight and self.step_weight:
            raise UserError(
                "options of grpo_guard: reweight and step_weight are two weights of the steps; with step_weight 1 give "
                "reweight 0"
            )

    @property
    def old_output(self) -> bool:
        return True

    loss_and_grad = Method.loss_and_grad  # no fused kernel has this ratio

    def loss(self, output: Tensor, batch: StepBatch, *, clip_range: float, advantage_clip: float) -> StepLoss:
        assert batch.old_output is not None
        a, b, _, _, sigma = (x.reshape(-1, *[1] * (output.ndim - 1)) for x in batch.coefficients.unbind(1))
        # The second form of log q: in the first, terms cancel that are a million times the clip range.
        noise = (batch.prev_sample - a * batch.sample - b * batch.old_output) / sigma
        log_ratio = (b * (output - batch.old_output) * noise).flatten(2).mean(2)
        loss, clipped, _ = ppo_reference(
            log_ratio, torch.zeros_like(log_ratio), batch.advantages, clip_range, advantage_clip
        )
        loss = loss.mean(1) / batch.coefficients[:, 1].abs() if self.reweight else self.weighed(loss.mean(1), batch)
        if self.kl:
            loss = loss + self.penalty(output, batch)
        return StepLoss(loss, self.log_prob(output, batch), clipped.any(1))
