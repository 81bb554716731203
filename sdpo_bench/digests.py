"""Which weights a run was made from: SHA-256 of the files of its model and its frozen adapter."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

from sdpo_bench.config import RunConfig
from sdpo_bench.policies.loading import INDEX, source_of

WEIGHTS = (".safetensors", ".bin")
SETTINGS = (".json", ".txt", ".model")  # networks' and schedulers' configurations, tokenizers
UNUSED = ("safety_checker", "feature_extractor")


@functools.lru_cache(maxsize=256)  # a worker of `reproduce` makes many runs of one model
def _sha256(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digests(paths: list[Path], root: Path) -> dict[str, str]:
    found = {path.relative_to(root).as_posix(): (path, path.stat()) for path in sorted(paths)}
    return {name: _sha256(path, stat.st_size, stat.st_mtime_ns) for name, (path, stat) in found.items()}


def loaded(folder: Path) -> list[Path]:
    """The files of a component's folder that are loaded: of its weights no variant, such as fp16, where there are plain
    ones, and none pickled where there are safetensors."""
    files = [path for path in folder.iterdir() if path.is_file()]
    weights = [path for path in files if path.suffix in WEIGHTS]
    for wanted in (lambda path: path.suffix == WEIGHTS[0], lambda path: "." not in path.stem):
        weights = [path for path in weights if wanted(path)] or weights
    settings = [path for path in files if path.suffix in SETTINGS and not path.name.endswith(".index.json")]
    return weights + settings


def _commit(repository: str, revision: str | None) -> dict[str, str]:
    """The commit of the hub's repository that is in the cache, for a branch's name or none; a commit is itself."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="model"))
    reference = folder / "refs" / (revision or "main")
    return {"commit": reference.read_text().strip() if reference.is_file() else str(revision)}


def weights_of(config: RunConfig) -> dict[str, dict[str, str]]:
    """For "model", and "adapter" where there is one: the SHA-256 of each file that is loaded, by its name in the
    folder, or the "commit" of a hub's repository. After loading, which brings the hub's files here."""
    source = source_of(config.model)
    if isinstance(source, Path):
        index = json.loads((source / INDEX).read_text(encoding="utf-8"))
        parts = [source / name for name in index if name not in UNUSED and (source / name).is_dir()]
        files = [source / INDEX, *(path for part in parts for path in loaded(part))]
        found = {"model": _digests(files, source)}
    else:
        found = {"model": _commit(source, config.revision)}
    if config.adapter is not None:
        path = Path(config.adapter).expanduser()
        if path.is_file():
            found["adapter"] = _digests([path], path.parent)
        elif path.is_dir():
            found["adapter"] = _digests(loaded(path), path)
        else:
            name, _, revision = config.adapter.partition("@")
            found["adapter"] = _commit("/".join(name.split("/")[:2]), revision or None)
    return found


def changed(stored: dict[str, dict[str, str]], new: dict[str, dict[str, str]]) -> list[str]:
    """In words, which files or commits of two `weights_of` differ."""
    words = []
    for part in sorted(stored.keys() | new.keys()):
        one, other = stored.get(part, {}), new.get(part, {})
        for name in sorted(one.keys() | other.keys()):
            if one.get(name) != other.get(name):
                digests = [(side.get(name) or "none")[:12] for side in (one, other)]
                words.append(f"{part}'s {name} (stored {digests[0]}, new {digests[1]})")
    return words
