"""GRPO-Guard: the centred ratio, its clip, the weight of the steps, the outputs kept from sampling."""

import dataclasses
import math

import pytest
import sdpo_kernels
import torch
from support.groups import batch_of, sampled

from sdpo_bench.config import RunConfig
from sdpo_bench.methods import build_method
from sdpo_bench.policies import load_policy
from sdpo_bench.rewards import load_reward
from sdpo_bench.training.trainer import Trainer

CLIP = 1e-3
CLIPS = {"clip_range": CLIP, "advantage_clip": 1.5}
PLAIN = build_method("grpo_guard", {"reweight": 0.0})


def log_ratios(output, batch):
    """The paper's -(mu_old - mu) eps, written out, [P, G] as lists."""
    a, b, _, _, sigma = batch.coefficients[0].tolist()
    found = []
    for group in range(len(output)):
        found.append([])
        for i in range(output.shape[1]):
            latents = (output, batch.old_output, batch.sample, batch.prev_sample)
            terms = []
            for m, old, x, y in zip(*(t[group, i].flatten().tolist() for t in latents), strict=True):
                mean, old_mean = a * x + b * m, a * x + b * old
                terms.append(-(old_mean - mean) * (y - old_mean) / sigma)
            found[-1].append(sum(terms) / len(terms))
    return found


@pytest.mark.parametrize("distance", [0.001, 0.1])
def test_the_formula(distance):
    output, batch = sampled(batch_of()[1], distance)
    found = build_method("grpo_guard").loss(output, batch, **CLIPS)
    b, expected, clipped = abs(batch.coefficients[0, 1].item()), [], []
    for ratios, advantages in zip(log_ratios(output, batch), batch.advantages.tolist(), strict=True):
        losses = []
        for log_q, advantage in zip(ratios, advantages, strict=True):
            A, q = max(-1.5, min(1.5, advantage)), math.exp(log_q)
            losses.append(max(-A * q, -A * min(max(q, 1 - CLIP), 1 + CLIP)))
        expected.append(sum(losses) / len(losses) / b)
        clipped.append(any(abs(math.exp(x) - 1) > CLIP for x in ratios))
    assert found.loss.tolist() == pytest.approx(expected, rel=1e-9)
    assert found.clipped.tolist() == clipped
    assert any(clipped) == (distance == 0.1)


def test_the_ratio_is_that_of_the_log_probs_centred_and_scaled():
    """The paper's eq. 8: sigma (rho - old + d(mu - mu_old) / (2 sigma^2)), where `old` is of the model that sampled."""
    output, batch = sampled(batch_of()[1], 0.3)
    batch.advantages.fill_(-1.0)  # with a wide clip the loss is then the mean of q
    found = PLAIN.loss(output, batch, clip_range=1e6, advantage_clip=5.0)
    _, b, _, _, sigma = batch.coefficients[0]
    bias = (b * (output - batch.old_output)).square().flatten(2).mean(2) / (2 * sigma**2)
    expected = (sigma * (found.log_prob - batch.old_log_prob + bias)).exp().mean(1)
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)


def test_the_ratio_has_no_bias():
    """Over a noise and its opposite log q sums to 0; GRPO's log-ratio sums to minus twice the KL."""
    output, batch = sampled(batch_of()[1], 0.3)
    a, b, _, _, sigma = batch.coefficients[0]
    old_mean = a * batch.sample + b * batch.old_output
    mirrored = dataclasses.replace(batch, prev_sample=2 * old_mean - batch.prev_sample)
    sums = torch.tensor(log_ratios(output, batch)) + torch.tensor(log_ratios(output, mirrored))
    assert sums.abs().max() < 1e-7
    old = [PLAIN.loss(batch.old_output, x, **CLIPS).log_prob for x in (batch, mirrored)]
    new = [PLAIN.loss(output, x, **CLIPS).log_prob for x in (batch, mirrored)]
    divergence = (b * (output - batch.old_output)).square().flatten(2).mean(2) / (2 * sigma**2)
    torch.testing.assert_close(new[0] - old[0] + new[1] - old[1], -2 * divergence)


def test_the_unchanged_policy_has_ratio_1():
    output, batch = sampled(batch_of()[1], 0.0)
    found = build_method("grpo_guard").loss(output, batch, clip_range=1e-12, advantage_clip=5.0)
    assert torch.equal(found.loss, -batch.advantages.mean(1) / batch.coefficients[:, 1].abs())
    assert not found.clipped.any()


