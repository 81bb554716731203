"""Pictures that have a gradient by their latents."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.tiny import SIZES, write_model
from torch import nn

from sdpo_bench.config import RunConfig
from sdpo_bench.policies import load_policy
from sdpo_bench.policies.loading import load_pipeline
from sdpo_bench.rewards import load_reward
from sdpo_bench.training.memory_estimate import Live
from sdpo_bench.training.sampling import derive_seeds, sample
from sdpo_bench.training.scoring import score, score_with_gradient

FAMILY_MODELS = ["sd", "sdxl", "sd3", "flux"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    root = tmp_path_factory.mktemp("decoding")

    def of(name, **changes):
        own = {"reward": "colourfulness", "eval_rewards": (), "device": "cpu"}
        if name != "embedded":
            own |= {"model": str(write_model(root, name)), "resolution": SIZES.get(name)}
        return load_policy(RunConfig(**own | changes))

    return of


def latents_of(policy, count=5):
    return torch.randn(count, *policy.latent_shape, generator=torch.Generator().manual_seed(0))


def weights_of(pictures):
    return torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))


def decoded(policy, latents, *, loss=1.0, of=1.0):
    """Pictures, and the gradient by the latents of a weighted sum of their pixels, or some `of` them; `loss` makes the
    sum smaller."""
    x = latents.clone().requires_grad_()
    pictures = policy.decode(x, gradient=True)
    (loss * (weights_of(pictures) * of * pictures).sum()).backward()
    return pictures.detach(), x.grad / loss


@pytest.mark.parametrize("name", [*FAMILY_MODELS, "embedded"])
def test_the_gradient_is_the_plain_decoders(policy, name):
    """In float64, without fused upsampling. Pictures are those of `decode`, to the bit."""
    p = policy(name)
    latents = latents_of(p)
    pictures, found = decoded(p, latents)
    assert torch.equal(pictures, p.decode(latents))
    vae = load_pipeline(p.pipeline.config._name_or_path if name != "embedded" else name).vae.double()
    x = latents.double().requires_grad_()
    shift = getattr(vae.config, "shift_factor", None) or 0
    plain = (vae.decode(x / vae.config.scaling_factor + shift).sample / 2 + 0.5).clamp(0, 1)
    (weights_of(plain) * plain).sum().backward()
    assert (found - x.grad).norm() < 1e-4 * x.grad.norm()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_half_precision(policy, name, dtype):
    """The gradient is float32 where the latents are, and that of float32 within the decoder's precision; also of a
    small share of a mean, which would be 0 in float16. Pixels near the ends of 0..1 are left out: rounding decides
    whether they have one."""
    p = policy(name, dtype=dtype)
    latents = latents_of(p)
    exact = policy(name).decode(latents)
    within = (exact > 0.02) & (exact < 0.98)
    assert within.float().mean() > 0.9
    _, expected = decoded(policy(name), latents, of=within)
    precision = {"float16": 0.01, "bfloat16": 0.05}[dtype]  # 11 and 8 bits, over some twenty layers there and back
    for loss in (1.0, 1e-6):
        pictures, found = decoded(p, latents, loss=loss, of=within)
        assert torch.equal(pictures, p.decode(latents))
        assert found.dtype == torch.float32
        assert (found - expected).norm() < precision * expected.norm()
    assert decoded(p, latents.to(p.latent_dtype))[1].dtype == p.latent_dtype


def test_colours_beyond_0_and_1_have_no_gradient_and_nan_stays(policy, monkeypatch):
    p = policy("sd")
    values = torch.tensor([-1.5, -1.0, 0.5, 1.0, 1.5, torch.nan, torch.inf, -torch.inf])  # of a decoder, -1..1
    monkeypatch.setattr(p.pipeline.vae, "decode", lambda x, **_: (x[:, :1, :1] + (values - 1),))
    x = p.pipeline.vae.config.scaling_factor * torch.ones(1, 4, 8, 8)
    x.requires_grad_()
    pictures = p.decode(x, gradient=True)
    assert pictures[0, 0, 0, :5].tolist() == [0, 0, 0.75, 1, 1]
    assert pictures[0, 0, 0, 5:].isnan().all()
    (gradient,) = torch.autograd.grad(pictures.sum(), x)
    scale = 2 * p.pipeline.vae.config.scaling_factor
    assert (gradient[0, 0, 0] * scale).tolist() == pytest.approx([0, 1, 1, 1, 0, 0, 0, 0])


def test_chunks_and_checkpoints_change_nothing_but_memory(policy):
    """Of rows, padded or not; with --gradient-checkpointing only the latents are kept of each chunk."""
    latents = latents_of(policy("sd"), 9)
    pictures, found = decoded(policy("sd", pad_rows=1), latents)
    kept = {}
    for changes in ({"rows": 4, "pad_rows": 4}, {"rows": 1}, {"rows": 4, "gradient_checkpointing": True}):
        p = policy("sd", **changes)
        others, gradient = decoded(p, latents)
        assert torch.allclose(others, pictures, atol=1e-5)
        assert torch.allclose(gradient, found, rtol=1e-4, atol=1e-4 * found.abs().max())
        with Live() as live:
            out = p.decode(latents.clone().requires_grad_(), gradient=True)
        kept["gradient_checkpointing" in changes] = live.now
        assert out.requires_grad
    assert kept[True] < kept[False] / 4


@pytest.mark.parametrize("changes", [{}, {"finetune": "full"}, {"gradient_checkpointing": True}], ids=str)
def test_nothing_else_is_changed(policy, changes):
    p = policy("sd", **changes)
    networks = [module for module in p.pipeline.components.values() if isinstance(module, nn.Module)]
    before = [parameter.requires_grad for network in networks for parameter in network.parameters()]
    latents = latents_of(p)
    decoded(p, latents)
    assert [parameter.requires_grad for network in networks for parameter in network.parameters()] == before
    assert all(parameter.grad is None for network in networks for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in p.pipeline.vae.parameters())
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    # Without asking there is no graph, whatever the latents.
    assert not p.decode(latents.clone().requires_grad_()).requires_grad
    assert not p.pictures(latents.clone().requires_grad_()).requires_grad
    assert p.pictures(latents.clone().requires_grad_(), gradient=True).requires_grad
    with torch.no_grad():
        p.decode(latents, gradient=True)
        assert not torch.is_grad_enabled()


def test_following_the_gradient_raises_the_reward(policy):
    """From sampled latents of the embedded model, through decoder and scorer: each picture's alignment."""
    p, reward = policy("embedded", prompts=None), load_reward("alignment")
    prompts = ["cat", "dog", "kangaroo", "bee", "cow", "ant"]
    seeds = derive_seeds(5, count=len(prompts))
    latents = sample(p, prompts, steps=2, initial_seeds=seeds, step_seeds=seeds[:, None]).predicted_clean[:, 0, -1]
    before = score(reward, p.pictures(latents), prompts)
    rewards = [before]
    for _ in range(5):
        x = latents.clone().requires_grad_()
        score_with_gradient(reward, p.pictures(x, gradient=True), prompts).sum().backward()
        latents = latents + 0.5 * F.normalize(x.grad.flatten(1), dim=1).reshape(x.shape)
        rewards.append(score(reward, p.pictures(latents), prompts))
    rises = torch.stack(rewards).diff(dim=0)
    assert (rewards[-1] > before + 0.05).all()
    assert (rises > 0).all()
