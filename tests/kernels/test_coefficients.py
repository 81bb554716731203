"""Coefficient tables against diffusers' own schedulers, and against the textbook form in float64."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    SCMScheduler,
    TCDScheduler,
)
from sdpo_kernels import coefficients, ddim_step

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "trailing",
}
DDIM = SCHEDULE | {"set_alpha_to_one": False, "clip_sample": False, "steps_offset": 0}
STEPS = [1, 2, 4, 8, 20]
OF_FLOWS = (coefficients.flow_sde, coefficients.flow_cps, coefficients.dance_sde)
FLOWS = {
    "plain": ({}, {}),
    "shift": ({"shift": 3.0}, {}),
    "fractional shift": ({"shift": 1.15}, {}),
    "dynamic": ({"use_dynamic_shifting": True, "shift": 3.0}, {"mu": 0.7}),
    "linear": ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 1.7}),
    "terminal": ({"use_dynamic_shifting": True, "shift_terminal": 0.02}, {"mu": 0.7}),
}


@pytest.fixture(autouse=True)
def unrounded(monkeypatch):
    """The formulas are compared in the float64 that they are computed in; test_schedules_are_rounded_once rounds."""
    monkeypatch.setattr(coefficients, "DTYPE", torch.float64)


def euler_ancestral(prediction="epsilon", spacing="trailing", **config):
    return EulerAncestralDiscreteScheduler(
        **SCHEDULE | {"timestep_spacing": spacing, "prediction_type": prediction} | config
    )


def random_latents(n, seed):
    """float64, with values that float32 has."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, 8, 8, generator=generator).double() for _ in range(n)]


def close(ours, theirs, rtol=3e-6):
    """Within the rounding of float32, in which diffusers computes, relative to the largest element."""
    assert ours.dtype == torch.float64
    return torch.allclose(ours, theirs.double(), rtol=0, atol=rtol * float(theirs.abs().max()))


@pytest.mark.parametrize("steps", range(1, 51))
def test_timesteps_are_diffusers(steps):
    for scheduler in (DDIMScheduler(**DDIM), EulerDiscreteScheduler(**SCHEDULE)):
        scheduler.set_timesteps(steps)
        assert coefficients.trailing_timesteps(steps).tolist() == scheduler.timesteps.long().tolist()


