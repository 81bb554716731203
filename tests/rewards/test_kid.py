"""The kernel distance from the pretrained model's pictures: its formula, its expectation, and what makes it rise."""

import itertools

import pytest
import torch
from sdpo_kernels import normal

from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.policies import load_policy
from sdpo_bench.rewards import load_reward
from sdpo_bench.testbed.train_scorer import blur
from sdpo_bench.training.evaluation import pictures


def noise(*seeds):
    return normal(torch.tensor(seeds), (3, 32, 32)).mul(0.3).add(0.5).clamp(0, 1)


@pytest.fixture(scope="module")
def reward():
    return load_reward("kid_start")


def kernels(reward, x, y):
    """k(x[i], y[j]) of pictures, written down anew: KID's (x y / d + 1)^3, of embeddings with a mean square of 1."""
    a, b = (reward.scorer.embed(pictures).double() * 64**0.5 for pictures in (x, y))
    assert torch.allclose(a.square().mean(1), torch.ones(len(a), dtype=torch.float64))
    return torch.tensor([[((p * q).sum() / 64 + 1) ** 3 for q in b] for p in a])


def test_a_value_is_the_mean_over_the_other_pictures(reward):
    x, y = noise(1, 2, 3), noise(4, 5, 6)
    xx, yy, xy = kernels(reward, x, x), kernels(reward, y, y), kernels(reward, x, y)
    expected = [sum(xx[i, j] + yy[i, j] - xy[i, j] - xy[j, i] for j in range(3) if j != i).item() / 2 for i in range(3)]
    values = reward.against(y)(x, ["cat"] * 3)
    assert values.tolist() == pytest.approx(expected, abs=1e-6)
    # The usual unbiased estimate, less the cross terms of a picture with the one from its own noise.
    others = ~torch.eye(3, dtype=torch.bool)
    usual = xx[others].mean() + yy[others].mean() - 2 * xy[others].mean()
    assert values.mean().item() == pytest.approx(usual.item(), abs=1e-6)


def test_prompts_are_apart(reward):
    x, y = noise(1, 2, 3, 4), noise(5, 6, 7, 8)
    values = reward.against(y)(x, ["cat", "dog", "dog", "cat"])
    cats, dogs = (reward.against(y[group])(x[group], ["cat"] * 2) for group in ([0, 3], [1, 2]))
    assert torch.equal(values, torch.stack([cats[0], dogs[0], dogs[1], cats[1]]))
    assert reward.start is None, "`against` changed the reward itself"


def test_the_same_pictures_are_at_0_to_the_bit(reward):
    x = noise(*range(70))
    assert torch.equal(reward.against(x.clone())(x, ["cat"] * 70), torch.zeros(70))


@pytest.mark.parametrize("other", [[4, 5, 6], [2, 3, 1]], ids=["another distribution", "the same, of other noises"])
def test_the_mean_over_all_draws_is_the_distance_itself(reward, other):
    """Of the distributions that have one of three pictures, by the same noise: all nine draws of two noises, with
    replacement. Nothing is random, so it holds to rounding."""
    x, y = noise(1, 2, 3), noise(*other)
    drawn = [
        reward.against(y[[i, j]])(x[[i, j]], ["cat"] * 2).mean().item()
        for i, j in itertools.product(range(3), repeat=2)
    ]
    distance = kernels(reward, x, x).mean() + kernels(reward, y, y).mean() - 2 * kernels(reward, x, y).mean()
    assert sum(drawn) / 9 == pytest.approx(distance.item(), abs=1e-6)
    assert (distance.item() > 0.01) == (other == [4, 5, 6])


@pytest.fixture(scope="module")
def embedded():
    """Pictures of the embedded model, 8 noises of each of 8 prompts, the prompts, and pictures of other noises."""
    config = RunConfig(device="cpu")
    policy, prompts = load_policy(config), config.prompt_lists["seen"][:8]
    drawn = [pictures(policy, prompts, list(noises), 2, config) for noises in (range(8), range(8, 16))]
    return drawn[0], [prompt for prompt in prompts for _ in range(8)], drawn[1]


def test_it_rises_with_blur(reward, embedded):
    start, prompts, _ = embedded
    found = [0.0]
    for pixels in (0.5, 1, 1.5):
        blurred = blur(start, torch.full((len(start),), pixels))
        found.append(reward.against(start)(blurred, prompts).mean().item())
    assert found == sorted(found)
    by_prompt = reward.against(start)(blurred, prompts).reshape(8, 8).mean(1)
    assert bool((by_prompt > 0).all())


def test_it_rises_with_collapse(reward, embedded):
    """All pictures of a prompt are one that the model made itself, of another noise: no picture is a bad one. Other
    noises alone leave it about where it was."""
    start, prompts, others = embedded
    collapsed = others.reshape(8, 8, 3, 32, 32)[:, :1].expand(-1, 8, -1, -1, -1).flatten(0, 1)
    by_prompt = {
        name: reward.against(start)(images, prompts).reshape(8, 8).mean(1)
        for name, images in (("collapsed", collapsed), ("others", others))
    }
    assert bool((by_prompt["collapsed"] > 0).all())
    error = by_prompt["others"].std() / 8**0.5
    assert by_prompt["others"].mean().abs() < 3 * error < by_prompt["collapsed"].mean()
    for name in ("vendi", "vendi_heldout"):
        before, after = (load_reward(name)(images, prompts) for images in (start, collapsed))
        assert bool((before > after).all())
        assert after.tolist() == pytest.approx([1] * 64, abs=1e-5)


def test_what_it_cannot_be_measured_with(reward):
    with pytest.raises(UserError, match=r"^kid_start has no pictures of the pretrained model; give them with its"):
        reward(noise(1, 2), ["cat"] * 2)
    one = (
        "^kid_start compares the pictures of a prompt with each other, and there is 1; give at least 2 to --eval-noises"
    )
    with pytest.raises(UserError, match=one):
        reward.against(noise(1, 2))(noise(3, 4), ["cat", "dog"])
    for changes in (
        {"eval_rewards": ("kid_start",), "eval_noises": 1},
        {"eval_rewards": ("kid_start",), "eval_interim_noises": 1},
        {"eval_last_rewards": ("0.5*alignment+kid_start",), "eval_noises": 1},
    ):
        with pytest.raises(UserError, match=one):
            RunConfig(**changes)
    RunConfig(eval_last_rewards=("kid_start",), eval_interim_noises=1)


def test_a_sum_hands_the_pretrained_models_pictures_on(reward):
    x, y = noise(1, 2), noise(3, 4)
    both = load_reward("0.5*colourfulness+2*kid_start")
    assert both.needs_start
    assert not load_reward("0.5*colourfulness+2*vendi").needs_start
    expected = 0.5 * load_reward("colourfulness")(x, ["cat"] * 2) + 2 * reward.against(y)(x, ["cat"] * 2)
    assert torch.allclose(both.against(y)(x, ["cat"] * 2), expected)
