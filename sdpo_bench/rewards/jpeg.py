"""How well an image compresses, as JPEG (arXiv 2305.13301, section 5.1)."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor

from sdpo_bench.rewards.base import Reward, to_uint8

QUALITY = 95


def jpeg_size(images: Tensor) -> Tensor:
    """Size in kB (1000 bytes) of each image [N, 3, H, W] as a JPEG file of quality 95, float32 [N]."""
    sizes = []
    for image in to_uint8(images).permute(0, 2, 3, 1).cpu().numpy():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=QUALITY)
        sizes.append(buffer.tell() / 1000)
    return torch.tensor(sizes, dtype=torch.float32)


class JPEGIncompressibility(Reward):
    """The size of the image's JPEG file."""

    name = "jpeg_incompressibility"
    title = "JPEG incompressibility"
    licence = "MIT (computed)"
    revision = "1"
    scale = "kB at quality 95"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return jpeg_size(images)


class JPEGCompressibility(Reward):
    """Minus the size of the image's JPEG file."""

    name = "jpeg_compressibility"
    title = "JPEG compressibility"
    licence = "MIT (computed)"
    revision = "1"
    scale = "minus kB at quality 95"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return -jpeg_size(images)
