"""What is counted without weights, against the same on real tensors, and by hand."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from support.tiny import SIZES, write_model
from transformers import CLIPTextConfig

from sdpo_bench.cli.main import main
from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.policies import load_policy
from sdpo_bench.rewards import load_reward
from sdpo_bench.training.memory_estimate import (
    ADAM,
    SHARE,
    Costs,
    Live,
    estimate,
    largest_rows,
    line,
    measure,
    pictures_of_an_epoch,
)
from sdpo_bench.training.trainer import Trainer


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("memory")

    def of(name, **changes):
        own = {
            "model": str(write_model(root, name)),
            "resolution": SIZES.get(name),
            "reward": "colourfulness",
            "eval_rewards": (),
            "pairs": 4,
            "pairs_per_update": 2,
            "pad_rows": 1,
            "device": "cpu",
        }
        return RunConfig(**own | changes)

    return of


def test_live_tensors_are_counted_once_and_until_they_die():
    before = torch.empty(1000)
    with Live() as live:
        a = before.view(10, 100)  # nothing new
        assert live.now == 0
        b = a + 1
        c = b.t()  # the same memory
        del b
        assert live.now == 4000
        c += 1
        assert live.now == 4000
        d = c * 2
        del c
        assert (live.now, live.peak) == (4000, 8000)
        del d
        w = torch.empty(50, 20, requires_grad=True)
        y = (a[:, :50] @ w).exp().sum()  # exp's output is kept for the gradient
        assert live.now == 4000 + 800 + 4
        y.backward()
        assert live.now == 4000 + 4 + 4000  # w, y, w's gradient
        assert w.grad is not None


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sd", {}),
        ("flux", {}),
        ("sd", {"finetune": "full"}),
        ("sd3", {"guidance": 2.0}),
        ("sdxl", {"dtype": "float16"}),
        ("sd3", {"dtype": "float16"}),
        ("sd", {"gradient_checkpointing": True}),
        ("flux", {"gradient_checkpointing": True}),
        ("sd", {"vae_slicing": True}),
        ("flux-2-klein", {}),
        ("sana-sprint", {"train_last_step": False}),
    ],
    ids=str,
)
def test_counts_are_those_of_real_tensors(config, name, changes):
    c = config(name, **changes)
    costs, policy = measure(c), load_policy(c)
    for network, (weights, size) in costs.networks.items():
        module = getattr(policy.pipeline, network)
        assert weights == sum(p.numel() for p in module.parameters())
        assert size == pytest.approx(sum(t.nbytes for t in (*module.parameters(), *module.buffers())), rel=1e-3)
    assert costs.trained == sum(p.numel() for p in policy.parameters)
    conditions = policy.encode(["cat"])
    assert costs.conditions == sum(x.nbytes for x in conditions)
    for p in policy.parameters:
        p.grad = torch.zeros_like(p)
    if policy.branches == 2:
        policy._null_conditions()

    def arguments(n):
        latents = torch.zeros(n, *policy.latent_shape, dtype=policy.latent_dtype)
        return latents, torch.zeros(n, dtype=torch.int64), policy.encode(["cat"] * n)

    def train(n):
        policy.predict(*arguments(n)).sum().backward()

    def decode_with_gradient(n):
        policy.decode(arguments(n)[0].requires_grad_(), gradient=True).sum().backward()

    real = {"training": line(train), "decoding": line(lambda n: policy.decode(arguments(n)[0]))}
    real["gradient_decoding"] = line(decode_with_gradient)
    for phase, (fixed, each) in real.items():
        counted = getattr(costs, phase)
        for n in (2, 16):
            assert counted[0] + n * counted[1] == pytest.approx(fixed + n * each, rel=0.1), phase
    if "gradient_checkpointing" in changes:
        assert costs.training[1] < 0.85 * measure(config(name)).training[1]
    if "guidance" in changes:
        assert costs.training[1] > 1.6 * measure(config(name)).training[1]
    if "vae_slicing" in changes:
        assert costs.decoding[1] < 0.2 * measure(config(name)).decoding[1]


def test_captions_are_counted_at_their_longest(config):
    """Z-Image's network takes no more tokens than a prompt has."""
    c = config("z-image")
    policy = load_policy(c)

    def sampling(prompt):
        conditions = policy.encode([prompt])
        with torch.no_grad():
            return line(
                lambda n: policy.predict(
                    torch.zeros(n, *policy.latent_shape),
                    torch.zeros(n),
                    tuple(x.expand(n, *x.shape[1:]) for x in conditions),
                )
            )

    longest, counted = sampling("a" * 600), measure(c).sampling
    assert sum(counted) == pytest.approx(sum(longest), rel=0.1)
    assert sum(counted) > 2 * sum(sampling("cat"))


@pytest.mark.parametrize(
    ("method", "dense"), [("sdpo", "anchored"), ("sdpo", "exact"), ("sdpo", "terminal"), ("ddpo", "anchored")]
)
@pytest.mark.parametrize("steps", [2, 5])
def test_pictures_of_an_epoch_are_the_trainers(config, method, dense, steps):
    c = config("sd", method=method, dense=dense, steps=steps)
    trainer = Trainer(c, load_policy(c), load_reward(c.reward))
    assert trainer.train_epoch(1).to_row()["reward_queries"] == pictures_of_an_epoch(c)


