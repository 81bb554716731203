"""The configuration: groups of fields, their ranges, and run ids that stay."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import pytest

from sdpo_bench.catalogue import DENSE_REWARDS, SAMPLERS
from sdpo_bench.cli import main
from sdpo_bench.cli.doctor import Doctor
from sdpo_bench.cli.evaluate import Evaluate
from sdpo_bench.cli.train import train_command
from sdpo_bench.config import LATER, NOISE_LEVELS, RunConfig, flag, flat
from sdpo_bench.errors import UserError
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.reader import load_profile

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
    profiles = [path.parent for path in ROOT.glob("results/*/packed.json")]
    runs = [run for profile in profiles for run in load_profile(profile, means=True)]
    assert len(runs) > 600
    for run in runs:
        stored = run.config
        row = RunConfig(**given(stored)).to_json()
        assert row == {key: value for key, value in stored.items() if key not in ("run_id", "begun")}
        assert run_id(row | ({"begun": stored["begun"]} if "begun" in stored else {})) == run.run_id


def test_every_field_belongs_to_one_group():
    names = [f.name for group in GROUPS for f in dataclasses.fields(group)]
    assert sorted(names) == sorted(FIELDS)
    assert len(names) == len({*names})


def test_commands_take_the_fields_of_a_run():
    default = {name: getattr(RunConfig(), name) for name in FIELDS} | {"label": ""}
    own = {"out", "resume", "tracker", "shard", "push_to_hub", "config", "dump_config", "plugin"}
    assert {k: v for k, v in flat(train_command()()).items() if k not in own} == default
    evaluate, doctor = flat(Evaluate()), flat(Doctor())
    same = {
        k: v for k, v in evaluate.items() if k not in ("weights", "lora_rank", "lora_alpha", "rewards", "out", "plugin")
    }
    assert same.items() <= default.items()
    assert {
        k: v for k, v in doctor.items() if k not in ("model", "rewards", "memory", "plugin")
    }.items() <= default.items()
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


RANGES = {  # the lowest valid values, or what is above the bound; then words
    "at least 1": (
        1,
        "eval_every eval_noises inner_epochs lora_rank pad_rows pairs pairs_per_update prompt_stats_buffer "
        "prompt_stats_min_count reward_batch steps train_window train_window_epochs",
    ),
    "at least 2": (2, "group_size"),
    "0 or more": (0, "checkpoint_every epochs noise_level probe_every rows weight_decay"),
    "a number > 0": (1e-9, "advantage_clip clip_range learning_rate lora_alpha max_grad_norm resolution"),
    "0 to 2^64 - 1 (18446744073709551615)": (0, "eval_seed seed"),
    "above 0, to 1": (1e-9, "train_share"),
    "0 (DDIM) to 1 (DDPM)": (0, "eta"),
    "1 (none) or more": (1, "guidance"),
}


@pytest.mark.parametrize(
    ("name", "expected"), [(n, words) for words, (_, names) in RANGES.items() for n in names.split()]
)
def test_ranges(name, expected):
    lowest = RANGES[expected][0]
    others = {
        "pairs": {"pairs_per_update": 1},
        "pairs_per_update": {},
        "group_size": {"method": "ddpo"},
        "steps": {"method": "diffusion_nft"},
        "prompt_stats_buffer": {"prompt_stats_min_count": 1},
        "train_window": {"method": "grpo", "train_last_step": False},
    }
    assert getattr(RunConfig(**others.get(name, {}) | {name: lowest}), name) == lowest
    for value in (lowest - 1, -math.inf, math.inf, math.nan, *([0] if lowest == 1e-9 else [])):
        with pytest.raises(UserError) as caught:
            RunConfig(**{name: value})
        assert str(caught.value) == f"{flag(name)} is {value}; expected {expected}"


def test_every_range_is_tested():
    tested = {name for _, names in RANGES.values() for name in names.split()} | {"eval_steps", "eval_last_steps"}
    assert {name for name, f in FIELDS.items() if "valid" in f.metadata} == tested
    with pytest.raises(UserError, match=r"--eta is 1\.5"):
        RunConfig(eta=1.5)
    for name in ("eval_steps", "eval_last_steps"):
        with pytest.raises(
            UserError, match=rf"{flag(name)} is \(3, 0\); expected numbers of sampling steps, each at least 1"
        ):
            RunConfig(**{name: (3, 0)})


CHOICES = ["dense", "device", "dtype", "finetune", "reward_dtype", "sampler", "train_split", "updates"]


@pytest.mark.parametrize("name", CHOICES)
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
        ({"finetune": "full", "dtype": "float16"}, "--finetune full needs more precision"),
        ({"steps": 1}, "--steps is 1; expected at least 2"),
        ({"label": "start"}, "--label start is reserved for the pretrained model"),
        ({"label": "a\nb"}, "without control characters"),
        ({"label": "x" * 101}, "--label has 101 letters"),
        ({"seed": 2**64}, "--seed is 18446744073709551616; expected 0 to 2"),
    ],
)
def test_fields_that_do_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        RunConfig(**changes)


def test_defaults_that_config_json_leaves_out_stay():
    """Another default would give old runs' ids to runs with other settings."""
    left_out = {
        "adapter": None,
        "channels_last": False,
        "compile": False,
        "dtype": "float32",
        "eval_last_rewards": (),
        "eval_last_steps": (),
        "eval_interim_noises": None,
        "gradient_checkpointing": False,
        "group_size": None,
        "guidance": 1.0,
        "inner_epochs": 1,
        "noise_level": None,
        "offload_trajectories": False,
        "probe_every": 0,
        "prompt_stats_buffer": 32,
        "prompt_stats_min_count": 16,
        "resolution": None,
        "reward_batch": 32,
        "reward_dtype": "float32",
        "sampler": "auto",
        "shared_noise": None,
        "step_shuffle": True,
        "train_share": 1.0,
        "train_window": None,
        "train_window_epochs": 25,
        "vae_slicing": False,
    }
    config = RunConfig()
    assert NOISE_LEVELS["flow_sde"] == 0.7  # what noise_level was where it was left out
    assert {name: getattr(config, name) for name in LATER} == left_out
    assert not config.to_json().keys() & {*left_out, "device"}


@pytest.mark.parametrize(
    ("sampler", "level", "kept"),
    [
        ("auto", 0.7, False),
        ("ddim", 0.7, False),
        ("flow_sde", 0.7, False),
        ("flow_sde", 0.8, True),
        ("flow_cps", 0.8, False),
        ("flow_cps", 0.7, True),
        ("dance_sde", 0.3, False),
        ("tcd", 0.3, False),
        ("tcd", 0.0, True),
    ],
)
def test_config_json_leaves_out_a_samplers_own_noise_level(sampler, level, kept):
    """Whether it was given or not, so that both are the same run."""
    given = RunConfig(sampler=sampler, noise_level=level).to_json()
    assert given.get("noise_level") == (level if kept else None)
    assert (given == RunConfig(sampler=sampler).to_json()) != kept
