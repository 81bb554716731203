"""Advantages: returns normalised per prompt and step over a buffer of recent ones."""

from __future__ import annotations

import torch
from torch import Tensor

BUFFER = 32  # [official: buffer size 32, minimum count 16, as in ddpo-pytorch]
MIN_COUNT = 16
EPSILON = 1e-6


class Normaliser:
    """Keeps, for each prompt, the returns [K] of its last 32 samples, with a baseline these and the rewards known."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def __call__(self, prompts: list[str], returns: Tensor, known: Tensor | None = None) -> Tensor:
        """Advantages [B, G, K] of `returns` [B, G, K]: (G - mean) / (std + 1e-6), std with ddof 0.

        The buffers are extended first. A prompt with fewer than 16 values takes mean and std of the step over the
        whole batch. With `known` [B, G, K], rewards known before each step's action: see `controlled`.
        """
        values = returns.float().cpu()
        if known is not None:
            values = torch.cat([values, known.float().cpu()], -1)
        for prompt, group in zip(prompts, values, strict=True):
            old = self.buffers.get(prompt, group[:0])
            self.buffers[prompt] = torch.cat([old, group])[-BUFFER:]
        batch = values.flatten(0, 1)
        recent = [self.buffers[p] if len(self.buffers[p]) >= MIN_COUNT else batch for p in prompts]
        centred = values - torch.stack([rows.mean(0) for rows in recent])[:, None]
        if known is not None:
            return controlled(*centred.chunk(2, -1))
        return centred / (torch.stack([rows.std(0, correction=0) for rows in recent])[:, None] + EPSILON)


def controlled(returns: Tensor, known: Tensor) -> Tensor:
    """(G - beta R) / (std + 1e-6) of centred returns G and rewards R, [B, G, K] each: of a step one beta, the
    regression of G on R over the batch (a control variate), and one std, that of G over the batch. Not the residual's
    std: where nearly all was foreseeable, what is left says little, and should weigh little."""
    beta = (returns * known).sum((0, 1)) / known.square().sum((0, 1)).clamp_min(EPSILON**2)
    return (returns - beta * known) / (returns.std((0, 1), correction=0) + EPSILON)
