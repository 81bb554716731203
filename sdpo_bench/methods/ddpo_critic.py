"""DDPO with a learned baseline (this project's; see docs/methods/ddpo_critic.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdpo_bench.methods.ddpo import DDPO


@dataclass(frozen=True)
class DDPOCritic(DDPO):
    """DDPO with a baseline that is learned from the rewards of earlier epochs:

    A[k] = A_DDPO - beta[k] V(x0[k], k).

    V predicts the advantage from the clean latent x0[k] that is predicted at step k (training/critic.py). x0[k] is
    fixed before the step's noise is drawn, so the expected gradient stays the same. beta[k] minimises the variance over
    the batch (a control variate), as in DDPO-dense. No further reward is queried. Loss and updates are DDPO's.
    """

    name = "ddpo_critic"
    title = "DDPO-critic"
    row = 17
    colour = "#ddcc77"
    marker = "H"

    @property
    def baseline(self) -> Literal["none", "reward", "critic"]:
        return "critic"
