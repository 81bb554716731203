"""All that model families share: the forward pass in chunks, the adapter, the reference, saving and loading."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import diffusers
import sdpo_kernels
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from sdpo_kernels.coefficients import Schedule
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sdpo_bench.config import NOISE_LEVELS, RunConfig, flag
from sdpo_bench.distributed import distribute_like, full_tensor_on_cpu
from sdpo_bench.errors import UserError
from sdpo_bench.policies.networks import first_line, load_lora, load_network
from sdpo_bench.policies.precision import use_full_float32
from sdpo_bench.policies.upsampling import fuse_upsampling
from sdpo_bench.records.files import share

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # [official]
CONDITIONS_BYTES = 2**28  # of a device's memory: prompts of SD-Turbo 1,700, of FLUX.1 60
DECODER_SCALE = 2.0**10
"""Scale of gradients within a float16 decoder: small numbers vanish in float16 (below 6e-8), and a reward's gradient by
one of many pixels is small, more so as a share of a batch's mean."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SCHEDULERS = {"euler_ancestral": "EulerAncestralDiscreteScheduler", "lcm": "LCMScheduler", "tcd": "TCDScheduler"}

Conditions = tuple[Tensor, ...]
"""Encoded prompts, a row for each: text embeddings first, then whatever else the family's network takes."""


def resolve_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one; an explicit cuda without a GPU is refused."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; use --device cpu or auto")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))


class Passes(NamedTuple):
    """Latents that have passed a denoiser, padding left out; `backward`: those of them whose gradient passes it too."""

    forward: int = 0
    backward: int = 0

    def since(self, earlier: Passes) -> Passes:
        return Passes(self.forward - earlier.forward, self.backward - earlier.backward)


class ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied on its way back into a float16 network."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