COSTS = Costs("", {"unet": (10, 1000)}, 7, 500, 30, 64, 48, (10, 100), (20, 40), (30, 60), (50, 500), 1)


def test_estimate_by_hand(config):
    c = config("sd", rows=6, steps=5, method="ddpo", eval_noises=1, eval_splits=("unseen",))
    found = estimate(COSTS, c)
    trajectories = 8 * 11 * 64
    assert found.staying == {
        "unet": 1000,
        "copy of the pretrained weights": 500,
        "gradients, AdamW": 7 * ADAM,
        "prompts": 12 * 30,
        "trajectories": trajectories,
    }
    assert found.passing == {
        "training step, 4 latents": 410,  # two pairs an update, though three would fit
        "sampling, 6 latents": 260,
        "decoding, 6 at a time": 390 + 2 * 8 * 48,
        "optimiser step": 28,
        "sampling's end": trajectories,
    }
    compared = config(
        "sd", rows=6, steps=5, method="ddpo", eval_noises=2, eval_splits=("unseen",), eval_last_rewards=("kid_start",)
    )
    assert estimate(COSTS, compared).passing["decoding, 6 at a time"] == 390 + 3 * 8 * 48
    assert found.peak == 1000 + 500 + 84 + 360 + 2 * trajectories
    host = estimate(COSTS, config("sd", rows=6, steps=5, offload_trajectories=True))
    assert host.host == {"trajectories": 2 * trajectories}
    assert "trajectories" not in host.staying
    assert "training step, 2 latents" in estimate(COSTS, config("sd", rows=1)).passing  # a pair is never parted


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("draft", {}, 410 + 2050),
        ("draft", {"last_steps": 0}, 5 * 410 + 2050),  # all five
        ("draft", {"noisings": 3}, 3 * (410 + 2050)),
        ("rtdmd_lite", {}, 410 + 2050),
    ],
)
def test_the_rewards_gradient_keeps_the_decoders_graph(config, method, options, expected):
    c = config("sd", rows=6, steps=5, method=method, options=options, reward="colourfulness", group_size=4)
    assert estimate(COSTS, c).passing["the reward's gradient, 4 latents"] == expected


@pytest.mark.parametrize(("dtype", "each"), [("float32", 1), ("float16", 2)])
def test_kept_outputs_are_float32(config, dtype, each):
    """Of the trained steps, beside a trajectory's latents, which have the size that COSTS gives in either dtype."""
    c = config("sd", steps=5, method="grpo_guard", group_size=4, train_last_step=False, dtype=dtype)
    assert estimate(COSTS, c).staying["trajectories"] == 16 * (11 + 4 * each) * 64


def test_largest_rows(config):
    c = config("sd", rows=12, offload_trajectories=True)
    memory = estimate(COSTS, RunConfig(**vars(c) | {"rows": 7})).peak
    assert largest_rows(COSTS, c, memory) == 7
    assert largest_rows(COSTS, c, 1e9) == 12
    assert largest_rows(COSTS, c, 100) is None


def test_sd_turbos_size(tmp_path):
    """Its architecture: 865.9 M weights; a latent's training step takes what was counted on it."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16
    )
    unet.save_config(tmp_path / "unet")
    vae.save_config(tmp_path / "vae")
    text.save_pretrained(tmp_path / "text_encoder")
    EulerDiscreteScheduler(steps_offset=1).save_pretrained(tmp_path / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    costs = measure(RunConfig(model=str(tmp_path), dtype="float16"))
    assert costs.networks["unet"][0] - costs.trained == 865_910_724
    assert costs.trained == 829_952
    assert 0.7 < costs.training[1] / 2**30 < 1.0


def test_doctor(config, tmp_path, capsys):
    model = config("sd").model
    assert main(["doctor", "--model", model, "--memory", "1"]) == 0
    out = capsys.readouterr().out
    assert "training step, 32 latents" in out
    assert "fits: 0." in out
    small = ["doctor", "--model", model, "--dtype", "float16", "--memory"]
    c = RunConfig(model=model, dtype="float16")
    peak = estimate(measure(c), c).peak / 2**30 / SHARE
    assert main([*small, f"{1.001 * peak}"]) == 0
    assert main([*small, f"{0.999 * peak}"]) == 1
    assert "    it fits with --rows " in capsys.readouterr().out
    assert main([*small, "0.0001", "--vae-slicing"]) == 1
    assert (
        "not fit with --rows 1 either; try --offload-trajectories --gradient-checkpointing" in capsys.readouterr().out
    )
    for arguments, message in (
        (["--rows", "3"], "--rows needs --model"),
        (["--model", model, "--memory", "-1"], "--memory is -1"),
        (["--model", model, "--method", "ppo"], "unknown method"),
    ):
        assert main(["doctor", *arguments]) == 2
        assert message in capsys.readouterr().err
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "vae" / "config.json").unlink()
    with pytest.raises(UserError, match="check that the folder is complete"):
        measure(config("sd", model=str(broken)))


def test_doctor_needs_no_weights(config, tmp_path, monkeypatch):
    folder = tmp_path / "configs"
    shutil.copytree(config("sd3").model, folder)
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", None)
    assert measure(config("sd3", model=str(folder))) == measure(config("sd3"))
