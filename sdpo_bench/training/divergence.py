"""The error of training that diverged, and its probable cause."""

from __future__ import annotations

import dataclasses

from sdpo_bench.config import RunConfig, flag
from sdpo_bench.errors import UserError
from sdpo_bench.methods import METHODS


class TrainingDiverged(UserError):
    """A loss, a gradient or a weight is no longer finite."""


def likely_causes(config: RunConfig) -> str:
    """A text that says what to change after a divergence: settings that are known causes, and the learning rate if it
    is above the default or nothing else is suspicious."""
    causes = []
    if config.dtype == "float16":
        causes.append("use --dtype bfloat16 or float32 (float16 overflows above 65504)")
    defaults = dataclasses.asdict(METHODS[config.method]())
    if given := [f"{name} {value:g}" for name, value in config.options.items() if value != defaults[name]]:
        causes.append(f"set --options {' '.join(given)} back to the method's defaults")
    for name in ("weight_decay", "max_grad_norm"):
        if getattr(config, name) > getattr(RunConfig, name):  # the class has the defaults
            causes.append(f"lower {flag(name)} ({getattr(config, name):g})")
    if not causes or config.learning_rate > RunConfig.learning_rate:
        causes.append(f"lower --learning-rate ({config.learning_rate:g})")
    return " or ".join(causes)
