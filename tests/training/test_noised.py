"""Finished samples that are noised anew, the weights that sample, and groups with an x_T for each sample."""

import dataclasses

import pytest
import torch

from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.experiments import cost_model
from sdpo_bench.methods import METHODS
from sdpo_bench.policies import load_policy
from sdpo_bench.rewards import load_reward
from sdpo_bench.training.old_weights import OldWeights
from sdpo_bench.training.trainer import Trainer


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory):
    prompts = tmp_path_factory.mktemp("prompts") / "seen"
    prompts.write_text("cat\ndog\nhorse\n")
    return RunConfig(
        method="diffusion_nft",
        group_size=2,
        prompts=str(prompts),
        model=str(tiny_model),
        reward="colourfulness",
        eval_rewards=(),
        steps=3,
        epochs=2,
        pairs=4,
        pairs_per_update=2,
        learning_rate=1e-3,
        device="cpu",
    )


def trainer_of(config):
    return Trainer(config, load_policy(config), load_reward(config.reward))


def weights(policy):
    return [p.detach().clone() for p in policy.parameters]


def test_samples_have_an_x_t_each_and_no_step_noise(config):
    trainer = trainer_of(config)
    trajectory = trainer.sample(trainer.plan(1))
    assert len(trajectory.latents[:, :, 0].flatten(0, 1).flatten(1).unique(dim=0)) == 8
    assert (trajectory.coefficients[:, 4] == 0).all()
    rewards = trainer.rollout(trainer.plan(1)).rewards
    assert rewards.queries == 8


@pytest.mark.parametrize(("name", "size"), [("grpo", 4), ("ddpo", 2), ("sdpo", 2)])
def test_every_method_can_give_its_samples_an_x_t_each(config, name, size):
    """As Flow-GRPO and DDPO do: the first step is then trained, predicted and scored for each sample."""
    given = dataclasses.replace(config, method=name, label="", group_size=size, dense="exact", shared_noise=False)
    trainer = trainer_of(given)
    assert trainer.check_on_policy(1) == 0
    first = trainer.sample(trainer.plan(1)).latents[:, :, 0]
    assert len(first.flatten(0, 1).flatten(1).unique(dim=0)) == 4 * size
    row = trainer.train_epoch(1).to_row()
    assert row["model_evaluations"] == sum(cost_model.passes(dataclasses.replace(given, epochs=1)).values())
    assert row["reward_queries"] == 4 * size * (3 if name == "sdpo" else 1) == cost_model.work(given)["reward"] / 2


def test_sharing_x_t_is_an_option_of_pairs_that_are_noised_anew(config):
    trainer = trainer_of(dataclasses.replace(config, method="pso", label="", shared_noise=True))
    latents = trainer.sample(trainer.plan(1)).latents
    assert torch.equal(latents[:, 0, 0], latents[:, 1, 0])
    assert not torch.equal(latents[:, 0, -1], latents[:, 1, -1])


@pytest.mark.parametrize("name", ["diffusion_nft", "crd"])
def test_samples_without_any_noise_of_their_own_are_refused(config, name):
    with pytest.raises(UserError, match=r"--shared-noise True: .* samples without step noise, so .*; leave it out"):
        dataclasses.replace(config, method=name, label="", shared_noise=True)


def test_the_option_is_named_in_a_runs_identity_where_it_is_not_the_methods_own():
    for name, method in METHODS.items():
        assert "shared_noise" not in RunConfig(method=name, shared_noise=method.shared_noise).to_json()
    assert RunConfig(method="ddpo", shared_noise=False).to_json()["shared_noise"] is False


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shared", [False, None])
def test_one_step_is_refused_where_log_probs_are_learned_from(name, shared):
    """The noise of the only step comes after the picture that is scored."""
    if METHODS[name].learns_from in ("noised", "reward"):
        assert RunConfig(method=name, shared_noise=shared, steps=1).trained_steps == 1
        return
    with pytest.raises(UserError, match=r"--steps is 1; expected at least 2: .* or choose .*: crd, diffusion_nft, .*"):
        RunConfig(method=name, shared_noise=shared, steps=1)
    with pytest.raises(UserError, match=r"--train-window is 1, .*; give --no-train-last-step, or at least 2"):
        RunConfig(method="grpo", steps=4, train_window=1)
    assert RunConfig(method="grpo", steps=4, train_window=1, train_last_step=False).train_window == 1


def test_sharing_x_t_leaves_no_difference_after_one_step():
    with pytest.raises(UserError, match=r"--steps is 1; .*\(or give --shared-noise False\)"):
        RunConfig(method="pso", shared_noise=True, steps=1)


@pytest.mark.parametrize("steps", [1, 3])
def test_one_step_is_enough(config, steps):
    row = trainer_of(dataclasses.replace(config, steps=steps)).train_epoch(1).to_row()
    assert row["reward_queries"] == 8
    assert row["log_ratio_max"] > 0


def test_noised_samples_have_the_level_of_their_step(config):
    trainer = trainer_of(config)
    trajectory = trainer.sample(trainer.plan(1))
    pairs, steps = torch.tensor([2, 0, 2]), torch.tensor([0, 1, 2])
    clean, noised = trainer.noised(trajectory, pairs, steps)
    assert torch.equal(clean, trajectory.latents[pairs, :, -1])
    signal, level = (x[steps].reshape(-1, 1, 1, 1, 1) for x in (trajectory.signal_scale, trajectory.noise_scale))
    noise = (noised - signal * clean) / level
    assert noise.std().item() == pytest.approx(1, abs=0.1)
    assert len(noise.flatten(0, 1).flatten(1).unique(dim=0)) == 6, "each sample and step has noise of its own"
    again = trainer.noised(trajectory, pairs[[1]], steps[[1]])[1]
    assert torch.equal(again[0], noised[1]), "whatever else is in the batch"


