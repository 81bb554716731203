"""The exact dense reward, which the others predict."""

from __future__ import annotations

from sdpo_bench.dense_rewards.base import Plan, QueryPlan, none
from sdpo_bench.types import Trajectory


class Exact(Plan):
    """Every step is queried."""

    name = "exact"
    meaning = "queried at every step"
    queries = None

    def always(self, steps: int) -> tuple[int, ...]:
        return tuple(range(steps))

    def __call__(self, trajectory: Trajectory) -> QueryPlan:
        queried = ~none(trajectory)
        return QueryPlan(queried, queried[..., None, :].float().expand(*queried.shape, -1))
