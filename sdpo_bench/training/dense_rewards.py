"""Dense rewards: a reward for every denoising step, from a few queries of the reward model.

Every provider is a plan: which steps are queried, and with what weights the other steps average these queries.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import sdpo_kernels
import torch
from torch import Tensor
from torch.nn import functional as F

from sdpo_bench.types import DenseRewards, Trajectory

SIMILARITY_FLOOR = 1e-4  # cosines can be negative; weights below this would make the average explode


COVERED = 0.95  # `adaptive` queries until every predicted picture is this similar to a queried one


MOST_QUERIES = 8


Score = Callable[[Tensor, list[str]], Tensor]
"""Predicted clean latents [N, C, H, W] and their N prompts to rewards float32 [N]."""


class QueryPlan(NamedTuple):
    """queried bool [B, G, K]; weights [B, G, K, K] of each step's (third axis) average over queried ones, 0 elsewhere.
    A queried step's own weights are not used."""

    queried: Tensor
    weights: Tensor


def interpolate(plan: QueryPlan, values: Tensor) -> Tensor:
    """Rewards [B, G, K] at every step from `values` [B, G, K], of which only the queried are read.

    The last step is always queried. What is averaged is the distance from its reward, in float64: equal rewards then
    stay equal to the bit, where rounding would make differences that the advantages' division magnifies.
    """
    last = values[..., -1:].double()
    distance = torch.where(plan.queried, values - last, 0)
    weights = plan.weights.double()
    between = last + (weights * distance[..., None, :]).sum(-1) / weights.sum(-1)
    return torch.where(plan.queried, values, between.to(values))


def query(trajectory: Trajectory, score: Score, queried: Tensor) -> tuple[Tensor, int]:
    """Rewards at the `queried` [B, G, K] steps, NaN elsewhere, and how many pictures were scored: a group's first
    picture once."""
    unique = unshared(queried)
    index = unique.nonzero()
    pictures = trajectory.predicted_clean[tuple(index.T)]
    rewards = score(pictures, [trajectory.prompts[i] for i in index[:, 0].tolist()])
    values = torch.full(queried.shape, torch.nan, device=pictures.device)
    values[tuple(index.T)] = rewards.to(values)
    values[:, 1:, 0] = torch.where(queried[:, 1:, 0], values[:, :1, 0], values[:, 1:, 0])
    return values, len(index)


def last_queried(values: Tensor, queried: Tensor) -> Tensor:
    """The reward [B, G, K] last queried at or before each step (fixed before its noise), 0 where there is none."""
    steps = torch.arange(queried.shape[-1], device=queried.device)
    latest = torch.where(queried, steps, -1).cummax(-1).values
    return torch.where(latest >= 0, values.gather(-1, latest.clamp_min(0)), 0)


def unshared(queried: Tensor) -> Tensor:
    """`queried` without the first step of all but the first sample of each group, which show the same picture."""
    unique = queried.clone()
    unique[:, 1:, 0] = False
    return unique


def compute_dense_rewards(name: str, trajectory: Trajectory, score: Score) -> DenseRewards:
    """The dense rewards of the provider `name`."""
    plan = PLANS[name](trajectory)
    values, queries = query(trajectory, score, plan.queried)
    return DenseRewards(interpolate(plan, values), plan.queried, queries)


def none(trajectory: Trajectory) -> Tensor:
    """False [B, G, K], where the latents are."""
    return torch.zeros_like(trajectory.log_prob, dtype=torch.bool, device=trajectory.predicted_clean.device)


def exact(trajectory: Trajectory) -> QueryPlan:
    """Every step is queried."""
    queried = ~none(trajectory)
    return QueryPlan(queried, queried[..., None, :].float().expand(*queried.shape, -1))


def terminal(trajectory: Trajectory) -> QueryPlan:
    """Only the last step is queried; its reward stands at every step (the sparse ablation)."""
    queried = none(trajectory)
    queried[..., -1] = True
    return QueryPlan(queried, queried[..., None, :].float().expand(*queried.shape, queried.shape[-1]))


def anchored(trajectory: Trajectory) -> QueryPlan:
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
    weights = torch.zeros(*queried.shape, queried.shape[-1], device=queried.device)
    known = [x.unflatten(0, groups).clamp_min(SIMILARITY_FLOOR).to(weights) for x in similarity[:3]]
    weights[..., 0], weights[..., -1] = known[0], known[2]
    weights.scatter_(3, anchor[..., None, :].expand(*queried.shape, 1), known[1][..., None])
    return QueryPlan(queried, weights)


def linear(trajectory: Trajectory) -> QueryPlan:
    """The queries of `anchored`, but each other step is interpolated linearly between its two queried neighbours."""
    queried = anchored(trajectory).queried
    K = queried.shape[-1]
    step = torch.arange(K, device=queried.device).expand_as(queried)
    before = torch.where(queried, step, 0).cummax(-1).values
    after = torch.where(queried, step, K - 1).flip(-1).cummin(-1).values.flip(-1)
    share = (step - before) / (after - before).clamp_min(1)
    weights = torch.zeros(*queried.shape, K, device=queried.device)
    weights.scatter_add_(3, before[..., None], 1 - share[..., None])
    return QueryPlan(queried, weights.scatter_add_(3, after[..., None], share[..., None]))


def budget(trajectory: Trajectory, queries: int | None) -> QueryPlan:
    """`anchored` with another number of queries: after the first and the last step again and again the step least
    similar to all that are chosen; weights as there. None: as many as it takes until every step's picture has a cosine
    of COVERED with a queried one, at most MOST_QUERIES."""
    unit = F.normalize(trajectory.predicted_clean.flatten(3).float(), dim=-1)
    gram = unit @ unit.transpose(-1, -2)
    queried = none(trajectory)
    queried[..., 0] = queried[..., -1] = True
    for _ in range(2, min(MOST_QUERIES if queries is None else queries, queried.shape[-1])):
        seen = gram.where(queried[..., None, :], 0)
        far = seen.sum(-1).where(~queried, torch.inf).argmin(-1, keepdim=True)
        if queries is None:
            covered = gram.where(queried[..., None, :], -1).amax(-1).amin(-1, keepdim=True) >= COVERED
            queried = queried.scatter(2, far, queried.gather(2, far) | ~covered)
        else:
            queried = queried.scatter(2, far, True)
    return QueryPlan(queried, gram.clamp_min(SIMILARITY_FLOOR).where(queried[..., None, :], 0))


PLANS: dict[str, Callable[[Trajectory], QueryPlan]] = {
    "anchored": anchored,
    "exact": exact,
    "terminal": terminal,
    "linear": linear,
    "queries2": partial(budget, queries=2),
    "queries4": partial(budget, queries=4),
    "adaptive": partial(budget, queries=None),
}


COMPARING = ("anchored", "linear")
"""Those that compare latents by a kernel (sdpo_kernels.anchor_similarity), where the latents are stored."""


QUERIES = {"anchored": 3, "terminal": 1, "linear": 3, "queries2": 2, "queries4": 4, "adaptive": MOST_QUERIES}


def most_queries(name: str, steps: int, group: int = 2) -> int:
    """The most pictures of a group that are scored, of K = `steps` predicted for each of its `group` samples."""
    each = min(QUERIES.get(name, steps), steps)
    return group * each - (group - 1) * (each > 1)
