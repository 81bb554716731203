"""Estimates how much memory a run needs before it starts, by running its code on tensors that have a size and no
contents.

The networks are made from their configuration files on PyTorch's meta device: no weights are loaded or downloaded. A
training step and a decode then run as they would, while every tensor that is alive is counted.
"""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub import hf_hub_download
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdpo_bench.config import RunConfig
from sdpo_bench.dense_rewards import most_queries
from sdpo_bench.methods import build_method
from sdpo_bench.policies.base import DTYPES
from sdpo_bench.policies.loading import INDEX, find_family, source_of, unusable
from sdpo_bench.rewards import need_start, network_bytes
from sdpo_bench.training.evaluation import evaluated_prompts

ADAM = 4 + 4 + 4  # bytes a trained weight: gradient and AdamW's two averages, float32
SHARE = 0.9
"""Share of a device's memory that a run may take: the rest is for the CUDA context (0.5 GiB), the libraries' workspaces
and what the allocator's blocks leave unused."""


@dataclass(frozen=True)
class Costs:
    """Bytes that a setting needs. Pairs are (fixed, per latent), counted on one and on two latents."""

    family: str
    networks: dict[str, tuple[int, int]]
    """Weights and bytes of every network."""
    trained: int
    """Weights that are trained."""
    reference: int
    """A second copy of the denoiser, where all of its weights are trained."""
    conditions: int
    """Bytes of an encoded prompt."""
    latent: int
    picture: int
    training: tuple[int, int]
    sampling: tuple[int, int]
    decoding: tuple[int, int]
    gradient_decoding: tuple[int, int]
    """With a graph, and back through it."""
    branches: int


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive within this context; `peak` is the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        out = function(*arguments, **(options or {}))
        # A view, or a tensor changed in place, is nothing new; weights were there before.
        given = {t.untyped_storage()._cdata for t in tree_leaves((arguments, options)) if isinstance(t, torch.Tensor)}
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in given:
                self._add(t.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def gone(_: Any) -> None:
            self.now -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention without the matrix of scores, as on a GPU and on a CPU. The meta device would allocate it."""

    def fused(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return attention(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]

    usual = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = usual


def empty_pipeline(model: str, revision: str | None, dtype: torch.dtype) -> Any:
    """The pipeline on the meta device, with networks made from its configuration files, and without tokenizers."""
    family, source = find_family(model, revision), source_of(model)

    def read(name: str) -> Any:
        if isinstance(source, Path):
            return json.loads((source / name).read_text())
        return json.loads(Path(hf_hub_download(source, name, revision=revision)).read_text())

    components: dict[str, Any] = {}
    try:
        for name, entry in read(INDEX).items():
            if isinstance(entry, bool):  # an option of the pipeline, such as that it is distilled
                components[name] = entry
            if name.startswith("_") or not isinstance(entry, list) or name in ("safety_checker", "image_encoder"):
                continue
            library, kind = entry
            if name == "scheduler":
                with torch.device("cpu"):  # it has numbers, not only a size
                    components[name] = getattr(diffusers, kind).from_config(read(f"{name}/scheduler_config.json"))
            elif library == "diffusers":
                components[name] = getattr(diffusers, kind).from_config(read(f"{name}/config.json")).to(dtype)
            elif library == "transformers" and "text_encoder" in name and kind is not None:
                components[name] = text_encoder(getattr(transformers, kind), read(f"{name}/config.json"), dtype)
            else:
                components[name] = None
        if family.pipeline_class is diffusers.StableDiffusionPipeline:
            components |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline: Any = family.pipeline_class(**components)
        pipeline.to = lambda device: pipeline  # there is nothing that could be moved
        return pipeline
    except Exception as error:  # a missing file, no network, a class that this version does not know
        raise unusable(model, f" as a {family.pipeline_class.__name__}", error) from error


def text_encoder(kind: Any, settings: dict[str, Any], dtype: torch.dtype) -> Any:
    """A text encoder from its configuration file."""
    network = kind(kind.config_class(**settings)).to(dtype)
    # T5 keeps some layers in float32 where float16 is asked for.
    kept = set(network._keep_in_fp32_modules or ()) if dtype == torch.float16 else set()
    for path, module in network.named_modules():
        if kept & {*path.split(".")}:
            module.float()
    return network


def measure(config: RunConfig) -> Costs:
    """Counts the memory that the run's policy needs. UserError if the model's configuration files are not available."""
    config = replace(config, device="cpu", pad_rows=1, rows=64, compile=False, adapter=None)
    with torch.device("meta"), fused_attention():
        pipeline = empty_pipeline(config.model, config.revision, DTYPES[config.dtype])
        policy = find_family(config.model, config.revision)(pipeline, config)
        policy.device = torch.device("meta")
        networks = {
            name: (sum(p.numel() for p in module.parameters()), size_of(module))
            for name, module in pipeline.components.items()
            if isinstance(module, torch.nn.Module)
        }
        shapes = policy.condition_shapes
        policy._null = tuple(torch.empty(shape, dtype=policy.dtype) for shape in shapes)
        for p in policy.parameters:
            p.grad = torch.empty_like(p)  # counted with the optimiser

        def inputs(n: int) -> tuple[Any, ...]:
            latents = torch.empty(n, *policy.latent_shape, dtype=policy.latent_dtype)
            conditions = tuple(torch.empty(n, *shape, dtype=policy.dtype) for shape in shapes)
            return latents, torch.zeros(n, dtype=torch.int64), conditions

        def train(n: int) -> None:
            policy.predict(*inputs(n)).sum().backward()

        def predict(n: int) -> None:
            with torch.no_grad():
                policy.predict(*inputs(n))

        def decode(n: int) -> None:
            policy.decode(inputs(n)[0])

        def decode_with_gradient(n: int) -> None:
            policy.decode(inputs(n)[0].requires_grad_(), gradient=True).sum().backward()

        trained = sum(p.numel() for p in policy.parameters)
        picture = 3 * 4 * math.prod(n * policy.pixels for n in policy.latent_shape[1:])
        return Costs(
            family=type(pipeline).__name__,
            networks=networks,
            trained=trained,
            reference=0 if policy._reference is None else size_of(policy._reference),
            conditions=sum(math.prod(shape) for shape in shapes) * policy.dtype.itemsize,
            latent=math.prod(policy.latent_shape) * policy.latent_dtype.itemsize,
            picture=picture,
            training=line(train),
            sampling=line(predict),
            decoding=line(decode),
            gradient_decoding=line(decode_with_gradient),
            branches=policy.branches,
        )


def line(function: Callable[[int], None]) -> tuple[int, int]:
    """(fixed, per latent) of the maximum number of bytes alive while `function` runs on one latent and on two."""
    peaks = []
    for n in (1, 2):
        with Live() as live:
            function(n)
        peaks.append(live.peak)
    return 2 * peaks[0] - peaks[1], peaks[1] - peaks[0]


def size_of(module: torch.nn.Module) -> int:
    return sum(t.numel() * t.itemsize for t in (*module.parameters(), *module.buffers()))


@dataclass(frozen=True)
class Estimate:
    """Bytes by part: those that stay; those of which one is added at a time; those in the host's memory."""

    staying: dict[str, int]
    passing: dict[str, int]
    host: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.staying.values()) + max(self.passing.values())


