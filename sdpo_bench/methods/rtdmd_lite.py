"""RTDMD's hybrid gradient without its teacher (arXiv 2605.26108): GRPO, and the reward's gradient at the last step."""

from __future__ import annotations

from dataclasses import dataclass

from sdpo_bench.methods.base import RewardGradient, positive
from sdpo_bench.methods.grpo import GRPO


@dataclass(frozen=True)
class RTDMDLite(GRPO):
    """loss = GRPO's over the steps before the last - reward_weight R, the reward's gradient through the decoder and the
    last step, whose noise comes after the picture.

    The distribution-matching term, which needs the teacher that the model was distilled from, is left out. Options:
    kl, as GRPO's; reward_weight 1. The reward must have a gradient.
    """

    name = "rtdmd_lite"
    title = "RTDMD-lite"
    row = 16
    colour = "#88ccee"
    marker = "d"
    trains_last_step = False

    reward_weight: float = positive(1.0)

    def reward_gradient(self, steps: int) -> RewardGradient:
        return RewardGradient(self.reward_weight, last_steps=1)
