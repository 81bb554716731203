"""Dense rewards: a reward for every denoising step, from a few queries of the reward model."""

from __future__ import annotations

from collections.abc import Callable

import sdpo_kernels
import torch
from torch import Tensor

from sdpo_bench.types import DenseRewards, Trajectory

SIMILARITY_FLOOR = 1e-4  # cosines can be negative; weights below this would make the average explode

Score = Callable[[Tensor, list[str]], Tensor]
"""Predicted clean latents [N, C, H, W] and their N prompts to rewards float32 [N]."""


def query(trajectory: Trajectory, score: Score, queried: Tensor) -> DenseRewards:
    """Rewards at the `queried` [B, G, K] steps, NaN elsewhere. A group's first picture is scored once."""
    B, G, K = queried.shape
    unique = queried.clone()
    unique[:, 1:, 0] = False
    index = unique.nonzero()
    pictures = trajectory.predicted_clean[tuple(index.T)]
    rewards = score(pictures, [trajectory.prompts[i] for i in index[:, 0].tolist()])
    values = torch.full((B, G, K), torch.nan, device=pictures.device)
    values[tuple(index.T)] = rewards.to(values)
    values[:, 1:, 0] = torch.where(queried[:, 1:, 0], values[:, :1, 0], values[:, 1:, 0])
    return DenseRewards(values, queried, len(index))


def none(trajectory: Trajectory) -> Tensor:
    """False [B, G, K], where the latents are."""
    return torch.zeros_like(trajectory.log_prob, dtype=torch.bool, device=trajectory.predicted_clean.device)


def exact(trajectory: Trajectory, score: Score) -> DenseRewards:
    """Every step is queried."""
    return query(trajectory, score, ~none(trajectory))


def terminal(trajectory: Trajectory, score: Score) -> DenseRewards:
    """Only the last step is queried; its reward stands at every step (the sparse ablation)."""
    queried = none(trajectory)
    queried[..., -1] = True
    result = query(trajectory, score, queried)
    return DenseRewards(result.values[..., -1:].expand_as(queried).clone(), queried, result.queries)


def anchored(trajectory: Trajectory, score: Score) -> DenseRewards:
    """SDPO's (arXiv 2411.11727): the first, the anchor and the last step are queried, the others averaged from these

    R[k] = (R[0] first[k] + R[anchor] anchor[k] + R[K-1] last[k]) / (first[k] + anchor[k] + last[k]),

    by the cosine similarities of the predicted clean latents, not below SIMILARITY_FLOOR.
    """
    groups = trajectory.log_prob.shape[:2]
    similarity = sdpo_kernels.anchor_similarity(trajectory.predicted_clean.flatten(0, 1))
    anchor = similarity.anchor_index.unflatten(0, groups)[..., None]
    queried = none(trajectory)
    queried[..., 0] = queried[..., -1] = True
    queried.scatter_(2, anchor, True)
    result = query(trajectory, score, queried)
    known = torch.stack(
        [result.values[..., 0], result.values.gather(2, anchor)[..., 0], result.values[..., -1]], -1
    )
    weights = torch.stack([similarity.first, similarity.anchor, similarity.last], -1).unflatten(0, groups)
    weights = weights.clamp_min(SIMILARITY_FLOOR)
    between = (weights * known[..., None, :]).sum(-1) / weights.sum(-1)
    return DenseRewards(torch.where(queried, result.values, between), queried, result.queries)


PROVIDERS = {"anchored": anchored, "exact": exact, "terminal": terminal}
