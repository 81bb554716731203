"""Rewards whose gradient goes back through the picture and the last denoising steps (DRaFT, arXiv 2309.17400)."""

from __future__ import annotations

import sdpo_kernels
import torch
from torch import Tensor

from sdpo_bench import interruption
from sdpo_bench.policies import Policy
from sdpo_bench.rewards import Reward
from sdpo_bench.training.scoring import score_with_gradient
from sdpo_bench.types import Trajectory

RENOISED = 1 << 22  # step indices of the noise of `noisings` begin here


def rewards_of_last_steps(
    policy: Policy, reward: Reward, trajectory: Trajectory, pairs: Tensor, last_steps: int, noisings: int = 0
) -> Tensor:
    """Rewards float32 [P, G] of the samples' pictures, with a graph back to the policy's weights.

    The last `last_steps` steps of the stored trajectories are made again, with the same noise, now with a graph; what
    comes before them is taken as it is. With `noisings` the finished sample is noised anew so many times at the level
    of the last step, and the rewards of these pictures are averaged: DRaFT-LV.
    pairs: int64 [P], positions in the trajectory, on the host.
    """
    (_, G, length), shape = trajectory.latents.shape[:3], trajectory.latents.shape[3:]
    K, device = length - 1, policy.device
    prompts = [trajectory.prompts[i] for i in pairs.tolist() for _ in range(G)]
    where = pairs.to(trajectory.latents.device)
    conditions = tuple(c[pairs.to(c.device)].repeat_interleave(G, 0) for c in trajectory.conditions)
    seeds = trajectory.step_seeds[pairs].flatten().to(device)

    def picture_reward(x: Tensor, k: int) -> Tensor:
        """Rewards [P G] of the pictures that the steps from k on make of latents [P G, C, H, W]."""
        for step in range(k, K):
            interruption.check()
            a, b, c, d, sigma = trajectory.coefficients[step]
            timesteps = trajectory.timesteps[step].expand(len(x))
            output = policy.predict(trajectory.input_scale[step] * x, timesteps, conditions)
            clean = c * x + d * output
            if step < K - 1:
                x = a * x + b * output + sigma * sdpo_kernels.normal(seeds, shape, step)
        pictures = policy.pictures(clean, K, gradient=True)  # in float32: small gradients would vanish in float16
        return score_with_gradient(reward, pictures, prompts).to(device)

    def stored(step: int) -> Tensor:
        return trajectory.latents[where, :, step].flatten(0, 1).to(device)

    if not noisings:
        return picture_reward(stored(K - last_steps), K - last_steps).view(-1, G)
    finished, signal, level = stored(K), trajectory.signal_scale[K - 1], trajectory.noise_scale[K - 1]
    drawn = [
        picture_reward(
            (signal * finished + level * sdpo_kernels.normal(seeds, shape, RENOISED + i)).to(finished.dtype), K - 1
        )
        for i in range(noisings)
    ]
    return torch.stack(drawn).mean(0).view(-1, G)
