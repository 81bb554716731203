"""Stable Diffusion kind: one text encoder, a UNet, a VAE. The embedded model and SD-Turbo take this same path."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import sdpo_kernels
import torch
import transformers
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from sdpo_bench.config import EMBEDDED, RunConfig
from sdpo_bench.errors import UserError

EMBEDDED_FOLDER = Path(__file__).parent.parent / "assets" / "embedded_model"
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # [official]


def resolve_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one; an explicit cuda without a GPU is refused."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; use --device cpu or auto")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))


def load_pipeline(model: str, revision: str | None = None) -> Any:
    """The pipeline of a folder, a hub id or the embedded model. UserError says what is wrong with it."""
    folder = EMBEDDED_FOLDER if model == EMBEDDED else Path(model)
    local = model == EMBEDDED or folder.is_absolute() or folder.exists() or model.startswith((".", "~"))
    source: str | Path = folder.expanduser() if local else model
    if local:
        index = Path(source) / "model_index.json"
        if not index.is_file():
            raise UserError(
                f"--model {model}: {index} does not exist; expected a folder that "
                f"StableDiffusionPipeline.save_pretrained wrote, a hub id, or {EMBEDDED!r}"
            )
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            source, revision=revision, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    except Exception as error:  # diffusers raises a dozen kinds here; each means that the model can't be used
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "is the folder complete?" if local else "check id, revision and network, or give a local folder"
        raise UserError(f"--model {model} can't be loaded as a StableDiffusionPipeline ({reason}); {hint}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class StableDiffusionPolicy:
    """A pipeline whose UNet is trained: all of it, or a LoRA adapter on its attention.

    Latents are float32 [N, C, H, W]; every forward pass has between `pad_rows` and `rows` rows, so that a sample's
    numbers do not depend on the batch that it is in (RunConfig.pad_rows).
    """

    def __init__(self, pipeline: Any, config: RunConfig) -> None:
        self.device = resolve_device(config.device)
        self.pipeline = pipeline.to(self.device)
        self.finetune, self.rows = config.finetune, config.rows
        # Padding is for CPU libraries only, and never beyond what the user allows.
        self.pad_rows = min(config.pad_rows, config.rows) if self.device.type == "cpu" else 1
        for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            module.requires_grad_(False).eval()
        self.unet = pipeline.unet
        self.evaluations = 0  # forward rows of the UNet, padding left out
        self._embeddings: dict[str, Tensor] = {}
        self._reference: torch.nn.Module | None = None
        if self.finetune == "lora":
            torch.manual_seed(config.seed)  # the adapter's initial weights
            self.unet.add_adapter(
                LoraConfig(
                    r=config.lora_rank,
                    lora_alpha=config.lora_alpha,
                    init_lora_weights="gaussian",
                    target_modules=LORA_TARGETS,
                )
            )
        else:
            self._reference = copy.deepcopy(self.unet)
            self.unet.requires_grad_(True)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The trained weights."""
        return [p for p in self.unet.parameters() if p.requires_grad]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    def schedule(self, steps: int, *, eta: float, trained_steps: int = 0) -> tuple[Tensor, Tensor]:
        """Timesteps int64 [K] and DDIM coefficients float32 [K, 5] on the device; refuses sigma = 0 where trained."""
        try:
            timesteps, table = sdpo_kernels.coefficients.ddim(
                self.pipeline.scheduler, steps, eta=eta, stochastic_steps=trained_steps
            )
        except ValueError as error:
            raise UserError(str(error)) from error
        return timesteps.to(self.device), table.float().to(self.device)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """Text embeddings [N, L, D]. The text encoder is not trained, so each prompt is encoded once."""
        for prompt in set(prompts) - self._embeddings.keys():
            self._embeddings[prompt] = self.pipeline.encode_prompt([prompt], self.device, 1, False)[0][0].float()
        return torch.stack([self._embeddings[prompt] for prompt in prompts])

    def predict(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        """The UNet's output [N, C, H, W] for latents [N, C, H, W], timesteps [N], embeddings [N, L, D]."""
        self.evaluations += len(latents)
        
        def output(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
            return self.unet(x, t, c, return_dict=False)[0].contiguous()  # the kernels read whole samples

        return self._in_chunks(output, latents, timesteps, embeddings)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] in 0..1 of latents [N, C, h, w]."""
        vae = self.pipeline.vae

        def pictures(x: Tensor) -> Tensor:
            return (vae.decode(x / vae.config.scaling_factor, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)

        return self._in_chunks(pictures, latents)

    def _in_chunks(self, function: Any, *inputs: Tensor) -> Tensor:
        out = []
        for chunk in zip(*(x.split(self.rows) for x in inputs), strict=True):
            n = len(chunk[0])
            missing = max(self.pad_rows - n, 0)
            padded = [torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x for x in chunk]
            out.append(function(*padded)[:n])
        return torch.cat(out)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within this context `predict` is the pretrained model."""
        trained = self.unet
        if self._reference is not None:
            self.unet = self._reference
        else:
            trained.disable_adapters()
        try:
            yield
        finally:
            self.unet = trained
            if self._reference is None:
                trained.enable_adapters()

    def state_dict(self) -> dict[str, Tensor]:
        """The trained weights by name."""
        if self.finetune == "lora":
            return dict(get_peft_model_state_dict(self.unet))
        return dict(self.unet.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if self.finetune == "lora":
            set_peft_model_state_dict(self.unet, state)
        else:
            self.unet.load_state_dict(state)

    def save(self, folder: Path) -> None:
        """A LoRA in diffusers' form (safetensors), for `load_lora_weights`; or, trained in full, a pipeline folder."""
        if self.finetune == "lora":
            # Without the metadata diffusers takes the rank for alpha. A set has another order in each process.
            metadata = self.unet.peft_config["default"].to_dict()
            metadata = {k: sorted(v) if isinstance(v, set) else v for k, v in metadata.items()}
            StableDiffusionPipeline.save_lora_weights(
                folder, unet_lora_layers=self.state_dict(), unet_lora_adapter_metadata=metadata
            )
        else:
            self.pipeline.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Weights that `save` wrote; UserError for damaged ones, another model's, or another rank or alpha."""
        try:
            if self.finetune == "full":
                state = type(self.unet).from_pretrained(folder, subfolder="unet").state_dict()
                self.unet.load_state_dict(state)
                return
            state, _, metadata = StableDiffusionPipeline.lora_state_dict(folder, return_lora_metadata=True)
        except Exception as error:  # safetensors, diffusers and torch raise a dozen kinds
            raise UserError(f"the weights in {folder} are damaged or another model's ({str(error)[:120]})") from error
        state = {k.removeprefix("unet."): v for k, v in state.items()}
        if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in self.state_dict().items()}:
            ranks = sorted({min(v.shape) for v in state.values()})
            raise UserError(f"{folder} holds an adapter of another shape (rank {ranks}); give its --lora-rank")
        alpha = (metadata or {}).get("unet.lora_alpha")
        ours = self.unet.peft_config["default"].lora_alpha
        if alpha is not None and alpha != ours:
            raise UserError(f"{folder} holds an adapter with alpha {alpha}, not {ours}; give --lora-alpha {alpha}")
        self.load_state_dict(state)


def load_policy(config: RunConfig) -> StableDiffusionPolicy:
    """The policy that `config` names, on its device."""
    return StableDiffusionPolicy(load_pipeline(config.model, config.revision), config)
