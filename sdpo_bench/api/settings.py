"""The settings of a run: what flags, a file or a mapping say, and beside that what its model brings."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from sdpo_bench.api.files import Settings
from sdpo_bench.api.unused import refuse_unused
from sdpo_bench.config import EMBEDDED, RunConfig, file_name, flag
from sdpo_bench.errors import UnknownName, UserError
from sdpo_bench.experiments.learning_rates import learning_rate
from sdpo_bench.experiments.profiles import COMMON, EPOCHS, in_groups
from sdpo_bench.experiments.variants import VARIANTS
from sdpo_bench.prompts import ALL, read_prompts, splits

AUTO = "auto"
"""Among eval_rewards: ALIGNMENT where their scorers know all prompts, else nothing beside the trained reward."""
ALIGNMENT = ("alignment", "alignment_heldout")


@dataclass(frozen=True)
class Resolved:
    """A run's configuration, and which of its settings nobody gave: they are its model's. `of_method`: those that are
    its method's in place of those of a file with another method."""

    config: RunConfig
    of_model: dict[str, Any] = field(default_factory=dict)
    of_method: dict[str, Any] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """A line for each kind that says which settings these are; empty where there are none."""
        title, model = self.config.method_class.title, self.config.model
        kinds = {
            f"settings of {title} in place of the file's, which has another method": self.of_method,
            f"settings of the study for the {model} model, where none was given": self.of_model,
        }
        return "\n".join(
            f"{what}: {' '.join(_as_flag(name, value) for name, value in found.items())}"
            for what, found in kinds.items()
            if found
        )


def _as_flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return flag(name if value else f"no_{name}")
    return f"{flag(name)} {'(its own)' if value is None else value}"


def defaults() -> dict[str, Any]:
    """`train`'s values if none is given, before it looks at the model: `RunConfig`'s defaults, except AUTO."""
    found = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(RunConfig)}
    return found | {"eval_rewards": (AUTO,)}


def of_model(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with which the study trains the embedded model (experiments/profiles.py): all weights, at all steps
    but the last; the method's swept learning rate for this K and reward, the epochs that it was swept at and their
    number of samples; and what the method needs beside that. Other models have none."""
    method, steps = values["method"], values["steps"]
    if values["model"] != EMBEDDED or method not in VARIANTS or steps < 1 or not values["epochs"]:
        return {}
    found = {"finetune": COMMON["finetune"], "train_last_step": COMMON["train_last_step"] or steps == 1}
    found["epochs"] = EPOCHS.get(steps, values["epochs"])
    found |= VARIANTS[method].changes
    with contextlib.suppress(UserError):  # not swept yet
        found["learning_rate"] = learning_rate(method, steps, values["reward"])
    with contextlib.suppress(UserError):  # a size that does not divide the samples
        sizes = in_groups(method, {"group_size": values["group_size"]})
        found |= {name: sizes[name] for name in ("pairs", "pairs_per_update") if name in sizes}
    return found


def resolve(values: Mapping[str, Any], given: Collection[str], file: Settings | None = None) -> Resolved:
    """The configuration of `values`, of which those named in `given`, and the file's, were said and the others are
    `defaults`. UserError as of `RunConfig`, where a chosen setting does nothing, and where `file` is a run's that had
    other prompts."""
    chosen = {*given, *(file.chosen if file else ())}
    replaced = _of_other_method(values, given, file) if file else {}
    values = {**values, **{name: value for name, value in defaults().items() if name in replaced}}
    given = {*given, *(file.values if file else ())} - replaced.keys()
    found = {name: value for name, value in of_model(values).items() if name not in given and values[name] != value}
    if "finetune" in given and values["finetune"] != COMMON["finetune"]:
        found.pop("learning_rate", None)  # it was swept for all weights
    if "pairs" not in given:
        _check_group_size(values)
    values = {**values, **found}
    values["eval_rewards"] = _evaluated(values)
    try:
        config = RunConfig(**values)
        refuse_unused(config, chosen)
    except UnknownName:
        raise  # which names a plug-in that may be missing
    except UserError as error:
        where = f" (with the settings of {file.source})" if file and file.source else ""
        raise UserError(f"{error}{where}") from None
    if file is not None:
        _check_prompts(config, file)
    now = {name: getattr(config, name) for name in replaced}
    of_method = {name: value for name, value in now.items() if value != replaced[name]}
    return Resolved(config, {k: v for k, v in found.items() if k not in replaced}, of_method)


def _check_group_size(values: Mapping[str, Any]) -> None:
    """UserError where the study's samples can't be divided into the groups that are asked for: an epoch would have
    others."""
    size, pairs, update = values["group_size"], RunConfig.pairs, RunConfig.pairs_per_update
    if size and of_model(values) and (2 * pairs % size or 2 * update % size):
        raise UserError(
            f"--group-size is {size}, which does not divide the study's {2 * pairs} samples an epoch and {2 * update} "
            f"an update; give --pairs (groups an epoch) and --pairs-per-update too"
        )


OF_METHOD = ("label", "group_size", "shared_noise", "dense", "clip_range", "updates")
"""Settings whose default is the method's, with every model."""
OF_STUDY = ("learning_rate", "pairs", "pairs_per_update", "train_last_step")
"""And those whose default for the embedded model the study chose for each method."""


def _of_other_method(values: Mapping[str, Any], given: Collection[str], file: Settings) -> dict[str, Any]:
    """The settings of a file that belong to its method, where `values` have another method: those whose default depends
    on the method, but not what somebody chose, by a flag or in a file of a few lines."""
    before = file.values.get("method", values["method"])
    if values["method"] == before:
        return {}
    names = {*OF_METHOD} | ({*OF_STUDY} if values["model"] == EMBEDDED else set())
    if values["finetune"] != COMMON["finetune"]:
        names.discard("learning_rate")  # it was swept for all weights
    kept = {*given, *file.chosen}
    return {name: value for name, value in file.values.items() if name in names - kept}


def resolved(settings: Settings, changes: Mapping[str, Any]) -> Resolved:
    """The configuration of a file or a mapping, with `changes` in place of some settings; errors as of `resolve`."""
    return resolve(defaults() | changed(settings.values, changes), changes.keys(), settings)


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others in place of some. A method's options go with it: another method brings its own."""
    same = changes.get("method", values.get("method")) == values.get("method")
    options = {**(values.get("options", {}) if same else {}), **changes.get("options", {})}
    return {**values, **changes} | ({"options": options} if "options" in {**values, **changes} else {})


def _evaluated(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The evaluated rewards, with AUTO replaced."""
    rewards: tuple[str, ...] = tuple(values["eval_rewards"])
    if AUTO not in rewards:
        return rewards
    prompts = [prompt for split in splits(values["prompts"], values["unseen_prompts"]).values() for prompt in split]
    known = ALIGNMENT if {*prompts} <= {*read_prompts(ALL)} else ()
    place = rewards.index(AUTO)
    return (*rewards[:place], *known, *rewards[place + 1 :])


def _check_prompts(config: RunConfig, file: Settings) -> None:
    """UserError where a run's config.json names prompts, and the files of these names hold others."""
    names = ("prompts", "unseen_prompts")
    if file.prompts_sha256 is None or any(file.values.get(name) != file_name(getattr(config, name)) for name in names):
        return
    if config.to_json().get("prompts_sha256") != file.prompts_sha256:
        files = " and ".join(file.values[name] for name in names if file.values[name])
        raise UserError(
            f"{file.source}: that run had other prompts than {files} now; give its files with --prompts and "
            f"--unseen-prompts"
        )
