"""How different the pictures of one prompt are: measured beside the rewards, never optimised."""

from __future__ import annotations

import torch
from torch import Tensor

from sdpo_bench.rewards.alignment import AlignmentHeldout
from sdpo_bench.rewards.base import Reward, to_uint8


class Diversity(Reward):
    """Of each picture the mean distance to the other pictures of its prompt in the same call, so that the mean over
    them is the mean pairwise distance: root mean square over pixels and channels. 0 for a prompt's only picture."""

    name = "diversity"
    title = "Diversity (pixels)"
    licence = "MIT"
    revision = "1"
    scale = "root mean square distance of pixels, 0..1"
    optimisable = False

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        values = torch.zeros(len(images))
        for prompt in dict.fromkeys(prompts):
            group = [i for i, other in enumerate(prompts) if other == prompt]
            values[group] = self.distances(self.points(images[group])).sum(1) / max(len(group) - 1, 1)
        return values

    def points(self, images: Tensor) -> Tensor:
        return to_uint8(images).flatten(1).cpu().float() / 255

    def distances(self, points: Tensor) -> Tensor:
        """[N, N], 0 on the diagonal."""
        return (points[:, None] - points[None]).square().mean(-1).sqrt()


class DiversityHeldout(AlignmentHeldout, Diversity):
    """`diversity` with the cosine distance between the held-out scorer's embeddings of the pictures."""

    name = "diversity_heldout"
    title = "Diversity (held-out scorer)"
    licence = AlignmentHeldout.licence
    scale = "cosine distance, 0..2"

    __call__ = Diversity.__call__

    def check_prompts(self, prompts: list[str]) -> None:
        """It never reads a prompt, only whether two are the same."""

    def points(self, images: Tensor) -> Tensor:
        return self.scorer.embed(images.float().cpu())

    def distances(self, points: Tensor) -> Tensor:
        return (1 - points @ points.T).clamp_min(0).fill_diagonal_(0)
