"""`sdpo-bench doctor`: its options."""

from __future__ import annotations

from dataclasses import dataclass, field

from tyro.conf import OmitArgPrefixes

from sdpo_bench.cli.output import TakesPlugins
from sdpo_bench.config import (
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    RunConfig,
    SamplerConfig,
    TrainingMemoryConfig,
    flag,
    flat,
)
from sdpo_bench.errors import UserError
from sdpo_bench.terminal import quiet_libraries


@dataclass(frozen=True)
class Doctor(TakesPlugins):
    """Check this installation: versions, device, embedded model, scorers, results. Says what to do about problems.
    With --model, estimate whether a run of it fits into the device's memory, before any weights are downloaded.

    examples:
      sdpo-bench doctor
      sdpo-bench doctor --model stabilityai/sd-turbo --method sdpo --dtype float16 --pairs 32 --rows 16
      sdpo-bench doctor --model path/to/folder --memory 80  # on a device with 80 GiB
    """

    model: OmitArgPrefixes[ModelConfig] = field(default_factory=lambda: ModelConfig(model=""))
    """Without --model this installation is checked. The options below are those of train."""
    method: str = "sdpo"
    """The method; methods differ in how many images of an epoch are scored."""
    sampler: OmitArgPrefixes[SamplerConfig] = field(default_factory=SamplerConfig)
    rollout: OmitArgPrefixes[RolloutConfig] = field(default_factory=RolloutConfig)
    optimizer: OmitArgPrefixes[OptimizerConfig] = field(default_factory=OptimizerConfig)
    device_memory: OmitArgPrefixes[TrainingMemoryConfig] = field(default_factory=TrainingMemoryConfig)
    rewards: tuple[str, ...] = ()
    """The rewards of the run, whose networks take memory too."""
    memory: float | None = None
    """Memory in GiB of another device, instead of this machine's."""

    def __call__(self) -> int:
        from sdpo_bench.cli.installation import examine, fits

        given, default = flat(self), flat(Doctor())
        del given["plugin"]
        if not given["model"]:
            changed = [name for name in given if given[name] != default[name]]
            if changed:
                raise UserError(f"{flag(changed[0])} needs --model")
            return examine()
        memory, rewards = given.pop("memory"), given.pop("rewards")
        if memory is not None and not memory > 0:
            raise UserError(f"--memory is {memory}; expected GiB, more than 0")
        quiet_libraries()
        return fits(RunConfig(**given, reward="jpeg_compressibility", eval_rewards=rewards), memory)
