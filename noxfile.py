"""`nox -l` lists the sessions, `nox -s reproduce` runs the benchmark; arguments after `--` go to the command."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.3.2"
nox.options.sessions = ["lint", "typecheck", "tests"]

ROOT = Path(__file__).parent
# One environment for all sessions: PyTorch, above all with CUDA, is too large to install for each of them.
ENVIRONMENT = ROOT / ".nox" / f"project-{sys.version_info.major}.{sys.version_info.minor}"
PYTHON = str(ENVIRONMENT / "bin" / "python")
TRITON = sys.platform == "linux"

# Files in the order of tests/conftest.py, the slowest first; the log names the slowest tests.
WHOLE_SUITE = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--durations=30")


def install(session: nox.Session, extra: str = "") -> None:
    """Installs the project with an extra, pinned by constraints.txt, unless it is installed already."""
    if not Path(PYTHON).exists():
        # nox brings virtualenv; Debian's Python has no ensurepip, which venv would need.
        session.run_install(sys.executable, "-m", "virtualenv", "--quiet", str(ENVIRONMENT), external=True)
    files = ("pyproject.toml", "kernels/pyproject.toml", "constraints.txt")
    pins = b"".join((ROOT / name).read_bytes() for name in files)
    state = hashlib.sha256(pins + str(ROOT).encode()).hexdigest()
    done = {path.name for path in ENVIRONMENT.glob(".installed-*") if path.read_text() == state}
    if f".installed-{extra}" not in done and (extra or not done):
        quiet = [] if sys.stdout.isatty() else ["--quiet"]  # a person wants to see what takes so long, a log does not
        project = f".[{extra}]" if extra else "."
        both = ["-e", "./kernels", "-e", project]  # sdpo-kernels is in no index
        # Not compiled: of the 20,000 modules few are ever imported, and these Python compiles then.
        command = [PYTHON, "-m", "pip", "install", "--no-compile", *quiet, "-c", "constraints.txt", *both]
        session.run_install(*command, external=True)
        (ENVIRONMENT / f".installed-{extra}").write_text(state)


def python(
    session: nox.Session, *arguments: str, threads: int | None = None, program: str = PYTHON, **env: str
) -> None:
    env |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    # As nothing was compiled at installation, a machine that keeps no compiled modules would compile PyTorch's and all
    # others in each of the tests' many processes.
    env["PYTHONDONTWRITEBYTECODE"] = ""
    session.run(program, *arguments, external=True, env=env)


def run_kernel_tests(session: nox.Session, mode: str, *arguments: str, program: str = PYTHON) -> None:
    """The tests of one mode (tests/conftest.py), in separate processes: two, or one on a GPU."""
    files = {"interpreter": ["test_kernels.py"], "compiler": ["test_compiled.py"]}
    paths = [f"tests/kernels/{name}" for name in files.get(mode, ["test_kernels.py", "test_gpu.py"])]
    env = {"SDPO_KERNELS_TESTS": mode, "TRITON_CACHE_DIR": str(ENVIRONMENT / "triton")}
    if mode != "gpu":
        paths += ["-n", "2"]
    if mode == "interpreter":
        env["TRITON_INTERPRET"] = "1"
    python(session, "-m", "pytest", *paths, *arguments, threads=1, program=program, **env)


@nox.session(venv_backend="none")
def reproduce(session: nox.Session) -> None:
    """Runs a profile and prints its tables: `nox -s reproduce -- --profile full --dry-run`; default: quick."""
    install(session)
    python(session, "-m", "sdpo_bench", "reproduce", *session.posargs)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """All tests, without a GPU; or some: `nox -s tests -- tests/cli/test_cli.py -k doctor`."""
    install(session, "dev")
    # Two processes of one thread, each of which takes whole files: their fixtures are dear.
    python(session, "-m", "pytest", *(session.posargs or WHOLE_SUITE), threads=1)
    if not session.posargs and TRITON:
        run_kernel_tests(session, "interpreter")
        run_kernel_tests(session, "compiler")


@nox.session(venv_backend="none")
def kernels(session: nox.Session) -> None:
    """The Triton kernels: interpreted, and compiled for GPUs of three generations; `-- --gpu` runs them on this one."""
    if not TRITON:
        session.skip("Triton exists for Linux only")
    install(session, "dev")
    arguments = [argument for argument in session.posargs if argument != "--gpu"]
    for mode in ["gpu"] if "--gpu" in session.posargs else ["interpreter", "compiler"]:
        run_kernel_tests(session, mode, *arguments)


def run_in_own_environment(session: nox.Session, *install: str) -> None:
    """All tests, or those of the command line, in the session's environment; `install`: what pip is told beside the
    project."""
    session.install("-e", "./kernels", "-e", ".[test]", *install)
    program = str(Path(session.bin) / "python")
    python(session, "-m", "pytest", *(session.posargs or WHOLE_SUITE), threads=1, program=program)
    if not session.posargs and TRITON:
        for mode in ("interpreter", "compiler"):
            run_kernel_tests(session, mode, program=program)


@nox.session(python="3.12")
def tests_gpu_stack(session: nox.Session) -> None:
    """All tests with Python 3.12, PyTorch 2.11 and Triton 3.6, in a separate environment; no GPU is needed.

    PyPI's PyTorch brings CUDA's libraries; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu spares them.
    """
    run_in_own_environment(session, "torch==2.11.0", "triton==3.6.0")


@nox.session(python="3.11")
def tests_newest(session: nox.Session) -> None:
    """All tests with the newest releases of all that pip finds, without constraints.txt, in a separate environment.

    PyPI's PyTorch brings CUDA's libraries; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu spares them.
    """
    # --upgrade: an environment that is used again (-R) takes new releases too.
    run_in_own_environment(session, "--upgrade", "--upgrade-strategy", "eager")


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Style, layout and common mistakes (ruff)."""
    install(session, "dev")
    python(session, "-m", "ruff", "check", *(session.posargs or ["."]))
    python(session, "-m", "ruff", "format", "--check", *(session.posargs or ["."]))


@nox.session(venv_backend="none")
def typecheck(session: nox.Session) -> None:
    """Types (mypy)."""
    install(session, "dev")
    python(session, "-m", "mypy", *session.posargs)


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """The documentation as a site, in .nox/site; a warning is an error. `-- serve` shows it while you edit."""
    install(session, "dev")
    arguments = session.posargs or ("build", "--site-dir", str(ENVIRONMENT.parent / "site"))
    python(session, "-m", "mkdocs", *arguments, NO_MKDOCS_2_WARNING="1")  # an advertisement


@nox.session(venv_backend="none")
def tables(session: nox.Session) -> None:
    """Tables, figures and reports from the raw records in results/, also of benchmarks; `-- --check` only compares."""
    install(session)
    python(session, "-m", "sdpo_bench", "tables", *session.posargs)
    if not set(session.posargs) - {"--check"}:  # no folders are named: the devices' too
        python(session, "-m", "benchmarks.kernel_results", *session.posargs)


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Speed of the operations, in results/kernels/<device>/<commit>.json: `-- --kernel-matrix full --kernel-force`."""
    install(session, "dev")
    arguments = ("benchmarks", "--benchmark-only", "--kernel-results", "results/kernels", *session.posargs)
    python(session, "-m", "pytest", *arguments, threads=1)


@nox.session(venv_backend="none")
def testbed(session: nox.Session) -> None:
    """Rebuilds the embedded model from the committed sprites (about an hour): `-- --out FOLDER`."""
    install(session, "testbed")
    python(session, "-m", "sdpo_bench.testbed.build", *(session.posargs or ["--out", "runs/testbed"]))
