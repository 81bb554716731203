"""Settings by model: what the embedded model brings, and that flags and files override it."""

from __future__ import annotations

import dataclasses

import pytest

from sdpo_bench.api.files import Settings, checked
from sdpo_bench.api.settings import resolved
from sdpo_bench.config import RunConfig, TrainingEvaluationConfig
from sdpo_bench.errors import UserError
from sdpo_bench.experiments.learning_rates import LEARNING_RATES
from sdpo_bench.experiments.profiles import quick
from sdpo_bench.experiments.variants import RECENT, STUDIED


def made(**changes):
    return resolved(Settings(), changes)


@pytest.mark.parametrize("name", [name for name in (*STUDIED, *RECENT) if name in LEARNING_RATES])
def test_the_embedded_model_takes_the_settings_of_the_study(name):
    (_, study) = quick([name], [0])
    evaluation = {f.name: getattr(study, f.name) for f in dataclasses.fields(TrainingEvaluationConfig)}  # the profile's
    assert dataclasses.replace(made(method=name).config, device="cpu", **evaluation) == study


def test_other_models_have_the_defaults_of_a_configuration():
    found = made(model="stabilityai/sd-turbo", method="grpo")
    assert found.config == RunConfig(model="stabilityai/sd-turbo", method="grpo")
    assert not found.note


def test_what_is_given_stays():
    found = made(method="grpo", learning_rate=3e-4, train_last_step=True)
    assert (found.config.learning_rate, found.config.train_last_step, found.config.finetune) == (3e-4, True, "full")
    assert found.note == (
        "settings of the study for the embedded model, where none was given: --finetune full "
        "--epochs 25 --pairs 8 --pairs-per-update 4"
    )
    assert made(method="pso", finetune="lora").config.learning_rate == RunConfig.learning_rate, "swept for all weights"


@pytest.mark.parametrize(("method", "size"), [("ddpo", 3), ("grpo", 24), ("ddpo", 64)])
def test_a_group_that_does_not_divide_the_studys_samples_is_refused(method, size):
    """It would make an epoch of other samples than the study's."""
    with pytest.raises(
        UserError, match=rf"--group-size is {size}, which does not divide the study's 64 .*; give --pairs"
    ):
        made(method=method, group_size=size)
    assert made(method=method, group_size=size, pairs=2, pairs_per_update=1).config.pairs == 2
    assert made(method=method, group_size=size, model="stabilityai/sd-turbo").config.pairs == RunConfig.pairs
    assert made(method=method, group_size=8).config.pairs == 8


def test_one_step_and_no_epoch_need_no_settings_of_the_study():
    assert made(method="draft", steps=1).config.train_last_step
    assert made(epochs=0).of_model == {}


def test_a_method_that_was_not_swept_has_the_default_rate():
    assert made(method="ddpo_critic").config.finetune == "full"


def test_alignment_is_measured_where_its_scorers_know_the_prompts(tmp_path):
    own = tmp_path / "mine.txt"
    own.write_text("a red house\n")
    animals = tmp_path / "animals.txt"
    animals.write_text("cat\ndog\n")
    given = {"reward": "colourfulness"}
    assert made(**given).config.eval_rewards == ("alignment", "alignment_heldout")
    assert made(**given, prompts=str(animals)).config.eval_rewards == ("alignment", "alignment_heldout")
    assert made(**given, prompts=str(own)).config.eval_rewards == ()
    assert made(**given, unseen_prompts=str(own)).config.eval_rewards == ()
    mixed = made(**given, prompts=str(own), eval_rewards=("auto", "kid_start", "vendi"))
    assert mixed.config.eval_rewards == ("kid_start", "vendi")
    assert made(**given, prompts=str(own), eval_rewards=("alignment",)).config.eval_rewards == ("alignment",)


def test_another_method_brings_its_own_options_label_and_updates():
    file = checked(RunConfig(method="sdpo", options={"gamma": 0.5}).to_json(), "config.json")
    assert resolved(file, {"options": {"scale": 2.0}}).config.options == {
        "gamma": 0.5,
        "scale": 2.0,
        "step_discount": 0.99,
    }
    config = resolved(file, {"method": "ddpo"}).config
    assert (config.label, config.options, config.resolved_updates) == ("DDPO", {}, "trajectory")
    named = checked({"method": "sdpo", "label": "mine"}, "run.yaml")
    assert resolved(named, {"method": "ddpo"}).config.label == "mine"


