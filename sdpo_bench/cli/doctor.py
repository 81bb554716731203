"""`sdpo-bench doctor`: its options."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from sdpo_bench.cli.output import quiet_libraries
from sdpo_bench.errors import UserError


@dataclass(frozen=True)
class Doctor:
    """Check this installation: versions, device, embedded model, scorers, results; says what to do about problems.
    With --model: whether a run of it fits the device, before any weights are downloaded.

    examples:
      sdpo-bench doctor
      sdpo-bench doctor --model stabilityai/sd-turbo --method sdpo --dtype float16 --pairs 32 --rows 16
      sdpo-bench doctor --model path/to/folder --memory 80  # on a device with 80 GiB
    """

    model: str | None = None
    """A diffusers pipeline's folder, a hub id, or "embedded". The options below are those of train."""
    revision: str | None = None
    """The commit of a hub model."""
    method: str = "sdpo"
    """Methods differ in how many pictures of an epoch they have scored."""
    steps: int = 4
    """K, the number of denoising steps in training."""
    pairs: int = 32
    """Pairs of samples per epoch."""
    pairs_per_update: int = 16
    """Pairs whose gradients make an optimiser step."""
    rows: int = 64
    """Most latents in one forward pass; 0: as many as fit."""
    dense: Literal["anchored", "exact", "terminal", "linear", "queries2", "queries4", "adaptive"] = "anchored"
    """Which steps are scored."""
    finetune: Literal["lora", "full"] = "lora"
    """A LoRA, or all weights."""
    lora_rank: int = 4
    """Of the LoRA."""
    resolution: int | None = None
    """Height and width of pictures, in pixels; default: the model's own."""
    guidance: float = 1.0
    """Above 1 a latent takes two rows."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the frozen weights."""
    gradient_checkpointing: bool = False
    """Compute activations anew in the backward pass."""
    vae_slicing: bool = False
    """Decode pictures one by one."""
    offload_trajectories: bool = False
    """Keep an epoch's latents in the host's memory."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    rewards: tuple[str, ...] = ()
    """The rewards of the run: networks with published weights take memory too."""
    memory: float | None = None
    """GiB of a device that is not here, in place of this machine's."""

    def __call__(self) -> int:
        from sdpo_bench.cli.installation import examine, fits

        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        memory, rewards = given.pop("memory"), given.pop("rewards")
        if self.model is None:
            changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
            if changed:
                raise UserError(f"--{changed[0].replace('_', '-')} is about a model; name one with --model")
            return examine()
        if memory is not None and not memory > 0:
            raise UserError(f"--memory is {memory}; expected GiB, more than 0")
        from sdpo_bench.config import RunConfig

        quiet_libraries()
        return fits(RunConfig(**given, reward="jpeg_compressibility", eval_rewards=rewards), memory)
