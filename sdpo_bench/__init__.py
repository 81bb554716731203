"""A reproducible benchmark of reinforcement learning on few-step diffusion models.

The public names below are loaded when first used, so that reading records or `--help` does not import PyTorch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "METHODS": "methods",
    "REWARDS": "rewards",
    "Run": "api.runs",
    "RunConfig": "config",
    "RunRecord": "records.reader",
    "Trainer": "training.trainer",
    "Trajectory": "types",
    "UserError": "errors",
    "build_method": "methods",
    "compare": "api.runs",
    "embedded_pipeline": "policies",
    "evaluate": "api.runs",
    "evaluate_model": "training.evaluation",
    "load_policy": "policies",
    "load_profile": "records.reader",
    "load_results": "api.runs",
    "load_reward": "rewards",
    "load_run": "records.reader",
    "sample": "training.sampling",
    "train": "api.runs",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
