"""Policies: one file per model family. A policy wraps a diffusers pipeline in the interface that the trainer needs."""

from sdpo_bench.policies.base import Conditions, Policy
from sdpo_bench.policies.loading import FAMILIES, embedded_pipeline, load_pipeline, load_policy
from sdpo_bench.policies.stable_diffusion import StableDiffusionPolicy

__all__ = [
    "FAMILIES",
    "Conditions",
    "Policy",
    "StableDiffusionPolicy",
    "embedded_pipeline",
    "load_pipeline",
    "load_policy",
]
