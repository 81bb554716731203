"""DDPO with dense rewards (this project's; see docs/methods/ddpo_dense.md)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sdpo_bench.methods.ddpo import DDPO
from sdpo_bench.methods.sdpo_causal import SDPOCausal


@dataclass(frozen=True)
class DDPODense(DDPO):
    """DDPO whose advantage at each step is the normalised causal return of dense rewards, SDPO-causal's

    G[k] = sum over j > k of gamma^(j-k-1) R[j], in place of the final reward. Loss and updates stay DDPO's.

    Option: gamma, 0.99 as SDPO's.
    """

    name = "ddpo_dense"
    title = "DDPO-dense"
    dense = True

    gamma: float = 0.99

    def returns(self, rewards: Tensor) -> Tensor:
        return SDPOCausal(gamma=self.gamma).returns(rewards)
