"""Similarities of the predicted clean latents, which give SDPO's anchor and its weights. The kernels are in
similarity_triton.py."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sdpo_kernels import _backend, _checks, _dispatch
from sdpo_kernels.transition import sum_dtype


class AnchorSimilarity(NamedTuple):
    """Cosines of step k with the first, the anchor and the last step, float32 [N, K]; anchor_index int64 [N]."""

    first: Tensor
    anchor: Tensor
    last: Tensor
    anchor_index: Tensor


def anchor_similarity(predicted_clean: Tensor, *, backend: str | None = None) -> AnchorSimilarity:
    """Cosine similarities along each trajectory of `predicted_clean` [N, K, ...] (arXiv 2411.11727).

    The anchor is the step with the smallest sum of similarities to the first and the last step. For K > 2 it is within
    1..K-2, so that three different steps are queried; for K <= 2 it is the last step. Not differentiable.
    """
    chosen, direct = _dispatch.prepare(_check, backend, predicted_clean)
    operation = _anchor_similarity.direct if direct else _anchor_similarity
    return AnchorSimilarity(*operation(predicted_clean, chosen))


def _check(backend: str | None, clean: Tensor) -> str:
    _checks.latents(2, predicted_clean=clean)
    return _backend.of(backend, clean)


def anchor_similarity_reference(clean: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cosines [N, K] with the first, the anchor and the last step, and the anchor [N]."""
    steps = clean.shape[1]
    unit = F.normalize(clean.flatten(2).to(sum_dtype(clean)), dim=-1)
    gram = unit @ unit.transpose(1, 2)
    first, last = gram[:, :, 0], gram[:, :, -1]
    if steps > 2:
        index = (first + last)[:, 1:-1].argmin(1) + 1
    else:
        index = torch.full((len(clean),), steps - 1, device=clean.device)
    anchor = gram[torch.arange(len(clean), device=gram.device), index]
    return first.clone(), anchor, last.clone(), index


@_dispatch.operation("anchor_similarity")
def _anchor_similarity(clean: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if backend == "triton":
        import sdpo_kernels.similarity_triton as kernels

        return kernels.anchor_similarity(clean)
    return anchor_similarity_reference(clean)


@_anchor_similarity.register_fake
def _(clean, backend):
    cosines = [clean.new_empty(clean.shape[:2], dtype=sum_dtype(clean)) for _ in range(3)]
    return (*cosines, clean.new_empty(clean.shape[0], dtype=torch.int64))
