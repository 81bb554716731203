"""SANA-Sprint kind (arXiv 2503.09641): a consistency model of TrigFlow, with guidance as an input."""

from __future__ import annotations

import inspect

import sdpo_kernels
from diffusers import SanaSprintPipeline
from sdpo_kernels.coefficients import Schedule
from torch import Tensor

from sdpo_bench.policies.base import Conditions, Policy

TEXT_TOKENS = 300  # the pipeline's default
INSTRUCTION = inspect.signature(SanaSprintPipeline.__call__).parameters["complex_human_instruction"].default
"""Text that the pipeline puts before every prompt, for the text encoder only."""


class SanaSprintPolicy(Policy):
    """Conditions: text embeddings [N, L, D], a mask [N, L] of their tokens. Latents have the deviation 1 of a picture's
    noise, so they are the scheduler's divided by its sigma_data; the output is TrigFlow's F."""

    pipeline_class = SanaSprintPipeline
    component = "transformer"
    samplers = ("scm",)

    @property
    def takes_guidance(self) -> bool:
        return self.denoiser.config.guidance_embeds

    @property
    def patch(self) -> int:
        return self.denoiser.config.patch_size

    @property
    def token_limits(self) -> dict[str, int]:
        return {"tokenizer": TEXT_TOKENS - 1}  # of those that are selected, the first is the instruction's

    @property
    def condition_shapes(self) -> list[tuple[int, ...]]:
        return [(TEXT_TOKENS, self.denoiser.config.caption_channels), (TEXT_TOKENS,)]

    def _build_schedule(self, steps: int, eta: float, level: float | None, stochastic: int) -> Schedule:
        return sdpo_kernels.coefficients.scm(self.pipeline.scheduler, steps, stochastic_steps=stochastic)

    def _encode(self, prompt: str | None) -> Conditions:
        embeddings, mask = self.pipeline.encode_prompt(
            prompt or "", device=self.device, max_sequence_length=TEXT_TOKENS, complex_human_instruction=INSTRUCTION
        )
        return embeddings[0].to(self.dtype), mask[0].to(self.dtype)

    def _denoise(self, latents: Tensor, timesteps: Tensor, *conditions: Tensor) -> Tensor:
        """The network is one of a flow (1 - t) x0 + t z: its input and output are brought to TrigFlow's cos and sin."""
        embeddings, mask = conditions
        N = len(latents)
        angles = timesteps.float()
        time = angles.sin() / (angles.cos() + angles.sin())
        t = time.view(-1, 1, 1, 1)
        length = (t**2 + (1 - t) ** 2).sqrt()
        x = latents.float() * length
        guidance = embeddings.new_full((N,), self.guidance) * self.denoiser.config.guidance_embeds_scale
        output = self.denoiser(
            x.to(latents.dtype),
            encoder_hidden_states=embeddings,
            encoder_attention_mask=mask,
            guidance=guidance if self.takes_guidance else None,
            timestep=time,
            return_dict=False,
        )[0]
        return ((1 - 2 * t) * x + (1 - 2 * t + 2 * t**2) * output.float()) / length
