"""The documentation: its examples run, its links lead somewhere, every method has its page."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import TINY

from sdpo_bench.config import RunConfig
from sdpo_bench.methods import METHODS
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.reader import load_run
from sdpo_bench.rewards import REWARDS

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


def test_adding_a_method_and_a_reward(tiny_model, tmp_path, monkeypatch):
    """The examples, as they stand on the page, train a model."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "adding.md").read_text(), re.M | re.S)
    found = {}
    for number, block in enumerate(blocks):
        module = ModuleType(f"documented_{number}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(block, module.__name__, "exec"), vars(module))
        found |= {v.name: v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__}
    monkeypatch.setitem(METHODS, "reinforce", found["reinforce"])
    monkeypatch.setitem(REWARDS, "brightness", found["brightness"])

    from sdpo_bench.training.loop import train

    own = {"method": "reinforce", "options": {"weight": 0.5}, "reward": "brightness"}
    config = RunConfig(model=str(tiny_model), **TINY | own)
    folder = tmp_path / run_id(config.to_json())
    train(config, folder)
    record = load_run(folder)
    assert record.config["method"] == {"name": "reinforce", "weight": 0.5}
    assert {row["reward"] for row in record.eval} == {"brightness", "colourfulness"}
    assert all(0 <= value <= 1 for row in record.eval if row["reward"] == "brightness"
               for prompts in row["values"].values() for values in prompts.values() for value in values)  # fmt: skip


def test_the_readmes_table_is_the_generated_one():
    lines = (ROOT / "README.md").read_text().splitlines()
    generated = (ROOT / "results" / "full" / "tables" / "main_alignment_k20.md").read_text().splitlines()
    table = [line for line in lines if "(n=" in line and line.startswith("|")]
    assert len(table) >= 8
    assert all(line in generated for line in table)
