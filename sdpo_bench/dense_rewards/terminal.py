"""Only the final reward: the sparse ablation, and the choice of methods without dense rewards."""

from __future__ import annotations

from sdpo_bench.dense_rewards.base import Plan, QueryPlan, none
from sdpo_bench.types import Trajectory


class Terminal(Plan):
    """Queries only the last step; every step gets its reward."""

    name = "terminal"
    meaning = "the final one at every step (the sparse ablation)"
    queries = 1

    budget = "terminal"
    title = "final reward only"
    row = 1
    colour = "#fd8d3c"
    marker = "v"

    def __call__(self, trajectory: Trajectory) -> QueryPlan:
        queried = none(trajectory)
        queried[..., -1] = True
        return QueryPlan(queried, queried[..., None, :].float().expand(*queried.shape, queried.shape[-1]))
