"""Where a number was computed: commit, versions, device. Nothing names the machine, its user or its folders."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]


COMMIT = "SDPO_BENCH_COMMIT"  # environment variable: the commit of a copy that lies in no checkout


LIBRARIES = ("torch", "diffusers", "transformers", "peft", "numpy", "triton")


CODE = ("*.py", "*.txt", "*.json", "*.safetensors")  # what decides a result: the code and the assets it loads


def repository() -> Path | None:
    """The source checkout from which this package runs; None for an installed copy."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "noxfile.py").is_file() else None


def _git(*arguments: str) -> str | None:
    """Git's output about the checkout; None without a checkout or without git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def source_hash(package: Path = PACKAGE) -> str:
    """SHA-256 over the names and contents of the package's files. It identifies code that no commit identifies."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in CODE for path in package.rglob(pattern)}):
        for part in (path.relative_to(package).as_posix().encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _given_commit() -> str | None:
    given = os.environ.get(COMMIT) or None
    if given is not None and not re.fullmatch("[0-9a-f]{40}", given):
        from sdpo_bench.errors import UserError

        raise UserError(f"{COMMIT} is {given!r}; expected what `git rev-parse HEAD` prints, 40 hexadecimal digits")
    return given


@functools.cache  # of the code as it was when this process loaded it, whatever is committed while it runs
def code_version() -> dict[str, Any]:
    """commit and dirty. If git does not identify the code (no checkout, or changed code), also the hash of the source.

    Of a copy without git the commit is what SDPO_BENCH_COMMIT says, if it is set.
    """
    # An installed copy may lie inside somebody else's repository: its commit would say nothing.
    tracked = _git("ls-files", "--error-unmatch", str(PACKAGE / "__init__.py")) is not None
    commit = _git("rev-parse", "HEAD") if tracked else _given_commit()
    # Only code counts: results written while a profile runs do not make its later runs dirty.
    dirty = tracked and commit is not None and _git("status", "--porcelain", "--", PACKAGE.name, "kernels") != ""
    version = {"commit": commit, "dirty": dirty}
    return version if tracked and commit and not dirty else version | {"source": source_hash()}


def versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries that a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("sdpo_bench", *LIBRARIES):
        try:
            found[name] = importlib.metadata.version(name.replace("_", "-"))
        except importlib.metadata.PackageNotFoundError:
            continue  # triton is there only with a GPU
    return found


def cpu_name() -> str:
    """The processor's model, as the system reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    if sys.platform == "darwin":
        try:
            return subprocess.run(
                ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            pass
    return platform.processor() or platform.machine() or "unknown"


def device_name(device: Any) -> str:
    """`cpu: <processor>` or `cuda: <GPU>`, for a torch.device or its name."""
    if str(device).startswith("cuda"):
        import torch

        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"cpu: {cpu_name()}"


def command(argv: list[str] | None = None) -> str:
    """The command line without this machine's folders: programs and absolute paths by name or relative to the current
    folder."""
    program, *arguments = sys.argv if argv is None else argv
    here = os.getcwd()

    def plain(argument: str) -> str:
        key, equals, value = argument.rpartition("=")
        value = os.path.expanduser(value)
        if os.path.isabs(value):
            inside = os.path.commonpath([here, value]) == here
            value = os.path.relpath(value, here) if inside else os.path.basename(os.path.normpath(value))
        return key + equals + value

    name = Path(program).name
    return shlex.join(["sdpo-bench" if name == "__main__.py" else name, *map(plain, arguments)])


def float32_backends() -> dict[str, Any]:
    """PyTorch 2.9's settings of the precision in which a GPU multiplies float32, by operation."""
    import torch

    cudnn: Any = torch.backends.cudnn
    return {"products": torch.backends.cuda.matmul, "convolutions": cudnn.conv, "recurrent": cudnn.rnn}


def float32_precision() -> dict[str, str]:
    """The current precision, `ieee` or `tf32`, of matrix products and of cuDNN's convolutions and recurrent
    networks."""
    import torch

    if hasattr(torch.backends, "fp32_precision"):
        return {name: backend.fp32_precision for name, backend in float32_backends().items()}
    cudnn = torch.backends.cudnn.allow_tf32
    flags = {"products": torch.backends.cuda.matmul.allow_tf32, "convolutions": cudnn, "recurrent": cudnn}
    return {name: "tf32" if flag else "ieee" for name, flag in flags.items()}


def collect(device: Any, rewards: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content of provenance.json, for a run on `device` (a torch.device or its name) with these rewards, by
    name."""
    import sdpo_kernels
    import torch

    return code_version() | {
        "versions": versions(),
        "device": device_name(device),
        **({"float32": float32_precision()} if str(device).startswith("cuda") else {}),
        "threads": torch.get_num_threads(),
        "backend": sdpo_kernels.resolve_backend(None, device),
        "command": command(),
        "rewards": {
            name: {"revision": reward.revision, "scale": reward.scale, "weights_sha256": reward.weights_sha256}
            for name, reward in (rewards or {}).items()
        },
    }
