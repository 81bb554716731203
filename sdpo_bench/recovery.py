"""What may fail and be tried again: a forward pass that does not fit into memory, a reward model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from sdpo_bench.errors import UserError
from sdpo_bench.policies import Policy
from sdpo_bench.rewards import Reward

T = TypeVar("T")
PAIR = 2  # latents of the smallest micro-batch


def within_memory(policy: Policy, work: Callable[[], T]) -> T:
    """work(), begun anew with half of the rows in a forward pass each time that the GPU's memory does not suffice.

    They stay halved. Results do not depend on them but by rounding, and what failed is not counted. UserError where
    one pair does not fit.
    """
    evaluations = policy.evaluations
    while True:
        try:
            return work()
        except torch.OutOfMemoryError as error:
            if policy.rows <= PAIR:
                raise UserError(
                    f"out of memory with --rows {policy.rows}, a single pair; use a GPU with more memory, smaller "
                    f"reward models, or --finetune lora"
                ) from error
        # Here, where the error no longer holds on to what the failed pass had in memory.
        policy.rows, policy.evaluations = max(policy.rows // 2, PAIR), evaluations
        torch.cuda.empty_cache()
        print(f"warning: out of memory; a forward pass has at most {policy.rows} rows from here on", file=sys.stderr)


def score(reward: Reward, images: Tensor, prompts: list[str]) -> Tensor:
    """The rewards float32 [N] of N pictures; a failure, or a value that is not finite, is given a second try.
    UserError after that."""
    cause: Exception | None
    for _ in range(2):
        try:
            rewards = reward(images, prompts)
        except (UserError, torch.OutOfMemoryError):  # the one would come again, the other is within_memory's
            raise
        except Exception as error:
            cause, problem = error, f"raised {type(error).__name__} ({error})"
        else:
            if bool(torch.isfinite(rewards).all()):
                return rewards
            cause, problem = None, "gave a value that is not finite"
        print(f"warning: reward {reward.name} {problem}, for one of {len(prompts)} pictures", file=sys.stderr)
    raise UserError(f"reward {reward.name} {problem} for a picture of this run, twice") from cause
