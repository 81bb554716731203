"""SDPO's dense reward (arXiv 2411.11727): three queries; the other steps are averages of them."""

from __future__ import annotations

import sdpo_kernels
import torch

from sdpo_bench.dense_rewards.base import SIMILARITY_FLOOR, Plan, QueryPlan, first_and_last, none
from sdpo_bench.types import Trajectory


class Anchored(Plan):
    """The first, the anchor and the last step are queried, the others averaged from these

    R[k] = (R[0] first[k] + R[anchor] anchor[k] + R[K-1] last[k]) / (first[k] + anchor[k] + last[k]),

    by the cosine similarities of the predicted clean latents, not below SIMILARITY_FLOOR.
    """

    name = "anchored"
    meaning = "averaged from three queries, by the similarity of the pictures (the paper's)"
    queries = 3
    compares = True

    budget = "3"
    title = "3 queries (the paper's)"
    row = 3
    colour = "#c51b8a"
    marker = "o"

    def always(self, steps: int) -> tuple[int, ...]:
        return first_and_last(self.queries, steps)

    def __call__(self, trajectory: Trajectory) -> QueryPlan:
        groups = trajectory.log_prob.shape[:2]
        similarity = sdpo_kernels.anchor_similarity(trajectory.predicted_clean.flatten(0, 1))
        anchor = similarity.anchor_index.unflatten(0, groups)[..., None]
        queried = none(trajectory)
        queried[..., 0] = queried[..., -1] = True
        queried.scatter_(2, anchor, True)
        weights = torch.zeros(*queried.shape, queried.shape[-1], device=queried.device)
        known = [x.unflatten(0, groups).clamp_min(SIMILARITY_FLOOR).to(weights) for x in similarity[:3]]
        weights[..., 0], weights[..., -1] = known[0], known[2]
        weights.scatter_(3, anchor[..., None, :].expand(*queried.shape, 1), known[1][..., None])
        return QueryPlan(queried, weights)
