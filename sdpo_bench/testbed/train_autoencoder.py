"""Training of the autoencoder: L1 on pixels and on their differences, and a very small pull towards a Gaussian."""

import math

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from sdpo_bench.testbed.data import MEDIUM, random_pictures
from sdpo_bench.testbed.model import make_autoencoder

KL_WEIGHT = 4e-8  # per latent dimension's nat, beside a loss per pixel


def _differences(images: Tensor) -> tuple[Tensor, Tensor]:
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def train_autoencoder(seed: int, iterations: int, batch_size: int, rate: float) -> AutoencoderKL:
    """An autoencoder trained from scratch; latents centred per channel, `scaling_factor` set so that their std is 1."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    vae = make_autoencoder().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)
    warmup = max(1, min(100, iterations // 10))
    for i in range(iterations):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (i + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * i / iterations))
        images = (2 * random_pictures(batch_size, generator, MEDIUM)[0] - 1).contiguous(
            memory_format=torch.channels_last
        )
        posterior = vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        decoded = vae.decode(latents).sample
        edges = sum((a - b).abs().mean() for a, b in zip(_differences(decoded), _differences(images), strict=True))
        loss = (decoded - images).abs().mean() + 0.5 * edges + KL_WEIGHT * posterior.kl().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        if i % 250 == 0 or i == iterations - 1:
            print(f"autoencoder {i} loss {loss.item():.4f} PSNR {psnr(vae, 128, seed + 2):.2f} dB", flush=True)
    vae = vae.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    _normalise(vae, generator, min(2048, iterations * batch_size))
    return vae


@torch.no_grad()
def _normalise(vae: AutoencoderKL, generator: torch.Generator, count: int) -> None:
    """Centre each latent channel by moving its mean, over `count` pictures, into the two 1 x 1 convolutions; the common
    std is the scale.

    The pipeline knows a scaling factor but no shift, and the denoiser starts from noise of mean zero.
    """
    latents = encode(vae, random_pictures(count, generator, MEDIUM)[0], scaled=False)
    mean = latents.mean((0, 2, 3))
    vae.quant_conv.bias[: len(mean)] -= mean
    weight = vae.post_quant_conv.weight
    vae.post_quant_conv.bias += weight[:, :, 0, 0] @ mean
    std = (latents - mean[:, None, None]).std().item()
    vae.register_to_config(scaling_factor=round(1 / std, 5))


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, scaled: bool = True) -> Tensor:
    """Latent means [N, 4, 8, 8] of images [N, 3, 32, 32] in [0, 1], times the scaling factor if `scaled`."""
    means = torch.cat([vae.encode(2 * chunk - 1).latent_dist.mean for chunk in images.split(256)])
    return means * vae.config.scaling_factor if scaled else means


@torch.no_grad()
def psnr(vae: AutoencoderKL, count: int, seed: int) -> float:
    """Mean over `count` freshly augmented pictures of the peak signal-to-noise ratio of the reconstruction, in dB."""
    images = random_pictures(count, torch.Generator().manual_seed(seed), MEDIUM)[0]
    decoded = (vae.decode(encode(vae, images, scaled=False)).sample / 2 + 0.5).clamp(0, 1)
    return (-10 * (decoded - images).square().mean((1, 2, 3)).log10()).mean().item()
