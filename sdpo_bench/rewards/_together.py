"""Measures of all pictures of a prompt together. They are reported beside the rewards and never optimised."""

from __future__ import annotations

import torch
from torch import Tensor

from sdpo_bench.rewards.alignment import AlignmentHeldout
from sdpo_bench.rewards.base import Reward, to_uint8


class Together(Reward):
    """A measure of the pictures that have one prompt in a call. Its features are their pixels."""

    licence = "MIT"
    revision = "1"
    optimisable = False

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        values = torch.zeros(len(images))
        for prompt in dict.fromkeys(prompts):
            group = [i for i, other in enumerate(prompts) if other == prompt]
            values[group] = self.measure(images[group]).float()
        return values

    def measure(self, images: Tensor) -> Tensor:
        """The values [n] of all n pictures of a prompt."""
        raise NotImplementedError

    def points(self, images: Tensor) -> Tensor:
        """Features float32 [n, d] on the CPU, here pixels in 0..1."""
        return to_uint8(images).flatten(1).cpu().float() / 255


class TogetherHeldout(Together):
    """Its features are the held-out scorer's embeddings, of length 1. It never reads a prompt, only whether two are
    the same, and so takes all of them."""

    licence = AlignmentHeldout.licence

    def __init__(self) -> None:
        self.scorer = AlignmentHeldout().scorer

    def points(self, images: Tensor) -> Tensor:
        return self.scorer.embed(images.float().cpu())
