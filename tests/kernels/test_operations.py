"""The operations as PyTorch sees them: registration, autograd, torch.compile, choice of the backend."""

from __future__ import annotations

import shutil

import pytest
import sdpo_kernels
import torch
from sdpo_kernels import losses, similarity, transition

PAIRS, SHAPE = 3, (4, 2, 2)


def pair_arguments(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    m, x, prev = (torch.randn(PAIRS, 2, *SHAPE, generator=g, dtype=torch.float64).to(dtype) for _ in range(3))
    rows = torch.rand(PAIRS, 5, generator=g) + 0.3
    flat = [t.flatten(0, 1).double() for t in (m, x, prev)]
    rho = sdpo_kernels.gaussian_log_prob(*flat, rows.repeat_interleave(2, 0)).reshape(PAIRS, 2)
    old = rho - torch.tensor([[0.3, 0.01], [-0.02, 0.03], [-0.2, 0.4]])
    advantages = torch.randn(PAIRS, 2, generator=g)
    return m, x, prev, rows, old.float(), advantages, torch.rand(PAIRS, generator=g) + 0.5


def operations(dtype=torch.float64):
    """Name to operation and arguments, of all that are registered."""
    pairs = pair_arguments(dtype)
    m, x, prev = (t.flatten(0, 1) for t in pairs[:3])
    rows, (old, advantages) = pairs[3].repeat_interleave(2, 0), (t.flatten() for t in pairs[4:6])
    return {
        "ddim_step": (transition._ddim_step, (m, x, rows, torch.arange(2 * PAIRS), 1, None, "torch")),
        "gaussian_log_prob": (transition._gaussian_log_prob, (m, x, prev, rows, "torch")),
        "log_prob_grad": (transition.log_prob_grad, (old, m, x, prev, rows, "torch")),
        "sdpo_loss": (losses._sdpo_loss, (*pairs, 0.1, 5.0, "torch")),
        "sdpo_loss_and_grad": (losses._sdpo_loss_and_grad, (*pairs, 0.1, 5.0, 1.0, "torch")),
        "ppo_clip_loss": (losses._ppo_clip_loss, (m, x, prev, rows, old, advantages, 0.1, 5.0, "torch")),
        "ppo_clip_loss_and_grad": (
            losses._ppo_clip_loss_and_grad,
            (m, x, prev, rows, old, advantages, 0.1, 5.0, 1.0, "torch"),
        ),
        "anchor_similarity": (similarity._anchor_similarity, (x.unflatten(0, (2, PAIRS)), "torch")),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("name", operations())
def test_opcheck(name, dtype):
    operation, arguments = operations(dtype)[name]
    if name in ("gaussian_log_prob", "sdpo_loss", "ppo_clip_loss"):
        arguments = (arguments[0].clone().requires_grad_(), *arguments[1:])
    torch.library.opcheck(operation, arguments)


def test_every_operation_is_checked():
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("sdpo_kernels::")}
    assert registered == {f"sdpo_kernels::{name}" for name in operations()}


def test_gradcheck_of_all_outputs():
    """Also of the log-probs that the losses return: a caller may add a term in them."""
    m, *others = pair_arguments()
    leaf = m.clone().requires_grad_()

    def sdpo(m):
        return sdpo_kernels.sdpo_loss(m, *others, clip_range=0.1)[:2]

    def ppo(m):
        x, prev, rows, old, advantages, _ = others
        flat = (t.flatten(0, 1) for t in (m, x, prev))
        rows = rows.repeat_interleave(2, 0)
        return sdpo_kernels.ppo_clip_loss(*flat, rows, old.flatten(), advantages.flatten(), clip_range=0.1)[:2]

    assert torch.autograd.gradcheck(sdpo, leaf)
    assert torch.autograd.gradcheck(ppo, leaf)


@pytest.mark.parametrize("loss", ["sdpo", "ppo"])
def test_backward_with_the_gradient_is_backward_of_the_loss(loss):
    """As the trainer does it: the gradient of the model's output handed on to autograd."""
    m, x, prev, rows, old, advantages, weight = pair_arguments(torch.float32)
    if loss == "ppo":
        m, x, prev = (t.flatten(0, 1) for t in (m, x, prev))
        tensors = (x, prev, rows.repeat_interleave(2, 0), old.flatten(), advantages.flatten())
        plain, fused = sdpo_kernels.ppo_clip_loss, sdpo_kernels.ppo_clip_loss_and_grad
    else:
        tensors = (x, prev, rows, old, advantages, weight)
        plain, fused = sdpo_kernels.sdpo_loss, sdpo_kernels.sdpo_loss_and_grad
    parameter = torch.tensor(1.0, requires_grad=True)
    (plain(parameter * m, *tensors, clip_range=0.1).loss.sum() / 7).backward()
    expected, parameter.grad = parameter.grad, None
    output = parameter * m
    _, grad = fused(output, *tensors, clip_range=0.1, grad_scale=1 / 7)
    output.backward(grad)
    assert torch.allclose(parameter.grad, expected, rtol=1e-6)


COMPILER = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"


def test_torch_compile_takes_all_in_one_graph():
    torch._dynamo.reset()
    m, x, prev, rows, old, advantages, weight = pair_arguments(torch.float32)
    seeds, flat_rows = torch.arange(2 * PAIRS), rows.repeat_interleave(2, 0)

    def everything(m):
        flat = [t.flatten(0, 1) for t in (m, x, prev)]
        tail = (flat_rows, old.flatten(), advantages.flatten())
        step = sdpo_kernels.ddim_step(flat[0].detach(), flat[1], flat_rows, seeds=seeds, step=2)
        rho = sdpo_kernels.gaussian_log_prob(*flat, flat_rows)
        sdpo = sdpo_kernels.sdpo_loss(m, x, prev, rows, old, advantages, weight, clip_range=0.1)
        ppo = sdpo_kernels.ppo_clip_loss(*flat, *tail, clip_range=0.1)
        _, g1 = sdpo_kernels.sdpo_loss_and_grad(m, x, prev, rows, old, advantages, weight, clip_range=0.1)
        _, g2 = sdpo_kernels.ppo_clip_loss_and_grad(*flat, *tail, clip_range=0.1)
        anchor = sdpo_kernels.anchor_similarity(x)
        return rho.sum() + sdpo.loss.sum() + ppo.loss.sum(), (*step, *sdpo[1:], *ppo[1:], g1, g2, *anchor)

    results = []
    for function in (everything, torch.compile(everything, fullgraph=True, backend=COMPILER)):
        leaf = m.clone().requires_grad_()
        total, others = function(leaf)
        total.backward()
        results.append((total.detach(), leaf.grad, *(t.detach() for t in others)))
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(eager, compiled, rtol=1e-6, atol=1e-6)
    with sdpo_kernels.backend("torch"):  # another backend is another graph, not a stale one
        assert torch.compile(everything, fullgraph=True, backend=COMPILER)(m)[0].isfinite()


def test_backends():
    assert sdpo_kernels.resolve_backend() == "torch"
    assert sdpo_kernels.resolve_backend("auto", "cpu") == "torch"
    assert sdpo_kernels.resolve_backend("torch", "cuda") == "torch"
    assert sdpo_kernels.resolve_backend("auto", "cuda", torch.float64) == "torch"
    with pytest.raises(ValueError, match=r"backend='cuda' does not exist; choose one of auto, torch, triton"):
        sdpo_kernels.resolve_backend("cuda")
    m, x, prev, rows, *_ = pair_arguments(torch.float32)
    arguments = (m[:, 0], x[:, 0], prev[:, 0], rows)
    with pytest.raises(ValueError, match="needs CUDA tensors, and the device is cpu"):
        sdpo_kernels.gaussian_log_prob(*arguments, backend="triton")
    with sdpo_kernels.backend("triton"):
        with pytest.raises(ValueError, match="needs CUDA tensors"):
            sdpo_kernels.gaussian_log_prob(*arguments)
        with sdpo_kernels.backend("auto"):
            sdpo_kernels.gaussian_log_prob(*arguments)
        sdpo_kernels.gaussian_log_prob(*arguments, backend="torch")
    sdpo_kernels.gaussian_log_prob(*arguments)
    with pytest.raises(ValueError, match="does not exist"), sdpo_kernels.backend("gpu"):
        pass


def test_cuda_tensors_go_to_triton_or_nowhere(monkeypatch):
    """Nothing falls back in silence: without Triton, or with float64, an explicit choice is refused."""
    from sdpo_kernels import _backend

    monkeypatch.setattr(_backend, "HAVE_TRITON", True)
    assert sdpo_kernels.resolve_backend("auto", "cuda") == "triton"
    with pytest.raises(TypeError, match="no float64"):
        sdpo_kernels.resolve_backend("triton", "cuda", torch.float64)
    monkeypatch.setattr(_backend, "HAVE_TRITON", False)
    for name in ("auto", "triton"):
        with pytest.raises(RuntimeError, match="pip install triton, or choose backend='torch'"):
            sdpo_kernels.resolve_backend(name, "cuda")
    assert sdpo_kernels.resolve_backend("auto", "cpu") == "torch"
