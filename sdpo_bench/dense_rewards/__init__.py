"""Dense rewards: a reward for every denoising step, from a few queries of the reward model. One file each or a family
of them, found by looking through this folder.

A dense reward is a plan (base.py: `Plan`): which steps are queried, and with what weights the other steps average these
queries. It has

- `name`, and `meaning`, a line for `sdpo-bench train --help`;
- `queries`: the most steps of a sample that are queried; None: all of them;
- `compares` True: it calls a kernel where the latents are stored;
- `budget`, `title`: its name in dense.jsonl and in figures, where its accuracy is to be measured; `row`, `colour`,
  `marker`: its place there and its look, without which it follows by name and takes spare ones.

All are written as plain values: sdpo_bench/catalogue.py reads them from the text, without PyTorch.
"""

from __future__ import annotations

from sdpo_bench import catalogue
from sdpo_bench.dense_rewards.base import (
    SIMILARITY_FLOOR,
    Plan,
    QueryPlan,
    Score,
    interpolate,
    last_queried,
    none,
    query,
    unshared,
)
from sdpo_bench.types import DenseRewards, Trajectory

PLANS: dict[str, Plan] = {cls.name: cls() for cls in catalogue.classes(__name__, __path__, Plan)}
PLANS = dict(sorted(PLANS.items()))


def compute_dense_rewards(name: str, trajectory: Trajectory, score: Score) -> DenseRewards:
    """The dense rewards of the plan `name`."""
    plan = PLANS[name](trajectory)
    values, queries = query(trajectory, score, plan.queried)
    return DenseRewards(interpolate(plan, values), plan.queried, queries)


def most_queries(name: str, steps: int, group: int = 2) -> int:
    """The most pictures of a group of samples that the plan `name` has scored, of K = `steps` predicted for each."""
    queries = PLANS[name].queries
    each = steps if queries is None else min(queries, steps)
    return group * each - (group - 1) * (each > 1)


__all__ = [
    "PLANS", "SIMILARITY_FLOOR", "Plan", "QueryPlan", "Score", "compute_dense_rewards", "interpolate", "last_queried",
    "most_queries", "none", "query", "unshared",
]  # fmt: skip
