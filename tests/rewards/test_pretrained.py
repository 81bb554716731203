"""The rewards with published weights, without those weights: random ones, under the names and in the files of the
published ones, must score as the same networks written down anew (plain.py) do.

With SDPO_BENCH_FULL_SIZE=1 the comparisons are also made at full width (5 GB of memory, 10 GB of disk, minutes)."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import write_tokenizer
from safetensors.torch import save_file
from support import plain
from torch import Tensor, nn

from sdpo_bench.errors import UserError
from sdpo_bench.rewards import PRETRAINED, _weights, canonical, imagereward, load_reward
from sdpo_bench.rewards._clip import VIT_H, VIT_L
from sdpo_bench.rewards._pixels import MEAN, STD, preprocess
from sdpo_bench.rewards.base import Pretrained
from sdpo_bench.rewards.hpsv2 import renamed
from sdpo_bench.training.memory_estimate import Live

FULL = pytest.param(
    True, id="full", marks=pytest.mark.skipif("SDPO_BENCH_FULL_SIZE" not in os.environ, reason="minutes")
)
SIZES = pytest.mark.parametrize("full", [pytest.param(False, id="narrow"), FULL])
# Depths and heads of the published networks; only the widths are smaller, and the tests' tokenizer has fewer tokens.
NARROW_L = replace(VIT_L, text=(48, 12, 12), vision=(64, 24, 16), projection=40, vocabulary=514)
NARROW_H = replace(VIT_H, text=(64, 24, 16), vision=(64, 32, 16), projection=40, vocabulary=514)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "dog", "##s", "on", "grass"]
PROMPTS = ["a cat", "red dogs on grass", "a cat", "a red cat"]


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Four pictures [4, 3, 40, 56], patterns in colours, rounded to 8 bits: all but the third differ widely."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 56), indexing="ij")
    waves = [torch.stack([(i * 3 * x + y).sin(), (i * 5 * y).cos(), (x * y * i * 7).sin()]) for i in range(1, 5)]
    waves[2] = waves[0].flip(1)
    return ((torch.stack(waves) * 0.5 + 0.5) * 255).round() / 255


@pytest.fixture
def weights(tmp_path, monkeypatch) -> Path:
    """A folder with the tokenizers; tests add weights. Nothing may use the network."""
    monkeypatch.setenv(_weights.FOLDER, str(tmp_path / "weights"))
    monkeypatch.setenv(_weights.CACHE, str(tmp_path / "cache"))
    for repo in ("openai/clip-vit-large-patch14", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"):
        write_tokenizer(tmp_path / "weights" / repo, length=77)
    bert = tmp_path / "weights" / "google-bert" / "bert-base-uncased"
    bert.mkdir(parents=True)
    (bert / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return tmp_path / "weights"


def unpin(monkeypatch, name: str) -> type[Pretrained]:
    """The class, without the digests of the published files."""
    cls = PRETRAINED[name]
    monkeypatch.setattr(cls, "sources", tuple(replace(source, sha256={}) for source in cls.sources))
    return cls


def clip_tokens(prompts: list[str]) -> Tensor:
    """What CLIP's tokenizer makes of words of which it knows the letters alone, [n, 77]."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    out = torch.zeros(len(prompts), 77, dtype=torch.long)
    for row, prompt in zip(out, prompts, strict=True):
        ids = [
            letters.index(c) + 256 * last
            for word in prompt.split()
            for c, last in zip(word, [0] * (len(word) - 1) + [1], strict=True)
        ][:75]
        row[: len(ids) + 2] = torch.tensor([512, *ids, 513])
    return out


def bert_tokens() -> tuple[Tensor, Tensor]:
    """PROMPTS in WORDS, and which are not padding: two [4, 35]."""
    tokens = torch.zeros(4, 35, dtype=torch.long)
    for row, ids in zip(tokens, [[5, 7], [6, 8, 9, 10, 11], [5, 7], [5, 6, 7]], strict=True):
        row[: len(ids) + 2] = torch.tensor([2, *ids, 3])
    return tokens, tokens != 0


