"""Rewards by name: what is understood, what it is called in records, what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.records.identity import run_id
from sdpo_bench.rewards import PRETRAINED, REWARDS, canonical, load_reward, load_rewards
from sdpo_bench.rewards._spec import Term, parse

terms = st.builds(
    Term,
    name=st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,12}", fullmatch=True),
    weight=st.floats(allow_nan=False, allow_infinity=False).filter(bool),
    revision=st.just("") | st.from_regex(r"[A-Za-z0-9_./-]{1,40}", fullmatch=True),
    published=st.booleans(),
)


@given(st.lists(terms, min_size=1, max_size=4), st.sampled_from(["+", " + "]))
def test_what_is_written_is_read(parts, plus):
    assert parse(plus.join(map(str, parts))) == parts


@given(st.text(max_size=30))
def test_anything_else_is_refused_in_one_line(text):
    try:
        found = parse(text)
    except UserError as error:
        message = str(error)
    else:
        message = ""
        assert parse("+".join(map(str, found))) == found
    assert len(message.splitlines()) <= 1


@pytest.mark.parametrize(
    ("spec", "spelling"),
    [
        ("pickscore", "pickscore"),
        (" pickscore:raw ", "pickscore"),
        ("1*pickscore", "pickscore"),
        ("imagereward:published", "imagereward:published"),
        ("hpsv2.1@main", "hpsv2.1@main"),
        (".50 * pickscore + 1e+0*aesthetic", "0.5*pickscore+aesthetic"),
        ("2*pickscore@697403c:published+-1e-3*hpsv2", "2*pickscore@697403c:published+-0.001*hpsv2"),
    ],
)
def test_one_spelling_for_records(spec, spelling):
    assert "+".join(map(str, parse(spec))) == spelling
    assert canonical(spec) == spelling
    # Another scale of a score that has but one is the same reward.
    assert canonical("2*aesthetic:published+hpsv2.1@main:published") == "2*aesthetic+hpsv2.1@main"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "reward '' can't be read at ''; expected NAME"),
        ("pickscore+", "can't be read at ''"),
        ("-pickscore", "can't be read at '-pickscore'"),
        ("0.5*", "can't be read"),
        ("pickscore hpsv2", "can't be read"),
        ("pickscore:public", "unknown scale 'public'; choose one of: published, raw"),
        ("0*pickscore", "weight 0 of pickscore; expected a number, not 0"),
        ("1e999*pickscore", "weight 1e999 of pickscore"),
        ("beauty", "unknown reward 'beauty'; choose one of: alignment, .*; or with published weights: aesthetic, "),
        ("colourfulness+beauty", "unknown reward 'beauty'"),
        ("colourfulness:published", "colourfulness has one scale and no revisions to choose from"),
        ("colourfulness@main", "colourfulness has one scale and no revisions"),
    ],
)
def test_refused(spec, message):
    with pytest.raises(UserError, match=message):
        load_reward(spec)


def test_two_spellings_are_one_run():
    def name(**changes: object) -> str:
        return run_id(RunConfig(**changes).to_json())

    plain = RunConfig(reward="0.5*pickscore+aesthetic", eval_rewards=("hpsv2",))
    other = RunConfig(reward=" .5*pickscore + 1*aesthetic:published", eval_rewards=("hpsv2:raw", "hpsv2"))
    assert run_id(plain.to_json()) == run_id(other.to_json())
    assert other.to_json()["reward"] == "0.5*pickscore+aesthetic"
    assert other.eval_rewards == ("hpsv2",)
    assert name(reward="pickscore") != name(reward="pickscore:published")
    with pytest.raises(UserError, match="unknown reward 'beauty'"):
        RunConfig(eval_rewards=("beauty",))


def test_new_settings_of_rewards_leave_old_runs_their_ids():
    old = RunConfig().to_json()
    assert not {"reward_dtype", "reward_batch"} & old.keys()
    assert RunConfig(reward_batch=8).to_json() == old | {"reward_batch": 8}
    assert RunConfig(reward_dtype="float16").to_json() == old | {"reward_dtype": "float16"}
    for changes in ({"reward_batch": 0}, {"reward_dtype": "float8"}):
        with pytest.raises(UserError, match=r"--reward-batch is 0|unknown reward dtype 'float8'"):
            RunConfig(**changes)


def test_a_reward_is_loaded_once_for_all_sums_that_have_it(monkeypatch):
    made = []

    class Counted(REWARDS["colourfulness"]):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            made.append(self)

    monkeypatch.setitem(REWARDS, "colourfulness", Counted)
    found = load_rewards(["2*colourfulness+jpeg_compressibility", "colourfulness", " colourfulness"])
    assert list(found) == ["2*colourfulness+jpeg_compressibility", "colourfulness"]
    assert len(made) == 1
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    total, colour = (reward(images, ["cat", "dog"]) for reward in found.values())
    assert torch.allclose(total, 2 * colour + load_reward("jpeg_compressibility")(images, ["cat", "dog"]))


def test_names():
    assert sorted(PRETRAINED) == ["aesthetic", "clipscore", "hpsv2", "hpsv2.1", "imagereward", "pickscore"]
    assert not REWARDS.keys() & PRETRAINED.keys()
    for cls in PRETRAINED.values():
        assert all(getattr(cls, name) for name in ("name", "title", "licence", "revision", "scale"))
        assert all(len(source.revision) == 40 for source in cls.sources)  # commits


def test_weighted_sums_of_computed_rewards():
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompts = ["cat", "dog", "cow"]
    reward = load_reward("0.5*colourfulness + -2*jpeg_compressibility")
    size, colour = (load_reward(n)(images, prompts) for n in ("jpeg_compressibility", "colourfulness"))
    value = reward(images, prompts)
    assert value.dtype == torch.float32
    assert torch.allclose(value, 0.5 * colour - 2 * size)
    assert reward.name == "0.5*colourfulness+-2*jpeg_compressibility"
    assert reward.title == "0.5 Colourfulness + -2 JPEG compressibility"
    assert reward.weights_sha256 == {}
    assert all(getattr(reward, name) for name in ("licence", "revision", "scale"))


def test_a_sum_knows_the_prompts_that_its_parts_know():
    with pytest.raises(UserError, match="alignment knows only its 45 animals"):
        load_reward("alignment+colourfulness").check_prompts(["a castle"])


def test_computed_rewards_ignore_device_and_dtype():
    assert load_reward("colourfulness", device="cuda", dtype=torch.float16, batch_size=1).name == "colourfulness"
