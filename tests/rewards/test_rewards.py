"""Rewards on pictures whose values are known."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from sdpo_kernels import normal

from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.rewards import REWARDS, load_reward

MEASURED = ["diversity", "diversity_heldout", "kid_start", "vendi", "vendi_heldout"]


def test_jpeg_is_the_size_of_the_file():
    noise = normal(torch.tensor([0, 1]), (3, 32, 32)).mul(0.3).add(0.5).clamp(0, 1)
    flat = torch.full((1, 3, 32, 32), 0.5)
    images = torch.cat([noise, flat])
    size = load_reward("jpeg_incompressibility")(images, ["cat"] * 3)
    for image, kilobytes in zip(images, size, strict=True):
        buffer = io.BytesIO()
        array = np.round(image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        Image.fromarray(array).save(buffer, "JPEG", quality=95)
        assert kilobytes.item() == pytest.approx(len(buffer.getvalue()) / 1000)
    assert size[2] < size[:2].min()
    assert torch.equal(load_reward("jpeg_compressibility")(images, ["cat"] * 3), -size)


def test_diversity_is_the_mean_pairwise_distance_of_a_prompts_pictures():
    levels = torch.tensor([0, 51, 204, 255]) / 255  # of flat pictures; the distance of two is their levels'
    images = levels[:, None, None, None].expand(4, 3, 8, 8)
    values = load_reward("diversity")(images, ["cat", "dog", "cat", "cat"])
    assert values.tolist() == pytest.approx([(0.8 + 1) / 2, 0, (0.8 + 0.2) / 2, (1 + 0.2) / 2], abs=1e-6)
    pairs = [0.8, 1.0, 0.2]
    assert values[[0, 2, 3]].mean().item() == pytest.approx(sum(pairs) / 3, abs=1e-6)


def test_heldout_diversity_is_of_the_scorers_embeddings():
    reward = load_reward("diversity_heldout")
    images = normal(torch.arange(3), (3, 32, 32)).mul(0.3).add(0.5).clamp(0, 1)
    images = torch.cat([images, images[:1]])
    points = reward.scorer.embed(images)
    assert torch.allclose(points.norm(dim=1), torch.ones(4))
    text = torch.nn.functional.normalize(reward.scorer.text.weight, dim=-1)
    assert torch.allclose(points @ text.T, reward.scorer.rank(images), atol=1e-6)  # what its scores are made of
    values = reward(images, ["anything"] * 4)
    cosines = torch.nn.functional.cosine_similarity(points[:, None], points[None], dim=-1)
    assert torch.allclose(values, (1 - cosines).sum(1) / 3, atol=1e-5)
    assert torch.allclose(reward(images[[0, 3]], ["same"] * 2), torch.zeros(2), atol=1e-6)


@pytest.mark.parametrize("name", MEASURED)
def test_what_is_only_measured_cannot_be_optimised(name):
    for spec in (name, f"0.5*alignment+{name}"):
        message = f"^{name} can be measured but not trained on; use it with --eval-rewards$"
        with pytest.raises(UserError, match=message):
            RunConfig(reward=spec)
    assert RunConfig(eval_rewards=(name,), eval_last_rewards=(name,)).eval_rewards == (name,)


def test_colourfulness():
    reward = load_reward("colourfulness")
    grey = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(1, 3, 8, 8)
    red = torch.zeros(1, 3, 8, 8)
    red[:, 0] = 1
    halves = red.clone()
    halves[:, 0, :, :4], halves[:, 1, :, :4] = 0, 1  # half green, half red: rg = +-1, yb = 0.5 everywhere
    value = reward(torch.cat([grey, red, halves]), ["x"] * 3)
    assert value[0] == pytest.approx(0, abs=1e-6)
    assert value[1] == pytest.approx(0.3 * (1 + 0.25) ** 0.5, rel=1e-5)
    assert value[2] == pytest.approx(1 + 0.3 * 0.5, rel=1e-5)


def test_what_is_only_measured():
    """Nothing else takes a prompt's pictures together, and one of these compares them with the pretrained model's."""
    assert [name for name, reward in REWARDS.items() if not reward.optimisable] == MEASURED
    assert [name for name, reward in REWARDS.items() if reward.needs_start] == ["kid_start"]


@pytest.mark.parametrize("name", [name for name, reward in REWARDS.items() if not reward.needs_start])
def test_every_reward(name):
    reward = load_reward(name)
    images = normal(torch.arange(3), (3, 32, 32)).mul(0.3).add(0.5).clamp(0, 1)
    together = reward(images, ["cat", "dog", "cow"])
    assert together.dtype == torch.float32
    assert together.shape == (3,)
    assert torch.isfinite(together).all()
    alone = torch.cat([reward(image[None], [p]) for image, p in zip(images, ["cat", "dog", "cow"], strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)
    for attribute in ("name", "title", "licence", "revision", "scale"):
        assert getattr(reward, attribute)


def test_unknown_reward():
    with pytest.raises(UserError, match="unknown reward 'beauty'; choose one of: alignment, "):
        load_reward("beauty")