def write_clip(weights: Path, repo: str, towers, seed: int = 0) -> plain.CLIP:
    """A plain CLIP, and its weights in a repository as transformers writes them."""
    activation = {"gelu": nn.GELU, "quick_gelu": plain.QuickGELU}[towers.activation]
    model = plain.CLIP(towers.text, towers.vision, towers.projection, activation, towers.vocabulary)
    plain.randomise(model, seed)
    (weights / repo).mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in renamed(model.state_dict()).items()}
    # Files of old versions of transformers hold these too.
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(257)[None]
    save_file(state, weights / repo / "model.safetensors")
    return model


def write_hpsv2(weights: Path, towers, file: str = "HPS_v2_compressed.pt") -> plain.CLIP:
    model = plain.CLIP(towers.text, towers.vision, towers.projection, nn.GELU, towers.vocabulary)
    plain.randomise(model, 1)
    (weights / "xswu" / "HPSv2").mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, weights / "xswu" / "HPSv2" / file)
    return model


def write_imagereward(weights: Path, text, vision) -> plain.ImageReward:
    model = plain.ImageReward(text, vision)
    plain.randomise(model, 2)
    (weights / "THUDM" / "ImageReward").mkdir(parents=True)
    torch.save(model.state_dict(), weights / "THUDM" / "ImageReward" / "ImageReward.pt")
    return model


