"""PSO and online Diffusion-DPO: the formula, ties, noise that a pair shares, noise levels of any timestep."""

import dataclasses
import math

import pytest
import torch
from support.noised import CLIPS, noised_batch, permuted, scalars
from support.tiny import write_sd3

from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.experiments import cost_model
from sdpo_bench.methods import build_method
from sdpo_bench.policies import load_policy
from sdpo_bench.rewards import load_reward
from sdpo_bench.training.trainer import Trainer


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory):
    prompts = tmp_path_factory.mktemp("prompts") / "seen"
    prompts.write_text("cat\ndog\nhorse\n")
    return RunConfig(
        method="pso",
        prompts=str(prompts),
        model=str(tiny_model),
        reward="colourfulness",
        eval_rewards=(),
        steps=3,
        epochs=1,
        pairs=4,
        pairs_per_update=2,
        learning_rate=1e-3,
        device="cpu",
    )


def trainer_of(config):
    return Trainer(config, load_policy(config), load_reward(config.reward))


@pytest.mark.parametrize("beta", [200.0, 1.0])
def test_the_formula(beta):
    output, batch = noised_batch(size=2)
    found = build_method("pso", {"beta": beta}).loss(output, batch, **CLIPS).loss
    for p in range(3):
        level, gains = -batch.coefficients[p, 3].item(), []
        for i in range(2):
            m, reference, x, clean = (
                scalars(t[p, i]) for t in (output, batch.reference_output, batch.sample, batch.clean)
            )
            target = [(a - c) / level for a, c in zip(x, clean, strict=True)]  # the velocity
            errors = [math.fsum((a - b) ** 2 for a, b in zip(v, target, strict=True)) / len(v) for v in (m, reference)]
            gains.append(errors[1] - errors[0])
        h = 1 if batch.advantages[p, 0] > batch.advantages[p, 1] else -1
        assert found[p].item() == pytest.approx(math.log1p(math.exp(-beta * h * (gains[0] - gains[1]))), rel=1e-8)


def test_only_the_order_of_the_rewards_counts():
    output, batch = noised_batch(size=2)
    method, more = build_method("pso"), dataclasses.replace(batch, advantages=7 * batch.advantages + 3)
    assert torch.equal(method.loss(output, more, **CLIPS).loss, method.loss(output, batch, **CLIPS).loss)


def test_a_tie_teaches_nothing_wherever_the_model_is():
    output, batch = noised_batch(size=2)
    batch = dataclasses.replace(batch, advantages=torch.full((3, 2), 0.7).double())
    result, grad = build_method("pso").loss_and_grad(output, batch, grad_scale=1.0, **CLIPS)
    torch.testing.assert_close(result.loss, torch.full((3,), math.log(2)).double())
    assert grad.abs().max() == 0


def test_swapping_the_pair_changes_nothing():
    output, batch = noised_batch(size=2)
    order, method = torch.tensor([1, 0]), build_method("pso")
    result, other = method.loss(output, batch, **CLIPS), method.loss(output[:, order], permuted(batch, order), **CLIPS)
    torch.testing.assert_close(other.loss, result.loss)
    torch.testing.assert_close(other.log_prob, result.log_prob[:, order])


def test_a_gradient_step_errs_less_on_the_winner_and_more_on_the_loser():
    output, batch = noised_batch(size=2)
    _, grad = build_method("pso", {"beta": 1.0}).loss_and_grad(output, batch, grad_scale=1.0, **CLIPS)
    moved = batch.error(output) - batch.error(output - 1e-3 * grad)
    preferred = (batch.advantages - batch.advantages.flip(1)).sign()
    assert (moved.sign() == preferred).all()


def test_gradients_are_finite_far_from_the_pretrained_model():
    output, batch = noised_batch(size=2)
    for scale in (1e3, -1e3):
        far = dataclasses.replace(batch, reference_output=output + scale * torch.arange(2).reshape(1, 2, 1, 1, 1))
        result, grad = build_method("pso").loss_and_grad(output, far, grad_scale=1.0, **CLIPS)
        assert torch.isfinite(result.loss).all()
        assert torch.isfinite(grad).all()


# Pairs and noise levels in the trainer


def test_a_pair_gets_the_same_noise_and_an_x_t_each(config):
    trainer = trainer_of(config)
    trajectory = trainer.sample(trainer.plan(1))
    assert len(trajectory.latents[:, :, 0].flatten(0, 1).flatten(1).unique(dim=0)) == 8
    pairs, steps = torch.tensor([2, 0]), torch.tensor([1, 1])
    clean, noised = trainer.noised(trajectory, pairs, steps)
    noise = noised - trajectory.signal_scale[1] * clean
    torch.testing.assert_close(noise[:, 0], noise[:, 1])
    assert (noise[0, 0] - noise[1, 0]).abs().max() > 0.1, "another pair has other noise"


