"""SDXL kind, such as SDXL-Turbo: two text encoders; their pooled output and the image's size are inputs too."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.policies.base import Conditions
from sdpo_bench.policies.stable_diffusion import StableDiffusionPolicy


class StableDiffusionXLPolicy(StableDiffusionPolicy):
    """Conditions: text embeddings [N, L, D] of both encoders side by side, pooled text [N, P], time ids [N, 6] (height
    and width as trained, the crop's corner 0, 0, height and width wanted)."""

    pipeline_class = StableDiffusionXLPipeline

    def __init__(self, pipeline: Any, config: RunConfig) -> None:
        if getattr(pipeline.vae.config, "latents_mean", None) is not None:
            raise UserError(f"--model {config.model}: its VAE normalises latents per channel, which is not supported")
        super().__init__(pipeline, config)
        if self.dtype == torch.float16 and pipeline.vae.config.force_upcast:
            pipeline.vae.float()  # its activations are beyond float16; diffusers' own pipeline does the same

    @property
    def condition_shapes(self) -> list[tuple[int, ...]]:
        first, second = (encoder.config for encoder in (self.pipeline.text_encoder, self.pipeline.text_encoder_2))
        width = first.hidden_size + second.hidden_size
        return [(first.max_position_embeddings, width), (second.projection_dim,), (6,)]

    def _encode(self, prompt: str | None) -> Conditions:
        # Some models take zeros for the null prompt: the pipeline knows, asked for both.
        both = self.pipeline.encode_prompt(
            prompt or "", device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=prompt is None
        )
        embeddings, pooled = both[1::2] if prompt is None else both[::2]
        _, height, width = (self.pipeline.vae_scale_factor * n for n in self.latent_shape)
        ids = torch.tensor([height, width, 0, 0, height, width], device=self.device)
        return embeddings[0].to(self.dtype), pooled[0].to(self.dtype), ids.to(self.dtype)

    def _denoise(self, latents: Tensor, timesteps: Tensor, *conditions: Tensor) -> Tensor:
        embeddings, pooled, ids = conditions
        return self.denoiser(
            latents,
            timesteps,
            embeddings,
            timestep_cond=self._guidance_input(latents),
            added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
            return_dict=False,
        )[0]
