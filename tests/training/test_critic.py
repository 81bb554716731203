"""The critic: its regression, what it may know, and what it does to advantages."""

import math

import numpy as np
import pytest
import torch
from sdpo_kernels import normal

from sdpo_bench.config import RunConfig
from sdpo_bench.policies import load_policy
from sdpo_bench.training import critic as critics
from sdpo_bench.training.advantages import residual
from sdpo_bench.training.critic import RIDGE, WIDTH, Critic, features_of, regression
from sdpo_bench.training.sampling import derive_seeds, sample
from sdpo_bench.types import Trajectory


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return normal(torch.tensor([seed]), shape)[0]


def epoch(seed: int, pairs: int = 32, steps: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [pairs, 2, steps, 6], and advantages that at step 0 are a function of them, at step 1 are noise."""
    features = drawn(seed, pairs, 2, steps, 6)
    noise = drawn(seed + 1000, pairs, 2, steps).double()
    known = torch.sin(features[..., 0]) + features[..., 1] * features[..., 2]
    return features, torch.where(torch.arange(steps) == 0, known.double() + 0.1 * noise, noise)


def test_regression_against_a_plain_implementation():
    x, known, targets = drawn(1, 5, 3), 2 + 4 * drawn(2, 40, 3), drawn(3, 40)
    scale = known.double().numpy().std(0)
    a, b = x.double().numpy() / scale, known.double().numpy() / scale

    def kernel(p, q):
        return math.exp(-((p - q) ** 2).sum() / (2 * WIDTH**2 * 3))

    matrix = np.array([[kernel(p, q) for q in b] for p in b]) + RIDGE * np.eye(40)
    y = targets.double().numpy()
    weights = np.linalg.solve(matrix, y - y.mean())
    expected = [y.mean() + sum(w * kernel(p, q) for w, q in zip(weights, b, strict=True)) for p in a]
    assert regression(x, known, targets).numpy() == pytest.approx(expected, abs=1e-5)


def test_far_from_all_that_is_known_the_value_is_the_mean():
    """Also where a feature never varied, as the prompt's does with one prompt."""
    known, targets = drawn(2, 40, 3), drawn(3, 40) + 5
    known[:, 2] = 1.3
    assert regression(torch.full((1, 3), 1e3), known, targets).item() == pytest.approx(targets.mean().item())
    assert regression(known[:1] + torch.tensor([0, 0, 1.0]), known, targets).item() == pytest.approx(
        targets.mean().item()
    )


def test_what_is_predictable_is_removed_and_the_rest_stays():
    critic = Critic()
    for seed in range(8):
        features, advantages = epoch(seed)
        left = critic.control(features, advantages)
    assert critic.explained[0] > 0.6
    assert critic.explained[1] < 0.1
    for k in range(2):
        share = left[..., k].square().mean() / advantages[..., k].square().mean()
        assert critic.explained[k] == pytest.approx(1 - share.item())
        assert critic.explained[k] >= 0  # no worse than without it, whatever it says


def test_the_first_epoch_is_left_as_it_is():
    critic, (features, advantages) = Critic(), epoch(0)
    assert torch.equal(critic.control(features, advantages), advantages)
    assert critic.explained is None


def test_values_know_nothing_of_their_own_epoch():
    """The values that are subtracted are the same whatever the epoch's advantages turn out to be."""
    first, (features, advantages), other = epoch(0), epoch(1), epoch(2)[1]
    values = []
    for outcome in (advantages, other):
        critic = Critic()
        critic.control(*first)
        expected = critic.values(features.flatten(0, 1)).view_as(outcome).double()
        assert torch.equal(critic.control(features, outcome), residual(outcome, expected))
        values.append(expected)
    assert torch.equal(*values)


def test_the_window_and_the_state(monkeypatch):
    monkeypatch.setattr(critics, "WINDOW", 100)
    critic, again = Critic(), Critic()
    for seed in range(3):
        critic.control(*epoch(seed))
    assert critic.features.shape == (100, 2, 6)
    assert torch.equal(critic.features, torch.cat([epoch(s)[0].flatten(0, 1) for s in range(3)])[-100:])
    assert torch.equal(critic.advantages, torch.cat([epoch(s)[1].flatten(0, 1) for s in range(3)])[-100:].float())
    again.load_state_dict(critic.state_dict())
    assert torch.equal(again.control(*epoch(7)), critic.control(*epoch(7)))


def test_equal_rewards_leave_exactly_nothing():
    critic = Critic()
    for seed in range(3):
        features, advantages = epoch(seed)
        left = critic.control(features, 0 * advantages)
        assert torch.equal(left, 0 * advantages)
    assert critic.explained == [0.0, 0.0]


def trajectory_of(shape: tuple[int, ...], width: int) -> Trajectory:
    clean = drawn(1, 3, 2, 4, *shape)
    return Trajectory(
        prompts=["cat", "dog", "cow"],
        conditions=(drawn(2, 3, 7, width),),
        timesteps=torch.arange(4),
        coefficients=torch.zeros(4, 5),
        input_scale=torch.ones(4),
        latents=clean,
        predicted_clean=clean,
        log_prob=torch.zeros(3, 2, 4),
        step_seeds=torch.zeros(3, 2, dtype=torch.int64),
        signal_scale=torch.ones(4),
        noise_scale=torch.ones(4),
    )


@pytest.mark.parametrize(
    ("shape", "width", "places", "text"),
    [((4, 8, 8), 64, 8, 64), ((4, 64, 64), 1024, 8, 64), ((16, 128, 128), 4096, 4, 64), ((4, 4, 4), 32, 4, 32)],
)
def test_features_are_few_whatever_the_model(shape, width, places, text):
    trajectory = trajectory_of(shape, width)
    found = features_of(trajectory)
    assert found.shape == (3, 2, 4, shape[0] * places**2 + text)
    square = shape[1] // places
    corner = trajectory.predicted_clean[2, 1, 3, 1, :square, -square:].mean()
    assert found[2, 1, 3, places**2 + places - 1].item() == pytest.approx(corner.item(), abs=1e-5)
    words = trajectory.conditions[0][2].mean(0)[: width // text].mean()
    assert found[2, 1, 3, shape[0] * places**2].item() == pytest.approx(words.item(), abs=1e-5)


def test_features_are_fixed_before_their_steps_noise(tiny_model):
    """Trajectories whose noise differs from step k on have the same features up to step k, and others after it."""
    config = RunConfig(model=str(tiny_model), reward="colourfulness", device="cpu", steps=4)
    policy = load_policy(config)
    seeds = {"initial_seeds": derive_seeds(1, count=2), "step_seeds": derive_seeds(2, count=4).reshape(2, 2)}
    whole = features_of(sample(policy, ["cat", "dog"], steps=4, **seeds))
    for k in range(3):
        part = features_of(sample(policy, ["cat", "dog"], steps=4, noisy_steps=range(k), **seeds))
        assert torch.equal(part[:, :, : k + 1], whole[:, :, : k + 1])
        assert not torch.equal(part[:, :, k + 1], whole[:, :, k + 1])
