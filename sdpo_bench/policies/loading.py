"""Loads a policy from a model's name. The pipeline's class in model_index.json determines the family."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub import hf_hub_download

from sdpo_bench.catalogue import Registry, classes
from sdpo_bench.config import EMBEDDED, RunConfig
from sdpo_bench.errors import UnknownName, UserError
from sdpo_bench.policies.base import DTYPES, Policy
from sdpo_bench.policies.networks import first_line, load_lora, load_network, network_class, weight_files
from sdpo_bench.policies.stable_diffusion import StableDiffusionPolicy

EMBEDDED_FOLDER = Path(__file__).parent.parent / "assets" / "embedded_model"
INDEX = "model_index.json"
FAMILIES: Registry[type[Policy]] = Registry(
    lambda: {
        family.pipeline_class.__name__: family
        for family in classes("sdpo_bench.policies", [str(Path(__file__).parent)], Policy, own="pipeline_class")
    }
)

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_local(name: str) -> bool:
    """Whether a model's name is a path. A hub id is OWNER/NAME and does not exist in the file system."""
    return not HUB_ID.fullmatch(name) or Path(name).exists()


def is_local_adapter(name: str) -> bool:
    """Whether an adapter's name is a path, not OWNER/NAME[/FILE][@REVISION]."""
    owner, _, rest = name.partition("@")[0].partition("/")
    repository, _, file = rest.partition("/")
    on_hub = HUB_ID.fullmatch(f"{owner}/{repository}") and (not file or Path(file).suffix in (".safetensors", ".bin"))
    # A file in a folder that is here, mistyped, would otherwise be asked of the hub.
    return not on_hub or Path(name).exists() or bool(file and Path(owner).is_dir())


def source_of(model: str) -> str | Path:
    """The folder or hub id that diffusers loads `model` from; UserError for a folder without a pipeline."""
    if model != EMBEDDED and not is_local(model):
        return model
    folder = EMBEDDED_FOLDER if model == EMBEDDED else Path(model).expanduser()
    if not (folder / INDEX).is_file():
        raise UserError(
            f"--model {model}: {folder / INDEX} does not exist; expected a folder that a diffusers pipeline's "
            f"save_pretrained wrote, a hub id (OWNER/NAME), or {EMBEDDED!r}"
        )
    return folder


def unusable(model: str, what: str, error: Exception) -> UserError:
    """The error for a model that diffusers or the hub could not load."""
    local = model == EMBEDDED or is_local(model)
    hint = "check that the folder is complete" if local else "check id, revision and network, or give a local folder"
    return UserError(f"--model {model} can't be loaded{what} ({first_line(error)}); {hint}")


def read_index(model: str, revision: str | None = None) -> dict[str, Any]:
    """model_index.json of a folder, a hub id or the embedded model."""
    source = source_of(model)
    try:
        path = source / INDEX if isinstance(source, Path) else Path(hf_hub_download(source, INDEX, revision=revision))
        index = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(index, dict):
            raise ValueError(f"{INDEX} is not a JSON object")
    except Exception as error:  # a dozen kinds of wrong id, missing network, damaged file
        raise unusable(model, "", error) from error
    return index


