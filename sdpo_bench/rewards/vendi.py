"""The Vendi score: how many different pictures a prompt has (Friedman and Dieng, arXiv 2210.02410)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sdpo_bench.errors import UserError
from sdpo_bench.rewards._together import Together, TogetherHeldout


class Vendi(Together):
    """exp(-tr(K/n log K/n)) of a prompt's n pictures in the same call, where K holds the cosines of their features:
    1 where all are the same, n where all are orthogonal. Each of the pictures has the value of its prompt.

    Pictures that are black everywhere have no direction: they count as the same, and as orthogonal to all others."""

    name = "vendi"
    title = "Vendi score (pixels)"
    scale = "effective number of different pictures, 1 to the number of noises; cosines of pixels"

    @classmethod
    def check_noises(cls, last: int, interim: int) -> None:
        if last != interim:
            raise UserError(
                f"{cls.name} grows with the number of noises, which --eval-interim-noises ({interim}) makes another "
                f"one on the way than at the end ({last}): name it with --eval-last-rewards"
            )

    def measure(self, images: Tensor) -> Tensor:
        points = self.points(images).double()
        black = (points == 0).all(1, keepdim=True)
        directions = F.normalize(torch.cat([points, black], 1))
        # Rounding makes eigenvalues that are 0 a little negative.
        shares = torch.linalg.eigvalsh(directions @ directions.T / len(images)).clamp_min(0)
        return torch.special.entr(shares).sum().exp().expand(len(images))


class VendiHeldout(TogetherHeldout, Vendi):
    """`vendi` with the held-out scorer's embeddings of the pictures."""

    name = "vendi_heldout"
    title = "Vendi score (held-out scorer)"
    scale = "effective number of different pictures, 1 to the number of noises; cosines of embeddings"
