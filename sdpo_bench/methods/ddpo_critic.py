"""DDPO with a learned baseline (this project's; see docs/methods/ddpo_critic.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdpo_bench.methods.ddpo import DDPO


@dataclass(frozen=True)
class DDPOCritic(DDPO):
    """DDPO whose advantage at step k is less what was foreseeable from the clean latent that is predicted there:

    A[k] = A_DDPO - beta[k] V[k](x0[k]),

    V[k] fitted on the advantages of earlier epochs' samples (training/critic.py): no reward is queried for it. x0[k] is
    fixed before the step's noise is drawn, so that subtracting leaves the expected gradient as it is. beta[k] makes the
    variance over the batch least (a control variate), as in DDPO-dense. Loss and updates are DDPO's.
    """

    name = "ddpo_critic"
    title = "DDPO-critic"
    row = 21
    colour = "#999933"
    marker = "<"

    @property
    def baseline(self) -> Literal["none", "reward", "critic"]:
        return "critic"
