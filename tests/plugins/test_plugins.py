"""Plug-ins: an installed distribution's entry points, files of --plugin, and what is said of those that are no good."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_tiny_model
from support.synthetic_records import seal

import sdpo_bench
from sdpo_bench import plugins
from sdpo_bench.cli.main import main
from sdpo_bench.errors import UserError
from sdpo_bench.records.lookup import recorded_plugins

ROOT = Path(__file__).parents[2]
EXAMPLE = Path(__file__).parent / "example_plugin"
PAGE = (ROOT / "docs" / "adding.md").read_text()
ENDS = re.search(r"`sdpo_bench/dense_rewards/ends.py`:\n\n```python\n(.*?)^```", PAGE, re.M | re.S)[1]
REINFORCE = re.search(r"`sdpo_bench/methods/reinforce.py`:\n\n```python\n(.*?)^```", PAGE, re.M | re.S)[1]
TINY = [
    "--eval-rewards",
    "colourfulness",
    "--eval-steps",
    "1",
    "--eval-noises",
    "1",
    "--steps",
    "3",
    "--epochs",
    "1",
    "--pairs",
    "4",
    "--pairs-per-update",
    "2",
    "--device",
    "cpu",
    "--reward",
    "redness",
    "--model",
    "model",
    "--no-train-last-step",
]
CODE = """
import json, sys
from dataclasses import replace
from pathlib import Path
from sdpo_bench.cli.main import main
for arguments in json.loads(sys.argv[1]):
    try:
        code = main(arguments)
    except SystemExit as end:  # --help
        code = end.code
    assert not code, arguments

from sdpo_bench.experiments.pool import execute
from sdpo_bench.experiments.profiles import config_from_json
from sdpo_bench.experiments.runs import Run
from sdpo_bench.records.lookup import find_run

path, = Path("runs/raw").glob("halved-*/config.json")
config = replace(config_from_json(json.loads(path.read_text())), seed=1, device="cpu", model="model")
run = Run(config, find_run(Path("runs/raw"), config.to_json()), 1.0)
execute([run], 1)
assert run.state == "done", run.message

from sdpo_bench.analysis.figures.style import KNOWN
from sdpo_bench.cli.installation import CHECKS
from sdpo_bench.experiments.summary import RESULTS, resume_command
from sdpo_bench.experiments.variants import VARIANTS

print("known:", KNOWN["Halved"], {"halved", "reinforce"} <= VARIANTS.keys())
print("again:", resume_command("quick", RESULTS, ["reinforce"], None, None, None))
print("doctor:", CHECKS["plug-ins"][0]())
"""


def python(folder: Path, *arguments: str, installed: Path | None = None, ok: bool = True) -> str:
    """What a new process prints in `folder`, where the distribution in `installed` is one."""
    paths = [str(path) for path in (installed, ROOT, ROOT / "kernels") if path]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        text=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder in which the example package is installed."""
    folder = tmp_path_factory.mktemp("installed")
    source = shutil.copytree(EXAMPLE, folder / "source")  # pip builds beside the source
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", folder / "target", source], check=True)
    return folder / "target"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, installed):
    """A folder with runs of the example package's method, and of the page's as a file; and what was printed."""
    folder = tmp_path_factory.mktemp("plugins")
    index = write_tiny_model(folder / "model") / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "LatentConsistencyModelPipeline"}))
    (folder / "reinforce.py").write_text(REINFORCE)
    plugin = ["--plugin", "reinforce.py"]
    commands = [
        ["train", "--help"],
        ["train", "--method", "halved", "--out", "runs", *TINY, *plugin],
        ["train", "--method", "reinforce", "--out", "runs", *TINY, *plugin],
    ]
    return folder, python(folder, "-c", CODE, json.dumps(commands[1:] + commands[:1]), installed=installed)


@pytest.fixture
def given(monkeypatch):
    """Finds the plug-ins of SDPO_BENCH_PLUGINS anew, without touching what this process has found."""

    def find(*names: object) -> tuple[plugins.Plugin, ...]:
        monkeypatch.setenv(plugins.VARIABLE, os.pathsep.join(map(str, names)))
        found = plugins.found.__wrapped__()
        monkeypatch.setattr(plugins, "found", lambda: found)
        return found

    return find


def test_the_page_shows_the_example():
    assert f"```toml\n{(EXAMPLE / 'pyproject.toml').read_text()}```" in PAGE


