"""Seconds of an epoch's parts on the embedded model, and what each saving of the trainer is worth, as ratios.

    pytest benchmarks --benchmark-only

On a CPU these are times of PyTorch's own operations, not of kernels. Correctness comes first: the savings must leave
the log-probs exactly as they are, or nothing is timed.

The record says of each phase (sampling, reward, dense rewards, training, optimiser, decoding) the FLOP of its products
and convolutions, counted once before it is timed, and its share of a large float32 product's speed in the same process.
SDPO takes an optimiser step for each denoising step; DDPO one for a batch of whole trajectories.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from benchmarks._counts import flop, peak
from sdpo_bench import RunConfig, Trainer, dense_rewards, load_policy, load_reward
from sdpo_bench.rewards import scorer

torch.set_num_threads(1)
CASES = [("sdpo", 4), ("sdpo", 20), ("ddpo", 20)]  # method, K


def make_trainer(method, steps):
    config = RunConfig(method=method, steps=steps, pairs=32, train_last_step=False, learning_rate=1e-4)
    trainer = Trainer(config, load_policy(config), load_reward(config.reward))
    assert trainer.check_on_policy(1) == 0.0 or trainer.policy.device.type == "cuda"
    return trainer


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request):
    """A trainer of a method at a K, and trajectories of its first epoch."""
    trainer = make_trainer(*request.param)
    return trainer, trainer.sample(trainer.plan(1))


@pytest.fixture(scope="module")
def trainer():
    return make_trainer("sdpo", 4)


@pytest.fixture(scope="module")
def peak_flop_per_s():
    return peak(load_policy(RunConfig()).device)


def run_phase(benchmark, phase, peak_flop_per_s, trainer, function, *args, rounds=5, warmup_rounds=1, variant=""):
    """Counts, then times a phase; its record tells the FLOP of one call, their speed at the median time, and what share
    of the peak that is. Returns what a call gives."""
    counted = flop(lambda: function(*args))
    benchmark.extra_info |= {
        "phase": phase,
        "variant": variant,
        "method": trainer.config.method,
        "steps": trainer.config.steps,
        "samples": trainer.config.pairs * trainer.config.samples_per_group,
        "device": str(trainer.policy.device),
        "flop": counted,
        "peak_flop_per_s": float(f"{peak_flop_per_s:.4g}"),
    }

    def call():
        result = function(*args)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    result = benchmark.pedantic(call, rounds=rounds, warmup_rounds=warmup_rounds)
    if benchmark.stats is not None:  # None where benchmarks are switched off
        seconds = benchmark.stats.stats.median
        speed = counted / seconds
        benchmark.extra_info |= {
            "seconds": float(f"{seconds:.4g}"),
            "flop_per_s": float(f"{speed:.4g}"),
            "utilisation": float(f"{speed / peak_flop_per_s:.4g}"),
        }
    return result


def test_sample(benchmark, case, peak_flop_per_s):
    trainer, _ = case
    run_phase(benchmark, "sampling", peak_flop_per_s, trainer, trainer.sample, trainer.plan(1), rounds=3)


@pytest.mark.parametrize("provider", dense_rewards.PLANS)
def test_reward(benchmark, case, provider, peak_flop_per_s):
    trainer, trajectory = case
    dense = provider != "terminal"
    if dense and not trainer.method.dense:
        pytest.skip("the method takes no dense rewards")
    result = run_phase(
        benchmark,
        "dense reward" if dense else "reward",  # decoding the pictures is a part of either
        peak_flop_per_s,
        trainer,
        dense_rewards.compute_dense_rewards,
        provider,
        trajectory,
        trainer.score,
        rounds=3,
        variant=provider if dense else "",
    )
    benchmark.extra_info |= {"queries": result.queries}


def made_up_advantages(trajectory):
    advantages = torch.ones_like(trajectory.log_prob)
    advantages[:, 1] = -1
    return advantages


def test_train(benchmark, case, peak_flop_per_s):
    """Forward passes, losses and gradients of an epoch; the weights stay."""
    trainer, trajectory = case
    batches, advantages = trainer.optimizer_batches(trainer.plan(1)), made_up_advantages(trajectory)

    def gradients():
        trainer.forget_visits()
        for batch in batches:
            trainer.make_gradients(batch, trajectory, advantages)

    run_phase(benchmark, "training", peak_flop_per_s, trainer, gradients, rounds=3)


def test_optimiser(benchmark, case, peak_flop_per_s):
    """Clipping and AdamW's steps, as many as an epoch takes."""
    trainer, trajectory = case
    batches = trainer.optimizer_batches(trainer.plan(1))
    trainer.make_gradients(batches[0], trajectory, made_up_advantages(trajectory))

    def optimiser_steps():
        for _ in batches:
            trainer.step_optimiser()

    run_phase(benchmark, "optimiser", peak_flop_per_s, trainer, optimiser_steps)
    benchmark.extra_info |= {"optimiser_steps": len(batches)}


@pytest.mark.parametrize("form", ["one forward a pair", "one forward a sample", "shared first step"])
def test_forward(benchmark, trainer, form):
    """The model's outputs along the trajectories: as the trainer has them, and as a loop over samples does."""
    policy, trajectory = trainer.policy, trainer.sample(trainer.plan(1))
    pairs = torch.arange(trainer.config.pairs)

    def shared():
        return [trainer.predict(trajectory, pairs, torch.full_like(pairs, k)) for k in range(trainer.config.steps)]

    def separate(rows):
        out = []
        for k in range(trainer.config.steps):
            x = trajectory.latents[:, :, k].flatten(0, 1)
            t = trajectory.timesteps[k].expand(len(x))
            c = trajectory.conditions[0].repeat_interleave(2, 0)
            parts = [
                policy.denoiser(a, b, d, return_dict=False)[0]
                for a, b, d in zip(x.split(rows), t.split(rows), c.split(rows), strict=True)
            ]
            out.append(torch.cat(parts).unflatten(0, (-1, 2)))
        return out

    function = {
        "one forward a pair": lambda: separate(2),
        "one forward a sample": lambda: separate(1),
        "shared first step": shared,
    }[form]
    with torch.no_grad():
        for ours, theirs in zip(function(), separate(64), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)
        benchmark.pedantic(function, rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("form", ["fused upsampling", "plain"])
def test_decode(benchmark, trainer, monkeypatch, form, peak_flop_per_s):
    """64 latents to pictures: with upsampling and convolution as one operation (a CPU's way), and as diffusers has
    them."""
    policy = trainer.policy
    latents = torch.randn(64, *policy.latent_shape, generator=torch.Generator().manual_seed(0)).to(policy.device)
    if form == "plain":
        for layer in policy.pipeline.vae.decoder.modules():
            if "forward" in vars(layer):
                monkeypatch.delitem(vars(layer), "forward")
    variant = "" if form == "fused upsampling" else form
    run_phase(
        benchmark,
        "decode",
        peak_flop_per_s,
        trainer,
        policy.decode,
        latents,
        rounds=20,
        warmup_rounds=2,
        variant=variant,
    )


@pytest.mark.parametrize("chunk", [64, 1248])
def test_score(benchmark, monkeypatch, chunk):
    """1,248 pictures, an epoch of DDPO-dense at K = 20, through the alignment scorer: 64 at a time, or all at once."""
    monkeypatch.setattr(scorer, "CHUNK", chunk)
    images = torch.rand(1248, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    reward = load_reward("alignment")
    prompts = [reward.scorer.prompts[0]] * len(images)
    benchmark.pedantic(reward, args=(images, prompts), rounds=5, warmup_rounds=1)
