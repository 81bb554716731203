"""`sdpo-bench evaluate`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import OmitArgPrefixes

from sdpo_bench.cli.output import TakesPlugins, evaluation_table
from sdpo_bench.config import EvaluationConfig, MemoryConfig, ModelConfig, RunConfig, SamplerConfig, flat
from sdpo_bench.errors import UserError
from sdpo_bench.terminal import echo, quiet_libraries


@dataclass(frozen=True)
class Evaluate(TakesPlugins):
    """Evaluate a model, or the weights that a run saved, on fixed prompts and fixed noise.

    examples:
      sdpo-bench evaluate                                       # the embedded model as it is
      sdpo-bench evaluate --weights runs/train/raw/RUN/model    # after training
      sdpo-bench evaluate --model stabilityai/sd-turbo --rewards jpeg_compressibility --eval-steps 1 4
    """

    model: OmitArgPrefixes[ModelConfig] = field(default_factory=ModelConfig)
    sampler: OmitArgPrefixes[SamplerConfig] = field(default_factory=SamplerConfig)
    evaluation: OmitArgPrefixes[EvaluationConfig] = field(default_factory=EvaluationConfig)
    memory: OmitArgPrefixes[MemoryConfig] = field(default_factory=MemoryConfig)
    weights: Path | None = None
    """A run's folder, or the `adapter` or `model` in it."""
    lora_rank: int | None = None
    """Check that the adapter in --weights has this rank. The rank itself is read from the file."""
    lora_alpha: float | None = None
    """Check that the adapter in --weights has this alpha. Alpha itself is read from the file."""
    rewards: tuple[str, ...] = ("alignment", "alignment_heldout")
    """Rewards to report; `sdpo-bench train --help` lists them."""
    out: Path | None = None
    """Also write every value to this file, as JSON."""

    def __call__(self) -> int:
        if not self.rewards:
            raise UserError("--rewards is empty; expected at least one reward")
        if self.out is not None and not self.out.absolute().parent.is_dir():
            raise UserError(f"--out {self.out}: the folder {self.out.absolute().parent} does not exist")
        from sdpo_bench.api.runs import evaluation_config, weights_folder
        from sdpo_bench.records.files import write_atomic
        from sdpo_bench.records.missing_plugins import naming_plugins
        from sdpo_bench.training.evaluation import evaluate_model

        quiet_libraries()
        given = flat(self)
        del given["plugin"]
        weights, rewards, out, rank, alpha = map(given.pop, ("weights", "rewards", "out", "lora_rank", "lora_alpha"))
        weights = weights_folder(weights) if weights else None
        with naming_plugins(weights.absolute().parent if weights else None):
            rows = evaluate_model(evaluation_config(RunConfig(**given), rewards, weights), weights, rank, alpha)
        echo(evaluation_table(rows))
        if out is not None:
            write_atomic(out, (json.dumps(rows, indent=1) + "\n").encode())
            echo(f"every value: {out}")
        return 0
