"""The official SDPO loop's algorithm (arXiv 2411.11727) in plain PyTorch: what the suite's training step is measured
against.

As there: the two samples of a pair one after the other, in sampling (batches of 8 pairs) and in training (one UNet
call each); the scheduler on the host, so that every step waits for the device; latents stored as those before and those
after a step, twice; six decoded pictures a pair; the old log-prob taken before the latent is rounded. A caller chooses
attention that writes its scores to memory. Left out are autocast, loss scaling and logging. The rule for the anchor and
the floor of similarities are the suite's, so that both loops can be held against each other. K must divide 1000.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdpo_bench.config import RunConfig
from sdpo_bench.dense_rewards import SIMILARITY_FLOOR
from sdpo_bench.training.advantages import PerPromptNormalizer

SAMPLED = 8  # pairs that are sampled at a time [official: sample.batch_size of every setting]
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)

Noise = Callable[[int, int, slice], Tensor]
"""Noise of a sample (0 or 1) of some pairs at step k; k = -1: x_T, which a pair shares."""
Updates = Iterable[Sequence[tuple[Tensor, Tensor]]]
"""Optimiser steps: micro-batches of pairs and their steps, as Trainer.optimizer_batches gives them."""
Lap = Callable[[str], None]


@dataclass
class Samples:
    """Of B pairs, for each of their two samples: latents before and after the K steps [B, K, C, H, W], log-probs
    [B, K], rewards [B, K]. embeddings [B, L, D], timesteps [B, K]."""

    prompts: list[str]
    embeddings: Tensor
    timesteps: Tensor
    before: list[Tensor]
    after: list[Tensor]
    log_probs: list[Tensor]
    rewards: list[Tensor]


class OfficialLoop:
    """Trains the pipeline's LoRA with the settings of `config`, `microbatch` pairs at a time."""

    def __init__(self, pipeline: Any, reward: Any, config: RunConfig, microbatch: int) -> None:
        self.pipeline, self.unet, self.reward = pipeline, pipeline.unet, reward
        self.config, self.microbatch = config, microbatch
        self.device = next(self.unet.parameters()).device
        wide = torch.promote_types(pipeline.vae.dtype, torch.float32)  # float64 where this loop is the reference
        self.abar = pipeline.scheduler.alphas_cumprod.cpu().to(wide)
        self.trained = [p for p in self.unet.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.trained, lr=config.learning_rate, weight_decay=config.weight_decay, eps=1e-8
        )
        self.normaliser = PerPromptNormalizer()
        self.waits = self.calls = self.pictures = 0  # for the device; of the UNet, in samples; decoded

    # The scheduler

    def host(self, t: Tensor) -> Tensor:
        self.waits += 1
        return t.cpu()

    def alphas(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """abar at timesteps [N] and at the ones before them, to be broadcast against latents."""
        earlier = t - 1000 // self.config.steps
        now = self.abar.gather(0, self.host(t))
        then = torch.where(self.host(earlier) >= 0, self.abar.gather(0, self.host(earlier).clamp_min(0)), self.abar[0])
        return now.to(self.device)[:, None, None, None], then.to(self.device)[:, None, None, None]

    def spread(self, t: Tensor) -> Tensor:
        now, then = self.alphas(t)
        return self.config.eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()

    def transition(self, output: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and sigma of the next latent, and the predicted clean one; the model predicts noise."""
        now, then = self.alphas(t)
        clean = (x - (1 - now).sqrt() * output) / now.sqrt()
        sigma = self.spread(t)
        return then.sqrt() * clean + (1 - then - sigma**2).sqrt() * output, sigma, clean

    @staticmethod
    def log_prob(after: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
        return (-((after - mean) ** 2) / (2 * sigma**2) - sigma.log() - HALF_LOG_2PI).mean((1, 2, 3))

    def forward(self, x: Tensor, t: Tensor, embeddings: Tensor) -> Tensor:
        self.calls += len(x)
        return self.unet(x, t, embeddings, return_dict=False)[0]

    # Sampling and rewards

    @torch.no_grad()
    def sample(self, prompts: list[str], lap: Lap, noise: Noise | None = None) -> Samples:
        """Both trajectories of every pair, and their dense rewards."""
        parts = []
        for first in range(0, len(prompts), SAMPLED):
            rows = slice(first, min(first + SAMPLED, len(prompts)))
            embeddings = self.encode(prompts[rows])
            one = self.trajectory(embeddings, 0, rows, noise)
            two = self.trajectory(embeddings, 1, rows, noise, start=one[0][:, 0])
            lap("sample")
            rewards = [self.dense_rewards(clean, prompts[rows]) for *_, clean in (one, two)]
            lap("reward")
            stored = zip(*((x[:, :-1], x[:, 1:], rho) for x, rho, _ in (one, two)), strict=True)
            timesteps = self.timesteps().repeat(len(embeddings), 1)
            parts.append((embeddings, timesteps, *map(list, stored), rewards))
        embeddings, timesteps = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        pairs = [[torch.cat([part[i][side] for part in parts]) for side in (0, 1)] for i in range(2, 6)]
        return Samples(prompts, embeddings, timesteps, *pairs)

    def encode(self, prompts: list[str]) -> Tensor:
        tokenizer = self.pipeline.tokenizer
        ids = tokenizer(
            prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        ).input_ids
        return self.pipeline.text_encoder(ids.to(self.device))[0]

    def timesteps(self) -> Tensor:
        steps = self.config.steps
        return torch.tensor([round(1000 - i * 1000 / steps) - 1 for i in range(steps)], device=self.device)

    def trajectory(
        self, embeddings: Tensor, side: int, rows: slice, noise: Noise | None, start: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [N, K+1, C, H, W], log-probs [N, K], predicted clean latents [N, K, C, H, W]."""
        size = self.unet.config.sample_size
        shape = (len(embeddings), self.unet.config.in_channels, size, size)

        def draw(k: int) -> Tensor:
            z = torch.randn(shape, device=self.device) if noise is None else noise(side, k, rows)
            return z.to(embeddings.dtype)

        x = draw(-1) if start is None else start
        latents, log_probs, cleans = [x], [], []
        for k, t in enumerate(self.timesteps()):
            output = self.forward(x, t, embeddings)
            mean, sigma, clean = self.transition(output, x, t[None])
            after = mean + sigma * draw(k)
            log_probs.append(self.log_prob(after, mean, sigma))
            x = after.to(x.dtype)
            latents.append(x)
            cleans.append(clean.to(x.dtype))
        return torch.stack(latents, 1), torch.stack(log_probs, 1), torch.stack(cleans, 1)

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        self.pictures += len(latents)
        return (vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)

    def dense_rewards(self, clean: Tensor, prompts: list[str]) -> Tensor:
        """Rewards [N, K] of one sample of N pairs: of the first, the anchor's and the last picture, and averages."""
        flat, steps = clean.flatten(2), clean.shape[1]
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))

        def similarity(k: Tensor | slice) -> Tensor:
            other = flat[:, k] if isinstance(k, slice) else flat[torch.arange(len(flat)), k][:, None]
            return torch.cosine_similarity(flat, other.repeat(1, steps, 1), dim=2)

        first, last = similarity(slice(0, 1)), similarity(slice(steps - 1, steps))
        inner = slice(1, steps - 1) if steps > 2 else slice(0, steps)
        anchor = (first + last)[:, inner].argmin(1) + inner.start
        rows = torch.arange(len(flat))
        queried = [clean[:, 0], clean[rows, anchor], clean[:, -1]]
        known = [self.reward(self.decode(x), prompts).to(self.device) for x in queried]
        weights = [x.clamp_min(SIMILARITY_FLOOR) for x in (first, similarity(anchor), last)]
        rewards = sum(r[:, None] * w for r, w in zip(known, weights, strict=True)) / sum(weights)
        rewards[rows, anchor] = known[1]
        rewards[:, 0], rewards[:, -1] = known[0], known[2]
        return rewards

    def returns(self, samples: Samples) -> list[Tensor]:
        """Of each sample [B, K]: discounted sums from a step on."""
        discount = [
            [0.99 ** (j - k) if j >= k else 0.0 for k in range(self.config.steps)] for j in range(self.config.steps)
        ]
        return [x @ x.new_tensor(discount) for x in samples.rewards]

    def advantages(self, samples: Samples) -> list[Tensor]:
        """Of each sample [B, K], from the normaliser that both loops share: it is not what is measured."""
        returns = torch.stack(self.returns(samples), 1)
        return list(self.normaliser(samples.prompts, returns).to(self.device).unbind(1))

    # Training

    def train(self, samples: Samples, advantages: list[Tensor], updates: Updates) -> list[tuple[float, float]]:
        """Mean loss and gradient norm of each update."""
        log = []
        for update in updates:
            pairs, steps = (torch.cat(parts).to(self.device) for parts in zip(*update, strict=True))
            log.append(self.update(samples, advantages, pairs, steps))
        return log

    def update(self, samples: Samples, advantages: list[Tensor], pairs: Tensor, steps: Tensor) -> tuple[float, float]:
        self.optimiser.zero_grad()
        chosen = [
            [x[pairs, steps] for x in parts] for parts in (samples.before, samples.after, samples.log_probs, advantages)
        ]
        timesteps, embeddings = samples.timesteps[pairs, steps], samples.embeddings[pairs]
        losses = []
        for first in range(0, len(pairs), self.microbatch):
            rows = slice(first, first + self.microbatch)
            before, after, old, wanted = ([x[rows] for x in parts] for parts in chosen)
            log_probs = [self.current(before[side], after[side], timesteps[rows], embeddings[rows]) for side in (0, 1)]
            loss = self.loss(log_probs, old, wanted, steps[rows])
            (loss.sum() / len(pairs)).backward()
            losses.append(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.config.max_grad_norm)
        self.optimiser.step()
        self.waits += 2
        return torch.cat(losses).mean().item(), norm.item()

    def current(self, before: Tensor, after: Tensor, t: Tensor, embeddings: Tensor) -> Tensor:
        """Log-probs of stored steps under the current weights: a forward pass for one sample of each pair."""
        mean, sigma, _ = self.transition(self.forward(before, t, embeddings), before, t)
        return self.log_prob(after, mean, sigma)

    def loss(self, log_probs: list[Tensor], old: list[Tensor], advantages: list[Tensor], steps: Tensor) -> Tensor:
        """SDPO's [P]: see sdpo_bench.methods.sdpo."""
        clip, bound = self.clip_range, self.config.advantage_clip
        weight = 0.99**steps
        wanted = advantages[0].clamp(-bound, bound) - advantages[1].clamp(-bound, bound)
        ratios = [rho - was for rho, was in zip(log_probs, old, strict=True)]
        plain = (weight * (ratios[0] - ratios[1]) - wanted) ** 2
        clipped = (weight * (ratios[0].clamp(-clip, clip) - ratios[1].clamp(-clip, clip)) - wanted) ** 2
        return torch.maximum(plain, clipped)

    @property
    def clip_range(self) -> float:
        elements = self.unet.config.in_channels * self.unet.config.sample_size**2
        return 1e-4 * math.sqrt(16_384 / elements)

    @torch.no_grad()
    def on_policy(self, samples: Samples) -> float:
        """Largest |log-ratio| of the unchanged policy, over all pairs and steps."""
        largest = 0.0
        for k in range(self.config.steps):
            for rows in (slice(i, i + self.microbatch) for i in range(0, len(samples.prompts), self.microbatch)):
                for side in (0, 1):
                    latents = (samples.before[side][rows, k], samples.after[side][rows, k])
                    rho = self.current(*latents, samples.timesteps[rows, k], samples.embeddings[rows])
                    largest = max(largest, (rho - samples.log_probs[side][rows, k]).abs().max().item())
        return largest
