"""Invariants that every method in sdpo_bench/methods must pass; those that need a model are in test_trainer."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sdpo_kernels import gaussian_log_prob, normal

from sdpo_bench.errors import UserError
from sdpo_bench.methods import METHODS, build_method
from sdpo_bench.types import NoisedBatch, StepBatch, TrajectoryBatch

ROW = torch.tensor([0.8, -0.5, 0.9, -0.4, 0.7], dtype=torch.float64)
CLIPS = {"clip_range": 8e-4, "advantage_clip": 5.0}
LOSSES = [name for name, method in METHODS.items() if method.learns_from != "reward"]
every_method = pytest.mark.parametrize("name", METHODS)
every_loss = pytest.mark.parametrize("name", LOSSES)
PARTS = ("m", "x", "y", "old", "reference", "advantages", "old_m", "reference_m")


class Pairs:
    """P pairs with K steps of 4-dimensional latents, a "model" whose outputs are free parameters [P, 2, K, 4].

    x and y are a step's latent and the next one; where finished samples are noised, what the model sees and the sample.
    """

    def __init__(self, pairs=4, steps=3, seed=0, log_ratio=None, reference=0.01):
        count = pairs * 2 * steps
        shape = (pairs, 2, steps, 4)
        m, x, y = (normal(torch.arange(count) + 1000 * i + seed, (4,)).double().reshape(shape) for i in range(3))
        # Well into a step's usual range: latents lie about sigma away from their mean.
        y = ROW[0] * x + ROW[1] * m + ROW[4] * y
        self.m, self.x, self.y, self.steps = m, x, y, steps
        self.old = self.log_prob(m).detach()
        if log_ratio is not None:
            self.old = self.old - torch.as_tensor(log_ratio, dtype=torch.float64)
        self.reference = self.old + reference * normal(torch.arange(count) + 9000, (1,)).double().reshape(shape[:3])
        apart = normal(torch.arange(count) + 7000, (4,)).double().reshape(shape)
        self.old_m = m if log_ratio is None else m - 0.05 * apart
        self.reference_m = m + reference * apart.flip(0)
        advantage = normal(torch.arange(pairs) + 77 + seed, (2,)).double()
        self.advantages = advantage[..., None].expand(pairs, 2, steps).clone()

    def log_prob(self, m):
        flat = (t.reshape(-1, 4) for t in (m, self.x, self.y))
        return gaussian_log_prob(*flat, ROW.expand(m[..., 0].numel(), 5)).reshape(m.shape[:3])

    def select(self, index):
        out = object.__new__(Pairs)
        out.steps = self.steps
        for key in PARTS:
            setattr(out, key, getattr(self, key)[index])
        return out

    def loss(self, method, m=None):
        """Loss [P] of each pair, the mean over its steps for a method that works on single steps."""
        m = self.m if m is None else m
        losses = [method.loss(output, batch, **CLIPS).loss for output, batch in self.batches(method, m)]
        return torch.stack(losses).mean(0)

    def score(self, method, m):
        """[P, 2, K], what rises where a sample becomes likelier: its log-prob, or minus its error."""
        if method.learns_from != "noised":
            return self.log_prob(m)
        return -(ROW[2] * self.x + ROW[3] * m - self.y).square().mean(-1)

    def batches(self, method, m):
        """What the method's loss takes: whole trajectories at once, or one step or noise level after the other."""
        if method.learns_from == "trajectory":
            return [(self.log_prob(m), TrajectoryBatch(self.old, self.advantages[..., -1], self.reference))]
        latents = [(m[:, :, k], self.x[:, :, k].contiguous(), self.y[:, :, k].contiguous()) for k in range(self.steps)]
        rows = [[x[:, :, k] for x in (self.old, self.advantages, self.reference)] for k in range(self.steps)]
        outputs = [[x[:, :, k] for x in (self.reference_m, self.old_m)] for k in range(self.steps)]
        steps, table = [torch.full((len(m),), k) for k in range(self.steps)], ROW.expand(len(m), 5)
        if method.learns_from == "noised":
            return [
                (output, NoisedBatch(steps[k], y, x, table, rows[k][1], *outputs[k]))
                for k, (output, x, y) in enumerate(latents)
            ]
        return [
            (output, StepBatch(steps[k], x, y, table, *rows[k], *outputs[k]))
            for k, (output, x, y) in enumerate(latents)
        ]


@every_loss
@pytest.mark.parametrize("log_ratio", [None, 2e-4, 5e-3, -5e-3])
def test_loss_and_grad_is_the_loss_with_its_gradient(name, log_ratio):
    """What the trainer calls against what the method's page says: fused and by autograd are the same."""
    pairs, method = Pairs(log_ratio=log_ratio), build_method(name)
    for output, batch in pairs.batches(method, pairs.m):
        leaf = output.detach().clone().requires_grad_()
        expected = method.loss(leaf, batch, **CLIPS)
        (grad,) = torch.autograd.grad(0.3 * expected.loss.sum(), leaf)
        result, fused = method.loss_and_grad(output, batch, grad_scale=0.3, **CLIPS)
        assert torch.allclose(fused, grad, rtol=1e-12, atol=1e-15)
        assert all(torch.equal(a, b.detach()) for a, b in zip(result, expected, strict=True))
        assert not any(x.requires_grad for x in (*result, fused))


