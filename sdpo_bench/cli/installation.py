"""The checks of `sdpo-bench doctor`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sdpo_bench.errors import UserError
from sdpo_bench.terminal import echo

GIB = 2**30


def _versions() -> str:
    from sdpo_bench.records.provenance import code_version, versions

    code = code_version()
    commit = f"commit {code['commit'][:12]}{' with changes' * code['dirty']}" if code["commit"] else "no git commit"
    return ", ".join(f"{name} {number}" for name, number in versions().items()) + f"; {commit}"


def _device() -> str:
    import sdpo_kernels
    import torch

    from sdpo_bench.experiments.workers import physical_cores
    from sdpo_bench.records.provenance import device_name

    text = f"{device_name('cpu')}, {physical_cores()} cores for workers; kernels: {sdpo_kernels.resolve_backend()}"
    if torch.cuda.is_available():
        return f"{text}; {device_name('cuda')} (used by train and evaluate, and by reproduce with --device cuda)"
    return f"{text}; no GPU (the quick profile needs none)"


def _model() -> str:
    from sdpo_bench.config import RunConfig
    from sdpo_bench.policies import load_policy

    policy = load_policy(RunConfig(device="cpu"))
    weights = sum(p.numel() for p in policy.denoiser.parameters())
    return f"loads; latents {'x'.join(map(str, policy.latent_shape))}, UNet of {weights / 1e6:.1f} M weights"


def _rewards() -> str:
    from sdpo_bench.rewards import REWARDS, load_reward

    for name in REWARDS:
        load_reward(name)
    return f"load: {', '.join(REWARDS)}"


def _plugins() -> str:
    from sdpo_bench import plugins

    plugins.load()
    found = [f"{plugin.title} ({', '.join(map(str, plugin.classes))})" for plugin in plugins.found()]
    return "; ".join(found) or "none"


def _results() -> str:
    from sdpo_bench.analysis.comparisons import load_groups
    from sdpo_bench.analysis.outputs import reference_results, shown
    from sdpo_bench.analysis.tables.build import build_tables
    from sdpo_bench.records.reader import finished_runs, has_records

    # All tables would take a minute. The first command is compared with these.
    quick = reference_results() / "quick"
    if quick.is_dir():
        build_tables(load_groups(quick))
    folders = sorted(path for path in reference_results().glob("*") if has_records(path))
    found = [f"{shown(folder)} ({len(finished_runs(folder))} runs)" for folder in folders]
    return f"{', '.join(found) or 'none committed'}; `sdpo-bench tables --check` compares every file with its records"


CHECKS: dict[str, tuple[Callable[[], str], str]] = {
    "versions": (_versions, "reinstall: python -m pip install -c constraints.txt -e ./kernels -e ."),
    "device": (_device, "install PyTorch for this machine, see README.md"),
    "embedded model": (_model, "restore sdpo_bench/assets from version control, or rebuild it: nox -s testbed"),
    "plug-ins": (_plugins, "repair or uninstall it, or leave out --plugin; docs/adding.md says what a plug-in has"),
    "rewards": (_rewards, "restore sdpo_bench/assets from version control, or rebuild it: nox -s testbed"),
    "results": (_results, "restore results/ from version control"),
}


def examine() -> int:
    """Prints a line for each check. Returns the exit code: 1 if a check failed."""
    failed = 0
    for name, (check, remedy) in CHECKS.items():
        try:
            echo(f"ok      {name}: {check()}")
        except Exception as error:  # the other checks should still run
            failed += 1
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            echo(f"FAILED  {name}: {kind}{' '.join(str(error).split())}\n        {remedy}")
    print("all checks passed; next: sdpo-bench reproduce" if not failed else f"{failed} of {len(CHECKS)} checks failed")
    return 1 if failed else 0


def fits(config: Any, memory: float | None = None) -> int:
    """Prints the memory that a run of `config` needs, part by part, and whether it fits the device.

    `memory`: GiB of another device. Returns the exit code: 1 if the run does not fit. UserError for a folder that
    cannot be trained.
    """
    from sdpo_bench.policies.loading import check_files
    from sdpo_bench.training.memory_estimate import SHARE, estimate, largest_rows, measure

    check_files(config.model, config.revision)
    costs = measure(config)
    name, total = device_memory(config.device) if memory is None else (f"a device of {memory:g} GiB", memory * GIB)
    allowed = SHARE * total
    if config.rows == 0:
        config = replace(config, rows=2 * config.pairs * costs.branches)
        config = replace(config, rows=largest_rows(costs, config, allowed) or 1)
    found = estimate(costs, config)
    echo(
        f"{config.model}: {costs.family}, {config.method}, {config.dtype}, {config.steps} steps, {config.pairs} pairs, "
        f"{config.rows} rows, {costs.trained:,} trained weights"
    )
    for title, parts in (
        ("during the whole run", found.staying),
        ("in addition, one of these at a time", found.passing),
        ("in the host's memory", found.host),
    ):
        if parts:
            print(f"  {title}")
        for part, size in parts.items():
            count = f"  {costs.networks[part][0] / 1e6:,.1f} M weights" if part in costs.networks else ""
            echo(f"    {part:<34}{size / GIB:>9.2f} GiB{count}")
    rewards = "without " + ("reward models' passes" if config.eval_rewards else "reward models (--rewards adds them)")
    need = f"{found.peak / GIB:.2f} GiB, {rewards}, of {allowed / GIB:.2f} on {name} (90 % of its memory)"
    if found.peak <= allowed:
        print(f"fits: {need}")
        return 0
    print(f"does not fit: {need}")
    rows = largest_rows(costs, config, allowed)
    if rows is not None:
        print(f"    it fits with --rows {rows}")
    else:
        print(f"    it does not fit with --rows 1 either; try {' '.join(savings(config))}")
    return 1


def savings(config: Any) -> list[str]:
    """The unused options that save memory, cheapest first."""
    options = {
        "--finetune lora": config.finetune == "full",
        "--dtype bfloat16": config.dtype == "float32",
        "--vae-slicing": not config.vae_slicing,
        "--offload-trajectories": not config.offload_trajectories,
        "--gradient-checkpointing": not config.gradient_checkpointing,
    }
    return [option for option, open_ in options.items() if open_] or ["a lower --resolution, or a larger device"]


def device_memory(name: str) -> tuple[str, int]:
    """The name and the memory in bytes of the device that --device `name` selects."""
    import psutil
    import torch

    from sdpo_bench.policies.base import resolve_device
    from sdpo_bench.records.provenance import device_name

    device = resolve_device(name)
    if device.type == "cuda":
        return device_name(device), torch.cuda.get_device_properties(device).total_memory
    return f"this machine's {device_name(device)}", psutil.virtual_memory().total
