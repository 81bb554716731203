"""The paper's three queries, interpolated linearly: shows the effect of the similarity of images."""

from __future__ import annotations

import torch

from sdpo_bench.dense_rewards.anchored import Anchored
from sdpo_bench.dense_rewards.base import Plan, QueryPlan, first_and_last
from sdpo_bench.types import Trajectory


class Linear(Plan):
    """Makes the queries of `anchored`; each other step is interpolated linearly between its two queried neighbours."""

    name = "linear"
    meaning = "the same three queries, interpolated linearly in time"
    queries = 3
    compares = True

    budget = "linear3"
    title = "3 queries, linear"
    row = 6
    colour = "#74a9cf"
    marker = "X"

    def always(self, steps: int) -> tuple[int, ...]:
        return first_and_last(self.queries, steps)

    def __call__(self, trajectory: Trajectory) -> QueryPlan:
        queried = Anchored()(trajectory).queried
        K = queried.shape[-1]
        step = torch.arange(K, device=queried.device).expand_as(queried)
        before = torch.where(queried, step, 0).cummax(-1).values
        after = torch.where(queried, step, K - 1).flip(-1).cummin(-1).values.flip(-1)
        share = (step - before) / (after - before).clamp_min(1)
        weights = torch.zeros(*queried.shape, K, device=queried.device)
        weights.scatter_add_(3, before[..., None], 1 - share[..., None])
        return QueryPlan(queried, weights.scatter_add_(3, after[..., None], share[..., None]))
