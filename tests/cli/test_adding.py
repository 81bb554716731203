"""The examples of docs/adding.md: in a copy of the package, with nothing else edited, they train and are shown."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_tiny_model
from support.table_files import markdown_tables

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding.md").read_text()
FILES = dict(re.findall(r"`(sdpo_bench/\S+\.py)`[^\n]*\n(?:[^`\n][^\n]*\n)?\n```python\n(.*?)^```", PAGE, re.M | re.S))
TINY = [
    "--eval-rewards",
    "colourfulness",
    "--eval-steps",
    "1",
    "2",
    "--eval-noises",
    "1",
    "--steps",
    "3",
    "--epochs",
    "2",
    "--pairs",
    "4",
    "--pairs-per-update",
    "2",
    "--device",
    "cpu",
    "--reward",
    "brightness",
    "--no-train-last-step",
]
CODE = """
import json, sys
from sdpo_bench.cli.main import main
for arguments in json.loads(sys.argv[1]):
    try:
        assert main(arguments) == 0, arguments
    except SystemExit as end:  # --help
        assert not end.code
"""
GROUPS = """
import torch
from sdpo_bench.methods import build_method
from support.groups import batch_of
for size in (2, 4):
    output, batch = batch_of(size=size)
    result = build_method("reinforce").loss(output, batch, clip_range=1.0, advantage_clip=5.0)
    print(size, tuple(result.loss.shape), tuple(result.log_prob.shape), torch.isfinite(result.log_prob).all().item())
"""
GRADIENT = """
import torch
from sdpo_bench.rewards import load_reward, not_differentiable
from sdpo_bench.training.scoring import score_with_gradient
images = torch.rand(2, 3, 8, 8, requires_grad=True)
score_with_gradient(load_reward("brightness"), images, ["a", "b"]).sum().backward()
print(not_differentiable("brightness"), (192 * images.grad).unique().tolist())
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with a copy of the package that has the page's files, and a model of the new kind."""
    folder = tmp_path_factory.mktemp("added")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "sdpo_bench", folder / "sdpo_bench", copy_function=os.symlink, ignore=ignored)
    for path, text in FILES.items():
        assert not (folder / path).exists()
        (folder / path).write_text(text)
    index = write_tiny_model(folder / "model") / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "LatentConsistencyModelPipeline"}))
    return folder


def run(folder: Path, *commands: list[str]) -> str:
    """What the copy's commands print, in one process."""
    return python(folder, CODE, json.dumps(commands))


def python(folder: Path, code: str, *arguments: str) -> str:
    """What code prints that imports the copy."""
    path = os.pathsep.join([str(folder), str(ROOT / "kernels"), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        text=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_a_file_of_each_kind():
    folders = ["dense_rewards", "methods", "policies", "rewards"]
    assert sorted(Path(path).parent.name for path in FILES) == folders


def test_the_examples_train_and_are_shown(written):
    both = ["--model", "model", "--out", "runs/all", *TINY]
    out = run(
        written,
        ["train", "--help"],
        ["train", "--method", "reinforce", "--options", "weight", "0.5", *both],
        ["train", "--method", "sdpo", "--dense", "ends", "--probe-every", "1", *both],
        ["tables", "runs/all"],
        ["reproduce", "--methods", "reinforce", "--dry-run"],
    )
    assert "reinforce: REINFORCE (weight 1.0)" in out
    assert "ends: the first and the last, interpolated linearly" in out
    assert re.search(r"rewards: .*\bbrightness\b", out)
    runs = {}
    for path in (written / "runs" / "all" / "raw").glob("*/config.json"):
        runs[json.loads(path.read_text())["label"]] = path
    assert runs.keys() == {"REINFORCE", "SDPO"}
    assert json.loads(runs["REINFORCE"].read_text())["method"] == {"name": "reinforce", "weight": 0.5}
    for path in runs.values():
        rows = [json.loads(line) for line in (path.parent / "eval.jsonl").read_text().splitlines()]
        assert {row["reward"] for row in rows} == {"brightness", "colourfulness"}
        for row in rows:
            values = [value for prompts in row["values"].values() for noises in prompts.values() for value in noises]
            assert row["reward"] != "brightness" or (values and all(0 < value < 1 for value in values))
    probes = [json.loads(line) for line in (runs["SDPO"].parent / "dense.jsonl").read_text().splitlines()]
    ends = [row for row in probes if row["budget"] == "ends"]
    # Of a pair's two samples, which share their first picture, 3 pictures are queried.
    assert ends
    assert all(row["queries_per_sample"] == 1.5 and row["mae"][0] == row["mae"][-1] == 0 for row in ends)
    assert ends[-1]["mae"][1] > 0
    tables = markdown_tables(written / "runs" / "all")
    main = next(text for name, text in tables.items() if name.startswith("main_"))
    assert main.index("| SDPO") < main.index("| REINFORCE")  # the study's methods come first
    assert "; ends: first and last, linear. Minus 3's" in tables["dense_budgets"]
    assert "first and last, linear" in (written / "runs" / "all" / "report.html").read_text()  # in its figure too


def test_the_example_of_a_method_takes_groups_of_any_size(written):
    """Its `pairwise = False` says so: --group-size 4 is then allowed."""
    assert python(written, GROUPS) == "2 (3,) (3, 2) True\n4 (3,) (3, 4) True\n"


def test_the_example_of_a_reward_has_a_gradient(written):
    assert python(written, GRADIENT) == "[] [1.0]\n"
