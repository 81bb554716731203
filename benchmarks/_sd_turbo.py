"""SD-Turbo's architecture with random weights, what it costs, and a tiny one of the same classes for CPUs.

Speed does not depend on the weights' values, so that nothing is downloaded. The configurations are those of Stable
Diffusion 2.1 base (arXiv 2112.10752; its text encoder is OpenCLIP's ViT-H/14, less the last layer), which SD-Turbo
(arXiv 2311.17042) was distilled from; WEIGHTS and the FLOP of a sample are counted, and a build that has others is
refused.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import sdpo_bench

TOKENIZER = Path(sdpo_bench.__file__).parent / "assets" / "embedded_model" / "tokenizer"
RANK, TARGETS = 4, ["to_q", "to_k", "to_v", "to_out.0"]  # of the LoRA; alpha is its rank [official]


class Architecture(NamedTuple):
    """Configurations as diffusers and transformers take them; `weights` is what they count, the LoRA's last."""

    name: str
    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any]
    weights: dict[str, int]

    @property
    def latent(self) -> tuple[int, int, int]:
        return self.unet["in_channels"], self.unet["sample_size"], self.unet["sample_size"]


CROSS = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3

SD_TURBO = Architecture(
    name="SD-Turbo's architecture",
    unet={
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": CROSS[0],
        "up_block_types": CROSS[1],
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    vae={
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "sample_size": 512,
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    },
    text_encoder={
        "vocab_size": 49408,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
        "projection_dim": 512,
    },
    weights={"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840, "lora": 829_952},
)

TINY = Architecture(
    name="a tiny architecture",
    unet={
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (32, 32, 64, 64),
        "down_block_types": CROSS[0],
        "up_block_types": CROSS[1],
        "attention_head_dim": (2, 2, 4, 4),
        "cross_attention_dim": 32,
        "use_linear_projection": True,
        "norm_num_groups": 8,
    },
    vae={
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 1,
        "sample_size": 64,
        "block_out_channels": (16, 16, 32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "norm_num_groups": 8,
    },
    text_encoder={
        "vocab_size": 1024,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
        "projection_dim": 32,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    weights={"unet": 1_645_572, "vae": 261_079, "text_encoder": 52_384, "lora": 27_648},
)


# Building -------------------------------------------------------------------------------------------------------


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def models(architecture: Architecture) -> dict[str, nn.Module]:
    """unet, vae, text_encoder on torch's default device, frozen; refused where they count other weights."""
    found = {
        "unet": diffusers.UNet2DConditionModel(**architecture.unet),
        "vae": diffusers.AutoencoderKL(**architecture.vae),
        "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**architecture.text_encoder)),
    }
    for name, module in found.items():
        module.requires_grad_(False).eval()
        if count(module) != architecture.weights[name]:
            expected = architecture.weights[name]
            raise AssertionError(f"{architecture.name}: {name} has {count(module):,} weights, not {expected:,}")
    return found


def pipeline(architecture: Architecture, device: torch.device | str) -> Any:
    """A StableDiffusionPipeline with random float32 weights, always the same on a device.

    The tokenizer is the embedded model's: it cuts words otherwise than CLIP's would, into as many tokens.
    """
    torch.manual_seed(0)
    with torch.device(device):  # a billion random numbers take their time on a CPU
        parts = models(architecture)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(
        TOKENIZER, model_max_length=architecture.text_encoder["max_position_embeddings"]
    )
    scheduler = diffusers.EulerDiscreteScheduler(  # SD-Turbo's
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        timestep_spacing="trailing",
        prediction_type="epsilon",
        steps_offset=1,
    )
    made = diffusers.StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def cast(pipeline: Any, dtype: torch.dtype) -> None:
    """The frozen weights in `dtype`; a LoRA, being trained, in float32."""
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        for p in module.parameters():
            p.data = p.data.to(torch.float32 if p.requires_grad else dtype)


# How a loop runs the models -------------------------------------------------------------------------------------


@contextmanager
def materialised(pipeline: Any) -> Iterator[None]:
    """As the official loop: attention that writes its scores to memory, NCHW."""
    for module in (pipeline.unet, pipeline.vae):
        module.set_attn_processor(AttnProcessor())
        module.to(memory_format=torch.contiguous_format)
    yield


@contextmanager
def fused(pipeline: Any) -> Iterator[None]:
    """Fused attention, channels_last."""
    for module in (pipeline.unet, pipeline.vae):
        module.set_attn_processor(AttnProcessor2_0())
        module.to(memory_format=torch.channels_last)
    yield


@contextmanager
def fast(pipeline: Any, compiled: bool = False) -> Iterator[None]:
    """As ours: fused attention, channels_last, on request torch.compile of the UNet.

    The policy's latents are float32: they are cast to the weights' dtype where they enter a model, and back where its
    output leaves.
    """
    unet, vae = pipeline.unet, pipeline.vae
    dtype = vae.dtype

    def plain(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        x = x.to(dtype) if x.is_floating_point() else x
        if compiled:
            # Rows vary, as a pair at its first step needs one forward instead of two; nothing else may: for other
            # strides, or a view of another tensor, the model would be compiled again.
            x = x.clone(memory_format=torch.contiguous_format)
            torch._dynamo.maybe_mark_dynamic(x, 0)
        return x

    def enter(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return tuple(map(plain, inputs)), {name: plain(x) for name, x in named.items()}

    def leave(module: nn.Module, inputs: Any, output: Any) -> Any:
        return tuple(x.float() for x in output) if isinstance(output, tuple) else output.float()

    hooks = [
        unet.register_forward_pre_hook(enter, with_kwargs=True),
        unet.register_forward_hook(leave),
        vae.post_quant_conv.register_forward_pre_hook(enter, with_kwargs=True),
        vae.decoder.register_forward_hook(leave),
    ]
    if compiled:
        torch._dynamo.reset()
        unet.forward = torch.compile(unet.forward, fullgraph=True)
    try:
        with fused(pipeline):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        vars(unet).pop("forward", None)


# What it costs --------------------------------------------------------------------------------------------------


class Flop(NamedTuple):
    """Of one sample: the UNet's forward, its backward through the LoRA (no gradient of frozen weights, no recomputed
    attention scores), the VAE's decoder; `scores` is what fused attention's backward recomputes and nobody counts."""

    forward: int
    backward: int
    decode: int
    scores: int


@functools.cache
def _flop(name: str) -> Flop:
    architecture = {each.name: each for each in (SD_TURBO, TINY)}[name]
    with torch.device("meta"):
        parts = models(architecture)
        unet, vae = parts["unet"], parts["vae"]
        unet.add_adapter(lora())
        x = torch.empty(1, *architecture.latent)
        text = architecture.text_encoder
        c = torch.empty(1, text["max_position_embeddings"], text["hidden_size"])
        t = torch.empty(1, dtype=torch.int64)
    unet.to("meta")  # peft's own weights
    for module in (unet, vae):
        module.set_attn_processor(AttnProcessor())  # its products are counted by any version of PyTorch
    with FlopCounterMode(display=False) as counter:
        output = unet(x, t, c, return_dict=False)[0]
    forward, products = counter.get_total_flops(), counter.get_flop_counts()["Global"]
    scores = sum(n for operation, n in products.items() if "bmm" in str(operation)) // 2
    with FlopCounterMode(display=False) as counter:
        output.backward(torch.empty_like(output))
    backward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.decode(x)
    return Flop(forward, backward, counter.get_total_flops(), scores)


def flop(architecture: Architecture) -> Flop:
    """Counted on the meta device, once."""
    return _flop(architecture.name)


def lora() -> LoraConfig:
    return LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS)


PEAK = {  # FLOP/s: fp16 and bf16, dense, accumulated in fp32; NVIDIA's data sheets of the named products
    "H100 80GB HBM3": 989.4e12,  # H100 SXM5
    "H100 PCIe": 756.4e12,
    "H200 NVL": 835.5e12,
    "H200": 989.4e12,
    "A100": 312e12,
    "L40S": 362.05e12,
    "GeForce RTX 4090": 165.2e12,  # Ada architecture paper, appendix A
    "V100": 125e12,
    "T4": 65e12,
}


def peak(device: str) -> float | None:
    """Peak FLOP/s of a device by its name; None where it is not listed."""
    return next((value for name, value in PEAK.items() if re.search(rf"\b{name}\b", device)), None)
