"""Flow-DPPO: the mask by the divergence from the policy that sampled."""

import dataclasses
import math

import pytest
import torch
from support.groups import batch_of, sampled

from sdpo_bench.methods import build_method

CLIPS = {"clip_range": 1e-3, "advantage_clip": 1.5}


def divergences(output, batch):
    """mean of (mu - mu_old)^2 / (2 sigma^2) over the latent, [P, G], written out."""
    _, b, _, _, sigma = batch.coefficients[0].tolist()
    return [
        [
            sum((b * (m - old)) ** 2 for m, old in zip(ms.flatten().tolist(), olds.flatten().tolist(), strict=True))
            / ms.numel()
            / (2 * sigma**2)
            for ms, olds in zip(*group, strict=True)
        ]
        for group in zip(output, batch.old_output, strict=True)
    ]


def test_the_formula():
    """The four cases of the mask, on both sides of the threshold; no clip of the ratio, however far it is."""
    output, batch = sampled(batch_of(groups=8)[1], 0.1)
    D = divergences(output, batch)
    method = build_method("flow_dppo", {"threshold": sorted(x for group in D for x in group)[16]})
    found = method.loss(output, batch, **CLIPS)
    log_ratio = (found.log_prob - batch.old_log_prob).tolist()
    expected, masked, cases = [], [], set()
    for p in range(8):
        losses, hidden = [], []
        for i in range(4):
            A, q = batch.advantages[p, i].item(), math.exp(log_ratio[p][i])
            far, away = D[p][i] > method.threshold, (A > 0 and q > 1) or (A < 0 and q < 1)
            cases.add((far, A > 0, q > 1))
            hidden.append(far and away)
            losses.append(0 if far and away else -max(-1.5, min(1.5, A)) * q)
        expected.append(sum(losses) / 4)
        masked.append(any(hidden))
    assert len(cases) == 8
    assert found.loss.tolist() == pytest.approx(expected, rel=1e-9)
    assert found.clipped.tolist() == masked
    fused, grad = method.loss_and_grad(output, batch, grad_scale=1.0, **CLIPS)
    assert fused.clipped.tolist() == masked
    away = batch.advantages * torch.tensor(log_ratio) > 0
    hidden = away & (torch.tensor(D, dtype=torch.float64) > method.threshold)
    assert torch.equal(grad.flatten(2).abs().amax(2) == 0, hidden)


def test_below_the_threshold_it_is_grpo_without_its_clip():
    output, batch = sampled(batch_of()[1], 0.1)
    ours = build_method("flow_dppo", {"threshold": 1e3}).loss_and_grad(output, batch, grad_scale=0.3, **CLIPS)
    wide = {"clip_range": 1e6, "advantage_clip": 1.5}
    grpo = build_method("grpo").loss_and_grad(output, batch, grad_scale=0.3, **wide)
    torch.testing.assert_close(ours[0].loss, grpo[0].loss)
    torch.testing.assert_close(ours[1], grpo[1])


def test_the_unchanged_policy_is_never_masked():
    output, batch = sampled(batch_of()[1], 0.0)
    found = build_method("flow_dppo", {"threshold": 1e-30}).loss(output, batch, **CLIPS)
    assert torch.equal(found.loss, -batch.advantages.clamp(-1.5, 1.5).mean(1))
    assert not found.clipped.any()


def test_beyond_the_threshold_a_good_sample_only_pulls_back():
    """The paper's eq. 25: a step on a sample's loss moves away from the old mean where A (log q - D) > 0. Of what the
    mask leaves that is no sample with A > 0, and of those with A < 0 the ones whose ratio is above 1 by less than D."""
    output, batch = sampled(batch_of(groups=20)[1], 0.1)
    method = build_method("flow_dppo", {"threshold": 1e-30})
    result, grad = method.loss_and_grad(output, batch, grad_scale=1.0, **CLIPS)
    start, moved = (torch.tensor(divergences(m, batch), dtype=torch.float64) for m in (output, output - 1e-5 * grad))
    kept = grad.flatten(2).abs().amax(2) > 0
    away = batch.advantages * (result.log_prob - batch.old_log_prob - start) > 0
    assert torch.equal(moved > start, away & kept)
    assert not (away & kept & (batch.advantages > 0)).any()
    for sign in (1, -1):
        of_sign = kept[batch.advantages.sign() == sign]
        assert 0 < of_sign.sum() < len(of_sign)


def test_the_penalty_is_not_masked():
    output, batch = sampled(batch_of()[1], 0.1)
    batch = dataclasses.replace(batch, advantages=torch.zeros_like(batch.advantages))
    method = build_method("flow_dppo", {"threshold": 1e-30, "kl": 0.5})
    result, grad = method.loss_and_grad(output, batch, grad_scale=1.0, **CLIPS)
    expected = build_method("grpo", {"kl": 0.5}).loss_and_grad(output, batch, grad_scale=1.0, **CLIPS)
    torch.testing.assert_close(result.loss, expected[0].loss)
    torch.testing.assert_close(grad, expected[1])
    assert (grad != 0).all()
