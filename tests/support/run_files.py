"""What the folder of a finished run holds, to compare two."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file


def contents(folder: Path) -> dict[str, object]:
    """What a run leaves that holds no clock. Of the adapter its tensors: its header's entries have no fixed order."""
    files = {name: (folder / name).read_bytes() for name in ("config.json", "eval.jsonl")}
    tensors = load_file(folder / "adapter" / "pytorch_lora_weights.safetensors")
    return files | {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
