"""GRPO, and groups of more than two samples: advantages, the loss and its gradient, the trainer, what is refused."""

import dataclasses

import pytest
import torch
from support.groups import batch_of

from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.experiments import cost_model
from sdpo_bench.methods import METHODS, build_method
from sdpo_bench.policies import load_policy
from sdpo_bench.rewards import load_reward
from sdpo_bench.training.advantages import GroupNormalizer
from sdpo_bench.training.trainer import Trainer

CLIPS = {"clip_range": 1e-3, "advantage_clip": 5.0}


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory):
    prompts = tmp_path_factory.mktemp("prompts") / "seen"
    prompts.write_text("cat\ndog\nhorse\n")
    return RunConfig(
        method="grpo",
        group_size=4,
        prompts=str(prompts),
        model=str(tiny_model),
        reward="colourfulness",
        eval_rewards=(),
        steps=3,
        epochs=1,
        pairs=4,
        pairs_per_update=2,
        device="cpu",
    )


def trainer_of(config, reward=None):
    return Trainer(config, load_policy(config), reward or load_reward(config.reward))


def test_advantages_are_of_the_group_alone():
    returns = torch.tensor([[1.0, 2.0, 3.0, 6.0], [10.0, 10.0, 10.0, 10.0]])[..., None]
    found = GroupNormalizer()(["cat", "cat"], returns)[..., 0]
    first = returns[0, :, 0].double()
    expected = (first - first.mean()) / (first.std(correction=0) + 1e-6)
    torch.testing.assert_close(found[0], expected)
    assert found[1].tolist() == [0.0] * 4, "equal returns have no advantage"


@pytest.mark.parametrize(("kl", "step_weight"), [(0.0, 0), (0.04, 0), (0.0, 1), (0.04, 1)])
def test_the_gradient_is_that_of_the_loss(kl, step_weight):
    method = build_method("grpo", {"kl": kl, "step_weight": step_weight})
    output, batch = batch_of(relative_sigma=torch.tensor([0.5, 1.5, 2.0]).double() if step_weight else None)
    leaf = output.clone().requires_grad_()
    result = method.loss(leaf, batch, **CLIPS)
    (expected,) = torch.autograd.grad(0.1 * result.loss.sum(), leaf)
    found, grad = method.loss_and_grad(output, batch, grad_scale=0.1, **CLIPS)
    torch.testing.assert_close(found.loss, result.loss.detach())
    torch.testing.assert_close(grad, expected)


def test_the_penalty_is_the_divergence_of_the_two_gaussians():
    output, batch = batch_of()
    a, b, *_, sigma = batch.coefficients[0]
    with_kl, without = (build_method("grpo", {"kl": kl}).loss(output, batch, **CLIPS).loss for kl in (2.0, 0.0))
    means = (torch.distributions.Normal(a * batch.sample + b * m, sigma) for m in (output, batch.reference_output))
    divergence = torch.distributions.kl_divergence(*means).flatten(1).mean(1)  # per latent dimension, over the group
    torch.testing.assert_close((with_kl - without) / 2, divergence, rtol=1e-5, atol=1e-6)


WEIGHED = [("grpo", {}), ("grpo_guard", {"reweight": 0}), ("flow_dppo", {}), ("dense_grpo", {}), ("rtdmd_lite", {})]


@pytest.mark.parametrize(("name", "options"), WEIGHED)
def test_the_weight_of_a_step_multiplies_the_policys_part_alone(name, options):
    """TempFlow-GRPO leaves the penalty as it is, as its authors say in their repository's issue 1."""
    weights = torch.tensor([0.5, 1.5, 2.0]).double()
    output, batch = batch_of()
    method = build_method(name, options | {"kl": 0.5, "step_weight": 1})
    plain = build_method(name, options | {"kl": 0.5})
    penalty = method.penalty(output, batch)
    policy = plain.loss(output, batch, **CLIPS).loss - penalty
    result, grad = method.loss_and_grad(
        output, dataclasses.replace(batch, relative_sigma=weights), grad_scale=1.0, **CLIPS
    )
    torch.testing.assert_close(result.loss, weights * policy + penalty)
    without_kl = build_method(name, options).loss_and_grad(output, batch, grad_scale=1.0, **CLIPS)[1]
    both = plain.loss_and_grad(output, batch, grad_scale=1.0, **CLIPS)[1]
    weight = weights.reshape(3, 1, 1, 1, 1)
    torch.testing.assert_close(grad, weight * without_kl + both - without_kl)
    assert "step_weight" in method.to_json()
    assert "step_weight" not in plain.to_json(), "ids of earlier runs stay"


def test_weights_of_steps_are_their_noise_over_its_mean(config):
    config = dataclasses.replace(config, options={"step_weight": 1}, steps=4, train_last_step=False)
    trainer, seen = trainer_of(config), {}
    original = trainer.method.loss_and_grad

    def keeping(output, batch, **options):
        seen.update(zip(batch.step.tolist(), batch.relative_sigma.tolist(), strict=True))
        return original(output, batch, **options)

    object.__setattr__(trainer.method, "loss_and_grad", keeping)  # it is frozen
    trainer.train_epoch(1)
    sigma = trainer.policy.schedule(4, eta=1.0).table[:3, 4]
    assert [seen[k] for k in range(3)] == pytest.approx((sigma / sigma.mean()).tolist())
    window = trainer_of(dataclasses.replace(config, train_window=2))
    trajectory = window.sample(window.plan(1))
    sigma = trajectory.coefficients[:2, 4]
    assert window.relative_sigma(trajectory)[:2].tolist() == pytest.approx((sigma / sigma.mean()).tolist())


