"""Evaluation and scoring: what rewards are given, what they may return, and how much memory they take."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch.nn.functional import interpolate

from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.policies import base as policies
from sdpo_bench.policies import load_policy
from sdpo_bench.rewards import REWARDS, Reward, load_reward, load_rewards
from sdpo_bench.rewards._torch_state import Precision, unchanged_torch
from sdpo_bench.rewards.base import to_uint8
from sdpo_bench.training import evaluation
from sdpo_bench.training.evaluation import evaluate, evaluate_model, evaluated_prompts, pictures, save_grid
from sdpo_bench.training.memory_estimate import Live
from sdpo_bench.training.sampling import derive_seeds, sample
from sdpo_bench.training.scoring import score, score_with_gradient
from sdpo_bench.training.trainer import Trainer


class Custom(Reward):
    """Somebody's reward: what `function` makes of the pictures."""

    name = title = "custom"
    licence, revision, scale = "MIT", "1", "none"

    def __init__(self, function):
        self.function = function

    def __call__(self, images, prompts):
        return self.function(images, prompts)


class Differentiable(Custom):
    differentiable = True


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory):
    prompts = tmp_path_factory.mktemp("prompts") / "seen"
    prompts.write_text("cat\ndog\nhorse\ncow\nant\n")
    return RunConfig(
        prompts=str(prompts),
        model=str(tiny_model),
        reward="jpeg_compressibility",
        eval_rewards=("colourfulness",),
        eval_steps=(2,),
        eval_noises=3,
        steps=3,
        pairs=2,
        pairs_per_update=2,
        epochs=1,
        device="cpu",
    )


# Pictures that are not finite


@pytest.fixture
def broken(config, monkeypatch):
    """A policy whose decoder makes `value`, NaN at first, in one picture of each batch."""
    policy = load_policy(config)
    policy.value, decode = torch.nan, policy.pipeline.vae.decode

    def overflowing(latents, **options):
        out = decode(latents, **options)[0].clone()
        out[0, 1, 2, 3] = policy.value
        return (out,)

    monkeypatch.setattr(policy.pipeline.vae, "decode", overflowing)
    return policy


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_pictures_that_are_not_finite_reach_no_reward(config, broken, tmp_path, value):
    """In training, in the probe of dense rewards, in evaluation and in grids."""
    broken.value, asked = value, []
    reward = Custom(lambda images, prompts: asked.append(images) or torch.zeros(len(prompts)))
    trainer = Trainer(config, broken, reward)
    for work in (
        lambda: trainer.train_epoch(1).to_row(),
        lambda: trainer.probe(1),
        lambda: evaluate(broken, config, {"custom": reward}),
        lambda: save_grid(broken, config, tmp_path / "grid.png"),
    ):
        with pytest.raises(UserError, match=r"1 of \d+ pictures sampled in \d+ steps hold values that are not finite"):
            work()
    assert asked == []
    assert not (tmp_path / "grid.png").exists()


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        (torch.float32, "weights have diverged"),
        (torch.float16, "try --dtype bfloat16 or float32"),
        (torch.bfloat16, "try --dtype float32"),
    ],
)
def test_the_likely_cause_of_pictures_that_are_not_finite(broken, dtype, advice):
    broken.dtype = dtype
    with pytest.raises(UserError, match=rf"1 of 2 pictures .*{advice}"):
        broken.pictures(torch.zeros(2, *broken.latent_shape))


def test_eight_bits_do_not_hold_nan():
    with pytest.raises(ValueError, match="not finite"):
        to_uint8(torch.full((1, 3, 2, 2), torch.nan))
    for name in ("jpeg_compressibility", "jpeg_incompressibility", "diversity"):
        with pytest.raises(ValueError, match="not finite"):
            load_reward(name)(torch.full((1, 3, 8, 8), torch.inf), ["cat"])


# What a reward returns


