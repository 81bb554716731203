"""What only a GPU can show, beside the comparisons of test_kernels.py: `nox -s kernels -- --gpu`."""

from __future__ import annotations

import pytest
import sdpo_kernels
import torch

SHAPES = [(4, 64, 64), (4, 128, 128), (16, 128, 128)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def arguments(shape, pairs=4, dtype=torch.float16, seed=0):
    g = torch.Generator("cuda").manual_seed(seed)
    m, x, prev = (torch.randn(pairs, 2, *shape, generator=g, device="cuda").to(dtype) for _ in range(3))
    rows = torch.rand(pairs, 5, generator=g, device="cuda") + 0.5
    old, advantages = (torch.randn(pairs, 2, generator=g, device="cuda") - 1 for _ in range(2))
    return m, x, prev, rows, old, advantages, torch.ones(pairs, device="cuda")


def everything(m, x, prev, rows, old, advantages, weight):
    """Every operation once."""
    flat, flat_rows = [t.flatten(0, 1) for t in (m, x, prev)], rows.repeat_interleave(2, 0)
    seeds = torch.arange(len(flat_rows), device=m.device)
    leaf = m.detach().requires_grad_()
    sdpo = sdpo_kernels.sdpo_loss(leaf, x, prev, rows, old, advantages, weight, clip_range=0.1)
    (by_autograd,) = torch.autograd.grad(sdpo.loss.sum(), leaf)
    fused = sdpo_kernels.sdpo_loss_and_grad(m, x, prev, rows, old, advantages, weight, clip_range=0.1)
    tail = (flat_rows, old.flatten(), advantages.flatten())
    ppo = sdpo_kernels.ppo_clip_loss_and_grad(*flat, *tail, clip_range=0.1)
    return (
        *sdpo_kernels.ddim_step(*flat[:2], flat_rows, seeds=seeds, step=3),
        sdpo_kernels.gaussian_log_prob(*flat, flat_rows),
        by_autograd,
        *fused[0],
        fused[1],
        *ppo[0],
        ppo[1],
        *sdpo_kernels.anchor_similarity(x.unflatten(2, (2, -1)).flatten(1, 2).contiguous()),
    )


def test_there_is_a_gpu():
    """This file must not pass for want of one."""
    assert torch.cuda.is_available(), "no CUDA device: run without --gpu"
    assert sdpo_kernels.resolve_backend("auto", "cuda") == "triton"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_repeated_runs_give_the_same_bits(shape, dtype):
    inputs = arguments(shape, dtype=dtype)
    first = everything(*inputs)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, everything(*inputs), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_log_prob_of_step_and_losses_are_the_same_bits(shape, dtype):
    m, x, _, rows, old, advantages, weight = arguments(shape, dtype=dtype)
    flat_rows = rows.repeat_interleave(2, 0)
    step = sdpo_kernels.ddim_step(m.flatten(0, 1), x.flatten(0, 1), flat_rows, seeds=torch.arange(8, device="cuda"))
    prev = step.prev_sample.unflatten(0, (4, 2))
    sdpo = sdpo_kernels.sdpo_loss(m, x, prev, rows, old, advantages, weight, clip_range=0.1)
    assert torch.equal(sdpo.log_prob.flatten(), step.log_prob)
    flat = (m.flatten(0, 1), x.flatten(0, 1), step.prev_sample, flat_rows)
    ppo = sdpo_kernels.ppo_clip_loss(*flat, old.flatten(), advantages.flatten(), clip_range=0.1)
    assert torch.equal(ppo.log_prob, step.log_prob)
    assert torch.equal(sdpo_kernels.gaussian_log_prob(*flat), step.log_prob)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_host_synchronisation(shape):
    inputs = arguments(shape)
    everything(*inputs)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("shape", SHAPES)
def test_cuda_graph(shape):
    inputs = arguments(shape)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            everything(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = everything(*inputs)
    for seed in (1, 2):
        fresh = arguments(shape, seed=seed)
        for ours, new in zip(inputs, fresh, strict=True):
            ours.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(captured, everything(*fresh), strict=True))


def test_opcheck_and_compile():
    from sdpo_kernels import losses, transition

    m, x, prev, rows, old, advantages, weight = arguments((4, 8, 8), dtype=torch.float32)
    leaf = m.clone().requires_grad_()
    torch.library.opcheck(losses._sdpo_loss, (leaf, x, prev, rows, old, advantages, weight, 0.1, 5.0, "triton"))
    flat = [t.flatten(0, 1) for t in (leaf.detach(), x, prev)]
    flat[0].requires_grad_()
    torch.library.opcheck(transition._gaussian_log_prob, (*flat, rows.repeat_interleave(2, 0), "triton"))
    inputs = arguments((4, 8, 8))
    compiled = torch.compile(everything, fullgraph=False)(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(compiled, everything(*inputs), strict=True))


def test_torch_backend_agrees():
    inputs = arguments((4, 64, 64), dtype=torch.float32)
    ours = everything(*inputs)
    with sdpo_kernels.backend("torch"):
        theirs = everything(*inputs)
    for a, b in zip(ours, theirs, strict=True):
        if a.is_floating_point():
            assert (a - b).abs().max() <= 2e-5 * b.abs().max()
        else:
            assert torch.equal(a, b)


def test_row_count_beyond_2_to_31_elements():
    """Offsets are 64 bits wide: 9 GB of latents in half precision."""
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GB of free memory")
    n, shape = 2**31 // (4 * 64 * 64) + 8, (4, 64, 64)
    m, x = (torch.randn(n, *shape, device="cuda", dtype=torch.float16) for _ in range(2))
    rows = torch.rand(n, 5, device="cuda") + 0.5
    seeds = torch.arange(n, device="cuda")
    out = sdpo_kernels.ddim_step(m, x, rows, seeds=seeds)
    tail = sdpo_kernels.ddim_step(m[-4:], x[-4:], rows[-4:], seeds=seeds[-4:])
    assert all(torch.equal(a[-4:], b) for a, b in zip(out, tail, strict=True))
    assert torch.equal(sdpo_kernels.gaussian_log_prob(m, x, out.prev_sample, rows), out.log_prob)
