"""The protocols: how a profile gives its methods their learning rates. A statement about an order names one."""

from __future__ import annotations

from collections.abc import Iterable

from sdpo_bench.records.reader import RunRecord

PROTOCOLS = {
    "tuned": "each method has the learning rate that its own sweep chose",
    "shared": "all methods have one learning rate",
    "sweep": "every method is run at the same several learning rates, on prompts and a seed that are not reported",
}


PROFILES = {
    **dict.fromkeys(("smoke", "quick", "first_look", "full", "recent", "recent_colourfulness"), "tuned"),
    **dict.fromkeys(("paper_k20_tuned", "paper_k4_tuned"), "tuned"),
    **dict.fromkeys(
        ("paper_k20", "paper_k4", "paper_k20_quarter", "paper_k20_rates", "paper_k4_rates", "paper_why_k4", "sd_turbo"),
        "shared",
    ),
    **dict.fromkeys(("paper_k50", "paper_k20_jpeg", "paper_why_k20", "recent_shared", "recent_guard"), "shared"),
    **dict.fromkeys(("paper_k20_settings", "paper_k20_prompts", "paper_k20_lora_rates"), "shared"),
    **dict.fromkeys(("sweep", "sweep_k8", "sweep_k20", "sweep_k50", "sweep_jpeg", "sweep_jpeg_k20"), "sweep"),
    **dict.fromkeys(("recent_sweep", "recent_sweep_edge", "paper_pilot"), "sweep"),
}
"""By profile, which is the name of a results folder too: for plans of versions that did not name the protocol."""


GIVEN = "methods have learning rates of their own, which were given with --learning-rates"


def protocol_of(profile: str, runs: Iterable[RunRecord] = (), planned: str = "") -> str:
    """The protocol of these runs of a profile, of which plan.json names one (`planned`) or the profile's name tells it;
    empty for a folder that no profile made, such as one of single runs."""
    name = planned or PROFILES.get(profile, "")
    return "tuned" if name == "shared" and has_own_rates(runs) else name


def has_own_rates(runs: Iterable[RunRecord]) -> bool:
    """Whether the methods of one reward and K have different learning rates. Runs whose label ends in their rate are
    left out: their profile makes every method at each of several shared rates."""
    rates: dict[tuple[str, int], set[float]] = {}
    for run in runs:
        rate = run.config["learning_rate"]
        if run.config["epochs"] and not run.label.endswith(f" {rate:g}"):
            rates.setdefault((run.config["reward"], run.config["steps"]), set()).add(rate)
    return any(len(found) > 1 for found in rates.values())


def described(profile: str, runs: Iterable[RunRecord] = (), planned: str = "") -> str:
    """That protocol with its meaning, such as "shared (all methods have one learning rate)"; empty without one."""
    name = protocol_of(profile, runs, planned)
    return f"{name} ({PROTOCOLS[name] if name == protocol_of(profile, (), planned) else GIVEN})" if name else ""