@pytest.mark.parametrize("prediction", coefficients.PREDICTION_TYPES)
@pytest.mark.parametrize("steps", [1, 2, 4, 5, 10, 20, 50])
def test_step_is_diffusers_ddim_step(prediction, steps):
    """Where 1000 / K is whole, diffusers' previous timestep is the schedule's next one, but for the last step."""
    scheduler = DDIMScheduler(**DDIM, prediction_type=prediction)
    scheduler.set_timesteps(steps)
    timesteps, table, *_ = coefficients.ddim(scheduler, steps)
    generator = torch.Generator().manual_seed(steps)
    for k in range(steps - 1):
        x, m, z = (torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(3))
        theirs = scheduler.step(m, int(timesteps[k]), x, eta=1.0, variance_noise=z)
        a, b, c, d, sigma = table[k]
        assert torch.allclose(a * x + b * m + sigma * z, theirs.prev_sample, atol=2e-6, rtol=1e-6)
        assert torch.allclose(c * x + d * m, theirs.pred_original_sample, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", coefficients.PREDICTION_TYPES)
@pytest.mark.parametrize(("steps", "eta"), [(1, 1.0), (3, 1.0), (4, 0.5), (16, 1.0), (7, 0.3)])
def test_step_is_the_papers_equation(prediction, steps, eta):
    """DDIM's equations 12 and 16 written out by hand, the last step's previous timestep being 0."""
    scheduler = EulerDiscreteScheduler(**SCHEDULE, prediction_type=prediction)
    timesteps, table, *_ = coefficients.ddim(scheduler, steps, eta=eta)
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    times = [*timesteps.tolist(), 0]
    for k in range(steps):
        at, ap = abar[times[k]], abar[times[k + 1]]
        x, m = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        x0, eps = {
            "epsilon": ((x - (1 - at).sqrt() * m) / at.sqrt(), m),
            "sample": (m, (x - at.sqrt() * m) / (1 - at).sqrt()),
            "v_prediction": (at.sqrt() * x - (1 - at).sqrt() * m, at.sqrt() * m + (1 - at).sqrt() * x),
        }[prediction]
        sigma = eta * ((1 - ap) / (1 - at) * (1 - at / ap)).sqrt()
        mean = ap.sqrt() * x0 + (1 - ap - sigma**2).sqrt() * eps
        a, b, c, d, s = table[k]
        assert torch.allclose(a * x + b * m, mean, atol=1e-5, rtol=1e-5)
        assert torch.allclose(c * x + d * m, x0, atol=1e-5, rtol=1e-5)
        assert torch.allclose(s, sigma, atol=1e-7, rtol=1e-5)


def test_sigma_zero_is_refused_where_it_is_trained():
    scheduler = EulerDiscreteScheduler(**SCHEDULE)
    with pytest.raises(ValueError, match=r"step 0 .*sigma = 0"):
        coefficients.ddim(scheduler, 4, eta=0.0)
    # The last of 1000 steps starts at timestep 0 and has nowhere to go.
    with pytest.raises(ValueError, match=r"step 999 .*sigma = 0.*--no-train-last-step"):
        coefficients.ddim(scheduler, 1000)
    coefficients.ddim(scheduler, 1000, stochastic_steps=999)
    coefficients.ddim(scheduler, 4, eta=0.0, stochastic_steps=0)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_counts(steps):
    with pytest.raises(ValueError, match="1 to 1000"):
        coefficients.trailing_timesteps(steps)


def test_zero_signal_and_unknown_prediction_are_refused():
    scheduler = DDIMScheduler(**DDIM, rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="not finite"):
        coefficients.ddim(scheduler, 4)
    with pytest.raises(ValueError, match="prediction_type"):
        coefficients.ddim(EulerDiscreteScheduler(**SCHEDULE, prediction_type="flow"), 4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", STEPS)
def test_step_is_diffusers_euler_ancestral_step(prediction, spacing, steps):
    scheduler = euler_ancestral(prediction, spacing, steps_offset=1)
    timesteps, table, input_scale, initial_scale, *_ = coefficients.euler_ancestral(scheduler, steps)
    scheduler.set_timesteps(steps)
    assert torch.allclose(timesteps.double(), scheduler.timesteps.double(), rtol=1e-6)
    assert timesteps.dtype == (torch.float64 if spacing == "linspace" else torch.int64)
    assert initial_scale == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-6)
    for k, t in enumerate(scheduler.timesteps):
        x, m = random_latents(2, seed=k)
        x = x / input_scale[k]
        assert close(input_scale[k] * x, scheduler.scale_model_input(x, t))
        z = random_latents(1, seed=100 + k)[0]
        theirs = scheduler.step(m.float(), t, x.float(), generator=torch.Generator().manual_seed(100 + k))
        a, b, c, d, sigma = table[k]
        assert close(a * x + b * m + sigma * z, theirs.prev_sample)
        assert close(c * x + d * m, theirs.pred_original_sample)
        assert (sigma == 0) == (k == steps - 1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", STEPS)
def test_step_is_the_papers_ancestral_step(prediction, steps):
    """Equation 47 of arXiv 2011.13456, the score being (x0 - x) / sigma^2."""
    scheduler = euler_ancestral(prediction)
    timesteps, table, *_ = coefficients.euler_ancestral(scheduler, steps)
    abar = scheduler.alphas_cumprod.double()[timesteps]
    variance = [*((1 - abar) / abar).tolist(), 0.0]
    for k in range(steps):
        x, m = random_latents(2, seed=k)
        now, then = variance[k], variance[k + 1]
        vp = x * abar[k].sqrt()  # the model's input; v and epsilon are defined with it
        x0 = {"epsilon": x - now**0.5 * m, "v_prediction": abar[k].sqrt() * vp - (1 - abar[k]).sqrt() * m}[prediction]
        a, b, c, d, sigma = table[k]
        assert torch.allclose(a * x + b * m, x + (now - then) * (x0 - x) / now, rtol=1e-12, atol=1e-12)
        assert torch.allclose(c * x + d * m, x0, rtol=1e-12, atol=1e-12)
        assert float(sigma) == pytest.approx(math.sqrt(then * (now - then) / now), rel=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_euler_ancestral_is_ddim_in_other_coordinates(prediction):
    """With x = sqrt(abar) x_euler, steps are DDIM's with eta = 1, but for the last one, which goes on to sigma = 0."""
    euler = coefficients.euler_ancestral(euler_ancestral(prediction), 20)
    timesteps, table, *_ = coefficients.ddim(euler_ancestral(prediction), 20)
    assert torch.equal(euler.timesteps, timesteps)
    scale, a, b, c, d, sigma = euler.input_scale, *euler.table.T
    following = scale.roll(-1)  # nothing to the last step
    ours = torch.stack([following / scale * a, following * b, c / scale, d, following * sigma], 1)
    assert torch.allclose(ours[:-1], table[:-1], rtol=1e-12, atol=1e-12)
    assert torch.allclose(ours[-1, 2:4], table[-1, 2:4], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", range(1, 51))
def test_timesteps_of_distilled_models_are_diffusers(steps):
    for build, make in ((coefficients.lcm, LCMScheduler), (coefficients.tcd, TCDScheduler)):
        for original in (50, 60):
            scheduler = make(original_inference_steps=original)
            timesteps = build(scheduler, steps).timesteps
            scheduler.set_timesteps(steps)
            assert torch.equal(timesteps, scheduler.timesteps)


@pytest.mark.parametrize("prediction", coefficients.PREDICTION_TYPES)
@pytest.mark.parametrize("scaling", [10.0, 0.003])
@pytest.mark.parametrize("steps", STEPS)
def test_step_is_diffusers_lcm_step(prediction, scaling, steps):
    """A timestep_scaling of 0.003 makes c_skip large enough to be seen."""
    scheduler = LCMScheduler(prediction_type=prediction, timestep_scaling=scaling)
    timesteps, table, input_scale, initial_scale, *_ = coefficients.lcm(scheduler, steps)
    scheduler.set_timesteps(steps)
    assert timesteps.tolist() == scheduler.timesteps.tolist()
    assert initial_scale == scheduler.init_noise_sigma
    assert torch.equal(input_scale, torch.ones(steps, dtype=torch.float64))
    for k, t in enumerate(scheduler.timesteps):
        x, m = random_latents(2, seed=k)
        z = random_latents(1, seed=100 + k)[0]
        theirs = scheduler.step(m.float(), t, x.float(), generator=torch.Generator().manual_seed(100 + k))
        a, b, c, d, sigma = table[k]
        assert close(a * x + b * m + sigma * z, theirs.prev_sample)
        c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(int(t))
        assert close(c_out * (c * x + d * m) + c_skip * x, theirs.denoised)
        assert (sigma == 0) == (k == steps - 1)


@pytest.mark.parametrize("prediction", coefficients.PREDICTION_TYPES)
def test_step_is_the_papers_lcm_step(prediction):
    """Multistep latent consistency sampling written out by hand, sigma_data being 0.5."""
    scheduler = LCMScheduler(prediction_type=prediction, timestep_scaling=0.003)
    timesteps, table, *_ = coefficients.lcm(scheduler, 4)
    assert timesteps.tolist() == [999, 759, 499, 259]
    for k, t in enumerate(timesteps.tolist()):
        at = scheduler.alphas_cumprod.double()[t]
        ap = scheduler.alphas_cumprod.double()[timesteps[k + 1]] if k < 3 else torch.ones(())
        x, m = random_latents(2, seed=k)
        x0 = {
            "epsilon": (x - (1 - at).sqrt() * m) / at.sqrt(),
            "sample": m,
            "v_prediction": at.sqrt() * x - (1 - at).sqrt() * m,
        }[prediction]
        s = 0.003 * t
        f = 0.25 / (s**2 + 0.25) * x + s / math.sqrt(s**2 + 0.25) * x0
        a, b, c, d, sigma = table[k]
        assert torch.allclose(a * x + b * m, ap.sqrt() * f, rtol=1e-12, atol=1e-12)
        assert torch.allclose(c * x + d * m, x0, rtol=1e-12, atol=1e-12)
        assert float(sigma) == pytest.approx(float((1 - ap).sqrt()), rel=1e-12)


@pytest.mark.parametrize("steps", STEPS)
def test_step_is_diffusers_scm_step(steps):
    """Latents are the scheduler's divided by sigma_data, and so is the model's output."""
    scheduler = SCMScheduler()
    timesteps, table, input_scale, initial_scale, signal, noise = coefficients.scm(scheduler, steps)
    scheduler.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
    assert torch.allclose(timesteps, scheduler.timesteps[:-1].double(), rtol=1e-6)
    assert (initial_scale, input_scale.tolist()) == (1.0, [1.0] * steps)
    assert torch.allclose(signal**2 + noise**2, torch.ones_like(signal))
    for k, t in enumerate(scheduler.timesteps[:-1]):
        x, m = random_latents(2, seed=k)
        z = random_latents(1, seed=100 + k)[0]
        half = (0.5 * m.float(), t, 0.5 * x.float())
        theirs = scheduler.step(*half, generator=torch.Generator().manual_seed(100 + k))
        a, b, c, d, sigma = table[k]
        assert close(a * x + b * m + sigma * z, 2 * theirs.prev_sample)
        assert close(c * x + d * m, 2 * theirs.pred_original_sample)
        assert (sigma == 0) == (k == steps - 1)


def test_what_scm_refuses():
    with pytest.raises(TypeError, match="the scheduler is a LCMScheduler; expected a SCMScheduler"):
        coefficients.scm(LCMScheduler(), 4)
    with pytest.raises(ValueError, match="expected 1 to 10, the scheduler's num_train_timesteps"):
        coefficients.scm(SCMScheduler(num_train_timesteps=10), 11)
    with pytest.raises(ValueError, match=r"step 3 .* has sigma = 0, so it has no log-prob to train"):
        coefficients.for_scheduler(SCMScheduler(), 4, stochastic_steps=4)


@pytest.mark.parametrize("prediction", coefficients.PREDICTION_TYPES)
@pytest.mark.parametrize("level", [0.0, 0.2, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("steps", STEPS)
def test_step_is_diffusers_tcd_step(prediction, level, steps):
    """In float64, with the scheduler's own betas in float64, so that its rounding of the timestep is seen alone."""
    scheduler = TCDScheduler(prediction_type=prediction)
    timesteps, table, input_scale, initial_scale, *_ = coefficients.tcd(
        scheduler, steps, level=level, stochastic_steps=steps - 1 if level else 0
    )
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    assert timesteps.tolist() == scheduler.timesteps.tolist()
    assert initial_scale == scheduler.init_noise_sigma
    assert torch.equal(input_scale, torch.ones(steps, dtype=torch.float64))
    for k, t in enumerate(scheduler.timesteps):
        x, m = random_latents(2, seed=k)
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(100 + k), dtype=torch.float64)
        theirs = scheduler.step(m, t, x, eta=level, generator=torch.Generator().manual_seed(100 + k))
        a, b, _, _, sigma = table[k]
        assert torch.allclose(a * x + b * m + sigma * z, theirs.prev_sample, rtol=0, atol=1e-12)
        assert (sigma == 0) == (k == steps - 1 or level == 0)


@pytest.mark.parametrize("prediction", coefficients.PREDICTION_TYPES)
def test_step_is_the_papers_tcd_step(prediction):
    """By hand: DDIM without noise to 0.7 of the next timestep, then the forward process up to that one."""
    scheduler = TCDScheduler(prediction_type=prediction)
    timesteps, table, *_ = coefficients.tcd(scheduler, 4)
    abar = scheduler.alphas_cumprod.double()
    assert timesteps.tolist() == [999, 759, 499, 259]
    for k, (t, to, between) in enumerate([(999, 759, 531), (759, 499, 349), (499, 259, 181), (259, 0, 0)]):
        x, m = random_latents(2, seed=k)
        at, ap, ab = abar[t], abar[to], abar[between]
        x0, eps = {
            "epsilon": ((x - (1 - at).sqrt() * m) / at.sqrt(), m),
            "sample": (m, (x - at.sqrt() * m) / (1 - at).sqrt()),
            "v_prediction": (at.sqrt() * x - (1 - at).sqrt() * m, at.sqrt() * m + (1 - at).sqrt() * x),
        }[prediction]
        there = ab.sqrt() * x0 + (1 - ab).sqrt() * eps
        a, b, c, d, sigma = table[k]
        assert torch.allclose(a * x + b * m, (ap / ab).sqrt() * there, rtol=1e-11, atol=1e-11)
        assert torch.allclose(c * x + d * m, x0, rtol=1e-11, atol=1e-11)
        assert float(sigma) == pytest.approx(float((1 - ap / ab).sqrt()), rel=1e-12)


@pytest.mark.parametrize("build", OF_FLOWS)
@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("custom", [False, True])
def test_without_noise_the_flow_step_is_diffusers(build, name, steps, custom):
    config, options = FLOWS[name]
    if custom:
        options = options | {"sigmas": [1 - k / steps for k in range(steps)]}
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    if steps == 1 and name == "terminal":  # one sigma can't be both 1 and the terminal one; diffusers divides by zero
        with pytest.raises(ValueError, match="from sigma nan"):
            build(scheduler, steps, **options)
        return
    timesteps, table, input_scale, initial_scale, *_ = build(scheduler, steps, level=0.0, stochastic_steps=0, **options)
    scheduler.set_timesteps(steps, **options)
    assert close(timesteps, scheduler.timesteps)
    assert torch.equal(input_scale, torch.ones(steps, dtype=torch.float64))
    assert initial_scale == 1
    assert (table[:, 4] == 0).all()
    for k, t in enumerate(scheduler.timesteps):
        x, m = random_latents(2, seed=k)
        a, b, c, d, _ = table[k]
        assert close(a * x + b * m, scheduler.step(m.float(), t, x.float()).prev_sample)
        assert close(c * x + d * m, x - scheduler.sigmas[k] * m)


def test_flow_follows_set_shift():
    """diffusers shifts its smallest sigma by the shift it was made with, and the schedule by the one it has now."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_shift(2.0)
    timesteps = coefficients.flow_sde(scheduler, 4).timesteps
    scheduler.set_timesteps(4)
    assert torch.allclose(timesteps, scheduler.timesteps.double(), rtol=1e-6)
    smallest = 3e-3 / 1.002
    assert float(timesteps[-1]) == pytest.approx(2000 * smallest / (1 + smallest), rel=1e-12)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize(("steps", "level"), [(2, 0.7), (4, 0.3), (8, 1.2), (20, 0.7)])
def test_flow_step_is_the_papers_equation(name, steps, level):
    """Equation 9 of Flow-GRPO, and its code's g at sigma = 1, on diffusers' own sigmas."""
    config, options = FLOWS[name]
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    table = coefficients.flow_sde(scheduler, steps, level=level, **options).table
    scheduler.set_timesteps(steps, **options)
    sigmas = scheduler.sigmas.double()
    assert sigmas[0] == 1
    for k in range(steps):
        t, dt = sigmas[k], sigmas[k + 1] - sigmas[k]
        g = level * (t / (1 - (sigmas[1] if k == 0 else t))).sqrt()
        x, v = random_latents(2, seed=k)
        mean = x + (v + g**2 / (2 * t) * (x + (1 - t) * v)) * dt
        a, b, c, d, sigma = table[k]
        assert torch.allclose(a * x + b * v, mean, rtol=0, atol=1e-5)
        assert torch.allclose(c * x + d * v, x - t * v, rtol=0, atol=1e-6)
        assert float(sigma) == pytest.approx(float(g * (-dt).sqrt()), rel=1e-5)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize(("steps", "level"), [(2, 0.8), (4, 0.3), (8, 1.0), (20, 0.9)])
def test_flow_cps_step_is_the_authors(name, steps, level):
    """Predicted clean latent and noise, weighted anew. Their log-prob leaves out the constants and 2 sigma^2."""
    config, options = FLOWS[name]
    schedule = coefficients.flow_cps(FlowMatchEulerDiscreteScheduler(**config), steps, level=level, **options)
    sigmas = [*schedule.noise_scale.tolist(), 0.0]
    for k, (a, b, c, d, sigma) in enumerate(schedule.table):
        s, to = sigmas[k : k + 2]
        x, v, z = random_latents(3, seed=k)
        clean, noise = x - s * v, x + (1 - s) * v
        fresh = to * math.sin(level * math.pi / 2)
        mean = (1 - to) * clean + math.sqrt(to**2 - fresh**2) * noise
        assert torch.allclose(a * x + b * v, mean, rtol=0, atol=1e-12)
        assert torch.allclose(c * x + d * v, clean, rtol=0, atol=1e-12)
        assert float(sigma) == pytest.approx(fresh, rel=1e-12, abs=0)
        if k < steps - 1:
            drawn = mean + fresh * z
            log_prob = torch.distributions.Normal(a * x + b * v, sigma).log_prob(drawn).mean()
            theirs = -((drawn - mean) ** 2).mean()
            constant = math.log(fresh * math.sqrt(2 * math.pi))
            assert float(2 * fresh**2 * (log_prob + constant)) == pytest.approx(float(theirs), rel=1e-9)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize(("steps", "level"), [(2, 0.3), (4, 0.25), (8, 1.0), (20, 0.3)])
def test_dance_sde_step_is_the_authors(name, steps, level):
    """The ODE's Euler step, less g^2 / 2 times the score (-(x - (1 - s) x0) / s^2) over the step, and noise of g."""
    config, options = FLOWS[name]
    schedule = coefficients.dance_sde(FlowMatchEulerDiscreteScheduler(**config), steps, level=level, **options)
    sigmas = [*schedule.noise_scale.tolist(), 0.0]
    for k, (a, b, c, d, sigma) in enumerate(schedule.table):
        s, to = sigmas[k : k + 2]
        x, v = random_latents(2, seed=k)
        clean = x - s * v
        score = -(x - (1 - s) * clean) / s**2
        mean = x + (v - level**2 / 2 * score) * (to - s)
        assert torch.allclose(a * x + b * v, mean, rtol=0, atol=1e-10)
        assert torch.allclose(c * x + d * v, clean, rtol=0, atol=1e-12)
        assert float(sigma) == pytest.approx(level * math.sqrt(s - to), rel=1e-12)
        assert sigma > 0


def largest_errors(schedule):
    """Of mean and variance (relative), of latents below sigma = 0.9, for data N(1.5, 0.6^2).

    The velocity is linear in x there, so a step maps mean and variance exactly.
    """
    mean0, sd0 = 1.5, 0.6
    sigmas = [*schedule.noise_scale.tolist(), 0.0]

    def moments(t):
        return (1 - t) * mean0, (1 - t) ** 2 * sd0**2 + t**2

    mean, variance = moments(1.0)
    errors = [(0.0, 0.0)]
    for k, (a, b, _, _, sigma) in enumerate(schedule.table.tolist()):
        t, to = sigmas[k : k + 2]
        m, v = moments(t)
        slope = (t - (1 - t) * sd0**2) / v  # E[z - x0 | x] = -mean0 + slope (x - m)
        mean, variance = a * mean + b * (slope * (mean - m) - mean0), (a + b * slope) ** 2 * variance + sigma**2
        if to < 0.9:
            m, v = moments(to)
            errors.append((abs(mean - m), abs(variance / v - 1)))
    return [max(column) for column in zip(*errors, strict=True)]


@pytest.mark.parametrize("name", ["plain", "shift", "dynamic"])
@pytest.mark.parametrize(
    ("build", "level"),
    [
        (coefficients.flow_sde, 0.0),
        (coefficients.flow_sde, 0.3),
        (coefficients.flow_sde, 0.7),
        (coefficients.flow_sde, 1.0),
        (coefficients.dance_sde, 0.3),
        (coefficients.dance_sde, 1.0),
        (coefficients.flow_cps, 0.0),
    ],
)
def test_sdes_of_flows_keep_the_marginals(name, build, level):
    """Every step keeps the mean. The variance has the Euler step's error. That of flow_sde's first step, of the finite
    g at sigma = 1, does not fall with the number of steps (its variance is 1 + level^4 / 4), but the later steps forget
    it.
    """
    config, options = FLOWS[name]
    few, many = (
        largest_errors(build(FlowMatchEulerDiscreteScheduler(**config), n, level=level, stochastic_steps=0, **options))
        for n in (100, 4000)
    )
    assert max(few[0], many[0]) < 1e-9
    assert few[1] < 0.15
    assert many[1] < 0.015
    assert many[1] < few[1] / 3


def test_flow_cps_loses_variance_however_many_steps():
    """A step takes the expected clean latent for the clean one, and a share of its noise anew, which more steps do not
    make smaller: of the Gaussian's variance a third is missing at the end."""
    lost = [largest_errors(coefficients.flow_cps(FlowMatchEulerDiscreteScheduler(), n))[1] for n in (100, 1000, 4000)]
    assert min(lost) > 0.34
    assert max(lost) < 0.38


def test_flow_level_and_first_step():
    """By hand: sigmas 1, 0.6, so that g^2 is 0.8^2 / (1 - 0.6), and then 0.8^2 0.6 / (1 - 0.6)."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    table = coefficients.flow_sde(scheduler, 2, level=0.8, sigmas=[1.0, 0.6]).table
    expected = [[1 - 0.32, -0.4, 1, -1, 0.8], [1 - 0.48, -0.6 * 1.32, 1, -0.6, 0.6 * 1.6**0.5]]
    assert torch.allclose(table, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    default = coefficients.flow_sde(scheduler, 2, sigmas=[1.0, 0.6]).table
    assert torch.equal(default, coefficients.flow_sde(scheduler, 2, level=0.7, sigmas=[1.0, 0.6]).table)
    once = coefficients.flow_sde(scheduler, 1, level=0.8).table
    assert torch.allclose(once, torch.tensor([[1 - 0.32, -1, 1, -1, 0.8]], dtype=torch.float64), rtol=1e-12, atol=0)
    # A sigma that float32 rounds to 1 is 1 to diffusers.
    near = coefficients.flow_sde(scheduler, 2, level=0.8, sigmas=[1 - 1e-12, 0.6]).table
    assert torch.allclose(near, table, atol=1e-10)


FLOW = {"level": 0.0, "stochastic_steps": 0}
SAMPLERS = {  # the builder, its scheduler, its options, and what diffusers' step takes
    "ddim": (coefficients.ddim, lambda: DDIMScheduler(**DDIM), {}, {"eta": 1.0}),
    "euler ancestral": (coefficients.euler_ancestral, lambda: euler_ancestral("v_prediction"), {}, {}),
    "euler ancestral, leading": (
        coefficients.euler_ancestral,
        lambda: euler_ancestral("epsilon", "leading", steps_offset=1),
        {},
        {},
    ),
    "euler ancestral, linspace": (coefficients.euler_ancestral, lambda: euler_ancestral("epsilon", "linspace"), {}, {}),
    "lcm": (coefficients.lcm, LCMScheduler, {}, {}),
    "tcd": (coefficients.tcd, TCDScheduler, {}, {}),
    "flow": (coefficients.flow_sde, lambda: FlowMatchEulerDiscreteScheduler(shift=3.0), FLOW, {}),
    "flow cps": (coefficients.flow_cps, lambda: FlowMatchEulerDiscreteScheduler(shift=3.0), FLOW, {}),
    "dance": (coefficients.dance_sde, lambda: FlowMatchEulerDiscreteScheduler(shift=3.0), FLOW, {}),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [2, 4, 8, 20])
def test_sampling_is_diffusers_sampling(name, steps):
    """Timesteps, both scales and rows used together, against diffusers' loop from the same noise."""
    build, make, options, step_options = SAMPLERS[name]

    def model(x, t):
        return torch.tanh(x) + 0.3 * torch.sin(3 * x) * t / 1000

    noise = random_latents(1, seed=0)[0]
    scheduler = make()
    schedule = build(scheduler, steps, **options)
    generator = torch.Generator().manual_seed(1)
    x = schedule.initial_scale * noise
    for t, row, scale in zip(schedule.timesteps, schedule.table, schedule.input_scale, strict=True):
        m = model(scale * x, t)
        z = torch.randn(x.shape, generator=generator) if row[4] > 0 else torch.zeros_like(x)
        clean = row[2] * x + row[3] * m
        x = row[0] * x + row[1] * m + row[4] * z

    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(1)
    theirs = noise.float() * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(theirs, t) if hasattr(scheduler, "scale_model_input") else theirs
        output = scheduler.step(model(scaled, t), t, theirs, generator=generator, **step_options)
        last, theirs = theirs, output.prev_sample
    if name == "ddim":  # its last steps differ: ours goes to timestep 0 with noise
        assert last.shape == theirs.shape
        assert close(clean, output.pred_original_sample, rtol=1e-4)
    else:
        assert close(x, theirs, rtol=1e-4)
        if name != "tcd":  # its last step ends at timestep 0, which is not quite clean
            assert close(clean, theirs, rtol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [2, 4, 20])
def test_levels_are_diffusers_noising(name, steps):
    """signal_scale x0 + noise_scale z is what the scheduler's own add_noise or scale_noise makes at each timestep."""
    build, make, options, _ = SAMPLERS[name]
    schedule = build(make(), steps, **options)
    assert schedule.signal_scale.shape == schedule.noise_scale.shape == (steps,)
    assert schedule.signal_scale.dtype == schedule.noise_scale.dtype == torch.float64
    scheduler = make()
    scheduler.set_timesteps(steps)
    noised = scheduler.scale_noise if hasattr(scheduler, "scale_noise") else scheduler.add_noise
    # diffusers' DDIM loop has other timesteps where 1000 / K is no whole number; its add_noise takes ours.
    timesteps = schedule.timesteps if name == "ddim" else scheduler.timesteps
    for k, t in enumerate(timesteps):
        clean, z = random_latents(2, seed=k)
        flow = build in OF_FLOWS
        arguments = (clean.float(), t[None], z.float()) if flow else (clean.float(), z.float(), t[None])
        assert close(schedule.signal_scale[k] * clean + schedule.noise_scale[k] * z, noised(*arguments))


def exact_outputs(prediction, clean, z, signal, noise):
    """What a model that knows x0 and z puts out, by the definition of its prediction type, in DDIM's coordinates."""
    return {
        "epsilon": z,
        "sample": clean,
        "v_prediction": (signal * z - noise * clean) / math.hypot(signal, noise),
        "velocity": z - clean,
    }[prediction]


OF_BETAS = ("epsilon", "sample", "v_prediction")
EULER = ("epsilon", "v_prediction")
PREDICTING = {  # the builder, a scheduler of a prediction type, and these
    "ddim": (coefficients.ddim, lambda p: DDIMScheduler(**DDIM, prediction_type=p), OF_BETAS),
    "euler ancestral": (coefficients.euler_ancestral, euler_ancestral, EULER),
    "leading": (coefficients.euler_ancestral, lambda p: euler_ancestral(p, "leading", steps_offset=1), EULER),
    "linspace": (coefficients.euler_ancestral, lambda p: euler_ancestral(p, "linspace"), EULER),
    "lcm": (coefficients.lcm, lambda p: LCMScheduler(prediction_type=p), OF_BETAS),
    "tcd": (coefficients.tcd, lambda p: TCDScheduler(prediction_type=p), OF_BETAS),
} | {build.__name__: (build, lambda _: FlowMatchEulerDiscreteScheduler(shift=3.0), ("velocity",)) for build in OF_FLOWS}


@pytest.mark.parametrize("name", PREDICTING)
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_the_exact_output_for_a_noised_latent_predicts_the_clean_one(name, steps):
    """And it is the only one: it is also (x0 - c x) / d."""
    build, make, predictions = PREDICTING[name]
    for prediction in predictions:
        schedule = build(make(prediction), steps)
        for k, (_, _, c, d, _) in enumerate(schedule.table):
            signal, noise = schedule.signal_scale[k], schedule.noise_scale[k]
            clean, z = random_latents(2, seed=k)
            x = signal * clean + noise * z
            m = exact_outputs(prediction, clean, z, signal, noise)
            assert torch.allclose(c * x + d * m, clean, rtol=0, atol=1e-12)
            assert torch.allclose((clean - c * x) / d, m, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PREDICTING)
@pytest.mark.parametrize("steps", [4, 20])
def test_a_step_of_the_exact_output_ends_at_the_next_level(name, steps):
    """Of signal and of noise, predicted and fresh together; the SDEs of flows have more noise than the level says."""
    build, make, predictions = PREDICTING[name]
    for prediction in predictions:
        schedule = build(make(prediction), steps)
        for k, (a, b, _, _, sigma) in enumerate(schedule.table[:-1]):
            signal, noise = schedule.signal_scale[k], schedule.noise_scale[k]
            of_clean = a * signal + b * exact_outputs(prediction, 1.0, 0.0, signal, noise)
            of_noise = a * noise + b * exact_outputs(prediction, 0.0, 1.0, signal, noise)
            tolerance = 1e-5 if name == "lcm" else 1e-12  # it noises c_out x0 + c_skip x
            assert float(of_clean) == pytest.approx(float(schedule.signal_scale[k + 1]), abs=tolerance)
            total, expected = math.hypot(of_noise, sigma), float(schedule.noise_scale[k + 1])
            if name in ("flow_sde", "dance_sde"):
                assert total > expected + 1e-9
            else:
                assert total == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("name", SAMPLERS)
def test_log_prob_of_every_sampler(name):
    build, make, *_ = SAMPLERS[name]
    table = build(make(), 4, stochastic_steps=3).table[:3]
    x, m, z = random_latents(3, seed=5)
    for a, b, c, d, sigma in table:
        row = torch.stack([a, b, c, d, sigma]).float().expand(2, 5)
        out = ddim_step(m.float(), x.float(), row, noise=z.float())
        mean = a * x + b * m
        assert torch.allclose(out.prev_sample.double(), mean + sigma * z, atol=1e-4)
        expected = torch.distributions.Normal(mean, sigma).log_prob(out.prev_sample.double()).flatten(1).mean(1)
        assert torch.allclose(out.log_prob.double(), expected, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_scheduler_is_left_as_it_was(name):
    build, make, options, _ = SAMPLERS[name]
    scheduler, fresh = make(), make()
    for steps in (4, 2):
        schedule = build(scheduler, steps, **options)
        assert schedule.table.dtype == schedule.input_scale.dtype == torch.float64
        assert schedule.table.shape == (steps, 5)
        assert schedule.timesteps.shape == schedule.input_scale.shape == (steps,)
        assert type(schedule.initial_scale) is float
    assert vars(scheduler).keys() == vars(fresh).keys()
    for key, value in vars(fresh).items():
        same = torch.equal(vars(scheduler)[key], value) if isinstance(value, torch.Tensor) else None
        assert same or vars(scheduler)[key] == value, key


@pytest.mark.parametrize("name", SAMPLERS)
def test_schedules_are_rounded_once(name, monkeypatch):
    """To what the operations take: a row goes into one as it is."""
    build, make, options, _ = SAMPLERS[name]
    exact = build(make(), 4, **options)
    monkeypatch.setattr(coefficients, "DTYPE", torch.float32)
    schedule = build(make(), 4, **options)
    for field, value in schedule._asdict().items():
        if field == "timesteps" and value.dtype == torch.int64:
            assert torch.equal(value, exact.timesteps)
        elif field != "initial_scale":
            assert value.dtype == torch.float32
            assert torch.equal(value, getattr(exact, field).float()), field
    x, m, z = (x.float() for x in random_latents(3, seed=0))
    out = ddim_step(m, x, schedule.table[1].expand(2, 5), noise=z)
    a, b, *_, sigma = schedule.table[1]
    assert torch.allclose(out.prev_sample, a * x + b * m + sigma * z, atol=1e-6)
    moved = schedule.to("meta")
    assert {x.device.type for x in moved if isinstance(x, torch.Tensor)} == {"meta"}


def test_sigma_that_float32_loses_is_refused(monkeypatch):
    """eta = 1e-46 gives a sigma that is not 0 in float64."""
    scheduler = EulerDiscreteScheduler(**SCHEDULE)
    coefficients.ddim(scheduler, 4, eta=1e-46)
    monkeypatch.setattr(coefficients, "DTYPE", torch.float32)
    with pytest.raises(ValueError, match=r"step 0 .*sigma = 0"):
        coefficients.ddim(scheduler, 4, eta=1e-46)


def test_dispatch():
    class Derived(LCMScheduler):
        pass

    for build, make, options, _ in [*SAMPLERS.values(), (coefficients.lcm, Derived, {}, {})]:
        if build not in (coefficients.flow_cps, coefficients.dance_sde):  # a flow's scheduler does not say which
            expected = build(make(), 4, **options)
            schedule = coefficients.for_scheduler(make(), 4, **options)
            assert torch.equal(schedule.table, expected.table)
            assert torch.equal(schedule.timesteps, expected.timesteps)
    table = coefficients.for_scheduler(DDIMScheduler(**DDIM), 4, eta=0.5).table
    assert torch.equal(table, coefficients.ddim(DDIMScheduler(**DDIM), 4, eta=0.5).table)
    with pytest.raises(TypeError, match=r"is a EulerDiscreteScheduler; .*DDIM.*EulerAnc.*LCM.*TCD.*FlowM.*from_config"):
        coefficients.for_scheduler(EulerDiscreteScheduler(**SCHEDULE), 4)
    with pytest.raises(TypeError, match="eta"):
        coefficients.for_scheduler(LCMScheduler(), 4, eta=1.0)


@pytest.mark.parametrize("build", [coefficients.euler_ancestral, coefficients.lcm, coefficients.tcd, *OF_FLOWS])
def test_other_schedulers_are_refused(build):
    with pytest.raises(TypeError, match=r"is a DDIMScheduler; expected a (EulerAncestral|LCM|TCD|FlowMatch)"):
        build(DDIMScheduler(**DDIM), 4)


@pytest.mark.parametrize(
    ("build", "make"),
    [
        (coefficients.euler_ancestral, euler_ancestral),
        (coefficients.lcm, LCMScheduler),
        (coefficients.tcd, TCDScheduler),
        (coefficients.flow_cps, FlowMatchEulerDiscreteScheduler),
    ],
)
def test_the_last_step_has_no_log_prob(build, make):
    message = r"step 3 \(timestep (249|259|1)\) has sigma = 0, so it has no log-prob to train; leave the step out of "
    with pytest.raises(ValueError, match=message + r"training \(--no-train-last-step"):
        build(make(), 4, stochastic_steps=4)
    for wanted in (None, 3, 0):
        assert torch.equal(build(make(), 4, stochastic_steps=wanted).table, build(make(), 4).table)
    build(make(), 1)


@pytest.mark.parametrize(
    ("build", "make", "most"),
    [
        (coefficients.tcd, TCDScheduler, 1),
        (coefficients.flow_cps, FlowMatchEulerDiscreteScheduler, 1),
        (coefficients.flow_sde, FlowMatchEulerDiscreteScheduler, math.inf),
        (coefficients.dance_sde, FlowMatchEulerDiscreteScheduler, math.inf),
    ],
)
def test_noise_levels(build, make, most):
    with pytest.raises(ValueError, match=r"step 0 \(timestep .*\) has sigma = 0.*choose a noise level > 0, or leave"):
        build(make(), 4, level=0.0)
    assert (build(make(), 4, level=0.0, stochastic_steps=0).table[:, 4] == 0).all()
    trained = build(make(), 4).table[:-1, 4]
    assert (trained > 0).all()
    assert (build(make(), 4, level=1.0).table[:-1, 4] > trained).all()
    for level in (-0.1, math.nan, math.inf, *([1.1] if most == 1 else [])):
        with pytest.raises(ValueError, match=rf"noise level is {level}; expected 0 \(no noise\) (to 1|or above)"):
            build(make(), 4, level=level)


def test_sdes_of_flows_have_noise_at_the_last_step():
    for build in (coefficients.flow_sde, coefficients.dance_sde):
        assert (build(FlowMatchEulerDiscreteScheduler(), 4).table[:, 4] > 0).all()


@pytest.mark.parametrize(
    ("build", "scheduler", "options", "message"),
    [
        ("euler_ancestral", euler_ancestral("sample"), {}, "prediction_type is 'sample'; expected one of .*v_pred"),
        ("euler_ancestral", euler_ancestral(spacing="even"), {}, "timestep_spacing is 'even'; expected linspace"),
        ("lcm", LCMScheduler(prediction_type="flow"), {}, "prediction_type is 'flow'; expected one of .*sample"),
        ("ddim", DDIMScheduler(), {}, "clip_sample is on"),
        ("ddim", DDIMScheduler(clip_sample=False, thresholding=True), {}, "thresholding is on"),
        ("lcm", LCMScheduler(clip_sample=True), {}, "clip_sample is on"),
        ("lcm", LCMScheduler(thresholding=True), {}, "thresholding is on"),
        ("lcm", LCMScheduler(rescale_betas_zero_snr=True), {}, r"step 0 \(timestep 999\) .*not finite"),
        ("tcd", TCDScheduler(prediction_type="flow"), {}, "prediction_type is 'flow'; expected one of .*sample"),
        ("tcd", TCDScheduler(clip_sample=True), {}, "clip_sample is on"),
        ("tcd", TCDScheduler(thresholding=True), {}, "thresholding is on"),
        ("tcd", TCDScheduler(rescale_betas_zero_snr=True), {}, r"step 0 \(timestep 999\) .*not finite"),
        ("tcd", TCDScheduler(original_inference_steps=3), {}, "expected 1 to 3, the scheduler's original_inference"),
        ("lcm", LCMScheduler(original_inference_steps=3), {}, "expected 1 to 3, the scheduler's original_inference"),
        ("lcm", LCMScheduler(original_inference_steps=1001), {}, "which may be 1000 at most"),
        ("flow_sde", FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), {}, "mu is None.*True"),
        ("flow_sde", FlowMatchEulerDiscreteScheduler(), {"mu": 1.0}, "mu is 1.0.*False"),
        ("flow_sde", FlowMatchEulerDiscreteScheduler(), {"sigmas": [1.0, 0.5]}, "as many as the sigmas"),
        ("flow_sde", FlowMatchEulerDiscreteScheduler(), {"sigmas": [1, 0.5, 0.5, 0.2]}, "step 1 .*from sigma 0.5"),
        ("flow_sde", FlowMatchEulerDiscreteScheduler(), {"sigmas": [1.1, 0.5, 0.4, 0.2]}, "step 0 .*from sigma 1.1"),
        ("flow_sde", FlowMatchEulerDiscreteScheduler(), {"sigmas": [1, 0.5, 0.4, 0.0]}, "step 3 .*from sigma 0 to 0"),
    ]
    + [
        ("flow_sde", FlowMatchEulerDiscreteScheduler(**{option: True}), {}, f"{option} is on")
        for option in (
            "invert_sigmas",
            "stochastic_sampling",
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
        )
    ],
)
def test_what_a_builder_cannot_use_is_refused(build, scheduler, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(coefficients, build)(scheduler, 4, **options)


@pytest.mark.parametrize("steps", [0, -1])
@pytest.mark.parametrize("name", SAMPLERS)
def test_impossible_step_counts_of_every_sampler(name, steps):
    build, make, options, _ = SAMPLERS[name]
    with pytest.raises(ValueError, match=f"steps is {steps}; expected 1 "):
        build(make(), steps, **options)


def test_zero_terminal_signal_is_finite_for_velocity():
    """v needs no division by sqrt(abar); Euler ancestral's own schedule never reaches abar = 0."""
    scheduler = LCMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert coefficients.lcm(scheduler, 4).table.isfinite().all()
    scheduler = TCDScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert coefficients.tcd(scheduler, 4).table.isfinite().all()
    assert coefficients.euler_ancestral(euler_ancestral(rescale_betas_zero_snr=True), 4).table.isfinite().all()