@pytest.mark.parametrize(
    ("returned", "what"),
    [
        ([0.5, 0.5], "a list"),
        (np.zeros(2), "a ndarray"),
        (None, "a NoneType"),
        (0.5, "a float"),
        (torch.zeros(()), r"a tensor of shape \[\]"),
        (torch.zeros(2, 1), r"a tensor of shape \[2, 1\]"),
        (torch.zeros(3), r"a tensor of shape \[3\]"),
        (torch.zeros(2, dtype=torch.int64), "a tensor of torch.int64"),
        (torch.zeros(2, dtype=torch.bool), "a tensor of torch.bool"),
        (torch.zeros(2, dtype=torch.complex64), "a tensor of torch.complex64"),
    ],
)
def test_a_reward_that_returns_something_else_is_named(returned, what):
    message = rf"reward custom returned {what} for 2 pictures; expected a float tensor of shape \[2\]"
    for reward, ask in ((Custom, score), (Differentiable, score_with_gradient)):
        with pytest.raises(UserError, match=message):
            ask(reward(lambda *_: returned), torch.zeros(2, 3, 8, 8, requires_grad=True), ["cat", "dog"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_rewards_of_any_float_type_become_float32_without_a_gradient(dtype):
    found = score(
        Custom(lambda *_: torch.tensor([0.5, 2], dtype=dtype).requires_grad_()), torch.zeros(2, 3, 8, 8), ["a", "b"]
    )
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert found.tolist() == [0.5, 2]


# A reward's gradient


def mean(images, prompts):
    return images.flatten(1).mean(1)


@pytest.fixture
def images():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_scores_with_a_gradient_are_the_scores(images, dtype):
    reward = Differentiable(lambda x, p: mean(x, p).to(dtype))
    found = score_with_gradient(reward, images, ["a", "b"])
    assert found.dtype == torch.float32
    assert torch.equal(found.detach(), score(reward, images, ["a", "b"]))
    (found * torch.tensor([1, -2])).sum().backward()
    assert images.grad[0].unique().tolist() == pytest.approx([1 / 192], rel=1e-3)
    assert images.grad[1].unique().tolist() == pytest.approx([-2 / 192], rel=1e-3)


def test_what_has_no_gradient_is_named(images):
    def without(images, prompts):
        with torch.no_grad():
            return mean(images, prompts)

    with pytest.raises(UserError, match=r"^reward custom has no gradient$"):
        score_with_gradient(Custom(mean), images, ["a", "b"])
    with pytest.raises(UserError, match="reward custom says that it is differentiable, but its values have no grad"):
        score_with_gradient(Differentiable(without), images, ["a", "b"])
    with pytest.raises(ValueError, match="the pictures have no gradient: decode them with gradient=True"):
        score_with_gradient(Differentiable(mean), images.detach(), ["a", "b"])
    with torch.no_grad(), pytest.raises(ValueError, match="the pictures have no gradient"):
        score_with_gradient(Differentiable(mean), images, ["a", "b"])


@pytest.mark.parametrize("how", ["raises", "nan"])
def test_a_score_with_a_gradient_is_asked_for_twice(images, capsys, how):
    calls = []

    def failing(images, prompts):
        calls.append(images)
        if len(calls) in failures:
            if how == "raises":
                raise ConnectionError("no answer")
            return mean(images, prompts) * torch.nan
        return mean(images, prompts)

    failures = {1}
    assert score_with_gradient(Differentiable(failing), images, ["a", "b"]).requires_grad
    assert capsys.readouterr().err.startswith("warning: reward custom ")
    failures = {3, 4}
    with pytest.raises(UserError, match=r"reward custom .* for a picture of this run, twice"):
        score_with_gradient(Differentiable(failing), images, ["a", "b"])


# What a reward may not do to others


def spoil(images, prompts):
    images.zero_()
    prompts.clear()
    return torch.ones(len(images))


def test_a_reward_that_changes_its_pictures_changes_no_other_reward(config):
    policy = load_policy(config)
    alone = evaluate(policy, config, {"colourfulness": load_reward("colourfulness")})
    rewards = {"custom": Custom(spoil), "colourfulness": load_reward("colourfulness")}
    after = [row for row in evaluate(policy, config, rewards) if row["reward"] == "colourfulness"]
    assert after == alone


def test_the_terms_of_a_sum_see_the_same_pictures(monkeypatch):
    reward = load_reward("0.5*colourfulness+0.5*jpeg_compressibility")
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = reward(images, ["a", "b"])
    real = REWARDS["colourfulness"].__call__
    monkeypatch.setattr(REWARDS["colourfulness"], "__call__", lambda self, x, p: (real(self, x, p), x.zero_())[0])
    assert torch.equal(reward(images, ["a", "b"]), expected)


def test_a_failure_after_changed_pictures_is_not_tried_again():
    def fail(images, prompts):
        images.zero_()
        raise RuntimeError("no more requests")

    with pytest.raises(UserError, match=r"custom raised RuntimeError \(no more requests\), and changed its pictures"):
        score(Custom(fail), torch.ones(2, 3, 8, 8), ["a", "b"])


def settings():
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.enabled,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.get_float32_matmul_precision(),
        torch.get_rng_state().tolist(),
    )


def meddle(images=None, prompts=()):
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.set_num_threads(3)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.enabled = False
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = True
    torch.set_float32_matmul_precision("medium")
    torch.manual_seed(7)
    return torch.zeros(len(prompts), device="cpu")


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_reward_sets_in_torch_is_put_back(fails):
    def function(images, prompts):
        meddle()
        if fails:
            raise UserError("no key")
        return torch.zeros(len(prompts), device="cpu")

    before = settings()
    if fails:
        with pytest.raises(UserError, match="no key"):
            score(Custom(function), torch.zeros(2, 3, 8, 8), ["a", "b"])
    else:
        score(Custom(function), torch.zeros(2, 3, 8, 8), ["a", "b"])
    assert settings() == before


def test_what_a_differentiable_reward_sets_in_torch_is_put_back(images):
    before = settings()
    found = score_with_gradient(Differentiable(lambda x, p: (mean(x, p), meddle())[0]), images, ["a", "b"])
    assert settings() == before
    found.sum().backward()
    assert settings() == before
    assert images.grad.unique().tolist() == pytest.approx([1 / 192])


def test_what_a_rewards_construction_sets_in_torch_is_put_back(monkeypatch):
    def construct(self):
        meddle()

    monkeypatch.setattr(REWARDS["colourfulness"], "__init__", construct)
    before = settings()
    load_rewards(["colourfulness"])
    assert settings() == before


def test_a_meddling_reward_trains_the_same_weights(config):
    trained = []
    for function in (
        lambda images, prompts: images.flatten(1).mean(1),
        lambda images, prompts: (images.flatten(1).mean(1), meddle())[0],
    ):
        trainer = Trainer(config, load_policy(config), Custom(function))
        trainer.train_epoch(1).to_row()
        trained.append({name: value.clone() for name, value in trainer.policy.state_dict().items()})
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())