def test_names_of_plugins_are_like_any_others(trained):
    """In help, in training here and by a worker process, in figures and profiles."""
    folder, out = trained
    assert re.search(r"^  halved: Halved$", out, re.M)
    assert re.search(r"^  reinforce: REINFORCE \(weight 1.0\)$", out, re.M)
    assert re.search(r"^rewards: .*\bredness\b", out, re.M)
    assert "known: ('#123456', 'v') True" in out
    assert "again: nox -s reproduce -- --methods reinforce --plugin reinforce.py --resume" in out
    assert "plug-in example_plugin.redness of example-plugin 0.3 (reward redness); plug-in reinforce.py (method" in out
    made = {path.parent.name.rpartition("-")[0] for path in (folder / "runs/raw").glob("*/done.json")}
    assert made == {"halved-redness-k3-s0", "halved-redness-k3-s1", "reinforce-redness-k3-s0"}


def test_provenance_says_which_and_what_they_were(trained, installed):
    folder, _ = trained
    for path in (folder / "runs" / "raw").glob("*/provenance.json"):
        found = json.loads(path.read_text())["plugins"]
        files = {
            f"example_plugin.{name}": installed / "example_plugin" / f"{name}.py"
            for name in ("halved", "latent_consistency", "redness")
        }
        if path.parent.name.startswith("reinforce"):
            del files["example_plugin.halved"]
            files["reinforce.py"] = folder / "reinforce.py"
        digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
        assert {name: record["sha256"] for name, record in found.items()} == digests
        assert {record.get("distribution") for record in found.values()} <= {"example-plugin 0.3", None}
    kinds = recorded_plugins(folder / "runs" / "raw")
    assert kinds["reinforce.py"]["gives"] == {"methods": ["reinforce"]}
    assert kinds["example_plugin.latent_consistency"]["gives"] == {"policies": ["LatentConsistencyModelPipeline"]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--method", "reinforce", "--reward", "colourfulness"],
            "reinforce is of the plug-in reinforce.py, with which runs in runs/raw were made; give --plugin reinforce",
        ),
        (
            ["--method", "ddpo"],
            "redness is of the plug-in example_plugin.redness, with which runs in runs/raw were "
            "made; install example-plugin 0.3",
        ),
        (["--reward", "colourfulness"], "LatentConsistencyModelPipeline is of the plug-in example_plugin.latent"),
        (["--reward", "sparkle"], "unknown reward 'sparkle'"),
    ],
)
def test_without_the_plugin(trained, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(trained[0])
    assert main(["train", "--out", "runs", *TINY, *arguments, "--resume"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        (["redness"], "redness is of the plug-in example_plugin.redness, with which {} was made; install example-"),
        (
            ["colourfulness"],
            "Pipeline is of the plug-in example_plugin.latent_consistency, with which {} was made; install example-",
        ),
        (["sparkle"], "unknown reward 'sparkle'"),
    ],
)
def test_weights_of_a_run_without_its_plugin(trained, monkeypatch, capsys, rewards, words):
    (adapter,) = (trained[0] / "runs/raw").glob("reinforce-*/adapter")
    monkeypatch.chdir(trained[0])
    command = ["evaluate", "--model", "model", "--weights", str(adapter.relative_to(trained[0])), "--device", "cpu"]
    assert main([*command, "--rewards", *rewards]) == 2
    error = capsys.readouterr().err
    assert words.format(adapter.parent) in error
    assert error.count("\n") == 1
    model = {"model": "model", "reward": "colourfulness"}
    with pytest.raises(UserError, match=re.escape(words.format(adapter.parent))):
        sdpo_bench.evaluate(model, weights=adapter, rewards=rewards)


def test_a_run_without_its_plugins_is_not_evaluated(trained):
    """Of its reward, and of its method: Python has no --plugin."""
    (folder,) = (trained[0] / "runs/raw").glob("reinforce-*")
    run = sdpo_bench.Run(sdpo_bench.load_run(folder))
    with pytest.raises(UserError, match=rf"redness is of .* {folder} was made; install example-plugin 0.3$"):
        sdpo_bench.evaluate(run)
    words = rf"reinforce is of the plug-in reinforce.py, with which {folder} was made; set SDPO_BENCH_PLUGINS=reinforce"
    with pytest.raises(UserError, match=words):
        sdpo_bench.evaluate(run, reward="colourfulness")


def test_tables_without_the_plugin_are_made(trained, monkeypatch, capsys, tmp_path):
    folder = shutil.copytree(trained[0] / "runs", tmp_path / "runs")
    assert main(["tables", str(folder)]) == 0
    said = capsys.readouterr().err
    assert f"note: reinforce in {folder} is of the plug-in reinforce.py; give --plugin reinforce.py for" in said
    assert f"note: halved in {folder} is of the plug-in example_plugin.halved; install example-plugin 0.3" in said
    assert "| Halved" in (folder / "README.md").read_text()


def test_compare_needs_the_plugin_of_a_measured_dense_reward_alone(trained, installed, capsys, tmp_path):
    raw = shutil.copytree(trained[0] / "runs", tmp_path / "runs") / "raw"
    command = ["compare", *(str(next(raw.glob(f"{name}-*-s0-*"))) for name in ("halved", "reinforce"))]
    assert main(command) == 0
    without = capsys.readouterr().out
    assert without.startswith("Halved minus REINFORCE")
    assert "redness" in without

    lists = dict.fromkeys(("mae", "bias", "std", "corr", "return_corr", "return_sign"), [0.5] * 3)
    row = {"epoch": 1, "budget": "ends", "queries_per_sample": 2, **lists}
    (Path(command[1]) / "dense.jsonl").write_text(json.dumps(row) + "\n")
    seal(Path(command[1]))
    assert main(command) == 2
    assert "'budget' is 'ends', not one of" in capsys.readouterr().err
    (tmp_path / "ends.py").write_text(ENDS)
    said = python(tmp_path, "-m", "sdpo_bench", *command, "--plugin", "ends.py", installed=installed)
    assert said == without


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class Broken(:\n", "can't be read (SyntaxError: "),
        ("x = 1\n", "has no class with a plain name"),
        (
            "from sdpo_bench.methods.ddpo import DDPO\nclass A(DDPO):\n    name = 'ddpo'\n",
            "gives the method ddpo, which the package has already",
        ),
        ("from sdpo_bench.methods.ddpo import DDPO\nclass A(DDPO):\n    name, title = 'a', 'b'\n", "has no class"),
        (
            "from sdpo_bench.methods.ddpo import DDPO as D\nclass A(D):\n    name = 'a'\n    title = 'SDPO'\n",
            "gives the title SDPO, which the package has already",
        ),
        (
            "from sdpo_bench.rewards.base import Reward\nclass A(Reward):\n    name = 'a'\nclass B(A):\n"
            "    name = 'a'\n",
            "gives the reward a, which it has already",
        ),
        (
            "import diffusers\nfrom sdpo_bench.policies import StableDiffusionPolicy\nclass A(StableDiffusionPolicy):\n"
            "    pipeline_class = diffusers.FluxPipeline\n",
            "gives the policy FluxPipeline, which the package has",
        ),
    ],
)
def test_a_text_that_is_no_good(given, tmp_path, text, words):
    """It has no part in tables, and whoever needs its classes is told."""
    (tmp_path / "mine.py").write_text(text)
    (plugin,) = given(tmp_path / "mine.py")
    assert not plugin.classes
    with pytest.raises(UserError, match=rf"^plug-in mine.py {re.escape(words)}.*; repair it, or leave it out$"):
        plugins.check()


