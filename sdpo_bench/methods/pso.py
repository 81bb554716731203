"""PSO: pairwise sample optimisation (arXiv 2410.03190); with noise levels of any timestep online Diffusion-DPO
(arXiv 2311.12908)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sdpo_bench.methods.base import Method, StepLoss, option, pair_difference, positive
from sdpo_bench.types import NoisedBatch


@dataclass(frozen=True)
class PSO(Method):
    """Both finished samples of a pair get the same fresh noise; the model shall err less than the pretrained one on the
    better sample, and more on the worse one:

    loss = -logsigmoid( beta h [ (d(m_ref_a - m*_a) - d(m_a - m*_a)) - (d(m_ref_b - m*_b) - d(m_b - m*_b)) ] ),

    h = 1 where a has the higher final reward, -1 where b has it, 0 on a tie; m the model's output, m* the output that
    would predict the sample, d the mean of squares over the latent. Noise levels are those of the sampler's K steps,
    which a distilled model was made for (PSO), or drawn from all of the model's timesteps (Diffusion-DPO).

    Options: beta 200 [PSO's code; Diffusion-DPO's 2000, which it halves, is 1000 here]; any_level, 1 for Diffusion-DPO.
    """

    name = "pso"
    title = "PSO"
    row = 14
    colour = "#bcbd22"
    marker = "<"
    clips_ratio = False
    weighs_advantages = False
    learns_from = "noised"
    shared_noise = False
    shared_noising = True

    beta: float = positive(200.0)
    any_level: float = option(0, "0 or 1", lambda value: value in (0, 1))

    @property
    def reference_output(self) -> bool:
        return True

    @property
    def all_noise_levels(self) -> bool:
        return self.any_level == 1

    def loss(self, output: Tensor, batch: NoisedBatch, *, clip_range: float, advantage_clip: float) -> StepLoss:
        assert batch.reference_output is not None
        error, reference = batch.error(output), batch.error(batch.reference_output)
        margin = pair_difference((reference - error) / batch.output_scale.square())
        preference = pair_difference(batch.advantages).sign()
        loss = -F.logsigmoid(self.beta * preference * margin)
        return StepLoss(loss, -error, torch.zeros_like(loss, dtype=torch.bool))
