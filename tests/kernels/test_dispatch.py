"""Operations pass torch.library where somebody has to see them, else run as functions, with the same checks."""

from __future__ import annotations

import copy

import pytest
import sdpo_kernels
import torch
from sdpo_kernels import _dispatch, transition
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

N, SHAPE = 3, (4, 2, 2)


def arguments():
    g = torch.Generator().manual_seed(0)
    m, x, prev = (torch.randn(N, *SHAPE, generator=g) for _ in range(3))
    return m, x, prev, torch.rand(N, 5, generator=g) + 0.3


def everything(m, x, prev, rows):
    """Every public operation that hands out results without a graph, once."""
    old, advantages = prev.flatten(1).mean(1), x.flatten(1).mean(1)
    pairs = [torch.stack([t, 2 * t], 1) for t in (m, x, prev)]
    two = (torch.stack([old, old], 1), torch.stack([advantages, -advantages], 1), old.abs())
    return (
        *sdpo_kernels.ddim_step(m, x, rows, seeds=torch.arange(len(m)), step=1),
        sdpo_kernels.gaussian_log_prob(m, x, prev, rows),
        *sdpo_kernels.ppo_clip_loss(m, x, prev, rows, old, advantages, clip_range=0.1),
        sdpo_kernels.ppo_clip_loss_and_grad(m, x, prev, rows, old, advantages, clip_range=0.1)[1],
        *sdpo_kernels.sdpo_loss(*pairs, rows, *two, clip_range=0.1),
        sdpo_kernels.sdpo_loss_and_grad(*pairs, rows, *two, clip_range=0.1)[1],
        *sdpo_kernels.anchor_similarity(m),
    )


OPERATIONS = 7  # of them


@pytest.fixture
def registered(monkeypatch):
    """Names of the operations that passed torch.library, as they are called."""
    calls = []
    definition = type(transition._ddim_step)
    call = definition.__call__

    def counted(self, *arguments, **options):
        calls.append(self._name)
        return call(self, *arguments, **options)

    monkeypatch.setattr(definition, "__call__", counted)
    return calls


def test_plain_tensors_pass_it_by(registered):
    direct = everything(*arguments())
    assert not registered
    with torch.no_grad():
        m, *others = arguments()
        again = everything(m.requires_grad_(), *others)
    with torch.inference_mode():
        inferred = everything(*arguments())
    assert not registered
    with torch.device("cpu"):  # a mode that watches functions
        watched = everything(*arguments())
    assert len(registered) == OPERATIONS
    for results in (again, inferred, watched):
        assert all(torch.equal(a, b) for a, b in zip(direct, results, strict=True))
        assert not any(t.requires_grad for t in results)


names: list[str] = []  # of what a mode saw


class Subclass(torch.Tensor):
    pass


class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        names.append(function.name())
        return function(*arguments, **(options or {}))


class SeenFunctions(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), options=None):
        names.append(str(function))
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("mode", [Seen, SeenFunctions])
def test_modes_see_every_operation(mode, registered):
    names.clear()
    with mode():
        everything(*arguments())
    assert len(registered) == OPERATIONS
    assert all(any(name.replace("::", ".") in seen.replace("::", ".") for seen in names) for name in set(registered))


def test_fake_tensors_stay_fake():
    plain = everything(*arguments())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = everything(*(mode.from_tensor(t) for t in arguments()))
    for a, b in zip(plain, fake, strict=True):
        assert type(b) is not torch.Tensor
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


@pytest.mark.parametrize("tracing", ["real", "fake", "symbolic"])
def test_make_fx_records_operations(tracing):
    graph = make_fx(everything, tracing_mode=tracing)(*arguments())
    recorded = [str(node.target) for node in graph.graph.nodes if "sdpo_kernels" in str(node.target)]
    assert len(recorded) == OPERATIONS
    for a, b in zip(graph(*arguments()), everything(*arguments()), strict=True):
        assert torch.equal(a, b)


def test_export_records_operations():
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return everything(*tensors)

    for strict in (False, True):
        program = torch.export.export(Module(), arguments(), strict=strict)
        recorded = [node for node in program.graph.nodes if "sdpo_kernels" in str(node.target)]
        assert len(recorded) == OPERATIONS