def test_two_weights_of_a_step_are_refused():
    with pytest.raises(UserError, match=r"options of grpo_guard: reweight and step_weight.*give reweight 0"):
        build_method("grpo_guard", {"step_weight": 1})


def test_the_penalty_of_the_pretrained_model_is_0():
    output, batch = batch_of()
    batch = dataclasses.replace(batch, reference_output=output.clone())
    with_kl, without = (build_method("grpo", {"kl": kl}).loss(output, batch, **CLIPS).loss for kl in (1.0, 0.0))
    assert torch.equal(with_kl, without)


@pytest.mark.parametrize("name", ["ddpo", "grpo"])
@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_an_epoch_of_groups(config, name, finetune):
    config = dataclasses.replace(config, method=name, finetune=finetune, label="")
    trainer = trainer_of(config)
    assert trainer.check_on_policy(1) == 0.0
    row = trainer.train_epoch(1).to_row()
    assert row["samples"] == row["reward_queries"] == 4 * 4
    assert row["optimiser_steps"] == 2
    assert row["model_evaluations"] == sum(cost_model.passes(config).values())
    assert row["log_ratio_max"] > 0


def test_the_penalty_costs_the_references_passes(config):
    config = dataclasses.replace(config, options={"kl": 0.1})
    trainer = trainer_of(config)
    row = trainer.train_epoch(1).to_row()
    passes = cost_model.passes(config)
    assert passes["log_prob"] == passes["train"]
    assert row["model_evaluations"] == sum(passes.values())


def test_a_constant_reward_leaves_the_weights(config):
    class Constant:
        name = "constant"

        def __call__(self, images, prompts):
            return torch.full((len(images),), 0.3)

    trainer = trainer_of(dataclasses.replace(config, weight_decay=0.0), Constant())
    before = {name: value.clone() for name, value in trainer.policy.state_dict().items()}
    trainer.train_epoch(1)
    assert all(torch.equal(value, before[name]) for name, value in trainer.policy.state_dict().items())


def test_the_samples_of_a_group_share_x_t(config):
    trainer = trainer_of(config)
    trajectory = trainer.sample(trainer.plan(1))
    assert trajectory.latents.shape[:3] == (4, 4, 4)
    assert (trajectory.latents[:, :, 0] == trajectory.latents[:, :1, 0]).all()
    assert len(trajectory.latents[0, :, -1].flatten(1).unique(dim=0)) == 4


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("sdpo", 4, "SDPO learns from pairs, so expected 2"),
        ("rebel", 8, "REBEL learns from pairs"),
        ("ddpo", 1, "expected at least 2"),
        ("grpo", 2, "expected at least 4"),
    ],
)
def test_group_sizes_that_a_method_can_not_take(config, name, size, message):
    with pytest.raises(UserError, match=f"--group-size is {size}.*{message}"):
        dataclasses.replace(config, method=name, group_size=size, label="")


def test_pairs_are_not_named_in_a_runs_identity():
    for name, method in METHODS.items():
        row = RunConfig(method=name).to_json()
        assert row.get("group_size") == (None if method.group_size == 2 else method.group_size), name
    assert "group_size" not in RunConfig(method="ddpo", group_size=2).to_json()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_window": 5, "steps": 4}, "--train-window is 5; expected at most 4"),
        ({"train_window": 4, "steps": 4, "train_last_step": False}, "--train-window is 4; expected at most 3"),
        (
            {"train_window": 2, "method": "rebel", "group_size": None},
            "--train-window: REBEL takes no log-probs of single",
        ),
        ({"train_share": 0.5, "method": "prdp", "group_size": None}, "--train-share: PRDP does not learn from single"),
    ],
)
def test_steps_that_a_method_can_not_train(config, settings, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, label="", **settings)


def test_a_window_trains_its_steps_and_the_others_draw_no_noise(config):
    config = dataclasses.replace(
        config, steps=4, train_window=1, train_window_epochs=1, epochs=3, train_last_step=False
    )
    trainer = trainer_of(config)
    trajectory = trainer.sample(trainer.plan(3))
    assert (trajectory.coefficients[:, 4] > 0).tolist() == [False, False, True, False]
    # Until the window's step the samples of a group are the same.
    assert len(trajectory.latents[0, :, 2].flatten(1).unique(dim=0)) == 1
    assert len(trajectory.latents[0, :, 3].flatten(1).unique(dim=0)) == 4
    rows = [trainer.train_epoch(epoch).to_row() for epoch in (1, 2, 3)]
    assert rows[-1]["model_evaluations"] == sum(cost_model.passes(config).values())
    assert all(row["log_ratio_max"] > 0 for row in rows)
