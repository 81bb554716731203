"""The rows of the tables: every method, and the ablations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sdpo_bench.methods import METHODS

Options = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A row of the tables: a method with its settings."""

    method: str
    label: str
    changes: Options = field(default_factory=dict)


# Every method is a variant of its own name; these are the ablations that say where a difference comes from. Their
# labels read "PARENT (change)".
NO_CLIPPING = 1e6  # a clip range that no log-ratio reaches


ABLATIONS = {
    # SDPO takes K optimiser steps where the others take one: how much of a difference is only that?
    "sdpo_per_trajectory": Variant("sdpo", "SDPO (per trajectory)", {"updates": "trajectory"}),
    "ddpo_per_step": Variant("ddpo", "DDPO (per step)", {"updates": "step"}),
    "rebel_per_step": Variant("rebel", "REBEL (per step)", {"updates": "step"}),
    # Do dense rewards help, or only SDPO's loss? And what does averaging them from three queries cost?
    "sdpo_terminal": Variant("sdpo", "SDPO (terminal)", {"dense": "terminal"}),
    "sdpo_exact": Variant("sdpo", "SDPO (exact)", {"dense": "exact"}),
    "sdpo_linear": Variant("sdpo", "SDPO (linear)", {"dense": "linear"}),
    # The return: which rewards a step is credited with.
    "sdpo_gain": Variant("sdpo_gain", "SDPO (gain)"),
    "sdpo_gamma0": Variant("sdpo", "SDPO (gamma 0)", {"options": {"gamma": 0.0}}),
    # DDPO-dense: how much is the baseline, how much the number of queries?
    "ddpo_dense_no_baseline": Variant("ddpo_dense", "DDPO-dense (no baseline)", {"options": {"control": 0.0}}),
    "ddpo_dense_anchored": Variant("ddpo_dense", "DDPO-dense (anchored)", {"dense": "anchored"}),
    "ddpo_dense_linear": Variant("ddpo_dense", "DDPO-dense (linear)", {"dense": "linear"}),
    "ddpo_dense_lower_rate": Variant("ddpo_dense", "DDPO-dense (lower rate)"),
    # The rest of the recipe.
    "sdpo_lambda1": Variant("sdpo", "SDPO (lambda 1)", {"options": {"step_discount": 1.0}}),
    "sdpo_no_shuffling": Variant("sdpo", "SDPO (no shuffling)", {"step_shuffle": False}),
    "sdpo_no_clipping": Variant("sdpo", "SDPO (no clipping)", {"clip_range": NO_CLIPPING}),
    # The official code trains the last step too, whose noise comes after the picture that is scored.
    "sdpo_last_step": Variant("sdpo", "SDPO (last step)", {"train_last_step": True}),
    "ddpo_last_step": Variant("ddpo", "DDPO (last step)", {"train_last_step": True}),
}


# The profiles leave the last denoising step out, whose noise comes after the picture. Where finished samples are noised
# anew that is no reason, and the last noise level is trained too.
VARIANTS = {
    name: Variant(name, cls.title, {"train_last_step": True} if cls.learns_from == "noised" else {})
    for name, cls in METHODS.items()
} | ABLATIONS


# What does a group give over pairs, at the same number of samples?
GROUPS = {
    "ddpo_groups8": Variant("ddpo", "DDPO (groups of 8)", {"group_size": 8}),
    "grpo_groups4": Variant("grpo", "GRPO (groups of 4)", {"group_size": 4}),
}
VARIANTS |= GROUPS


# Why an order holds at one shared rate: the number of optimiser steps, and what public code does otherwise. As many
# inner epochs as trained steps, by K.
INNER = {
    steps: {
        f"{name}_inner{steps - 1}": Variant(
            name, f"{METHODS[name].title} ({steps - 1} inner epochs)", {"inner_epochs": steps - 1}
        )
        for name in ("ddpo", "rebel", "prdp")
    }
    for steps in (4, 20)
}
WHY = {
    # At PRDP's beta of 1 neither its target nor its tie to the pretrained model is felt (docs/methods/prdp.md).
    "prdp_low_beta": Variant("prdp", "PRDP (beta 0.1)", {"options": {"beta": 0.1}}),
    "prdp_high_beta": Variant("prdp", "PRDP (beta 10)", {"options": {"beta": 10.0}}),
    # RLCM's REBEL adds up the log-probs of a batch of two pairs; its clip of the gradient's norm always acts here.
    "rebel_batch_sum": Variant("rebel", "REBEL (batch sum)", {"options": {"batch_sum": 2.0}}),
    "rebel_no_norm_clip": Variant("rebel", "REBEL (no norm clip)", {"max_grad_norm": NO_CLIPPING}),
    "sdpo_no_norm_clip": Variant("sdpo", "SDPO (no norm clip)", {"max_grad_norm": NO_CLIPPING}),
    # D3PO's public code takes an optimiser step for each pair.
    "d3po_pair_updates": Variant("d3po", "D3PO (an update a pair)", {"pairs_per_update": 1}),
}
VARIANTS |= WHY | INNER[4] | INNER[20]


METHOD_NAMES = ("sdpo", "sdpo_causal", "ddpo", "rebel", "prdp", "d3po")


STUDIED = (*METHOD_NAMES, "ddpo_dense")


RECENT = (
    *("grpo", "grpo_guard", "flow_dppo", "dense_grpo", "diffusion_nft", "crd", "pso", "draft", "rtdmd_lite"),
    "ddpo_critic",
)
"""Methods of 2024 to 2026, DRaFT, the upper reference, and DDPO-critic, which is this project's."""


PAPER_METHODS = ("sdpo", "ddpo", "rebel", "d3po")  # that its figure compares


# Settings of the paper's runs that the study's differ in, one at a time. With four times as many samples an epoch, a
# quarter of the paper's length is 28 epochs.
SETTINGS = {
    f"{name}_{setting}": Variant(name, f"{METHODS[name].title} ({words})", changes)
    for setting, words, changes in (
        ("last_step", "last step", {"train_last_step": True}),
        ("128_pairs", "128 pairs", {"pairs": 128, "pairs_per_update": 64, "epochs": 28, "eval_every": 4}),
    )
    for name in PAPER_METHODS
}
VARIANTS |= SETTINGS
