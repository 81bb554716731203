"""SDPO's averaging with numbers of queries other than three."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from sdpo_bench.dense_rewards.base import SIMILARITY_FLOOR, Plan, QueryPlan, first_and_last, none
from sdpo_bench.types import Trajectory

COVERED = 0.95  # `adaptive` queries until every predicted picture is this similar to a queried one


class Queries2(Plan):
    """Queries the first and the last step, then repeatedly the step that is least similar to all chosen ones, until
    there are `queries`. The weights are those of `anchored`."""

    name = "queries2"
    meaning = "averaged from two queries"
    queries = 2
    adaptive = False

    budget = "2"
    title = "2 queries"
    row = 2
    colour = "#9e9ac8"
    marker = "s"

    def always(self, steps: int) -> tuple[int, ...]:
        return first_and_last(2 if self.adaptive else self.queries, steps)

    def __call__(self, trajectory: Trajectory) -> QueryPlan:
        unit = F.normalize(trajectory.predicted_clean.flatten(3).float(), dim=-1)
        gram = unit @ unit.transpose(-1, -2)
        queried = none(trajectory)
        queried[..., 0] = queried[..., -1] = True
        for _ in range(2, min(self.queries, queried.shape[-1])):
            seen = gram.where(queried[..., None, :], 0)
            far = seen.sum(-1).where(~queried, torch.inf).argmin(-1, keepdim=True)
            if self.adaptive:
                covered = gram.where(queried[..., None, :], -1).amax(-1).amin(-1, keepdim=True) >= COVERED
                queried = queried.scatter(2, far, queried.gather(2, far) | ~covered)
            else:
                queried = queried.scatter(2, far, True)
        return QueryPlan(queried, gram.clamp_min(SIMILARITY_FLOOR).where(queried[..., None, :], 0))


class Queries4(Queries2):
    """The same with four queries."""

    name = "queries4"
    meaning = "averaged from four queries"
    queries = 4

    budget = "4"
    title = "4 queries"
    row = 4
    colour = "#6a51a3"
    marker = "D"


class Adaptive(Queries2):
    """Queries steps until every step's image has a cosine of COVERED with a queried one, but at most `queries`."""

    name = "adaptive"
    meaning = "averaged from as many queries as a sample needs, at most eight"
    queries = 8
    adaptive = True

    budget = "adaptive"
    title = "adaptive queries"
    row = 5
    colour = "#8c6d31"
    marker = "P"
