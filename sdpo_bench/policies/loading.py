"""A model's name to its policy: the pipeline's class, as its model_index.json has it, is its family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import transformers
from huggingface_hub import hf_hub_download

from sdpo_bench.config import EMBEDDED, RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.policies.base import DTYPES, Policy
from sdpo_bench.policies.flux import FluxPolicy
from sdpo_bench.policies.stable_diffusion import StableDiffusionPolicy
from sdpo_bench.policies.stable_diffusion_3 import StableDiffusion3Policy
from sdpo_bench.policies.stable_diffusion_xl import StableDiffusionXLPolicy

EMBEDDED_FOLDER = Path(__file__).parent.parent / "assets" / "embedded_model"
INDEX = "model_index.json"
FAMILIES: dict[str, type[Policy]] = {
    family.pipeline_class.__name__: family
    for family in (StableDiffusionPolicy, StableDiffusionXLPolicy, StableDiffusion3Policy, FluxPolicy)
}


def is_local(name: str) -> bool:
    """Whether a model's or an adapter's name is a path, rather than a hub id."""
    return Path(name).is_absolute() or Path(name).exists() or name.startswith((".", "~"))


def source_of(model: str) -> str | Path:
    """The folder or hub id that diffusers loads `model` from; UserError for a folder without a pipeline."""
    if model != EMBEDDED and not is_local(model):
        return model
    folder = EMBEDDED_FOLDER if model == EMBEDDED else Path(model).expanduser()
    if not (folder / INDEX).is_file():
        raise UserError(
            f"--model {model}: {folder / INDEX} does not exist; expected a folder that a diffusers pipeline's "
            f"save_pretrained wrote, a hub id, or {EMBEDDED!r}"
        )
    return folder


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def unusable(model: str, what: str, error: Exception) -> UserError:
    """The error for a model that diffusers or the hub could not load."""
    local = model == EMBEDDED or is_local(model)
    hint = "is the folder complete?" if local else "check id, revision and network, or give a local folder"
    return UserError(f"--model {model} can't be loaded{what} ({first_line(error)}); {hint}")


def find_family(model: str, revision: str | None = None) -> type[Policy]:
    """The family of a folder, a hub id or the embedded model, by its index alone: nothing else is read."""
    source = source_of(model)
    try:
        path = source / INDEX if isinstance(source, Path) else Path(hf_hub_download(source, INDEX, revision=revision))
        name = json.loads(path.read_text())["_class_name"]
    except Exception as error:  # a dozen kinds of wrong id, missing network, damaged file
        raise unusable(model, "", error) from error
    if name not in FAMILIES:
        raise UserError(f"--model {model} is a {name}; supported are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def load_pipeline(
    model: str, revision: str | None = None, *, adapter: str | None = None, dtype: str = "float32"
) -> Any:
    """The pipeline of a folder, a hub id or the embedded model, with an adapter fused into it if given. UserError says
    what is wrong with them."""
    family = find_family(model, revision)
    options: dict[str, Any] = {"revision": revision, "dtype": DTYPES[dtype]}
    if family is StableDiffusionPolicy:
        options |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    try:
        pipeline = family.pipeline_class.from_pretrained(source_of(model), **options)  # type: ignore[attr-defined]
    except Exception as error:  # diffusers raises a dozen kinds here; each means that the model can't be used
        raise unusable(model, f" as a {family.pipeline_class.__name__}", error) from error
    pipeline.set_progress_bar_config(disable=True)
    if adapter is not None:
        fuse(pipeline, adapter, family.component)
    return pipeline


def fuse(pipeline: Any, adapter: str, component: str) -> None:
    """Adds the LoRA of `adapter` to the pipeline's weights, where it stays: it is part of the model that is trained.

    A folder, a file, or FILE or nothing in a hub's repository at a revision or not: OWNER/NAME[/FILE][@REVISION].
    """
    options: dict[str, Any] = {}
    if is_local(adapter):
        path = Path(adapter).expanduser()
        source = str(path)
        if path.is_file():
            source, options["weight_name"] = str(path.parent), path.name
    else:
        name, _, revision = adapter.partition("@")
        owner, *rest = name.split("/", 2)
        source = "/".join([owner, *rest[:1]])
        options = {"revision": revision or None} | ({"weight_name": rest[1]} if len(rest) > 1 else {})
    try:
        pipeline.load_lora_weights(source, **options)
        if not getattr(getattr(pipeline, component), "peft_config", None):
            raise ValueError(f"it holds no weights for the {component}")
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    except Exception as error:  # as above
        hint = "another model's?" if is_local(adapter) else "check id, file, revision and network, or give a local file"
        raise UserError(f"--adapter {adapter} can't be loaded ({first_line(error)}); {hint}") from error


def load_policy(config: RunConfig) -> Policy:
    """The policy that `config` names, on its device."""
    family = find_family(config.model, config.revision)
    pipeline = load_pipeline(config.model, config.revision, adapter=config.adapter, dtype=config.dtype)
    return family(pipeline, config)
