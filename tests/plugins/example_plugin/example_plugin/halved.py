"""DDPO with half of each advantage."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from sdpo_bench.methods.ddpo import DDPO
from sdpo_bench.types import StepBatch


@dataclass(frozen=True)
class Halved(DDPO):
    name = "halved"
    title = "Halved"
    colour = "#123456"
    marker = "v"

    def arguments(self, batch: StepBatch) -> tuple[Tensor, ...]:
        return super().arguments(replace(batch, advantages=batch.advantages / 2))
