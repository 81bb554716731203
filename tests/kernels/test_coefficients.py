"""Coefficient tables against diffusers' own schedulers, and against the textbook form in float64."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from sdpo_kernels import coefficients

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "trailing",
}
DDIM = SCHEDULE | {"set_alpha_to_one": False, "clip_sample": False, "steps_offset": 0}


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
    timesteps, table = coefficients.ddim(scheduler, steps)
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
    timesteps, table = coefficients.ddim(scheduler, steps, eta=eta)
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
