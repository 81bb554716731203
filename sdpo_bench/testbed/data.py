"""Pictures of the testbed: sprites over plain or graded light backgrounds, augmented with a seeded generator."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdpo_bench.rewards.scorer import IMAGE_SIZE
from sdpo_bench.testbed.animals import ANIMALS, SPRITES, sprite_names

_SIDE = 96  # pixels of a sprite


@dataclass(frozen=True)
class Augmentation:
    """Ranges of a random picture; lengths in output pixels, angles in degrees."""

    flip: float = 0.5  # probability
    shift: float = 2.0
    scale: tuple[float, float] = (0.82, 1.0)
    rotate: float = 6.0
    hue: float = 12.0
    brightness: float = 0.12
    graded: float = 0.5  # probability of a linear gradient as background


#: What the autoencoder and the scorers see, and what "held-out augmentations" are drawn from (with another seed).
WIDE = Augmentation()
#: What the denoiser learns to draw. Mild, and never mirrored: emoji of all sets face the same way, so the
#: average of what is still possible at the first step, which is what one step shows, stays an animal.
MILD = Augmentation(flip=0.0, shift=0.8, scale=(0.93, 1.0), rotate=0.0, hue=6.0, brightness=0.05, graded=0.0)
#: What the autoencoder sees: a little beyond MILD, so that finetuned images stay inside its range.
MEDIUM = Augmentation(flip=0.0, shift=1.0, scale=(0.92, 1.0), rotate=0.0, hue=8.0, brightness=0.07, graded=0.25)


@cache
def sprites() -> tuple[Tensor, Tensor]:
    """Premultiplied RGBA [228, 4, 96, 96] in [0, 1], and the class (index into ANIMALS) of each [228]."""
    images, classes = [], []
    for folder, stem in sprite_names():
        with Image.open(SPRITES / folder / f"{stem}.png") as image:
            rgba = torch.from_numpy(np.asarray(image.convert("RGBA"), dtype=np.float32) / 255).permute(2, 0, 1)
        images.append(torch.cat([rgba[:3] * rgba[3:], rgba[3:]]))
        classes.append(ANIMALS.index(stem.split("_")[0]))
    return torch.stack(images), torch.tensor(classes)


def _hue_rotation(angle: Tensor) -> Tensor:
    """Matrices [N, 3, 3] that turn the hue by angle [N] (radians) and keep the luma (YIQ space)."""
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    turn = torch.zeros(len(angle), 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    return torch.linalg.inv(to_yiq) @ turn @ to_yiq


def render(indices: Tensor, generator: torch.Generator, augmentation: Augmentation = WIDE) -> Tensor:
    """Augmented pictures [N, 3, 32, 32] in [0, 1] of the sprites `indices` [N]."""
    a, n = augmentation, len(indices)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*(shape or (n,)), generator=generator)

    # Sampling at twice the output size and averaging 2 x 2 keeps aliasing out.
    scale = uniform(*a.scale)
    angle = uniform(-a.rotate, a.rotate) * (math.pi / 180)
    mirror = 1 - 2 * (torch.rand(n, generator=generator) < a.flip).float()
    shift = uniform(-a.shift, a.shift, n, 2) * (2 / IMAGE_SIZE)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = mirror * angle.cos() / scale, -mirror * angle.sin() / scale
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin() / scale, angle.cos() / scale
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, [n, 4, 2 * IMAGE_SIZE, 2 * IMAGE_SIZE], align_corners=False)
    rgba = F.avg_pool2d(F.grid_sample(sprites()[0][indices], grid, align_corners=False), 2)
    colour, alpha = rgba[:, :3], rgba[:, 3:]
    hue = _hue_rotation(uniform(-a.hue, a.hue) * (math.pi / 180))
    colour = (
        torch.einsum("nij,njhw->nihw", hue, colour) * uniform(1 - a.brightness, 1 + a.brightness)[:, None, None, None]
    )
    # Light backgrounds: a common grey level and a small tint; a gradient blends into a second such colour.
    ends = (uniform(0.80, 0.94, n, 2, 1) + uniform(-0.06, 0.06, n, 2, 3))[..., None, None]
    direction = uniform(0, 2 * math.pi)
    axis = torch.linspace(-0.7, 0.7, IMAGE_SIZE)
    along = direction.cos()[:, None, None] * axis + direction.sin()[:, None, None] * axis[:, None]
    blend = (along.clamp(-0.5, 0.5) + 0.5) * (torch.rand(n, generator=generator) < a.graded).float()[:, None, None]
    background = ends[:, 0] + (ends[:, 1] - ends[:, 0]) * blend[:, None]
    return (colour + (1 - alpha) * background).clamp(0, 1)


def random_pictures(count: int, generator: torch.Generator, augmentation: Augmentation = WIDE) -> tuple[Tensor, Tensor]:
    """`count` pictures [N, 3, 32, 32] in [0, 1] and their classes [N]; classes, then views, drawn uniformly."""
    classes = sprites()[1]
    weights = 1.0 / torch.bincount(classes)[classes].float()
    indices = torch.multinomial(weights, count, replacement=True, generator=generator)
    return render(indices, generator, augmentation), classes[indices]
