"""How red a picture is."""

from __future__ import annotations

from torch import Tensor

from sdpo_bench.rewards.base import Reward


class Redness(Reward):
    """The mean of the red channel."""

    name = "redness"
    title = "Redness"
    licence = "MIT (computed)"
    revision = "1"
    scale = "0..1"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images[:, 0].float().mean((1, 2)).cpu()