@pytest.mark.parametrize("distance", [0.02, 0.1])
def test_the_clip_stops_both_signs_of_the_advantage(distance):
    """What has gone too far in its advantage's direction has no gradient; all else has one."""
    output, batch = sampled(batch_of(groups=40)[1], distance)
    _, grad = build_method("grpo_guard").loss_and_grad(output, batch, grad_scale=1.0, **CLIPS)
    q = torch.tensor(log_ratios(output, batch)).exp()
    beyond = torch.where(batch.advantages > 0, q > 1 + CLIP, q < 1 - CLIP)
    assert torch.equal(grad.flatten(2).abs().amax(2) == 0, beyond)
    for sign in (1, -1):
        of_sign = beyond[batch.advantages.sign() == sign]
        assert 0 < of_sign.sum() < len(of_sign)


def test_every_step_weighs_the_same():
    """The gradient by the output does not depend on how far the step moves with it; without `reweight` it does."""
    latents, gradients = batch_of()[1], {}
    for b in (-0.3, 0.05):
        latents.coefficients[:, 1] = b
        output, batch = sampled(latents, 0.0)
        for reweight in (0.0, 1.0):
            method = build_method("grpo_guard", {"reweight": reweight})
            gradients[b, reweight] = method.loss_and_grad(output, batch, grad_scale=1.0, **CLIPS)[1]
    torch.testing.assert_close(gradients[-0.3, 1.0], -gradients[0.05, 1.0])  # b has another sign
    torch.testing.assert_close(gradients[-0.3, 0.0], -6 * gradients[0.05, 0.0])


def test_the_penalty_is_grpos():
    output, batch = batch_of()
    with_kl, without = (build_method("grpo_guard", {"kl": kl}).loss(output, batch, **CLIPS).loss for kl in (2.0, 0.0))
    grpo = [build_method("grpo", {"kl": kl}).loss(output, batch, **CLIPS).loss for kl in (2.0, 0.0)]
    torch.testing.assert_close(with_kl - without, grpo[0] - grpo[1])


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory):
    prompts = tmp_path_factory.mktemp("prompts") / "seen"
    prompts.write_text("cat\ndog\nhorse\n")
    return RunConfig(
        method="grpo_guard",
        group_size=4,
        prompts=str(prompts),
        model=str(tiny_model),
        reward="colourfulness",
        eval_rewards=(),
        steps=3,
        epochs=2,
        pairs=4,
        pairs_per_update=2,
        device="cpu",
    )


def trainer_of(config):
    return Trainer(config, load_policy(config), load_reward(config.reward))


def test_the_clip_range_is_the_methods_own(config):
    scale = math.sqrt(16_384 / math.prod(load_policy(config).latent_shape))
    found = {
        name: trainer_of(dataclasses.replace(config, method=name, label="")).clips["clip_range"]
        for name in ("grpo", "grpo_guard")
    }
    assert found == pytest.approx({"grpo": 1e-4 * scale, "grpo_guard": 4e-6 * scale})
    assert trainer_of(dataclasses.replace(config, clip_range=0.1)).clips["clip_range"] == 0.1


@pytest.mark.parametrize("name", ["grpo_guard", "flow_dppo"])
@pytest.mark.parametrize(
    "changes", [{}, {"offload_trajectories": True}, {"train_last_step": False}, {"train_window": 2}, {"rows": 3}]
)
def test_the_loss_sees_the_outputs_of_the_model_that_sampled(config, monkeypatch, name, changes):
    """At the first update the model's own, to the bit; at the second still those of the first."""
    trainer = trainer_of(dataclasses.replace(config, method=name, label="", learning_rate=0.01, **changes))
    seen, method = [], type(trainer.method)
    own = method.loss_and_grad

    def recorded(self, output, batch, **options):
        seen.append((output.detach().clone(), batch.old_output))
        return own(self, output, batch, **options)

    monkeypatch.setattr(method, "loss_and_grad", recorded)
    plan = trainer.plan(1)
    rollout = trainer.rollout(plan)
    groups = trainer.optimizer_batches(plan)
    for number, group in enumerate(groups):
        seen.clear()
        trainer.update(group, rollout.trajectory, sdpo_kernels.normal(torch.arange(4), (4, 1)).expand(4, 4, 3))
        same = [torch.equal(output, old) for output, old in seen]
        assert all(same) if number == 0 else not any(same)
    assert len(groups) == 2


def test_keeping_the_outputs_takes_no_pass(config):
    rows = [
        trainer_of(dataclasses.replace(config, method=name, label="")).train_epoch(1).to_row()
        for name in ("grpo", "grpo_guard", "flow_dppo")
    ]
    assert len({(row["model_evaluations"], row["backward_passes"]) for row in rows}) == 1
