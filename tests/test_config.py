"""The configuration: groups of fields, their ranges, and run ids that stay."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

from sdpo_bench import config
from sdpo_bench.catalogue import DENSE_REWARDS, SAMPLERS
from sdpo_bench.cli import main
from sdpo_bench.cli.doctor import Doctor
from sdpo_bench.cli.evaluate import Evaluate
from sdpo_bench.cli.train import train_command
from sdpo_bench.config import RunConfig, flag, flat
from sdpo_bench.errors import UserError
from sdpo_bench.records.identity import run_id

ROOT = Path(__file__).parents[1]
FIELDS = {f.name: f for f in dataclasses.fields(RunConfig)}
GROUPS = RunConfig.__bases__


def given(stored):
    """The arguments of the configuration that a config.json holds."""
    method = stored["method"]
    found = {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items() if key in FIELDS and v != method}
    if method["name"] == "start":
        return found
    return found | {"method": method["name"], "options": {k: v for k, v in method.items() if k != "name"}}


def test_run_ids_of_all_committed_runs_stay():
    folders = [path.parent for path in ROOT.glob("results/*/raw/*/config.json")]
    assert len(folders) > 600
    for folder in folders:
        stored = json.loads((folder / "config.json").read_text())
        row = RunConfig(**given(stored)).to_json()
        assert row == {key: value for key, value in stored.items() if key not in ("run_id", "begun")}
        assert run_id(row | ({"begun": stored["begun"]} if "begun" in stored else {})) == folder.name


def test_every_field_belongs_to_one_group():
    names = [f.name for group in GROUPS for f in dataclasses.fields(group)]
    assert sorted(names) == sorted(FIELDS)
    assert len(names) == len({*names})


def test_commands_take_the_fields_of_a_run():
    default = {name: getattr(RunConfig(), name) for name in FIELDS} | {"label": ""}
    own = {"out", "resume", "tracker", "shard"}
    assert {k: v for k, v in flat(train_command()()).items() if k not in own} == default
    evaluate, doctor = flat(Evaluate()), flat(Doctor())
    same = {k: v for k, v in evaluate.items() if k not in ("weights", "lora_rank", "lora_alpha", "rewards", "out")}
    assert same.items() <= default.items()
    assert {k: v for k, v in doctor.items() if k not in ("model", "rewards", "memory")}.items() <= default.items()
    assert doctor["model"] == ""


def test_the_help_shows_the_groups_and_flat_flags(capsys):
    with pytest.raises(SystemExit):
        main.main(["train", "--help"])
    out = capsys.readouterr().out
    titles = ["options", *(f"{name} options" for name in ("model", "sampler", "rollout", "optimizer", "evaluation"))]
    boxes = re.findall(r"^\W*((?:\w+ )?options)\W*$", out, re.M)
    assert boxes == [*titles, "memory options"]
    for name in FIELDS:
        assert f"{flag(name)} " in out or f"{flag(name)}," in out
    assert all(f"  {name}: " in out for name in (*SAMPLERS, *(entry.name for entry in DENSE_REWARDS)))


@pytest.mark.parametrize("name", [name for name, f in FIELDS.items() if "valid" in f.metadata])
def test_a_value_out_of_range_is_refused(name):
    f, expected = FIELDS[name], FIELDS[name].metadata["expected"]
    values = [(-1,), (3, 0)] if isinstance(f.default, tuple) else [-1, math.nan, math.inf]
    values += [0] * (not isinstance(f.default, tuple) and not f.metadata["valid"](0))
    values += [1.5] if name == "eta" else [0.5] if name == "guidance" else []
    for value in values:
        with pytest.raises(UserError) as caught:
            RunConfig(**{name: value})
        assert str(caught.value) == f"{flag(name)} is {value}; expected {expected}"


@pytest.mark.parametrize("name", [name for group in GROUPS for name in config.choices(group)])
def test_a_value_that_is_no_choice_is_refused(name):
    with pytest.raises(UserError, match=f"unknown {name.replace('_', ' ')} 'none'; choose one of: "):
        RunConfig(**{name: "none"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_splits": ("test",)}, "unknown evaluation split 'test'"),
        ({"eval_steps": ()}, "--eval-steps is empty"),
        ({"eval_last_steps": (2, 16)}, r"--eval-last-steps is \(2, 16\); expected numbers that --eval-steps lacks"),
        ({"prompt_stats_min_count": 33}, "expected 1 to --prompt-stats-buffer"),
        ({"eval_interim_noises": 0}, "--eval-interim-noises is 0; expected 1 to --eval-noises"),
        ({"pairs": 24}, "expected a multiple of --pairs-per-update"),
        ({"finetune": "full", "dtype": "float16"}, "--finetune full trains the weights themselves"),
        ({"steps": 1}, "--steps is 1; expected at least 2"),
        ({"label": "start"}, "--label start is the untrained model's"),
        ({"label": "a\nb"}, "without control characters"),
        ({"label": "x" * 101}, "--label has 101 letters"),
        ({"seed": 2**64}, "--seed is 18446744073709551616; expected 0 to 2"),
    ],
)
def test_fields_that_do_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        RunConfig(**changes)
