"""Similarities of the predicted clean latents: SDPO's anchor and its weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sdpo_kernels import _checks
from sdpo_kernels._backend import resolve_backend


class AnchorSimilarity(NamedTuple):
    """Cosines of step k with the first, the anchor and the last step, float32 [N, K]; anchor_index int64 [N]."""

    first: Tensor
    anchor: Tensor
    last: Tensor
    anchor_index: Tensor


def anchor_similarity(predicted_clean: Tensor, *, backend: str | None = None) -> AnchorSimilarity:
    """Cosine similarities along each trajectory of `predicted_clean` [N, K, ...] (arXiv 2411.11727).

    The anchor is the step least similar to the first and the last together. For K > 2 it lies within 1..K-2, so
    that three different steps are queried; for K <= 2 it is the last step.
    """
    resolve_backend(backend)
    shape = _checks.latents(2, predicted_clean=predicted_clean)
    steps = shape[1]
    unit = F.normalize(predicted_clean.flatten(2).float(), dim=-1)
    gram = unit @ unit.transpose(1, 2)
    first, last = gram[:, :, 0], gram[:, :, -1]
    if steps > 2:
        index = (first + last)[:, 1:-1].argmin(1) + 1
    else:
        index = torch.full((shape[0],), steps - 1, device=predicted_clean.device)
    return AnchorSimilarity(first, gram[torch.arange(shape[0], device=gram.device), index], last, index)
