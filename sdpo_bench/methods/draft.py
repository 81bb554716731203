"""DRaFT: direct reward finetuning, back through the picture and the last steps (arXiv 2309.17400)."""

from __future__ import annotations

from dataclasses import dataclass

from sdpo_bench.errors import UserError
from sdpo_bench.methods.base import Method, RewardGradient, option


@dataclass(frozen=True)
class DRaFT(Method):
    """loss = -R, the reward of the final picture, with the gradient through the decoder and the last denoising steps.

    Options: last_steps, through how many of them (DRaFT-K; 1 by default, 0: all, as AlignProp, arXiv 2310.03739);
    noisings, where above 0: the finished sample is noised anew so many times at the level of the last step, and the
    gradients are averaged (DRaFT-LV; the paper takes 2). The reward must have a gradient.
    """

    name = "draft"
    title = "DRaFT"
    row = 15
    colour = "#332288"
    marker = "p"
    clips_ratio = False
    weighs_advantages = False
    learns_from = "reward"
    pairwise = False
    shared_noise = False

    last_steps: float = option(
        1, "0 (all) or a whole number of steps", lambda value: value >= 0 and value == int(value)
    )
    noisings: float = option(0, "0 (none) or a whole number", lambda value: value >= 0 and value == int(value))

    def reward_gradient(self, steps: int) -> RewardGradient:
        if self.last_steps > steps:
            raise UserError(f"option last_steps of draft is {self.last_steps:g}; expected at most --steps ({steps})")
        if self.noisings and self.last_steps != 1:
            raise UserError("options of draft: noisings take the last step alone; leave last_steps out")
        return RewardGradient(1.0, int(self.last_steps) or steps, int(self.noisings))
