"""Configuration files: what is read from YAML, JSON, a run's config.json and a packed run, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sdpo_bench.api.files import dumped, read_settings
from sdpo_bench.api.settings import resolved
from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.methods import METHODS
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.packed import index

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture
def file(tmp_path):
    def write(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_yaml_is_read_as_version_1_2(file):
    """The traps of YAML 1.1: 1e-4 is a text there, no is false, 010 is eight, 1:30 is ninety."""
    text = "learning_rate: 1e-4\nmax_grad_norm: 2\nlabel: no\nrevision: 1:30\neval_steps: [1, 4]\n"
    found = read_settings(file(f"{text}compile: true\nadapter:\n")).values
    assert found == {
        "learning_rate": 1e-4,
        "max_grad_norm": 2.0,
        "label": "no",
        "revision": "1:30",
        "eval_steps": (1, 4),
        "compile": True,
        "adapter": None,
    }
    assert type(found["max_grad_norm"]) is float, "as --max-grad-norm 2 gives it: the run's id has it"
    assert yaml.safe_load("1e-4") == "1e-4", "else PyYAML reads 1.2 itself now"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning-rate: 1e-4", "unknown key 'learning-rate'; did you mean learning_rate?"),
        ("stepz: 4", "unknown key 'stepz'; did you mean steps?"),
        ("quux: 4", "unknown key 'quux'; `sdpo-bench train --dump-config` shows all"),
        ("1: 4", "unknown key '1'"),
        ("steps: four", "steps is 'four'; expected a whole number"),
        ("steps: 4.0", "steps is 4.0; expected a whole number"),
        ("steps: true", "steps is True; expected a whole number"),
        ("steps: 010", "steps is '010'; expected a whole number"),
        ("eval_steps: 4", "eval_steps is 4; expected a list, each a whole number"),
        ("revision: 12345678", "revision is 12345678; expected a text (of digits alone: in quotes) or null"),
        ("updates: never", "updates is 'never'; expected one of auto, step, trajectory"),
        ("learning_rate: .inf", "learning_rate is '.inf'; expected a number"),
        ("compile: yes", "compile is 'yes'; expected true or false"),
        ("options: [gamma]", "options is ['gamma']; expected a mapping of names to numbers"),
        ("steps: 4\nsteps: 8", "the key 'steps' is given twice; leave one out"),
        ("- steps", "expected settings, such as `steps: 4`, one a line; found ['steps']"),
        ("", "found None"),
        ("steps: [", "line 1: not YAML: "),
        ("a: &b [*b]", "line 1: not YAML: found unconstructable recursive node"),
        ("steps: !!python/name:os.system", "line 1: not YAML: "),
    ],
)
def test_bad_yaml(file, text, message):
    path = file(text)
    with pytest.raises(UserError) as caught:
        read_settings(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"steps": 4, "steps": 8}', "the key 'steps' is given twice"),
        ('{"learning_rate": NaN}', "learning_rate is nan; expected a number"),
        ("steps: 4", "not JSON: "),
        ("[" * 100_000, "nested too deeply"),
        ('{"run_id": "x", "schema": 2}', "schema is 2, not 1; use the version that wrote it"),
    ],
)
def test_bad_json(file, text, message):
    with pytest.raises(UserError, match=r"run\.json") as caught:
        read_settings(file(text, "run.json"))
    assert message in str(caught.value)


def test_a_committed_run_is_the_same_run_again():
    """Of a packed profile every run, the start's too, by the path that its folder would have."""
    for profile in (RESULTS / "quick", RESULTS / "recent_sweep"):
        for name in index(profile):
            found = resolved(read_settings(profile / "raw" / name), {})
            assert run_id(found.config.to_json()) == name
            assert not found.of_model, "it says everything itself"
    assert read_settings(profile / "raw" / name / "config.json").values == read_settings(profile / "raw" / name).values


def test_a_run_that_is_not_there(tmp_path):
    name = next(iter(index(RESULTS / "quick")))
    with pytest.raises(UserError, match=rf"no run of that name; did you mean \S+/results/quick/raw/{name}\?"):
        read_settings(RESULTS / "quick" / "raw" / name[:-4])
    with pytest.raises(UserError, match="there is no such file"):
        read_settings(tmp_path / "nothing.yaml")
    with pytest.raises(UserError, match="this folder holds no run"):
        read_settings(tmp_path)


@pytest.mark.parametrize("name", METHODS)
def test_a_runs_own_file(file, name):
    """What config.json derives is left out, and what the method would give too; options keep their values."""
    config = RunConfig(method=name, options={"gamma": 0.5} if name == "sdpo" else {}, epochs=3, device="cpu")
    row = config.to_json()
    row["run_id"] = run_id(row)
    settings = read_settings(file(json.dumps(row | {"begun": {"epochs": 2}}), "config.json"))
    assert not settings.values.keys() & {"label", "updates", "group_size", "run_id", "schema", "begun"}
    again = resolved(settings, {}).config
    assert again.to_json() | {"run_id": row["run_id"]} == row


@pytest.mark.parametrize("is_json", [False, True])
def test_a_dump_is_read_back(file, is_json):
    config = RunConfig(
        method="sdpo",
        options={"gamma": 0.5},
        label="1e5",
        revision="no",
        learning_rate=1e-5,
        eval_steps=(2,),
        seed=7,
        noise_level=0.25,
        eval_rewards=("colourfulness",),
        reward="0.5*colourfulness+0.5*jpeg_compressibility",
    )
    text = dumped(config, is_json)
    assert "sampled" in text or is_json, "headings"
    assert resolved(read_settings(file(text, "run.json" if is_json else "run.yaml")), {}).config == config
