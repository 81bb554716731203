"""Coefficient tables (a, b, c, d, sigma) from a diffusers scheduler: computed in float64 on the host, then rounded.

With `m` the model's raw output and `x` the latent as the scheduler's `step` takes it: mean = a x + b m, predicted clean
= c x + d m, next = mean + sigma z. A scheduler is read, never changed (its `set_timesteps` is not called), and is known
by the name of its class: diffusers is not imported. Its `alphas_cumprod` are float32, being what the model was trained
on; everything after them is float64, and the result float32, which the operations take. docs/samplers.md compares the
samplers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
DTYPE = torch.float32  # of a schedule: what the operations take
SCM_START, SCM_MIDDLE = 1.5708, 1.3  # angles that SCMScheduler.set_timesteps has as defaults
LCM_SIGMA_DATA = 0.5  # LCMScheduler sets it at every step; it is no option


class Schedule(NamedTuple):
    """The values that a sampler needs for K steps, noisiest first; on the CPU, see `to`.

    timesteps [K] are int64, or float32 if the schedule has fractions (Euler ancestral's "linspace", flow). table is
    float32 [K, 5]: `table[k].expand(N, 5)` are the coefficients of N samples at step k. input_scale is float32 [K]: the
    model sees input_scale[k] * x. initial_scale: the first latent is initial_scale * z. Both scales are 1 except for
    Euler ancestral. signal_scale and noise_scale are float32 [K]: the latent that step k takes is distributed as
    signal_scale[k] * x0 + noise_scale[k] * z, for a clean latent x0.
    """

    timesteps: Tensor
    table: Tensor
    input_scale: Tensor
    initial_scale: float
    signal_scale: Tensor
    noise_scale: Tensor

    def to(self, device: torch.device | str) -> Schedule:
        """The schedule with its tensors on `device`, where the operations need them beside the latents."""
        return _each(self, lambda tensor: tensor.to(device))


def _each(schedule: Schedule, change: Callable[[Any], Any]) -> Schedule:
    """The schedule with each of its tensors changed."""
    values = schedule._asdict().items()
    return schedule._replace(**{name: change(x) for name, x in values if isinstance(x, Tensor)})


def trailing_timesteps(steps: int, train_steps: int = 1000) -> Tensor:
    """int64 [K], noisiest first: t = round(T - i T / K) - 1, diffusers' "trailing" spacing (arXiv 2305.08891)."""
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps is {steps}; expected 1 to {train_steps}, the number of training timesteps")
    # The increment as numpy.arange(N, 0, -N / K) computes it: its rounding error decides the halves in diffusers.
    increment = (train_steps - train_steps / steps) - train_steps
    return (train_steps + torch.arange(steps, dtype=torch.float64) * increment).round().long() - 1


def ddim(scheduler: Any, steps: int, *, eta: float = 1.0, stochastic_steps: int | None = None) -> Schedule:
    """DDIM (arXiv 2010.02502, eq. 12 and 16), from any scheduler with `alphas_cumprod`.

    A step's previous timestep is the next one of the schedule, and 0 for the last step. The first `stochastic_steps` of
    the steps (default: all) need sigma > 0, since their log-prob is needed.

    Raises ValueError if the schedule has sigma = 0 there, for a scheduler that clips (no linear step), and if a
    coefficient is not finite.
    """
    prediction = _prediction_type(scheduler, PREDICTION_TYPES)
    _refuse_clipping(scheduler)
    abar = scheduler.alphas_cumprod.double().cpu()
    timesteps = trailing_timesteps(steps, len(abar))
    abar_t = abar[timesteps]
    abar_prev = abar[torch.cat([timesteps[1:], timesteps.new_zeros(1)])]
    variance = eta**2 * (1 - abar_prev) / (1 - abar_t) * (1 - abar_t / abar_prev)
    sigma = variance.clamp_min(0).sqrt()
    A, S = abar_t.sqrt(), (1 - abar_t).sqrt()
    Ap, D = abar_prev.sqrt(), (1 - abar_prev - sigma**2).clamp_min(0).sqrt()
    table = torch.stack([*_ddim_mean(prediction, A, S, Ap, D), *_predicted_clean(prediction, A, S), sigma], 1)
    stochastic = steps if stochastic_steps is None else stochastic_steps
    schedule = Schedule(timesteps, table, torch.ones_like(A), 1.0, A, S)
    return _rounded(schedule, stochastic, prediction, "choose fewer steps, eta > 0, or ")


def euler_ancestral(scheduler: Any, steps: int, *, stochastic_steps: int | None = None) -> Schedule:
    """Euler ancestral (arXiv 2011.13456, eq. 47, in k-diffusion's form), from an EulerAncestralDiscreteScheduler.

    The latent is x = x0 + sigma z with sigma^2 = (1 - abar) / abar, not DDIM's: it starts at `initial_scale` and the
    model sees `input_scale` of it. The timesteps have the scheduler's spacing. The last step goes to sigma = 0 without
    noise, so only the steps before it have a log-prob: `stochastic_steps` is K - 1 unless given.

    Raises TypeError for another scheduler; ValueError for an unknown prediction type or spacing, for a scheduler that
    clips (no linear step), for sigma = 0 if a log-prob is needed, and for a coefficient that is not finite.
    """
    _require(scheduler, "EulerAncestralDiscreteScheduler")
    prediction = _prediction_type(scheduler, ("epsilon", "v_prediction"))
    _refuse_clipping(scheduler)
    abar = scheduler.alphas_cumprod.double().cpu()
    timesteps = _spaced_timesteps(scheduler, steps, len(abar))
    levels = ((1 - abar) / abar).sqrt()
    # Between two training timesteps sigma is linear, and constant beyond the last one (a "leading" offset's reach).
    low = timesteps.long().clamp_max(len(abar) - 1)
    high = (low + 1).clamp_max(len(abar) - 1)
    sigma_t = levels[low] + (timesteps - low) * (levels[high] - levels[low])
    sigma_to = torch.cat([sigma_t[1:], sigma_t.new_zeros(1)])
    sigma_up = (sigma_to**2 * (sigma_t**2 - sigma_to**2)).sqrt() / sigma_t
    sigma_down = sigma_to**2 / sigma_t  # sqrt(sigma_to^2 - sigma_up^2), without its cancellation
    kappa = (sigma_down - sigma_t) / sigma_t
    scale = (sigma_t**2 + 1).rsqrt()
    c, d = {
        "epsilon": (torch.ones_like(sigma_t), -sigma_t),
        "v_prediction": (scale**2, -sigma_t * scale),
    }[prediction]
    table = torch.stack([1 + kappa * (1 - c), -kappa * d, c, d, sigma_up], 1)
    # What init_noise_sigma is after set_timesteps.
    first = float(sigma_t[0])
    initial = math.hypot(first, 1) if scheduler.config.timestep_spacing == "leading" else first
    schedule = Schedule(timesteps, table, scale, initial, torch.ones_like(scale), sigma_t)
    return _rounded(schedule, steps - 1 if stochastic_steps is None else stochastic_steps, prediction)


def lcm(scheduler: Any, steps: int, *, stochastic_steps: int | None = None) -> Schedule:
    """Multistep latent consistency sampling (arXiv 2310.04378), from an LCMScheduler, with its own timesteps.

    Each step adds the noise of the next timestep to f = c_out x0 + c_skip x (c_skip and c_out: arXiv 2303.01469, eq.
    5). The last one returns f, so only the steps before it have a log-prob: `stochastic_steps` is K - 1 unless given.
    The predicted clean latent is x0, not f; they differ by c_skip, at most 7e-6 on the default options' timesteps.

    Raises TypeError for another scheduler; ValueError for an unknown prediction type, for a scheduler that clips (no
    linear step), for sigma = 0 if a log-prob is needed, and for a coefficient that is not finite.
    """
    _require(scheduler, "LCMScheduler")
    config = scheduler.config
    prediction = _prediction_type(scheduler, PREDICTION_TYPES)
    _refuse_clipping(scheduler)
    abar = scheduler.alphas_cumprod.double().cpu()
    timesteps = _distilled_timesteps(config, steps, len(abar))
    abar_t = abar[timesteps]
    # The last step as one to abar = 1.
    abar_prev = torch.cat([abar_t[1:], abar_t.new_ones(1)])
    A, S, Ap = abar_t.sqrt(), (1 - abar_t).sqrt(), abar_prev.sqrt()
    scaled = timesteps.double() * config.timestep_scaling
    c_skip = LCM_SIGMA_DATA**2 / (scaled**2 + LCM_SIGMA_DATA**2)
    c_out = scaled / (scaled**2 + LCM_SIGMA_DATA**2).sqrt()
    c, d = _predicted_clean(prediction, A, S)
    table = torch.stack([Ap * (c_out * c + c_skip), Ap * c_out * d, c, d, (1 - abar_prev).sqrt()], 1)
    schedule = Schedule(timesteps, table, torch.ones_like(A), 1.0, A, S)
    return _rounded(schedule, steps - 1 if stochastic_steps is None else stochastic_steps, prediction)


def tcd(scheduler: Any, steps: int, *, level: float = 0.3, stochastic_steps: int | None = None) -> Schedule:
    """Strategic stochastic sampling (arXiv 2402.19159), from a TCDScheduler, with its own timesteps.

    A step goes by DDIM without noise to the timestep floor((1 - level) t'), and from there by fresh noise back to t',
    the schedule's next one: a step of DDIM with another sigma. `level` is the paper's gamma, 0 (no noise) to 1; 0.3 is
    the default of TCDScheduler.step, which calls it eta. The last step goes to timestep 0 without noise, and only the
    steps before it have a log-prob: `stochastic_steps` is K - 1 unless given.
    Raises TypeError for another scheduler; ValueError for an unknown prediction type, for one that clips (no linear
    step), for sigma = 0 where a log-prob is wanted, and for a coefficient that is not finite.
    """
    _require(scheduler, "TCDScheduler")
    _require_level(level, 1)
    prediction = _prediction_type(scheduler, PREDICTION_TYPES)
    _refuse_clipping(scheduler)
    abar = scheduler.alphas_cumprod.double().cpu()
    timesteps = _distilled_timesteps(scheduler.config, steps, len(abar))
    following = torch.cat([timesteps[1:], timesteps.new_zeros(1)])
    between = ((1 - level) * following).floor().long()  # in float32, as the scheduler rounds it
    abar_t, abar_prev, abar_s = abar[timesteps], abar[following], abar[between]
    A, S = abar_t.sqrt(), (1 - abar_t).sqrt()
    kept = abar_prev / abar_s  # the signal's share of variance that the noising from `between` leaves
    mean = _ddim_mean(prediction, A, S, abar_prev.sqrt(), (kept * (1 - abar_s)).sqrt())
    table = torch.stack([*mean, *_predicted_clean(prediction, A, S), (1 - kept).sqrt()], 1)
    schedule = Schedule(timesteps, table, torch.ones_like(A), 1.0, A, S)
    stochastic = steps - 1 if stochastic_steps is None else stochastic_steps
    return _rounded(schedule, stochastic, prediction, _more_noise(level))


def scm(scheduler: Any, steps: int, *, stochastic_steps: int | None = None) -> Schedule:
    """Multistep sampling of TrigFlow's consistency models (arXiv 2410.11081), from an SCMScheduler.

    Latents are those of the scheduler divided by its sigma_data: cos(t) x0 + sin(t) z. Timesteps are the angles t,
    as SCMScheduler and SanaSprintPipeline choose them by default: 1.5708 and 1.3 for two steps, otherwise K
    equally far from 1.5708 to 0. m is TrigFlow's F, so x0 = cos(t) x - sin(t) m. Each step adds the noise of the next
    angle to x0. The last one returns it, so only the steps before it have a log-prob: `stochastic_steps` is K - 1
    unless given.

    Raises TypeError for another scheduler; ValueError for another prediction type, for more steps than the scheduler
    has, and for sigma = 0 if a log-prob is needed.
    """
    _require(scheduler, "SCMScheduler")
    prediction = _prediction_type(scheduler, ("trigflow",))
    most = scheduler.config.num_train_timesteps
    if not 1 <= steps <= most:
        raise ValueError(f"steps is {steps}; expected 1 to {most}, the scheduler's num_train_timesteps")
    angles = torch.linspace(SCM_START, 0, steps + 1, dtype=torch.float64)
    if steps == 2:
        angles[1] = SCM_MIDDLE
    A, S = angles[:-1].cos(), angles[:-1].sin()
    Ap, Sp = angles[1:].cos(), angles[1:].sin()
    table = torch.stack([Ap * A, -Ap * S, A, -S, Sp], 1)
    schedule = Schedule(angles[:-1], table, torch.ones_like(A), 1.0, A, S)
    return _rounded(schedule, steps - 1 if stochastic_steps is None else stochastic_steps, prediction)


def flow_sde(
    scheduler: Any,
    steps: int,
    *,
    level: float = 0.7,
    mu: float | None = None,
    sigmas: Sequence[float] | None = None,
    stochastic_steps: int | None = None,
) -> Schedule:
    """Flow-GRPO's SDE (arXiv 2505.05470, eq. 9), from a FlowMatchEulerDiscreteScheduler; m is the velocity z - x0.

    `level` is the paper's a (0.7 in its appendix B.3), in g = a sqrt(sigma_t / (1 - sigma_t)); 0 is the Euler step of
    the ODE. At sigma_t = 1 (diffusers' first step) g is infinite. There 1 - sigma_t uses the next step's sigma, as in
    the authors' code (github.com/yifan123/flow_grpo, sd3_sde_with_logprob.py). Every step has noise, the last one too.

    `mu` is the shift for use_dynamic_shifting. `sigmas` are [K] values before the shift, such as a pipeline gives
    (Flux: linspace(1, 1 / K, K)); by default the scheduler's. The first `stochastic_steps` of the steps (default: all)
    need sigma > 0.

    Raises TypeError for another scheduler; ValueError for options of the scheduler that are not supported, for a
    schedule that does not fall from 1 to 0, and for sigma = 0 if a log-prob is needed.
    """
    _require_level(level)
    timesteps, sigma_t, sigma_to = _flow_steps(scheduler, steps, mu, sigmas)
    dt = sigma_to - sigma_t
    # float(): a shift may leave 1 - 1e-16, which in diffusers' float32 is 1.
    half = level**2 / (2 * (1 - torch.where(sigma_t.float() == 1, sigma_to, sigma_t)))  # g^2 / (2 sigma_t)
    noise = (2 * half * sigma_t * -dt).sqrt()
    stochastic = steps if stochastic_steps is None else stochastic_steps
    a, b = 1 + half * dt, (1 + half * (1 - sigma_t)) * dt
    return _flow_schedule(timesteps, sigma_t, (a, b, noise), stochastic, level)


def flow_cps(
    scheduler: Any,
    steps: int,
    *,
    level: float = 0.8,
    mu: float | None = None,
    sigmas: Sequence[float] | None = None,
    stochastic_steps: int | None = None,
) -> Schedule:
    """Coefficients-preserving sampling (arXiv 2509.05952), from a FlowMatchEulerDiscreteScheduler; m is z - x0.

    Of the next latent's noise, sigma_to in all, sin(level pi / 2) is fresh and the rest, in variance, the predicted
    one: next = (1 - sigma_to) x0 + sigma_to (cos z_predicted + sin z). So a latent has as much noise as its timestep
    says, where the other two samplers of flows have more. `level` is the authors' noise_level, from 0, the Euler step
    of the ODE, to 1, all of the noise fresh; github.com/yifan123/flow_grpo advises 0.8. The last step has no noise, and
    only the steps before it have a log-prob: `stochastic_steps` is K - 1 unless given.
    `mu`, `sigmas` and what is raised are as for `flow_sde`.
    """
    _require_level(level, 1)
    timesteps, sigma_t, sigma_to = _flow_steps(scheduler, steps, mu, sigmas)
    old, fresh = sigma_to * math.cos(level * math.pi / 2), sigma_to * math.sin(level * math.pi / 2)
    stochastic = steps - 1 if stochastic_steps is None else stochastic_steps
    a, b = 1 - sigma_to + old, (1 - sigma_t) * old - sigma_t * (1 - sigma_to)
    return _flow_schedule(timesteps, sigma_t, (a, b, fresh), stochastic, level)


def dance_sde(
    scheduler: Any,
    steps: int,
    *,
    level: float = 0.3,
    mu: float | None = None,
    sigmas: Sequence[float] | None = None,
    stochastic_steps: int | None = None,
) -> Schedule:
    """DanceGRPO's SDE (arXiv 2505.07818), from a FlowMatchEulerDiscreteScheduler; m is the velocity z - x0.

    As `flow_sde`, but for a constant g: `level`, the authors' eta (0.3 in their script for FLUX,
    github.com/XueZeyue/DanceGRPO); 0 is the Euler step of the ODE. Every step has noise, the last one too.
    `mu`, `sigmas`, `stochastic_steps` and what is raised are as for `flow_sde`.
    """
    _require_level(level)
    timesteps, sigma_t, sigma_to = _flow_steps(scheduler, steps, mu, sigmas)
    dt = sigma_to - sigma_t
    pull = level**2 * dt / (2 * sigma_t)
    stochastic = steps if stochastic_steps is None else stochastic_steps
    a, b = 1 + pull, dt + pull * (1 - sigma_t)
    return _flow_schedule(timesteps, sigma_t, (a, b, level * (-dt).sqrt()), stochastic, level)


def for_scheduler(scheduler: Any, steps: int, **options: Any) -> Schedule:
    """Builds the schedule for a scheduler by its class, `flow_sde` for flows; `options` are those of its builder.

    Raises TypeError for a scheduler that has no stochastic step here, and what the builder raises.
    """
    builders: dict[str, Callable[..., Schedule]] = {
        "DDIMScheduler": ddim,
        "EulerAncestralDiscreteScheduler": euler_ancestral,
        "LCMScheduler": lcm,
        "TCDScheduler": tcd,
        "SCMScheduler": scm,
        "FlowMatchEulerDiscreteScheduler": flow_sde,
    }
    for name, build in builders.items():
        if _is(scheduler, name):
            return build(scheduler, steps, **options)
    raise TypeError(
        f"the scheduler is a {type(scheduler).__name__}; expected one of {', '.join(builders)}: "
        f"make one with its from_config(scheduler.config)"
    )


def _is(scheduler: Any, name: str) -> bool:
    return any(base.__name__ == name for base in type(scheduler).__mro__)


def _require(scheduler: Any, name: str) -> None:
    if not _is(scheduler, name):
        raise TypeError(f"the scheduler is a {type(scheduler).__name__}; expected a {name}")


def _prediction_type(scheduler: Any, known: tuple[str, ...]) -> str:
    prediction = scheduler.config.prediction_type
    if prediction not in known:
        raise ValueError(f"the scheduler's prediction_type is {prediction!r}; expected one of {known}")
    return str(prediction)


def _refuse_clipping(scheduler: Any) -> None:
    """Refuses clipping even if the scheduler's class does not read the option, because its file asks for it."""
    for option in ("clip_sample", "thresholding"):
        if getattr(scheduler.config, option, False):
            raise ValueError(f"the scheduler's {option} is on, but a clipped step is not linear; turn it off")


def _require_level(level: float, most: float = math.inf) -> None:
    if not (0 <= level <= most and level < math.inf):
        raise ValueError(f"the noise level is {level}; expected 0 (no noise) " + ("to 1" if most == 1 else "or above"))


def _more_noise(level: float) -> str:
    """The end of an error message: what would make sigma > 0. For `_rounded`."""
    return "" if level else "choose a noise level > 0, or "


def _ddim_mean(prediction: str, A: Tensor, S: Tensor, Ap: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) of Ap x0 + D z for the x0 and z that are predicted from a latent x = A x0 + S z."""
    return {
        "epsilon": (Ap / A, D - Ap * S / A),
        "sample": (D / S, Ap - D * A / S),
        "v_prediction": (Ap * A + D * S, D * A - Ap * S),
    }[prediction]


def _predicted_clean(prediction: str, A: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """(c, d) for a latent x = A x0 + S z."""
    return {
        "epsilon": (1 / A, -S / A),
        "sample": (torch.zeros_like(A), torch.ones_like(A)),
        "v_prediction": (A, -S),
    }[prediction]


def _spaced_timesteps(scheduler: Any, steps: int, train_steps: int) -> Tensor:
    """[K] by the scheduler's timestep_spacing, as diffusers' Euler schedulers space them; "linspace" has fractions."""
    trailing = trailing_timesteps(steps, train_steps)  # refuses impossible steps for every spacing
    spacing = scheduler.config.timestep_spacing
    if spacing == "trailing":
        return trailing
    if spacing == "leading":
        return torch.arange(steps).flip(0) * (train_steps // steps) + scheduler.config.steps_offset
    if spacing == "linspace":
        return torch.linspace(0, train_steps - 1, steps, dtype=torch.float64).flip(0)
    raise ValueError(f"the scheduler's timestep_spacing is {spacing!r}; expected linspace, leading or trailing")


def _distilled_timesteps(config: Any, steps: int, train_steps: int) -> Tensor:
    """int64 [K]: a model was distilled at timesteps i (T // original) - 1; K of them, from the noisiest on."""
    original = config.original_inference_steps
    if not 1 <= steps <= original <= train_steps:
        raise ValueError(
            f"steps is {steps}; expected 1 to {original}, the scheduler's original_inference_steps, "
            f"which may be {train_steps} at most"
        )
    skipped = (torch.arange(steps, dtype=torch.float64) * (original / steps)).floor().long()
    return (original - skipped) * (train_steps // original) - 1


def _flow_steps(
    scheduler: Any, steps: int, mu: float | None, sigmas: Sequence[float] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Timesteps, sigmas, and the sigmas that the steps go to, float64 [K]; the last one is 0."""
    _require(scheduler, "FlowMatchEulerDiscreteScheduler")
    sigma_t = _flow_sigmas(scheduler, steps, mu, sigmas)
    sigma_to = torch.cat([sigma_t[1:], sigma_t.new_zeros(1)])
    timesteps = sigma_t * scheduler.config.num_train_timesteps
    for k in range(steps):
        if not (sigma_to[k] < sigma_t[k] and sigma_t[k].float() <= 1):
            raise ValueError(
                f"step {k} (timestep {float(timesteps[k]):g}) goes from sigma {float(sigma_t[k]):g} to "
                f"{float(sigma_to[k]):g}; expected sigmas that fall from 1 or less: give other steps, sigmas or mu"
            )
    return timesteps, sigma_t, sigma_to


def _flow_schedule(
    timesteps: Tensor, sigma_t: Tensor, step: tuple[Tensor, Tensor, Tensor], stochastic_steps: int, level: float
) -> Schedule:
    """The schedule from each step's a, b and sigma, float64 [K] each."""
    one = torch.ones_like(sigma_t)
    a, b, noise = step
    table = torch.stack([a, b, one, -sigma_t, noise], 1)
    schedule = Schedule(timesteps, table, one, 1.0, 1 - sigma_t, sigma_t)
    return _rounded(schedule, stochastic_steps, "velocity", _more_noise(level))


def _flow_sigmas(scheduler: Any, steps: int, mu: float | None, sigmas: Sequence[float] | None) -> Tensor:
    """float64 [K], as the scheduler's set_timesteps shifts them, the final 0 left out."""
    config = scheduler.config
    for option in (
        "invert_sigmas",
        "stochastic_sampling",
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
    ):
        if getattr(config, option, False):
            raise ValueError(f"the scheduler's {option} is on, which the samplers of flows do not support; turn it off")
    if config.use_dynamic_shifting != (mu is not None):
        raise ValueError(
            f"mu is {mu}, and the scheduler's use_dynamic_shifting is {config.use_dynamic_shifting}; "
            f"expected mu exactly where the shift is dynamic"
        )
    if steps < 1 or (sigmas is not None and len(sigmas) != steps):
        raise ValueError(f"steps is {steps}; expected 1 or more, and as many as the sigmas, if they are given")
    if sigmas is None:
        # The scheduler's smallest sigma is shifted once by itself, and then again with the others.
        smallest = 1 / config.num_train_timesteps
        if not config.use_dynamic_shifting:
            smallest = config.shift * smallest / (1 + (config.shift - 1) * smallest)
        sigma = torch.linspace(1, smallest, steps, dtype=torch.float64)
    else:
        sigma = torch.as_tensor(sigmas, dtype=torch.float64)
    if mu is None:
        sigma = scheduler.shift * sigma / (1 + (scheduler.shift - 1) * sigma)
    else:
        shift = math.exp(mu) if config.time_shift_type == "exponential" else mu
        sigma = shift / (shift + (1 / sigma - 1))
    if config.shift_terminal:
        sigma = 1 - (1 - sigma) * ((1 - config.shift_terminal) / (1 - sigma[-1]))
    return sigma


def _rounded(schedule: Schedule, stochastic_steps: int, prediction: str, cure: str = "") -> Schedule:
    """The float64 `schedule` in DTYPE; timesteps stay int64 where they are.

    ValueError for a coefficient that is not finite, and for sigma = 0 within the first `stochastic_steps` rows.
    """
    schedule = _each(schedule, lambda tensor: tensor.to(DTYPE) if tensor.is_floating_point() else tensor)
    for k, (timestep, row) in enumerate(zip(schedule.timesteps.tolist(), schedule.table, strict=True)):
        if not torch.isfinite(row).all():
            raise ValueError(
                f"step {k} (timestep {timestep:g}) has a coefficient that is not finite: this schedule has zero "
                f"signal there, which prediction_type {prediction!r} cannot use"
            )
        if k < stochastic_steps and not row[4] > 0:
            raise ValueError(
                f"step {k} (timestep {timestep:g}) has sigma = 0, so it has no log-prob to train; {cure}"
                f"leave the step out of training (--no-train-last-step for the last one)"
            )
    return schedule
