"""Uploads the weights of a run to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from sdpo_bench.errors import UserError
from sdpo_bench.policies.networks import first_line


def prepare(repository: str) -> None:
    """Makes the repository OWNER/NAME if there is none, before training: whatever is wrong with it is found now.

    Like diffusers' training scripts it leaves to the owner's settings whether a new repository is private (by default
    it is public). UserError for a bad name, without a token, and for whatever the hub refuses.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--push-to-hub {repository}: {first_line(error)}") from error
    if repository.count("/") != 1:
        raise UserError(f"--push-to-hub {repository}: expected OWNER/NAME, the account and the repository's name")
    if huggingface_hub.get_token() is None:
        raise UserError(
            f"--push-to-hub {repository}: no token of the hub; run `hf auth login`, or set HF_TOKEN to a token "
            f"that may write"
        )
    try:
        huggingface_hub.HfApi().create_repo(repository, exist_ok=True)
    except Exception as error:  # of the hub, the network and their libraries
        raise UserError(
            f"--push-to-hub {repository}: the hub refuses the repository ({first_line(error)}); check the network, the "
            f"owner's name, and that the token may write there"
        ) from error


def upload(repository: str, weights: Path, message: str) -> str:
    """Uploads a folder with weights and their model card to a repository that `prepare` made. Returns its address.

    UserError if that fails; the weights stay where they are.
    """
    try:
        done = huggingface_hub.HfApi().upload_folder(repo_id=repository, folder_path=weights, commit_message=message)
    except Exception as error:
        raise UserError(
            f"--push-to-hub {repository}: not uploaded ({first_line(error)}); the weights are in {weights}. To try "
            f"again, repeat the command with --resume"
        ) from error
    return str(done.repo_url)
