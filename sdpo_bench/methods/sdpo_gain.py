"""SDPO with gains as returns (this project's; see docs/methods/sdpo_gain.md)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo_bench.methods.sdpo import SDPO


@dataclass(frozen=True)
class SDPOGain(SDPO):
    """SDPO whose return is what the step's action adds: each later reward less the reward of the picture that was
    predicted before the action.

    G[k] = sum over j > k of gamma^(j-k-1) (R[j] - R[k]). The last step's return is 0. R[k] is known before the step's
    noise is drawn, so leaving it in (SDPO), out (SDPO-causal) or subtracting it changes the variance, not the mean,
    of the policy gradient.
    """

    name = "sdpo_gain"
    title = "SDPO-gain"

    def returns(self, rewards: Tensor) -> Tensor:
        out = torch.zeros_like(rewards)
        weight = torch.zeros_like(rewards[..., 0])
        for k in range(rewards.shape[-1] - 2, -1, -1):
            # With S[k] = sum of gamma^(j-k-1) R[j]: S[k] = R[k+1] + gamma S[k+1]; `out` holds S until its end.
            out[..., k] = rewards[..., k + 1] + self.gamma * out[..., k + 1]
        for k in range(rewards.shape[-1] - 2, -1, -1):
            weight = 1 + self.gamma * weight
            out[..., k] -= weight * rewards[..., k]
        return out
