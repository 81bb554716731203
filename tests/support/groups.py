"""Groups of samples at a denoising step, made up."""

from __future__ import annotations

import dataclasses
from typing import Any

import sdpo_kernels
import torch
from torch import Tensor

from sdpo_bench.types import StepBatch


def batch_of(groups: int = 3, size: int = 4, seed: int = 0, **changes: Any) -> tuple[Tensor, StepBatch]:
    """The model's output at a step of random groups, in float64, and the batch; `changes` of its fields."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    latents = (groups, size, 2, 4, 4)
    rows = torch.tensor([[0.9, -0.3, 1.1, -0.5, 0.2]], dtype=torch.float64).expand(groups, 5).contiguous()
    output, sample, reference = normal(*latents), normal(*latents), normal(*latents)
    means = rows[0, 0] * sample + rows[0, 1] * output
    batch = StepBatch(
        step=torch.zeros(groups, dtype=torch.int64),
        sample=sample,
        prev_sample=means + 0.2 * normal(*latents),
        coefficients=rows,
        old_log_prob=normal(groups, size) * 0.01 + 0.2,
        advantages=normal(groups, size),
        reference_log_prob=None,
        reference_output=reference,
        old_output=output + 0.01 * normal(*latents),
    )
    return output, dataclasses.replace(batch, **changes)


def sampled(batch: StepBatch, distance: float, seed: int = 0) -> tuple[Tensor, StepBatch]:
    """An output about `distance` away from `old_output`, and the batch as `old_output` sampled it: with its log-probs,
    and next latents that have its mean."""
    assert batch.old_output is not None
    generator = torch.Generator().manual_seed(seed)
    x, old = batch.sample, batch.old_output
    noise, moved = (torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(2))
    a, b, _, _, sigma = batch.coefficients[0]
    following = a * x + b * old + sigma * noise
    rows = batch.coefficients.repeat_interleave(x.shape[1], 0)
    log_prob = sdpo_kernels.gaussian_log_prob(old.flatten(0, 1), x.flatten(0, 1), following.flatten(0, 1), rows)
    batch = dataclasses.replace(batch, prev_sample=following, old_log_prob=log_prob.view(x.shape[:2]))
    return old + distance * moved, batch


def permuted(batch: StepBatch, order: Tensor) -> StepBatch:
    """`batch` with the samples of each group in another order."""
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    moved = {name: x[:, order] for name, x in fields.items() if name not in ("step", "coefficients") and x is not None}
    return dataclasses.replace(batch, **moved)
