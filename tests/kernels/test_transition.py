"""The step and its log-prob against torch.distributions in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sdpo_kernels import ddim_step, gaussian_log_prob, normal

ROWS = torch.tensor([[0.29, -0.22, 0.07, -0.99, 0.93], [0.8, -0.5, 0.9, -0.4, 0.03], [1.1, 0.3, 1.0, -0.7, 0.5]])


def random_step(n, shape, dtype=torch.float32, seed=0):
    m, x, z = (normal(torch.arange(n) + 1000 * i + seed, shape).to(dtype) for i in range(3))
    return m, x, z, ROWS[torch.arange(n) % 3]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 6), shape=st.lists(st.integers(1, 9), min_size=1, max_size=3), seed=st.integers(0, 10**6))
def test_step_and_log_prob(n, shape, seed):
    m, x, z, rows = random_step(n, shape, seed=seed)
    out = ddim_step(m, x, rows, noise=z)
    a, b, c, d, s = (rows.double()[:, i].reshape(-1, *[1] * len(shape)) for i in range(5))
    mean = a * x.double() + b * m.double()
    assert torch.allclose(out.prev_sample.double(), mean + s * z, atol=1e-5)
    assert torch.allclose(out.predicted_clean.double(), c * x + d * m, atol=1e-5)
    normal_ = torch.distributions.Normal(mean, s.expand_as(mean))
    expected = normal_.log_prob(out.prev_sample.double()).flatten(1).mean(1)
    assert torch.allclose(out.log_prob.double(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_log_prob_is_of_the_stored_latent(dtype):
    """Exactly what training will compute, also where storing rounded the latent."""
    m, x, z, rows = random_step(20, (4, 8, 8), dtype)
    out = ddim_step(m, x, rows, noise=z)
    assert out.prev_sample.dtype == dtype
    assert torch.equal(out.log_prob, gaussian_log_prob(m, x, out.prev_sample, rows))


def test_rows_do_not_depend_on_the_batch():
    m, x, _, rows = random_step(17, (4, 8, 8))
    seeds = torch.arange(17) * 7919
    whole = ddim_step(m, x, rows, seeds=seeds, step=3)
    for i in (0, 5, 16):
        alone = ddim_step(m[i : i + 1], x[i : i + 1], rows[i : i + 1], seeds=seeds[i : i + 1], step=3)
        for one, all_ in zip(alone, whole, strict=True):
            assert torch.equal(one[0], all_[i])


def test_gradient():
    m, x, z, rows = (t.double() for t in random_step(3, (2, 3)))
    prev = ddim_step(m, x, rows, noise=z).prev_sample
    torch.autograd.gradcheck(lambda m: gaussian_log_prob(m, x, prev, rows), m.requires_grad_())


def test_nan_propagates():
    m, x, z, rows = random_step(3, (4, 4))
    m[1, 0, 0] = torch.nan
    out = ddim_step(m, x, rows, noise=z)
    assert out.log_prob.isnan().tolist() == [False, True, False]


def test_errors_name_the_argument():
    m, x, z, rows = random_step(3, (4, 4))
    with pytest.raises(ValueError, match="exactly one of seeds and noise"):
        ddim_step(m, x, rows)
    with pytest.raises(ValueError, match=r"sample has shape \(2, 4, 4\).*\(3, 4, 4\)"):
        ddim_step(m, x[:2], rows, noise=z)
    with pytest.raises(ValueError, match=r"coefficients has shape \(2, 5\)"):
        ddim_step(m, x, rows[:2], noise=z)
    with pytest.raises(TypeError, match="model_output has dtype"):
        ddim_step(m.int(), x, rows, noise=z)
    with pytest.raises(ValueError, match="not finite"):
        ddim_step(m, x, rows * torch.inf, noise=z)
    with pytest.raises(TypeError, match="seeds has dtype"):
        ddim_step(m, x, rows, seeds=torch.zeros(3))
    with pytest.raises(ValueError, match="sigma <= 0"):
        gaussian_log_prob(m, x, z, rows * torch.tensor([1, 1, 1, 1, 0]))
    with pytest.raises(ValueError, match=r"noise has shape \(3, 4\)"):
        ddim_step(m, x, rows, noise=z[:, 0])
    with pytest.raises(ValueError, match="step is -1"):
        ddim_step(m, x, rows, seeds=torch.arange(3), step=-1)
    with pytest.raises(ValueError, match=r"sample has strides.*contiguous"):
        ddim_step(m, x.transpose(1, 2), rows, noise=z)
    with pytest.raises(ValueError, match="holds nothing"):
        ddim_step(m[:0], x[:0], rows[:0], noise=z[:0])
    with pytest.raises(ValueError, match="prev_sample requires a gradient"):
        gaussian_log_prob(m, x, z.clone().requires_grad_(), rows)
    with pytest.raises(ValueError, match="coefficients is on meta"):
        ddim_step(m, x, rows.to("meta"), noise=z)
    with pytest.raises(ValueError, match="sample is on meta; expected model_output's device cpu"):
        ddim_step(m, x.to("meta"), rows, noise=z)
