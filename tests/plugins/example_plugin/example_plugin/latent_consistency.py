"""Latent consistency models in their own pipeline (arXiv 2310.04378)."""

from __future__ import annotations

from diffusers import LatentConsistencyModelPipeline

from sdpo_bench.policies.stable_diffusion import StableDiffusionPolicy


class LatentConsistencyPolicy(StableDiffusionPolicy):
    pipeline_class = LatentConsistencyModelPipeline
    samplers = ("lcm", "ddim")
