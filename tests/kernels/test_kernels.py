"""The Triton kernels against float64: in Triton's interpreter on a CPU, or compiled on a GPU (tests/conftest.py).

Tolerances are the project's, per dtype; memory that an operation allocates is filled with NaN beforehand, so what it
does not write is seen.
"""

from __future__ import annotations

import math
import os

import pytest
import sdpo_kernels
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from sdpo_kernels import (
    anchor_similarity,
    ddim_step,
    gaussian_log_prob,
    normal,
    ppo_clip_loss,
    ppo_clip_loss_and_grad,
    sdpo_loss,
    sdpo_loss_and_grad,
)
from sdpo_kernels.philox_triton import box_muller
from sdpo_kernels.transition_triton import OPTIONS, SINGLE

DEVICE = "cuda" if os.environ["SDPO_KERNELS_TESTS"] == "gpu" else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
GRAD_TOLERANCE = {torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of the largest entry
# The interpreter cuts fp32 off where it should round to bf16; an ulp is 2^-7 of an entry.
ROUNDING = {torch.float32: 4e-7, torch.float16: 2**-10, torch.bfloat16: 2**-7}
CLIP = 0.05
SIZES = [1, 2, 3, 127, 128, 1000, SINGLE, SINGLE + 1, 65536]
# The interpreter multiplies matrices of bf16 as if they were of integers.
DOT_DTYPES = DTYPES if DEVICE == "cuda" else [torch.float32, torch.float16]
# Of a cosine. The products of 16-bit numbers are exact in float32, but a tensor core adds them up without rounding: it
# shifts 16 products and the sum so far to the largest exponent, cuts all off 2 bits below float32's last (an H100), and
# cuts the sum off at float32's. A product so loses less than 2^-25 of the sum so far, which over the 2,048 elements of
# a part is half the final one on average: a Gram entry is less by a relative 2048 / 2 * 2^-25 = 3e-5 at the very most.
# On random signs the losses cancel, and a cosine keeps only what its three entries do not share: the same arithmetic,
# carried out exactly on test_anchor's inputs, is off by 3.0e-6 (K = 50; the other cases by 1.9e-6). With 1 bit in place
# of 2 that would be 6.2e-6, beyond what is allowed here. float32 is multiplied in parts whose sums are rounded, and the
# interpreter rounds always.
CUT = 5e-6 if DEVICE == "cuda" else 2e-6
COSINE = {torch.float32: 2e-6, torch.float16: CUT, torch.bfloat16: CUT}


@pytest.fixture(autouse=True)
def triton_on_poisoned_memory():
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    with sdpo_kernels.backend("triton"):
        yield
    torch.use_deterministic_algorithms(False)


def latents(n: int, size: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Model output, sample, next sample [n, size], coefficients [n, 5]: next is about what the step could have made."""
    g = torch.Generator().manual_seed(seed)
    m, x, z = (torch.randn(n, size, generator=g, dtype=torch.float64) for _ in range(3))
    rows = (torch.rand(n, 5, generator=g) + 0.3) * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    prev = rows[:, :1] * x + rows[:, 1:2] * m + 1.1 * rows[:, 4:] * z
    return *(t.to(dtype).to(DEVICE) for t in (m, x, prev)), rows.to(DEVICE)


def exact_log_prob(m, x, prev, rows):
    """rho [N] in float64 on the CPU, by torch.distributions."""
    m, x, prev, rows = (t.detach().double().cpu() for t in (m, x, prev, rows))
    mean = rows[:, :1] * x.flatten(1) + rows[:, 1:2] * m.flatten(1)
    return torch.distributions.Normal(mean, rows[:, 4:].expand_as(mean)).log_prob(prev.flatten(1)).mean(1)


def close(ours: torch.Tensor, exact: torch.Tensor, tolerance: float, floor: float = 0.0) -> None:
    """Within `tolerance` of the largest entry (at least of `floor`), and NaN in the same places."""
    ours, exact = ours.detach().double().cpu(), exact.detach().double().cpu()
    assert ours.shape == exact.shape
    assert torch.equal(ours.isnan(), exact.isnan())
    ours, exact = ours.nan_to_num(0), exact.nan_to_num(0)
    largest = max(exact.abs().max().item(), floor)
    assert (ours - exact).abs().max().item() <= tolerance * largest


# The step


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_step(size, dtype):
    m, x, _, rows = latents(2, size, dtype)
    seeds = torch.tensor([-(2**62) - 7, 12345], device=DEVICE)
    z = normal(seeds.cpu(), (size,), 3).double()
    out = ddim_step(m, x, rows, seeds=seeds, step=3)
    a, b, c, d, s = rows.double().cpu().split(1, 1)
    mean = a * x.double().cpu() + b * m.double().cpu()
    # A polynomial's noise is not the C library's to the last bit: a rounding boundary can lie between.
    close(out.prev_sample, mean + s * z, ROUNDING[dtype] + 2e-6)
    close(out.predicted_clean, c * x.double().cpu() + d * m.double().cpu(), ROUNDING[dtype])
    assert out.prev_sample.dtype == out.predicted_clean.dtype == dtype
    close(out.log_prob, exact_log_prob(m, x, out.prev_sample, rows), 1e-6, floor=1.0)
    assert torch.equal(out.log_prob, gaussian_log_prob(m, x, out.prev_sample, rows))
    given_ = ddim_step(m, x, rows, noise=z.to(dtype).to(DEVICE))
    close(given_.prev_sample, mean + s * z.to(dtype).double(), ROUNDING[dtype])
    assert torch.equal(given_.log_prob, gaussian_log_prob(m, x, given_.prev_sample, rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_noise_is_philox_normal(dtype):
    """The step with a = b = 0 and sigma = 1 is the noise itself, over the whole range of 32-bit words."""
    seeds = torch.randint(-(2**63), 2**63 - 1, (8,), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    zero = torch.zeros(8, 8192, dtype=dtype, device=DEVICE)
    rows = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]], device=DEVICE).expand(8, 5)
    for step in (0, 1, 2**20):
        ours = ddim_step(zero, zero, rows, seeds=seeds, step=step).prev_sample
        exact = normal(seeds.cpu(), (8192,), step)
        close(ours, exact, 1e-6 if dtype == torch.float32 else 2**-11)


@triton.jit
def box_muller_kernel(word_ptr, angle_ptr, cosine_ptr, sine_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    c, s = box_muller(tl.load(word_ptr + i).to(tl.uint32), tl.load(angle_ptr + i).to(tl.uint32))
    tl.store(cosine_ptr + i, c)
    tl.store(sine_ptr + i, s)


def test_extreme_words():
    """Box-Muller at both ends of the uniforms, and around the angles where its polynomials meet."""
    ends = torch.cat([torch.arange(1024), 2**24 - 1 - torch.arange(1024), torch.linspace(0, 2**24 - 1, 2048).long()])
    meets = torch.cat([k * 2**22 - 256 + torch.arange(512) for k in range(1, 4)] + [ends[:512]])
    words, angles = ends, meets.repeat(2)
    cosine, sine = (torch.empty(4096, device=DEVICE) for _ in range(2))
    box_muller_kernel[(1,)]((words << 8).to(DEVICE), (angles << 8 | 255).to(DEVICE), cosine, sine, 4096, **OPTIONS)
    radius = (-2 * ((words + 1) / 2**24).double().log()).sqrt()
    turn = 2 * math.pi * ((angles + 1) / 2**24).double()
    for ours, exact in ((cosine, turn.cos()), (sine, turn.sin())):
        assert torch.isfinite(ours).all()
        assert ((ours.double().cpu() - radius * exact).abs() <= 3e-7 * radius).all()


def test_rows_do_not_depend_on_the_batch():
    for size in (1000, SINGLE + 7):
        m, x, prev, rows = latents(5, size, torch.float16)
        seeds = torch.arange(5, device=DEVICE)
        whole = ddim_step(m, x, rows, seeds=seeds, step=1)
        log_prob = gaussian_log_prob(m, x, prev, rows)
        for i in (0, 4):
            one = slice(i, i + 1)
            alone = ddim_step(m[one], x[one], rows[one], seeds=seeds[one], step=1)
            assert all(torch.equal(a[0], b[i]) for a, b in zip(alone, whole, strict=True))
            assert torch.equal(gaussian_log_prob(m[one], x[one], prev[one], rows[one])[0], log_prob[i])


# The losses


def exact_sdpo(m, x, prev, rows, old, advantages, weight):
    """The loss by autograd, in float64, written out."""
    m, x, prev, rows, old, A, w = (t.double().cpu() for t in (m, x, prev, rows, old, advantages, weight))
    m = m.flatten(2).requires_grad_()
    a, b, _, _, s = (rows[:, i].reshape(-1, 1, 1) for i in range(5))
    r = prev.flatten(2) - a * x.flatten(2) - b * m
    rho = (-(r**2) / (2 * s**2)).mean(2) - s[:, 0].log() - 0.5 * math.log(2 * math.pi)
    D, A = rho - old, A.clamp(-5, 5)
    u = w * (D[:, 0] - D[:, 1]) - (A[:, 0] - A[:, 1])
    near = D.clamp(-CLIP, CLIP)
    c = w * (near[:, 0] - near[:, 1]) - (A[:, 0] - A[:, 1])
    loss = torch.maximum(u**2, c**2)
    (grad,) = torch.autograd.grad(loss.sum(), m)
    return loss, rho, (D.abs() > CLIP).any(1), grad


def exact_ppo(m, x, prev, rows, old, advantages):
    m, x, prev, rows, old, A = (t.double().cpu() for t in (m, x, prev, rows, old, advantages))
    m = m.flatten(1).requires_grad_()
    r = prev.flatten(1) - rows[:, :1] * x.flatten(1) - rows[:, 1:2] * m
    rho = (-(r**2) / (2 * rows[:, 4:] ** 2)).mean(1) - rows[:, 4].log() - 0.5 * math.log(2 * math.pi)
    q = (rho - old).clamp(-20, 20).exp()
    A = A.clamp(-5, 5)
    loss = torch.maximum(-A * q, -A * q.clamp(1 - CLIP, 1 + CLIP))
    (grad,) = torch.autograd.grad(loss.sum(), m)
    return loss, rho, (q < 1 - CLIP) | (q > 1 + CLIP), grad


def check_sdpo(m, x, prev, rows, D, advantages, weight):
    """Both forms of the loss on latents [P, 2, ...] whose log-ratios are D [P, 2]."""
    pairs, size = m.shape[0], m[0, 0].numel()
    rho = exact_log_prob(*(t.flatten(0, 1) for t in (m, x, prev)), rows.repeat_interleave(2, 0)).reshape(pairs, 2)
    old = (rho - D).float().to(DEVICE)
    vectors = (old, advantages.to(DEVICE), weight.to(DEVICE))
    loss, rho, clipped, grad = exact_sdpo(m, x, prev, rows, *vectors)
    scale = float(2 ** size.bit_length())  # against what fp16 loses below 6e-5
    ours, our_grad = sdpo_loss_and_grad(m, x, prev, rows, *vectors, clip_range=CLIP, grad_scale=scale)
    close(ours.loss, loss, 2e-6, floor=1.0)
    close(ours.log_prob, rho, 1e-6, floor=1.0)
    assert torch.equal(ours.clipped.cpu(), clipped)
    assert our_grad.dtype == m.dtype
    close(our_grad.flatten(2), scale * grad, GRAD_TOLERANCE[m.dtype])
    # The same by autograd, at the same scale.
    leaf = m.detach().clone().requires_grad_()
    by_autograd = sdpo_loss(leaf, x, prev, rows, *vectors, clip_range=CLIP)
    assert all(torch.equal(a, b) for a, b in zip(by_autograd, ours, strict=True))
    (scale * by_autograd.loss.sum()).backward()
    close(leaf.grad.flatten(2), scale * grad, GRAD_TOLERANCE[m.dtype])


# Inside and outside of the clip range, on both sides; a tie is where both lie inside.
BRANCHES = torch.tensor([(i, j) for i in (-0.3, -0.02, 0.0, 0.03, 0.4) for j in (-0.2, -0.01, 0.0, 0.02, 0.3)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_sdpo_branches(dtype, sign):
    pairs = len(BRANCHES)
    m, x, prev, rows = latents(2 * pairs, 96, dtype)
    advantages = sign * torch.tensor([[0.4, -0.3]]).expand(pairs, 2)
    paired = (t.unflatten(0, (pairs, 2)) for t in (m, x, prev))
    check_sdpo(*paired, rows[:pairs], BRANCHES, advantages, torch.linspace(0.5, 1.5, pairs))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_sdpo_sizes(size, dtype):
    m, x, prev, rows = latents(2, size, dtype, seed=size)
    advantages = torch.tensor([[7.0, -0.3]])  # the first beyond the clip of advantages
    paired = (t.unflatten(0, (1, 2)) for t in (m, x, prev))
    check_sdpo(*paired, rows[:1], torch.tensor([[0.3, -0.02]]), advantages, torch.tensor([0.9]))


@pytest.mark.parametrize("pairs", [1, 2, 33, 128])
def test_sdpo_pairs(pairs):
    g = torch.Generator().manual_seed(pairs)
    m, x, prev, rows = latents(2 * pairs, 20, torch.float32, seed=pairs)
    D = 0.2 * torch.randn(pairs, 2, generator=g)
    D[(D.abs() - CLIP).abs() < 1e-4] = 0.0  # on the boundary a rounding decides
    paired = (t.unflatten(0, (pairs, 2)) for t in (m, x, prev))
    check_sdpo(*paired, rows[:pairs], D, 3 * torch.randn(pairs, 2, generator=g), torch.rand(pairs, generator=g) + 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 96, SINGLE, SINGLE + 1])
def test_ppo(size, dtype):
    D = torch.tensor([-30.0, -0.3, -0.02, 0.0, 0.03, 0.4, 3.0, 30.0] if size < 100 else [-0.3, 0.02])
    for sign in (-1.0, 1.0):
        m, x, prev, rows = latents(len(D), size, dtype, seed=3)
        old = (exact_log_prob(m, x, prev, rows) - D).float().to(DEVICE)
        advantages = sign * torch.linspace(0.5, 6, len(D), device=DEVICE)
        scale = float(2 ** size.bit_length())
        # A ratio of e^20 would leave fp16 nothing of the others' gradients: each row by itself.
        for i in range(len(D)):
            row = tuple(t[i : i + 1] for t in (m, x, prev, rows, old, advantages))
            loss, rho, clipped, grad = exact_ppo(*row)
            held = scale if loss.abs() < 100 else scale * 1e-6
            ours, our_grad = ppo_clip_loss_and_grad(*row, clip_range=CLIP, grad_scale=held)
            # rho has an error of 1e-6 of its own, which the exponential hands on.
            close(ours.loss, loss, 2e-6 * max(1.0, abs(float(D[i]))))
            close(ours.log_prob, rho, 1e-6, floor=1.0)
            assert torch.equal(ours.clipped.cpu(), clipped)
            close(our_grad, held * grad, GRAD_TOLERANCE[dtype] * max(1.0, abs(float(D[i]))), floor=1e-30)
            leaf = row[0].detach().clone().requires_grad_()
            by_autograd = ppo_clip_loss(leaf, *row[1:], clip_range=CLIP)
            assert all(torch.equal(a, b) for a, b in zip(by_autograd, ours, strict=True))
            (held * by_autograd.loss.sum()).backward()
            close(leaf.grad, held * grad, GRAD_TOLERANCE[dtype] * max(1.0, abs(float(D[i]))), floor=1e-30)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 4),
    size=st.integers(1, 300),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10**6),
)
def test_log_prob_and_its_gradient(n, size, dtype, seed):
    m, x, prev, rows = latents(n, size, dtype, seed)
    leaf = m.detach().clone().requires_grad_()
    rho = gaussian_log_prob(leaf, x, prev, rows)
    close(rho, exact_log_prob(m, x, prev, rows), 1e-6, floor=1.0)
    slope = torch.linspace(-2, 3, n, device=DEVICE) * size
    rho.backward(slope)
    b, s = rows[:, 1:2].double().cpu(), rows[:, 4:].double().cpu()
    r = prev.double().cpu() - rows[:, :1].double().cpu() * x.double().cpu() - b * m.double().cpu()
    close(leaf.grad, slope.double().cpu()[:, None] * b * r / (s**2 * size), GRAD_TOLERANCE[dtype])


def test_dtypes_may_differ():
    """A model in half precision on latents in single."""
    m, x, prev, rows = latents(4, 200, torch.float32)
    m = m.half()
    out = ddim_step(m, x, rows, seeds=torch.arange(4, device=DEVICE))
    assert out.prev_sample.dtype == torch.float32
    assert torch.equal(out.log_prob, gaussian_log_prob(m, x, out.prev_sample, rows))
    close(out.log_prob, exact_log_prob(m, x, out.prev_sample, rows), 1e-6, floor=1.0)
    check_sdpo(*(t.unflatten(0, (2, 2)) for t in (m, x, prev)), rows[:2], BRANCHES[:2], torch.ones(2, 2), torch.ones(2))


def test_views_are_read_where_they_lie():
    """Steps of stored trajectories [B, G, K + 1, C, H, W]: strided over samples, whole within one."""
    steps, shape = 3, (4, 5, 5)
    stored = torch.randn(6, 2, steps + 1, *shape, device=DEVICE)
    m = torch.randn(6, 2, *shape, device=DEVICE)
    rows = latents(6, 1, torch.float32)[3]
    x, prev = stored[::2, :, 1], stored[::2, :, 2]
    assert not x.is_contiguous()
    weight, advantages = torch.ones(3, device=DEVICE), torch.randn(3, 2, device=DEVICE)
    old = torch.randn(3, 2, device=DEVICE) - 1
    arguments = (rows[:3], old, advantages, weight)
    views = sdpo_loss_and_grad(m[::2], x, prev, *arguments, clip_range=CLIP)
    copies = sdpo_loss_and_grad(m[::2].contiguous(), x.contiguous(), prev.contiguous(), *arguments, clip_range=CLIP)
    assert torch.equal(views[1], copies[1])
    assert all(torch.equal(a, b) for a, b in zip(views[0], copies[0], strict=True))
    one = (m[:, 1], stored[:, 1, 1], stored[:, 1, 2])
    expected = gaussian_log_prob(*(t.contiguous() for t in one), rows)
    assert torch.equal(gaussian_log_prob(*one, rows), expected)
    table = rows[:1].expand(6, 5)
    assert torch.equal(gaussian_log_prob(*one, table), gaussian_log_prob(*one, table.contiguous()))
    # A view that starts off a 16-byte boundary, of samples whose size would allow 16-byte reads.
    base = torch.randn(6 * 33, device=DEVICE)
    shifted = base[1:].as_strided((6, 16), (33, 1))
    rest = torch.randn(2, 6, 16, device=DEVICE)
    expected = gaussian_log_prob(shifted.contiguous(), *rest, rows)
    assert torch.equal(gaussian_log_prob(shifted, *rest, rows), expected)
    seeds = torch.arange(6, device=DEVICE)
    strided = ddim_step(one[0], one[1], rows, seeds=seeds)
    whole = ddim_step(one[0].contiguous(), one[1].contiguous(), rows, seeds=seeds)
    assert all(torch.equal(a, b) for a, b in zip(strided, whole, strict=True))


@pytest.mark.parametrize("size", [50, SINGLE + 50])
@pytest.mark.parametrize("where", ["model_output", "sample", "prev_sample", "old", "advantages", "weight"])
def test_nan_propagates_within_its_pair(size, where):
    m, x, prev, rows = latents(4, size, torch.float16)
    m, x, prev = (t.unflatten(0, (2, 2)).clone() for t in (m, x, prev))
    old = exact_log_prob(*(t.flatten(0, 1) for t in (m, x, prev)), rows[:2].repeat_interleave(2, 0)).reshape(2, 2)
    old, advantages, weight = old.float().to(DEVICE), torch.ones(2, 2, device=DEVICE), torch.ones(2, device=DEVICE)
    tensors = dict(model_output=m, sample=x, prev_sample=prev, old=old, advantages=advantages, weight=weight)  # noqa: C408
    tensors[where][1].flatten()[-1] = torch.nan
    result, grad = sdpo_loss_and_grad(m, x, prev, rows[:2], old, advantages, weight, clip_range=CLIP)
    assert result.loss.isnan().tolist() == [False, True]
    assert not grad[0].isnan().any()
    assert grad[1].isnan().all() if where in ("advantages", "weight", "old") else grad[1].isnan().any()
    if where != "weight":
        flat = (t.flatten(0, 1) for t in (m, x, prev))
        result, grad = ppo_clip_loss_and_grad(
            *flat, rows[:2].repeat_interleave(2, 0), old.flatten(), advantages.flatten(), clip_range=CLIP
        )
        assert result.loss.isnan().tolist() == [False, False, False, True]
        assert not grad[:3].isnan().any()
        assert grad[3].isnan().any()


# The similarities


@pytest.mark.parametrize("dtype", DOT_DTYPES)
@pytest.mark.parametrize(
    ("steps", "size"),
    [(1, 3), (2, 1000), (3, 1000), (4, 3), (4, 16384), (5, 1000), (17, 1000), (50, 16384), (128, 1000)],
)
def test_anchor(steps, size, dtype):
    g = torch.Generator().manual_seed(steps)
    clean = torch.randn(2, steps, size, generator=g).cumsum(1).to(dtype).to(DEVICE)
    ours, exact = anchor_similarity(clean), anchor_similarity(clean.double().cpu(), backend="torch")
    for name in ("first", "last"):
        close(getattr(ours, name), getattr(exact, name), COSINE[dtype], floor=1.0)
    total = exact.first + exact.last
    for n, index in enumerate(ours.anchor_index.tolist()):
        assert (1 <= index <= steps - 2) if steps > 2 else index == steps - 1
        if steps > 2:  # among near ties either may be chosen
            assert total[n, index] <= total[n, 1:-1].min() + COSINE[dtype]
        unit = torch.nn.functional.normalize(clean[n].double().cpu(), dim=-1)
        close(ours.anchor[n], unit @ unit[index], COSINE[dtype], floor=1.0)


def test_anchor_of_ties_views_and_nan():
    clean = torch.randn(3, 1, 40, device=DEVICE).expand(3, 5, 40).contiguous()  # all steps alike
    assert anchor_similarity(clean).anchor_index.tolist() == [1, 1, 1]
    stored = torch.randn(3, 6, 40, device=DEVICE)
    part = stored[:, 1:]
    assert torch.equal(anchor_similarity(part).first, anchor_similarity(part.contiguous()).first)
    zero = torch.zeros(1, 3, 40, device=DEVICE)
    assert anchor_similarity(zero).first.abs().max() == 0
    clean[1, 3, 7] = torch.nan
    result = anchor_similarity(clean)
    assert result.anchor_index.tolist() == [1, 3, 1]
    assert result.first.isnan().tolist()[1] == [False, False, False, True, False]
    assert not result.first[[0, 2]].isnan().any()


def test_anchor_is_never_the_first_or_last_step():
    """Not where it lies between two ends that are less similar to each other than it is to them."""
    first, last = torch.eye(2, 64, device=DEVICE)
    for middle in ([first + last], [first + last, first + 2 * last], [2 * first + last, first + last]):
        clean = torch.stack([first, *middle, last])[None]
        assert 1 <= anchor_similarity(clean).anchor_index.item() <= len(middle)


def test_more_steps_than_the_kernel_takes():
    with pytest.raises(ValueError, match="129 steps"):
        anchor_similarity(torch.randn(1, 129, 4, device=DEVICE))
