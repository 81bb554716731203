"""Defines valid fields of a record. They are checked once, when a run is read, so that tables need not check again.

A schema maps a field to (a description, a check of the value). Optional fields are listed separately. Fields that no
table uses are not checked, so that older and newer records can be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

from sdpo_bench.catalogue import BUDGETS
from sdpo_bench.terminal import printable

LARGEST = 1e100  # of a measured number: its square is still finite


Rule = tuple[str, Callable[[Any], bool]]


Schema = dict[str, Rule]


def is_line(value: Any) -> bool:
    """Whether a text is one printable line: not empty, no control characters."""
    return (
        isinstance(value, str) and value != "" and printable(value) == value and "\n" not in value and "\t" not in value
    )


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST <= value <= LARGEST  # NaN is not


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _seconds(value: Any) -> bool:
    return isinstance(value, dict) and all(is_number(seconds) and seconds >= 0 for seconds in value.values())


def _rewards(value: Any) -> bool:
    return isinstance(value, dict) and all(
        is_line(name) and isinstance(reward, dict) and {"revision", "scale"} <= reward.keys()
        for name, reward in value.items()
    )


def _plugins(value: Any) -> bool:
    return isinstance(value, dict) and all(
        is_line(source) and isinstance(plugin, dict) and problem(plugin, PLUGIN, {"distribution": LINE}) is None
        for source, plugin in value.items()
    )


def _names(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_list_of(is_line), value.values()))


LINE: Rule = ("a line of text", is_line)


COUNT: Rule = ("a whole number, 0 or more", is_count)


POSITIVE: Rule = ("a whole number, 1 or more", lambda value: is_count(value) and value > 0)


SECONDS: Rule = ("an object of seconds", _seconds)


SEED: Rule = ("a whole number of 64 bits", lambda value: type(value) is int and abs(value) < 2**64)


COUNTS: Schema = dict.fromkeys(("samples", "reward_queries", "optimiser_steps", "model_evaluations"), COUNT)


PLANNED: Schema = {"run_id": LINE, "label": LINE, "model": LINE, "reward": LINE, "steps": POSITIVE, "seed": SEED}


CONFIG: Schema = PLANNED | {
    "method": ("an object with a 'name'", lambda value: isinstance(value, dict) and is_line(value.get("name"))),
    "learning_rate": ("a number above 0", lambda value: is_number(value) and value > 0),
}


CONFIG_OPTIONAL: Schema = {
    "epochs": COUNT,
    "eval_interim_noises": POSITIVE,
    "eval_steps": ("a list of numbers of steps", _list_of(POSITIVE[1])),
}


PLUGIN: Schema = {"sha256": LINE, "gives": ("an object of lists of names", _names)}


PROVENANCE: Schema = {
    "commit": ("a commit or null", lambda value: value is None or is_line(value)),
    "device": LINE,
    "versions": ("an object of texts", _texts),
}


PROVENANCE_OPTIONAL: Schema = {
    "source": LINE,
    "dirty": ("true or false", lambda value: isinstance(value, bool)),
    "command": ("a text", lambda value: isinstance(value, str)),
    "rewards": ("an object of rewards, each with its revision and scale", _rewards),
    "plugins": ("an object of plug-ins, each with its SHA-256 and what it gives", _plugins),
}


TRAIN: Schema = {"epoch": COUNT, **COUNTS, "seconds": SECONDS}


TRAIN_OPTIONAL: Schema = dict.fromkeys(("backward_passes", "reward_gradients"), COUNT) | {  # not in the first results
    "explained_variance": ("a list of numbers", _list_of(is_number)),
    "kl": ("a number", is_number),
    "prompt_stats_share": ("a share from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1),
    "reward_std": ("a number of at least 0", lambda value: is_number(value) and value >= 0),
}


EVAL: Schema = {
    "epoch": COUNT,
    **COUNTS,
    "reward": LINE,
    "steps": POSITIVE,
    "noise_seeds": ("a list of seeds, at least one", lambda value: _list_of(SEED[1])(value) and bool(value)),
    "values": ("an object of values by prompts and noises", lambda value: isinstance(value, dict)),
}


DENSE: Schema = {
    "epoch": COUNT,
    "queries_per_sample": ("a number", is_number),
    "budget": (
        f"one of {', '.join(BUDGETS)}, or of a plug-in that --plugin names",
        lambda value: isinstance(value, str) and value in BUDGETS,
    ),
}


MEASURED = ("mae", "bias", "std")  # lists in dense.jsonl: a number for each step of training


CORRELATED = ("corr", "return_corr", "return_sign")  # and here null where nothing varies


DONE_OPTIONAL: Schema = {"seconds": SECONDS, "seconds_per_epoch": SECONDS}


def problem(record: Mapping[str, Any], required: Schema, optional: Schema | None = None) -> str | None:
    """A text that says what is wrong with a record's fields; None if they are valid."""
    if not required.keys() <= record.keys():
        return f"lacks {', '.join(key for key in required if key not in record)}"
    present = {key: rule for key, rule in optional.items() if key in record} if optional else {}
    for rules in (required, present):
        for key, (what, check) in rules.items():
            if not check(record[key]):
                return f"{key!r} is {shortened(record[key])}, not {what}"
    return None


def evaluation_problem(row: Mapping[str, Any]) -> str | None:
    """The same for a row of eval.jsonl, including its values."""
    if found := problem(row, EVAL):
        return found
    count = len(row["noise_seeds"])
    for split, prompts in row["values"].items():
        if not is_line(split) or not isinstance(prompts, dict) or not prompts:
            return f"the prompts {shortened(split)} are not a name and at least one prompt"
        if _sound(list(prompts.values()), count):
            continue
        for prompt, values in prompts.items():
            if not isinstance(values, list) or len(values) != count:
                given = len(values) if isinstance(values, list) else "no list of"
                return f"{split} prompt {shortened(prompt)} has {given} values for {count} noise seeds"
            if not all(map(is_number, values)):
                return f"{split} prompt {shortened(prompt)} has a value that is not a finite number"
    return None if row["values"] else "has no values"


def _sound(lists: list[Any], count: int) -> bool:
    """Whether these are lists of that many numbers: the checks below, done quickly for all of them."""
    if {*map(type, lists)} != {list} or {*map(len, lists)} != {count}:
        return False
    values = [*chain.from_iterable(lists)]
    return (
        {*map(type, values)} <= {int, float}
        and min(values) >= -LARGEST
        and max(values) <= LARGEST
        and not any(map(math.isnan, values))
    )


def dense_problem(row: Mapping[str, Any], steps: int) -> str | None:
    """The same for a row of dense.jsonl, for a run with this number of training steps."""
    lists: Schema = {
        **dict.fromkeys(MEASURED, (f"a list of {steps} numbers", lambda v: _list_of(is_number)(v) and len(v) == steps)),
        **dict.fromkeys(
            CORRELATED,
            (
                f"a list of {steps} numbers or nulls",
                lambda v: _list_of(lambda x: x is None or is_number(x))(v) and len(v) == steps,
            ),
        ),
    }
    return problem(row, DENSE | lists)


def shortened(value: Any) -> str:
    """A value in Python's notation, cut at about 60 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits, lists in lists in lists
        text = "what cannot be shown"
    return text if len(text) <= 60 else f"{text[:57]}..."
