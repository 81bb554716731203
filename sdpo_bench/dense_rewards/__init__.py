"""Dense rewards: a reward for every denoising step, from a few queries of the reward model. Each file has one or a
family of them; all are found in this folder.

A dense reward is a plan (base.py: `Plan`): which steps are queried, and with what weights the other steps average these
queries. It has

- `name`, and `meaning`, a line for `sdpo-bench train --help`;
- `queries`: the maximum number of queried steps of a sample; None: all of them;
- `compares` True: it calls a kernel on the device that stores the latents;
- `always`: the steps that are queried whatever the pictures are, whose rewards can be baselines;
- `budget`, `title`: its name in dense.jsonl and in figures, if its accuracy is to be measured; `row`, `colour`,
  `marker`: its place and look there; by default it follows by name and takes spare ones.

All but `always`, a function of K, are plain values, because sdpo_bench/catalogue.py reads them from the text, without
PyTorch.
"""

from __future__ import annotations

from sdpo_bench import catalogue
from sdpo_bench.dense_rewards.base import (
    SIMILARITY_FLOOR,
    Plan,
    QueryPlan,
    Score,
    interpolate,
    last_known,
    none,
    query,
    unshared,
)
from sdpo_bench.types import DenseRewards, Trajectory

PLANS: catalogue.Registry[Plan] = catalogue.Registry(
    lambda: dict(sorted((cls.name, cls()) for cls in catalogue.classes(__name__, __path__, Plan)))
)


def compute_dense_rewards(name: str, trajectory: Trajectory, score: Score) -> DenseRewards:
    """Queries and interpolates the dense rewards of the plan `name`."""
    plan = PLANS[name](trajectory)
    values, queries = query(trajectory, score, plan.queried)
    return DenseRewards(interpolate(plan, values), plan.queried, queries)


def most_queries(name: str, steps: int, group: int = 2, shared: bool = True) -> int:
    """The maximum number of images that the plan `name` scores for a group of samples with K = `steps`, whose first
    image they share or not."""
    queries = PLANS[name].queries
    each = steps if queries is None else min(queries, steps)
    return group * each - (group - 1) * (each > 1 and shared)


__all__ = [
    "PLANS",
    "SIMILARITY_FLOOR",
    "Plan",
    "QueryPlan",
    "Score",
    "compute_dense_rewards",
    "interpolate",
    "last_known",
    "most_queries",
    "none",
    "query",
    "unshared",
]
