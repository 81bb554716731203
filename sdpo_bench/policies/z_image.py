"""Z-Image kind, such as Z-Image-Turbo: one stream of text and picture tokens, a language model as text encoder."""

from __future__ import annotations

from functools import partial

import torch
from diffusers import ZImagePipeline
from torch import Tensor

from sdpo_bench.policies.base import Conditions
from sdpo_bench.policies.prompts import chat_limit
from sdpo_bench.policies.stable_diffusion_3 import FlowPolicy

TEXT_TOKENS = 512  # the pipeline's default
BLOCK = 32  # the network fills each caption up to a multiple of it


class ZImagePolicy(FlowPolicy):
    """Conditions: text embeddings [N, L, D], zeros after the prompt's last token; a mask [N, L] of its tokens.

    The pipeline's guidance_scale is g - 1 for `--guidance` g: it adds g - 1 times the difference to the conditioned
    output, and its 0 is none.
    """

    pipeline_class = ZImagePipeline
    patch = 2
    sample_size = (128, 128)  # for the pipeline's own 1024 pixels

    @property
    def channels(self) -> int:
        return self.denoiser.in_channels

    @property
    def token_limits(self) -> dict[str, int]:
        return {"tokenizer": chat_limit(self.pipeline.tokenizer, TEXT_TOKENS, thinking=True)}

    @property
    def condition_shapes(self) -> list[tuple[int, ...]]:
        return [(TEXT_TOKENS, self.denoiser.config.cap_feat_dim), (TEXT_TOKENS,)]

    def _sigmas(self, steps: int) -> list[float] | None:
        return torch.linspace(1, 1 / steps, steps).tolist()

    def _encode(self, prompt: str | None) -> Conditions:
        (embeddings,), _ = self.pipeline.encode_prompt(
            prompt or "", device=self.device, do_classifier_free_guidance=False, max_sequence_length=TEXT_TOKENS
        )
        padded = embeddings.new_zeros(TEXT_TOKENS, embeddings.shape[1])
        padded[: len(embeddings)] = embeddings
        return padded.to(self.dtype), (torch.arange(TEXT_TOKENS, device=self.device) < len(embeddings)).to(self.dtype)

    def _denoise(self, latents: Tensor, timesteps: Tensor, *conditions: Tensor) -> Tensor:
        """Captions of one filled-up length at a time: together they would be filled up to the longest, so that a
        sample's numbers would depend on the others'."""
        embeddings, mask = conditions
        # A memory estimate has no numbers, and so the longest captions.
        lengths = [TEXT_TOKENS] * len(mask) if mask.is_meta else mask.sum(1).int().tolist()
        blocks = [-(-length // BLOCK) for length in lengths]
        order, parts = [], []
        for count in sorted({*blocks}):
            rows = [i for i, other in enumerate(blocks) if other == count]
            order += rows
            alike = partial(self._alike, [lengths[i] for i in rows])
            parts.append(self._in_chunks(alike, latents[rows], timesteps[rows], embeddings[rows]))
        return torch.cat(parts)[torch.tensor(order).argsort().to(latents.device)]

    def _alike(self, lengths: list[int], latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        """The output for captions of these numbers of tokens, which are filled up to the same length. Rows beyond them
        are the last one again."""
        lengths = lengths + lengths[-1:] * (len(latents) - len(lengths))
        output = self.denoiser(
            list(latents.unsqueeze(2).unbind(0)),  # each [C, frames, H, W]
            (1000 - timesteps) / 1000,
            [text[:length] for text, length in zip(embeddings, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(output).squeeze(2)
