"""FLUX.2 [klein] kind: FLUX's transformer with a language model as text encoder, on latents in squares of four."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from sdpo_bench.errors import UserError
from sdpo_bench.policies.base import LORA_TARGETS, Conditions
from sdpo_bench.policies.prompts import chat_limit
from sdpo_bench.policies.stable_diffusion_3 import FlowPolicy

TEXT_TOKENS = 512  # the pipeline's default
TEXT_LAYERS = (9, 18, 27)  # of the text encoder, side by side: the pipeline's default


class Flux2KleinPolicy(FlowPolicy):
    """Conditions: text embeddings [N, L, D]. A latent is a token: the autoencoder's squares of 2 x 2, normalised."""

    pipeline_class = Flux2KleinPipeline
    patch = 1
    lora_targets = (*LORA_TARGETS, "to_qkv_mlp_proj")  # blocks of one stream project all at once

    def _check(self) -> None:
        if self.guidance != 1 and self.pipeline.config.is_distilled:
            raise UserError(f"--guidance is {self.guidance:g}, but this model is distilled to need none; leave it out")

    @property
    def pixels(self) -> int:
        return 2 * self.pipeline.vae_scale_factor

    @property
    def sample_size(self) -> tuple[int, int]:
        return self.pipeline.default_sample_size // 2, self.pipeline.default_sample_size // 2

    @property
    def token_limits(self) -> dict[str, int]:
        return {"tokenizer": chat_limit(self.pipeline.tokenizer, TEXT_TOKENS, thinking=False)}

    @property
    def condition_shapes(self) -> list[tuple[int, ...]]:
        return [(TEXT_TOKENS, self.denoiser.config.joint_attention_dim)]

    def _sigmas(self, steps: int) -> list[float] | None:
        own = getattr(self.pipeline.scheduler.config, "use_flow_sigmas", False)
        return None if own else np.linspace(1, 1 / steps, steps).tolist()

    def _mu(self, steps: int) -> float:
        return compute_empirical_mu(self.tokens, steps)

    def _encode(self, prompt: str | None) -> Conditions:
        embeddings, _ = self.pipeline.encode_prompt(
            prompt or "", device=self.device, max_sequence_length=TEXT_TOKENS, text_encoder_out_layers=TEXT_LAYERS
        )
        return (embeddings[0].to(self.dtype),)

    def _denoise(self, latents: Tensor, timesteps: Tensor, *conditions: Tensor) -> Tensor:
        (embeddings,) = conditions
        size = latents.shape[2:]
        # Where a token is: (0, row, column, 0), and of a text's (0, 0, 0, number).
        rows, columns, words = (torch.arange(n, device=latents.device) for n in (*size, embeddings.shape[1]))
        zero = words[:1]
        output = self.denoiser(
            hidden_states=latents.flatten(2).transpose(1, 2),
            timestep=timesteps / 1000,  # sigma
            guidance=None,
            encoder_hidden_states=embeddings,
            txt_ids=torch.cartesian_prod(zero, zero, zero, words),
            img_ids=torch.cartesian_prod(zero, rows, columns, zero),
            return_dict=False,
        )[0]
        return output.transpose(1, 2).unflatten(2, size)

    def _scaled(self, latents: Tensor) -> Tensor:
        """The autoencoder's batch normalisation undone, and the squares laid out."""
        norm, epsilon = self.pipeline.vae.bn, self.pipeline.vae.config.batch_norm_eps
        mean, variance = (x.to(latents.dtype).view(-1, 1, 1) for x in (norm.running_mean, norm.running_var))
        return torch.nn.functional.pixel_shuffle(latents * (variance + epsilon).sqrt() + mean, 2)