def estimate(costs: Costs, config: RunConfig) -> Estimate:
    """The memory that a run of `config` needs on its device. For reward models only the weights are counted."""
    rows = max(1, config.rows // costs.branches)
    G = config.samples_per_group
    samples = G * config.pairs
    method = build_method(config.method, config.options)
    outputs = config.trained_steps if method.learns_from == "step" and method.old_output else 0
    outputs *= 2 if config.dtype == "float16" else 1  # they are float32, as latents are otherwise
    trajectories = samples * (2 * config.steps + 1 + outputs) * costs.latent
    in_step = G * min(max(1, rows // G), config.pairs_per_update)
    queries = pictures_of_an_epoch(config)
    shown = max(
        queries,
        min(max(rows, config.eval_noises), config.eval_noises * sum(map(len, evaluated_prompts(config).values()))),
    )
    staying = {name: size for name, (_, size) in costs.networks.items()}
    found = network_bytes((config.reward, *config.eval_rewards), DTYPES[config.reward_dtype])
    staying |= {f"reward {name}": size for name, size in found.items()}
    staying |= {
        "copy of the pretrained weights": costs.reference,
        "weights that sample": 4 * costs.trained * method.keeps_old_weights,
        "gradients, AdamW": ADAM * costs.trained,
        "prompts": (1 + G) * config.pairs * costs.conditions,
    }

    def at(cost: tuple[int, int], n: int) -> int:
        return cost[0] + n * cost[1]

    # The parts of a trajectory, or of all pictures, are there beside what they are put together to.
    sampling = at(costs.sampling, min(rows, samples))
    beside = need_start((config.reward, *config.eval_rewards, *config.eval_last_rewards))  # the pretrained model's
    decoding = at(costs.decoding, min(rows, shown)) + (2 + beside) * shown * costs.picture
    together = config.pairs > rows or method.reference  # trainer.rollout
    passing = {
        f"training step, {in_step} latents": at(costs.training, in_step),
        f"sampling, {min(rows, samples)} latents": sampling,
        f"decoding, {min(rows, shown)} at a time": decoding,
        "sampling while decoding": (sampling + decoding) * together,
        "optimiser step": 4 * costs.trained,
    }
    if (term := method.reward_gradient(config.steps)) is not None:
        picture = term.last_steps * at(costs.training, in_step) + at(costs.gradient_decoding, in_step)
        passing[f"the reward's gradient, {in_step} latents"] = max(term.noisings, 1) * picture
    host = {}
    if config.offload_trajectories:
        host["trajectories"] = 2 * trajectories
    else:
        staying["trajectories"] = trajectories
        passing["sampling's end"] = trajectories
    return Estimate({k: v for k, v in staying.items() if v}, {k: v for k, v in passing.items() if v}, host)


def pictures_of_an_epoch(config: RunConfig) -> int:
    """The maximum number of images that are decoded for scoring."""
    return config.pairs * most_queries(config.query_plan, config.steps, config.samples_per_group, config.shares_noise)


def largest_rows(costs: Costs, config: RunConfig, memory: float) -> int | None:
    """The largest `--rows`, up to the configuration's, with an estimate within `memory` bytes; None if there is
    none."""
    fitting = (n for n in range(config.rows, 0, -1) if estimate(costs, replace(config, rows=n)).peak <= memory)
    return next(fitting, None)