def narrow_imagereward(monkeypatch, depth: int | None = None) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Text and image network of the published depth and heads, but narrow; or of another depth."""
    unpin(monkeypatch, "imagereward")
    for constants, width in ((imagereward.TEXT, 48), (imagereward.VISION, 64)):
        monkeypatch.setitem(constants, "hidden_size", width)
        monkeypatch.setitem(constants, "intermediate_size", 4 * width)
        if depth:
            monkeypatch.setitem(constants, "num_hidden_layers", depth)
    monkeypatch.setitem(imagereward.TEXT, "encoder_hidden_size", 64)
    return (48, depth or 12, 12), (64, depth or 24, 16)


@pytest.fixture(params=[2])
def rewards(request, weights, monkeypatch) -> dict[str, nn.Module]:
    """Every reward can be loaded, narrow and of two layers, or of the depth that a test asks for; the plain networks
    behind them."""
    depth = request.param
    low, high = (
        replace(t, text=(t.text[0], depth or t.text[1], t.text[2]), vision=(64, depth or t.vision[1], 16))
        for t in (NARROW_L, NARROW_H)
    )
    for name in PRETRAINED:
        cls = unpin(monkeypatch, name)
        if name != "imagereward":
            monkeypatch.setattr(cls, "towers", low if name in ("aesthetic", "clipscore") else high)
    head = plain.randomise(plain.head(40), 3)
    repo = weights / "christophschuhmann" / "improved-aesthetic-predictor"
    repo.mkdir(parents=True)
    torch.save(head.state_dict(), repo / "sac+logos+ava1-l14-linearMSE.pth")
    return {
        "clipscore": write_clip(weights, "openai/clip-vit-large-patch14", low),
        "pickscore": write_clip(weights, "yuvalkirstain/PickScore_v1", high, seed=4),
        "hpsv2": write_hpsv2(weights, high),
        "hpsv2.1": write_hpsv2(weights, high, "HPS_v2.1_compressed.pt"),
        "imagereward": write_imagereward(weights, *narrow_imagereward(monkeypatch, depth)),
        "aesthetic": head,
    }


def differs(value: Tensor) -> bool:
    """Whether pictures and prompts get scores of their own: without it agreement would show little."""
    return bool((value[:, None] - value).abs().add(torch.eye(len(value))).min() > 1e-4)


# Names and shapes, at full size, without memory


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in state.items() if not k.endswith("position_ids")}


@pytest.mark.parametrize(
    ("towers", "arguments", "count"),
    [
        (VIT_L, ((768, 12, 12), (1024, 24, 16), 768, plain.QuickGELU), 427_616_513),
        (VIT_H, ((1024, 24, 16), (1280, 32, 16), 1024, nn.GELU), 986_109_441),
    ],
    ids=["ViT-L", "ViT-H"],
)
def test_names_of_clip_at_full_size(towers, arguments, count):
    from transformers import CLIPModel

    with torch.device("meta"):
        published, ours = plain.CLIP(*arguments), CLIPModel(towers.config())
    assert shapes(renamed(published.state_dict())) == shapes(ours.state_dict())
    assert sum(value.numel() for value in published.parameters()) == count  # as published


def test_names_of_imagereward_at_full_size():
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    with torch.device("meta"):
        published = plain.ImageReward((768, 12, 12), (1024, 24, 16))
        vision = BlipVisionModel(BlipVisionConfig(**imagereward.VISION))
        text = BlipTextModel(BlipTextConfig(**imagereward.TEXT), add_pooling_layer=False)
    found = {imagereward.renamed(k): v for k, v in published.blip.visual_encoder.state_dict().items()}
    assert shapes(found) == shapes(vision.state_dict())
    assert shapes(published.blip.text_encoder.state_dict()) == shapes(text.state_dict())
    # The published file has 1786880927 bytes: these float32 weights, `position_ids`, and 340 bytes for each name.
    state = published.state_dict()
    payload = sum(value.numel() * value.element_size() for value in state.values())
    assert 330 < (1786880927 - payload) / len(state) < 350


# Values, at full depth


@SIZES
@torch.no_grad()
def test_hpsv2(weights, images, monkeypatch, full):
    cls = unpin(monkeypatch, "hpsv2")
    towers = replace(VIT_H, vocabulary=514) if full else NARROW_H
    monkeypatch.setattr(cls, "towers", towers)
    expected = write_hpsv2(weights, towers).cosine(preprocess(images), clip_tokens(PROMPTS))
    value = load_reward("hpsv2")(images, PROMPTS)
    assert differs(expected)
    assert (value - expected).abs().max() < 1e-5


@SIZES
@torch.no_grad()
def test_imagereward(weights, images, monkeypatch, full):
    unpin(monkeypatch, "imagereward")
    sizes = ((768, 12, 12), (1024, 24, 16)) if full else narrow_imagereward(monkeypatch)
    model = write_imagereward(weights, *sizes)
    expected = model(preprocess(images), *bert_tokens())
    value = load_reward("imagereward")(images, PROMPTS)
    assert differs(expected)
    assert (value - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1)
    published = load_reward("imagereward:published")(images, PROMPTS)
    assert torch.allclose(published, (expected - 0.16717362830052426) / 1.0333394966054072, atol=1e-5)


@pytest.mark.parametrize("rewards", [None], indirect=True, ids=["deep"])
@torch.no_grad()
def test_clipscore_pickscore_and_aesthetic(rewards, images):
    pixels, tokens = preprocess(images), clip_tokens(PROMPTS)
    clip, pick = (rewards[name].cosine(pixels, tokens) for name in ("clipscore", "pickscore"))
    assert differs(clip)
    assert differs(pick)
    assert (clip < 0).any()  # the clamp has something to do
    embedding = rewards["clipscore"].visual(pixels)
    rating = rewards["aesthetic"].layers(embedding / embedding.norm(dim=1, keepdim=True))[:, 0]
    assert differs(rating)
    expected = {
        "clipscore": clip,
        "clipscore:published": 2.5 * clip.clamp(min=0),
        "pickscore": pick,
        "pickscore:published": pick * torch.tensor(1.5).exp(),
        "aesthetic": rating,
        "aesthetic:published": rating,  # the same scale
    }
    for name, value in expected.items():
        reward = load_reward(name)
        assert (reward(images, PROMPTS) - value).abs().max() < 1e-5, name
        assert reward.name == canonical(name)
    assert "published" in load_reward("clipscore:published").title
    assert load_reward("clipscore:published").scale == "2.5 max(cosine, 0), 0..2.5"


@pytest.mark.parametrize(("name", "words"), [("clipscore", 75), ("pickscore", 75), ("hpsv2", 75), ("imagereward", 33)])
def test_long_prompts_are_cut(rewards, images, name, words):
    """CLIP reads 77 tokens, ImageReward 35, beginning and end included: words of one letter are a token each."""
    reward, picture = load_reward(name), images[:1].expand(2, -1, -1, -1)
    last = reward(picture, ["a " * (words - 1) + end for end in ("a", "cat")])
    assert last[0] != last[1]
    beyond = reward(picture, ["a " * words + end for end in ("a", "cat")])
    assert beyond[0] == beyond[1]


# What must not go unnoticed: the weights fit all of these


@pytest.mark.parametrize("wrong", [{"activation": "quick_gelu"}, {"text": 8}, {"vision": 8}], ids=str)
@torch.no_grad()
def test_another_clip_scores_differently(rewards, images, monkeypatch, wrong):
    right = load_reward("hpsv2")(images, PROMPTS)
    cls = PRETRAINED["hpsv2"]
    changes = {k: v if k == "activation" else (*getattr(cls.towers, k)[:2], v) for k, v in wrong.items()}  # heads
    monkeypatch.setattr(cls, "towers", replace(cls.towers, **changes))
    assert (load_reward("hpsv2")(images, PROMPTS) - right).abs().max() > 1e-3


@pytest.mark.parametrize("constants", ["TEXT", "VISION"])
@pytest.mark.parametrize("wrong", [{"num_attention_heads": 8}, {"hidden_act": "quick_gelu"}], ids=str)
@torch.no_grad()
def test_another_blip_scores_differently(rewards, images, monkeypatch, constants, wrong):
    right = load_reward("imagereward")(images, PROMPTS)
    for key, value in wrong.items():
        monkeypatch.setitem(getattr(imagereward, constants), key, value)
    assert (load_reward("imagereward")(images, PROMPTS) - right).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "parts", "constants", "wrong"),
    [
        ("imagereward", ("cls_token", "pos_embed", "patch_embed.proj"), "VISION", 1e-5),
        ("imagereward", ("word_embeddings", "position_embeddings"), "TEXT", 1e-5),
        ("hpsv2", ("embedding", "visual.conv1"), None, None),
    ],
    ids=["BLIP vision", "BLIP text", "CLIP"],
)
@torch.no_grad()
def test_epsilons(rewards, images, monkeypatch, weights, name, parts, constants, wrong):
    """Where signals are as small as the normalisations' epsilons, a wrong one shows."""
    model, pixels = rewards[name], preprocess(images)
    for key, value in model.named_parameters():
        if any(part in key for part in parts):
            value.mul_(2e-3)
    file = "THUDM/ImageReward/ImageReward.pt" if name == "imagereward" else "xswu/HPSv2/HPS_v2_compressed.pt"
    torch.save(model.state_dict(), weights / file)
    if name == "imagereward":
        expected = model(pixels, *bert_tokens())
    else:
        expected = model.cosine(pixels, clip_tokens(PROMPTS))
    assert (load_reward(name)(images, PROMPTS) - expected).abs().max() < 1e-5
    if constants:
        monkeypatch.setitem(getattr(imagereward, constants), "layer_norm_eps", wrong)
        assert (load_reward(name)(images, PROMPTS) - expected).abs().max() > 1e-3


