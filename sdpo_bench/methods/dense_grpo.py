"""DenseGRPO: GRPO that credits each step with the reward it gains (arXiv 2601.20218)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo_bench.methods.grpo import GRPO


@dataclass(frozen=True)
class DenseGRPO(GRPO):
    """GRPO whose advantage at step k is that of the gain

    R[k+1] - R[k],

    within the group (2601.20218, eq. 7 and 10), R[k] the reward of the image that is predicted at step k, before its
    noise. The last step, whose noise comes after the image that is scored, has no gain. Option: kl, as GRPO's.
    """

    name = "dense_grpo"
    title = "DenseGRPO"
    row = 11
    colour = "#aa4499"
    marker = ">"
    dense = True
    dense_reward = "exact"

    def returns(self, rewards: Tensor) -> Tensor:
        return torch.cat([rewards.diff(dim=-1), torch.zeros_like(rewards[..., -1:])], -1)
