"""Colourfulness (Hasler and Suesstrunk, "Measuring colourfulness in natural images", 2003, equation 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from sdpo_bench.rewards.base import Reward, to_levels


class Colourfulness(Reward):
    """M = sqrt(var rg + var yb) + 0.3 sqrt(mean rg^2 + mean yb^2), with rg = R - G and yb = (R + G) / 2 - B."""

    name = "colourfulness"
    title = "Colourfulness"
    licence = "MIT (computed)"
    revision = "1"
    scale = "channels in 0..1; grey is 0"
    differentiable = True

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        red, green, blue = (to_levels(images).float() / 255).flatten(2).unbind(1)
        rg, yb = red - green, (red + green) / 2 - blue
        spread = root(rg.var(1, correction=0) + yb.var(1, correction=0))
        return (spread + 0.3 * root(rg.mean(1).square() + yb.mean(1).square())).cpu()


def root(x: Tensor) -> Tensor:
    """The square root, with the gradient 0 at 0, where it is the tip of a cone: M's lowest value."""
    return torch.where(x > 0, x.where(x > 0, 1).sqrt(), 0)
