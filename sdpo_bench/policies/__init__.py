"""Policies: one file per model family. A policy is a diffusers pipeline seen as the trainer needs it."""

from sdpo_bench.policies.base import Conditions, Policy
from sdpo_bench.policies.loading import FAMILIES, load_pipeline, load_policy
from sdpo_bench.policies.stable_diffusion import StableDiffusionPolicy

__all__ = ["FAMILIES", "Conditions", "Policy", "StableDiffusionPolicy", "load_pipeline", "load_policy"]
