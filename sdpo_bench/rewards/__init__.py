"""The rewards: one file each, found by looking through this folder, loaded on demand.

A reward is a class with `name`, `title`, `licence`, `revision`, `scale`; called with pictures float [N, 3, H, W] in
0..1 and N prompts it gives float32 [N], the higher the better.
"""

from __future__ import annotations

import importlib
import pkgutil

from sdpo_bench.errors import choose
from sdpo_bench.rewards.base import Reward

REWARDS: dict[str, type[Reward]] = {}
for _info in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_info.name}")
    for _value in vars(_module).values():
        if isinstance(_value, type) and issubclass(_value, Reward) and "name" in vars(_value):
            REWARDS[_value.name] = _value
REWARDS = dict(sorted(REWARDS.items()))


def load_reward(name: str) -> Reward:
    """The reward `name`; UserError lists the valid ones, or says what it lacks."""
    return REWARDS[choose("reward", name, REWARDS)]()


__all__ = ["REWARDS", "Reward", "load_reward"]
