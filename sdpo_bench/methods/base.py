"""The base class of all methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from sdpo_bench.errors import UserError
from sdpo_bench.types import NoisedBatch


class StepLoss(NamedTuple):
    """loss [P]; log_prob of the current policy, [P, G] or [P, G, S]; clipped bool [P].

    Where a method learns from noised samples, log_prob is minus the error [P, G] of the predicted clean latents.
    """

    loss: Tensor
    log_prob: Tensor
    clipped: Tensor


class RewardGradient(NamedTuple):
    """The term -weight * reward of the loss, whose gradient goes back through the picture.

    last_steps: through how many of the last denoising steps
    noisings: 0, or how often the finished sample is noised anew at the last step, which then is the only one: the
        rewards' mean varies less (DRaFT-LV, arXiv 2309.17400)
    """

    weight: float
    last_steps: int
    noisings: int = 0


def option(default: float, expected: str, valid: Callable[[float], bool], *, later: bool = False) -> Any:
    """A field of a method: an option with its default, its valid values in words, and a test of them. `later`: it came
    after the method's first results, whose run ids must stay, so config.json leaves it out at its default."""
    return field(default=default, metadata={"expected": expected, "valid": valid, "later": later})


def discount(default: float) -> Any:
    """An option of which powers weigh later rewards."""
    return option(default, "0 to 1", lambda value: 0 <= value <= 1)


def positive(default: float) -> Any:
    """An option that scales a loss or divides: below 0 a method would learn the opposite."""
    return option(default, "a number > 0", lambda value: value > 0)


@dataclass(frozen=True)
class Method:
    """See the package's docstring. By default a method takes the final reward, the same for every step."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if "valid" in f.metadata and not f.metadata["valid"](value):
                raise UserError(f"option {f.name} of {self.name} is {value}; expected {f.metadata['expected']}")

    def to_json(self) -> dict[str, Any]:
        """The method as config.json holds it: its name and options."""
        options = {f.name: (getattr(self, f.name), f) for f in fields(self)}
        kept = {k: v for k, (v, f) in options.items() if not (f.metadata.get("later") and v == f.default)}
        return {"name": self.name} | kept

    title: ClassVar[str]
    name: ClassVar[str]
    dense: ClassVar[bool] = False
    dense_reward: ClassVar[str] = "anchored"
    """The dense reward that it takes where --dense does not say otherwise."""
    reference: ClassVar[bool] = False
    learns_from: ClassVar[Literal["step", "trajectory", "noised", "reward"]] = "step"
    """The input of its loss: the model's output at stored steps, log-probs of whole trajectories, the output
    at finished samples that are noised anew, or the reward alone, through its gradient."""
    pairwise: ClassVar[bool] = True
    """Whether the loss compares the two samples of a pair; other methods take groups of any size."""
    group_size: ClassVar[int] = 2
    """Samples of a prompt in a group, where --group-size does not say otherwise."""
    trains_last_step: ClassVar[bool] = True
    """False: its loss leaves the last step out, whatever --train-last-step says."""
    shared_noise: ClassVar[bool] = True
    """Whether the samples of a group share their initial noise, where --shared-noise does not say otherwise."""
    clips_ratio: ClassVar[bool] = True
    """Whether --clip-range acts on its loss."""
    weighs_advantages: ClassVar[bool] = True
    """Whether its loss depends on the size of advantages, not on their sign within a pair alone, or not at all."""
    stochastic: ClassVar[bool] = True
    """Whether the sampler's steps draw noise while training samples are made."""
    samples_with_old_weights: ClassVar[bool] = True
    """Whether old weights, where they are kept, make the training samples too, or are only what the loss compares
    with."""
    shared_noising: ClassVar[bool] = False
    """Whether the finished samples of a group are noised anew with the same noise."""
    normalizer: ClassVar[Literal["buffer", "group", "group_mean"]] = "buffer"
    """Advantages by the statistics of a prompt's recent samples, of the group, or by the group's mean and the standard
    deviation of the epoch's samples."""
    updates: ClassVar[Literal["step", "trajectory"]] = "trajectory"
    clip_range: ClassVar[float] = 1e-4
    """Where --clip-range is not given: at 16,384 latent dimensions. [official]"""
    learning_rates: ClassVar[dict[int, float]] = {}

    @property
    def baseline(self) -> Literal["none", "reward", "critic"]:
        """The predictor of the advantages before a step's action, to be subtracted from them: nothing, the last
        reward that is known then, or a value of the state that is learned from earlier epochs (training/critic.py)."""
        return "none"

    @property
    def reference_output(self) -> bool:
        """Whether the loss takes the pretrained model's output at each trained step: a forward pass more."""
        return False

    @property
    def old_output(self) -> bool:
        """Whether the loss takes the output of the model that sampled, or of the old weights. At stored steps it is
        kept from sampling; at samples that are noised anew it is a forward pass more."""
        return False

    @property
    def weighs_by_sigma(self) -> bool:
        """Whether the loss at a step is weighed by the step's noise: its batch then has `relative_sigma`."""
        return False

    @property
    def all_noise_levels(self) -> bool:
        """Whether finished samples are noised to levels drawn from all of the model's timesteps, not to those of the K
        steps."""
        return False

    @property
    def keeps_old_weights(self) -> bool:
        """Whether there are old weights beside the trained ones: `old_decay` says how they follow."""
        return False

    def old_decay(self, updates: int) -> float:
        """After an epoch, `updates` optimiser steps into the run: old weights = decay * old weights + (1 - decay) *
        trained weights."""
        return 0.0

    def reward_gradient(self, steps: int) -> RewardGradient | None:
        """How the reward's gradient is taken, in runs of K = `steps`; None: not at all. UserError for options that do
        not fit K."""
        return None

    def returns(self, rewards: Tensor) -> Tensor:
        """Returns [B, G, K] from rewards [B, G, K]: the final reward at every step."""
        return rewards[..., -1:].expand_as(rewards)

    def loss(self, output: Tensor, batch: Any, *, clip_range: float, advantage_clip: float) -> StepLoss:
        raise NotImplementedError

    def loss_and_grad(self, output: Tensor, batch: Any, *, grad_scale: float, **clips: Any) -> tuple[StepLoss, Tensor]:
        """The loss, detached, and d sum(grad_scale * loss) / d output: by autograd, where a method knows no better."""
        leaf = output.detach().requires_grad_()
        result = self.loss(leaf, batch, **clips)
        (grad,) = torch.autograd.grad(grad_scale * result.loss.sum(), leaf)
        return StepLoss(*(x.detach() for x in result)), grad


def weighted_error(output: Tensor, batch: NoisedBatch) -> Tensor:
    """Mean squared error [P, G] of the predicted clean latents over their mean absolute one, which is taken for a
    constant: gradients are then of one size at all noise levels (DiffusionNFT, arXiv 2509.16117)."""
    difference = (batch.predicted_clean(output) - batch.clean).flatten(2)
    return difference.square().mean(2) / difference.detach().abs().mean(2).clamp_min(1e-5)


def pair_difference(x: Tensor) -> Tensor:
    """First minus second sample of each pair: [P, 2, ...] -> [P, ...]."""
    return x[:, 0] - x[:, 1]