def find_family(model: str, revision: str | None = None) -> type[Policy]:
    """The family of a folder, a hub id or the embedded model. Reads only its index."""
    name = read_index(model, revision).get("_class_name")
    if not isinstance(name, str):
        known = ", ".join(FAMILIES)
        raise UserError(f"--model {model}: _class_name in {INDEX} is {json.dumps(name)}; expected one of {known}")
    if name not in FAMILIES:
        raise UnknownName(name, f"--model {model} is a {name}; supported are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def without_checker(family: type[Policy]) -> dict[str, Any]:
    """Arguments of a pipeline that leave out its safety checker."""
    if family is not StableDiffusionPolicy:
        return {}
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def network_classes(model: str, index: dict[str, Any], family: type[Policy]) -> dict[str, type]:
    """The class of each network of a pipeline, by the name of its subfolder."""
    classes = {name: network_class(entry) for name, entry in index.items()}
    found = {name: kind for name, kind in classes.items() if kind is not None}
    for name in (family.component, "vae", "text_encoder"):
        if name not in found:
            raise UserError(f"--model {model}: {INDEX} names no {name} of a class that diffusers or transformers has")
    return found


def fetch(source: str, revision: str | None, family: type[Policy], networks: Iterable[str]) -> Path:
    """The folder in the hub's cache into which a model is downloaded; the fp16 variant for networks without other
    weights."""
    download = partial(family.pipeline_class.download, source, revision=revision)  # type: ignore[attr-defined]
    folder = Path(download(**without_checker(family)))
    try:
        for name in networks:
            weight_files(folder / name)
    except UserError:
        return Path(download(variant="fp16", **without_checker(family)))
    return folder


def build_pipeline(model: str, revision: str | None, dtype: torch.dtype | None) -> Any:
    """Builds the pipeline of a model with networks from `load_network`. UserError says what is wrong with the model."""
    family, index, source = find_family(model, revision), read_index(model, revision), source_of(model)
    classes = network_classes(model, index, family)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    try:
        folder = source if isinstance(source, Path) else fetch(source, revision, family, classes)
        networks = {name: load_network(folder / name, kind, dtype) for name, kind in classes.items()}
        pipeline = family.pipeline_class.from_pretrained(  # type: ignore[attr-defined]
            folder, **networks, **without_checker(family)
        )
    except UserError as error:
        raise UserError(f"--model {model}: {error}; check that the folder is complete and of one model") from error
    except Exception as error:  # diffusers raises a dozen kinds here; each means that the model can't be used
        raise unusable(model, f" as a {family.pipeline_class.__name__}", error) from error
    pipeline.register_to_config(_name_or_path=str(source))  # a hub id, where it is one, in place of the cache's folder
    return pipeline


def embedded_pipeline() -> Any:
    """The embedded model as a diffusers pipeline, in float32 on the CPU.

    `embedded_pipeline()("cat", num_inference_steps=4, guidance_scale=1).images[0]` is a picture of 32 x 32 pixels.
    diffusers' own defaults, 50 steps with guidance, do not suit the model. Its prompts are the names in
    sdpo_bench/assets/prompts.txt. The LoRA of a run loads with `load_lora_weights(FOLDER)`.
    """
    return build_pipeline(EMBEDDED, None, torch.float32)


def check_files(model: str, revision: str | None = None) -> None:
    """UserError if `load_pipeline` would refuse a folder. Compares its configuration and the names and shapes of its
    tensors without reading weights. For a hub id nothing is fetched or checked."""
    if isinstance(source_of(model), Path):
        build_pipeline(model, revision, None)


def load_pipeline(
    model: str, revision: str | None = None, *, adapter: str | None = None, dtype: str = "float32"
) -> Any:
    """Loads the pipeline of a folder, a hub id or the embedded model, and fuses an adapter into it if given. UserError
    says what is wrong with them."""
    pipeline = build_pipeline(model, revision, DTYPES[dtype])
    pipeline.set_progress_bar_config(disable=True)
    if adapter is not None:
        fuse(pipeline, adapter, find_family(model, revision).component)
    return pipeline


def fuse(pipeline: Any, adapter: str, component: str) -> None:
    """Adds the LoRA of `adapter` to the pipeline's weights permanently: it becomes part of the model that is trained.

    A folder, a file, or FILE or nothing in a hub's repository at a revision or not: OWNER/NAME[/FILE][@REVISION].
    """
    options: dict[str, Any] = {}
    if is_local_adapter(adapter):
        path = Path(adapter).expanduser()
        if not path.exists():
            raise UserError(
                f"--adapter {adapter} does not exist; expected a folder, a file, or "
                f"OWNER/NAME[/FILE][@REVISION] on the hub"
            )
        source = str(path)
        if path.is_file():
            source, options["weight_name"] = str(path.parent), path.name
    else:
        name, _, revision = adapter.partition("@")
        owner, *rest = name.split("/", 2)
        source = "/".join([owner, *rest[:1]])
        options = {"revision": revision or None} | ({"weight_name": rest[1]} if len(rest) > 1 else {})
    try:
        load_lora(pipeline, component, source, "frozen", **options)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    except Exception as error:  # as above
        hint = (
            "check that it is complete and for this model"
            if is_local_adapter(adapter)
            else ("check id, file, revision and network, or give a local file")
        )
        raise UserError(f"--adapter {adapter} can't be loaded ({first_line(error)}); {hint}") from error


def load_policy(config: RunConfig) -> Policy:
    """The policy that `config` names, on its device."""
    family = find_family(config.model, config.revision)
    pipeline = load_pipeline(config.model, config.revision, adapter=config.adapter, dtype=config.dtype)
    return family(pipeline, config)
