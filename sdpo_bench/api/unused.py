"""Settings that a run takes no notice of: one that somebody gave is refused, for they would expect it to act.

A method declares what it takes (methods/base.py). Records and profiles give every setting to all methods, and are not
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from sdpo_bench.config import RunConfig, flag
from sdpo_bench.errors import UserError


class Unused(NamedTuple):
    """Settings, when they do nothing, and why, with the method's {title}."""

    names: tuple[str, ...]
    where: Callable[[RunConfig], bool]
    why: str


UNUSED = (
    Unused(
        ("dense",),
        lambda config: not config.method_class.dense and config.dense not in ("auto", "terminal"),
        "{title} takes the final reward alone",
    ),
    Unused(
        ("clip_range",),
        lambda config: not config.method_class.clips_ratio,
        "{title} does not clip its ratio by it",
    ),
    Unused(
        ("advantage_clip",),
        lambda config: not config.method_class.weighs_advantages,
        "{title} takes no size of an advantage",
    ),
    Unused(
        ("prompt_stats_buffer", "prompt_stats_min_count"),
        lambda config: config.method_class.normalizer != "buffer" or not config.method_class.weighs_advantages,
        "{title} takes no statistics of a prompt's earlier samples",
    ),
    Unused(
        ("train_last_step",),
        lambda config: config.method_class.learns_from == "reward" or not config.method_class.trains_last_step,
        "{title} takes the reward's gradient through the last step in any case",
    ),
    Unused(
        ("step_shuffle",),
        lambda config: config.resolved_updates == "trajectory",
        "an update of this run takes all of its steps at once (--updates trajectory)",
    ),
    Unused(
        ("train_window_epochs",),
        lambda config: config.train_window is None,
        "without --train-window no window moves",
    ),
    Unused(
        ("lora_rank", "lora_alpha"),
        lambda config: config.finetune == "full",
        "--finetune full trains all weights",
    ),
)


def refuse_unused(config: RunConfig, given: Collection[str]) -> None:
    """UserError for the first of the settings in `given` that the run takes no notice of."""
    if not config.epochs:
        return
    for names, where, why in UNUSED:
        if (said := [name for name in names if name in given]) and where(config):
            raise UserError(f"{flag(said[0])}: {why.format(title=config.method_class.title)}; leave it out")
