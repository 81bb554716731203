"""Every family end to end on tiny random models, against diffusers' own pipelines and schedulers."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from itertools import count, product

import pytest
import sdpo_kernels
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    TCDScheduler,
    UNet2DConditionModel,
)
from support.tiny import MODELS, SIZES, write_model

from sdpo_bench.cli.main import main
from sdpo_bench.config import NOISE_LEVELS, RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.policies import FAMILIES, load_policy
from sdpo_bench.policies.flux import pack, unpack
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.reader import load_run
from sdpo_bench.rewards import load_reward
from sdpo_bench.training.loop import train
from sdpo_bench.training.memory_estimate import measure
from sdpo_bench.training.sampling import derive_seeds, sample
from sdpo_bench.training.trainer import Trainer

PROMPTS = ["cat", "a dog"]
FAMILY_MODELS = ["sd", "sdxl", "sd3", "flux"]  # one of each
CHAT_MODELS = ["z-image", "flux-2-klein"]  # their texts are read by a chat model
TRAINED = [*product(FAMILY_MODELS, ["sdpo", "ddpo"]), *((name, "sdpo") for name in CHAT_MODELS)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    (folder / "seen").write_text("cat\na dog\nhorse\n")
    (folder / "unseen").write_text("wolf\n")
    return folder


@pytest.fixture(scope="module")
def config(root):
    def of(name, **changes):
        own = {
            "model": str(write_model(root, name)),
            "resolution": SIZES.get(name),
            "reward": "colourfulness",
            "eval_rewards": (),
            "prompts": str(root / "seen"),
            "unseen_prompts": str(root / "unseen"),
            "epochs": 2,
            "pairs": 4,
            "pairs_per_update": 2,
            "eval_start": False,
            "eval_noises": 1,
            "learning_rate": 3e-3,
            "steps": 3,
            "eval_steps": (1, 2, 4, 8, 16, 50),
            "device": "cpu",
        }
        return RunConfig(**own | changes)

    return of


def plain_pictures(config, steps, latents, adapter=None, **options):
    """Pictures of PROMPTS by diffusers' pipeline, DDIM with eta = 0 or the Euler step of the flow, from x_T."""
    pipeline = DiffusionPipeline.from_pretrained(config.model, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    kind = type(pipeline).__name__
    if adapter is not None:
        pipeline.load_lora_weights(adapter)
    if hasattr(pipeline, "unet"):
        pipeline.scheduler = DDIMScheduler.from_config(
            pipeline.scheduler.config, set_alpha_to_one=True, clip_sample=False
        )
    if config.resolution is not None:
        options |= {"height": config.resolution, "width": config.resolution}
    if kind == "FluxPipeline":
        options["max_sequence_length"] = 512 if pipeline.transformer.config.guidance_embeds else 256
        latents = pipeline._pack_latents(latents, *latents.shape)
        if not pipeline.transformer.config.guidance_embeds:
            options |= {"true_cfg_scale": config.guidance, "negative_prompt": [""] * len(PROMPTS)}
    if kind == "SanaSprintPipeline":
        options |= {"use_resolution_binning": False, "intermediate_timesteps": 1.3 if steps == 2 else None}
        options |= {"height": 32, "width": 32}
    guidance = config.guidance - (kind == "ZImagePipeline")  # whose 0 is none
    return pipeline(
        prompt=[*PROMPTS],
        latents=latents,
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="pt",
        **options,
    ).images


def our_pictures(policy, steps):
    seeds = derive_seeds(3, count=len(PROMPTS))
    result = sample(policy, PROMPTS, steps=steps, initial_seeds=seeds, step_seeds=seeds[:, None], eta=0.0)
    return policy.decode(result.predicted_clean[:, 0, -1]), result.latents[:, 0, 0]


def without_noise(config, **changes):
    policy = load_policy(dataclasses.replace(config, **changes))
    policy.noise_level = 0.0  # DDIM's is eta, which `our_pictures` sets
    return policy


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("name", MODELS)
def test_pictures_are_the_pipelines(config, name, guidance):
    """Text encoders, null prompt, network, schedule, shift and VAE as diffusers puts them together."""
    c = config(name, guidance=guidance)
    policy = without_noise(c)
    ours, start = our_pictures(policy, 4)
    theirs = plain_pictures(c, 4, start)
    assert ours.shape == theirs.shape == (2, 3, 16, 16)
    assert torch.allclose(ours, theirs, atol=2e-4)
    if guidance != 1:
        other, _ = our_pictures(without_noise(c, guidance=1.0), 4)
        assert (ours - other).abs().max() > 1e-2
    assert policy.branches == (2 if guidance != 1 and name != "flux-dev" else 1)
    encoded = policy.encode(PROMPTS)
    assert [tuple(x.shape[1:]) for x in encoded] == policy.condition_shapes
    assert not torch.equal(encoded[0][0], encoded[0][1])


@pytest.mark.parametrize("sampler", ["flow_cps", "dance_sde"])
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_without_noise_every_sampler_of_flows_is_the_pipelines(config, name, sampler):
    c = config(name)
    ours, start = our_pictures(without_noise(c, sampler=sampler), 4)
    assert torch.allclose(ours, plain_pictures(c, 4, start), atol=2e-4)


@pytest.mark.parametrize(("name", "method"), TRAINED)
def test_trains_evaluates_and_saves_what_diffusers_loads(config, tmp_path, name, method):
    steps = (1, 4) if name in CHAT_MODELS else (1, 2, 4, 8, 16, 50)
    c = config(name, method=method, eval_steps=steps)
    folder = tmp_path / run_id(c.to_json())
    train(c, folder)
    record = load_run(folder)
    assert record.train[0]["on_policy_log_ratio"] == 0.0
    assert len(record.train) == 2
    assert tuple(row["steps"] for row in record.eval if row["epoch"] == 2) == steps
    # The adapter in a policy of ours and in diffusers: the same pictures, other ones than without it.
    policy = without_noise(c)
    before, start = our_pictures(policy, 4)
    policy.load(folder / "adapter")
    after, _ = our_pictures(policy, 4)
    theirs = plain_pictures(c, 4, start, folder / "adapter")
    assert torch.allclose(after, theirs, atol=2e-4)
    assert (after - before).abs().max() > 1e-3
    with policy.reference():
        assert torch.equal(our_pictures(policy, 4)[0], before)


@pytest.mark.parametrize("name", [*FAMILY_MODELS, "z-image"])
def test_full_finetuning_saves_a_pipeline(config, tmp_path, name):
    c = config(name, finetune="full")
    policy = load_policy(c)
    trainer = Trainer(c, policy, load_reward(c.reward))
    assert trainer.check_on_policy(1) == 0.0
    trainer.train_epoch(1).to_row()
    policy.noise_level = 0.0
    policy.save(tmp_path)
    after, start = our_pictures(policy, 2)
    assert torch.allclose(after, plain_pictures(dataclasses.replace(c, model=str(tmp_path)), 2, start), atol=2e-4)
    again = without_noise(c)
    assert not torch.equal(our_pictures(again, 2)[0], after)
    again.load(tmp_path)
    assert torch.equal(our_pictures(again, 2)[0], after)


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance": 3.0},
        {"sampler": "euler_ancestral", "train_last_step": False},
        {"sampler": "lcm", "train_last_step": False},
        {"sampler": "tcd", "train_last_step": False},
        {"sampler": "flow_cps", "train_last_step": False},
        {"sampler": "dance_sde"},
        {"gradient_checkpointing": True},
        {"offload_trajectories": True},
        {"vae_slicing": True},
        {"channels_last": True},
        {"rows": 2},
        {"resolution": 12},
        {"guidance": 2.0, "rows": 3},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()),
)
@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_options_train_on_policy(config, name, changes):
    """With every option the unchanged policy's log-ratio is 0; those that only save memory change no result."""
    c = config(name, **changes)
    other = {"euler_ancestral": "sd3", "lcm": "sd3", "tcd": "sd3", "flow_cps": "sd", "dance_sde": "sd"}
    if other.get(changes.get("sampler")) == name or (name == "sd3" and "channels_last" in changes):
        with pytest.raises(UserError, match=r"expected (flow_sde|ddim) or|has a transformer"):
            load_policy(c)
        return
    policy = load_policy(c)
    convolutions = [m for m in policy.denoiser.modules() if isinstance(m, torch.nn.Conv2d) and m.weight.shape[1] > 1]
    last = [m.weight.is_contiguous(memory_format=torch.channels_last) and m.kernel_size != (1, 1) for m in convolutions]
    assert any(last) == ("channels_last" in changes)
    trainer = Trainer(c, policy, load_reward(c.reward))
    assert trainer.check_on_policy(1) == 0.0
    row = trainer.train_epoch(1).to_row()
    assert row["log_ratio_max"] > 0
    assert row["model_evaluations"] == policy.branches * 4 * (1 + 2 * 2 + (1 + 2 * (c.trained_steps - 1)))
    plain = Trainer(config(name), load_policy(config(name)), load_reward(c.reward))
    expected = plain.train_epoch(1).to_row()
    same = changes.keys().isdisjoint({"guidance", "sampler", "resolution"})
    difference = abs(row["loss"] / expected["loss"] - 1)
    assert difference < 1e-2 if same else difference > 1e-2
    if "offload_trajectories" in changes:
        assert {k: v for k, v in row.items() if k != "seconds"} == {k: v for k, v in expected.items() if k != "seconds"}


