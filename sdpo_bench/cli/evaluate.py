"""`sdpo-bench evaluate`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdpo_bench.cli.output import evaluation_table, quiet_libraries
from sdpo_bench.errors import UserError
from sdpo_bench.terminal import echo


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a model, or one with the weights that a run saved, on fixed prompts and fixed noise.

    examples:
      sdpo-bench evaluate                                       # the embedded model as it is
      sdpo-bench evaluate --weights runs/train/raw/RUN/adapter  # after training
      sdpo-bench evaluate --model stabilityai/sd-turbo --rewards jpeg_compressibility --eval-steps 1 4
    """

    model: str = "embedded"
    """A diffusers pipeline's folder, a hub id, or "embedded"."""
    revision: str | None = None
    """The commit of a hub model."""
    adapter: str | None = None
    """A frozen LoRA that the model had when it was trained: a folder, a file, or OWNER/NAME[/FILE][@REVISION]."""
    resolution: int | None = None
    """Height and width of pictures, in pixels; default: the model's own."""
    sampler: Literal["auto", "ddim", "euler_ancestral", "lcm", "flow_sde"] = "auto"
    """auto: ddim for Stable Diffusion kinds, flow_sde for flow-matching ones."""
    guidance: float = 1.0
    """Classifier-free guidance; 1 is none."""
    eta: float = 1.0
    """DDIM's noise level; 0 is the deterministic sampler."""
    noise_level: float = 0.7
    """flow_sde's noise level; 0 is the deterministic sampler."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the weights."""
    vae_slicing: bool = False
    """Decode pictures one by one: less memory."""
    weights: Path | None = None
    """A run's `adapter` or `model` folder."""
    lora_rank: int | None = None
    """Refuse an adapter in --weights of another rank; the rank itself is read from the file."""
    lora_alpha: float | None = None
    """Refuse an adapter in --weights of another alpha; read from the file too."""
    rewards: tuple[str, ...] = ("alignment", "alignment_heldout")
    """Rewards to report; `sdpo-bench train --help` lists them."""
    reward_dtype: Literal["float32", "float16"] = "float32"
    """Precision of the networks of rewards with published weights."""
    reward_batch: int = 32
    """Most pictures in one forward pass of these networks."""
    eval_steps: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of sampling steps."""
    eval_noises: int = 4
    """Fixed initial noises for each prompt."""
    eval_seed: int = 0
    """Which set of fixed noises."""
    prompts: str | None = None
    """A file with prompts, one a line; default: 30 of the 45 animals of DDPO, and 5 unseen."""
    unseen_prompts: str | None = None
    """A file with more prompts, reported apart."""
    rows: int = 64
    """Most latents in one forward pass: lower it where memory is short."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    out: Path | None = None
    """Also write every value, as JSON, to this file."""

    def __call__(self) -> int:
        if not self.rewards:
            raise UserError("--rewards is empty; expected at least one reward")
        if self.out is not None and not self.out.absolute().parent.is_dir():
            raise UserError(f"--out {self.out}: the folder {self.out.absolute().parent} does not exist")
        from sdpo_bench.config import RunConfig
        from sdpo_bench.records.files import write_atomic
        from sdpo_bench.training.evaluation import evaluate_model

        quiet_libraries()
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        weights, rewards, out, rank, alpha = map(given.pop, ("weights", "rewards", "out", "lora_rank", "lora_alpha"))
        full = weights is not None and (weights / "model_index.json").is_file()
        config = RunConfig(
            **given, reward=rewards[0], eval_rewards=rewards, finetune="full" if full else "lora", epochs=0
        )
        rows = evaluate_model(config, weights, rank, alpha)
        echo(evaluation_table(rows))
        if out is not None:
            write_atomic(out, (json.dumps(rows, indent=1) + "\n").encode())
            echo(f"every value: {out}")
        return 0
