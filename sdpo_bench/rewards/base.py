"""What every reward has in common."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor


class Reward:
    """See the package's docstring."""

    name: ClassVar[str]
    title: ClassVar[str]
    licence: ClassVar[str]
    revision: ClassVar[str]
    scale: ClassVar[str]

    def check_prompts(self, prompts: list[str]) -> None:
        """Raises UserError for prompts that this reward can't score, before a run begins; by default it can."""

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        raise NotImplementedError


def to_uint8(images: Tensor) -> Tensor:
    """Pictures as a file would hold them: float [N, 3, H, W] in 0..1 to uint8."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)
