"""Advantages: returns normalised per prompt and step over a buffer of recent ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BUFFER, MIN_COUNT = 32, 16  # [official, as in ddpo-pytorch's PerPromptStatTracker]


EPSILON = 1e-6


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation (ddof 0) of each step, [K] each, of `values` [N, K].

    The mean is kept as `reference` + `offset`, where `reference` is one of the values. Rounding then leaves nothing of
    equal values: `centred` gives exactly 0 for them, whatever their size.
    """

    reference: Tensor
    offset: Tensor
    std: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Statistics:
        shifted = values - values[0]
        return cls(values[0], shifted.mean(0), shifted.std(0, correction=0))

    def centred(self, values: Tensor) -> Tensor:
        return (values - self.reference) - self.offset


class PerPromptNormalizer:
    """Keeps, for each prompt, the returns [K] of its last `buffer` samples; with a baseline also the rewards known
    then. A prompt with fewer than `min_count` of them uses the statistics of the whole batch."""

    def __init__(self, buffer: int = BUFFER, min_count: int = MIN_COUNT) -> None:
        self.buffer, self.min_count = buffer, min_count
        self.buffers: dict[str, Tensor] = {}
        self.own_statistics_share = 0.0
        """Share of the last call's advantages that used their prompt's own statistics."""

    def __call__(self, prompts: list[str], returns: Tensor, known: Tensor | None = None) -> Tensor:
        """Advantages float64 [B, G, K] of `returns` [B, G, K]: (G - mean) / (std + 1e-6), std with ddof 0.

        The buffers are extended first. Equal returns have an advantage of exactly 0. With `known` [B, G, K], rewards
        known before each step's action: see `controlled`.
        """
        values = returns.double().cpu()
        if known is not None:
            values = torch.cat([values, known.double().cpu()], -1)
        for prompt, group in zip(prompts, values, strict=True):
            old = self.buffers.get(prompt, group[:0])
            self.buffers[prompt] = torch.cat([old, group])[-self.buffer :]
        own = {prompt: Statistics.of(rows) for prompt, rows in self.buffers.items() if len(rows) >= self.min_count}
        self.own_statistics_share = sum(prompt in own for prompt in prompts) / len(prompts)
        batch = Statistics.of(values.flatten(0, 1))
        chosen = [own.get(prompt, batch) for prompt in prompts]
        centred = torch.stack([s.centred(group) for s, group in zip(chosen, values, strict=True)])
        if known is not None:
            return controlled(*centred.chunk(2, -1))
        return centred / (torch.stack([s.std for s in chosen])[:, None] + EPSILON)


class GroupNormalizer:
    """Advantages only within a group (arXiv 2505.05470). Nothing is kept between epochs."""

    def __init__(self, batch_std: bool = False) -> None:
        """batch_std: divide by the standard deviation of all of the epoch's returns, not of the group's."""
        self.batch_std = batch_std
        self.buffers: dict[str, Tensor] = {}
        self.own_statistics_share = 1.0

    def __call__(self, prompts: list[str], returns: Tensor, known: Tensor | None = None) -> Tensor:
        """Advantages float64 [B, G, K] of `returns` [B, G, K]: (G - mean) / (std + 1e-6), the mean of each group and
        step, std (ddof 0) of the group or of the batch. Equal returns have an advantage of exactly 0."""
        if known is not None:
            raise NotImplementedError("a group's statistics with a control variate: no method has both")
        groups = returns.double().cpu()
        statistics = [Statistics.of(group) for group in groups]
        centred = torch.stack([s.centred(group) for s, group in zip(statistics, groups, strict=True)])
        std = groups.flatten(0, 1).std(0, correction=0) if self.batch_std else torch.stack([s.std for s in statistics])
        return centred / (std.expand(len(groups), -1)[:, None] + EPSILON)


def controlled(returns: Tensor, known: Tensor) -> Tensor:
    """(G - beta R) / (std + 1e-6) of centred returns G and rewards R, [B, G, K] each (see `residual`), where std is
    that of a step's G over the batch. The std of the residual is not used: where most of G was predictable, the
    residual says little and should weigh little."""
    return residual(returns, known) / (Statistics.of(returns.flatten(0, 1)).std + EPSILON)


def residual(values: Tensor, known: Tensor) -> Tensor:
    """values - beta known, [B, G, K] each. For each step, beta is the regression coefficient of `values` on `known`
    over the batch. Where `known` is fixed before the step's action, it is a control variate."""
    beta = (values * known).sum((0, 1)) / known.square().sum((0, 1)).clamp_min(EPSILON**2)
    return values - beta * known
