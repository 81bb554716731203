"""What every method has in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from sdpo_bench.errors import UserError


class StepLoss(NamedTuple):
    """loss [P]; log_prob of the current policy, [P, 2] or [P, 2, S]; clipped bool [P]."""

    loss: Tensor
    log_prob: Tensor
    clipped: Tensor


def option(default: float, expected: str, valid: Callable[[float], bool]) -> Any:
    """A field of a method: an option with its default, its valid values in words, and a test of them."""
    return field(default=default, metadata={"expected": expected, "valid": valid})


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

    title: ClassVar[str]
    name: ClassVar[str]
    dense: ClassVar[bool] = False
    reference: ClassVar[bool] = False
    whole_trajectory: ClassVar[bool] = False
    pairwise: ClassVar[bool] = True
    """Whether the loss compares the two samples of a pair; other methods take groups of any size."""
    group_size: ClassVar[int] = 2
    """Samples of a prompt in a group, where --group-size does not say otherwise."""
    normalizer: ClassVar[Literal["buffer", "group"]] = "buffer"
    """Advantages by the statistics of a prompt's recent samples, or of the group."""
    updates: ClassVar[Literal["step", "trajectory"]] = "trajectory"
    learning_rates: ClassVar[dict[int, float]] = {}

    @property
    def baseline(self) -> bool:
        return False

    @property
    def reference_output(self) -> bool:
        """Whether the loss takes the pretrained model's output at each trained step: a forward pass more."""
        return False

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


def pair_difference(x: Tensor) -> Tensor:
    """First minus second sample of each pair: [P, 2, ...] -> [P, ...]."""
    return x[:, 0] - x[:, 1]
