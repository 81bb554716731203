"""Training of the two scorers: cross-entropy of scaled cosines, targets softened by the damage done to the picture.

A fixed, moderate scale keeps the cosine informative: a clear picture has to come close to its prompt, and a blurred,
noisy or mixed one, whose target is spread over all prompts, must not. So the score falls smoothly with quality.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sdpo_bench.rewards.scorer import Scorer, prepare
from sdpo_bench.testbed.animals import ANIMALS
from sdpo_bench.testbed.data import Augmentation, random_pictures

SCALE = 12.0  # multiplies the cosines in the softmax


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of images [N, C, H, W], a width [N] (pixels) for each."""
    n, c, h, w = images.shape
    offsets = torch.arange(-4, 5).float()
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None].clamp_min(0.05)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)
    x = F.pad(images, (4, 4, 4, 4), mode="replicate").reshape(1, n * c, h + 8, w + 8)
    x = F.conv2d(x, kernel[:, None, None, :], groups=n * c)
    return F.conv2d(x, kernel[:, None, :, None], groups=n * c).reshape(n, c, h, w)


def batch(count: int, generator: torch.Generator, augmentation: Augmentation) -> tuple[Tensor, Tensor]:
    """Pictures [N, 3, 32, 32], damaged at random, and soft targets [N, 45].

    Undamaged enough (blur under 0.6 px, what a decoder does) keeps its whole target; beyond, the part lost grows with
    blur, with mixing (two pictures on top of each other, what an undecided one-step model draws) and with noise.
    """
    images, classes = random_pictures(count, generator, augmentation)
    damaged = (torch.rand(count, generator=generator) < 0.5).float()
    sigma = torch.where(damaged > 0, 2.2, 0.6) * torch.rand(count, generator=generator)
    mix = 0.5 * damaged * torch.rand(count, generator=generator) * (torch.rand(count, generator=generator) < 0.6)
    noise = torch.where(damaged > 0, 0.15, 0.02) * torch.rand(count, generator=generator)
    contrast = 1 - 0.6 * damaged * torch.rand(count, generator=generator) * (
        torch.rand(count, generator=generator) < 0.4
    )
    other = torch.roll(torch.arange(count), 1)
    images = images + mix[:, None, None, None] * (images[other] - images)
    images = blur(images, sigma)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + contrast[:, None, None, None] * (images - mean)
    images = images + noise[:, None, None, None] * torch.randn(images.shape, generator=generator)
    labels = F.one_hot(classes, len(ANIMALS)).float()
    labels = labels + mix[:, None] * (labels[other] - labels)
    kept = (1 - 0.35 * (sigma - 0.6).clamp_min(0)) * contrast * (1 - 2 * noise * damaged)
    return prepare(images), kept[:, None] * labels + (1 - kept[:, None]) / len(ANIMALS)


def train_scorer(
    encoder: str, seed: int, iterations: int, batch_size: int, rate: float, augmentation: Augmentation
) -> Scorer:
    """A scorer trained from scratch; everything follows from `seed`."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    scorer = Scorer(encoder, ANIMALS)
    optimiser = torch.optim.AdamW(scorer.parameters(), lr=rate, weight_decay=0.02)
    warmup = max(1, min(200, iterations // 10))
    for i in range(iterations):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (i + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * i / iterations))
        images, targets = batch(batch_size, generator, augmentation)
        loss = F.cross_entropy(SCALE * scorer.similarities(images), targets)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        optimiser.step()
        if i % 250 == 0 or i == iterations - 1:
            correct = accuracy(scorer.eval(), 256, seed + 2, augmentation)
            scorer.train()
            print(f"scorer {encoder} {i} loss {loss.item():.4f} accuracy {correct:.3f}", flush=True)
    return scorer.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(scorer: Scorer, count: int, seed: int, augmentation: Augmentation) -> float:
    """Share of `count` freshly augmented real pictures whose nearest prompt is the right one."""
    images, classes = random_pictures(count, torch.Generator().manual_seed(seed), augmentation)
    return (scorer.rank(images).argmax(1) == classes).float().mean().item()
