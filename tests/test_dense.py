"""Dense rewards against the paper's formula as a plain loop, with counted queries."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sdpo_kernels import normal
from torch.nn.functional import cosine_similarity

from sdpo_bench import dense
from sdpo_bench.types import Trajectory


def trajectory(pairs, steps, seed=0):
    clean = normal(torch.arange(pairs * 2 * steps) + seed, (4, 2, 2)).reshape(pairs, 2, steps, 4, 2, 2)
    clean[:, 1, 0] = clean[:, 0, 0]  # a pair's first predicted clean latent is shared
    empty = torch.empty(0)
    return Trajectory(
        [f"p{i}" for i in range(pairs)], (), empty, empty, empty, empty, clean, torch.zeros(pairs, 2, steps)
    )


class Reward:
    """Sum of the latent; it remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, latents, prompts):
        assert len(latents) == len(prompts)
        self.asked += list(zip(latents.flatten(1).sum(1).tolist(), prompts, strict=True))
        return latents.flatten(1).sum(1)


@settings(max_examples=25, deadline=None)
@given(pairs=st.integers(1, 3), steps=st.integers(2, 8), seed=st.integers(0, 10**6))
def test_providers(pairs, steps, seed):
    t = trajectory(pairs, steps, seed)
    truth = t.predicted_clean.flatten(3).sum(3)
    rewards = {name: Reward() for name in dense.PROVIDERS}
    out = {name: provider(t, rewards[name]) for name, provider in dense.PROVIDERS.items()}
    inner = 1 if steps > 2 else 0
    expected = {"exact": pairs * (1 + 2 * (steps - 1)), "terminal": pairs * 2, "anchored": pairs * (3 + 2 * inner)}
    for name, result in out.items():
        assert result.queries == expected[name] == len(rewards[name].asked), name
        assert result.values.shape == (pairs, 2, steps)
        assert torch.allclose(result.values[result.queried], truth[result.queried], atol=1e-5)
    assert out["exact"].queried.all()
    assert torch.allclose(out["exact"].values, truth, atol=1e-5)
    assert torch.allclose(out["terminal"].values, truth[..., -1:].expand_as(truth), atol=1e-5)
    queried = {(round(v, 3), p) for v, p in rewards["terminal"].asked}
    assert queried == {(round(truth[i, g, -1].item(), 3), f"p{i}") for i in range(pairs) for g in range(2)}

    for i in range(pairs):
        for g in range(2):
            o = t.predicted_clean[i, g].flatten(1).double()
            cos = cosine_similarity(o[:, None], o[None], 2)
            anchor = 1 + int((cos[:, 0] + cos[:, -1])[1:-1].argmin()) if steps > 2 else steps - 1
            asked = {0, anchor, steps - 1}
            assert set(out["anchored"].queried[i, g].nonzero()[:, 0].tolist()) == asked
            for k in set(range(steps)) - asked:
                weights = [max(cos[k, j].item(), dense.SIMILARITY_FLOOR) for j in (0, anchor, steps - 1)]
                known = [truth[i, g, j].item() for j in (0, anchor, steps - 1)]
                value = sum(w * r for w, r in zip(weights, known, strict=True)) / sum(weights)
                assert out["anchored"].values[i, g, k].item() == pytest.approx(value, abs=1e-3)