def test_two_plugins_of_one_name(given, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.py").write_text(REINFORCE.replace("REINFORCE", name.upper()))
    first, second = given(tmp_path / "a.py", tmp_path / "b.py")
    assert first.classes
    assert second.problem == "gives the method reinforce, which plug-in a.py has already"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("import nothing_of_this_name\n", "plug-in mine.py can't be loaded (ModuleNotFoundError: No module named"),
        ("from sdpo_bench.errors import UserError\nraise UserError('install this')\n", "plug-in mine.py: install this"),
        ("del Reinforce\n", "its text names the methods reinforce, but it defines none"),
    ],
)
def test_a_plugin_that_breaks_when_it_is_imported(given, tmp_path, line, words):
    (tmp_path / "mine.py").write_text(REINFORCE + line)
    assert given(tmp_path / "mine.py")[0].classes
    from sdpo_bench.methods import Method

    with pytest.raises(UserError, match=re.escape(words)):
        plugins.classes("methods", Method)


def test_a_module_that_is_not_there(given):
    assert [plugin.problem for plugin in given("nothing_here", "json.nothing", "sys")] == [
        "is no module that Python finds here"
    ] * 3


def test_a_broken_plugin_ends_no_other_help(tmp_path):
    (tmp_path / "mine.py").write_text("class Broken(:\n")
    command = ["-m", "sdpo_bench"], ["--help", "--plugin", "mine.py"]
    assert "usage: sdpo-bench tables" in python(tmp_path, *command[0], "tables", *command[1])
    error = python(tmp_path, *command[0], "train", *command[1], ok=False)
    assert error.startswith("error: plug-in mine.py can't be read (SyntaxError: ")
    assert error.count("\n") == 1


def test_options(tmp_path, capsys):
    assert main(["train", "--plugin", str(tmp_path / "none.py")]) == 2
    assert "none.py: there is no such file" in capsys.readouterr().err
    (tmp_path / "late.py").write_text(REINFORCE)
    assert main(["train", f"--plugin={tmp_path / 'late.py'}"]) == 2
    assert "set SDPO_BENCH_PLUGINS before that" in capsys.readouterr().err
    assert plugins.VARIABLE not in os.environ
