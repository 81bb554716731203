"""`sdpo-bench train`: where its settings come from, and what it prints at the end."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import yaml
from conftest import TINY

from sdpo_bench.cli import main
from sdpo_bench.config import RunConfig
from sdpo_bench.records.identity import run_id


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder: its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main.main(["train", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def dumped(run, *arguments: object) -> dict:
    code, out, err = run(*arguments, "--dump-config")
    assert (code, err) == (0, "")
    return yaml.safe_load(out)


def test_flags_override_a_file_and_a_file_overrides_the_models_settings(run, tmp_path):
    (tmp_path / "run.yaml").write_text("method: sdpo\nsteps: 8\nfinetune: lora\noptions: {gamma: 0.5, scale: 2}\n")
    found = dumped(run, "--config", "run.yaml", "--steps", "20", "--options", "gamma", "-0.0", "--eval-steps", "1")
    assert (found["steps"], found["finetune"], found["options"]) == (20, "lora", {"gamma": 0.0, "scale": 2.0})
    assert found["epochs"] == 10, "the study's at K = 20"
    assert found["learning_rate"] == RunConfig.learning_rate, "the study's is for all weights"
    assert found["eval_steps"] == [1]
    assert dumped(run, "--config", "run.yaml", "--method", "ddpo")["options"] == {}
    assert list(tmp_path.iterdir()) == [tmp_path / "run.yaml"], "nothing is trained"


def test_a_flag_that_says_what_a_configuration_has_anyway_is_given(run):
    """Not only flags with another value: --finetune lora is RunConfig's default, and not the embedded model's."""
    found = dumped(run, "--finetune", "lora", "--train-last-step", "--epochs", "50")
    assert (found["finetune"], found["train_last_step"], found["epochs"]) == ("lora", True, 50)
    found = dumped(run)
    assert (found["finetune"], found["train_last_step"], found["epochs"]) == ("full", False, 25)
    assert dumped(run, "--model", "x/y")["finetune"] == "lora"


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("--dense", ["--dense", "anchored"]),
        ("--dense", ["--dense=anchored"]),
        ("--step-shuffle", ["--no-step-shuffle"]),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused_even_with_the_default_value(run, tmp_path, name, flags):
    code, out, err = run("--method", "ddpo", *flags)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: {name}: [^\n]+; leave it out\n", err)
    assert not (tmp_path / "runs").exists()


def test_help_shows_the_defaults_of_the_embedded_model(run, capsys):
    with pytest.raises(SystemExit):
        run("--help")
    out = " ".join(re.sub("[│\n]", " ", capsys.readouterr().out).split())
    assert re.search(r"--finetune {lora,full} [^()]*\(default: full\)", out)
    assert "--eval-rewards [STR [STR ...]]" in out
    assert "(default: auto)" in out
    assert "--dump-config [FILE]" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config"], "--config names no file"),
        (["--config", "none.yaml"], "none.yaml: there is no such file"),
        (["--config", "run.yaml"], "run.yaml: unknown key 'stepz'; did you mean steps?"),
        (["--config", "zero.json"], "--steps is 0; expected at least 1 (with the settings of zero.json)"),
    ],
)
def test_bad_files(run, tmp_path, arguments, message):
    (tmp_path / "run.yaml").write_text("stepz: 4\n")
    (tmp_path / "zero.json").write_text('{"steps": 0}')
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", err)
    assert message in err
    assert not (tmp_path / "runs").exists()


def test_a_run_is_repeated_from_its_configuration(run, tmp_path, tiny_model):
    """From the file that --dump-config wrote, and from the run's own: the same run, to the byte."""
    (tmp_path / "mine.txt").write_text("a red house\n")
    settings = TINY | {"eval_rewards": ["auto"], "eval_steps": [2], "epochs": 1, "model": str(tiny_model)}
    (tmp_path / "given.json").write_text(json.dumps(settings | {"prompts": "mine.txt", "eval_noises": 2}))
    assert run("--config", "given.json", "--dump-config", "all.yaml") == (0, "written: all.yaml\n", "")
    code, out, err = run("--config", "all.yaml")
    assert code == 0, err
    assert "settings of the study" not in err, "of another model"
    (folder,) = (tmp_path / "runs/train/raw").iterdir()
    assert json.loads((folder / "config.json").read_text())["eval_rewards"] == [], "the scorers know no house"
    assert "jpeg_compressibility, seen prompts  2 steps\nbefore" in out
    assert re.search(r"\ndifference  +[+-]\d\.\d{4}\n", out)
    code, _, err = run("--config", folder, "--model", tiny_model, "--out", "again")
    assert code == 0, err
    again = tmp_path / "again/raw" / folder.name
    assert (again / "eval.jsonl").read_bytes() == (folder / "eval.jsonl").read_bytes()


def test_the_embedded_model_learns_with_the_settings_of_the_study(run, tmp_path):
    """The line that says so, and what is printed at the end: both scorers, before, after and difference."""
    code, out, err = run(
        "--method",
        "ddpo",
        "--steps",
        "2",
        "--pairs",
        "2",
        "--pairs-per-update",
        "2",
        "--epochs",
        "1",
        "--eval-steps",
        "1",
        "--eval-noises",
        "1",
        "--eval-splits",
        "unseen",
    )
    assert code == 0, err
    assert err.startswith(
        "settings of the study for the embedded model, where none was given: --finetune full --no-train-last-step\n"
    )
    for reward in ("alignment", "alignment_heldout"):
        assert f"{reward}, unseen prompts" in out
    assert "DDPO: before and after 4 samples" in out
    assert "within noise where its 95 % interval over the prompts" in " ".join(out.split())
    (folder,) = (tmp_path / "runs/train/raw").iterdir()
    row = json.loads((folder / "config.json").read_text())
    assert (row["finetune"], row["train_last_step"], row["learning_rate"]) == ("full", False, 1e-4)
    assert folder.name == run_id(row)
    assert (folder / "model").is_dir()
    shutil.rmtree(folder / "model")