def test_a_prompts_numbers_are_its_own(config):
    """Z-Image's network fills captions up to the longest of a batch: here none depends on another one's length."""
    policy = load_policy(config("z-image"))
    prompts = ["cat", "a dog in the rain that looks up to a bird", "horse", "a" * 80]
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(4, *policy.latent_shape, generator=generator), torch.full((4,), 700.0)
    with torch.no_grad():
        together = policy.predict(x, t, policy.encode(prompts))
        for i, prompt in enumerate(prompts):
            assert torch.equal(policy.predict(x[i : i + 1], t[:1], policy.encode([prompt])), together[i : i + 1])
        pipelines = policy.pipeline.transformer(
            list(x.unsqueeze(2)), (1000 - t) / 1000, policy.pipeline.encode_prompt([*prompts])[0], return_dict=False
        )[0]
    assert policy.encode(prompts)[1].sum(1).tolist() == [17, 55, 19, 94]
    assert torch.allclose(together, -torch.stack(pipelines).squeeze(2), atol=1e-5)


@pytest.fixture
def pipelines_noise(monkeypatch):
    """SCMScheduler draws the noise of these samples' steps."""
    from diffusers.schedulers import scheduling_scm

    def of(seeds):
        steps = count()
        draw = lambda shape, **_: sdpo_kernels.normal(seeds, tuple(shape[1:]), next(steps))  # noqa: E731
        monkeypatch.setattr(scheduling_scm, "randn_tensor", draw)

    return of


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_sana_sprint_is_the_pipelines(config, pipelines_noise, guidance, steps):
    """Its steps always draw noise: with the same noise, the same pictures."""
    c = config("sana-sprint", guidance=guidance, train_last_step=False)
    policy = load_policy(c)
    ours, start = our_pictures(policy, steps)
    pipelines_noise(derive_seeds(3, count=len(PROMPTS)))
    theirs = plain_pictures(c, steps, start)
    assert ours.shape == theirs.shape == (2, 3, 32, 32)
    assert torch.allclose(ours, theirs, atol=2e-4)
    assert policy.branches == 1
    assert [tuple(x.shape[1:]) for x in policy.encode(PROMPTS)] == policy.condition_shapes


