"""Stable Diffusion kind: one text encoder, a UNet, a VAE. The embedded model, SD-Turbo, SD 1.5 and 2.1."""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from sdpo_bench.policies.base import Conditions, Policy


class StableDiffusionPolicy(Policy):
    """Conditions: text embeddings [N, L, D]."""

    pipeline_class = StableDiffusionPipeline
    samplers = ("ddim", "euler_ancestral", "lcm", "tcd")  # DDIM is the paper's

    @property
    def takes_guidance(self) -> bool:
        return self.denoiser.config.time_cond_proj_dim is not None

    @property
    def condition_shapes(self) -> list[tuple[int, ...]]:
        text = self.pipeline.text_encoder.config
        return [(text.max_position_embeddings, text.hidden_size)]

    def _encode(self, prompt: str | None) -> Conditions:
        embeddings = self.pipeline.encode_prompt([prompt or ""], self.device, 1, False)[0][0]
        return (embeddings.to(self.dtype),)

    def _denoise(self, latents: Tensor, timesteps: Tensor, *conditions: Tensor) -> Tensor:
        return self.denoiser(
            latents, timesteps, conditions[0], timestep_cond=self._guidance_input(latents), return_dict=False
        )[0]

    def _guidance_input(self, latents: Tensor) -> Tensor | None:
        """The embedding [N, D] of the guidance for a UNet that takes it as an input (latent consistency models)."""
        if not self.takes_guidance:
            return None
        scale = torch.full((len(latents),), self.guidance - 1)
        embedding = self.pipeline.get_guidance_scale_embedding(scale, self.denoiser.config.time_cond_proj_dim)
        return embedding.to(latents)
