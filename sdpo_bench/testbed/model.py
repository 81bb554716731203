"""The parts of the embedded pipeline (tokenizer, text encoder, denoiser, autoencoder, scheduler) and its sampler."""

import json
import tempfile
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sdpo_bench.rewards.scorer import IMAGE_SIZE
from sdpo_bench.testbed.animals import ANIMALS

LATENTS = (4, IMAGE_SIZE // 4, IMAGE_SIZE // 4)
PROMPT_LENGTH = 8  # tokens, with start and end
TEXT_WIDTH = 64
TRAIN_STEPS = 1000


def _merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte-pair merges that make each word one token: the most frequent pair first, ties in alphabetical order."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while any(len(p) > 1 for p in pieces):
        counts = Counter(pair for p in pieces for pair in pairwise(p))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for p in pieces:
            i = 0
            while i < len(p) - 1:
                if (p[i], p[i + 1]) == best:
                    p[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def make_tokenizer() -> CLIPTokenizer:
    """A CLIPTokenizer in which each of the 45 animals is one token, and any other text still has an encoding.

    Written as files and loaded with `from_pretrained`: the constructor given file names makes an empty vocabulary.
    """
    merges = _merges(ANIMALS)
    characters = list(bytes_to_unicode().values())
    tokens = [*characters, *(c + "</w>" for c in characters), *("".join(m) for m in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
        special = {"bos_token": "<|startoftext|>", "unk_token": "<|endoftext|>"}
        special |= {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": PROMPT_LENGTH, **special}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    if len(tokenizer) != len(tokens):
        raise RuntimeError(f"the tokenizer has {len(tokenizer)} tokens instead of {len(tokens)}")
    return tokenizer


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP text model, width 64, two layers, untrained."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=PROMPT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_unet() -> UNet2DConditionModel:
    """Denoiser on 4 x 8 x 8 latents, untrained.

    Besides cross-attention the prompt reaches every residual block through the time embedding ("text" addition, and
    scale and shift), which a network this small needs to tell 45 prompts apart at the first step.
    """
    return UNet2DConditionModel(
        sample_size=LATENTS[1],
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
        use_linear_projection=True,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def make_autoencoder() -> AutoencoderKL:
    """Autoencoder, 32 px images to 4 x 8 x 8 latents, untrained."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
    )


def make_scheduler() -> EulerDiscreteScheduler:
    """SD-Turbo's schedule, with v-prediction.

    `set_alpha_to_one` and `clip_sample` are not options of this class: as in SD-Turbo's file they are there for
    `DDIMScheduler.from_config`, which reads them.
    """
    return EulerDiscreteScheduler.from_config(
        {
            "num_train_timesteps": TRAIN_STEPS,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
            "set_alpha_to_one": False,
            "clip_sample": False,
            "steps_offset": 1,
            "skip_prk_steps": True,
        }
    )


@cache
def alphas_cumprod() -> Tensor:
    """Signal power [1000] of the schedule, float32."""
    return make_scheduler().alphas_cumprod


def make_pipeline(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, unet: UNet2DConditionModel, vae: AutoencoderKL
) -> StableDiffusionPipeline:
    """The ordinary pipeline around the parts, without safety checker."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def token_ids(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Token ids [N, PROMPT_LENGTH], padded as the pipeline pads."""
    tokens = tokenizer(prompts, padding="max_length", max_length=PROMPT_LENGTH, truncation=True, return_tensors="pt")
    return tokens.input_ids


def trailing_timesteps(steps: int) -> list[int]:
    """Timesteps of `steps` steps, noisiest first: 4 gives 999, 749, 499, 249."""
    return [round(TRAIN_STEPS - i * TRAIN_STEPS / steps) - 1 for i in range(steps)]


@torch.no_grad()
def sample(pipeline: StableDiffusionPipeline, prompts: list[str], steps: int, generator: torch.Generator) -> Tensor:
    """Images [N, 3, 32, 32] in [0, 1]: DDIM, eta = 1, trailing timesteps, the last step goes to timestep 0.

    Returns the decoded predicted clean latent of the last step, which is what a run is rewarded for.
    """
    abar = pipeline.scheduler.alphas_cumprod
    context = pipeline.text_encoder(token_ids(pipeline.tokenizer, prompts))[0]
    x = torch.randn(len(prompts), *LATENTS, generator=generator)
    timesteps = trailing_timesteps(steps)
    clean = x
    for t, previous in zip(timesteps, [*timesteps[1:], 0], strict=True):
        v = pipeline.unet(x, t, context).sample
        clean = abar[t].sqrt() * x - (1 - abar[t]).sqrt() * v
        noise = abar[t].sqrt() * v + (1 - abar[t]).sqrt() * x
        variance = (1 - abar[previous]) / (1 - abar[t]) * (1 - abar[t] / abar[previous])
        x = abar[previous].sqrt() * clean + (1 - abar[previous] - variance).clamp_min(0).sqrt() * noise
        x = x + variance.sqrt() * torch.randn(x.shape, generator=generator)
    return decode(pipeline.vae, clean)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Images [N, 3, 32, 32] in [0, 1] of scaled latents [N, 4, 8, 8]."""
    return (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
