"""Calls a reward for a batch, retries after a failure, and checks the result."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from sdpo_bench.errors import UserError
from sdpo_bench.rewards import Reward
from sdpo_bench.rewards._torch_state import unchanged_torch


def score(reward: Reward, images: Tensor, prompts: list[str]) -> Tensor:
    """Rewards float32 [N] of N images. After a failure or a value that is not finite the reward is called once more.

    UserError after that, and at once for anything but N numbers. The reward may change its arguments and torch's
    settings: the arguments are not used again, and the settings are restored.
    """
    return _ask(reward, reward, images, prompts).detach()


def score_with_gradient(reward: Reward, images: Tensor, prompts: list[str]) -> Tensor:
    """Like `score`, with the reward's gradient by the images, which must have one themselves. UserError also for a
    reward without a gradient."""
    if not (images.requires_grad and torch.is_grad_enabled()):
        raise ValueError("the pictures have no gradient: decode them with gradient=True, and not under no_grad")
    rewards = _ask(reward, reward.differentiable_score, images, prompts)
    if not rewards.requires_grad:
        raise UserError(
            f"reward {reward.name} says that it is differentiable, but its values have no gradient by the pictures; "
            f"compute them with PyTorch throughout, and not under no_grad"
        )
    return rewards


def _ask(reward: Reward, function: Callable[[Tensor, list[str]], object], images: Tensor, prompts: list[str]) -> Tensor:
    """Calls the reward's `function` with the images; retries and checks as described in `score`."""
    cause: Exception | None
    for _ in range(2):
        untouched = images._version
        try:
            with unchanged_torch():
                rewards = numbers(reward, function(images, [*prompts]), len(prompts))
        except (UserError, torch.OutOfMemoryError):  # the one would come again, the other is retry_on_oom's
            raise
        except Exception as error:
            cause, problem = error, f"raised {type(error).__name__} ({error})"
        else:
            if bool(torch.isfinite(rewards).all()):
                return rewards
            cause, problem = None, "gave a value that is not finite"
        if images._version != untouched:
            raise UserError(f"reward {reward.name} {problem}, and changed its pictures in place") from cause
        print(f"warning: reward {reward.name} {problem}, for one of {len(prompts)} pictures", file=sys.stderr)
    raise UserError(f"reward {reward.name} {problem} for a picture of this run, twice") from cause


def numbers(reward: Reward, found: object, count: int) -> Tensor:
    """Converts the result of a reward to float32 [count]. UserError, with the reward's name, for anything else."""
    if not isinstance(found, Tensor):
        what = f"a {type(found).__name__}"
    elif found.shape != (count,):
        what = f"a tensor of shape {[*found.shape]}"
    elif not found.is_floating_point():
        what = f"a tensor of {found.dtype}"
    else:
        return found.float()
    raise UserError(
        f"reward {reward.name} returned {what} for {count} pictures; expected a float tensor of shape [{count}], a "
        f"value for each picture"
    )
