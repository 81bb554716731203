"""Sampling: prompts and seeds to trajectories. Every random number belongs to a sample's own seed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import sdpo_kernels
import torch
from torch import Tensor

from sdpo_bench import interruption
from sdpo_bench.policies import Policy
from sdpo_bench.types import Trajectory

INITIAL_NOISE = 1 << 20  # the step index that x_T is drawn with: no denoising step has it


def derive_seeds(*path: int, count: int) -> Tensor:
    """int64 [count] seeds for the entries of (run seed, epoch, ...): the same on every machine, in any order."""
    words = np.random.SeedSequence(path).generate_state(count, np.uint64)
    return torch.from_numpy(words.astype(np.int64))


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: list[str],
    *,
    steps: int,
    initial_seeds: Tensor,
    step_seeds: Tensor,
    eta: float = 1.0,
    trained_steps: int = 0,
    noisy_steps: Collection[int] | None = None,
    keep: bool = True,
    keep_outputs: bool = False,
) -> Trajectory:
    """Trajectories of B prompts, G samples each, by the policy's sampler on K = `steps` timesteps; `eta` is DDIM's.

    initial_seeds: int64 [B], the samples of a group share x_T, and so their first model output, which is computed
        once; or int64 [B, G], each sample has its own x_T
    step_seeds: int64 [B, G], of the steps' noise
    trained_steps: so many of the first steps need a log-prob
    noisy_steps: the steps that draw noise; default: all that the sampler has noise for
    keep: False keeps only the last predicted clean latent (evaluation): `latents` and `log_prob` are empty
    keep_outputs: keeps the model's output at the trained steps, as `outputs`
    """
    schedule = policy.schedule(steps, eta=eta, trained_steps=trained_steps, noisy_steps=noisy_steps)
    timesteps, table, scale = schedule.timesteps, schedule.table, schedule.input_scale.to(policy.latent_dtype)
    conditions = policy.encode(prompts)
    device, (B, G) = policy.device, step_seeds.shape
    shared = initial_seeds.ndim == 1
    noise = sdpo_kernels.normal(initial_seeds.flatten().to(device), policy.latent_shape, INITIAL_NOISE)
    start = (schedule.initial_scale * noise).to(policy.latent_dtype)
    x = start.repeat_interleave(G, 0) if shared else start
    each = tuple(c.repeat_interleave(G, 0) for c in conditions)
    seeds = step_seeds.flatten().to(device)
    latents, clean, log_probs, outputs = [x.to(policy.storage)], [], [], []
    for k in range(steps):
        interruption.check()
        if k == 0 and shared:
            m = policy.predict(scale[k] * start, timesteps[k].expand(B), conditions).repeat_interleave(G, 0)
        else:
            m = policy.predict(scale[k] * x, timesteps[k].expand(B * G), each)
        x, x0, log_prob = sdpo_kernels.ddim_step(m, x, table[k].expand(B * G, 5), seeds=seeds, step=k)
        if keep:
            latents.append(x.to(policy.storage))
            clean.append(x0.to(policy.storage))
            log_probs.append(log_prob)
        if keep_outputs and k < trained_steps:
            outputs.append(m.to(policy.storage))
    if not keep:
        latents, clean, log_probs = [], [x0], []

    def grouped(parts: list[Tensor], width: int) -> Tensor:
        return torch.stack(parts, 1).unflatten(0, (B, G)) if parts else x.new_empty(B, G, width)

    return Trajectory(
        prompts=prompts,
        conditions=conditions,
        timesteps=timesteps,
        coefficients=table,
        input_scale=scale,
        latents=grouped(latents, 0),
        predicted_clean=grouped(clean, 0),
        log_prob=grouped(log_probs, 0),
        step_seeds=step_seeds,
        signal_scale=schedule.signal_scale,
        noise_scale=schedule.noise_scale,
        shared_noise=shared,
        outputs=grouped(outputs, 0) if keep_outputs else None,
    )


def joined(parts: list[Trajectory]) -> Trajectory:
    """One trajectory of several, sampled with the same steps."""

    def cat(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    return replace(
        parts[0],
        prompts=[prompt for part in parts for prompt in part.prompts],
        conditions=tuple(map(torch.cat, zip(*(part.conditions for part in parts), strict=True))),
        latents=cat("latents"),
        predicted_clean=cat("predicted_clean"),
        log_prob=cat("log_prob"),
        step_seeds=cat("step_seeds"),
        outputs=None if parts[0].outputs is None else cat("outputs"),
    )
