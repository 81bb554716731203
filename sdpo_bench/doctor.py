"""`sdpo-bench doctor`: what works here, what does not, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable

from sdpo_bench.errors import UserError


def _versions() -> str:
    from sdpo_bench.provenance import code_version, versions

    code = code_version()
    commit = f"commit {code['commit'][:12]}{' with changes' * code['dirty']}" if code["commit"] else "no git commit"
    return ", ".join(f"{name} {number}" for name, number in versions().items()) + f"; {commit}"


def _device() -> str:
    import sdpo_kernels
    import torch

    from sdpo_bench.provenance import device_name
    from sdpo_bench.reproduce import physical_cores

    text = f"{device_name('cpu')}, {physical_cores()} cores for workers; kernels: {sdpo_kernels.resolve_backend()}"
    if torch.cuda.is_available():
        return f"{text}; {device_name('cuda')} (train and evaluate take it, reproduce with --device cuda)"
    return f"{text}; no GPU: the quick profile needs none"


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


def _results() -> str:
    from sdpo_bench.records import load_profile
    from sdpo_bench.reproduce import reference_results, shown
    from sdpo_bench.tables import build_tables, load_groups

    folders = sorted(path.parent for path in reference_results().glob("*/raw"))
    for folder in folders:
        build_tables(load_groups(folder))
    found = [f"{shown(folder)} ({len(load_profile(folder))} runs)" for folder in folders]
    return f"{', '.join(found) or 'none committed'}; `sdpo-bench tables --check` compares every file with its records"


CHECKS: dict[str, tuple[Callable[[], str], str]] = {
    "versions": (_versions, "install anew: python -m pip install -c constraints.txt -e ."),
    "device": (_device, "install PyTorch for this machine, see README.md"),
    "embedded model": (_model, "restore sdpo_bench/assets from version control, or rebuild it: nox -s testbed"),
    "rewards": (_rewards, "restore sdpo_bench/assets from version control, or rebuild it: nox -s testbed"),
    "results": (_results, "restore results/ from version control"),
}


def examine() -> int:
    """Prints a line for each check; exit code 1 if one failed."""
    failed = 0
    for name, (check, remedy) in CHECKS.items():
        try:
            print(f"ok      {name}: {check()}")
        except Exception as error:  # whatever is wrong, the other checks should still be made
            failed += 1
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            print(f"FAILED  {name}: {kind}{' '.join(str(error).split())}\n        {remedy}")
    print("all is well: sdpo-bench reproduce" if not failed else f"{failed} of {len(CHECKS)} checks failed")
    return 1 if failed else 0
