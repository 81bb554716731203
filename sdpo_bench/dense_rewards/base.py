"""Common parts of all dense rewards: the plan of their queries, and the interpolation of rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sdpo_bench.types import Trajectory

SIMILARITY_FLOOR = 1e-4  # cosines can be negative; weights below this would make the average explode


Score = Callable[[Tensor, list[str]], Tensor]
"""Predicted clean latents [N, C, H, W] and their N prompts to rewards float32 [N]."""


class QueryPlan(NamedTuple):
    """queried bool [B, G, K]; weights [B, G, K, K] of each step's (third axis) average over queried ones, 0 elsewhere.
    A queried step's own weights are not used."""

    queried: Tensor
    weights: Tensor


class Plan:
    """See the package's docstring."""

    name: ClassVar[str]
    meaning: ClassVar[str]
    queries: ClassVar[int | None] = None
    compares: ClassVar[bool] = False

    def __call__(self, trajectory: Trajectory) -> QueryPlan:
        """Chooses which steps of `trajectory` are queried. The last step of every sample must be."""
        raise NotImplementedError

    def always(self, steps: int) -> tuple[int, ...]:
        """The steps, of K = `steps`, that are queried whatever pictures a trajectory has: the last one, unless a plan
        says more. Only their rewards can be baselines, for a choice by pictures knows the noise of later steps."""
        return (steps - 1,)


def first_and_last(queries: int, steps: int) -> tuple[int, ...]:
    """`always` of a plan that queries the first and the last step, and further ones by their pictures: all steps where
    there are no more of them than queries."""
    return tuple(range(steps)) if steps <= queries else (0, steps - 1)


def interpolate(plan: QueryPlan, values: Tensor) -> Tensor:
    """Rewards [B, G, K] at every step from `values` [B, G, K], of which only the queried ones are read.

    The last step is always queried. Distances from its reward are averaged, in float64. So equal rewards stay equal to
    the bit; rounding would make differences that the division in the advantages magnifies.
    """
    last = values[..., -1:].double()
    distance = torch.where(plan.queried, values - last, 0)
    weights = plan.weights.double()
    between = last + (weights * distance[..., None, :]).sum(-1) / weights.sum(-1)
    return torch.where(plan.queried, values, between.to(values))


def query(trajectory: Trajectory, score: Score, queried: Tensor) -> tuple[Tensor, int]:
    """Rewards at the `queried` [B, G, K] steps, NaN elsewhere, and the number of scored images. The first image of a
    group that shares its initial noise is scored once."""
    unique = unshared(queried) if trajectory.shared_noise else queried
    index = unique.nonzero()
    pictures = trajectory.predicted_clean[tuple(index.T)]
    rewards = score(pictures, [trajectory.prompts[i] for i in index[:, 0].tolist()])
    values = torch.full(queried.shape, torch.nan, device=pictures.device)
    values[tuple(index.T)] = rewards.to(values)
    if trajectory.shared_noise:
        values[:, 1:, 0] = torch.where(queried[:, 1:, 0], values[:, :1, 0], values[:, 1:, 0])
    return values, len(index)


def last_known(values: Tensor, always: Sequence[int]) -> Tensor:
    """The reward [..., K] at the last step of `always` at or before each step: it is fixed before the step's noise. 0
    if there is none."""
    known = torch.zeros_like(values)
    for step in sorted(always):
        known[..., step:] = values[..., step, None]
    return known


def unshared(queried: Tensor) -> Tensor:
    """`queried` without the first step of all samples of a group but the first, because they show the same image."""
    unique = queried.clone()
    unique[:, 1:, 0] = False
    return unique


def none(trajectory: Trajectory) -> Tensor:
    """A tensor of False [B, G, K], on the device of the latents."""
    return torch.zeros_like(trajectory.log_prob, dtype=torch.bool, device=trajectory.predicted_clean.device)
