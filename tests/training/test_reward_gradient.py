"""Rewards with a gradient back to the weights: their values are the rollout's, their gradient is the slope."""

import dataclasses

import pytest
import torch

from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.policies import load_policy
from sdpo_bench.rewards import load_reward
from sdpo_bench.training.reward_gradient import rewards_of_last_steps
from sdpo_bench.training.trainer import Trainer

CONFIG = RunConfig(
    method="draft", steps=3, epochs=1, pairs=4, pairs_per_update=2, finetune="full", device="cpu", pad_rows=8, rows=8
)


@pytest.fixture(scope="module")
def trainer():
    return Trainer(CONFIG, load_policy(CONFIG), load_reward(CONFIG.reward))


@pytest.mark.parametrize("last_steps", [1, 2, 3])
def test_the_rewards_are_those_of_the_rollout(trainer, last_steps):
    rollout = trainer.rollout(trainer.plan(1))
    pairs = torch.tensor([3, 0])
    found = rewards_of_last_steps(trainer.policy, trainer.reward, rollout.trajectory, pairs, last_steps)
    torch.testing.assert_close(found.detach(), rollout.rewards.values[pairs, :, -1], rtol=0, atol=2e-3)


@pytest.mark.parametrize(("last_steps", "noisings"), [(1, 0), (3, 0), (1, 2)])
def test_the_gradient_is_the_slope(trainer, last_steps, noisings):
    """Along the gradient the mean reward rises as it says; 8-bit rounding of the pictures averages out."""
    trajectory, pairs = trainer.sample(trainer.plan(1)), torch.arange(4)

    def mean_reward():
        arguments = (trainer.policy, trainer.reward, trajectory, pairs, last_steps, noisings)
        return rewards_of_last_steps(*arguments).mean()

    trainer.optimiser.zero_grad()
    mean_reward().backward()
    gradients = [p.grad.clone() for p in trainer.policy.parameters]
    norm = torch.stack([g.norm() for g in gradients]).norm()

    def move(distance):
        with torch.no_grad():
            for p, g in zip(trainer.policy.parameters, gradients, strict=True):
                p += distance * g / norm

    values, size = [], 0.01
    for distance in (size, -2 * size):  # forth, and back beyond the start
        move(distance)
        values.append(mean_reward().item())
    move(size)
    assert (values[0] - values[1]) / (2 * size) == pytest.approx(norm.item(), rel=0.15)


def test_noisings_are_drawn_anew(trainer):
    trajectory, pairs = trainer.sample(trainer.plan(1)), torch.arange(2)
    arguments = (trainer.policy, trainer.reward, trajectory, pairs, 1)
    one, two, plain = (rewards_of_last_steps(*arguments, n).detach() for n in (1, 2, 0))
    assert not torch.equal(one, plain)
    second = 2 * two - one
    assert not torch.allclose(second, one, atol=1e-4), "each noising has noise of its own"


def test_rewards_rise(tmp_path):
    config = dataclasses.replace(CONFIG, options={"last_steps": 0}, learning_rate=1e-4)
    trainer = Trainer(config, load_policy(config), load_reward(config.reward))
    fixed = trainer.plan(9)
    before = trainer.rollout(fixed).rewards.values[..., -1].mean()
    for epoch in (1, 2):
        row = trainer.train_epoch(epoch).to_row()
    assert trainer.rollout(fixed).rewards.values[..., -1].mean() > before + 0.01
    assert row["reward_gradients"] == row["samples"] == 16


@pytest.mark.parametrize("method", ["draft", "rtdmd_lite"])
@pytest.mark.parametrize("reward", ["jpeg_compressibility", "alignment+jpeg_compressibility"])
def test_a_reward_without_a_gradient_is_refused(method, reward):
    with pytest.raises(
        UserError, match=r"--reward .*: jpeg_compressibility has no gradient.*choose one of: .*alignment"
    ):
        RunConfig(method=method, reward=reward)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": {"last_steps": 5}}, "last_steps of draft is 5; expected at most --steps"),
        ({"options": {"last_steps": 2, "noisings": 2}}, "noisings take the last step alone"),
        ({"options": {"last_steps": 1.5}}, "last_steps of draft is 1.5; expected 0"),
        ({"updates": "step"}, "--updates step: DRaFT"),
        ({"train_share": 0.5}, "--train-share: DRaFT does not learn from single steps"),
        ({"train_window": 2}, "--train-window: DRaFT"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        RunConfig(method="draft", steps=4, **settings)


def test_an_update_for_each_step_is_refused_beside_the_rewards_gradient():
    with pytest.raises(
        UserError, match="--updates step: RTDMD-lite takes the reward's gradient of whole samples, once"
    ):
        RunConfig(method="rtdmd_lite", steps=4, updates="step")


def test_rtdmd_trains_the_last_step_by_the_rewards_gradient_alone():
    config = RunConfig(method="rtdmd_lite", steps=4)
    assert list(config.trained) == [0, 1, 2]
    with pytest.raises(UserError, match="nothing is left"):
        RunConfig(method="diffusion_nft", steps=1, train_last_step=False)
