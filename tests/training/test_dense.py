"""Dense rewards against the paper's formula as a plain loop, with counted queries."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sdpo_kernels import normal
from torch.nn.functional import cosine_similarity

from sdpo_bench import dense_rewards
from sdpo_bench.dense_rewards.other_budgets import COVERED, Adaptive
from sdpo_bench.training import dense_probe
from sdpo_bench.types import Trajectory


def trajectory(pairs, steps, seed=0):
    clean = normal(torch.arange(pairs * 2 * steps) + seed, (4, 2, 2)).reshape(pairs, 2, steps, 4, 2, 2)
    clean[:, 1, 0] = clean[:, 0, 0]  # a pair's first predicted clean latent is shared
    empty = torch.empty(0)
    seeds = torch.zeros(pairs, 2, dtype=torch.int64)
    return Trajectory(
        [f"p{i}" for i in range(pairs)],
        (),
        empty,
        empty,
        empty,
        empty,
        clean,
        torch.zeros(pairs, 2, steps),
        seeds,
        empty,
        empty,
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
    rewards = {name: Reward() for name in dense_rewards.PLANS}
    out = {name: dense_rewards.compute_dense_rewards(name, t, rewards[name]) for name in dense_rewards.PLANS}
    inner = 1 if steps > 2 else 0
    expected = {"exact": pairs * (1 + 2 * (steps - 1)), "terminal": pairs * 2, "anchored": pairs * (3 + 2 * inner)}
    expected |= {"linear": expected["anchored"], "queries2": pairs * 3}
    expected["queries4"] = pairs * (2 * min(4, steps) - 1)
    assert expected["queries2"] <= out["adaptive"].queries <= pairs * (2 * min(Adaptive.queries, steps) - 1)
    for name, result in out.items():
        assert result.queries == expected.get(name, result.queries) == len(rewards[name].asked), name
        assert result.queries <= pairs * dense_rewards.most_queries(name, steps)
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
                weights = [max(cos[k, j].item(), dense_rewards.SIMILARITY_FLOOR) for j in (0, anchor, steps - 1)]
                known = [truth[i, g, j].item() for j in (0, anchor, steps - 1)]
                value = sum(w * r for w, r in zip(weights, known, strict=True)) / sum(weights)
                assert out["anchored"].values[i, g, k].item() == pytest.approx(value, abs=1e-3)

            # linear: between the two queried neighbours; queries4: the next step that is least like the three.
            for k in set(range(steps)) - asked:
                low, high = max(j for j in asked if j < k), min(j for j in asked if j > k)
                value = (truth[i, g, low] * (high - k) + truth[i, g, high] * (k - low)) / (high - low)
                assert out["linear"].values[i, g, k].item() == pytest.approx(value.item(), abs=1e-3)
            if steps > 3:
                rest = [k for k in range(steps) if k not in asked]
                fourth = min(rest, key=lambda k: sum(cos[k, j].item() for j in asked))
                chosen = set(out["queries4"].queried[i, g].nonzero()[:, 0].tolist())
                assert chosen == asked | {fourth}
            covered = out["adaptive"].queried[i, g]
            if covered.sum() < min(Adaptive.queries, steps):
                assert cos[:, covered].amax(1).min() >= COVERED - 1e-4
    assert torch.allclose(out["queries2"].values[..., -1], truth[..., -1], atol=1e-5)


def test_adaptive_stops_where_all_pictures_are_alike():
    """A trajectory that moves little needs two queries, one that turns at once needs more."""
    t = trajectory(1, 6)
    t.predicted_clean[0, 0] = t.predicted_clean[0, 0, :1]
    queried = dense_rewards.compute_dense_rewards("adaptive", t, Reward()).queried[0]
    assert queried[0].sum() == 2
    assert queried[1].sum() > 3


def test_probe_knows_the_exact_rewards():
    """Against plain loops; budgets that query every step have no error."""
    t = trajectory(5, 3)
    rows = {row["budget"]: row for row in dense_probe.compare(t, Reward())}
    truth = t.predicted_clean.flatten(3).sum(3)
    assert rows["3"]["mae"] == rows["4"]["mae"] == [0, 0, 0]
    assert rows["3"]["return_corr"] == pytest.approx([1, 1, 1])
    assert rows["3"]["return_sign"] == [1, 1, 1]
    assert rows["3"]["queries_per_sample"] == 2.5
    terminal = rows["terminal"]
    assert terminal["mae"] == pytest.approx((truth - truth[..., -1:]).abs().mean((0, 1)).tolist(), rel=1e-4)
    assert terminal["bias"] == pytest.approx((truth[..., -1:] - truth).mean((0, 1)).tolist(), rel=1e-4)
    assert terminal["std"] == pytest.approx(truth.flatten(0, 1).std(0, correction=0).tolist(), rel=1e-4)
    difference = truth[:, 0] - truth[:, 1]
    assert terminal["corr"][0] is None  # a pair shares its first picture
    expected = np.corrcoef(difference[:, 1], difference[:, 2])[0, 1]
    assert terminal["corr"][1:] == pytest.approx([expected, 1], abs=1e-5)
    returns = [sum(0.99 ** (j - k) * truth[..., j] for j in range(k, 3)) for k in range(3)]
    guess = [sum(0.99 ** (j - k) * truth[..., 2] for j in range(k, 3)) for k in range(3)]
    for k in range(3):
        x, y = ((r[k][:, 0] - r[k][:, 1]).numpy() for r in (returns, guess))
        assert terminal["return_corr"][k] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-5)
        assert terminal["return_sign"][k] == pytest.approx((np.sign(x) == np.sign(y)).mean())


def test_last_known_reward_comes_from_no_later_step():
    values = torch.tensor([[[6.0, 1.0, 2.0, 3.0], [5.0, 7.0, 9.0, 8.0]]])
    assert dense_rewards.last_known(values, (1, 3)).tolist() == [[[0, 1, 1, 3], [0, 7, 7, 8]]]
    assert dense_rewards.last_known(values, (0, 3)).tolist() == [[[6, 6, 6, 3], [5, 5, 5, 8]]]


@pytest.mark.parametrize("steps", [2, 3, 4, 7])
@pytest.mark.parametrize("name", dense_rewards.PLANS)
def test_what_is_known_before_a_step_depends_on_no_later_one(name, steps):
    """A baseline that follows the noise of its own step or of later ones would change the expected gradient."""
    first, second = trajectory(40, steps), trajectory(40, steps, seed=10**6)
    always = dense_rewards.PLANS[name].always(steps)

    def known(t):
        return dense_rewards.last_known(dense_rewards.compute_dense_rewards(name, t, Reward()).values, always)

    before = known(first)
    for k in range(steps - 1):
        first.predicted_clean[:, :, -1 - k] = second.predicted_clean[:, :, -1 - k]  # from the last step on
        earlier = steps - 1 - k
        torch.testing.assert_close(known(first)[..., :earlier], before[..., :earlier])
    queried = dense_rewards.PLANS[name](first).queried
    assert queried[..., list(always)].all()
    sure = {"exact": steps, "terminal": 1, "adaptive": 2}.get(name, dense_rewards.PLANS[name].queries)
    assert (len(always) == steps) == (steps <= sure), "not fewer than can be known"


@pytest.mark.parametrize("name", dense_rewards.PLANS)
def test_equal_rewards_stay_equal_to_the_bit(name):
    """Averages of equal rewards must not differ by rounding: the advantages' division would magnify it."""
    filled = dense_rewards.compute_dense_rewards(
        name, trajectory(5, 9), lambda latents, prompts: torch.full((len(prompts),), 12.7)
    )
    assert torch.equal(filled.values, torch.full((5, 2, 9), 12.7))
