"""Both distributions, built and installed into an environment of their own, work away from the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

ROOT = Path(__file__).parents[1]
FILES = ("LICENSE", "docs/pypi.md", "pyproject.toml")  # that sdpo-bench is built from, beside its package
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
INSTALLED = """
import sys
import sdpo_bench, sdpo_kernels
from sdpo_bench.cli.main import main
assert all(module.__file__.startswith(sys.prefix) for module in (sdpo_bench, sdpo_kernels)), sdpo_kernels.__file__
sys.exit(main(["doctor"]))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints, run without the checkout on its path."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """A folder with the sdists, and the wheels that are built from them, as for an upload."""
    work = tmp_path_factory.mktemp("work")
    out = work / "dist"
    out.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    shutil.copytree(ROOT / "kernels", work / "kernels", ignore=ignored)
    shutil.copytree(ROOT / "sdpo_bench", work / "suite" / "sdpo_bench", ignore=ignored)
    for name in FILES:
        (work / "suite" / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, work / "suite" / name)
    for source in ("kernels", "suite"):
        run(sys.executable, "-c", BUILD, "build_sdist", out, cwd=work / source)
    for sdist in sorted(out.glob("*.tar.gz")):
        with tarfile.open(sdist) as archive:
            archive.extractall(work / "unpacked", filter="data")
        run(sys.executable, "-c", BUILD, "build_wheel", out, cwd=work / "unpacked" / sdist.name.removesuffix(".tar.gz"))
    return out


def wheels(distributions: Path) -> dict[str, zipfile.ZipFile]:
    return {path.name.split("-")[0]: zipfile.ZipFile(path) for path in sorted(distributions.glob("*.whl"))}


def metadata(wheel: zipfile.ZipFile) -> Metadata:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Metadata.from_email(wheel.read(name), validate=True)


def test_wheels_have_every_file_of_the_packages(distributions):
    folders = {"sdpo_bench": ROOT, "sdpo_kernels": ROOT / "kernels"}
    assert wheels(distributions).keys() == folders.keys()
    for package, wheel in wheels(distributions).items():
        files = [path for path in (folders[package] / package).rglob("*") if path.is_file()]
        expected = {path.relative_to(folders[package]).as_posix() for path in files if path.suffix != ".pyc"}
        assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected
        (licence,) = (name for name in wheel.namelist() if name.endswith("/licenses/LICENSE"))
        assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_metadata(distributions):
    about = {name: metadata(wheel) for name, wheel in wheels(distributions).items()}
    suite, kernels = about["sdpo_bench"], about["sdpo_kernels"]
    assert suite.version == kernels.version
    assert f"sdpo-kernels=={kernels.version}" in map(str, suite.requires_dist)
    assert {requirement.name for requirement in kernels.requires_dist} == {"torch", "triton"}
    for found in about.values():
        assert found.description_content_type == "text/markdown"
        links = re.findall(r"\]\(([^)]+)\)", found.description)
        assert links
        assert all(link.startswith("https://") for link in links), links  # PyPI has no files that others could lead to
        assert found.license_expression == "MIT"
        assert found.classifiers
        assert found.project_urls


def test_they_work_in_an_environment_of_their_own(distributions, tmp_path):
    """PyTorch and the other dependencies come from this environment; what is editable in it does not."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps")
    run(*install, *sorted(distributions.glob("*.whl")), cwd=tmp_path)
    assert "train" in run(tmp_path / "env" / "bin" / "sdpo-bench", "--help", cwd=tmp_path)
    assert "all checks passed" in run(python, "-c", INSTALLED, cwd=tmp_path)
