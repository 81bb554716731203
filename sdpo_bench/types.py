"""The data that flows through a run. B prompts, groups of G samples (2: a pair), K steps, latents [C, H, W]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Trajectory:
    """The record of sampling a batch.

    prompts: B strings; conditions: what these became for the model, tensors of B rows each; timesteps [K], noisiest
    first, int64 or float32; coefficients float32 [K, 5]; input_scale [K], in the latents' dtype: the model sees that
    times a latent; latents [B, G, K+1, C, H, W], x_T first, and predicted_clean [B, G, K, C, H, W], on the policy's
    `storage` device; log_prob float32 [B, G, K], mean over latent dimensions, of the stored latents; step_seeds int64
    [B, G], of the steps' noise; signal_scale and noise_scale float32 [K]: at step k a clean latent x0 with noise z is
    signal_scale[k] x0 + noise_scale[k] z; shared_noise: whether the samples of a group have one x_T; outputs float32
    [B, G, S, C, H, W], the model's output at the trained steps, where the method takes it, else None.
    """

    prompts: list[str]
    conditions: tuple[Tensor, ...]
    timesteps: Tensor
    coefficients: Tensor
    input_scale: Tensor
    latents: Tensor
    predicted_clean: Tensor
    log_prob: Tensor
    step_seeds: Tensor
    signal_scale: Tensor
    noise_scale: Tensor
    shared_noise: bool = True
    outputs: Tensor | None = None


@dataclass
class DenseRewards:
    """values float32 [B, G, K]; queried bool [B, G, K]; queries: images that the reward model scored.

    The samples of a group share their first picture, so that one query serves all of them.
    """

    values: Tensor
    queried: Tensor
    queries: int

    @classmethod
    def cat(cls, parts: Sequence[DenseRewards]) -> DenseRewards:
        """The rewards of several parts, one after the other."""
        return cls(
            torch.cat([part.values for part in parts]),
            torch.cat([part.queried for part in parts]),
            sum(part.queries for part in parts),
        )

    def cpu(self) -> DenseRewards:
        return DenseRewards(self.values.cpu(), self.queried.cpu(), self.queries)

    def of(self, order: Tensor) -> DenseRewards:
        """The same rewards in another order of the first axis, int64 [B]."""
        return DenseRewards(self.values[order], self.queried[order], self.queries)


@dataclass
class StepBatch:
    """P groups of G samples (pairs), each group at one denoising step.

    step: int64 [P]
    sample, prev_sample: [P, G, C, H, W]
    coefficients: float32 [P, 5]
    old_log_prob, advantages: [P, G]
    reference_log_prob: [P, G], or None where the method does not take it
    reference_output, old_output: the output [P, G, C, H, W] of the pretrained model, and of the model that sampled, or
        None where the method does not take it
    relative_sigma: [P], the step's sigma over the mean of the trained steps', or None where the method does not take it
    """

    step: Tensor
    sample: Tensor
    prev_sample: Tensor
    coefficients: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    reference_log_prob: Tensor | None
    reference_output: Tensor | None = None
    old_output: Tensor | None = None
    relative_sigma: Tensor | None = None


@dataclass
class NoisedBatch:
    """P groups of G finished samples with fresh noise, each group at the noise level of one denoising step.

    step: int64 [P]; where noise levels are drawn from all of the model's timesteps, the index of the level's
    clean: [P, G, C, H, W], the samples' last latents
    sample: [P, G, C, H, W], `clean` with noise of its own for each sample and step, or for each group and step
    coefficients: float32 [P, 5]
    advantages: [P, G]
    reference_output, old_output: as in StepBatch, at `sample`
    """

    step: Tensor
    clean: Tensor
    sample: Tensor
    coefficients: Tensor
    advantages: Tensor
    reference_output: Tensor | None = None
    old_output: Tensor | None = None

    def predicted_clean(self, output: Tensor) -> Tensor:
        """The clean latents [P, G, C, H, W] that a model with this output predicts, float32 at least."""
        c, d = (self.coefficients[:, i].reshape(-1, *[1] * (self.sample.ndim - 1)) for i in (2, 3))
        return c * self.sample + d * output

    def error(self, output: Tensor) -> Tensor:
        """Mean squared error [P, G] of the predicted clean latents, over latent dimensions."""
        return (self.predicted_clean(output) - self.clean).square().flatten(2).mean(2)

    @property
    def output_scale(self) -> Tensor:
        """[P, 1], by how much an error of the model's output, whose target is what would predict `clean` exactly
        (epsilon, a velocity, ...), is larger in the predicted clean latents."""
        return self.coefficients[:, 3:4].abs()


@dataclass
class TrajectoryBatch:
    """P pairs, all S trained steps: old_log_prob and reference_log_prob (or None) [P, 2, S], advantages [P, 2]."""

    old_log_prob: Tensor
    advantages: Tensor
    reference_log_prob: Tensor | None


@dataclass
class Counts:
    """The counts of what a run has spent so far.

    samples: trajectories
    reward_queries: pictures that the reward scored
    reward_gradients: pictures that it scored once more, with its gradient
    model_evaluations: latents that passed the denoiser, with and without a gradient
    backward_passes: latents whose gradient passed the denoiser
    """

    samples: int = 0
    reward_queries: int = 0
    optimiser_steps: int = 0
    model_evaluations: int = 0
    backward_passes: int = 0
    reward_gradients: int = 0