# Pictures


def test_pictures_are_the_last_prediction_from_the_seeds_of_prompt_and_noise(config, monkeypatch):
    """The first of a picture's two seeds gives its initial noise, the second the noise of its steps; whether sampling
    keeps what was predicted on the way makes no difference."""
    c = dataclasses.replace(config, eval_seed=3, eta=0.7)
    policy, prompts, noises = load_policy(c), ["cat", "dog"], [0, 4]
    seeds = [
        derive_seeds(evaluation.EVALUATION, 3, noise, int.from_bytes(prompt.encode(), "little"), count=2)
        for prompt in prompts
        for noise in noises
    ]
    trajectory = sample(
        policy,
        ["cat", "cat", "dog", "dog"],
        steps=3,
        initial_seeds=torch.stack([first for first, _ in seeds]),
        step_seeds=torch.stack([second for _, second in seeds])[:, None],
        eta=0.7,
    )
    decoded = [policy.decode(trajectory.predicted_clean[:, 0, k]) for k in range(3)]
    assert not torch.equal(decoded[0], decoded[2])
    assert not torch.equal(decoded[1], decoded[2])
    assert torch.equal(pictures(policy, prompts, noises, 3, c), decoded[2])
    monkeypatch.setattr(evaluation, "sample", lambda *args, **options: sample(*args, **options | {"keep": True}))
    assert torch.equal(pictures(policy, prompts, noises, 3, c), decoded[2])


# Memory