class Policy:
    """A pipeline whose denoiser is trained: all of it, or a LoRA adapter on its attention.

    A family says how a prompt becomes conditions (`_encode`), how its denoiser is called (`_denoise`), and what shapes
    these have. Latents are [N, C, H, W], in float16 where the base is and else in float32 (bfloat16 has too few digits
    for a log-prob); every forward pass has between `pad_rows` and `rows` rows, so that a sample's numbers do not
    depend on the batch that it is in (RunConfig.pad_rows).
    """

    pipeline_class: ClassVar[type]
    samplers: ClassVar[tuple[str, ...]]
    """The samplers that it can take; the first is `auto`."""
    component: ClassVar[str] = "unet"
    """The denoiser's name in the pipeline."""
    lora_targets: ClassVar[tuple[str, ...]] = tuple(LORA_TARGETS)

    def __init__(self, pipeline: Any, config: RunConfig) -> None:
        self.device = resolve_device(config.device)
        try:
            sdpo_kernels.resolve_backend(None, self.device)
        except (ValueError, RuntimeError) as error:  # SDPO_KERNELS_BACKEND can't run here, or Triton is missing
            raise UserError(str(error)) from error
        if self.device.type == "cuda":
            use_full_float32()
        self.pipeline = pipeline.to(self.device)
        self.finetune, self.gradient_checkpointing = config.finetune, config.gradient_checkpointing
        self.guidance, self.resolution, self.dtype = config.guidance, config.resolution, DTYPES[config.dtype]
        self.latent_dtype = torch.float16 if self.dtype == torch.float16 else torch.float32
        self.sampler = self._choose_sampler(config.sampler)
        self.noise_level = self._choose_noise_level(config)
        for module in pipeline.components.values():
            if isinstance(module, torch.nn.Module):
                module.requires_grad_(False).eval()
        self.denoiser = getattr(pipeline, self.component)
        # With guidance a latent has two rows: its prompt's, and the null prompt's.
        self.branches = 2 if self.guidance != 1 and not self.takes_guidance else 1
        self.rows = max(1, (config.rows or RunConfig.rows) // self.branches)
        # Padding is for CPU libraries only, and never beyond what the user allows.
        self.pad_rows = min(config.pad_rows, self.rows) if self.device.type == "cpu" else 1
        self.passes = Passes()
        self.storage = torch.device("cpu") if config.offload_trajectories else self.device
        self._conditions: dict[str, Conditions] = {}
        self._reference: torch.nn.Module | None = None
        _ = self.latent_shape  # refuses a resolution that the model can't have
        self._check()
        self._choose_execution(config)
        if self.finetune == "lora":
            self._add_adapter(config)
        else:
            self._reference = copy.deepcopy(self.denoiser)
            self.denoiser.requires_grad_(True)
        # A log-prob is a mean over a latent's elements, and so its gradient that much smaller than 1: in float16 it
        # would vanish. It passes the network multiplied by their number, and the weights divide it out in float32.
        self.gradient_scale = float(torch.Size(self.latent_shape).numel()) if self.dtype == torch.float16 else 1.0
        if self.gradient_scale != 1:
            for p in self.parameters:
                p.register_hook(lambda grad: grad / self.gradient_scale)
        if config.compile:
            for network in (self.denoiser, self._reference):
                if network is not None:
                    network.compile()

    def _choose_noise_level(self, config: RunConfig) -> float | None:
        """The sampler's noise level, where it has one. UserError for noise that another sampler has."""
        for name, takers in {"eta": ("ddim",), "noise_level": tuple(NOISE_LEVELS)}.items():
            if getattr(config, name) != getattr(RunConfig, name) and self.sampler not in takers:
                raise UserError(
                    f"{flag(name)}: the sampler {self.sampler} takes none, only {', '.join(takers)}; leave it out"
                )
        return NOISE_LEVELS.get(self.sampler) if config.noise_level is None else config.noise_level

    def _choose_sampler(self, name: str) -> str:
        chosen = self.samplers[0] if name == "auto" else name
        if chosen not in self.samplers:
            raise UserError(
                f"--sampler {name} is not one for a {type(self.pipeline).__name__}; "
                f"expected {' or '.join(self.samplers)}"
            )
        return chosen

    def _choose_execution(self, config: RunConfig) -> None:
        """Sets what changes only memory and speed, before the denoiser is copied."""
        vae = self.pipeline.vae
        if config.vae_slicing:
            vae.enable_slicing()
        if self.device.type == "cpu" and self.dtype == torch.float32:
            fuse_upsampling(vae.decoder)
        if config.channels_last:
            if self.component != "unet":
                kind = type(self.pipeline).__name__
                raise UserError(f"--channels-last is for convolutions; a {kind} has a transformer")
            for module in (self.denoiser, vae):
                module.to(memory_format=torch.channels_last)
        if config.gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()

    def _add_adapter(self, config: RunConfig) -> None:
        torch.manual_seed(config.seed)  # the adapter's initial weights
        self.denoiser.add_adapter(
            LoraConfig(
                r=config.lora_rank,
                lora_alpha=config.lora_alpha,
                init_lora_weights="gaussian",
                target_modules=[*self.lora_targets],
            )
        )
        for p in self.parameters:  # peft gave them the base's dtype
            p.data = p.data.float()

    # What a family says

    def _check(self) -> None:
        """UserError for settings that the family can't have."""

    @property
    def takes_guidance(self) -> bool:
        """Whether the denoiser was distilled with guidance as an input, and so needs no second branch."""
        return False

    @property
    def sample_size(self) -> tuple[int, int]:
        """Height and width of the latents that the model was made for."""
        size = self.denoiser.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def channels(self) -> int:
        """Number of a latent's channels."""
        return self.denoiser.config.in_channels

    @property
    def token_limits(self) -> dict[str, int]:
        """The tokens of a prompt that each tokenizer of the pipeline keeps, by its name."""
        names = sorted(name for name in self.pipeline.components if name.startswith("tokenizer"))
        found = {name: getattr(self.pipeline, name) for name in names}
        return {name: tokenizer.model_max_length for name, tokenizer in found.items() if tokenizer is not None}

    @property
    def condition_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of a prompt's conditions, without encoding one."""
        raise NotImplementedError

    def _encode(self, prompt: str | None) -> Conditions:
        """The conditions of one prompt, or of guidance's null prompt, without a dimension for rows."""
        raise NotImplementedError

    def _denoise(self, latents: Tensor, timesteps: Tensor, *conditions: Tensor) -> Tensor:
        """The denoiser's output [N, C, H, W]."""
        raise NotImplementedError

    def _build_schedule(self, steps: int, eta: float, level: float | None, stochastic: int) -> Schedule:
        """The sampler's schedule with its own kind of noise: DDIM's has `eta`, those in NOISE_LEVELS have `level`."""
        scheduler = self.pipeline.scheduler
        if not hasattr(scheduler, "alphas_cumprod"):
            raise TypeError(f"the scheduler is a {type(scheduler).__name__}; a {self.sampler} step needs one of betas")
        if self.sampler == "ddim":
            return sdpo_kernels.coefficients.ddim(scheduler, steps, eta=eta, stochastic_steps=stochastic)
        build = getattr(sdpo_kernels.coefficients, self.sampler)
        noise = {"level": level} if self.sampler in NOISE_LEVELS else {}
        return build(self._sampler_scheduler(), steps, stochastic_steps=stochastic, **noise)

    def _sampler_scheduler(self) -> Any:
        """The pipeline's scheduler, or one of the sampler's class with its settings."""
        scheduler = self.pipeline.scheduler
        if self.sampler not in SCHEDULERS:
            return scheduler
        kind = getattr(diffusers, SCHEDULERS[self.sampler])
        return scheduler if isinstance(scheduler, kind) else kind.from_config(scheduler.config)

    def _build_deterministic(self, steps: int) -> Schedule:
        """The sampler's schedule without noise; UserError if the sampler has no such steps."""
        if self.sampler != "ddim" and self.sampler not in NOISE_LEVELS:
            able = " or ".join(name for name in self.samplers if name == "ddim" or name in NOISE_LEVELS)
            raise UserError(
                f"--sampler {self.sampler} has no steps without noise, which this run samples with; "
                + (f"choose {able}" if able else f"a {type(self.pipeline).__name__} has no other")
            )
        return self._build_schedule(steps, 0.0, 0.0, 0)

    # What the trainer uses

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The trained weights."""
        return [p for p in self.denoiser.parameters() if p.requires_grad]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        if self.resolution is None:
            return self.channels, *self.sample_size
        # The deepest level of every network needs a whole number of rows.
        factor = self.pixels * self.patch
        if self.resolution % factor:
            raise UserError(f"--resolution is {self.resolution}; expected a multiple of {factor} for this model")
        size = self.resolution // self.pixels
        return self.channels, size, size

    @property
    def pixels(self) -> int:
        """A latent stands for so many of them, in height and width."""
        return self.pipeline.vae_scale_factor

    @property
    def patch(self) -> int:
        """Latents' height and width are multiples of this: a UNet halves them at every level but the last."""
        return 2 ** (len(self.denoiser.config.block_out_channels) - 1)

    def schedule(
        self, steps: int, *, eta: float, trained_steps: int = 0, noisy_steps: Collection[int] | None = None
    ) -> Schedule:
        """The sampler's `Schedule` of K steps, on the device.

        trained_steps: so many of the first steps are trained, which sigma = 0 is refused for
        noisy_steps: the steps that draw noise; default: all that the sampler has noise for
        """
        try:
            schedule = self._build_schedule(steps, eta, self.noise_level, trained_steps)
            if noisy_steps is not None:
                quiet = self._build_deterministic(steps)
                rows = [(schedule if k in noisy_steps else quiet).table[k] for k in range(steps)]
                schedule = schedule._replace(table=torch.stack(rows))
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from error
        return schedule.to(self.device)

    @property
    def most_steps(self) -> int:
        """The K of the sampler's schedule that has every timestep of the model."""
        config = self._sampler_scheduler().config
        return int(config.original_inference_steps if self.sampler == "lcm" else config.num_train_timesteps)

    def too_long(self, prompts: Iterable[str]) -> str:
        """Says which words of too long prompts the text encoders do not see; "" if there are none."""
        prompts, found = list(dict.fromkeys(prompts)), []
        for name, limit in self.token_limits.items():
            tokenizer = getattr(self.pipeline, name)
            lengths = [len(ids) for ids in tokenizer(prompts, truncation=False, verbose=False).input_ids]
            if count := sum(length > limit for length in lengths):
                found.append(f"{count} of {len(prompts)} at {limit} tokens by the {name}")
        return f"prompts are cut: {', '.join(found)}; what follows there has no effect on the picture" if found else ""

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditions:
        """Conditions, a row for each prompt. No text encoder is trained, so those of the last prompts are kept, in
        CONDITIONS_BYTES."""
        found = {p: self._conditions.pop(p, ()) or self._encode(p) for p in dict.fromkeys(prompts)}
        self._conditions |= found  # the last used come last
        each = sum(c.numel() * c.itemsize for c in next(iter(found.values())))
        for prompt in [*self._conditions][: -max(CONDITIONS_BYTES // each, 1)]:
            del self._conditions[prompt]
        return tuple(torch.stack(x) for x in zip(*(found[prompt] for prompt in prompts), strict=True))

    @torch.no_grad()
    def _null_conditions(self) -> Conditions:
        if not self._null:
            self._null = self._encode(None)
        return self._null

    _null: Conditions = ()

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """The model's output [N, C, H, W] for latents [N, C, H, W], timesteps [N] and N rows of conditions; float32, so
        that a loss's gradient is. With guidance g it is null + g (conditioned - null), both from one forward pass."""
        rows = self.branches * len(latents)
        self.passes = Passes(self.passes.forward + rows, self.passes.backward + rows * torch.is_grad_enabled())

        def output(x: Tensor, t: Tensor, *c: Tensor) -> Tensor:
            x = x.to(self.dtype)
            if self.branches == 1:
                out = self._denoise(x, t, *c)
            else:
                null = [n.expand_as(y) for n, y in zip(self._null_conditions(), c, strict=True)]
                both = [torch.cat(pair) for pair in zip(c, null, strict=True)]
                conditioned, unconditioned = self._denoise(torch.cat([x, x]), torch.cat([t, t]), *both).float().chunk(2)
                out = unconditioned + self.guidance * (conditioned - unconditioned)
            return out.float().contiguous()  # the kernels read whole samples

        out = self._in_chunks(output, latents, timesteps, *conditions)
        return ScaledGradient.apply(out, self.gradient_scale) if self.gradient_scale != 1 else out

    def pictures(self, latents: Tensor, steps: int | None = None, *, gradient: bool = False) -> Tensor:
        """`decode`, but UserError where a picture is not finite: no reward should see it, since a file of 8 bits would
        make a sound picture of it. `steps`: the number of sampling steps, for the message."""
        pictures = self.decode(latents, gradient=gradient)
        broken = int((~pictures.isfinite()).flatten(1).any(1).sum())
        if broken:
            cause = (
                "the weights have diverged, or the model's files are damaged"
                if self.dtype == torch.float32
                else f"{str(self.dtype).removeprefix('torch.')} overflows in many autoencoders: try --dtype "
                + ("bfloat16 or float32" if self.dtype == torch.float16 else "float32")
            )
            sampled = f" sampled in {steps} steps" if steps else ""
            raise UserError(f"{broken} of {len(pictures)} pictures{sampled} hold values that are not finite; {cause}")
        return pictures

    def decode(self, latents: Tensor, *, gradient: bool = False) -> Tensor:
        """Pictures [N, 3, H, W] in 0..1 of latents [N, C, h, w]; NaN for what is not finite.

        With `gradient` the same pictures have one by the latents: none where a colour was beyond 0..1. It is float32
        where the latents are, whatever the decoder's dtype. With --gradient-checkpointing the decoder's activations
        are computed anew in the backward pass, `rows` latents at a time.
        """
        vae = self.pipeline.vae
        scale = DECODER_SCALE if vae.dtype == torch.float16 else 1.0

        def pictures(x: Tensor) -> Tensor:
            x = self._scaled(ScaledGradient.apply(x.float(), 1 / scale).to(vae.dtype))
            out = ScaledGradient.apply(vae.decode(x, return_dict=False)[0].float(), scale) / 2 + 0.5
            return torch.where(out.isfinite(), out.clamp(0, 1), torch.nan)  # clamp alone would hide infinities

        anew = gradient and self.gradient_checkpointing
        with torch.set_grad_enabled(gradient):
            return self._in_chunks(partial(checkpoint, pictures, use_reentrant=False) if anew else pictures, latents)

    def _scaled(self, latents: Tensor) -> Tensor:
        """Latents as the autoencoder takes them."""
        config = self.pipeline.vae.config
        x, shift = latents / config.scaling_factor, getattr(config, "shift_factor", None) or 0
        return x + shift if shift else x

    def _in_chunks(self, function: Any, *inputs: Tensor) -> Tensor:
        out = []
        for chunk in zip(*(x.split(self.rows) for x in inputs), strict=True):
            n = len(chunk[0])
            missing = max(self.pad_rows - n, 0)
            padded = [x.to(self.device) for x in chunk]
            padded = [torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x for x in padded]
            out.append(function(*padded)[:n])
        return torch.cat(out)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within this context `predict` is the pretrained model."""
        trained = self.denoiser
        if self._reference is not None:
            self.denoiser = self._reference
        else:
            trained.disable_adapters()
        try:
            yield
        finally:
            self.denoiser = trained
            if self._reference is None:
                trained.enable_adapters()

    @property
    def text_is_adapted(self) -> bool:
        """Whether a LoRA that was loaded is one of a text encoder too, which `reference` leaves as it is."""
        encoders = [x for name, x in self.pipeline.components.items() if name.startswith("text_encoder")]
        return any(getattr(encoder, "peft_config", None) for encoder in encoders)

    # Weights

    def shard(self) -> None:
        """Shares the weights of the denoiser, and of its pretrained copy, out over all processes; each block is put
        together when it is needed. From here on all processes must make the same forward and backward passes.
        Gradients are then the means over the processes."""
        # Here, since they take a while to import.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.plain_class = type(self.denoiser)
        mesh = init_device_mesh(self.device.type, (torch.distributed.get_world_size(),))
        networks: Any = (self.denoiser, self._reference)
        for network in networks:
            blocks = [block for part in network.children() if isinstance(part, torch.nn.ModuleList) for block in part]
            for module in (*blocks, network):
                # Also of the root, which else would keep its weights from a pass without a backward one.
                fully_shard(module, mesh=mesh, reshard_after_forward=True)

    plain_class: Any = None
    """The denoiser's own class, where `shard` gave it another."""

    def state_dict(self) -> dict[str, Tensor]:
        """The trained weights by name."""
        if self.finetune == "lora":
            return dict(get_peft_model_state_dict(self.denoiser))
        return {name: full_tensor_on_cpu(value) for name, value in self.denoiser.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if self.finetune == "lora":
            set_peft_model_state_dict(self.denoiser, state)
        else:
            like = self.denoiser.state_dict()
            self.denoiser.load_state_dict({name: distribute_like(value, like[name]) for name, value in state.items()})

    def save(self, folder: Path, write: bool = True) -> None:
        """A LoRA in diffusers' form (safetensors), for `load_lora_weights`; or, trained in full, a pipeline folder.
        Where weights are shared out all processes call this, and one of them writes."""
        if self.finetune == "lora":
            # Without the metadata diffusers takes the rank for alpha. A set has another order in each process.
            metadata = self.denoiser.peft_config["default"].to_dict()
            metadata = {k: sorted(v) if isinstance(v, set) else v for k, v in metadata.items()}
            layers = {f"{self.component}_lora_layers": self.state_dict()}
            layers[f"{self.component}_lora_adapter_metadata"] = metadata
            type(self.pipeline).save_lora_weights(folder, **layers)
        elif self.plain_class is None:
            self.pipeline.save_pretrained(folder)
        else:
            state = self.state_dict()
            if write:
                plain = self.plain_class.from_config(self.denoiser.config)
                plain.load_state_dict(state)
                setattr(self.pipeline, self.component, plain)
                self.pipeline.save_pretrained(folder)
                setattr(self.pipeline, self.component, self.denoiser)
        if write:
            share(folder)

    def load(self, folder: Path, rank: int | None = None, alpha: float | None = None) -> None:
        """Weights that `save` wrote, or a LoRA in another form that diffusers converts, in place of the policy's own;
        rank and alpha are the file's. UserError for damaged weights, another model's, or where `rank` or `alpha` is
        given and not the file's."""
        try:
            if self.finetune == "full":
                state = load_network(folder / self.component, type(self.denoiser), torch.float32).state_dict()
                shapes, ours = ({k: list(v.shape) for k, v in x.items()} for x in (state, self.denoiser.state_dict()))
                for name in sorted(shapes.keys() | ours.keys()):
                    if shapes.get(name) != ours.get(name):
                        raise ValueError(f"{name} is {shapes.get(name)} there, but {ours.get(name)} in this model")
                self.denoiser.load_state_dict(state)
                return
            self.denoiser.unload_lora()
            load_lora(self.pipeline, self.component, folder, "default")
        except Exception as error:  # safetensors, diffusers and torch raise a dozen kinds
            raise UserError(f"the weights in {folder} are damaged or another model's ({first_line(error)})") from error
        for name, p in self.denoiser.named_parameters():
            p.requires_grad_(".lora_" in name)
            if p.requires_grad:
                p.data = p.data.float()
        self._conditions.clear()  # a LoRA may be one of the text encoders too
        self._null = ()
        found = self.denoiser.peft_config["default"]
        for option, given, value, others in (
            ("--lora-rank", rank, found.r, found.rank_pattern),
            ("--lora-alpha", alpha, found.lora_alpha, found.alpha_pattern),
        ):
            values = sorted({value, *others.values()})
            if given is not None and values != [given]:
                held = " and ".join(f"{x:g}" for x in values)
                raise UserError(f"{option} is {given:g}, but {folder} holds an adapter with {held}; leave it out")
