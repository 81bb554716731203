"""The documentation: its examples run, its links lead somewhere, every method has its page."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import sdpo_kernels
import torch

import sdpo_bench
from sdpo_bench.methods import METHODS
from sdpo_bench.records.reader import run_ids

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tests" / "README.md", *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page(name):
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
    assert METHODS[name].title in page
    if not issubclass(METHODS[name], METHODS["sdpo"]) or name == "sdpo":
        for option in dataclasses.fields(METHODS[name]):
            assert f"`{option.name}`" in page
            assert str(option.default) in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            to = page.parent / path if path else page
            assert to.exists(), target
            if anchor:  # as GitHub makes them: lower case, no punctuation
                headings = [re.sub(r"[^\w -]", "", h.lower()) for h in re.findall(r"^#+ (.*)$", to.read_text(), re.M)]
                assert anchor in [heading.replace(" ", "-") for heading in headings], target


def test_the_api_page_has_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text().splitlines()
    missing = {f"::: sdpo_bench.{module}.{name}" for name, module in sdpo_bench._PUBLIC.items()} - {*page}
    assert not missing
    kernels = {line.split(".")[-1] for line in page if line.startswith("::: sdpo_kernels.")}
    functions = {name for name in sdpo_kernels.__all__ if name[0].islower()}
    assert kernels == functions


def test_docstrings_begin_with_what_they_describe():
    """An editor shows the docstring alone, where "Of a step." says nothing."""
    sources = [*(ROOT / "sdpo_bench").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    assert len(sources) > 100
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sources
        for line in path.read_text().splitlines()
        if re.match(r'\s*r?"""(Of|What|As) ', line)
    ]
    assert not found


def test_the_kernels_loop_learns(capsys):
    """docs/kernels.md: it runs as it stands there, and the reward rises in every third of the epochs."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "kernels.md").read_text(), re.M | re.S)
    torch.manual_seed(0)
    exec(compile(code, "docs/kernels.md", "exec"), {})
    rewards = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(rewards) == 12
    assert rewards[0] < 0.2 < rewards[4] < rewards[8] < rewards[-1]


def test_the_best_runs_are_listed(capsys, monkeypatch):
    """docs/sharing.md: a command for each method of the study, of a run that is there."""
    code = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "sharing.md").read_text(), re.M | re.S)[-1]
    monkeypatch.chdir(ROOT)
    exec(compile(code, "docs/sharing.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    known = set(run_ids(ROOT / "results" / "full"))
    assert {re.search(r"raw/(\S+)", line)[1] for line in lines} <= known
    assert {"DDPO", "DDPO-dense", "SDPO"} <= {re.search(r"# (.*), 0", line)[1] for line in lines}
