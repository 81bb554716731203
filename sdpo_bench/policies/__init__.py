"""Policies: one file per model family. A policy is a diffusers pipeline seen as the trainer needs it."""

from sdpo_bench.policies.stable_diffusion import StableDiffusionPolicy, load_policy

__all__ = ["StableDiffusionPolicy", "load_policy"]
