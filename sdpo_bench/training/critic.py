"""A prediction of advantages from what is known before each step's action, learned from earlier epochs' samples."""

from __future__ import annotations

import torch
from torch import Tensor

from sdpo_bench.training.advantages import EPSILON, residual
from sdpo_bench.types import Trajectory

WINDOW = 1024  # samples, 16 epochs of 64; the time of a fit grows with their cube
WIDTH, RIDGE = 0.5, 0.3  # chosen on tuning prompts (docs/methods/ddpo_critic.md)
LATENT, TEXT = 256, 64  # most numbers of a pooled latent (8 x 8 places of 4 channels), and of a pooled prompt


class Critic:
    """A kernel ridge regression of advantages on the states of earlier samples, a separate one for each denoising step.

    V(x, k) = mean + sum over i of a[i] exp(-|x - x[i]|^2 / (2 WIDTH^2 F))

    The sum is over the last WINDOW samples. x[i] are their F features at step k, each divided by its standard
    deviation. a solves (kernel + RIDGE I) a = advantages - mean. These samples are the whole state; nothing is random.
    """

    def __init__(self) -> None:
        self.features = torch.empty(0)
        """float32 [N, K, F], the latest last."""
        self.advantages = torch.empty(0)
        """float32 [N, K]."""
        self.explained: list[float] | None = None
        """For each step of the last epoch, the share of the advantages' mean square that was removed. Without
        information it is about one over their number. None if there was no earlier epoch to learn from."""

    def control(self, features: Tensor, advantages: Tensor) -> Tensor:
        """The rest of advantages, float64 [B, G, K], after their prediction from features [B, G, K, F] is
        subtracted (see `residual`); all of them in the first epoch. Learns from them afterwards."""
        left, self.explained = advantages, None
        rows = features.flatten(0, 1)
        if len(self.features):
            left = residual(advantages, self.values(rows).view_as(advantages).double())
            squares, before = (x.square().mean((0, 1)) for x in (left, advantages))
            self.explained = ((before - squares) / before.clamp_min(EPSILON**2)).tolist()
        self.learn(rows, advantages.flatten(0, 1).float())
        return left

    def learn(self, features: Tensor, advantages: Tensor) -> None:
        """Adds samples, [N, K, F] and [N, K], and drops the oldest beyond WINDOW."""
        if len(self.features):
            features = torch.cat([self.features, features])
            advantages = torch.cat([self.advantages, advantages])
        self.features, self.advantages = features[-WINDOW:].clone(), advantages[-WINDOW:].clone()

    def values(self, features: Tensor) -> Tensor:
        """Values float32 [N, K] of features [N, K, F]."""
        steps = zip(features.unbind(1), self.features.unbind(1), self.advantages.unbind(1), strict=True)
        return torch.stack([regression(*step) for step in steps], 1)

    def state_dict(self) -> dict[str, Tensor]:
        return {"features": self.features, "advantages": self.advantages}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.features, self.advantages = state["features"], state["advantages"]


def regression(x: Tensor, known: Tensor, targets: Tensor) -> Tensor:
    """Predictions [N] at features x [N, F], by kernel ridge regression of targets [M] on features `known` [M, F]."""
    scale = known.std(0, correction=0).clamp_min(EPSILON)

    def kernel(a: Tensor) -> Tensor:
        distances = torch.cdist(a / scale, known / scale).square()
        return torch.exp(-distances / (2 * WIDTH**2 * known.shape[1]))

    mean = targets.mean()
    factor = torch.linalg.cholesky(kernel(known) + RIDGE * torch.eye(len(known)))
    weights = torch.cholesky_solve((targets - mean)[:, None], factor)
    return mean + (kernel(x) @ weights)[:, 0]


def features_of(trajectory: Trajectory) -> Tensor:
    """Features of each step's state before its noise is drawn: float32 [B, G, K, F], on the CPU.

    They are the clean latent that is predicted there, averaged over places, and the prompt's text embeddings, averaged
    over tokens and over neighbouring dimensions.
    """
    clean = trajectory.predicted_clean
    channels = clean.shape[3]
    side = max(side for side in (1, 2, 4, 8) if side == 1 or channels * side**2 <= LATENT)
    height, width = (min(side, n) for n in clean.shape[4:])
    latents = torch.nn.functional.adaptive_avg_pool2d(clean.flatten(0, 2).float(), (height, width)).flatten(1)
    text = trajectory.conditions[0].float().mean(1)
    text = torch.nn.functional.adaptive_avg_pool1d(text, min(TEXT, text.shape[1])).cpu()
    return torch.cat(
        [latents.cpu().unflatten(0, clean.shape[:3]), text[:, None, None].expand(*clean.shape[:3], -1)], -1
    )
