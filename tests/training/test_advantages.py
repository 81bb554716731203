"""The normaliser against the statement: buffers of 32 per prompt, at least 16, else the batch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sdpo_kernels import normal

from sdpo_bench.training.advantages import PerPromptNormalizer


def test_against_a_plain_implementation():
    normaliser, history = PerPromptNormalizer(), {}
    for epoch in range(40):
        prompts = ["cat", "dog", "cat"] if epoch % 2 else ["cat", "owl", "cat"]
        returns = normal(torch.tensor([epoch]), (3, 2, 4))[0] * 3 + 5
        advantages = normaliser(prompts, returns)
        for prompt, group in zip(prompts, returns, strict=True):
            history[prompt] = [*history.get(prompt, []), *group.double().numpy()][-32:]
        batch = returns.double().numpy().reshape(-1, 4)
        for i, prompt in enumerate(prompts):
            values = np.array(history[prompt]) if len(history[prompt]) >= 16 else batch
            expected = (returns[i].double().numpy() - values.mean(0)) / (values.std(0) + 1e-6)
            assert advantages[i].numpy() == pytest.approx(expected, abs=1e-4)
    assert len(normaliser.buffers["cat"]) == 32


@given(st.floats(-1e30, 1e30), st.integers(1, 20), st.booleans())
def test_equal_returns_give_exactly_zero(value, prompts, known):
    """From the batch's statistics and from the prompt's own, with a baseline or without, for returns that differ from
    step to step."""
    rewards = torch.full((prompts, 2, 3), value, dtype=torch.float64)
    returns = rewards * torch.tensor([2.9701, 1.99, 1.0], dtype=torch.float64)
    normaliser = PerPromptNormalizer()
    for _ in range(9):
        advantages = normaliser(["cat"] * prompts, returns, rewards if known else None)
        assert torch.equal(advantages, torch.zeros(prompts, 2, 3, dtype=torch.float64))
    assert normaliser.own_statistics_share == 1


def test_size_and_minimum_of_the_buffers():
    normaliser = PerPromptNormalizer(buffer=4, min_count=3)
    assert normaliser(["cat", "dog"], torch.randn(2, 2, 1)).shape == (2, 2, 1)
    assert normaliser.own_statistics_share == 0
    normaliser(["cat", "owl"], torch.randn(2, 2, 1))
    assert normaliser.own_statistics_share == 0.5
    normaliser(["cat", "dog"], torch.randn(2, 2, 1))
    assert normaliser.own_statistics_share == 1
    assert {prompt: len(rows) for prompt, rows in normaliser.buffers.items()} == {"cat": 4, "dog": 4, "owl": 2}


def test_known_rewards_are_taken_out_by_regression():
    """What the known reward foretells linearly is gone, for each step with a beta of its own; the scale is the
    return's."""
    known = normal(torch.arange(8), (2, 3)).reshape(8, 2, 3)
    surprise = 0.1 * normal(torch.arange(8) + 100, (2, 3)).reshape(8, 2, 3)
    slopes = torch.tensor([2.0, -1.0, 0.0])
    returns = 5 + slopes * known + surprise
    advantages = PerPromptNormalizer()(["cat"] * 8, returns, known)
    for k in range(3):
        x, y = known[..., k].flatten().double().numpy(), returns[..., k].flatten().double().numpy()
        x, y = x - x.mean(), y - y.mean()
        expected = (y - (x @ y) / (x @ x) * x) / (y.std() + 1e-6)
        assert advantages[..., k].flatten().numpy() == pytest.approx(expected, abs=1e-4)
        assert abs(float(advantages[..., k].flatten().double().numpy() @ x)) < 1e-3
    plain = PerPromptNormalizer()(["cat"] * 8, returns)
    assert advantages[..., 0].std() < 0.2 * plain[..., 0].std()
    assert torch.allclose(PerPromptNormalizer()(["cat"] * 8, returns, torch.zeros_like(known)), plain, atol=1e-5)
