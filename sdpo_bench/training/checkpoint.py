"""Checkpoints: everything that a run needs to continue as if it had never stopped.

Every random number derives from (seed, epoch, pair), so a checkpoint contains no state of a generator.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from sdpo_bench.errors import UserError
from sdpo_bench.records.files import write_atomic

FORMAT = 2


DIGEST = hashlib.sha256().digest_size


KEYS = {"format", "run_id", "epoch", "weights", "optimiser", "normaliser", "counts", "seconds", "evaluated"}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replaces the checkpoint, completely or not at all. The file ends with a SHA-256 of all before it, because torch
    would read a file with changed bits."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT} | state, buffer)
    buffer.write(hashlib.sha256(buffer.getbuffer()).digest())
    write_atomic(path, buffer.getbuffer())


def copied(state: Any) -> Any:
    """A copy of a state's tensors in the host's memory; dicts and lists may be nested."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    return [copied(value) for value in state] if isinstance(state, list) else state


def load_checkpoint(path: Path, run_id: str) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote. UserError for a file that is corrupt or belongs to another run."""
    remedy = "delete it and continue with --resume to train this run from its beginning"
    try:
        content = memoryview(path.read_bytes())
        if hashlib.sha256(content[:-DIGEST]).digest() != content[-DIGEST:]:
            raise ValueError("its digest differs")
        state = torch.load(io.BytesIO(content[:-DIGEST]), map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint {path} does not exist; all machines of a run must see its folder") from error
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        raise UserError(f"checkpoint {path} can't be read (truncated or damaged?); {remedy}") from error
    if not isinstance(state, dict) or not state.keys() >= KEYS or state["format"] != FORMAT:
        raise UserError(f"checkpoint {path} is not of this version; {remedy}")
    if state["run_id"] != run_id:
        raise UserError(f"checkpoint {path} belongs to run {state['run_id']}, not to {run_id}; {remedy}")
    return state