def test_evaluation_takes_the_memory_of_rows_pictures(config, tmp_path, monkeypatch):
    """2,000 pictures of 128 pixels in little more than 100 take. Networks are left out: they have --rows at a time."""
    peaks = {}
    for count in (25, 500):
        (tmp_path / f"{count}").write_text("\n".join(f"a picture of the number {i}" for i in range(count)) + "\n")
        c = dataclasses.replace(
            config, prompts=str(tmp_path / f"{count}"), eval_noises=4, resolution=128, rows=64, eval_steps=(1,)
        )
        policy = load_policy(c)
        monkeypatch.setattr(policy, "predict", lambda latents, *_: torch.zeros_like(latents))
        monkeypatch.setattr(policy, "decode", lambda x, **_: interpolate(x[:, :3], (128, 128)).clamp(0, 1))
        rewards = load_rewards(["colourfulness", "diversity"])
        with Live() as live:
            rows = evaluate(policy, c, rewards)
        assert len(rows[0]["values"]["seen"]) == count
        peaks[count] = live.peak
    assert peaks[25] > 64 * 3 * 128 * 128 * 4
    assert peaks[500] < 1.2 * peaks[25]


@pytest.mark.parametrize("noises", [1, 3, 70])
def test_values_do_not_depend_on_how_many_prompts_are_evaluated_at_a_time(config, noises):
    """To the bit, of rewards that compare a prompt's pictures too, and with more noises than rows."""
    c = dataclasses.replace(config, eval_noises=noises)
    names = ["jpeg_compressibility", "diversity"]
    few = evaluate(load_policy(dataclasses.replace(c, rows=16)), c, load_rewards(names))
    policy = load_policy(c)
    prompts = evaluated_prompts(c)["seen"]
    images = pictures(policy, prompts, list(range(noises)), 2, c)
    for row, reward in zip(few, load_rewards(names).values(), strict=True):
        found = reward(images, [p for p in prompts for _ in range(noises)]).reshape(len(prompts), noises)
        assert row["values"]["seen"] == dict(zip(prompts, found.tolist(), strict=True))


def test_a_prompt_that_stands_twice_is_evaluated_once(config, tmp_path):
    """Its pictures would be compared with themselves."""
    (tmp_path / "twice").write_text("cat\ndog\ncat\n")
    (tmp_path / "once").write_text("cat\ndog\n")
    rewards = load_rewards(["diversity", "vendi"])
    found = []
    for name in ("twice", "once"):
        c = dataclasses.replace(config, prompts=str(tmp_path / name))
        found.append(evaluate(load_policy(c), c, rewards))
    assert found[0] == found[1]


# The pretrained model's pictures


