"""Random finished samples with fresh noise, in float64, for tests of the methods that learn from them."""

from __future__ import annotations

import torch
from torch import Tensor

from sdpo_bench.types import NoisedBatch

CLIPS = {"clip_range": 1e-3, "advantage_clip": 5.0}


def noised_batch(groups: int = 3, size: int = 4, seed: int = 0) -> tuple[Tensor, NoisedBatch]:
    """Groups at levels of their own, the old and the pretrained model near the trained one, and its output there.

    As of a flow-matching model: the clean latent is x - s m for a velocity m, of which x = (1 - s) x0 + s z.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    latents = (groups, size, 2, 3, 3)
    level = torch.rand(groups, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    zero, one = torch.zeros_like(level), torch.ones_like(level)
    clean, noise = normal(*latents), normal(*latents)
    s = level.reshape(-1, 1, 1, 1, 1)
    output = noise - clean + 0.5 * normal(*latents)
    batch = NoisedBatch(
        step=torch.zeros(groups, dtype=torch.int64),
        clean=clean,
        sample=(1 - s) * clean + s * noise,
        coefficients=torch.stack([one, zero, one, -level, zero], 1),
        advantages=3 * normal(groups, size),  # some beyond the clip
        reference_output=output + 0.2 * normal(*latents),
        old_output=output + 0.1 * normal(*latents),
    )
    return output, batch


def permuted(batch: NoisedBatch, order: Tensor) -> NoisedBatch:
    """The batch with the samples of each group in another order."""
    assert batch.reference_output is not None
    assert batch.old_output is not None
    return NoisedBatch(
        step=batch.step,
        clean=batch.clean[:, order],
        sample=batch.sample[:, order],
        coefficients=batch.coefficients,
        advantages=batch.advantages[:, order],
        reference_output=batch.reference_output[:, order],
        old_output=batch.old_output[:, order],
    )


def advantage_weighted(output: Tensor, batch: NoisedBatch, advantages: Tensor, space: Tensor | float = 1.0) -> Tensor:
    """The gradient of advantages [P, G] times d / w, a sum over groups of the mean over samples, by the output: d the
    mean squared and w the mean absolute error of the predicted clean latents over `space`, w a constant."""
    leaf = output.clone().requires_grad_()
    c, d = (batch.coefficients[:, i].reshape(-1, 1, 1, 1, 1) for i in (2, 3))
    error = (c * batch.sample + d * leaf - batch.clean) / space
    fit = error.square().mean((2, 3, 4)) / error.detach().abs().mean((2, 3, 4))
    (grad,) = torch.autograd.grad((advantages * fit).mean(1).sum(), leaf)
    return grad


def scalars(x: Tensor) -> list[float]:
    """A latent's elements."""
    return [float(value) for value in x.flatten().tolist()]
