"""Gradients of rewards by their pictures: those of the same functions without rounding."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from sdpo_kernels import normal
from torch import Tensor, nn

from sdpo_bench.errors import UserError
from sdpo_bench.rewards import PRETRAINED, REWARDS, Reward, differentiable, load_reward, not_differentiable
from sdpo_bench.rewards._gradient import score_in_parts
from sdpo_bench.rewards._pixels import MEAN, STD, preprocess, resize, to_levels
from sdpo_bench.rewards.scorer import CHUNK, prepare
from sdpo_bench.testbed.data import WIDE, random_pictures
from sdpo_bench.training.memory_estimate import Live

COMPUTED = [name for name in REWARDS if name in differentiable()]
PROMPTS = ["cat", "dog", "kangaroo"]


def levels(images: Tensor) -> Tensor:
    """Pictures that rounding to 8 bits leaves as they are: there the rounded function has the value of the other."""
    return (images * 255).round() / 255


def noise(*size: int) -> Tensor:
    """Three pictures in 0.2..0.8, which leaves bicubic overshoots within 0..1."""
    return levels(torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2)


def gradient(reward: Reward, images: Tensor, prompts: list[str]) -> Tensor:
    """Of the sum of all scores."""
    images = images.clone().requires_grad_()
    reward.differentiable_score(images, prompts).sum().backward()
    assert images.grad is not None
    return images.grad


def slopes(function, images: Tensor, direction: Tensor, h: float = 1e-7) -> Tensor:
    """A finite difference of function(images) [N] in float64, along a direction for each picture."""
    x, step = images.double(), h * direction.double()
    return (function(x + step) - function(x - step)) / (2 * h)


def check_slopes(function, images: Tensor, found: Tensor) -> None:
    """Along the gradient itself, and along ten other directions, each picture's value rises as the gradient says."""
    others = torch.randn(10, *images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for direction in (found, *others):
        expected = slopes(function, images, direction)
        assert torch.allclose((found * direction).flatten(1).sum(1).double(), expected, rtol=1e-4, atol=1e-6)
    assert found.flatten(1).norm(dim=1).min() > 1e-3


# The function without rounding, in float64, by finite differences


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (50, 40)], ids=str)
def test_alignment(size):
    reward = load_reward("alignment")
    wide = copy.deepcopy(reward.scorer).double()
    columns = torch.tensor([wide.prompts.index(prompt) for prompt in PROMPTS])

    def unrounded(x: Tensor) -> Tensor:
        if size == (64, 96):
            x = F.interpolate(x, (32, 32), mode="area")
        elif size == (50, 40):
            x = F.interpolate(x, (32, 32), mode="bicubic", antialias=True)
        return wide.similarities(x).gather(1, columns[:, None])[:, 0]

    images = noise(*size)
    check_slopes(unrounded, images, gradient(reward, images, PROMPTS))


def test_alignment_of_real_pictures():
    """Some of their pixels are black or white: at the ends of 0..1 the gradient is that of within. (By autograd: their
    even areas put many units near the corner of a ReLU at once, where a finite difference has no meaning.)"""
    reward = load_reward("alignment")
    images = levels(random_pictures(3, torch.Generator().manual_seed(6), WIDE)[0])
    assert ((images == 0) | (images == 1)).float().mean() > 0.02
    wide = copy.deepcopy(reward.scorer).double()
    columns = torch.tensor([wide.prompts.index(prompt) for prompt in PROMPTS])
    x = images.double().requires_grad_()
    wide.similarities(x).gather(1, columns[:, None]).sum().backward()
    assert (gradient(reward, images, PROMPTS) - x.grad).norm() < 1e-5 * x.grad.norm()


def test_colourfulness():
    def unrounded(x: Tensor) -> Tensor:
        red, green, blue = x.flatten(2).unbind(1)
        rg, yb = red - green, (red + green) / 2 - blue
        variance = (rg.square().mean(1) - rg.mean(1).square()) + (yb.square().mean(1) - yb.mean(1).square())
        return variance.sqrt() + 0.3 * (rg.mean(1).square() + yb.mean(1).square()).sqrt()

    images = noise(16, 24)
    check_slopes(unrounded, images, gradient(load_reward("colourfulness"), images, PROMPTS))


def test_grey_pictures_are_the_least_colourful_and_have_no_slope():
    grey = levels(torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))).expand(3, 3, 8, 8)
    assert torch.equal(gradient(load_reward("colourfulness"), grey, PROMPTS), torch.zeros_like(grey))