def changed(policy):
    """Trained weights that a step of training might have made."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in policy.parameters:
            p += 0.05 * torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_a_model_is_compared_with_its_own_start(config, finetune):
    """By pictures of the same prompts, noises and steps; a pretrained model to exactly 0."""
    c = dataclasses.replace(config, finetune=finetune, eval_steps=(1, 2), rows=16)
    policy, rewards = load_policy(c), load_rewards(["kid_start", "colourfulness"])
    before = evaluate(policy, c, rewards)
    assert {v for row in before[::2] for values in row["values"]["seen"].values() for v in values} == {0.0}
    prompts = evaluated_prompts(c)["seen"]
    start = {steps: pictures(policy, prompts, [0, 1, 2], steps, c) for steps in (1, 2)}
    changed(policy)
    after = evaluate(policy, c, rewards)
    assert [(row["reward"], row["steps"]) for row in after] == [
        ("kid_start", 1),
        ("colourfulness", 1),
        ("kid_start", 2),
        ("colourfulness", 2),
    ]
    for row in after:
        images = pictures(policy, prompts, [0, 1, 2], row["steps"], c)
        assert not torch.equal(images, start[row["steps"]])
        reward = rewards[row["reward"]]
        reward = reward.against(start[row["steps"]]) if reward.needs_start else reward
        found = reward(images, [p for p in prompts for _ in range(3)]).reshape(5, 3)
        assert row["values"]["seen"] == dict(zip(prompts, found.tolist(), strict=True))


def test_the_start_is_sampled_where_it_is_compared_with(config):
    policy, passes = load_policy(config), []
    for names in (["colourfulness", "vendi"], ["colourfulness", "kid_start"], ["kid_start", "2*kid_start"]):
        before = policy.passes.forward
        evaluate(policy, config, load_rewards(names))
        passes.append(policy.passes.forward - before)
    assert passes == [5 * 3 * 2, 2 * 5 * 3 * 2, 2 * 5 * 3 * 2]


def test_saved_weights_are_compared_with_the_model_they_are_loaded_into(config, tmp_path):
    c = dataclasses.replace(config, reward="kid_start", eval_rewards=("kid_start",), epochs=0, label="")
    policy = load_policy(c)
    changed(policy)
    policy.save(tmp_path)
    assert evaluate_model(c, tmp_path) == evaluate(policy, c, load_rewards(["kid_start"]))
    assert evaluate_model(c)[0]["values"] != evaluate_model(c, tmp_path)[0]["values"]


def test_a_text_encoders_lora_is_no_part_of_the_comparison(config, tmp_path):
    """Evaluated as it is, but not beside the pretrained model, whose prompts it would change too."""
    policy = load_policy(config)
    text = policy.pipeline.text_encoder
    assert not policy.text_is_adapted
    text.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    policy.pipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=policy.state_dict(),
        text_encoder_lora_layers=get_peft_model_state_dict(text, adapter_name="default"),
    )
    c = dataclasses.replace(config, reward="kid_start", eval_rewards=("kid_start",), epochs=0, label="")
    with pytest.raises(UserError, match=r"--weights .* change a text encoder too, .*; leave out kid_start"):
        evaluate_model(c, tmp_path)
    plain = dataclasses.replace(c, reward="colourfulness", eval_rewards=("colourfulness",))
    assert evaluate_model(plain, tmp_path)[0]["values"] != evaluate_model(plain)[0]["values"]


def test_few_prompts_stay_encoded(config, monkeypatch):
    """As many as fit into CONDITIONS_BYTES, those that were used last; more are encoded anew, to the same values."""
    policy = load_policy(config)
    encoded = []
    real = policy._encode
    monkeypatch.setattr(policy, "_encode", lambda prompt: encoded.append(prompt) or real(prompt))
    (one,) = policy.encode(["cat"])
    monkeypatch.setattr(policies, "CONDITIONS_BYTES", 2 * one.numel() * one.itemsize)
    (many,) = policy.encode(["cat", "dog", "cow", "cat"])
    assert torch.equal(many[0], one[0])
    assert torch.equal(many[3], one[0])
    assert encoded == ["cat", "dog", "cow"]
    assert list(policy._conditions) == ["dog", "cow"]
    assert torch.equal(policy.encode(["dog"])[0][0], many[1])
    assert torch.equal(policy.encode(["cat"])[0], one)
    assert encoded == ["cat", "dog", "cow", "cat"]
    assert list(policy._conditions) == ["dog", "cat"]


# Prompts that a reward does not know


def test_unknown_prompts_are_refused_before_anything_is_sampled(config, tmp_path, monkeypatch):
    (tmp_path / "other").write_text("a spaceship\n")
    c = dataclasses.replace(config, prompts=str(tmp_path / "other"), eval_rewards=("alignment",), epochs=0, label="")
    monkeypatch.setattr(evaluation, "load_policy", lambda config: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match=r"reward alignment knows only its \d+ animals, not \['a spaceship'\]"):
        evaluate_model(c)


@pytest.mark.parametrize("name", ["enabled", "deterministic"])
def test_a_reward_that_sets_a_flag_of_onednn_leaves_it_as_it_was(name):
    before = getattr(torch.backends.mkldnn, name)
    try:
        with unchanged_torch():
            setattr(torch.backends.mkldnn, name, not before)
        assert getattr(torch.backends.mkldnn, name) == before
    finally:
        setattr(torch.backends.mkldnn, name, before)


def test_a_reward_that_flushes_denormals_leaves_them_as_they_were():
    smallest = torch.tensor([1e-40])
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor can't flush denormal numbers")
    try:
        with unchanged_torch():
            torch.set_flush_denormal(True)
        assert bool(smallest * 2 != 0)
    finally:
        torch.set_flush_denormal(False)


def mix_both_kinds_of_flags() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.conv.fp32_precision = "ieee"


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="PyTorch 2.9 brought a precision of parts")
@pytest.mark.parametrize(
    "change",
    [
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
        lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
        lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
        lambda: setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee"),
        lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
        mix_both_kinds_of_flags,
    ],
    ids=["products", "cudnn", "allow_tf32", "cuda products", "recurrent", "onednn products", "mixed"],
)
def test_the_precision_of_products_is_put_back(change):
    before = Precision.now()
    with unchanged_torch():
        change()
        assert Precision.now() != before
    assert Precision.now() == before
