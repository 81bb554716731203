"""The precision in which a GPU multiplies float32: full, in matrix products and in convolutions alike.

By PyTorch's default cuDNN's convolutions take TF32, which rounds what they multiply to 10 bits of mantissa in place of
23, and products don't. Here neither may. The log-ratio of an unchanged policy has to be far smaller than the clip
range, which may be 1e-4, though sampling and training run in batches of different sizes, for which the libraries choose
different algorithms: a rounding of 5e-4, not always in the same place, is too coarse for that. Networks in float16 or
bfloat16 lose little time by it: only their adapter's products are in float32.
"""

from __future__ import annotations

from typing import Any

import torch


def use_full_float32() -> None:
    """Switches TF32 off for the process, however it was switched on."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if hasattr(torch.backends, "fp32_precision"):
        # PyTorch 2.9 has these in place of those, and raises where the two contradict each other: so both are set.
        for part in _parts().values():
            part.fp32_precision = "ieee"


def float32_precision() -> dict[str, str]:
    """`ieee` or `tf32`, of matrix products and of cuDNN's convolutions and recurrent networks, as it is set now."""
    if hasattr(torch.backends, "fp32_precision"):
        return {name: part.fp32_precision for name, part in _parts().items()}
    cudnn = torch.backends.cudnn.allow_tf32
    flags = {"products": torch.backends.cuda.matmul.allow_tf32, "convolutions": cudnn, "recurrent": cudnn}
    return {name: "tf32" if flag else "ieee" for name, flag in flags.items()}


def _parts() -> dict[str, Any]:
    cudnn: Any = torch.backends.cudnn
    return {"products": torch.backends.cuda.matmul, "convolutions": cudnn.conv, "recurrent": cudnn.rnn}
