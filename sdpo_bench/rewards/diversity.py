"""How different the images of one prompt are. It is measured beside the rewards and never optimised."""

from __future__ import annotations

from torch import Tensor

from sdpo_bench.rewards._together import Together, TogetherHeldout


class Diversity(Together):
    """For each image, the mean distance to the other images of its prompt in the same call, so that the mean over them
    is the mean pairwise distance: root mean square over pixels and channels. 0 for a prompt's only image."""

    name = "diversity"
    title = "Diversity (pixels)"
    scale = "root mean square distance of pixels, 0..1"

    def measure(self, images: Tensor) -> Tensor:
        return self.distances(self.points(images)).sum(1) / max(len(images) - 1, 1)

    def distances(self, points: Tensor) -> Tensor:
        """Distances [N, N], 0 on the diagonal."""
        return (points[:, None] - points[None]).square().mean(-1).sqrt()


class DiversityHeldout(TogetherHeldout, Diversity):
    """`diversity` with the cosine distance between the held-out scorer's embeddings of the images."""

    name = "diversity_heldout"
    title = "Diversity (held-out scorer)"
    scale = "cosine distance, 0..2"

    def distances(self, points: Tensor) -> Tensor:
        return (1 - points @ points.T).clamp_min(0).fill_diagonal_(0)
