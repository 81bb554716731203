"""The precision in which a GPU multiplies float32: full, for matrix products and convolutions.

By PyTorch's default cuDNN's convolutions use TF32, which rounds factors to 10 bits of mantissa instead of 23; products
do not. Here both are off. The log-ratio of an unchanged policy has to be much smaller than the clip range, which may be
1e-4. But sampling and training run in batches of different sizes, for which the libraries choose different algorithms.
A rounding of 5e-4 that is not always in the same place is too coarse for that. Networks in float16 or bfloat16 lose
little time by it, because only their adapter's products are in float32.
"""

from __future__ import annotations

import torch

from sdpo_bench.records.provenance import float32_backends


def use_full_float32() -> None:
    """Turns TF32 off for the process, whichever setting turned it on."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if hasattr(torch.backends, "fp32_precision"):
        # PyTorch 2.9 has these in place of those, and raises where the two contradict each other: so both are set.
        for backend in float32_backends().values():
            backend.fp32_precision = "ieee"