@pytest.mark.parametrize("size", [(40, 56), (300, 400), (224, 300), (448, 448)], ids=str)
def test_preprocessing(size):
    """It is linear but for rounding: the gradient is its transpose, as PyTorch's own resizing of floats has it."""
    images = noise(*size)
    weights = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    found, plain = images.clone().requires_grad_(), images.double().requires_grad_()
    (preprocess(found) * weights).sum().backward()
    height, width = (224 * side // min(size) for side in size)
    x = F.interpolate(plain, (height, width), mode="bicubic", antialias=True)
    top, left = (height - 224) // 2, (width - 224) // 2
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    (((x[..., top : top + 224, left : left + 224] - mean) / std) * weights).sum().backward()
    # Pillow's weights are rounded to 2^-22.
    assert (found.grad - plain.grad).abs().max() < 1e-5 * plain.grad.abs().max()


# Rounding and the ends of 0..1


@pytest.mark.parametrize("name", COMPUTED)
def test_rounding_passes_the_gradient_of_what_is_rounded_to(name):
    reward, images = load_reward(name), noise(32, 32)
    expected = gradient(reward, images, PROMPTS)
    assert torch.equal(gradient(reward, images + 0.3 / 255, PROMPTS), expected)
    assert not torch.equal(gradient(reward, images + 0.7 / 255, PROMPTS), expected)


def test_what_lies_beyond_0_and_1_has_no_gradient():
    x = torch.tensor([-0.1, -0.001, 0.0, 0.5, 1.0, 1.001, 1.1], requires_grad=True)
    to_levels(x).sum().backward()
    assert x.grad.tolist() == [0, 255, 255, 255, 255, 255, 0]  # 1.001 is the level 255
    images = torch.full((1, 3, 32, 32), 0.5)
    images[0, 0, 0, :4] = torch.tensor([-0.1, 0, 1, 1.1])
    images.requires_grad_()
    prepare(images).sum().backward()
    assert images.grad[0, 0, 0, :4].tolist() == [0, 1, 1, 0]


def test_what_resizing_cuts_off_has_no_gradient():
    """Bicubic resizing overshoots at edges."""
    pixels = (torch.arange(32) % 8 < 4).double().expand(1, 3, 32, 32) * 255
    plain = F.interpolate(pixels, (224, 224), mode="bicubic", antialias=True)
    beyond = (plain < -0.5) | (plain > 255.5)
    assert 0.1 < beyond.double().mean() < 0.5
    for part, has in ((beyond, False), (~beyond, True)):
        x, y = pixels.clone().requires_grad_(), pixels.clone().requires_grad_()
        (resize(x, 224, 224) * part).sum().backward()
        (F.interpolate(y, (224, 224), mode="bicubic", antialias=True) * part * has).sum().backward()
        assert torch.allclose(x.grad, y.grad, rtol=0, atol=1e-4)


# Of every reward that needs no weights


@pytest.mark.parametrize("count", [1, CHUNK + 7])
@pytest.mark.parametrize("name", COMPUTED)
def test_values_are_the_calls_own(name, count):
    """To the bit, with a gradient and without."""
    reward = load_reward(name)
    images = normal(torch.arange(count), (3, 32, 32)).mul(0.4).add(0.5)
    prompts = [PROMPTS[i % 3] for i in range(count)]
    expected = reward(images, prompts)
    with_gradient = reward.differentiable_score(images.clone().requires_grad_(), prompts)
    assert with_gradient.requires_grad
    assert with_gradient.dtype == torch.float32
    assert torch.equal(with_gradient.detach(), expected)
    with torch.no_grad():
        without = reward.differentiable_score(images.clone().requires_grad_(), prompts)
    assert not without.requires_grad
    assert torch.equal(without, expected)


def test_each_score_has_its_own_pictures_gradient():
    """Across the parts too, and weighted by what comes after."""
    reward = load_reward("alignment")
    count = CHUNK + 7
    images = levels(normal(torch.arange(count), (3, 32, 32)).mul(0.1).add(0.5))
    prompts = [PROMPTS[i % 3] for i in range(count)]
    weights = torch.linspace(-1, 1, count)
    x = images.clone().requires_grad_()
    (reward.differentiable_score(x, prompts) * weights).sum().backward()
    for i in (0, CHUNK - 1, CHUNK, count - 1):
        alone = gradient(reward, images[i : i + 1], prompts[i : i + 1])[0] * weights[i]
        assert torch.allclose(x.grad[i], alone, rtol=1e-3, atol=1e-6)
        assert alone.abs().max() > 1e-4


def test_sums():
    images = noise(32, 32)
    found = load_reward("0.5*alignment+-2*colourfulness")
    assert found.differentiable
    parts = [gradient(load_reward(name), images, PROMPTS) for name in ("alignment", "colourfulness")]
    assert torch.allclose(gradient(found, images, PROMPTS), 0.5 * parts[0] - 2 * parts[1], atol=1e-7)
    assert torch.equal(found.differentiable_score(images, PROMPTS), found(images, PROMPTS))


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, 0), (torch.bfloat16, 2**-8)])
def test_gradients_have_the_pictures_dtype(dtype, precision):
    expected = gradient(load_reward("alignment"), noise(32, 32), PROMPTS)
    found = gradient(load_reward("alignment"), noise(32, 32).to(dtype), PROMPTS)
    assert found.dtype == dtype
    assert torch.allclose(found.float(), expected, rtol=precision, atol=0)


