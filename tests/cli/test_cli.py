"""The command line: help one can act on, and for bad input one clear line, exit code 2, nothing written."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY
from support.synthetic_records import make_config, write_profile
from support.table_files import markdown_tables

from sdpo_bench.cli import main, reproduce
from sdpo_bench.config import RunConfig
from sdpo_bench.errors import FULL_DISK, UserError
from sdpo_bench.experiments import profiles
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.plan import write_plan


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder: its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main.main([str(argument) for argument in arguments])
        except SystemExit as end:  # --help
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def refused(result: tuple[int, str, str], folder: Path) -> str:
    """The error's line, of a command that must be refused and leave `folder` as empty as it was."""
    code, out, err = result
    assert code == 2
    assert out == ""
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    assert not list(folder.iterdir())
    return err


TINY_ARGUMENTS = [
    "--reward",
    "jpeg_compressibility",
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
    "--checkpoint-every",
    "1",
    "--device",
    "cpu",
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "unknown command 'fly'; choose one of: reproduce, train, evaluate, tables, compare, doctor"),
        (["train", "--method", "ppo"], "unknown method 'ppo'; choose one of: crd, d3po, ddpo, ddpo_critic, ddpo_dense"),
        (["train", "--reward", "beauty"], "unknown reward 'beauty'; choose one of: alignment, alignment_heldout"),
        (["train", "--eval-rewards", "beauty"], "unknown reward 'beauty'; choose one of"),
        (["train", "--options", "gama", "1"], "unknown option 'gama' of sdpo; it has: gamma, scale, step_discount"),
        (["train", "--options", "gamma", "nan"], "option gamma of sdpo is nan; expected a finite number"),
        (["train", "--options", "gamma"], "--options"),
        (["train", "--options", "gamma", "-1"], "option gamma of sdpo is -1.0; expected 0 to 1"),
        (["train", "--options", "step_discount", "-1"], "option step_discount of sdpo is -1.0; expected a number > 0"),
        (["train", "--stepz", "3"], "Unrecognized options: --stepz, 3; perhaps you meant --steps INT; see"),
        (["train", "--steps", "four"], "invalid literal for int() with base 10: 'four'; expected --steps INT; see"),
        (["train", "--steps", "0"], "--steps is 0; expected at least 1"),
        (["train", "--updates", "never"], "Expected one of ('auto', 'step', 'trajectory')"),
        (["train", "--learning-rate", "0"], "--learning-rate is 0.0; expected a number > 0"),
        (["train", "--learning-rate", "nan"], "--learning-rate is nan; expected a number > 0"),
        (["train", "--pairs", "6", "--pairs-per-update", "4"], "--pairs is 6; expected a multiple of"),
        (["train", "--epochs", "-1"], "--epochs is -1; expected 0 or more"),
        (["train", "--eval-steps", "0"], "--eval-steps is (0,); expected numbers of sampling steps, each at least 1"),
        (["train", "--model", "/no/such/folder"], "/no/such/folder/model_index.json does not exist"),
        (["train", "--prompts", "none.txt"], "prompts file none.txt can't be read"),
        (["evaluate", "--rewards"], "--rewards is empty"),
        (["evaluate", "--model", "./nothing"], "model_index.json does not exist"),
        (["evaluate", "--out", "no/such/file.json"], "does not exist"),
        (["reproduce", "--profile", "quik"], "unknown profile 'quik'; choose one of: first_look, full, paper_k20"),
        (
            ["reproduce", "--methods", "sdpo", "ppo"],
            "unknown method 'ppo'; choose one of: crd, d3po, d3po_128_pairs, ",
        ),
        (["reproduce", "--seeds", "x"], "expected --seeds [INT [INT ...]]; see `sdpo-bench reproduce --help`"),
        (["reproduce", "--seeds", "-1"], "--seed is -1; expected 0 to 2^64 - 1"),
        (["reproduce", "--workers", "0"], "--workers is 0; expected at least 1"),
        (["reproduce", "--device", "tpu"], "invalid choice 'tpu' for argument '--device'"),
        (
            ["tables", "nothing"],
            "nothing has no records, packed or in a raw/ folder; give the folder of a profile",
        ),
    ],
)
def test_bad_input(run, tmp_path, arguments, message):
    if arguments[0] in ("train", "evaluate") and "--reward" not in arguments and "--rewards" not in arguments:
        computed = ["jpeg_compressibility"]
        arguments += ["--rewards", *computed] if arguments[0] == "evaluate" else ["--reward", *computed]
        arguments += ["--eval-rewards", *computed] * (arguments[0] == "train" and "--eval-rewards" not in arguments)
    assert message in refused(run(*arguments), tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_parsers_boxes_become_one_line(monkeypatch, encoding):
    """tyro draws its messages in a frame, in one way or another depending on the terminal."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    with pytest.raises(UserError) as caught:
        main.parse(reproduce.Reproduce, ["--sedes", "1"], "sdpo-bench reproduce")
    meant = "Unrecognized options: --sedes, 1; perhaps you meant --seeds [INT [INT ...]]"
    assert str(caught.value) == f"{meant}; see `sdpo-bench reproduce --help`"


def test_reproduce_takes_out_as_train_does():
    assert main.parse(reproduce.Reproduce, ["--out", "mine"], "sdpo-bench reproduce").results == Path("mine")


def test_a_reward_without_its_weights_says_what_to_fetch(run, tmp_path, tiny_model, tmp_path_factory, monkeypatch):
    weights = tmp_path_factory.mktemp("weights")
    (weights / "yuvalkirstain" / "PickScore_v1").mkdir(parents=True)
    monkeypatch.setenv("SDPO_BENCH_WEIGHTS", str(weights))
    arguments = ["0.5*pickscore+colourfulness" if a == "colourfulness" else a for a in TINY_ARGUMENTS]
    error = refused(run("train", "--model", tiny_model, *arguments), tmp_path)
    assert "PickScore_v1 lacks model.safetensors; " in error
    assert "hf download yuvalkirstain/PickScore_v1 model.safetensors --revision" in error


def test_a_step_without_noise_is_refused(run, tmp_path, tiny_model):
    """eta = 0 makes every step deterministic: sigma = 0 where it is trained."""
    error = refused(run("train", "--model", tiny_model, *TINY_ARGUMENTS, "--eta", "0"), tmp_path)
    assert "sigma" in error
    assert "eta" in error


def test_a_damaged_model_is_refused(run, tmp_path, tiny_model, tmp_path_factory):
    broken = tmp_path_factory.mktemp("models") / "broken"
    shutil.copytree(tiny_model, broken)
    (weights,) = (broken / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    error = refused(run("train", "--model", broken, *TINY_ARGUMENTS), tmp_path)
    assert "unet/diffusion_pytorch_model.safetensors can't be loaded" in error


def test_evaluate_takes_a_reward_that_no_run_can_optimise(run, tiny_model):
    """Some are measured over the pictures of a prompt; `train` refuses them as its --reward, and its help says so."""
    names = ("kid_start", "diversity", "vendi")
    command = ("evaluate", "--model", str(tiny_model), "--rewards", *names, "--eval-steps", "1", "--device", "cpu")
    code, out, _ = run(*command)
    assert code == 0
    values = {line.split(",")[0]: float(line.split()[-1]) for line in out.splitlines() if ", seen" in line}
    assert values["kid_start"] == 0, "of a pretrained model"
    assert values["diversity"] > 0
    assert 1 < values["vendi"] < 4
    for name in names:
        code, _, err = run("train", "--model", str(tiny_model), "--reward", name)
        assert code == 2
        assert "use it with --eval-rewards" in err
    measured = next(line for line in run("train", "--help")[1].splitlines() if "measured only" in line)
    assert all(name in measured for name in names)


def test_train_resume_and_evaluate(run, tmp_path, tiny_model):
    """One run from the command line; what is refused about its folder; its weights evaluated."""
    command = ["train", "--model", tiny_model, *TINY_ARGUMENTS]
    code, out, err = run(*command)
    assert code == 0, err
    config = RunConfig(model=str(tiny_model), **TINY)
    folder = Path("runs/train/raw") / run_id(config.to_json())
    for part in (
        "jpeg_compressibility, seen",
        "colourfulness, unseen",
        "seconds per epoch",
        f"records: {folder}",
        f'weights: pipeline.load_lora_weights("{folder}/adapter")',
    ):
        assert part in out
    assert "epoch 2/2, reward" in err
    assert json.loads((folder / "provenance.json").read_text())["device"].startswith("cpu: ")

    code, _, err = run(*command)  # the same again
    assert code == 2
    assert "--resume" in err
    assert run(*command, "--resume")[:2] == (0, out), "a finished run is shown as it is"

    evaluation = [
        "evaluate",
        "--model",
        tiny_model,
        "--rewards",
        "jpeg_compressibility",
        "--eval-steps",
        "1",
        "2",
        "--eval-noises",
        "1",
    ]
    code, out, err = run(*evaluation, "--weights", folder, "--out", "values.json")
    assert code == 0, err
    rows = {row["steps"]: row["values"] for row in json.loads(Path("values.json").read_text())}
    recorded = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    last = [row for row in recorded if row["epoch"] == 2 and row["reward"] == "jpeg_compressibility"]
    assert {row["steps"]: row["values"] for row in last} == {
        k: {s: {p: [float(f"{v:.6g}") for v in x] for p, x in prompts.items()} for s, prompts in values.items()}
        for k, values in rows.items()
    }, "the saved weights evaluate to what training recorded"
    assert "holds no saved weights" in run(*evaluation, "--weights", tmp_path)[2]

    (folder / "done.json").unlink()
    (folder / "checkpoint.pt").write_bytes(b"garbage")
    code, _, err = run(*command, "--resume")
    assert code == 2
    assert f"{folder}/checkpoint.pt can't be read" in err
    (folder / "checkpoint.pt").unlink()
    (folder / "config.json").write_text("{}")
    code, _, err = run(*command, "--resume")
    assert code == 2
    assert "config.json" in err


def test_train_goes_on_with_what_only_says_how(run, tmp_path, tiny_model, monkeypatch):
    """Other rows, more epochs and a moved model go on; another learning rate or fewer epochs are refused, by name."""
    command = ["train", "--model", tiny_model, *TINY_ARGUMENTS]
    code, _, err = run(*command)
    assert code == 0, err
    assert err.startswith("SDPO: begins at epoch 1 of 2\n")
    (folder,) = Path("runs/train/raw").iterdir()
    moved = shutil.copytree(tiny_model, tmp_path / "models" / tiny_model.name)
    more = ["train", "--model", f"models/../models/{moved.name}/", *TINY_ARGUMENTS, "--epochs", "3", "--rows", "32"]
    code, _, err = run(*more)
    assert (code, "already holds a run; continue with --resume" in err) == (2, True)
    code, _, err = run(*more, "--resume")
    assert code == 0, err
    assert err.startswith("SDPO: begins at epoch 3 of 3\n")
    assert [*folder.parent.iterdir()] == [folder]
    assert json.loads((folder / "config.json").read_text())["rows"] == 32
    assert "finished before, all 3 epochs" in run(*more, "--resume")[2]

    code, _, err = run(*more, "--learning-rate", "1e-3", "--resume")
    assert code == 2
    assert "other settings: learning_rate (stored 0.0001, new 0.001); use its settings, or" in err
    code, _, err = run(*command, "--resume")
    assert code == 2
    assert f"{folder}: the run has 3 epochs finished, so it can't have fewer (--epochs 2); evaluate its" in err
    three = [*more[:-4], "--epochs", "2", "--rows", "16"]  # a configuration that no run was begun with
    code, _, err = run(*three, "--eval-every", "1", "--resume")
    assert code == 2
    assert "the run has 3 epochs finished, so it can't have fewer (--epochs 2); evaluate its" in err
    assert "checkpoint" not in err
    assert [*folder.parent.iterdir()] == [folder]

    (folder / "checkpoint.pt").unlink()
    shutil.rmtree(folder / "adapter")
    code, _, err = run(*more, "--resume")
    assert code == 0
    assert f"warning: {folder}/adapter was deleted and there is no checkpoint to restore it from" in err
    (folder / "done.json").unlink()
    err = run(*more, "--resume")[2]
    assert "begins at epoch 1 of 3 again: 3 recorded, but there is no checkpoint (deleted, or none was due yet)" in err


def wait_for_rows(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until a run in `folder` has recorded so many epochs."""
    while sum(path.read_bytes().count(b"\n") for path in folder.glob("raw/*/train.jsonl")) < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def test_signals_stop_train_with_its_state_saved(tmp_path, tiny_model):
    """SIGTERM, as of a scheduler, and Ctrl-C; each time it says how to go on, and goes on there."""
    command = [
        "train",
        "--model",
        str(tiny_model),
        *TINY_ARGUMENTS,
        "--epochs",
        "5000",
        "--eval-every",
        "5000",
        "--checkpoint-every",
        "5000",
    ]
    epoch = 0
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = subprocess.Popen(
            [sys.executable, "-m", "sdpo_bench", *command, *["--resume"] * bool(epoch)],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        wait_for_rows(tmp_path / "runs" / "train", epoch + 2, process)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
        assert process.returncode == code, err
        assert f"begins at epoch {epoch + 1} of 5000" in err
        (saved,) = re.findall(r"stopped: the state after epoch (\d+) is saved\. Continue with: (.*)", err)
        assert saved[1] == shlex.join(["sdpo-bench", *command, "--resume"])
        assert int(saved[0]) > epoch
        epoch = int(saved[0])


@pytest.mark.parametrize("number", FULL_DISK)
def test_a_full_disk_and_a_place_that_takes_nothing(run, tmp_path, tiny_model, monkeypatch, number):
    (tmp_path / "file").touch()
    code, _, err = run("train", "--model", tiny_model, *TINY_ARGUMENTS, "--out", "file")
    assert code == 2
    assert re.fullmatch("error: Not a directory: [^\n]*file[^\n]*\n", err)

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = run("train", "--model", tiny_model, *TINY_ARGUMENTS)
    assert code == 2
    assert re.fullmatch(r"error: the disk is full \([^\n]*\): free space and continue with --resume\n", err), err


def test_tables_regenerate_to_the_same_bytes(run, tmp_path):
    profile = write_profile(tmp_path / "results" / "quick", 1, ("SDPO",))
    code, out, _ = run("tables", profile)
    assert (code, "results/quick: tables, figures and report written" in out) == (0, True)
    shutil.copytree(profile, tmp_path / "moved" / "quick")
    assert run("tables", "moved/quick", "--check")[0] == 0, "their place does not matter"
    write_plan(Path("moved/quick"), [make_config("DDPO") | {"run_id": "planned"}])
    code, out, _ = run("tables", "moved/quick", "--check")
    assert code == 1, "the plan says what is missing"
    assert all(re.search(rf"{page}: other", out) for page in ("README.md", "report.html")), out
    (profile / "report.html").write_text("mine")
    (profile / "tables" / "notes.md").touch()
    next((profile / "figures").glob("*.svg")).unlink()
    listed = json.loads((profile / ".generated").read_text())
    (profile / ".generated").write_text(json.dumps(listed | {"tables/old.md": "0" * 64}))
    (profile / "tables" / "old.md").touch()
    code, out, err = run("tables", profile, "--check")
    assert code == 1
    assert out.count("\n") == 4
    for part in ("report.html: other", "tables/old.md: not from these records", ".svg: missing", ".generated: other"):
        assert part in out
    assert err.startswith("error: ")
    record = next((profile / "raw").glob("sdpo*/eval.jsonl"))
    record.write_text("nonsense\n")
    code, _, err = run("tables", profile)
    assert code == 2
    assert f"{record.parent.name}/eval.jsonl, line 1" in err


def test_tables_are_latex_on_request(run, tmp_path):
    profile = write_profile(tmp_path / "results" / "quick", 1, ("SDPO",))
    assert run("tables", profile, "--latex")[0] == 0
    tables = {path.stem for path in profile.glob("tables/*.tex")}
    assert tables == markdown_tables(profile).keys() != set()
    assert run("tables", profile, "--check", "--latex")[0] == 0
    code, out, _ = run("tables", profile, "--check")
    assert (code, out.count(".tex: not from these records")) == (1, len(tables))
    assert run("tables", profile)[0] == 0
    assert not list(profile.glob("tables/*.tex"))


def test_dry_run_lists_without_writing(run, tmp_path):
    code, out, _ = run("reproduce", "--profile", "first-look", "--dry-run", "--seeds", "3", "--workers", "2")
    assert code == 0
    assert len(re.findall(r"-k20-s3-", out)) == 5
    assert re.search(r"11 runs, about .* left with 2 workers", out)
    assert not list(tmp_path.iterdir())


def test_existing_results_are_not_touched(run, tmp_path):
    write_profile(tmp_path / "runs" / "quick", 1, ("SDPO",))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, _, err = run("reproduce")
    assert code == 2
    assert err.startswith("error: runs/quick already holds 2 runs: add --resume")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("command", main.COMMANDS)
def test_help(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert f"usage: sdpo-bench {command}" in out
    if command != "doctor":
        assert "examples:" in out
    if command == "reproduce":
        words = out.replace("-", "_")
        assert all(name in words for name in profiles.PROFILES)
    if command == "train":
        assert "sdpo_causal: SDPO-causal (gamma 0.99" in out
        assert "jpeg_incompressibility" in out
        assert "rewards with published weights" in out
        assert "hpsv2.1, imagereward, pickscore" in " ".join(out.split())


def test_overview(run):
    code, out, _ = run()
    assert code == 2
    assert run("--help") == (0, out, "")
    assert all(f"\n  {command} " in out for command in main.COMMANDS)
    assert run("--version") == (0, "0.1.0\n", "")


def test_doctor(run, monkeypatch):
    from sdpo_bench.cli import installation

    def missing() -> str:
        raise FileNotFoundError("config.json")

    checks = {name: installation.CHECKS[name] for name in ("device", "results")}
    monkeypatch.setattr(installation, "CHECKS", checks | {"rewards": (missing, "restore it")})
    code, out, _ = run("doctor")
    assert code == 1
    assert "ok      device: cpu: " in out
    assert "FAILED  rewards: FileNotFoundError: config.json\n        restore it" in out
    assert "1 of 3 checks failed" in out


def test_doctor_reads_the_records_of_one_profile(monkeypatch):
    """Those that the first command is compared with; all of them would take a minute of a core."""
    from sdpo_bench.cli import installation
    from sdpo_bench.records import reader

    read, one, packed = [], reader.load_run, reader.read_packed
    monkeypatch.setattr(reader, "load_run", lambda folder: read.append(folder.parts[-3]) or one(folder))
    monkeypatch.setattr(reader, "read_packed", lambda folder: read.append(folder.name) or packed(folder))
    text = installation._results()
    assert set(read) == {"quick"}
    assert re.search(r"results/full \(\d{3,} runs\), .*results/quick \(15 runs\)", text)


def test_the_real_command(tmp_path):
    """Once as a user runs it: exit code, streams, and help without the seconds that importing PyTorch takes."""
    command = [sys.executable, "-X", "importtime", "-m", "sdpo_bench"]
    done = subprocess.run([*command, "reproduce", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert " torch\n" not in done.stderr
    assert "--dry-run" in done.stdout
    command = [sys.executable, "-m", "sdpo_bench", "train", "--method", "ppo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: unknown method 'ppo'; choose one of: [^\n]+\n", done.stderr), done.stderr
    assert not list(tmp_path.iterdir())