def test_the_gradient_is_that_of_the_mean_loss(config):
    config = dataclasses.replace(config, pairs_per_update=4, max_grad_norm=1e9)
    trainer = trainer_of(config)
    trajectory = trainer.sample(trainer.plan(1))
    with torch.no_grad():  # leave the weights that sampled
        for p in trainer.policy.parameters:
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    advantages = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    trainer.optimiser.step = lambda: None
    trainer.update(trainer.optimizer_batches(trainer.plan(1))[0], trajectory, advantages)
    ours = torch.cat([p.grad.flatten() for p in trainer.policy.parameters])
    trainer.optimiser.zero_grad()

    def outputs(step):
        pairs, steps = torch.arange(4), torch.full((4,), step)
        return trainer.predict_at(trajectory, trainer.noised(trajectory, pairs, steps)[1], pairs, steps)

    with torch.no_grad():  # before any graph of the trained weights
        with trainer.old_weights.applied():
            olds = [outputs(step) for step in range(3)]
        with trainer.policy.reference():
            references = [outputs(step) for step in range(3)]
    total = torch.zeros(())
    for step, (old, reference) in enumerate(zip(olds, references, strict=True)):
        clean, noised = trainer.noised(trajectory, torch.arange(4), torch.full((4,), step))
        output = outputs(step)
        c, d = trajectory.coefficients[step, 2:4]
        share = advantages[:, :, step].clamp(-5, 5) / 10 + 0.5
        parts = []
        for guided in (output, 2 * old - output):
            difference = (c * noised + d * guided - clean).flatten(2)
            parts.append(difference.square().mean(2) / difference.detach().abs().mean(2))
        policy = 5 * (share * parts[0] + (1 - share) * parts[1])
        total = total + (policy + 1e-4 * (output - reference).square().flatten(2).mean(2)).mean() / 3
    total.backward()
    direct = torch.cat([p.grad.flatten() for p in trainer.policy.parameters])
    assert torch.allclose(ours, direct, rtol=1e-3, atol=1e-4 * direct.abs().max())


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_old_weights_follow_the_trained_ones(config, finetune):
    policy = load_policy(dataclasses.replace(config, finetune=finetune))
    first = weights(policy)
    old = OldWeights(policy)
    with torch.no_grad():
        for p in policy.parameters:
            p += 1
    trained = weights(policy)
    with old.applied():
        assert all(map(torch.equal, policy.parameters, first))
    assert all(map(torch.equal, policy.parameters, trained))
    old.follow(0.75)
    with old.applied():
        for p, before in zip(policy.parameters, first, strict=True):
            torch.testing.assert_close(p.detach(), before + 0.25)
    copy = OldWeights(policy)
    copy.load_state_dict(old.state_dict())
    assert all(map(torch.equal, copy.weights, old.weights))
    old.follow(0.0)
    assert all(map(torch.equal, old.weights, trained))


def test_the_trained_weights_come_back_after_an_error(config):
    policy = load_policy(config)
    old = OldWeights(policy)
    with torch.no_grad():
        for p in policy.parameters:
            p += 1
    trained = weights(policy)
    with pytest.raises(KeyError), old.applied():
        raise KeyError
    assert all(map(torch.equal, policy.parameters, trained))


def test_old_weights_sample(config):
    trainer = trainer_of(config)
    before = trainer.sample(trainer.plan(1))
    with torch.no_grad():
        for p in trainer.policy.parameters:
            p += 0.1
    assert torch.equal(trainer.sample(trainer.plan(1)).latents, before.latents)
    trainer.old_weights.follow(0.0)
    assert not torch.equal(trainer.sample(trainer.plan(1)).latents, before.latents)


def test_old_weights_follow_by_optimiser_steps(config):
    """Two in an epoch, here: as in the authors' code, where an epoch may have one."""
    trainer = trainer_of(dataclasses.replace(config, options={"decay_rate": 0.1, "decay_max": 0.9}))
    for decay in (0.2, 0.4):
        before = [old.clone() for old in trainer.old_weights.weights]
        trainer.train_epoch(round(decay * 5))
        for trained, old, was in zip(weights(trainer.policy), trainer.old_weights.weights, before, strict=True):
            torch.testing.assert_close(old, decay * was + (1 - decay) * trained)


def test_trained_weights_sample_where_old_ones_are_only_compared_with(config):
    trainer = trainer_of(dataclasses.replace(config, method="crd", label=""))
    before = trainer.sample(trainer.plan(1))
    with torch.no_grad():
        for p in trainer.policy.parameters:
            p += 0.1
    trajectory = trainer.sample(trainer.plan(1))
    assert not torch.equal(trajectory.latents, before.latents)
    pairs = steps = torch.tensor([0])
    sample = trainer.noised(trajectory, pairs, steps)[1]

    def predict():
        return trainer.predict_at(trajectory, sample, pairs, steps)

    old = trainer.old_output(predict)
    assert not torch.equal(old, predict())
    with trainer.policy.reference():
        assert torch.equal(old, predict()), "no epoch has ended"
