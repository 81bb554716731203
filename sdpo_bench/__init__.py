"""A reproducible benchmark of reinforcement learning on few-step diffusion models.

    train(...)         trains a model with one method on one reward; returns a Run
    evaluate(...)      evaluates a run's weights, or a model
    compare(a, b)      the differences of two runs, labels or folders of results
    load_results(...)  the finished runs of a folder
    Run                a run's settings, data frames, pictures and weights
    RunConfig          every setting of a run, with its default

docs/python.md shows how they are used together, and docs/api.md lists the other names. Each is loaded when first used,
so that `import sdpo_bench` is fast.
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
