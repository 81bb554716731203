"""DenseGRPO: gains as returns, their advantages within the group, what the last step has."""

import dataclasses

import pytest
import sdpo_kernels
import torch

from sdpo_bench.config import RunConfig
from sdpo_bench.methods import build_method
from sdpo_bench.policies import load_policy
from sdpo_bench.rewards import load_reward
from sdpo_bench.training.advantages import GroupNormalizer
from sdpo_bench.training.trainer import Trainer


def test_the_gains_add_up_to_what_the_picture_gained():
    rewards = sdpo_kernels.normal(torch.arange(12), (5,)).view(3, 4, 5)
    gains = build_method("dense_grpo").returns(rewards)
    torch.testing.assert_close(gains.sum(-1), rewards[..., -1] - rewards[..., 0])
    assert (gains[..., -1] == 0).all()
    torch.testing.assert_close(gains, build_method("sdpo_gain", {"gamma": 0.0}).returns(rewards))


def test_advantages_compare_the_gains_of_a_group_at_one_step():
    rewards = torch.tensor([[[0.0, 1.0, 1.5], [0.0, 2.0, 1.0], [0.0, 4.0, 6.0], [0.0, 1.0, 2.0]]]).double()
    found = GroupNormalizer()(["cat"], build_method("dense_grpo").returns(rewards))[0]
    for k, gains in enumerate([[1, 2, 4, 1], [0.5, -1, 2, 1]]):
        mean = sum(gains) / 4
        std = (sum((x - mean) ** 2 for x in gains) / 4) ** 0.5
        assert found[:, k].tolist() == pytest.approx([(x - mean) / (std + 1e-6) for x in gains])
    assert found[:, 2].tolist() == [0.0] * 4


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory):
    prompts = tmp_path_factory.mktemp("prompts") / "seen"
    prompts.write_text("cat\ndog\nhorse\n")
    return RunConfig(
        method="dense_grpo",
        group_size=4,
        dense="exact",
        prompts=str(prompts),
        model=str(tiny_model),
        reward="colourfulness",
        eval_rewards=(),
        steps=4,
        epochs=1,
        pairs=4,
        pairs_per_update=2,
        device="cpu",
    )


def test_an_epoch_with_a_query_for_every_step(config):
    """A step's advantages are those of what its own noise changed; a group's first picture is asked for once."""
    trainer = Trainer(config, load_policy(config), load_reward(config.reward))
    plan = trainer.plan(1)
    rollout = trainer.rollout(plan)
    pictures = rollout.trajectory.predicted_clean.flatten(0, 2)
    prompts = [prompt for prompt in rollout.trajectory.prompts for _ in range(4 * 4)]
    rewards = trainer.score(pictures, prompts).view(4, 4, 4).double()
    gains = rewards[..., 1:] - rewards[..., :-1]
    expected = (gains - gains.mean(1, keepdim=True)) / (gains.std(1, correction=0, keepdim=True) + 1e-6)
    found = trainer.advantages(plan, rollout.rewards)
    torch.testing.assert_close(found[..., :-1], expected.float())
    assert (found[..., -1] == 0).all()
    assert trainer.train_epoch(1).to_row()["reward_queries"] == 4 * (1 + 4 * 3)


def test_the_last_step_teaches_nothing(config):
    """Left out of training, the weights' gradient has the same direction."""
    gradients = []
    for last in (True, False):
        given = dataclasses.replace(config, train_last_step=last, pairs_per_update=4, max_grad_norm=1e9)
        trainer = Trainer(given, load_policy(given), load_reward(given.reward))
        trainer.optimiser.step = lambda: None
        plan = trainer.plan(1)
        rollout = trainer.rollout(plan)
        trainer.update(
            trainer.optimizer_batches(plan)[0], rollout.trajectory, trainer.advantages(plan, rollout.rewards)
        )
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.policy.parameters]))
    torch.testing.assert_close(
        4 * gradients[0], 3 * gradients[1], rtol=1e-3, atol=1e-5 * gradients[1].abs().max().item()
    )
