"""The methods: one file each, found by looking through this folder.

A method is a frozen dataclass of its options, each a field with a range (base.py: `option`, `positive`, `discount`),
with

- `name`, `title`; `dense`: takes a reward at every step; `reference`: needs the pretrained model's log-probs;
- `row`, its place in tables and legends, `colour` and `marker`, its look in figures: without them it follows the
  others by name, in spare ones. These and the names are written as plain values, for sdpo_bench/catalogue.py reads
  them from the file's text, without PyTorch; a subclass does not inherit them;
- `learning_rates`, by K, as a sweep chose them, where experiments/learning_rates.py has none for it;
- `updates`: "step" or "trajectory", when the published method takes its optimiser steps;
- `baseline`: what was predictable before a step's action is subtracted from its advantage: by the last queried reward
  ("reward"), by a learned value ("critic"), or nothing ("none");
- `returns(rewards [B, G, K]) -> [B, G, K]`, what is normalised into advantages;
- `learns_from`: what its `loss(..., *, clip_range, advantage_clip) -> StepLoss` is a function of:
  "step" (default): `loss(model_output [P, G, C, H, W], StepBatch)`, at stored steps;
  "trajectory": `loss(log_prob [P, G, S], TrajectoryBatch)`, of whole trajectories;
  "noised": `loss(model_output [P, G, C, H, W], NoisedBatch)`, at finished samples that are noised anew;
  "reward": there is no `loss`; `reward_gradient` says how the reward's own gradient is taken;
- `shared_noise`, `stochastic`, `group_size`: how its training samples are made;
- `clips_ratio`, `weighs_advantages`: whether --clip-range and --advantage-clip act on its loss (api/unused.py);
- `weighs_by_sigma`: the loss takes the step's share of the noise;
- `old_output`, `reference_output`: the loss takes the output of the model that sampled, or of the pretrained one;
- `keeps_old_weights`, `old_decay`: an average of earlier weights is kept; `samples_with_old_weights`: it also samples;
- `shared_noising`, `all_noise_levels`: how finished samples are noised anew;
- `loss_and_grad`: what the trainer calls; by default it asks autograd, a fused kernel knows the gradient already.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from sdpo_bench import catalogue
from sdpo_bench.errors import UserError, choose
from sdpo_bench.methods.base import Method, StepLoss

METHODS: catalogue.Registry[type[Method]] = catalogue.Registry(
    lambda: dict(sorted((cls.name, cls) for cls in catalogue.classes(__name__, __path__, Method)))
)


def build_method(name: str, options: dict[str, Any] | None = None) -> Method:
    """The method `name` with `options` in place of its defaults; UserError names what is valid."""
    cls = METHODS[choose("method", name, METHODS)]
    fields = {f.name for f in dataclasses.fields(cls)}
    for key, value in (options or {}).items():
        if key not in fields:
            raise UserError(f"unknown option {key!r} of {name}; it has: {', '.join(sorted(fields)) or 'none'}")
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < float("inf"):
            raise UserError(f"option {key} of {name} is {value!r}; expected a finite number")
    return cls(**(options or {}))


__all__ = ["METHODS", "Method", "StepLoss", "build_method"]