def test_another_method_than_a_runs_brings_its_settings():
    run = made(method="ddpo", learning_rate=3e-4, group_size=4, pairs=16, dense="terminal", label="mine").config
    for whole in (run.to_json(), dataclasses.asdict(run)):  # a record, or a dump
        file = checked(whole, "config.json")
        for method in ("grpo", "dense_grpo", "ddpo_dense", "diffusion_nft"):
            found = resolved(file, {"method": method})
            assert found.config.to_json() == made(method=method, eval_rewards=run.eval_rewards).config.to_json()
        assert resolved(file, {"method": "dense_grpo"}).config.resolved_dense == "exact"
        kept = resolved(file, {"method": "grpo", "learning_rate": 2e-4, "pairs": 4})
        assert (kept.config.learning_rate, kept.config.pairs, kept.config.pairs_per_update) == (2e-4, 4, 4)
        assert "pairs 4" not in kept.note.replace("--pairs-per-update 4", "")
        assert resolved(file, {}).config.to_json() == run.to_json()
    assert "--group-size (its own)" in resolved(file, {"method": "grpo"}).note
    ddpo = checked(made(method="ddpo").config.to_json(), "config.json")
    assert resolved(ddpo, {"method": "diffusion_nft"}).note == (
        "settings of DiffusionNFT in place of the file's, which has another method: "
        "--pairs-per-update 4 --train-last-step --pairs 8"
    )


def test_what_somebody_chose_in_a_file_stays_with_another_method():
    file = checked({"method": "ddpo", "learning_rate": 3e-4, "pairs": 4, "pairs_per_update": 4}, "run.yaml")
    config = resolved(file, {"method": "grpo"}).config
    assert (config.learning_rate, config.pairs) == (3e-4, 4)
    other = checked(RunConfig(model="stabilityai/sd-turbo", method="ddpo", learning_rate=3e-5).to_json(), "config.json")
    assert resolved(other, {"method": "grpo"}).config.learning_rate == 3e-5, "it depends on no method there"
    lora = checked(made(method="ddpo", finetune="lora", learning_rate=2e-4).config.to_json(), "config.json")
    assert resolved(lora, {"method": "grpo"}).config.learning_rate == 2e-4


def test_errors_name_the_file():
    with pytest.raises(UserError, match=r"--steps is 0; expected at least 1 \(with the settings of run.yaml\)"):
        resolved(checked({"steps": 0}, "run.yaml"), {})


IGNORED = [
    ({"dense": "exact"}, ("ddpo", "rebel", "pso"), "--dense: .* takes the final reward alone"),
    (
        {"clip_range": 1.0},
        ("rebel", "d3po", "flow_dppo", "diffusion_nft", "crd", "pso", "draft"),
        "--clip-range: .* does not clip its ratio by it",
    ),
    ({"advantage_clip": 1.0}, ("d3po", "pso", "draft"), "--advantage-clip: .* takes no size of an advantage"),
    ({"prompt_stats_buffer": 64}, ("grpo", "crd", "pso"), "--prompt-stats-buffer: .* takes no statistics"),
    ({"train_last_step": False}, ("draft",), "--train-last-step: DRaFT takes the reward's gradient through the last"),
    ({"train_last_step": True}, ("rtdmd_lite",), "--train-last-step: RTDMD-lite takes the reward's gradient through"),
    ({"step_shuffle": False}, ("ddpo", "draft"), r"--step-shuffle: an update of this run .*--updates trajectory"),
    ({"train_window_epochs": 5}, ("ddpo",), "--train-window-epochs: without --train-window no window moves"),
    ({"lora_rank": 8}, ("ddpo",), "--lora-rank: --finetune full trains all weights"),
]


@pytest.mark.parametrize(
    ("settings", "name", "message"), [(settings, name, why) for settings, names, why in IGNORED for name in names]
)
def test_a_setting_that_would_do_nothing_is_refused_where_it_is_given(settings, name, message):
    message = f"^{message}.*; leave it out$"
    complete = RunConfig(method=name, finetune="full", **settings)
    with pytest.raises(UserError, match=message):
        made(method=name, **settings)
    with pytest.raises(UserError, match=message):  # a file of a few lines, or a mapping
        resolved(checked({"method": name, **settings}, ""), {})
    for whole in (complete.to_json(), dataclasses.asdict(complete)):  # a record, or a dump: they have every setting
        found = resolved(checked(whole, ""), {}).config
        assert found.to_json() == complete.to_json()
    assert made(method=name, epochs=0, **settings).config, "nothing is trained"


def test_a_setting_that_acts_is_taken():
    for settings in (
        {"method": "sdpo", "dense": "exact", "clip_range": 1.0, "prompt_stats_buffer": 64, "step_shuffle": False},
        {"method": "ddpo", "dense": "terminal", "train_last_step": True, "finetune": "lora", "lora_rank": 8},
        {"method": "pso", "train_last_step": False},
        {"method": "ddpo", "updates": "step", "step_shuffle": False, "train_window": 1, "train_window_epochs": 5},
    ):
        config = made(**settings).config
        assert {name: getattr(config, name) for name in settings} == settings


def test_prompts_of_a_run_must_be_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "mine.txt"
    own.write_text("a red house\n")
    row = RunConfig(reward="colourfulness", eval_rewards=(), prompts="mine.txt").to_json()
    file = checked(row, "config.json")
    assert resolved(file, {}).config.to_json() == row
    own.write_text("a blue house\n")
    with pytest.raises(UserError, match=r"config.json: that run had other prompts than mine.txt now"):
        resolved(file, {})
    (tmp_path / "others.txt").write_text("a house\n")
    assert resolved(file, {"prompts": "others.txt"}).config.prompts == "others.txt"