def test_transforms_and_traces_meet_the_operation(registered):
    m, x, prev, rows = arguments()

    def log_prob(m):
        return sdpo_kernels.gaussian_log_prob(m, x, prev, rows)

    two = torch.func.vmap(log_prob)(torch.stack([m, 2 * m]))
    assert torch.func.functionalize(log_prob)(m).equal(log_prob(m))
    assert two.equal(torch.stack([log_prob(m), log_prob(2 * m)]))
    assert len(registered) == 2
    with pytest.raises(RuntimeError, match="setup_context"):  # torch.library's autograd has no torch.func
        torch.func.grad(lambda m: log_prob(m).sum())(m)
    assert len(registered) == 3
    graph = torch.jit.trace(log_prob, (m,), check_trace=False).graph
    assert "sdpo_kernels::gaussian_log_prob" in str(graph)


def test_a_subclass_and_a_lazy_negation_go_through_the_dispatcher(registered):
    m, x, prev, rows = arguments()
    expected = sdpo_kernels.gaussian_log_prob(-m, x, prev, rows)
    assert not registered
    lazy = torch._neg_view(m)
    assert lazy.is_neg()
    assert torch.equal(sdpo_kernels.gaussian_log_prob(lazy, x, prev, rows), expected)
    assert len(registered) == 1
    result = sdpo_kernels.gaussian_log_prob(m.as_subclass(Subclass), x, prev, rows)
    assert len(registered) == 2
    assert isinstance(result, Subclass)


def test_checks_are_made_once_for_a_layout(monkeypatch):
    monkeypatch.setattr(_dispatch, "_passed", {})
    m, x, prev, rows = arguments()
    made = []
    check = transition._check_log_prob
    monkeypatch.setattr(transition, "_check_log_prob", lambda *given: made.append(given) or check(*given))
    for _ in range(3):
        sdpo_kernels.gaussian_log_prob(m, x, prev, rows)
    assert len(made) == 1
    sdpo_kernels.gaussian_log_prob(m[:2], x[:2], prev[:2], rows[:2])
    sdpo_kernels.gaussian_log_prob(m.double(), x, prev, rows)
    sdpo_kernels.gaussian_log_prob(m, x, prev, rows[:1].expand(N, 5))
    assert len(made) == 4


def test_what_passed_once_does_not_excuse_what_comes_after():
    """Everything that the checks read is a part of what is remembered."""
    m, x, prev, rows = arguments()
    sdpo_kernels.gaussian_log_prob(m, x, prev, rows)
    sdpo_kernels.ddim_step(m, x, rows, seeds=torch.arange(N))
    with pytest.raises(ValueError, match="prev_sample has shape"):
        sdpo_kernels.gaussian_log_prob(m, x, prev[:1], rows)
    with pytest.raises(TypeError, match="coefficients has dtype"):
        sdpo_kernels.gaussian_log_prob(m, x, prev, rows.half())
    with pytest.raises(ValueError, match="strides"):
        sdpo_kernels.gaussian_log_prob(m, x.transpose(2, 3), prev, rows)
    with pytest.raises(ValueError, match="sample requires a gradient"):
        sdpo_kernels.gaussian_log_prob(m, x.clone().requires_grad_(), prev, rows)
    with pytest.raises(ValueError, match="is on meta"):
        sdpo_kernels.gaussian_log_prob(m, x.to("meta"), prev, rows)
    with pytest.raises(ValueError, match="exactly one of seeds and noise"):
        sdpo_kernels.ddim_step(m, x, rows)
    with pytest.raises(ValueError, match="exactly one of seeds and noise"):
        sdpo_kernels.ddim_step(m, x, rows, seeds=torch.arange(N), noise=m)
    with pytest.raises(TypeError, match="seeds has dtype"):
        sdpo_kernels.ddim_step(m, x, rows, seeds=torch.arange(N).int())
    with pytest.raises(ValueError, match="step is -1"):
        sdpo_kernels.ddim_step(m, x, rows, seeds=torch.arange(N), step=-1)
    bad = copy.copy(rows)
    bad[0, 4] = 0
    with pytest.raises(ValueError, match="sigma <= 0"):
        sdpo_kernels.gaussian_log_prob(m, x, prev, bad)
    for backend, message in (("gpu", "does not exist"), ("triton", "needs CUDA tensors")):
        with pytest.raises(ValueError, match=message):
            sdpo_kernels.gaussian_log_prob(m, x, prev, rows, backend=backend)
        if backend == "triton":
            with sdpo_kernels.backend(backend), pytest.raises(ValueError, match=message):
                sdpo_kernels.gaussian_log_prob(m, x, prev, rows)


def test_few_layouts_are_remembered(monkeypatch):
    monkeypatch.setattr(_dispatch, "_passed", {})
    monkeypatch.setattr(_dispatch, "MOST_KEPT", 4)
    for n in range(1, 12):
        sdpo_kernels.anchor_similarity(torch.randn(n, 3, 8))
        assert len(_dispatch._passed) <= 4
