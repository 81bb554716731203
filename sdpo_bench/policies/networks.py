"""Networks and LoRAs from their files. Every tensor's name and shape is compared with the model's own: diffusers and
transformers fill what a file lacks with random numbers, and pass over what they do not know."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.utils import convert_unet_state_dict_to_peft
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor

from sdpo_bench.errors import UserError

STEM = r"(diffusion_pytorch_model|pytorch_model|model)"
SHARD = r"-\d{5}-of-\d{5}"
WEIGHTS = {
    None: re.compile(rf"{STEM}({SHARD})?\.(safetensors|bin)"),
    "fp16": re.compile(rf"{STEM}(\.fp16({SHARD})?|{SHARD}\.fp16)\.(safetensors|bin)"),
}
"""Names of weight files by variant, the preferred one first."""
OTHER_PARTS = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale", "lm_head.")
"""Parts of a whole CLIP or T5 in some published text encoders' files. The text encoder does not use them."""
STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def first_line(error: Exception) -> str:
    """The first line of an error, and the second one if the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def network_class(entry: Any) -> type | None:
    """The class of a network by its entry in model_index.json; None if it has no weights or is left out."""
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
        return None
    library, name = entry
    kind = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), name, None)
    networks = (diffusers.ModelMixin, transformers.PreTrainedModel)
    return kind if isinstance(kind, type) and issubclass(kind, networks) else None


def weight_files(folder: Path) -> tuple[str | None, list[Path]]:
    """The variant that a network's folder has, and its files: the plain variant if there is one, otherwise fp16.
    UserError for a folder without weights."""
    present = sorted(folder.glob("*"))
    for variant, pattern in WEIGHTS.items():
        files = [path for path in present if pattern.fullmatch(path.name)]
        # Both formats side by side hold the same, and the libraries take safetensors.
        safe = [path for path in files if path.suffix == ".safetensors"]
        if files:
            return variant, safe or files
    raise UserError(f"{folder.name}/ has no weights, such as diffusion_pytorch_model.safetensors, model.safetensors")


def stored_dtype(file: Path) -> torch.dtype | None:
    """The dtype of the first tensor in a safetensors file."""
    if file.suffix != ".safetensors":
        return None
    with safe_open(file, "pt") as content:
        name = next(iter(content.keys()))
        return STORED.get(content.get_slice(name).get_dtype())


def load_network(folder: Path, kind: Any, dtype: torch.dtype | None) -> Any:
    """Loads the network of a pipeline's subfolder in `dtype`. With None it keeps the file's dtype and reads only the
    names and shapes of tensors; the rest is mapped into memory. UserError names the file and the first tensor that is
    missing, unknown to the network, or of another shape."""
    variant, files = weight_files(folder)
    options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    if variant is not None:
        options["variant"] = variant
    part = f"{folder.name}/{files[0].name}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    try:
        dtype = stored_dtype(files[0]) if dtype is None else dtype
        options["dtype" if issubclass(kind, transformers.PreTrainedModel) else "torch_dtype"] = dtype
        network, info = kind.from_pretrained(folder, **options)
    except Exception as error:  # each library has a dozen kinds for missing, truncated and nonsensical files
        raise UserError(f"{part} can't be loaded ({first_line(error)})") from error
    surplus = [name for name in info["unexpected_keys"] if not name.startswith(OTHER_PARTS)]
    # Of shards diffusers compares the index, and leaves without contents what it promises and they lack.
    tensors = (*network.named_parameters(), *network.named_buffers())
    empty = {name for name, tensor in tensors if tensor.is_meta} - {name for name, *_ in info["mismatched_keys"]}
    problems = (
        [f"lacks the tensor {name}" for name in sorted({*info["missing_keys"]} | empty)]
        + [f"has {name} of shape {list(a)}, not {list(b)}" for name, a, b in sorted(info["mismatched_keys"])]
        + [f"has the tensor {name}, which a {kind.__name__} does not" for name in sorted(surplus)]
    )
    if problems:
        raise UserError(f"{part} {listed(problems)}")
    return network


def listed(problems: list[str]) -> str:
    return problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def load_lora(pipeline: Any, component: str, source: Any, name: str, **options: Any) -> None:
    """Loads a LoRA of any form that diffusers converts (its own, its older ones, kohya's) under `name`, with the ranks
    and alphas of the file. `source` and `options` are those of `lora_state_dict`.

    Raises ValueError for a file that has nothing for the denoiser, or that is of another model than the pipeline's;
    and what diffusers raises.
    """
    network = getattr(pipeline, component)
    convert = dict(options)
    if isinstance(pipeline, diffusers.StableDiffusionXLPipeline):
        convert["unet_config"] = network.config  # for the names of blocks in kohya's files
    whole, *_ = pipeline.lora_state_dict(source, return_lora_metadata=True, **convert)
    if not any(key.startswith(tuple(f"{part}." for part in pipeline.components)) for key in whole):
        # The oldest form, of the denoiser alone.
        source = whole = {f"{component}.{key}": value for key, value in whole.items()}
    prefix = f"{component}."
    state = {key.removeprefix(prefix): value for key, value in whole.items() if key.startswith(prefix)}
    if not state:
        raise ValueError(f"it holds no weights for the {component}, but for {next(iter(whole), 'nothing')}")
    if not any("lora_A" in key for key in state):
        state = convert_unet_state_dict_to_peft(state)
    if problems := list(misfits(network, state)):
        raise ValueError(listed(problems))
    pipeline.load_lora_weights(source, adapter_name=name, **options)
    loaded = get_peft_model_state_dict(network, adapter_name=name)
    if different := sorted(loaded.keys() ^ state.keys()):
        raise ValueError(f"{different[0]} was not loaded as it stands in the file")


def misfits(network: Any, state: dict[str, Tensor]) -> Iterator[str]:
    """A text that names the tensors of a LoRA in peft's form that do not fit the network's layers."""
    layers = dict(network.named_modules())
    for key, value in state.items():
        path, _, part = key.partition(".lora_")
        weight = getattr(layers.get(path), "weight", None)
        if not part:
            yield f"it has {key}, which is no LoRA's"
        elif weight is None:
            yield f"another model's: it has {key}, and this one no layer {path}"
        elif part in ("A.weight", "B.weight"):
            # A is [rank, in, ...] and B [out, rank, ...], for a weight [out, in, ...].
            a, b, w = list(value.shape), list(weight.shape), slice(1, None) if part[0] == "A" else slice(0, 1)
            other = state.get(f"{path}.lora_{'B' if part[0] == 'A' else 'A'}.weight")
            if len(a) != len(b) or a[w] != b[w]:
                yield f"another model's: {key} is of shape {a}, for a layer of shape {b}"
            elif other is None or other.ndim != len(a) or (part[0] == "A" and other.shape[1] != a[0]):
                yield f"{key} is of shape {a}, and its other half {'missing' if other is None else list(other.shape)}"
