"""Gradients of scores by their pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Score = Callable[[Tensor, list[str]], Tensor]


class StraightThrough(torch.autograd.Function):
    """rounding(x), which has no gradient of its own; x has the gradient of what it is rounded to (the straight-through
    estimator, arXiv 1308.3432). Its values are exact."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        return rounding(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def score_in_parts(score: Score, images: Tensor, prompts: list[str], size: int, scale: float = 1.0) -> Tensor:
    """score(pictures, prompts), float32 [n], for `size` pictures [N, 3, H, W] at a time: [N] together, with the
    gradient by the pictures where they have one. ValueError for another number of prompts.

    A score depends on its own picture alone. So the gradient of each part is computed at once, and kept in place of
    the network's activations: the memory is one part's, and a gradient of the pictures' size. `scale` multiplies the
    gradient within the network, and is divided out in float32.
    """
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} pictures, but {len(prompts)} prompts")
    if torch.is_grad_enabled() and images.requires_grad:
        return ScoreInParts.apply(images, score, prompts, size, scale)
    return torch.cat([torch.zeros(0), *(score(*part) for part in _parts(images, prompts, size))])


def _parts(images: Tensor, prompts: list[str], size: int) -> Iterator[tuple[Tensor, list[str]]]:
    for i in range(0, len(prompts), size):
        yield images[i : i + size], prompts[i : i + size]


class ScoreInParts(torch.autograd.Function):
    """Scores, whose gradient is already known when they are."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, score: Score, prompts: list[str], size: int, scale: float) -> Tensor:
        scores, gradients = [torch.zeros(0)], [torch.zeros_like(images[:0], dtype=torch.float32)]
        for pictures, texts in _parts(images, prompts, size):
            with torch.enable_grad():
                pictures = pictures.detach().float().requires_grad_()
                found = score(pictures, texts)
                (gradient,) = torch.autograd.grad(found.sum() * scale, pictures)
            if not bool(gradient.isfinite().all()):
                raise ValueError("the gradient by the pictures is not finite")
            scores.append(found.detach())
            gradients.append(gradient / scale)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(scores)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return grads[0].to(gradient)[:, None, None, None] * gradient, None, None, None, None
