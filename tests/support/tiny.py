"""Pipeline folders of every family with random weights: the true classes, 16-pixel pictures, latents 4 x 8 x 8."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import write_tiny_model, write_tokenizer
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

WIDTH = 16  # of a CLIP; T5 is twice as wide, as wide as two CLIPs side by side


def clip(folder: Path, projection: bool) -> tuple[CLIPTokenizer, torch.nn.Module]:
    """A tokenizer of 16 tokens and a text encoder, with pooled output of the width 16."""
    write_tokenizer(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=WIDTH, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return tokenizer, kind(config)


def t5() -> tuple[T5TokenizerFast, torch.nn.Module]:
    """T5's own classes with a token for each letter."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    tokenizer.pre_tokenizer = Metaspace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, model_max_length=512, **special)
    config = T5Config(
        vocab_size=len(pieces), d_model=2 * WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    return fast, T5EncoderModel(config)


def autoencoder(**options) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(16, 16), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8,
        sample_size=16, **options,
    )  # fmt: skip


def write_sdxl(folder: Path, *, zeros: bool = True) -> None:
    """`zeros`: whether the null prompt is zeros, as for SDXL, or the encoded empty text."""
    (tokenizer, text), (tokenizer_2, text_2) = (clip(folder / f"t{i}", bool(i)) for i in (0, 1))
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * WIDTH, attention_head_dim=2, norm_num_groups=8, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="trailing", steps_offset=1
    )
    StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025), text_encoder=text, text_encoder_2=text_2, tokenizer=tokenizer,
        tokenizer_2=tokenizer_2, unet=unet, scheduler=scheduler, force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip


def write_sd3(folder: Path, **scheduler) -> None:
    (tokenizer, text), (tokenizer_2, text_2) = (clip(folder / f"t{i}", True) for i in (0, 1))
    tokenizer_3, text_3 = t5()
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=2 * WIDTH, caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH, pos_embed_max_size=8, qk_norm="rms_norm",
    )  # fmt: skip
    StableDiffusion3Pipeline(
        vae=autoencoder(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=text, text_encoder_2=text_2, text_encoder_3=text_3, tokenizer=tokenizer, tokenizer_2=tokenizer_2,
        tokenizer_3=tokenizer_3, transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | scheduler),
    ).save_pretrained(folder)  # fmt: skip


def write_flux(folder: Path, *, guidance: bool = False, **scheduler) -> None:
    """FLUX.1-schnell, or with `guidance` FLUX.1-dev, small."""
    tokenizer, text = clip(folder / "t0", False)
    tokenizer_2, text_2 = t5()
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=2 * WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8), guidance_embeds=guidance,
    )  # fmt: skip
    FluxPipeline(
        vae=autoencoder(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=text,
        text_encoder_2=text_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 1.0} | scheduler),
    ).save_pretrained(folder)


MODELS = {
    "sd": write_tiny_model,
    "sdxl": write_sdxl,
    "sdxl-encoded-null": lambda folder: write_sdxl(folder, zeros=False),
    "sd3": write_sd3,
    "sd3-dynamic": lambda folder: write_sd3(folder, shift=1.0, use_dynamic_shifting=True),
    "flux": write_flux,
    "flux-dev": lambda folder: write_flux(folder, guidance=True, shift=3.0, use_dynamic_shifting=True),
}
SIZES = {"flux": 16, "flux-dev": 16}  # FLUX's networks do not say for which size they are


def write_model(root: Path, name: str) -> Path:
    """The folder of a model in MODELS, made once in `root`."""
    folder = root / name
    if not folder.exists():
        torch.manual_seed(0)
        MODELS[name](folder)
    return folder
