"""Advantages: returns normalised per prompt and step over a buffer of recent ones."""

from __future__ import annotations

import torch
from torch import Tensor

BUFFER = 32  # [official: buffer size 32, minimum count 16, as in ddpo-pytorch]
MIN_COUNT = 16
EPSILON = 1e-6


class Normaliser:
    """Keeps, for each prompt, the returns [K] of its last 32 samples."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def __call__(self, prompts: list[str], returns: Tensor) -> Tensor:
        """Advantages [B, G, K] of `returns` [B, G, K]: (G - mean) / (std + 1e-6), std with ddof 0.

        The buffers are extended first. A prompt with fewer than 16 values takes mean and std of the step over the
        whole batch.
        """
        returns = returns.float().cpu()
        for prompt, group in zip(prompts, returns, strict=True):
            old = self.buffers.get(prompt, group[:0])
            self.buffers[prompt] = torch.cat([old, group])[-BUFFER:]
        batch = returns.flatten(0, 1)
        out = torch.empty_like(returns)
        for i, prompt in enumerate(prompts):
            values = self.buffers[prompt] if len(self.buffers[prompt]) >= MIN_COUNT else batch
            out[i] = (returns[i] - values.mean(0)) / (values.std(0, correction=0) + EPSILON)
        return out
