"""Earlier weights of a policy, beside the trained ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sdpo_bench.distributed import distribute_like, full_tensor_on_cpu, to_local
from sdpo_bench.policies import Policy


class OldWeights:
    """A copy of the trained weights that follows them epoch by epoch: the policy that samples and that others are
    compared with, in methods such as DiffusionNFT (arXiv 2509.16117)."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.weights = [to_local(p).detach().clone() for p in policy.parameters]

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Within this context the policy has these weights. No graph of the trained weights may be alive."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # By value: with shared weights the framework keeps views of the parameters' memory.
        for p, old in zip(self.policy.parameters, self.weights, strict=True):
            trained = to_local(p).detach().clone()
            to_local(p).detach().copy_(old)
            old.copy_(trained)

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """old = decay * old + (1 - decay) * trained."""
        for p, old in zip(self.policy.parameters, self.weights, strict=True):
            old.lerp_(to_local(p).detach(), 1 - decay) if decay else old.copy_(to_local(p).detach())

    def state_dict(self) -> list[Tensor]:
        """On the CPU, whole. With shared weights all processes must call this."""
        with self.applied():
            return [full_tensor_on_cpu(p.detach()).clone() for p in self.policy.parameters]

    def load_state_dict(self, state: list[Tensor]) -> None:
        for p, old, value in zip(self.policy.parameters, self.weights, state, strict=True):
            old.copy_(to_local(distribute_like(value, p.detach())))
