"""How far a model's pictures are from those that it made before any training: the kernel inception distance (Binkowski
et al., arXiv 1801.01401), with another network than Inception."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from sdpo_bench.errors import UserError
from sdpo_bench.rewards._together import TogetherHeldout


class KidStart(TogetherHeldout):
    """The unbiased squared MMD of a prompt's pictures x from the pretrained model's y, with KID's cubic kernel on the
    held-out scorer's embeddings. 0 is the same distribution; it rises where pictures become blurred, alike, or others.

    x[i] and y[i] come from the same noise, so they are not two independent samples but n independent pairs. The
    estimate is therefore the mean over i != j of k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i])
    (Gretton et al., "A kernel two-sample test", 2012, lemma 6): no pair is compared with itself, so that the estimate
    is unbiased, and 0 to the bit where all pictures are as before. A picture's value is the mean over its j, and so the
    mean of a prompt's values is its estimate, which chance can make negative."""

    name = "kid_start"
    title = "Kernel distance from the pretrained model"
    scale = "squared MMD, kernel (cosine of embeddings + 1)^3; 0: as the pretrained model's pictures"
    needs_start = True
    start: Tensor | None = None

    @classmethod
    def check_noises(cls, last: int, interim: int) -> None:
        if min(last, interim) < 2:
            raise UserError(
                f"{cls.name} compares the pictures of a prompt with each other, and there is 1; give at least 2 to "
                f"--eval-noises and --eval-interim-noises"
            )

    def against(self, start: Tensor) -> KidStart:
        other = copy.copy(self)
        other.start = start
        return other

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        if self.start is None:
            raise UserError(f"{self.name} has no pictures of the pretrained model; give them with its `against`")
        return super().__call__(torch.stack([images, self.start], 1), prompts)

    def measure(self, images: Tensor) -> Tensor:
        """KID of pairs [n, 2, 3, H, W]: the model's picture and the pretrained model's."""
        n = len(images)
        self.check_noises(n, n)
        x, y = (self.points(pictures).double() for pictures in images.unbind(1))
        terms = kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)
        terms = ((terms + terms.T) / 2).fill_diagonal_(0)
        return terms.sum(1) / (n - 1)


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """KID's (x y / d + 1)^3, [n, m], of embeddings that are scaled to a mean square of 1 over their d elements. They
    come with length 1, with which it would be all but linear and compare little but means."""
    return (x @ y.T + 1) ** 3
