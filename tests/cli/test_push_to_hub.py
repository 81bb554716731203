"""`train --push-to-hub`, with a made-up hub; and what a run leaves for others: a card, and files that they can read."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from test_cli import TINY_ARGUMENTS, refused, run

from sdpo_bench.policies import load_pipeline

__all__ = ["run"]  # a fixture
REPOSITORY = "someone/tiny-lora"


class Hub:
    """Stands for HfApi: keeps what is asked of it, and refuses what it is told to."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.uploads: list[dict[str, bytes]] = []
        self.refuses = ""

    def create_repo(self, repo_id: str, *, exist_ok: bool) -> None:
        if self.refuses == "create":
            raise OSError("403 Forbidden\nmore lines")
        assert exist_ok
        self.made.append(repo_id)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
        if self.refuses == "upload":
            raise OSError("the network is gone")
        assert repo_id == self.made[-1]
        assert commit_message.startswith("Weights of sdpo-jpeg-compressibility-k3-s0-")
        self.uploads.append({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
        return SimpleNamespace(repo_url=f"https://huggingface.co/{repo_id}")


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    return hub


@pytest.fixture
def usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_run_is_uploaded_with_its_card(run, hub, tmp_path, tiny_model, usual_umask):
    command = ["train", "--model", tiny_model, *TINY_ARGUMENTS, "--push-to-hub", REPOSITORY]
    hub.refuses = "upload"
    code, _, err = run(*command)
    assert code == 2
    assert "not uploaded (the network is gone); the weights are in" in err
    assert "--resume" in err
    (folder,) = (tmp_path / "runs" / "train" / "raw").iterdir()
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o644}, modes

    hub.refuses = ""
    code, out, _ = run(*command, "--resume")
    assert code == 0
    assert out.endswith(f"uploaded: https://huggingface.co/{REPOSITORY}\n")
    (files,) = hub.uploads
    assert files.keys() == {"README.md", "pytorch_lora_weights.safetensors"}
    card = ModelCard.load(folder / "adapter" / "README.md")
    assert card.content.encode() == files["README.md"]
    assert {"lora", "sdpo"} <= {*card.data.tags}
    assert "| colourfulness | unseen | 2 | 5 x 1 |" in card.text
    load_pipeline(str(tiny_model)).load_lora_weights(folder / "adapter")  # the card does not disturb it


@pytest.mark.parametrize(("name", "word"), [("tiny-lora", "OWNER/NAME"), ("a/b/c", "a/b/c"), ("a/b..c", "Cannot have")])
def test_a_bad_name_is_refused_before_training(run, hub, tmp_path, tiny_model, name, word):
    assert word in refused(run("train", "--model", tiny_model, *TINY_ARGUMENTS, "--push-to-hub", name), tmp_path)
    assert not hub.made


def test_without_a_token_nothing_begins(run, hub, tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    error = refused(run("train", "--model", tiny_model, *TINY_ARGUMENTS, "--push-to-hub", REPOSITORY), tmp_path)
    assert "hf auth login" in error
    assert "HF_TOKEN" in error


def test_a_hub_that_refuses_and_nothing_to_upload(run, hub, tmp_path, tiny_model):
    hub.refuses = "create"
    command = ["train", "--model", tiny_model, *TINY_ARGUMENTS, "--push-to-hub", REPOSITORY]
    assert "refuses the repository (403 Forbidden)" in refused(run(*command), tmp_path)
    assert "--epochs 0" in refused(run(*command, "--epochs", "0"), tmp_path)
