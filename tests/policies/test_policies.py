"""The policy against diffusers' own pipeline."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.policies import load_policy
from sdpo_bench.policies.base import LORA_TARGETS
from sdpo_bench.training.evaluation import pictures
from sdpo_bench.training.sampling import derive_seeds, sample


@pytest.fixture(scope="module")
def config(tiny_model):
    return RunConfig(model=str(tiny_model), device="cpu")


def test_pictures_are_the_pipelines(config, tiny_model):
    """One step from the same initial noise: text encoder, UNet, coefficients and VAE as diffusers puts them together.

    With alpha = 1 after the last step, diffusers' last latent is the predicted clean one.
    """
    policy = load_policy(config)
    seeds = derive_seeds(3, count=2)
    trajectory = sample(policy, ["cat", "a dog"], steps=1, initial_seeds=seeds, step_seeds=seeds[:, None])
    ours = policy.decode(trajectory.predicted_clean[:, 0, -1])
    plain = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    plain.set_progress_bar_config(disable=True)
    plain.scheduler = DDIMScheduler.from_config(plain.scheduler.config, set_alpha_to_one=True, clip_sample=False)
    theirs = plain(
        ["cat", "a dog"],
        latents=trajectory.latents[:, 0, 0],
        num_inference_steps=1,
        guidance_scale=0.0,
        output_type="pt",
    ).images
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_steps_without_noise_are_the_samplers_at_eta_0(config):
    policy = load_policy(config)
    noisy, quiet = (policy.schedule(4, eta=eta).table for eta in (1.0, 0.0))
    table = policy.schedule(4, eta=1.0, trained_steps=3, noisy_steps=(1, 2)).table
    assert torch.equal(table, torch.stack([quiet[0], noisy[1], noisy[2], quiet[3]]))
    lcm = load_policy(replace(config, sampler="lcm"))
    with pytest.raises(UserError, match=r"--sampler lcm has no steps without noise.*choose ddim"):
        lcm.schedule(4, eta=1.0, noisy_steps=())


def test_pictures_differ_by_prompt_noise_and_steps(config):
    policy = load_policy(config)
    first = pictures(policy, ["cat", "dog"], [0, 1], 2, config)
    assert first.shape[0] == 4
    assert 0 <= first.min() <= first.max() <= 1
    for i in range(4):
        for j in range(i):
            assert not torch.equal(first[i], first[j])
    assert not torch.equal(first, pictures(policy, ["cat", "dog"], [0, 1], 3, config))
    assert torch.equal(first, pictures(policy, ["cat", "dog"], [0, 1], 2, config))


def test_rank_and_alpha_are_the_files(config, tmp_path):
    """Whatever the policy's own are; given ones only have to agree."""
    saved = load_policy(replace(config, lora_rank=2, lora_alpha=8))
    with torch.no_grad():
        for p in saved.parameters:
            p += 0.1
    saved.save(tmp_path)
    policy = load_policy(config)
    policy.load(tmp_path, rank=2, alpha=8)
    assert policy.denoiser.peft_config["default"].lora_alpha == 8
    arguments = (policy.encode(["cat"]), torch.ones(1, *policy.latent_shape), torch.tensor([500]))
    outputs = [p.predict(*arguments[1:], arguments[0]) for p in (policy, saved)]
    assert torch.equal(*outputs)
    for given, message in (
        ((4, None), "--lora-rank is 4, but .* holds an adapter with 2"),
        ((None, 4.0), "--lora-alpha is 4, but .* with 8; leave it out"),
    ):
        with pytest.raises(UserError, match=message):
            load_policy(config).load(tmp_path, *given)


def test_an_adapters_file_is_the_same_in_every_process(config, tmp_path):
    """Python iterates over a set of texts in an order of each process; the file keeps which layers were adapted. But
    safetensors itself writes the entries of its metadata in any order."""
    code = (
        "import sys; from pathlib import Path; from sdpo_bench.config import RunConfig\n"
        "from sdpo_bench.policies import load_policy\n"
        "load_policy(RunConfig(model=sys.argv[1], device='cpu')).save(Path(sys.argv[2]))"
    )
    found = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", code, config.model, str(folder)],
            check=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        (file,) = folder.glob("*.safetensors")
        content = file.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        found.append((json.loads(content[8:end]), content[end:]))
    assert found[0] == found[1]
    metadata = json.loads(found[0][0]["__metadata__"]["lora_adapter_metadata"])
    assert metadata["unet.target_modules"] == sorted(LORA_TARGETS)


def test_damaged_weights_are_refused(config, tmp_path):
    load_policy(config).save(tmp_path)
    next(tmp_path.glob("*.safetensors")).write_bytes(b"no weights")
    with pytest.raises(UserError, match="damaged or another model's"):
        load_policy(config).load(tmp_path)


def test_rows_bound_the_forward_pass(config):
    policy = load_policy(replace(config, rows=2))
    rows = []
    policy._in_chunks(lambda x: rows.append(len(x)) or x, torch.zeros(5, 1))
    assert rows == [2, 2, 2]  # the last is padded


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_cuda_without_a_gpu_is_refused(tiny_model):
    with pytest.raises(UserError, match="finds no CUDA device"):
        load_policy(RunConfig(model=str(tiny_model), device="cuda"))


def test_a_backend_that_can_not_run_is_refused_before_anything_else(monkeypatch):
    """As SDPO_KERNELS_BACKEND names it."""
    for name, message in (("triton", "needs CUDA tensors, and the device is cpu"), ("gpu", "'gpu' does not exist")):
        monkeypatch.setattr("sdpo_kernels._backend._current", name)
        with pytest.raises(UserError, match=message):
            load_policy(RunConfig(device="cpu"))