def test_sana_sprint_trains(config, tmp_path, pipelines_noise):
    c = config("sana-sprint", guidance=4.5, train_last_step=False, eval_steps=(1, 2))
    folder = tmp_path / run_id(c.to_json())
    train(c, folder)
    record = load_run(folder)
    assert record.train[0]["on_policy_log_ratio"] == 0.0
    policy = load_policy(c)
    before, start = our_pictures(policy, 2)
    policy.load(folder / "adapter")
    after, _ = our_pictures(policy, 2)
    pipelines_noise(derive_seeds(3, count=len(PROMPTS)))
    assert torch.allclose(after, plain_pictures(c, 2, start, folder / "adapter"), atol=2e-4)
    assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sana-sprint", {"sampler": "ddim"}, "--sampler ddim is not one for a SanaSprintPipeline; expected scm"),
        ("sana-sprint", {"resolution": 33}, "--resolution is 33; expected a multiple of 2"),
        ("flux-2-klein-distilled", {"guidance": 2.0}, "--guidance is 2, but this model is distilled to need none"),
        ("flux-2-klein", {"resolution": 18}, "--resolution is 18; expected a multiple of 4"),
        ("z-image", {"resolution": 18}, "--resolution is 18; expected a multiple of 4"),
    ],
)
def test_what_newer_families_refuse(config, name, changes, message):
    """Also before any weights are read, for `doctor`."""
    for refuse in (load_policy, measure):
        with pytest.raises(UserError, match=re.escape(message)):
            refuse(config(name, **changes))


