"""Preprocessing against Pillow and against transformers' processor, which the published scores came from."""

import numpy as np
import pytest
import torch
from PIL import Image

from sdpo_bench.rewards._pixels import preprocess, resize


def pictures(height, width):
    """Noise of middling and of extreme values, [2, 3, H, W] uint8: extremes make the cubic overshoot."""
    noise = torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    noise[1] = (noise[1] > 127) * 255
    return noise


def as_pil(picture):
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


# Not: pictures that lose more than twice as many rows as columns, which Pillow 13 takes in the other order.
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((512, 512), (224, 224)),
        ((32, 32), (224, 224)),
        ((225, 224), (225, 224)),
        ((300, 400), (224, 298)),
        ((64, 48), (298, 224)),
        ((7, 5), (313, 224)),
        ((1, 1), (224, 224)),
        ((1024, 1024), (224, 224)),
    ],
)
def test_the_same_bytes_as_pillow(old, new):
    noise = pictures(*old)
    expected = [np.asarray(as_pil(p).resize(new[::-1], Image.Resampling.BICUBIC)) for p in noise]
    assert np.array_equal(resize(noise, *new).permute(0, 2, 3, 1).numpy(), np.stack(expected))


@pytest.mark.parametrize("size", [(512, 512), (32, 32), (224, 224), (256, 340), (333, 250), (223, 225)])
def test_the_same_as_the_processor(size):
    """Bytes are the same; float32 arithmetic on them may differ in the last digit of values up to 2.7: hence 1e-6."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    noise = pictures(*size)
    expected = CLIPImageProcessorPil()([as_pil(picture) for picture in noise], return_tensors="pt").pixel_values
    assert torch.allclose(preprocess(noise.float() / 255), expected, rtol=0, atol=1e-6)


def test_pictures_are_rounded_to_8_bits():
    level = torch.full((1, 3, 224, 224), 100 / 255)
    assert torch.equal(preprocess(level + 0.4 / 255), preprocess(level))
    assert not torch.equal(preprocess(level + 0.6 / 255), preprocess(level))
    assert torch.equal(preprocess(level.half()), preprocess(level))
    assert torch.equal(preprocess(torch.full_like(level, 1.5)), preprocess(torch.ones_like(level)))
