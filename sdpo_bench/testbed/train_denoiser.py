"""Few-step denoiser without a teacher network.

The training latents of a class are a finite set, so the score of their noised distribution has a closed form (a softmax
over the set) and its probability-flow ODE can be integrated exactly. The denoiser regresses, from every state of a
trajectory, the trajectory's endpoint: a consistency model whose teacher is a formula.

Two processes average their gradients after every backward pass.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from sdpo_bench.records.files import share
from sdpo_bench.testbed.animals import ANIMALS
from sdpo_bench.testbed.data import MILD, render, sprites
from sdpo_bench.testbed.model import (
    LATENTS,
    TRAIN_STEPS,
    alphas_cumprod,
    make_pipeline,
    make_text_encoder,
    make_tokenizer,
    make_unet,
    token_ids,
)
from sdpo_bench.testbed.train_autoencoder import encode

SEED = 41
RATE = 1.5e-3
RANKS = 2
POOL = 1024  # trajectories computed at a time
GRID = 40  # steps of the ODE
FIRST = 0.3  # share of training states at the first timestep, where every sampler starts and the map is hardest
HUBER = 0.5  # the distance (over all latent dimensions) below which the loss is quadratic
EMA = 0.999


def training_latents(vae: torch.nn.Module, variants: int) -> Tensor:
    """Latents [45, variants, 4, 8, 8] of mildly augmented pictures; each sprite of a class gets an equal share."""
    generator = torch.Generator().manual_seed(SEED)
    classes = sprites()[1]
    latents = []
    for i in range(len(ANIMALS)):
        mine = torch.nonzero(classes == i)[:, 0]
        indices = mine.repeat(math.ceil(variants / len(mine)))[:variants]
        latents.append(encode(vae, render(indices, generator, MILD)))
    return torch.stack(latents)


@torch.no_grad()
def trajectories(latents: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ODE trajectories from pure noise under the closed-form score.

    Returns classes [N], timesteps [GRID], states [GRID, N, 256] (of the variance-preserving process) and endpoints
    [N, 256]. The grid starts at the last timestep and is otherwise shifted at random, so that all timesteps occur.
    """
    flat = latents.flatten(2)
    classes = torch.randint(len(flat), (count,), generator=generator)
    points = flat[classes]
    squares = points.square().sum(-1)
    spacing = TRAIN_STEPS / GRID
    offset = torch.rand((), generator=generator) * spacing
    timesteps = (TRAIN_STEPS - offset - spacing * torch.arange(GRID)).long().clamp(0, TRAIN_STEPS - 1)
    timesteps[0] = TRAIN_STEPS - 1
    abar = alphas_cumprod()[timesteps]
    sigma = ((1 - abar) / abar).sqrt()  # of the variance-exploding process y = x / sqrt(abar)
    # Pure noise stands for the first state, as in sampling: the signal left there is 0.07.
    y = torch.randn(count, flat.shape[-1], generator=generator) / abar[0].sqrt()
    states = []
    clean = y
    for k in range(GRID):
        states.append(y * abar[k].sqrt())
        logits = (torch.bmm(points, y[..., None])[..., 0] - squares / 2) / sigma[k] ** 2
        clean = torch.bmm(logits.softmax(-1)[:, None], points)[:, 0]
        if k + 1 < GRID:
            y = clean + (sigma[k + 1] / sigma[k]) * (y - clean)
    return classes, timesteps, torch.stack(states), clean


def batches(latents: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Endless batches (classes [B], timesteps [B], states [B, 4, 8, 8], endpoints [B, 4, 8, 8])."""
    uses = 4  # states taken from one trajectory
    while True:
        classes, timesteps, states, endpoints = trajectories(latents, POOL, generator)
        order = torch.cat([torch.randperm(POOL, generator=generator) for _ in range(uses)])
        steps = torch.randint(1, GRID, (len(order),), generator=generator)
        steps[torch.rand(len(order), generator=generator) < FIRST] = 0
        for i in range(0, len(order) - size + 1, size):
            who, when = order[i : i + size], steps[i : i + size]
            x, x0 = states[when, who].view(size, *LATENTS), endpoints[who].view(size, *LATENTS)
            yield classes[who], timesteps[when], x, x0


def _average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    flat /= RANKS
    start = 0
    for p in parameters:
        if p.grad is not None:
            p.grad.copy_(flat[start : start + p.numel()].view_as(p))
            start += p.numel()


def train_denoiser(out: Path, iterations: int, batch_size: int, variants: int, rank: int) -> None:
    """One of the two processes; rank 0 writes the pipeline to `out/embedded_model`."""
    from diffusers import AutoencoderKL

    meeting = (out / "work" / "meeting").resolve()
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    vae = AutoencoderKL.from_pretrained(out / "work" / "vae").eval()
    vae.register_to_config(_name_or_path="")  # no folder of this machine in the saved configuration
    latents = training_latents(vae, variants)
    torch.manual_seed(SEED)  # the same first weights in both processes
    tokenizer = make_tokenizer()
    text_encoder, unet = make_text_encoder(tokenizer), make_unet()
    ids = token_ids(tokenizer, list(ANIMALS))
    parameters = [p for m in (text_encoder, unet) for p in m.parameters()]
    average = [p.detach().clone() for p in parameters]
    generator = torch.Generator().manual_seed(SEED + 1 + rank)
    optimiser = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=1e-3)
    abar = alphas_cumprod()
    warmup = max(1, min(200, iterations // 10))
    stream = batches(latents, batch_size, generator)
    sums = torch.zeros(2)
    for i in range(iterations):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1, (i + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * i / iterations))
        classes, timesteps, x, x0 = next(stream)
        a, s = abar[timesteps].sqrt()[:, None, None, None], (1 - abar[timesteps]).sqrt()[:, None, None, None]
        context = text_encoder(ids)[0][classes]
        error = ((a * x - s * unet(x, timesteps, context).sample) - x0) / s  # of v
        loss = ((error.flatten(1).square().sum(1) + HUBER**2).sqrt() - HUBER).mean()
        optimiser.zero_grad()
        loss.backward()
        _average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
        with torch.no_grad():
            decay = min(EMA, (1 + i) / (10 + i))
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
            first = timesteps == TRAIN_STEPS - 1
            distance = (error * s).flatten(1).norm(dim=1)
            sums = 0.99 * sums + 0.01 * torch.stack([distance[first].mean(), distance[~first].mean()]).nan_to_num()
        if rank == 0 and (i % 100 == 0 or i == iterations - 1):
            scale = 1 - 0.99 ** (i + 1)
            print(
                f"denoiser {i} distance at t=999 {sums[0] / scale:.3f}, elsewhere {sums[1] / scale:.3f}",
                flush=True,
            )
    if rank == 0:
        with torch.no_grad():
            for p, value in zip(parameters, average, strict=True):
                p.copy_(value)
        make_pipeline(tokenizer, text_encoder.eval(), unet.eval(), vae).save_pretrained(out / "embedded_model")
        share(out / "embedded_model")
    dist.barrier()
    dist.destroy_process_group()
