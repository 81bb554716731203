"""Fixtures that several test files share."""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch: results and timings of the tests assume one thread
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch

torch.set_num_threads(1)

# The Triton kernels' tests need a mode of Triton's, so each mode has a process of its own. `nox -s kernels` starts them
# with SDPO_KERNELS_TESTS: `interpreter` (and TRITON_INTERPRET=1), `compiler` or `gpu`.
KERNELS = {
    "interpreter": {"test_kernels.py"},
    "compiler": {"test_compiled.py"},
    "gpu": {"test_kernels.py", "test_gpu.py"},
}
_chosen = KERNELS.get(os.environ.get("SDPO_KERNELS_TESTS", ""), set())
collect_ignore = [f"kernels/{name}" for name in sorted(set.union(*KERNELS.values()) - _chosen)]

# Begun first, so that at the end of the whole suite no process waits for the other.
LONGEST = (
    "test_gpu_campaign.py",
    "test_reproduce.py",
    "test_sd_turbo.py",
    "test_trainer.py",
    "test_distributed.py",
    "test_training_step_benchmark.py",
    "test_launchers.py",
    "test_reliability.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))


def write_tokenizer(folder: Path, length: int = 16) -> None:
    """A CLIP tokenizer without merges: characters, and characters that end a word. Loaded from its folder, since
    CLIPTokenizer(vocab_file=..., merges_file=...) makes one of two tokens in current transformers."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    folder.mkdir(parents=True)
    characters = list(bytes_to_unicode().values())
    tokens = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "pad_token": "<|endoftext|>", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_tiny_model(folder: Path, seed: int = 0, *, attention: bool = False) -> Path:
    """A StableDiffusionPipeline folder with random weights: 16-pixel pictures, latents 4 x 8 x 8, 0.2 M weights.
    `attention`: in the blocks around the middle one too, as in SD, which doubles the time of a pass."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(seed)
    write_tokenizer(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    kind = "CrossAttn" if attention else ""
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", f"{kind}DownBlock2D"),
        up_block_types=(f"{kind}UpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=16,
    )
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        timestep_spacing="trailing",
        prediction_type="epsilon",
        steps_offset=1,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model, made once; tests must not change it."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


TINY = {  # settings under which a run of the tiny model takes a second or two, and loads nothing but it
    "reward": "jpeg_compressibility",
    "eval_rewards": ("colourfulness",),
    "eval_steps": (1, 2),
    "eval_noises": 1,
    "steps": 3,
    "epochs": 2,
    "pairs": 4,
    "pairs_per_update": 2,
    "checkpoint_every": 1,
    "device": "cpu",
}
