"""DiffusionNFT: its formula, what it is where the old weights are the trained ones, its old weights."""

import dataclasses
import math

import pytest
import torch
from support.noised import CLIPS, advantage_weighted, noised_batch, scalars

from sdpo_bench.errors import UserError
from sdpo_bench.methods import build_method


@pytest.mark.parametrize("beta", [1.0, 0.1])
@pytest.mark.parametrize("kl", [0.0, 1e-2])
def test_the_formula(beta, kl):
    output, batch = noised_batch()
    found = build_method("diffusion_nft", {"beta": beta, "kl": kl}).loss(output, batch, **CLIPS).loss
    for p in range(3):
        level, losses = -batch.coefficients[p, 3].item(), []
        for i in range(4):
            m, old, reference, x, clean = (
                scalars(t[p, i]) for t in (output, batch.old_output, batch.reference_output, batch.sample, batch.clean)
            )
            r = min(max(batch.advantages[p, i].item(), -5), 5) / 10 + 0.5
            total = 0.0
            for share, sign in ((r, 1), (1 - r, -1)):
                guided = [o + sign * beta * (a - o) for a, o in zip(m, old, strict=True)]
                error = [a - level * v - c for a, v, c in zip(x, guided, clean, strict=True)]
                n = len(error)
                total += share * math.fsum(e * e for e in error) / n / (math.fsum(abs(e) for e in error) / n)
            distance = math.fsum((a - b) ** 2 for a, b in zip(m, reference, strict=True)) / len(m)
            losses.append(5 / beta * total + kl * distance)
        assert found[p].item() == pytest.approx(math.fsum(losses) / 4, rel=1e-9)


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_where_the_old_weights_are_the_trained_ones_the_reward_is_in_the_gradient_alone(beta):
    """The loss says nothing then; its gradient is the advantage's times that of the weighted error."""
    output, batch = noised_batch()
    batch = dataclasses.replace(batch, old_output=output.clone())
    method = build_method("diffusion_nft", {"beta": beta, "kl": 0.0})
    result, grad = method.loss_and_grad(output, batch, grad_scale=1.0, **CLIPS)
    other = dataclasses.replace(batch, advantages=batch.advantages.flip(1))
    torch.testing.assert_close(method.loss(output, other, **CLIPS).loss, result.loss)
    torch.testing.assert_close(grad, advantage_weighted(output, batch, batch.advantages.clamp(-5, 5)))


def test_gradients_are_finite_where_the_model_predicts_exactly_and_far_from_the_old_weights():
    output, batch = noised_batch()
    level = -batch.coefficients[:, 3].reshape(-1, 1, 1, 1, 1)
    exact = (batch.sample - batch.clean) / level
    for m, old in ((exact, exact), (output, output + 1e4)):
        batch = dataclasses.replace(batch, old_output=old)
        result, grad = build_method("diffusion_nft").loss_and_grad(m, batch, grad_scale=1.0, **CLIPS)
        assert torch.isfinite(result.loss).all()
        assert torch.isfinite(grad).all()


def test_old_weights_follow_slower_and_slower():
    method = build_method("diffusion_nft")
    assert [method.old_decay(n) for n in (0, 2, 500, 10_000)] == pytest.approx([0, 0.002, 0.5, 0.5])
    with pytest.raises(UserError, match="option decay_max of diffusion_nft is 1; expected 0 to below 1"):
        build_method("diffusion_nft", {"decay_max": 1})
