"""The fused losses against their closed forms, value and gradient, in float64, on every branch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sdpo_kernels import normal, ppo_clip_loss, ppo_clip_loss_and_grad, sdpo_loss, sdpo_loss_and_grad

ROW = (0.8, -0.5, 0.9, -0.4, 0.7)
CLIP = 0.05


def pairs_at(log_ratios, shape=(3,), dtype=torch.float64):
    """Arguments whose log-ratios are exactly these [P, 2] numbers: the old log-prob is chosen to fit."""
    log_ratios = torch.as_tensor(log_ratios, dtype=dtype)
    p = len(log_ratios)
    m, x, y = (normal(torch.arange(2 * p) + 100 * i, shape).to(dtype).unflatten(0, (p, 2)) for i in range(3))
    rows = torch.tensor([ROW], dtype=dtype).expand(p, 5)
    a, b, _, _, s = ROW
    residual = y - a * x - b * m
    rho = -residual.square().flatten(2).mean(2) / (2 * s**2) - math.log(s) - 0.5 * math.log(2 * math.pi)
    return m, x, y, rows, rho - log_ratios, residual


def expected_sdpo(log_ratio, advantage, w):
    """Loss and its derivative by each log-ratio, from the closed form."""
    (d1, d2), (a1, a2) = log_ratio, (max(-5.0, min(5.0, a)) for a in advantage)
    c1, c2 = (max(-CLIP, min(CLIP, d)) for d in (d1, d2))
    u, c = w * (d1 - d2) - (a1 - a2), w * (c1 - c2) - (a1 - a2)
    gu = 1.0 if u * u > c * c else 0.5 if u * u == c * c else 0.0
    inside = [float(abs(d) <= CLIP) for d in (d1, d2)]
    slope = [gu * u + (1 - gu) * c * i for i in inside]
    return max(u * u, c * c), (2 * w * slope[0], -2 * w * slope[1])


numbers = st.floats(-0.2, 0.2).filter(lambda x: abs(abs(x) - CLIP) > 1e-6)


@settings(max_examples=60, deadline=None)
@given(
    d=st.tuples(numbers, numbers),
    a=st.tuples(st.floats(-7, 7), st.floats(-7, 7)),
    w=st.floats(0.1, 1.5),
)
def test_sdpo_loss_and_gradient(d, a, w):
    m, x, y, rows, old, residual = pairs_at([d])
    actual = (  # the log-ratios that floating point really gives
        sdpo_loss(m, x, y, rows, old, torch.zeros_like(old), torch.ones(1), clip_range=1.0).log_prob - old
    )[0].tolist()
    result, grad = sdpo_loss_and_grad(
        m,
        x,
        y,
        rows,
        old,
        torch.tensor([a], dtype=torch.float64),
        torch.tensor([w], dtype=torch.float64),
        clip_range=CLIP,
    )
    loss, slope = expected_sdpo(actual, a, w)
    assert result.loss.item() == pytest.approx(loss, rel=1e-9, abs=1e-12)
    assert result.clipped.item() == any(abs(x) > CLIP for x in d)
    # d rho / d m = b r / (sigma^2 N)
    expected = torch.tensor(slope)[:, None] * ROW[1] * residual[0] / (ROW[4] ** 2 * 3)
    assert torch.allclose(grad[0], expected, rtol=1e-6, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(d=numbers, a=st.floats(-7, 7).filter(lambda a: abs(a) > 1e-3))
def test_ppo_loss_and_gradient(d, a):
    m, x, y, rows, old, residual = pairs_at([(d, 0.0)])
    first = (m[:, 0], x[:, 0], y[:, 0], rows, old[:, 0])
    result, grad = ppo_clip_loss_and_grad(*first, torch.tensor([a], dtype=torch.float64), clip_range=CLIP)
    q, A = math.exp(d), max(-5.0, min(5.0, a))
    clipped = min(max(q, 1 - CLIP), 1 + CLIP)
    assert result.loss.item() == pytest.approx(max(-A * q, -A * clipped), rel=1e-9)
    assert result.clipped.item() == (abs(q - 1) > CLIP)
    held = (A > 0 and q > 1 + CLIP) or (A < 0 and q < 1 - CLIP)
    slope = 0.0 if held else -A * q
    assert torch.allclose(grad[0], slope * ROW[1] * residual[0, 0] / (ROW[4] ** 2 * 3), rtol=1e-6, atol=1e-9)


def test_tie_gives_the_whole_gradient_once():
    """On policy u = c: the two halves of the maximum add up to the gradient of one."""
    m, x, y, rows, old, residual = pairs_at([(0.0, 0.0)])
    advantages = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    _, grad = sdpo_loss_and_grad(m, x, y, rows, old, advantages, torch.ones(1).double(), clip_range=CLIP)
    slope = torch.tensor([-4.0, 4.0])
    assert torch.allclose(grad[0], slope[:, None] * ROW[1] * residual[0] / (ROW[4] ** 2 * 3), rtol=1e-6)


@pytest.mark.parametrize("log_ratio", [-100.0, 100.0])
@pytest.mark.parametrize("advantage", [-5.0, 5.0])
def test_far_out_stays_finite(log_ratio, advantage):
    m, x, y, rows, old, _ = pairs_at([(log_ratio, -log_ratio)], dtype=torch.float32)
    advantages = torch.tensor([[advantage, -advantage]])
    result, grad = sdpo_loss_and_grad(m, x, y, rows, old, advantages, torch.ones(1), clip_range=CLIP)
    assert torch.isfinite(result.loss).all()
    assert torch.isfinite(grad).all()
    flat = (t.flatten(0, 1) for t in (m, x, y))
    result, grad = ppo_clip_loss_and_grad(
        *flat, rows.repeat_interleave(2, 0), old.flatten(), advantages.flatten(), clip_range=CLIP
    )
    assert torch.isfinite(result.loss).all()
    assert torch.isfinite(grad).all()


def test_gradcheck_and_scale():
    m, x, y, rows, old, _ = pairs_at([(0.01, -0.02), (0.2, 0.01)])
    advantages = torch.tensor([[0.5, -0.3], [-2.0, 1.0]], dtype=torch.float64)
    weight = torch.tensor([1.0, 0.9], dtype=torch.float64)
    torch.autograd.gradcheck(
        lambda m: sdpo_loss(m, x, y, rows, old, advantages, weight, clip_range=CLIP).loss, m.clone().requires_grad_()
    )
    _, one = sdpo_loss_and_grad(m, x, y, rows, old, advantages, weight, clip_range=CLIP)
    _, ten = sdpo_loss_and_grad(m, x, y, rows, old, advantages, weight, clip_range=CLIP, grad_scale=10.0)
    assert torch.allclose(ten, 10 * one)


def test_errors_name_the_argument():
    m, x, y, rows, old, _ = pairs_at([(0.0, 0.0)])
    weight = torch.ones(1)
    with pytest.raises(ValueError, match="two samples of a pair"):
        sdpo_loss(m[:, :1], x[:, :1], y[:, :1], rows, old, old, weight, clip_range=CLIP)
    with pytest.raises(ValueError, match="advantages has shape"):
        sdpo_loss(m, x, y, rows, old, old[0], weight, clip_range=CLIP)
    with pytest.raises(ValueError, match="clip_range is 0"):
        sdpo_loss(m, x, y, rows, old, old, weight, clip_range=0)
    with pytest.raises(ValueError, match="old_log_prob has shape"):
        ppo_clip_loss(m[:, 0], x[:, 0], y[:, 0], rows, old, old[:, 0], clip_range=CLIP)
