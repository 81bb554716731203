"""The protocols: how a profile gives its methods their learning rates. A statement about an order names one."""

from __future__ import annotations

PROTOCOLS = {
    "tuned": "each method has the learning rate that its own sweep chose",
    "shared": "all methods have one learning rate, as in the paper",
    "sweep": "every method is run at the same several learning rates, on prompts and a seed that are not reported",
}


PROFILES = {
    **dict.fromkeys(("smoke", "quick", "first_look", "full", "recent", "recent_colourfulness"), "tuned"),
    **dict.fromkeys(
        ("paper_k20", "paper_k4", "paper_k20_quarter", "paper_k20_rates", "paper_k4_rates", "paper_why_k4", "sd_turbo"),
        "shared",
    ),
    **dict.fromkeys(("sweep", "sweep_k8", "sweep_k20", "sweep_k50", "sweep_jpeg", "sweep_jpeg_k20"), "sweep"),
    **dict.fromkeys(("recent_sweep", "paper_pilot"), "sweep"),
}
"""By profile, which is the name of a results folder too."""


def protocol_of(profile: str) -> str:
    """A profile's protocol; empty for a folder that no profile made, such as one of single runs."""
    return PROFILES.get(profile, "")


def described(profile: str) -> str:
    """A profile's protocol with its meaning, such as "shared (all methods have one learning rate)"; empty without."""
    name = protocol_of(profile)
    return f"{name} ({PROTOCOLS[name]})" if name else ""