def test_weights_of_another_model(rewards, weights):
    """Transformers would warn, fill in random weights, and score."""
    from safetensors.torch import load_file

    path = weights / "openai" / "clip-vit-large-patch14" / "model.safetensors"
    state = load_file(path)
    del state["visual_projection.weight"]
    save_file(state, path)
    with pytest.raises(
        UserError,
        match=r"reward clipscore: the weights are of another model: 1 tensors of CLIPModel differ, among them "
        r"visual_projection\.weight \(found none, expected \(40, 64\)\)",
    ):
        load_reward("clipscore")
    path = weights / "THUDM" / "ImageReward" / "ImageReward.pt"
    torch.save(torch.load(path, weights_only=True) | {"blip.text_decoder.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"ImageReward has no tensor blip\.text_decoder\.weight"):
        load_reward("imagereward")


# Of every reward


@pytest.mark.parametrize("name", PRETRAINED)
def test_every_reward(rewards, images, name):
    reward = load_reward(name)
    value = reward(images, PROMPTS)
    assert value.dtype == torch.float32
    assert value.shape == (4,)
    assert differs(value)
    assert torch.equal(reward(images, PROMPTS), value)
    assert reward(images[:0], []).shape == (0,)
    assert value.requires_grad is False
    assert all(getattr(reward, attribute) for attribute in ("name", "title", "licence", "revision", "scale"))
    with pytest.raises(ValueError, match="4 pictures, but 1 prompts"):
        reward(images, ["a cat"])

    # In parts it is the same, whatever the prompts' lengths and order.
    for reward.batch_size in (1, 3):
        assert torch.allclose(reward(images, PROMPTS), value, rtol=1e-6, atol=1e-6)

    # float16 has 11 bits: a relative error of 5e-4 an operation, over dozens of layers.
    half = load_reward(name, dtype=torch.float16)(images, PROMPTS)
    assert half.dtype == torch.float32
    assert (half - value).abs().max() < 0.02 * value.abs().max()

    broken = images.clone()
    broken[1, 0, 5, 5] = torch.nan
    with pytest.raises(ValueError, match="pictures hold values that are not finite"):
        reward(broken, PROMPTS)


# Gradients


def plain_score(rewards: dict[str, nn.Module], name: str, pixels: Tensor) -> Tensor:
    """The plain network's score of normalised pictures, in float64."""
    model = rewards[name].double()
    if name == "imagereward":
        return model(pixels, *bert_tokens())
    if name == "aesthetic":
        embedding = rewards["clipscore"].double().visual(pixels)
        return model.layers(embedding / embedding.norm(dim=1, keepdim=True))[:, 0]
    return model.cosine(pixels, clip_tokens(PROMPTS))


def gradient_of(reward, images: Tensor) -> Tensor:
    x = images.clone().requires_grad_()
    value = reward.differentiable_score(x, PROMPTS)
    assert torch.equal(value.detach(), reward(images, PROMPTS))  # to the bit
    value.sum().backward()
    return x.grad


@pytest.mark.parametrize("name", PRETRAINED)
def test_gradients(rewards, images, name):
    """Those of the plain network in float64, by autograd and by a finite difference; pictures have 224 pixels, and
    are neither resized nor, having 8 bits, rounded."""
    large = torch.nn.functional.interpolate(images, (224, 224), mode="bilinear").mul(255).round() / 255
    reward = load_reward(name)
    assert reward.differentiable
    found = gradient_of(reward, large).double()
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))

    def unrounded(x: Tensor) -> Tensor:
        return plain_score(rewards, name, (x - mean) / std)

    x = large.double().requires_grad_()
    unrounded(x).sum().backward()
    assert (found - x.grad).norm() < 1e-5 * x.grad.norm()
    step = 1e-3 * found / found.norm()
    with torch.no_grad():
        rise = (unrounded(large.double() + step) - unrounded(large.double() - step)) / 2e-3
    assert torch.allclose(rise, (found * found / found.norm()).flatten(1).sum(1), rtol=1e-4)

    # In parts, on the other scale, in float16.
    for reward.batch_size in (1, 3):
        assert torch.allclose(gradient_of(reward, large).double(), found, rtol=1e-4, atol=1e-5 * found.abs().max())
    value = reward(large, PROMPTS).double()
    factor = {
        "clipscore": 2.5 * (value > 0),
        "imagereward": torch.tensor(1 / 1.0333394966054072),
        "pickscore": torch.tensor(1.5).exp(),
    }.get(name, torch.ones(4)).reshape(-1, 1, 1, 1)
    published = gradient_of(load_reward(f"{name}:published"), large).double()
    assert torch.allclose(published, factor * found, rtol=1e-4, atol=1e-5 * found.abs().max())
    half = gradient_of(load_reward(name, dtype=torch.float16), large).double()
    assert (half - found).norm() < 0.02 * found.norm()

    # And nothing is left behind.
    networks = [value for value in vars(reward).values() if isinstance(value, nn.Module)]
    assert networks
    assert not any(p.requires_grad or p.grad is not None for network in networks for p in network.parameters())
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_gradients_of_sums_and_of_resized_pictures(rewards, images):
    """The latter point uphill: a step of one or two of 255 levels in each pixel raises the score."""
    parts = [gradient_of(load_reward(name), images) for name in ("pickscore", "colourfulness")]
    total = gradient_of(load_reward("0.5*pickscore+-2*colourfulness"), images)
    assert torch.allclose(total, 0.5 * parts[0] - 2 * parts[1], rtol=1e-4, atol=1e-7)
    reward = load_reward("pickscore")
    uphill = images + parts[0].sign() * 1.5 / 255
    assert (reward(uphill, PROMPTS) > reward(images, PROMPTS)).all()


