"""FLUX.1 kind, such as FLUX.1-schnell: a transformer that predicts a velocity of latents packed in squares of four."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import FluxPipeline
from torch import Tensor

from sdpo_bench.policies.base import Conditions
from sdpo_bench.policies.stable_diffusion_3 import FlowPolicy


def pack(latents: Tensor) -> Tensor:
    """[N, C, H, W] to tokens [N, H/2 W/2, 4 C], a square of 2 x 2 each, its channels outside."""
    squares = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # N C H/2 2 W/2 2
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens [N, H/2 W/2, 4 C] to [N, C, H, W]."""
    squares = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, (height // 2, width // 2))  # N H/2 W/2 C 2 2
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


class FluxPolicy(FlowPolicy):
    """Conditions: text embeddings [N, L, D], pooled text [N, P]. Latents are packed only for the transformer."""

    pipeline_class = FluxPipeline
    patch = 2

    @property
    def takes_guidance(self) -> bool:
        return self.denoiser.config.guidance_embeds

    @property
    def sample_size(self) -> tuple[int, int]:
        return self.pipeline.default_sample_size, self.pipeline.default_sample_size

    @property
    def channels(self) -> int:
        return self.denoiser.config.in_channels // 4

    @property
    def t5_tokens(self) -> int:
        """The maximum number of T5 tokens: 256 for schnell, the model without a guidance input (its model card);
        otherwise the pipeline's default, 512."""
        return 512 if self.takes_guidance else 256

    @property
    def token_limits(self) -> dict[str, int]:
        return super().token_limits | {"tokenizer_2": self.t5_tokens}

    @property
    def condition_shapes(self) -> list[tuple[int, ...]]:
        config = self.denoiser.config
        return [(self.t5_tokens, config.joint_attention_dim), (config.pooled_projection_dim,)]

    def _sigmas(self, steps: int) -> list[float] | None:
        own = getattr(self.pipeline.scheduler.config, "use_flow_sigmas", False)
        return None if own else np.linspace(1, 1 / steps, steps).tolist()

    def _encode(self, prompt: str | None) -> Conditions:
        embeddings, pooled, _ = self.pipeline.encode_prompt(
            prompt or "", None, device=self.device, max_sequence_length=self.t5_tokens
        )
        return embeddings[0].to(self.dtype), pooled[0].to(self.dtype)

    def _denoise(self, latents: Tensor, timesteps: Tensor, *conditions: Tensor) -> Tensor:
        embeddings, pooled = conditions
        N, _, height, width = latents.shape
        # Where a token is: (0, row, column); text has no place.
        rows, columns = (torch.arange(n // 2, device=latents.device) for n in (height, width))
        grid = torch.cartesian_prod(rows, columns)
        places = torch.cat([torch.zeros_like(grid[:, :1]), grid], 1).to(latents.dtype)
        guidance = torch.full((N,), self.guidance, device=latents.device) if self.takes_guidance else None
        output = self.denoiser(
            hidden_states=pack(latents),
            timestep=timesteps / 1000,  # sigma
            guidance=guidance,
            pooled_projections=pooled,
            encoder_hidden_states=embeddings,
            txt_ids=places.new_zeros(embeddings.shape[1], 3),
            img_ids=places,
            return_dict=False,
        )[0]
        return unpack(output, height, width)