def test_consistency_models_have_no_steps_without_noise(config):
    policy = load_policy(config("sana-sprint", train_last_step=False))
    with pytest.raises(UserError, match=r"scm has no steps without noise, .* a SanaSprintPipeline has no other"):
        policy.schedule(4, eta=1.0, noisy_steps=[0])


def test_rows_count_both_branches(config):
    policy = load_policy(config("sd", guidance=2.0, rows=4))
    seen = []
    original = policy._denoise
    policy._denoise = lambda x, *rest: seen.append(len(x)) or original(x, *rest)
    our_pictures(policy, 1)
    assert seen == [4]  # two latents, and as many for the null prompt
    assert policy.passes == (4, 0)


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [
        ("euler_ancestral", EulerAncestralDiscreteScheduler),
        ("lcm", LCMScheduler),
        ("tcd", TCDScheduler),
    ],
)
def test_other_samplers_are_the_schedulers(config, monkeypatch, sampler, kind):
    """A loop with diffusers' scheduler, its noise replaced by ours."""
    policy = load_policy(config("sd", sampler=sampler))
    seeds = derive_seeds(4, count=1)
    ours = sample(policy, ["cat"], steps=4, initial_seeds=seeds, step_seeds=seeds[:, None])
    module = __import__(kind.__module__, fromlist=["randn_tensor"])
    k = 0
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: sdpo_kernels.normal(seeds, tuple(shape[1:]), k))
    scheduler = kind.from_config(policy.pipeline.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(4)
    noise = sdpo_kernels.normal(seeds, policy.latent_shape, 1 << 20)
    x = noise * scheduler.init_noise_sigma
    (embeddings,) = policy.encode(["cat"])
    for k, t in enumerate(scheduler.timesteps):
        assert torch.allclose(ours.latents[:, 0, k], x, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            m = policy.denoiser(scheduler.scale_model_input(x, t), t, embeddings, return_dict=False)[0]
        x = scheduler.step(m, t, x, return_dict=False)[0]
    assert torch.allclose(ours.latents[:, 0, 4], x, rtol=1e-4, atol=1e-4)
    if sampler == "euler_ancestral":
        assert (policy.schedule(4, eta=1.0).input_scale < 1).all()


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("sd", "ddim"),
        ("sd", "euler_ancestral"),
        ("sd", "lcm"),
        ("sd", "tcd"),
        ("sd3", "flow_sde"),
        ("sd3", "flow_cps"),
        ("sd3", "dance_sde"),
    ],
)
def test_schedules_are_float32_and_hold_the_levels(config, name, sampler):
    schedule = load_policy(config(name, sampler=sampler)).schedule(4, eta=1.0)
    for field in ("table", "input_scale", "signal_scale", "noise_scale"):
        assert getattr(schedule, field).dtype == torch.float32
    assert schedule.timesteps.dtype == (torch.float32 if name == "sd3" else torch.int64)
    signal, noise = schedule.signal_scale, schedule.noise_scale
    total = signal + noise if name == "sd3" else signal**2 + noise**2
    total = signal if sampler == "euler_ancestral" else total
    assert torch.allclose(total, torch.ones(4))
    assert (noise.diff() < 0).all()


