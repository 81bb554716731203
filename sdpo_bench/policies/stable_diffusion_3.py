"""Stable Diffusion 3 kind, such as SD3.5 Large Turbo: a transformer that predicts a velocity, three text encoders."""

from __future__ import annotations

import sdpo_kernels
from diffusers import StableDiffusion3Pipeline
from sdpo_kernels.coefficients import Schedule
from torch import Tensor

from sdpo_bench.errors import UserError
from sdpo_bench.policies.base import Conditions, Policy

T5_TOKENS = 256  # the pipeline's own default, as for SD3.5 Large Turbo


class FlowPolicy(Policy):
    """Common parts of flow-matching families: a transformer, and the stochastic steps."""

    component = "transformer"
    samplers = ("flow_sde", "flow_cps", "dance_sde")

    @property
    def tokens(self) -> int:
        """The number of tokens of an image."""
        _, height, width = self.latent_shape
        return height * width // self.patch**2

    def _sigmas(self, steps: int) -> list[float] | None:
        """Sigmas [K] before the shift, if the pipeline gives the scheduler its own."""
        return None

    def _mu(self, steps: int) -> float:
        """The logarithm of a dynamic shift, linear in the number of tokens."""
        config = self.pipeline.scheduler.config
        few, many = config.base_image_seq_len, config.max_image_seq_len
        return config.base_shift + (config.max_shift - config.base_shift) * (self.tokens - few) / (many - few)

    def _build_schedule(self, steps: int, eta: float, level: float | None, stochastic: int) -> Schedule:
        dynamic = getattr(self.pipeline.scheduler.config, "use_dynamic_shifting", False)
        return getattr(sdpo_kernels.coefficients, self.sampler)(
            self.pipeline.scheduler,
            steps,
            level=level,
            mu=self._mu(steps) if dynamic else None,
            sigmas=self._sigmas(steps),
            stochastic_steps=stochastic,
        )


class StableDiffusion3Policy(FlowPolicy):
    """Conditions: text embeddings [N, L, D], pooled text [N, P]."""

    pipeline_class = StableDiffusion3Pipeline

    @property
    def patch(self) -> int:
        return self.denoiser.config.patch_size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        shape = super().latent_shape
        grid = self.denoiser.config.pos_embed_max_size  # of the positions that it was trained with, cropped to the size
        if max(shape[1:]) > grid * self.patch:
            raise UserError(
                f"--resolution is {self.resolution}; this model's position grid allows at most "
                f"{grid * self.patch * self.pipeline.vae_scale_factor}"
            )
        return shape

    @property
    def token_limits(self) -> dict[str, int]:
        found = super().token_limits
        return found | {"tokenizer_3": T5_TOKENS} if "tokenizer_3" in found else found

    @property
    def condition_shapes(self) -> list[tuple[int, ...]]:
        clip, config = self.pipeline.text_encoder.config, self.denoiser.config
        return [(clip.max_position_embeddings + T5_TOKENS, config.joint_attention_dim), (config.pooled_projection_dim,)]

    def _encode(self, prompt: str | None) -> Conditions:
        embeddings, _, pooled, _ = self.pipeline.encode_prompt(
            prompt or "",
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=T5_TOKENS,
        )
        return embeddings[0].to(self.dtype), pooled[0].to(self.dtype)

    def _denoise(self, latents: Tensor, timesteps: Tensor, *conditions: Tensor) -> Tensor:
        embeddings, pooled = conditions
        return self.denoiser(
            hidden_states=latents,
            timestep=timesteps,
            encoder_hidden_states=embeddings,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
