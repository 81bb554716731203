"""SDPO with causal returns (this project's; see docs/methods/sdpo_causal.md)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo_bench.methods.sdpo import SDPO


@dataclass(frozen=True)
class SDPOCausal(SDPO):
    """SDPO whose return leaves out the reward of the step's own predicted clean latent.

    That picture is fixed before the step's noise is drawn, so its reward only adds variance:
    G[k] = sum over j > k of gamma^(j-k-1) R[j]. The last step's return is 0.
    """

    name = "sdpo_causal"
    title = "SDPO-causal"
    row = 2
    colour = "#56b4e9"
    marker = "s"

    def returns(self, rewards: Tensor) -> Tensor:
        later = super().returns(rewards)[..., 1:]
        return torch.cat([later, torch.zeros_like(rewards[..., :1])], -1)