@pytest.mark.parametrize("option", ["clip_sample", "thresholding"])
@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral", "lcm", "tcd"])
def test_a_file_that_asks_to_clip_is_refused_with_every_sampler(config, sampler, option):
    """A clipped step is not linear. Whatever class the file names, also one that does not read the option."""
    policy = load_policy(config("sd", sampler=sampler))
    own = policy.pipeline.scheduler
    for kind in (DDIMScheduler, type(own), LCMScheduler):
        policy.pipeline.scheduler = kind.from_config({**own.config, "clip_sample": False, option: True})
        with pytest.raises(UserError, match=f"the scheduler's {option} is on, but a clipped step is not linear"):
            policy.schedule(4, eta=1.0)


def test_schedulers_of_another_kind_of_model_are_refused(config):
    flow, betas = (load_policy(config(name)).pipeline.scheduler for name in ("sd3", "sd"))
    for name, scheduler, sampler in (("sd", flow, "ddim"), ("sd", flow, "euler_ancestral"), ("sd3", betas, "auto")):
        policy = load_policy(config(name, sampler=sampler))
        policy.pipeline.scheduler = scheduler
        with pytest.raises(UserError, match=f"the scheduler is a {type(scheduler).__name__}"):
            policy.schedule(4, eta=1.0)


def test_last_steps_without_noise_are_refused_where_trained(config):
    for name, sampler in (("sd", "euler_ancestral"), ("sd", "lcm"), ("sd", "tcd"), ("sd3", "flow_cps")):
        c = config(name, sampler=sampler)
        with pytest.raises(UserError, match="--no-train-last-step"):
            Trainer(c, load_policy(c), load_reward(c.reward))
    c = config("sd3", noise_level=0.0)
    with pytest.raises(UserError, match="sigma = 0"):
        Trainer(c, load_policy(c), load_reward(c.reward))