@every_loss
def test_swapping_a_pair_changes_nothing(name):
    pairs = Pairs(log_ratio=5e-4)
    swapped = pairs.select(slice(None))
    for key in PARTS:
        setattr(swapped, key, getattr(pairs, key).flip(1))
    method = build_method(name)
    assert torch.allclose(pairs.loss(method), swapped.loss(method), rtol=1e-12, atol=1e-14)


@every_loss
def test_a_batch_is_its_parts(name):
    pairs, method = Pairs(pairs=5, log_ratio=3e-4), build_method(name)
    parts = torch.cat([pairs.select(slice(i, i + 1)).loss(method) for i in range(5)])
    assert torch.allclose(pairs.loss(method), parts, rtol=1e-12)


@every_loss
@pytest.mark.parametrize("better", [0, 1])
def test_a_step_moves_toward_the_preferred_sample(name, better):
    """By little: the clip must not bite. Over all steps and at each of them."""
    pairs, method = Pairs(pairs=1, reference=0.0), build_method(name)
    pairs.advantages[:, better], pairs.advantages[:, 1 - better] = 0.6, -0.6
    m = pairs.m.clone().requires_grad_()
    (grad,) = torch.autograd.grad(pairs.loss(method, m).sum(), m)
    moved = pairs.score(method, pairs.m - 1e-4 * grad) - pairs.score(method, pairs.m)
    assert (moved[0, better] - moved[0, 1 - better] > 0).all()


@every_loss
def test_a_tie_has_no_direction(name):
    """Equal rewards, unchanged policy: a pairwise method has nothing to learn."""
    pairs, method = Pairs(pairs=1, reference=0.0), build_method(name)
    if not method.pairwise:
        pytest.skip("compares no pairs")
    pairs.advantages[:] = 0.4
    m = pairs.m.clone().requires_grad_()
    (grad,) = torch.autograd.grad(pairs.loss(method, m).sum(), m)
    assert grad.abs().max() == 0


@every_loss
@pytest.mark.parametrize("log_ratio", [-100.0, 100.0])
def test_far_out_gradients_are_finite(name, log_ratio):
    sign = torch.tensor([1.0, -1.0])[:, None]
    for ratio in (log_ratio, log_ratio * sign):
        pairs, method = Pairs(log_ratio=ratio), build_method(name)
        m = pairs.m.clone().requires_grad_()
        loss = pairs.loss(method, m)
        (grad,) = torch.autograd.grad(loss.sum(), m)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(grad).all()


@every_loss
def test_gradcheck(name):
    if name in DETACHED:
        pytest.skip("the loss takes weights that depend on the output for constants")
    pairs, method = Pairs(pairs=2, steps=2, log_ratio=3e-4), build_method(name)
    torch.autograd.gradcheck(lambda m: pairs.loss(method, m), pairs.m.clone().requires_grad_(), eps=1e-7, atol=1e-4)


DETACHED = ("crd", "diffusion_nft")


@every_loss
def test_a_loss_depends_on_the_clips_that_its_method_names(name):
    """`clips_ratio` and `weighs_advantages` say which flags are refused (api/unused.py)."""
    pairs, method = Pairs(log_ratio=5e-3 * normal(torch.arange(24), (1,)).double().reshape(4, 2, 3)), build_method(name)

    def losses(**clips):
        return torch.cat([method.loss(m, batch, **CLIPS | clips).loss for m, batch in pairs.batches(method, pairs.m)])

    assert torch.equal(losses(clip_range=1e6), losses()) != method.clips_ratio
    assert torch.equal(losses(advantage_clip=0.1), losses()) != method.weighs_advantages


# Each method against its formula, written out once more as scalars.


def scalar_terms(pairs):
    log_ratio = pairs.old.new_tensor(0) + (pairs.log_prob(pairs.m) - pairs.old)
    return log_ratio, pairs.advantages[..., -1]


def clip(x, bound):
    return max(-bound, min(bound, x))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.floats(-2e-3, 2e-3))
