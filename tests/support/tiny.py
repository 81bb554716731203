"""Pipeline folders of every family with random weights: the true classes, 16-pixel pictures, latents 4 x 8 x 8."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from conftest import write_tiny_model, write_tokenizer
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
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
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return tokenizer, kind(config)


def t5() -> tuple[T5TokenizerFast, torch.nn.Module]:
    """T5's own classes with a token for each letter."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    tokenizer.pre_tokenizer = Metaspace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, model_max_length=512, **special)
    config = T5Config(
        vocab_size=len(pieces),
        d_model=2 * WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    return fast, T5EncoderModel(config)


def autoencoder(**options) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=16,
        **options,
    )


def write_sdxl(folder: Path, *, zeros: bool = True) -> None:
    """`zeros`: whether the null prompt is zeros, as for SDXL, or the encoded empty text."""
    (tokenizer, text), (tokenizer_2, text_2) = (clip(folder / f"t{i}", bool(i)) for i in (0, 1))
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    )
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="trailing", steps_offset=1
    )
    StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=text,
        text_encoder_2=text_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    ).save_pretrained(folder)


def write_sd3(folder: Path, **scheduler) -> None:
    (tokenizer, text), (tokenizer_2, text_2) = (clip(folder / f"t{i}", True) for i in (0, 1))
    tokenizer_3, text_3 = t5()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    StableDiffusion3Pipeline(
        vae=autoencoder(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=text,
        text_encoder_2=text_2,
        text_encoder_3=text_3,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        tokenizer_3=tokenizer_3,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | scheduler),
    ).save_pretrained(folder)


def write_flux(folder: Path, *, guidance: bool = False, **scheduler) -> None:
    """FLUX.1-schnell, or with `guidance` FLUX.1-dev, small."""
    tokenizer, text = clip(folder / "t0", False)
    tokenizer_2, text_2 = t5()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance,
    )
    FluxPipeline(
        vae=autoencoder(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=text,
        text_encoder_2=text_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 1.0} | scheduler),
    ).save_pretrained(folder)


def letters() -> PreTrainedTokenizerFast:
    """A language model's tokenizer with a token for each letter, and a chat's template."""
    pieces = ["<pad>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz<>"]
    tokenizer = Tokenizer(Unigram([(piece, -1.0) for piece in pieces], unk_id=1))
    tokenizer.pre_tokenizer = Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=4096,
        padding_side="right",
        chat_template="<user>{{ messages[0].content }}<think>{% if not enable_thinking %}<>{% endif %}",
    )


def qwen3(kind: type, tokenizer: PreTrainedTokenizerFast, layers: int) -> torch.nn.Module:
    return kind(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=True,
            initializer_range=0.5,
        )
    )


def write_z_image(folder: Path) -> None:
    tokenizer = letters()
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 16, 16],
    )
    for name, weight in transformer.named_parameters():  # they are made as zeros
        if name.endswith("pad_token"):
            torch.nn.init.normal_(weight)
    ZImagePipeline(
        vae=autoencoder(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=qwen3(Qwen3Model, tokenizer, 2),
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder)


def write_flux_2_klein(folder: Path, *, distilled: bool = False) -> None:
    tokenizer = letters()
    transformer = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        mlp_ratio=2.0,
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    torch.nn.init.normal_(vae.bn.running_mean)
    torch.nn.init.uniform_(vae.bn.running_var, 0.5, 2)
    Flux2KleinPipeline(
        vae=vae,
        text_encoder=qwen3(Qwen3ForCausalLM, tokenizer, 27),
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        is_distilled=distilled,
    ).save_pretrained(folder)


def write_sana_sprint(folder: Path) -> None:
    """Its pictures are of 32 pixels, the pipeline's least; latents 4 x 16 x 16."""
    tokenizer = letters()
    text = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=16,
        guidance_embeds=True,
        qk_norm="rms_norm_across_heads",
    )
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_out_channels=(16, 16),
        decoder_block_out_channels=(16, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.41407,
    )
    SanaSprintPipeline(
        vae=vae, text_encoder=Gemma2Model(text), tokenizer=tokenizer, transformer=transformer, scheduler=SCMScheduler()
    ).save_pretrained(folder)


MODELS = {
    "sd": functools.partial(write_tiny_model, attention=True),
    "sdxl": write_sdxl,
    "sdxl-encoded-null": lambda folder: write_sdxl(folder, zeros=False),
    "sd3": write_sd3,
    "sd3-dynamic": lambda folder: write_sd3(folder, shift=1.0, use_dynamic_shifting=True),
    "flux": write_flux,
    "z-image": write_z_image,
    "flux-2-klein": write_flux_2_klein,
    "flux-dev": lambda folder: write_flux(folder, guidance=True, shift=3.0, use_dynamic_shifting=True),
}
ONE_BY_ONE = {
    "sana-sprint": write_sana_sprint,
    "flux-2-klein-distilled": lambda folder: write_flux_2_klein(folder, distilled=True),
}
"""Models that have no steps without noise, or no guidance."""
SIZES = dict.fromkeys(["flux", "flux-dev", "z-image", "flux-2-klein", "flux-2-klein-distilled"], 16)
"""Of networks that do not say for which size they are."""


def write_model(root: Path, name: str) -> Path:
    """The folder of a model in MODELS or ONE_BY_ONE, made once in `root`."""
    folder = root / name
    if not folder.exists():
        torch.manual_seed(0)
        (MODELS | ONE_BY_ONE)[name](folder)
    return folder
