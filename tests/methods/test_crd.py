"""CRD: its formula, centring, the weight of its penalty, its old weights."""

import dataclasses
import math

import pytest
import torch
from support.noised import CLIPS, advantage_weighted, noised_batch, scalars

from sdpo_bench.errors import UserError
from sdpo_bench.methods import build_method


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize(("kl", "least"), [(0.0, 0.001), (0.1, 0.001), (0.1, 1.0)])
def test_the_formula(beta, kl, least):
    output, batch = noised_batch()
    found = build_method("crd", {"beta": beta, "kl": kl, "kl_least": least}).loss(output, batch, **CLIPS).loss

    def fit(m, target):
        error = [a - b for a, b in zip(m, target, strict=True)]
        return math.fsum(e * e for e in error) / math.fsum(abs(e) for e in error)

    for p in range(3):
        level, implicit, reward, distance = -batch.coefficients[p, 3].item(), [], [], []
        for i in range(4):
            m, old, reference, x, clean = (
                scalars(t[p, i]) for t in (output, batch.old_output, batch.reference_output, batch.sample, batch.clean)
            )
            target = [(a - c) / level for a, c in zip(x, clean, strict=True)]  # the velocity
            implicit.append(fit(old, target) - fit(m, target))
            reward.append(min(max(batch.advantages[p, i].item(), -5), 5) / 10 + 0.5)
            distance.append(math.fsum((a - b) ** 2 for a, b in zip(m, reference, strict=True)) / len(m))
        q, r = (math.fsum(values) / 4 for values in (implicit, reward))
        losses = [
            5 / beta * (beta * (implicit[i] - q) - (reward[i] - r)) ** 2
            + kl * (least + (1 - least) * reward[i]) * distance[i]
            for i in range(4)
        ]
        assert found[p].item() == pytest.approx(math.fsum(losses) / 4, rel=1e-9)


def test_a_constant_of_the_prompt_leaves_with_the_mean():
    """Without the clip the loss depends on the group's differences of advantages alone."""
    output, batch = noised_batch()
    batch = dataclasses.replace(batch, advantages=batch.advantages / 10)
    method = build_method("crd", {"kl": 0.0})
    shifted = dataclasses.replace(batch, advantages=batch.advantages + 1.5)
    torch.testing.assert_close(
        method.loss(output, shifted, **CLIPS).loss, method.loss(output, batch, **CLIPS).loss, rtol=1e-9, atol=0
    )


def test_where_the_old_weights_are_the_trained_ones_it_is_the_advantage_weighted_error():
    output, batch = noised_batch()
    batch = dataclasses.replace(batch, old_output=output.clone())
    _, grad = build_method("crd", {"kl": 0.0}).loss_and_grad(output, batch, grad_scale=1.0, **CLIPS)
    advantages = batch.advantages.clamp(-5, 5)
    advantages = advantages - advantages.mean(1, keepdim=True)
    level = batch.coefficients[:, 3].reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(grad, advantage_weighted(output, batch, advantages, space=level))


def test_gradients_are_finite_where_the_model_predicts_exactly_and_far_from_the_old_weights():
    output, batch = noised_batch()
    level = -batch.coefficients[:, 3].reshape(-1, 1, 1, 1, 1)
    exact = (batch.sample - batch.clean) / level
    for m, old in ((exact, exact), (output, output + 1e4)):
        batch = dataclasses.replace(batch, old_output=old)
        result, grad = build_method("crd").loss_and_grad(m, batch, grad_scale=1.0, **CLIPS)
        assert torch.isfinite(result.loss).all()
        assert torch.isfinite(grad).all()


def test_old_weights_lag_from_the_start():
    method = build_method("crd")
    assert [method.old_decay(n) for n in (0, 2, 100, 10_000)] == pytest.approx([0.25, 0.26, 0.75, 0.999])


def test_a_decay_that_falls_is_refused():
    with pytest.raises(UserError, match=r"^option decay_start of crd is 0\.9; expected at most decay_max \(0\.5\)$"):
        build_method("crd", {"decay_start": 0.9, "decay_max": 0.5})
    assert build_method("crd", {"decay_start": 0.5, "decay_max": 0.5}).old_decay(7) == 0.5
