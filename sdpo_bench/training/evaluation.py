"""Evaluation: fixed prompts and fixed noise, the same for every method, at each number of sampling steps."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdpo_bench.config import RunConfig
from sdpo_bench.distributed import SINGLE_PROCESS, ProcessGroup
from sdpo_bench.errors import UserError
from sdpo_bench.policies import Policy, load_policy
from sdpo_bench.policies.base import resolve_device
from sdpo_bench.prompts import pictured
from sdpo_bench.records.files import write_atomic
from sdpo_bench.rewards import Reward, load_rewards
from sdpo_bench.rewards.base import to_uint8
from sdpo_bench.training.oom import retry_on_oom
from sdpo_bench.training.sampling import derive_seeds, sample
from sdpo_bench.training.scoring import score

EVALUATION = 0x5EED  # keeps evaluation's seeds apart from training's


def pictures(policy: Policy, prompts: list[str], noises: list[int], steps: int, config: RunConfig) -> Tensor:
    """Images [len(prompts) * len(noises), 3, H, W], ordered by prompt.

    An image is the decoded clean latent that is predicted at the last step; the noise of the last step is drawn after
    it. Its seed derives only from its prompt's text and its noise, so it does not depend on the other prompts.
    """
    keys = [(int.from_bytes(p.encode(), "little"), n) for p in prompts for n in noises]
    seeds = torch.stack([derive_seeds(EVALUATION, config.eval_seed, n, key, count=2) for key, n in keys])
    trajectory = sample(
        policy,
        [p for p in prompts for _ in noises],
        steps=steps,
        initial_seeds=seeds[:, 0],
        step_seeds=seeds[:, 1:],
        eta=config.eta,
        keep=False,
    )
    return policy.pictures(trajectory.predicted_clean[:, 0, -1], steps)


def evaluate(
    policy: Policy,
    config: RunConfig,
    rewards: dict[str, Reward],
    ranks: ProcessGroup = SINGLE_PROCESS,
    last: bool = True,
) -> list[dict[str, Any]]:
    """Evaluates the policy with each reward and step count.

    Returns a row for each: {"reward", "steps", "values": {split: {prompt: [value per noise]}}}. Each process evaluates
    a part of the prompts; all get all rows. The `last` evaluation also has --eval-last-steps and --eval-last-rewards,
    and all noises if the others have --eval-interim-noises. If a reward compares with the pretrained model, that
    model's images of the same prompts, noises and steps are sampled too.
    """
    if not last:
        rewards = {name: rewards[name] for name in dict.fromkeys((config.reward, *config.eval_rewards))}
    counts = (*config.eval_steps, *(config.eval_last_steps if last else ()))
    chosen = evaluated_prompts(config)
    everybody = [*dict.fromkeys(p for group in chosen.values() for p in group)]
    prompts = ranks.local_slice(everybody)
    if ranks.sharded:  # all make as many passes: who has fewer prompts, or none, takes some of the others' too
        prompts = (prompts + everybody)[: -(-len(everybody) // ranks.size)]
    noises = list(range(config.eval_noises if last else config.eval_interim_noises or config.eval_noises))

    def own(steps: int) -> dict[str, dict[str, list[float]]]:
        """The values of this process's prompts, by reward. Some prompts at a time, each with all of its pictures (a
        reward may compare them), so that memory does not depend on the number of prompts."""
        values: dict[str, dict[str, list[float]]] = {name: {} for name in rewards}
        at_a_time = max(1, policy.rows // len(noises))
        for chunk in (prompts[i : i + at_a_time] for i in range(0, len(prompts), at_a_time)):
            images = pictures(policy, chunk, noises, steps, config)
            judges = rewards
            if any(reward.needs_start for reward in rewards.values()):
                with policy.reference():
                    start = pictures(policy, chunk, noises, steps, config)
                judges = {n: reward.against(start) if reward.needs_start else reward for n, reward in rewards.items()}
            for name, reward in judges.items():
                # A copy: what one reward does to its pictures must not reach the next.
                found = score(reward, images.clone(), [p for p in chunk for _ in noises])
                values[name] |= dict(zip(chunk, found.reshape(len(chunk), len(noises)).tolist(), strict=True))
        return values

    rows = []
    for steps in counts:
        work = partial(retry_on_oom, policy, partial(own, steps))
        parts = ranks.gather(ranks.run_on_all(work))
        for name in rewards:
            by_prompt = {p: values for part in parts for p, values in part.get(name, {}).items()}
            rows.append(
                {
                    "reward": name,
                    "steps": steps,
                    "values": {split: {p: by_prompt[p] for p in group} for split, group in chosen.items()},
                    "noise_seeds": noises,
                }
            )
    return rows


def evaluated_prompts(config: RunConfig) -> dict[str, list[str]]:
    """The prompts of each evaluated split that has any. UserError if none has."""
    lists = config.prompt_lists
    chosen = {split: lists[split] for split in config.eval_splits if lists[split]}
    if not chosen:
        raise UserError(f"--eval-splits {' '.join(config.eval_splits)}: there are no prompts to evaluate; use seen")
    return chosen


def warn_of_long_prompts(policy: Policy, prompts: Iterable[str]) -> None:
    """Prints a warning if text encoders cut prompts. Two such prompts may give the same image."""
    if found := policy.too_long(prompts):
        print(f"warning: {found}", file=sys.stderr)


def evaluation_rewards(config: RunConfig, device: torch.device | None = None) -> dict[str, Reward]:
    """The optimised reward, followed by the other evaluated ones, on `device` (by default the run's)."""
    return load_rewards(
        (config.reward, *config.eval_rewards, *config.eval_last_rewards),
        device=device or resolve_device(config.device),
        dtype=getattr(torch, config.reward_dtype),
        batch_size=config.reward_batch,
    )


def grid_of_pictures(policy: Policy, config: RunConfig) -> np.ndarray[Any, Any]:
    """Images as uint8 [H, W, 3]: a row for each step count, a column for each of the first prompts, seen and unseen. If
    weights are sharded all processes must call this."""
    prompts = pictured(config.prompt_lists)
    rows = [torch.cat(list(pictures(policy, prompts, [0], steps, config)), 2) for steps in config.eval_steps]
    return np.ascontiguousarray(to_uint8(torch.cat(rows, 1)).permute(1, 2, 0).cpu().numpy())


def save_grid(policy: Policy, config: RunConfig, path: Path, write: bool = True) -> None:
    """Saves `grid_of_pictures` as a PNG, in the process that writes."""
    grid = grid_of_pictures(policy, config)
    if write:
        buffer = io.BytesIO()
        Image.fromarray(grid).save(buffer, format="PNG")
        write_atomic(path, buffer.getvalue())


def evaluate_model(
    config: RunConfig, adapter: Path | None = None, rank: int | None = None, alpha: float | None = None
) -> list[dict[str, Any]]:
    """Evaluates a model, with the weights that a run saved in the folder `adapter` if given. `rank` and `alpha` are the
    required values of a LoRA there."""
    rewards = evaluation_rewards(config)
    for reward in rewards.values():  # before anything is sampled
        for prompts in evaluated_prompts(config).values():
            reward.check_prompts(prompts)
    policy = load_policy(config)
    if adapter is not None:
        if not any(adapter.glob("*.safetensors")) and not (adapter / "model_index.json").is_file():
            raise UserError(f"{adapter} holds no saved weights; expected a run's `adapter` or `model` folder")
        policy.load(adapter, rank, alpha)
        if policy.text_is_adapted and any(reward.needs_start for reward in rewards.values()):
            raise UserError(
                f"--weights {adapter} change a text encoder too, which the pretrained model's pictures can't be had "
                f"without; leave out kid_start"
            )
    warn_of_long_prompts(policy, chain(*evaluated_prompts(config).values()))
    return evaluate(policy, config, rewards)
