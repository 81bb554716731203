"""Images as the networks of CLIP and BLIP take them: 8 bits, resized, cropped, normalised."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from sdpo_bench.rewards._gradient import StraightThrough

SIZE = 224
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's training pictures; BLIP's too
STD = (0.26862954, 0.26130258, 0.27577711)
FRACTION = 2**22  # Pillow's weights are integers in units of 1 / 2^22


def to_uint8(images: Tensor) -> Tensor:
    """Rounds images to the levels of a file: float [N, 3, H, W] in 0..1 to uint8. ValueError for values that are not
    finite, because 8 bits cannot hold them: NaN would become black."""
    return to_levels(images).to(torch.uint8)


def to_levels(images: Tensor) -> Tensor:
    """The numbers of `to_uint8` in the images' own dtype: 0, 1, ... 255, with a gradient.

    Rounding passes the gradient on, within the range 0..255 including its ends. Values outside get no gradient: a
    pixel's change there does not change a score, and a gradient would drive it farther away.
    """
    if not bool(images.isfinite().all()):
        raise ValueError("pictures hold values that are not finite")
    return StraightThrough.apply(images * 255, torch.round).clamp(0, 255)


def preprocess(images: Tensor) -> Tensor:
    """Float images [N, 3, H, W] in 0..1 to normalised float32 [N, 3, 224, 224], on the same device, with a gradient.

    CLIP's recipe: the short side becomes 224 (bicubic), the middle is cut out. In a trained picture every pixel
    counts, so the resizing is not merely like Pillow's: it gives the same bytes."""
    height, width = images.shape[-2:]
    short = min(height, width)
    pixels = resize(to_levels(images.float()), SIZE * height // short, SIZE * width // short)
    top, left = (pixels.shape[-2] - SIZE) // 2, (pixels.shape[-1] - SIZE) // 2
    pixels = pixels[..., top : top + SIZE, left : left + SIZE].float() / 255
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, STD))
    return (pixels - mean) / std


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """Bicubic resizing of pixels [..., H, W] in 0, 1, ... 255 to such pixels [..., height, width], float64: the same
    bytes as Pillow's, on any device. The gradient is that of `to_levels`, after each pass.

    It resizes first across, then down, and rounds to 8 bits after each. (Pillow 13 goes down first if an image loses
    more than twice as many rows as columns; older versions never do.) Sums of integers below 2^53 are exact in float64
    in any order, so the device does not matter. torch's antialiased bicubic differs from Pillow in 0.4 % of values by 1
    or 2 of 255 on uint8, and by up to 30 on floats, where nothing is cut off between the passes.
    """
    across = _resize_last(pixels.double(), width)
    return _resize_last(across.mT, height).mT


def _resize_last(pixels: Tensor, size: int) -> Tensor:
    if pixels.shape[-1] == size:
        return pixels
    sums = pixels @ _weights(pixels.shape[-1], size).to(pixels.device)
    return StraightThrough.apply((sums + FRACTION // 2) / FRACTION, torch.floor).clamp(0, 255)


@cache
def _weights(size: int, new: int) -> Tensor:
    """Weights [size, new] of the old pixels in each new one: Keys' cubic (a = -0.5), stretched when shrinking."""
    stretch = max(size / new, 1.0)
    centre = (torch.arange(new, dtype=torch.float64) + 0.5) * (size / new)
    first = (centre - 2 * stretch + 0.5).floor()
    last = (centre + 2 * stretch + 0.5).floor()
    index = torch.arange(size, dtype=torch.float64)[:, None]
    x = (index + 0.5 - centre).abs() / stretch
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    cubic = torch.where(x < 1, near, torch.where(x < 2, far, 0)) * ((index >= first) & (index < last))
    fixed = cubic / cubic.sum(0) * FRACTION
    return (fixed + 0.5 * fixed.sign()).trunc()  # half away from zero
