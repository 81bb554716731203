"""Learning rates by method, reward and K, as chosen by the sweeps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sdpo_bench.errors import UserError, choose
from sdpo_bench.experiments.variants import VARIANTS
from sdpo_bench.methods import METHODS

# Learning rates by training K, of SWEEP, from `--profile sweep` (the others: sweep_k8, sweep_k20, sweep_k50): the one
# whose run has the highest mean of the optimised reward on the tuning prompts, over all step counts. Other K take the
# entry whose K is nearest by ratio; an ablation takes its method's, unless it takes its optimiser steps otherwise and
# was swept itself. Rewards without a sweep of their own (below) take these, which are alignment's.
SWEEP = (1e-5, 3e-5, 1e-4, 3e-4)


LEARNING_RATES: dict[str, dict[int, float]] = {
    "sdpo": {4: 1e-4, 8: 3e-5, 20: 3e-5, 50: 1e-5},
    "sdpo_causal": {4: 1e-4, 8: 3e-5, 20: 3e-5, 50: 1e-5},
    "ddpo": {4: 1e-4, 8: 3e-4, 20: 1e-4, 50: 1e-4},
    "rebel": {4: 1e-4, 8: 1e-4, 20: 1e-4, 50: 1e-4},
    "prdp": {4: 1e-4, 8: 1e-4, 20: 1e-4, 50: 1e-4},
    "d3po": {4: 1e-4, 8: 1e-4, 20: 1e-4, 50: 3e-5},
    "ddpo_dense": {4: 1e-4, 8: 3e-4, 20: 3e-4, 50: 3e-4},
    "sdpo_per_trajectory": {4: 1e-4, 20: 1e-4},
    "ddpo_per_step": {4: 1e-4, 20: 1e-4},
    "rebel_per_step": {4: 1e-4, 20: 3e-5},
}


# By the same rule from `--profile recent-sweep`.
LEARNING_RATES |= {
    "grpo": {4: 1e-4},
    "grpo_guard": {4: 3e-4},
    "flow_dppo": {4: 1e-4},
    "dense_grpo": {4: 1e-4},
    "diffusion_nft": {4: 1e-4},
    "crd": {4: 1e-4},
    "pso": {4: 3e-4},
    "draft": {4: 3e-4},
    "rtdmd_lite": {4: 3e-4},
    "ddpo_critic": {4: 1e-4},
    "ddpo_groups8": {4: 1e-4},
    "grpo_groups4": {4: 1e-4},
}


LEARNING_RATES["sdpo_gain"] = LEARNING_RATES["sdpo"]  # an ablation of it


# The next lower of the sweep, at K = 20 DDPO's: the rule looks at the trained reward alone, and may choose to hack it.
LEARNING_RATES["ddpo_dense_lower_rate"] = {4: 3e-5, 20: 1e-4}


# By the same rule from `--profile sweep-jpeg` and sweep-jpeg-k20: this reward still rises where the prompt is lost.
REWARD_RATES: dict[str, dict[str, dict[int, float]]] = {
    "jpeg_compressibility": {
        "sdpo": {4: 3e-4, 20: 1e-4},
        "sdpo_causal": {4: 3e-4, 20: 3e-4},
        "ddpo": {4: 3e-4, 20: 3e-4},
        "rebel": {4: 3e-4, 20: 3e-4},
        "prdp": {4: 3e-4, 20: 3e-4},
        "d3po": {4: 3e-4, 20: 3e-4},
        "ddpo_dense": {4: 3e-4, 20: 3e-4},
    }
}


def learning_rate(name: str, steps: int, reward: str = "alignment") -> float:
    """The swept learning rate of a variant at K = `steps`. UserError for a variant without a sweep."""
    method = VARIANTS[name].method if name in VARIANTS else name
    own = REWARD_RATES.get(reward, {})
    rates = own.get(name) or own.get(method) or LEARNING_RATES.get(name) or LEARNING_RATES.get(method)
    rates = rates or (METHODS[method].learning_rates if method in METHODS else {})
    if not rates:
        raise UserError(
            f"there is no learning rate for {name!r}: run `sdpo-bench reproduce --profile sweep --methods {name}` "
            f"and put the best into the method's file, as learning_rates = {{{steps}: RATE}}"
        )
    return rates[min(rates, key=lambda k: (abs(math.log(k / steps)), k))]


def given_rates(texts: Sequence[str], methods: Sequence[str]) -> dict[str, float]:
    """The learning rates of --learning-rates, METHOD=RATE, by method. UserError for one that is not a positive number,
    or whose method is not among the `methods` that are run, or has one already."""
    rates: dict[str, float] = {}
    for text in texts:
        given, _, value = text.partition("=")
        name = choose("method in --learning-rates", given.replace("-", "_"), VARIANTS)
        try:
            rate = float(value)
        except ValueError:
            rate = math.nan
        if not 0 < rate < math.inf:
            raise UserError(
                f"--learning-rates {text}: expected METHOD=RATE with a number > 0, for example {given}=3e-5"
            )
        if name in rates:
            raise UserError(f"--learning-rates {text}: {given} has a rate already; give each method once")
        if name not in methods:
            raise UserError(
                f"--learning-rates {text}: {given} is not run; add it to --methods, or leave it out here "
                f"(run are: {', '.join(methods)})"
            )
        rates[name] = rate
    return rates
