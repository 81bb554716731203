"""Identifies the weights from which a run was made: SHA-256 of the files of its model and its frozen adapter."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.policies.loading import INDEX, is_local_adapter, source_of
from sdpo_bench.policies.networks import weight_files
from sdpo_bench.records.lookup import recorded_weights


def other_weights(folder: Path, words: list[str]) -> UserError:
    """The error for a run with other weights under the same names; `words` name the differences."""
    return UserError(
        f"{folder} was begun with other weights: {', '.join(words)}; use those, or train another run with another "
        f"--label or --out"
    )


ADAPTERS = (".safetensors", ".bin")


SETTINGS = (".json", ".txt", ".model")  # networks' and schedulers' configurations, tokenizers


UNUSED = ("safety_checker", "feature_extractor")


Weights = dict[str, dict[str, str | None]]
"""For "model" and "adapter" the digests of files by their names, or a hub's "commit", None where it is not known."""


@functools.lru_cache(maxsize=256)  # a worker of `reproduce` makes many runs of one model
def _sha256(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digests(paths: list[Path], root: Path) -> dict[str, str | None]:
    found = {path.relative_to(root).as_posix(): (path, path.stat()) for path in sorted(paths)}
    return {name: _sha256(path, stat.st_size, stat.st_mtime_ns) for name, (path, stat) in found.items()}


def loaded(folder: Path) -> list[Path]:
    """The loaded files of a component's folder: a network's weights and configuration, or a tokenizer's or scheduler's
    files."""
    settings = [path for path in folder.iterdir() if path.suffix in SETTINGS and not path.name.endswith(".index.json")]
    try:
        return settings + weight_files(folder)[1]
    except UserError:  # no network
        return settings


def _commit(repository: str, revision: str | None) -> dict[str, str | None]:
    """The commit of the hub's repository in the cache, for a branch's name or none; a commit is returned as it is. None
    if the cache does not say."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="model"))
    reference = folder / "refs" / (revision or "main")
    if reference.is_file():
        return {"commit": reference.read_text().strip() or None}
    return {"commit": revision if revision and re.fullmatch("[0-9a-f]{40}", revision) else None}


def weights_of(config: RunConfig, local: bool = False) -> Weights:
    """For "model", and "adapter" if there is one: the SHA-256 of each loaded file, by its name in the folder, or the
    "commit" of a hub's repository. Call it after loading, which downloads the hub's files. With `local` only local
    files are read, at any time."""
    source = source_of(config.model)
    found: Weights = {}
    if isinstance(source, Path):
        index = json.loads((source / INDEX).read_text(encoding="utf-8"))
        parts = [source / name for name in index if name not in UNUSED and (source / name).is_dir()]
        files = [source / INDEX, *(path for part in parts for path in loaded(part))]
        found["model"] = _digests(files, source)
    elif not local:
        found["model"] = _commit(source, config.revision)
    if config.adapter is not None:
        path = Path(config.adapter).expanduser()
        if is_local_adapter(config.adapter):
            if not path.exists():
                raise UserError(f"--adapter {config.adapter}: there is no such file or folder")
            files = [path] if path.is_file() else [file for file in path.iterdir() if file.suffix in ADAPTERS]
            found["adapter"] = _digests(files, path if path.is_dir() else path.parent)
        elif not local:
            name, _, revision = config.adapter.partition("@")
            found["adapter"] = _commit("/".join(name.split("/")[:2]), revision or None)
    return found


def _unknown(part: Mapping[str, str | None]) -> bool:
    """Whether this is a hub's repository whose commit was not known; earlier versions wrote "None"."""
    return "commit" in part and part["commit"] in (None, "None")


def changed(stored: Mapping[str, Mapping[str, str | None]], new: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    """Texts that name the files or commits in which two `weights_of` differ. A commit that is not known differs from
    none."""
    words = []
    for part in sorted(stored.keys() | new.keys()):
        one, other = stored.get(part, {}), new.get(part, {})
        if _unknown(one) or _unknown(other):
            continue
        for name in sorted(one.keys() | other.keys()):
            if one.get(name) != other.get(name):
                digests = [(side.get(name) or "none")[:12] for side in (one, other)]
                words.append(f"{part}'s {name} (stored {digests[0]}, new {digests[1]})")
    return words


def replaced(config: RunConfig, folder: Path) -> list[str]:
    """Texts that name local files of the model and the adapter whose content changed since the run in `folder` was
    made. Reads no network: files on the hub are not checked. Also empty for a run of a version that recorded no
    digests."""
    stored = recorded_weights(folder)
    found = weights_of(config, local=True) if stored else {}
    return changed({part: digests for part, digests in stored.items() if part in found}, found)