def test_memory_of_gradients_is_one_parts(rewards, images):
    reward, peaks = load_reward("hpsv2", batch_size=1), []
    for count in (1, 4):
        x = images[:count].clone().requires_grad_()
        with Live() as live:
            reward.differentiable_score(x, PROMPTS[:count])
        peaks.append(live.peak)
    assert peaks[1] - peaks[0] < 4 * x.nbytes  # the gradients, and the same put together


def test_sums_of_them(rewards, images):
    reward = load_reward("0.5*pickscore + 0.25*imagereward:published+colourfulness")
    parts = [load_reward(name)(images, PROMPTS) for name in ("pickscore", "imagereward:published", "colourfulness")]
    assert torch.allclose(reward(images, PROMPTS), 0.5 * parts[0] + 0.25 * parts[1] + parts[2], atol=1e-6)
    assert reward.name == "0.5*pickscore+0.25*imagereward:published+colourfulness"
    assert reward.weights_sha256.keys() == {
        "yuvalkirstain/PickScore_v1/model.safetensors",
        "THUDM/ImageReward/ImageReward.pt",
    }
    broken = images.clone()
    broken[0] = torch.inf
    with pytest.raises(ValueError, match="pictures hold values that are not finite"):
        reward(broken, PROMPTS)


def test_what_records_need(rewards, weights):
    import hashlib

    reward = load_reward("aesthetic")
    digests = {
        name: hashlib.sha256((weights / name).read_bytes()).hexdigest()
        for name in (
            "christophschuhmann/improved-aesthetic-predictor/sac+logos+ava1-l14-linearMSE.pth",
            "openai/clip-vit-large-patch14/model.safetensors",
        )
    }
    assert reward.weights_sha256 == digests
    # Of which commit a local copy is, nobody knows: its digest says what it was.
    assert reward.revision == (
        "christophschuhmann/improved-aesthetic-predictor (local copy), openai/clip-vit-large-patch14 (local copy)"
    )
    assert PRETRAINED["pickscore"].revision.startswith("yuvalkirstain/PickScore_v1@a4e4367c6dfa7288a00c550414478f865b8")


def test_what_can_not_be_had(monkeypatch):
    with pytest.raises(UserError, match=r"clipscore: torch\.bfloat16 is not supported; expected torch\.float16 or"):
        load_reward("clipscore", dtype=torch.bfloat16)
    with pytest.raises(UserError, match="clipscore: batch size 0; expected at least 1"):
        load_reward("clipscore", batch_size=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="clipscore: torch finds no CUDA device here"):
        load_reward("clipscore", device="cuda")


def test_nothing_is_loaded_before_it_is_asked_for():
    code = "import sys, sdpo_bench.rewards as r; r.load_reward('colourfulness'); print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