def test_levels_of_any_timestep_are_drawn_for_each_pair_and_step(config):
    trainer = trainer_of(dataclasses.replace(config, options={"any_level": 1}))
    trajectory = trainer.sample(trainer.plan(1))
    pairs, steps = torch.arange(4).repeat_interleave(100), torch.arange(100).repeat(4)
    finer, levels = trainer.at_any_level(trajectory, pairs, steps)
    scheduler = trainer.policy.pipeline.scheduler
    assert finer.timesteps.tolist() == list(range(scheduler.config.num_train_timesteps))[::-1]
    torch.testing.assert_close(finer.signal_scale.square(), scheduler.alphas_cumprod.flip(0))
    # Evenly: of 1,000 levels 400 draws meet about 330, and their mean is 500 with a standard error of 14.
    assert 290 <= len(levels.unique()) <= 370
    assert levels.double().mean().item() == pytest.approx(499.5, abs=70)
    again = trainer.at_any_level(trajectory, pairs[[7]], steps[[7]])[1]
    assert again.tolist() == levels[[7]].tolist(), "whatever else is in the batch"


@pytest.mark.parametrize("any_level", [0, 1])
def test_the_gradient_is_that_of_the_mean_loss(config, any_level):
    config = dataclasses.replace(config, options={"any_level": any_level}, pairs_per_update=4, max_grad_norm=1e9)
    trainer = trainer_of(config)
    trajectory = trainer.sample(trainer.plan(1))
    advantages = torch.randn(4, 2, 1, generator=torch.Generator().manual_seed(0)).expand(4, 2, 3)
    trainer.optimiser.step = lambda: None
    trainer.update(trainer.optimizer_batches(trainer.plan(1))[0], trajectory, advantages)
    ours = torch.cat([p.grad.flatten() for p in trainer.policy.parameters])
    trainer.optimiser.zero_grad()
    total, pairs = torch.zeros(()), torch.arange(4)
    for step in range(3):
        at, levels = trajectory, torch.full((4,), step)
        if any_level:
            at, levels = trainer.at_any_level(trajectory, pairs, levels)
        clean, noised = trainer.noised(at, pairs, levels)
        signal, level = (x[levels].reshape(-1, 1, 1, 1, 1) for x in (at.signal_scale, at.noise_scale))
        noise = (noised - signal * clean) / level
        with torch.no_grad(), trainer.policy.reference():
            reference = trainer.predict_at(at, noised, pairs, levels)
        output = trainer.predict_at(at, noised, pairs, levels)
        error, before = ((m - noise).square().flatten(2).mean(2) for m in (output, reference))  # of epsilon
        margin = (before - error)[:, 0] - (before - error)[:, 1]
        sign = (advantages[:, 0, 0] - advantages[:, 1, 0]).sign()
        total = total - torch.nn.functional.logsigmoid(200 * sign * margin).mean() / 3
    total.backward()
    direct = torch.cat([p.grad.flatten() for p in trainer.policy.parameters])
    assert torch.allclose(ours, direct, rtol=1e-3, atol=1e-4 * direct.abs().max())


@pytest.mark.parametrize("any_level", [0, 1])
def test_an_epoch_counts_the_pretrained_models_passes(config, any_level):
    config = dataclasses.replace(config, options={"any_level": any_level})
    row = trainer_of(config).train_epoch(1).to_row()
    passes = cost_model.passes(config)
    assert passes == {"sample": 24, "log_prob": 24, "train": 24}
    assert row["model_evaluations"] == sum(passes.values())
    assert row["backward_passes"] == 24
    assert row["log_ratio_max"] > 0


@pytest.mark.parametrize("sampler", ["lcm", "euler_ancestral"])
def test_any_level_with_other_samplers(config, sampler):
    """Their timesteps: all, or those that LCM distils."""
    config = dataclasses.replace(config, sampler=sampler, options={"any_level": 1})
    trainer = trainer_of(config)
    assert len(trainer.all_levels.timesteps) == {"lcm": 50, "euler_ancestral": 1000}[sampler]
    assert trainer.train_epoch(1).to_row()["log_ratio_max"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 4}, "--group-size is 4; PSO learns from pairs, so expected 2"),
        ({"options": {"any_level": 0.5}}, r"option any_level of pso is 0\.5; expected 0 or 1"),
        ({"options": {"beta": 0}}, "option beta of pso is 0; expected a number > 0"),
        ({"options": {"any_level": 1}, "train_last_step": False}, "--no-train-last-step: noise levels are drawn from"),
        ({"train_window": 2}, "--train-window: PSO takes no log-probs of single steps"),
    ],
)
def test_what_makes_no_sense_is_refused(config, change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, **change)


def test_pure_noise_alone_is_refused(config, tmp_path):
    """A flow-matching model's first step has no signal."""
    write_sd3(tmp_path)
    one = dataclasses.replace(config, model=str(tmp_path), steps=1)
    policy = load_policy(one)
    with pytest.raises(UserError, match=r"--steps is 1: PSO noises finished samples.*give more steps"):
        Trainer(one, policy, load_reward(one.reward))
    Trainer(dataclasses.replace(one, options={"any_level": 1}), policy, load_reward(one.reward))
    Trainer(dataclasses.replace(one, steps=2), policy, load_reward(one.reward))
