"""The normaliser against the statement: buffers of 32 per prompt, at least 16, else the batch."""

import numpy as np
import pytest
import torch
from sdpo_kernels import normal

from sdpo_bench.advantages import Normaliser


def test_against_a_plain_implementation():
    normaliser, history = Normaliser(), {}
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


def test_equal_returns_give_zero():
    advantages = Normaliser()(["cat"], torch.full((1, 2, 3), 0.25))
    assert torch.equal(advantages, torch.zeros(1, 2, 3))
