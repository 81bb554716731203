"""Handles forward passes that do not fit into memory: retries with fewer rows, and finds how many fit."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from sdpo_bench import interruption
from sdpo_bench.config import RunConfig
from sdpo_bench.distributed import ProcessGroup
from sdpo_bench.errors import UserError
from sdpo_bench.methods import build_method
from sdpo_bench.policies import Policy

T = TypeVar("T")


PAIR = 2  # latents of the smallest micro-batch
SHARE = 0.9  # of the memory that is free: rewards' networks and an allocator's gaps need some too


def retry_on_oom(policy: Policy, work: Callable[[], T]) -> T:
    """Calls work(), and repeats it with half of the rows in a forward pass each time that the GPU runs out of memory.

    They stay halved. Results do not depend on them but by rounding, and what failed is not counted. UserError where
    one pair does not fit.
    """
    interruption.check()
    passes = policy.passes
    while True:
        try:
            return work()
        except torch.OutOfMemoryError as error:
            if policy.plain_class is not None:  # the others are in a pass that this process has left: all must end
                raise SystemExit(f"error: out of memory with --shard and --rows {policy.rows}; lower it") from error
            if policy.rows <= PAIR:
                raise UserError(
                    f"out of memory with --rows {policy.rows}, a single pair; use a GPU with more memory, smaller "
                    f"reward models, or --finetune lora"
                ) from error
        # Here, where the error no longer holds on to what the failed pass had in memory.
        policy.rows, policy.passes = max(policy.rows // 2, PAIR), passes
        torch.cuda.empty_cache()
        print(f"warning: out of memory; a forward pass has at most {policy.rows} rows from here on", file=sys.stderr)


def find_max_batch_size(policy: Policy, config: RunConfig, ranks: ProcessGroup) -> None:
    """For --rows 0: sets `policy.rows`, to the same value in all processes. Doubles the rows from one pair up to an
    epoch's samples, while training, sampling and decoding that many latents fits within SHARE of the free memory.

    On a CPU the rows stay unchanged, because more would not be faster. UserError if one pair does not fit.
    """
    if policy.device.type == "cuda":
        policy.rows = min(ranks.gather(ranks.run_on_all(lambda: _most_rows(policy, config))))
    if ranks.is_main:
        found = "found to fit" if policy.device.type == "cuda" else "the default, for on a CPU more are no faster"
        print(f"--rows 0: {policy.rows * policy.branches} rows, {found}", file=sys.stderr)


def _most_rows(policy: Policy, config: RunConfig) -> int:
    passes, free = policy.passes, _free()
    samples = config.samples_per_group * config.pairs
    # What is not there yet: AdamW's moments, and an epoch's trajectories with their parts, which become them.
    later = 8 * sum(p.numel() for p in policy.parameters)
    if policy.storage.type == "cuda":
        later += 2 * samples * (2 * config.steps + 1) * math.prod(policy.latent_shape) * policy.latent_dtype.itemsize
    term = build_method(config.method, config.options).reward_gradient(config.steps)
    timestep = policy.schedule(config.steps, eta=config.eta).timesteps[0]

    def attempt() -> int:
        n = policy.rows
        latents = torch.zeros(n, *policy.latent_shape, device=policy.device, dtype=policy.latent_dtype)
        conditions = policy.encode(["a picture"] * n)

        def predict(m: int, x: Tensor = latents) -> Tensor:
            return policy.predict(x[:m], timestep.expand(m), tuple(c[:m] for c in conditions))

        def picture(m: int) -> Tensor:
            """A number with a graph through the picture and the steps that the reward's gradient goes through."""
            x = latents[:m]
            for _ in range(term.last_steps if term is not None else 0):
                x = predict(m, x)
            return policy.decode(x, gradient=True).sum()

        trained = min(n, config.samples_per_group * config.pairs_per_update)
        predict(trained).sum().backward()
        if term is not None:  # the reward's own graph is left to SHARE, as its network is
            torch.stack([picture(trained) for _ in range(max(term.noisings, 1))]).sum().backward()
        with torch.no_grad():
            predict(n)
        policy.decode(latents)
        return _peak()

    policy.rows = PAIR
    try:
        retry_on_oom(policy, attempt)
        while policy.rows < samples:
            policy.rows *= 2
            try:
                fits = attempt() + later <= SHARE * free
            except torch.OutOfMemoryError:
                fits = False
            if not fits:
                policy.rows //= 2
                break
    finally:
        for p in policy.parameters:
            p.grad = None
        policy.passes = passes
        torch.cuda.empty_cache()
    return policy.rows


def _free() -> int:
    """Bytes that this process can still allocate on its GPU."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()


def _peak() -> int:
    """The maximum bytes that it has allocated there."""
    return torch.cuda.max_memory_reserved()
