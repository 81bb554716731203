"""DDPO with dense rewards as returns and as baselines (this project's; see docs/methods/ddpo_dense.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sdpo_bench.methods.base import discount, option
from sdpo_bench.methods.ddpo import DDPO
from sdpo_bench.methods.sdpo_causal import SDPOCausal


@dataclass(frozen=True)
class DDPODense(DDPO):
    """DDPO whose advantage at step k is the causal return of dense rewards less what was foreseeable:

    A[k] = (G[k] - mean - beta[k] (R[q] - mean)) / std G[k],  G[k] = sum over j > k of gamma^(j-k-1) R[j],

    R[q] the reward at the last step q <= k that is queried whatever the pictures are: it is fixed before the step's
    noise is drawn, so that subtracting it leaves the expected gradient as it is. beta[k] makes the variance over the
    batch least (a control variate). Loss and updates are DDPO's. Options: gamma, SDPO's 0.99; control, 0 for no
    baseline.
    """

    name = "ddpo_dense"
    title = "DDPO-dense"
    row = 4
    colour = "#e69f00"
    marker = "v"
    dense = True
    dense_reward = "exact"

    gamma: float = discount(0.99)
    control: float = option(1.0, "0 (no baseline) or 1", lambda value: value in (0, 1))

    @property
    def baseline(self) -> Literal["none", "reward", "critic"]:
        return "reward" if self.control else "none"

    def returns(self, rewards: Tensor) -> Tensor:
        return SDPOCausal(gamma=self.gamma).returns(rewards)