def test_pack_and_unpack_are_inverse():
    x = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    assert torch.equal(unpack(pack(x), 4, 6), x)
    assert pack(x).shape == (2, 6, 12)


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("sd", {"tokenizer": 16}),
        ("sdxl", {"tokenizer": 16, "tokenizer_2": 16}),
        ("sd3", {"tokenizer": 16, "tokenizer_2": 16, "tokenizer_3": 256}),
        ("flux", {"tokenizer": 16, "tokenizer_2": 256}),
        ("flux-dev", {"tokenizer": 16, "tokenizer_2": 512}),
    ],
)
def test_prompts_beyond_a_text_encoders_length_are_counted(config, name, limits):
    """The limits are those at which the conditions stop to change, letter by letter."""
    policy = load_policy(config(name))
    assert policy.token_limits == limits
    assert policy.too_long(["cat", "a dog"]) == ""
    fits = "abcdefghijklmn"  # two tokens more begin and end it
    assert policy.too_long([fits]) == ""
    found = policy.too_long([fits + "o", fits + "op", fits, fits + "o"])
    both = ", ".join(f"2 of 3 at 16 tokens by the {key}" for key in limits if limits[key] == 16)
    assert found == f"prompts are cut: {both}; what follows there has no effect on the picture"
    assert "3 of 3 at 16 tokens" in policy.too_long(["x" * n for n in (255, 511, 512)])
    if max(limits.values()) > 16:
        last = max(limits)
        n = limits[last]
        (kept, cut) = ("a" * (n - 2), "a" * (n - 1))  # a beginning and an end
        assert last not in policy.too_long([kept])
        assert f"1 of 2 at {n} tokens by the {last};" in policy.too_long([cut, kept])
        a, b, c = (policy.encode([prompt])[0] for prompt in (cut + "a", cut + "b", kept[:-1] + "b"))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_line_says_that_prompts_are_cut(config, tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seen").write_text("cat\n" + "long " * 20 + "red\n" + "long " * 20 + "blue\n")
    common = ["--model", config("sd").model, "--prompts", "seen", "--device", "cpu", "--eval-noises", "1"]
    rest = {
        "train": ["--reward", "colourfulness", "--eval-rewards", "--epochs", "0", "--eval-steps", "1"],
        "evaluate": ["--rewards", "colourfulness", "--eval-steps", "1"],
    }
    assert main([command, *common, *rest[command]]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(lines) == 1
    assert lines[0].startswith("warning: prompts are cut: 2 of 3 at 16 tokens by the tokenizer; what follows")


# Half precision


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_half_precision(config, name, dtype):
    """The frozen weights are halves, the adapter is not, log-ratios of the unchanged policy are 0 on a CPU."""
    c = config(name, dtype=dtype)
    policy = load_policy(c)
    assert {p.dtype for p in policy.parameters} == {torch.float32}
    frozen = {p.dtype for p in policy.denoiser.parameters() if not p.requires_grad}
    assert frozen == {getattr(torch, dtype)}
    assert policy.pipeline.vae.dtype == (torch.float32 if (name, dtype) == ("sdxl", "float16") else frozen.pop())
    trainer = Trainer(c, policy, load_reward(c.reward))
    trajectory = trainer.sample(trainer.plan(1))
    assert trajectory.latents.dtype == (torch.float16 if dtype == "float16" else torch.float32)
    assert trajectory.log_prob.dtype == trainer.predict(trajectory, *(torch.arange(1),) * 2).dtype == torch.float32
    assert trainer.check_on_policy(1) == 0.0
    row = trainer.train_epoch(1).to_row()
    assert row["log_ratio_max"] > 0
    full = Trainer(config(name), load_policy(config(name)), load_reward(c.reward))
    assert row["reward_mean"] == pytest.approx(full.train_epoch(1).to_row()["reward_mean"], rel=0.1)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_gradients_in_float16_are_those_in_float32(config, name):
    """Small ones too, which would be 0 without being scaled; the second is a hundred times smaller."""
    for size in (1.0, 1e-2):
        gradients = {}
        for dtype in ("float32", "float16"):
            policy = load_policy(config(name, dtype=dtype))
            with torch.no_grad():
                for i, p in enumerate(policy.parameters):
                    p += 0.05 * sdpo_kernels.normal(torch.tensor([i]), tuple(p.shape))[0]
            latents = sdpo_kernels.normal(torch.arange(16), policy.latent_shape).to(policy.latent_dtype)
            out = policy.predict(latents, torch.full((16,), 500), policy.encode(["cat"] * 16))
            weight = size / 256  # of a mean over the latent
            (out * sdpo_kernels.normal(torch.arange(16, 32), policy.latent_shape)).sum().mul(weight).backward()
            gradients[dtype] = torch.cat([p.grad.flatten() for p in policy.parameters])
        exact, half = gradients["float32"], gradients["float16"]
        assert (half - exact).norm() < 0.02 * exact.norm()
        assert (half == 0).float().mean() < (exact == 0).float().mean() + 0.05


def test_full_finetuning_in_half_precision_is_refused(config):
    with pytest.raises(UserError, match=r"--finetune full.*--dtype float32"):
        config("sd", finetune="full", dtype="bfloat16")


def test_compile(config, monkeypatch):
    """The denoiser is compiled, and gives the same output (here without a code generator)."""
    real, compiled = torch.compile, []

    def capture(function, **options):
        compiled.append(function)
        return real(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", capture)
    eager, policy = load_policy(config("sd")), load_policy(config("sd", compile=True))
    assert len(compiled) == 1
    assert torch.allclose(our_pictures(policy, 2)[0], our_pictures(eager, 2)[0], atol=1e-5)
    assert policy.state_dict().keys() == eager.state_dict().keys()  # no wrapper in the names
    load_policy(config("sd", compile=True, finetune="full"))
    assert len(compiled) == 3  # the reference too


# A frozen adapter


def trained_adapter(config, folder):
    policy = load_policy(config)
    with torch.no_grad():
        for i, p in enumerate(policy.parameters):
            p += 0.3 * sdpo_kernels.normal(torch.tensor([100 + i]), tuple(p.shape))[0]
    policy.save(folder)
    return folder


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_a_frozen_adapter_is_part_of_the_model(config, tmp_path, name):
    c = config(name)
    distilled = trained_adapter(c, tmp_path / "distilled")
    file = next(distilled.glob("*.safetensors"))
    with_folder, with_file = (without_noise(c, adapter=str(path)) for path in (distilled, file))
    ours, start = our_pictures(with_folder, 2)
    assert torch.allclose(ours, plain_pictures(c, 2, start, distilled), atol=2e-4)
    assert torch.equal(ours, our_pictures(with_file, 2)[0])
    without, _ = our_pictures(without_noise(c), 2)
    assert (ours - without).abs().max() > 1e-3
    with with_folder.reference():
        assert torch.equal(our_pictures(with_folder, 2)[0], ours)
    # Only the new adapter is trained and saved.
    fresh = load_policy(c)
    assert sum(p.numel() for p in with_folder.parameters) == sum(p.numel() for p in fresh.parameters)
    assert with_folder.state_dict().keys() == fresh.state_dict().keys()


def test_adapters_that_do_not_fit_are_named(config, tmp_path):
    of_sd3 = trained_adapter(config("sd3"), tmp_path / "sd3")
    for adapter, message in (
        (of_sd3, r"another model's: it has .*lora_A.weight, and this one no layer"),
        (tmp_path / "nothing", "--adapter .*nothing does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            load_policy(config("sd", adapter=str(adapter)))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("owner/name", ("owner/name", {"revision": None})),
        ("owner/name@abc", ("owner/name", {"revision": "abc"})),
        (
            "owner/name/sub/file.safetensors@abc",
            ("owner/name", {"revision": "abc", "weight_name": "sub/file.safetensors"}),
        ),
    ],
)
def test_adapters_on_the_hub(config, monkeypatch, spec, expected):
    asked = []

    def load(self, source, **options):
        asked.append((source, {k: v for k, v in options.items() if k != "return_lora_metadata"}))
        raise OSError("no network")

    monkeypatch.setattr(StableDiffusionPipeline, "lora_state_dict", load)
    with pytest.raises(UserError, match=r"can't be loaded \(no network\); check id, file, revision and network"):
        load_policy(config("sd", adapter=spec))
    assert asked == [expected]


# Names


def test_a_class_that_is_not_supported_is_named_with_those_that_are(config, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    with pytest.raises(UserError, match=f"is a KandinskyPipeline; supported are {', '.join(FAMILIES)}"):
        load_policy(config("sd", model=str(tmp_path)))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(UserError, match="check that the folder is complete"):
        load_policy(config("sd", model=str(tmp_path)))


def test_without_a_network(config, monkeypatch):
    """Nothing is asked of a network here: the hub's client is told that it has none."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"stabilityai/sd-turbo can't be loaded \(.*\); check id, revision and network"):
        load_policy(config("sd", model="stabilityai/sd-turbo"))


def test_samplers_and_sizes_that_do_not_fit_are_refused(config):
    for name, change, message in (
        ("sd", {"sampler": "flow_sde"}, "expected ddim or euler_ancestral or lcm or tcd"),
        ("flux", {"sampler": "ddim"}, "expected flow_sde or flow_cps or dance_sde"),
        ("flux", {"resolution": 18}, "multiple of 4"),
        ("sd", {"resolution": 18}, "multiple of 4"),
        ("sd3", {"resolution": 36}, "--resolution is 36; this model's position grid allows at most 32"),
    ):
        with pytest.raises(UserError, match=message):
            load_policy(config(name, **change))
    for change, message in (
        ({"guidance": 0.5}, "--guidance is 0.5"),
        ({"noise_level": -1.0}, "--noise-level is -1"),
        ({"resolution": 0}, "--resolution is 0"),
        ({"dtype": "int8"}, "unknown dtype"),
        ({"sampler": "heun"}, "unknown sampler"),
    ):
        with pytest.raises(UserError, match=message):
            config("sd", **change)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("sd", "tcd"),
        ("sd3", "flow_sde"),
        ("sd3", "flow_cps"),
        ("sd3", "dance_sde"),
    ],
)
def test_noise_levels(config, name, sampler):
    """Each sampler has its own default, which is its builder's; one that is given is used instead."""
    builder = getattr(sdpo_kernels.coefficients, sampler)
    assert NOISE_LEVELS[sampler] == inspect.signature(builder).parameters["level"].default

    def noise(**changes):
        return load_policy(config(name, sampler=sampler, **changes)).schedule(4, eta=1.0).table[:-1, 4]

    assert torch.equal(noise(), noise(noise_level=NOISE_LEVELS[sampler]))
    assert (noise(noise_level=0.9) > noise()).all()
    if sampler in ("tcd", "flow_cps"):
        with pytest.raises(UserError, match=r"the noise level is 1.5; expected 0 \(no noise\) to 1"):
            noise(noise_level=1.5)


@pytest.mark.parametrize(
    ("name", "sampler", "changes", "message"),
    [
        ("sd", "auto", {"noise_level": 0.5}, "--noise-level: the sampler ddim takes none, only flow_sde, .* leave it"),
        ("sd", "lcm", {"eta": 0.5}, "--eta: the sampler lcm takes none, only ddim; leave it out"),
    ],
)
def test_noise_that_is_another_samplers_is_refused(config, name, sampler, changes, message):
    with pytest.raises(UserError, match=message):
        load_policy(config(name, sampler=sampler, **changes))


def test_new_fields_leave_run_ids_alone(config):
    row = config("sd").to_json()
    assert not row.keys() & {"sampler", "guidance", "dtype", "adapter", "offload_trajectories"}
    assert config("sd", guidance=2.0).to_json()["guidance"] == 2.0
    assert run_id(RunConfig(pairs=8, pairs_per_update=8).to_json()) == "sdpo-alignment-k4-s0-d507853b"


def test_a_network_that_takes_guidance_as_an_input(config, tmp_path):
    """Latent consistency models: no second branch, the guidance embedded as the pipeline embeds it."""
    pipeline = StableDiffusionPipeline.from_pretrained(config("sd").model, safety_checker=None)
    torch.manual_seed(1)
    pipeline.unet = UNet2DConditionModel.from_config(pipeline.unet.config, time_cond_proj_dim=32)
    pipeline.save_pretrained(tmp_path)
    pictures = []
    for guidance in (1.0, 8.0):
        c = config("sd", model=str(tmp_path), guidance=guidance)
        policy = without_noise(c)
        ours, start = our_pictures(policy, 4)
        assert policy.branches == 1
        assert torch.allclose(ours, plain_pictures(c, 4, start), atol=2e-4)
        pictures.append(ours)
    assert (pictures[0] - pictures[1]).abs().max() > 1e-3
