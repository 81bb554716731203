"""Published weights: finds, fetches and reads them, and never runs code in them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import torch
from torch import Tensor, nn

from sdpo_bench.errors import UserError
from sdpo_bench.records.files import share

FOLDER = "SDPO_BENCH_WEIGHTS"
"""Environment variable: a folder with files fetched beforehand, as REPOSITORY/FILE. What is there is not downloaded."""
CACHE = "SDPO_BENCH_CACHE"
"""Environment variable: where converted weights go; default ~/.cache/sdpo-bench."""


class MissingWeights(UserError):
    """A file that is not here and cannot be fetched."""


@dataclass(frozen=True)
class Source:
    """A repository at a pinned revision, and the SHA-256 of its files whose digest is known."""

    repo: str
    revision: str
    sha256: Mapping[str, str] = field(default_factory=dict)
    host: Literal["hub", "github"] = "hub"

    def __str__(self) -> str:
        return f"{self.repo} (local copy)" if self.folder else f"{self.repo}@{self.revision}"

    @property
    def folder(self) -> Path | None:
        """The local copy, if there is one."""
        root = os.environ.get(FOLDER)
        folder = Path(root).expanduser() / self.repo if root else None
        return folder if folder and folder.is_dir() else None

    def file(self, name: str) -> Path:
        """The path of a file: from the local copy, the cache, or a download. MissingWeights if all fail."""
        if self.folder:
            if (self.folder / name).is_file():
                return self.folder / name
            raise MissingWeights(f"{self.folder} lacks {name}; {self._remedy(name)}")
        try:
            return self._download(name)
        except Exception as error:  # the hub raises a dozen kinds: no network, no such revision, a full disk
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise MissingWeights(
                f"{name} of {self.repo} at revision {self.revision} is not here and can't be fetched ({reason}); "
                f"{self._remedy(name)}"
            ) from error

    def _download(self, name: str) -> Path:
        import huggingface_hub
        import huggingface_hub.constants

        if self.host == "hub":
            return Path(huggingface_hub.hf_hub_download(self.repo, name, revision=self.revision))
        path = cache_folder() / self.repo / self.revision / name
        if not path.is_file():
            if huggingface_hub.constants.HF_HUB_OFFLINE:
                raise OSError("HF_HUB_OFFLINE is set")
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(self._url(name), str(path), self.sha256.get(name), progress=False)
        return path

    def _url(self, name: str) -> str:
        return f"https://github.com/{self.repo}/raw/{self.revision}/{quote(name)}"

    def _remedy(self, name: str) -> str:
        if self.host == "hub":
            fetch = f"hf download {self.repo} {name} --revision {self.revision}"
            local = f"{fetch} --local-dir FOLDER/{self.repo}"
        else:
            fetch = local = f"curl -L --create-dirs -o FOLDER/{self.repo}/{name} {self._url(name)}"
        return f"with a network: {fetch}; for a machine without: {local}, copy FOLDER there, set {FOLDER}=FOLDER"


def cache_folder() -> Path:
    return Path(os.environ.get(CACHE) or "~/.cache/sdpo-bench").expanduser()


def read(source: Source, name: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file by name, and its SHA-256. UserError for a damaged, unsafe or unexpected file."""
    path = source.file(name)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    expected = source.sha256.get(name, digest)
    if digest != expected:
        raise UserError(
            f"{path} has SHA-256 {digest}, not {expected}: damaged or another file; delete it and fetch it again"
        )
    if path.suffix == ".safetensors":
        return _load(path), digest
    # Pickled files are read once and kept as safetensors, under their digest: another file gets another name. The
    # digest of what was made is kept beside it, so that a damaged or exchanged copy is made anew.
    converted = cache_folder() / f"{digest}.safetensors"
    if not _intact(converted):
        _convert(path, converted)
    return _load(converted), digest


def _digest_file(converted: Path) -> Path:
    return converted.with_suffix(".sha256")


def _intact(converted: Path) -> bool:
    """Whether the converted file exists with the digest that it had when it was made."""
    if not converted.is_file():
        return False
    with contextlib.suppress(OSError), open(converted, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() == _digest_file(converted).read_text().strip():
            return True
    print(f"warning: {converted} was changed after it was made; it is converted again", file=sys.stderr)
    return False


def _load(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); delete it and fetch it again") from error


def _convert(path: Path, converted: Path) -> None:
    from safetensors.torch import save_file

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)  # refuses whatever would run code
    except (OSError, MemoryError):
        raise
    except Exception as error:  # what a damaged or forbidden pickle makes of it is anything from IndexError on
        raise UserError(
            f"{path} is refused ({type(error).__name__}): it is damaged, or holds more than tensors, and no code from "
            f"such a file is ever run"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is refused: it does not hold tensors by name")
    converted.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=converted.parent, prefix=".convert-") as folder:
        temporary = Path(folder) / converted.name
        save_file({key: value.contiguous() for key, value in state.items()}, temporary)
        with open(temporary, "rb") as file:
            (Path(folder) / "digest").write_text(hashlib.file_digest(file, "sha256").hexdigest() + "\n")
        share(Path(folder))
        os.replace(temporary, converted)
        os.replace(Path(folder) / "digest", _digest_file(converted))


def build(
    cls: Any, config: Any, state: Mapping[str, Tensor], *, device: torch.device, dtype: torch.dtype, **options: Any
) -> Any:
    """A network of transformers with exactly these weights, frozen. UserError unless names and shapes fit exactly:
    transformers would only warn and score with random weights."""
    from transformers.utils import logging

    with torch.device("meta"):
        expected = {key: value.shape for key, value in cls(config, **options).state_dict().items()}
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}  # 0, 1, 2, ...: not stored
    _check(cls.__name__, {key: value.shape for key, value in state.items()}, expected)
    logging.disable_progress_bar()
    model = cls.from_pretrained(None, config=config, state_dict=state, dtype=dtype, **options)
    return model.requires_grad_(False).eval().to(device)


def mlp(state: Mapping[str, Tensor], device: torch.device) -> nn.Sequential:
    """The head that Aesthetic and ImageReward share: five linear layers without activations, in float32. Its layers are
    numbered as if the dropouts of its training were between them."""
    first = state["layers.0.weight"].shape[1] if "layers.0.weight" in state else 768
    head = mlp_of(first)
    order = {
        f"layers.{stored}.{kind}": f"{own}.{kind}"
        for own, stored in enumerate((0, 2, 4, 6, 7))
        for kind in ("weight", "bias")
    }
    own = head.state_dict()
    _check("head", {k: v.shape for k, v in state.items()}, {k: own[order[k]].shape for k in order})
    head.load_state_dict({order[key]: value.float() for key, value in state.items()}, assign=True)
    return head.requires_grad_(False).to(device)


def mlp_of(first: int) -> nn.Sequential:
    """The head, without weights, for embeddings of that width."""
    return nn.Sequential(*(nn.Linear(*pair, device="meta") for pair in pairwise((first, 1024, 128, 64, 16, 1))))


def _check(what: str, found: Mapping[str, torch.Size], expected: Mapping[str, torch.Size]) -> None:
    wrong = [key for key in sorted({*found, *expected}) if found.get(key) != expected.get(key)]
    if wrong:
        key = wrong[0]
        raise UserError(
            f"the weights are of another model: {len(wrong)} tensors of {what} differ, among them {key} "
            f"(found {_shape(found.get(key))}, expected {_shape(expected.get(key))})"
        )


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(tuple(shape))