@pytest.mark.parametrize("name", COMPUTED)
def test_nothing_else_is_changed(name):
    reward = load_reward(name)
    before = torch.get_rng_state()
    images = noise(32, 32)
    unchanged = images.clone()
    gradient(reward, images, PROMPTS)
    assert torch.equal(images, unchanged)
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.equal(torch.get_rng_state(), before)
    for module in vars(reward).values():
        if isinstance(module, nn.Module):
            assert not module.training
            assert not any(p.requires_grad or p.grad is not None for p in module.parameters())


def test_memory_is_one_parts():
    reward = load_reward("alignment")
    peaks = []
    for parts in (1, 5):
        images = torch.rand(parts * CHUNK, 3, 32, 32).requires_grad_()
        with Live() as live:
            found = reward.differentiable_score(images, ["cat"] * len(images))
        peaks.append(live.peak)
        assert found.requires_grad
    pictures = 4 * images.numel()  # bytes
    # Gradients, and the same put together; and the prepared pictures of the part at work.
    assert peaks[1] < peaks[0] + 2 * pictures
    assert peaks[0] > 3 * pictures  # what a part's network computes is much more


# What has none


@pytest.mark.parametrize("name", [name for name in REWARDS if name not in differentiable()])
def test_others_say_that_they_have_none(name):
    reward = load_reward(name)
    assert not reward.differentiable
    with pytest.raises(UserError, match=f"reward {name} has no gradient"):
        reward.differentiable_score(noise(32, 32).requires_grad_(), PROMPTS)
    mixed = load_reward(f"0.5*alignment+{name}")
    assert not mixed.differentiable
    with pytest.raises(UserError, match=f"reward {name} has no gradient"):
        mixed.differentiable_score(noise(32, 32).requires_grad_(), PROMPTS)


def test_which_of_a_spec_have_none_is_known_without_loading(monkeypatch):
    for cls in (*REWARDS.values(), *PRETRAINED.values()):
        monkeypatch.setattr(cls, "__init__", lambda *_, **__: pytest.fail("loads"))
    assert sorted(differentiable()) == sorted(["alignment", "colourfulness", *PRETRAINED])
    assert not_differentiable("hpsv2.1@main+0.5*imagereward:published+alignment") == []
    mixed = "2*jpeg_compressibility+pickscore+diversity+jpeg_compressibility+alignment_heldout"
    assert not_differentiable(mixed) == ["jpeg_compressibility", "diversity", "alignment_heldout"]
    with pytest.raises(UserError, match="unknown reward 'beauty'"):
        not_differentiable("beauty")


def test_a_gradient_that_is_not_finite_is_refused():
    images = torch.zeros(2, 3, 4, 4, requires_grad=True)
    with pytest.raises(ValueError, match="the gradient by the pictures is not finite"):
        score_in_parts(lambda x, _: x.flatten(1).sum(1).sqrt(), images, ["a", "b"], 1)


def test_no_pictures():
    none = torch.zeros(0, 3, 32, 32, requires_grad=True)
    found = load_reward("alignment").differentiable_score(none, [])
    found.sum().backward()
    assert found.shape == (0,)
    assert none.grad.shape == none.shape


def test_the_number_of_prompts_is_checked():
    with pytest.raises(ValueError, match="3 pictures, but 1 prompts"):
        load_reward("alignment").differentiable_score(noise(32, 32), ["cat"])
