"""Measures the accuracy of predicted dense rewards: several query budgets against exact rewards, on separate
samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdpo_bench import dense_rewards
from sdpo_bench.catalogue import BUDGETS
from sdpo_bench.methods.sdpo import SDPO
from sdpo_bench.types import Trajectory


def compare(trajectory: Trajectory, score: dense_rewards.Score) -> list[dict[str, Any]]:
    """A row for each budget: its error at each of K steps over all samples, and its effect on the differences within
    pairs.

    Keys: "queries_per_sample"; lists [K]: "mae" and "bias" of the predicted rewards, "std" of the exact ones, "corr",
    the correlation over pairs of predicted with exact differences within the pair (None if one of them is constant, as
    at the first step, whose image a pair shares), and "return_corr" and "return_sign", the correlation and the
    agreement in sign of the differences of SDPO's returns.
    """
    exact, _ = dense_rewards.query(trajectory, score, dense_rewards.none(trajectory) | True)
    exact = exact.cpu()
    returns = SDPO().returns
    rows = []
    for name, entry in BUDGETS.items():
        plan = dense_rewards.QueryPlan(*(x.cpu() for x in dense_rewards.PLANS[entry.name](trajectory)))
        predicted = dense_rewards.interpolate(plan, exact)
        error = (predicted - exact).flatten(0, 1)
        difference, true_difference = (x[:, 0] - x[:, 1] for x in (predicted, exact))
        ahead, truly_ahead = (x[:, 0] - x[:, 1] for x in (returns(predicted), returns(exact)))
        queries = dense_rewards.unshared(plan.queried).sum().item() / plan.queried[..., 0].numel()
        rows.append(
            {
                "budget": name,
                "queries_per_sample": queries,
                "mae": rounded(error.abs().mean(0)),
                "bias": rounded(error.mean(0)),
                "std": rounded(exact.flatten(0, 1).std(0, correction=0)),
                "corr": correlation(difference, true_difference),
                "return_corr": correlation(ahead, truly_ahead),
                "return_sign": rounded((ahead.sign() == truly_ahead.sign()).float().mean(0)),
            }
        )
    return rows


def correlation(x: Tensor, y: Tensor) -> list[float | None]:
    """Pearson's, of the columns of x and y [N, K]; None for a column that is constant."""
    x, y = (z.double() - z.double().mean(0) for z in (x, y))
    scale = (x.square().sum(0) * y.square().sum(0)).sqrt()
    return [None if s < 1e-12 else round((xy / s).item(), 6) for xy, s in zip((x * y).sum(0), scale, strict=True)]


def rounded(x: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in torch.as_tensor(x).tolist()]