def test_formulas(seed, size):
    shift = size * normal(torch.arange(6) + seed, (1,)).double().reshape(1, 2, 3)
    pairs = Pairs(pairs=1, steps=3, seed=seed, log_ratio=shift)
    D = (pairs.log_prob(pairs.m) - pairs.old)[0].tolist()
    R = (pairs.log_prob(pairs.m) - pairs.reference)[0].tolist()
    A = pairs.advantages[0, :, -1].tolist()
    dA, e = A[0] - A[1], CLIPS["clip_range"]
    old_to_reference = (pairs.old - pairs.reference)[0].tolist()
    sdpo = sum(
        max(
            (0.99**k * (D[0][k] - D[1][k]) - dA) ** 2,
            (0.99**k * (clip(D[0][k], e) - clip(D[1][k], e)) - dA) ** 2,
        )
        for k in range(3)
    )
    ddpo = sum(
        max(-A[i] * math.exp(D[i][k]), -A[i] * min(max(math.exp(D[i][k]), 1 - e), 1 + e)) / 2
        for k in range(3)
        for i in range(2)
    )
    near = [sum(old_to_reference[i][k] + clip(D[i][k], e) for k in range(3)) for i in range(2)]
    prdp = max((sum(R[0]) - sum(R[1]) - dA) ** 2, (near[0] - near[1] - dA) ** 2)
    rebel = (sum(D[0]) - sum(D[1]) - dA) ** 2
    h = 1 if dA > 0 else -1
    low, high = math.log(0.9), math.log(1.1)
    d3po = sum(
        math.log1p(math.exp(-0.1 * h * (min(max(R[0][k], low), high) - min(max(R[1][k], low), high)))) for k in range(3)
    )
    expected = {"sdpo": sdpo / 3, "sdpo_causal": sdpo / 3, "ddpo": ddpo / 3, "d3po": d3po / 3}
    expected |= {"prdp": prdp, "rebel": rebel, "ddpo_critic": ddpo / 3}
    for name, value in expected.items():
        assert pairs.loss(build_method(name)).item() == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_rebel_with_batches_that_are_summed():
    """As RLCM's code: (scale (sum over a batch's pairs of D now - D of this pair then) - dA)^2, a mean over pairs."""
    pairs = Pairs(pairs=5, steps=3, seed=3, log_ratio=2e-4)
    now = (pairs.log_prob(pairs.m).sum(-1)).diff(dim=1)[:, 0].neg().tolist()
    then = (pairs.old.sum(-1)).diff(dim=1)[:, 0].neg().tolist()
    dA = pairs.advantages[..., -1].diff(dim=1)[:, 0].neg().tolist()
    batches = [(0, 1), (2, 3), (4,)]
    expected = [(3 * (sum(now[j] for j in b) - then[i]) - dA[i]) ** 2 for b in batches for i in b]
    found = pairs.loss(build_method("rebel", {"batch_sum": 2, "scale": 3}))
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    alone = pairs.loss(build_method("rebel", {"scale": 3}))
    assert found[4].item() == pytest.approx(alone[4].item())
    assert not torch.allclose(found[:4], alone[:4], rtol=1e-3)


def test_returns():
    rewards = torch.tensor([[[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]]])
    g = 0.99
    first = {
        "sdpo": [1 + g * (10 + g * 100), 10 + g * 100, 100],
        "sdpo_causal": [10 + g * 100, 100, 0],
        "ddpo_dense": [10 + g * 100, 100, 0],
        "sdpo_gain": [(10 - 1) + g * (100 - 1), 100 - 10, 0],
        "dense_grpo": [10.0 - 1, 100 - 10, 0],
    }
    for name in METHODS:
        expected = torch.tensor(first.get(name, [100.0, 100.0, 100.0]))
        assert torch.allclose(build_method(name).returns(rewards)[0, 0], expected), name
        assert torch.allclose(build_method(name).returns(rewards)[0, 1], 2 * expected), name
    undiscounted = build_method("sdpo", {"gamma": 0.0}).returns(rewards)
    assert torch.equal(undiscounted, rewards)
    assert torch.equal(rewards, torch.tensor([[[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]]]))  # left as it was


def test_bad_names_and_options():
    with pytest.raises(UserError, match=r"unknown method 'ppo'; choose one of: .*d3po, ddpo"):
        build_method("ppo")
    with pytest.raises(UserError, match="unknown option 'lambda' of sdpo; it has: gamma, scale, step_discount"):
        build_method("sdpo", {"lambda": 0.9})
    with pytest.raises(UserError, match="finite number"):
        build_method("sdpo", {"gamma": float("nan")})


OUTSIDE = {
    "gamma": (-1, -0.01, 1.01),
    "step_discount": (-1, 0, 1.01),
    "scale": (-1, 0),
    "beta": (-0.1, 0),
    "ratio_clip": (-0.1, 0, 1),
    "control": (-1, 0.5, 2),
    "batch_sum": (0, 1.5),
}
EDGES = {
    "gamma": (0, 1),
    "step_discount": (0.01, 1),
    "scale": (1e-3, 1e3),
    "beta": (1e-3, 1e3),
    "ratio_clip": (0.01, 0.99),
    "control": (0, 1),
    "batch_sum": (1, 64),
}


@every_method
def test_options_outside_their_range_are_refused(name):
    """Every option of every method has a range: one that nobody gave a range fails here."""
    for field in dataclasses.fields(METHODS[name]):
        for value in OUTSIDE.get(field.name, (-1e9,)):
            message = rf"^option {field.name} of {name} is {value}; expected "
            with pytest.raises(UserError, match=message):
                build_method(name, {field.name: value})
        for value in EDGES.get(field.name, (field.default,)):
            assert getattr(build_method(name, {field.name: value}), field.name) == value
