"""The precision in which a GPU multiplies float32: full, in matrix products and in convolutions alike.

By PyTorch's default cuDNN's convolutions take TF32, which rounds what they multiply to 10 bits of mantissa in place of
23, and products don't. Here neither may. The log-ratio of an unchanged policy has to be far smaller than the clip
range, which may be 1e-4, though sampling and training run in batches of different sizes, for which the libraries choose
different algorithms: a rounding of 5e-4, not always in the same place, is too coarse for that. Networks in float16 or
bfloat16 lose little time by it: only their adapter's products are in float32.
"""

from __future__ import annotations

import torch

from sdpo_bench.records.provenance import float32_backends


def use_full_float32() -> None:
    """Switches TF32 off for the process, however it was switched on."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if hasattr(torch.backends, "fp32_precision"):
        # PyTorch 2.9 has these in place of those, and raises where the two contradict each other: so both are set.
        for backend in float32_backends().values():
            backend.fp32_precision = "ieee"
