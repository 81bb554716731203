"""Gains of the methods at shared learning rates, of all profiles that have several or the same for all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from sdpo_bench.analysis.comparisons import PRETRAINED, Group, Results, Values, parent
from sdpo_bench.analysis.paper import METHODS
from sdpo_bench.analysis.statistics import iqm
from sdpo_bench.analysis.tables.orders import spent
from sdpo_bench.analysis.tables.protocol import RATED, swept
from sdpo_bench.terminal import printable

COUNTED = {name for names in RATED.values() for name in names}  # ablations of the number of optimiser steps, too


@dataclass(frozen=True)
class Setting:
    """The settings that the runs of a panel have in common."""

    place: str
    """Model and device."""
    reward: str
    steps: int
    samples: int
    """Those of the longest runs."""
    split: str
    finetune: str
    prompts: str
    """A file of prompts; empty for the suite's own."""


@dataclass(frozen=True)
class Rated:
    """A panel: by method and learning rate the gains over the pretrained model by number of sampling steps and seed.
    `unfinished`: methods with a run that has no end there, because it diverged or was not made."""

    setting: Setting
    profiles: tuple[str, ...]
    gains: dict[tuple[str, float], dict[int, Values]]
    unfinished: tuple[tuple[str, float], ...]

    @cached_property
    def names(self) -> set[str]:
        return {name for name, _ in self.gains}

    @cached_property
    def rates(self) -> list[float]:
        """Learning rates, smallest first."""
        return sorted({rate for _, rate in (*self.gains, *self.unfinished)})

    def run_at(self, name: str) -> list[float]:
        """The rates at which a method has finished runs."""
        return [rate for rate in self.rates if (name, rate) in self.gains]

    @property
    def seeds(self) -> str:
        """How many seeds the methods have: "5", or "3 to 5"."""
        counts = sorted({len(self.mean(*key)) for key in self.gains})
        return f"{counts[0]}" + f" to {counts[-1]}" * (len(counts) > 1)

    def point(self, name: str, rate: float) -> float:
        """The interquartile mean of the gains over seeds."""
        return float(iqm(list(self.mean(name, rate).values())))

    @cached_property
    def floor(self) -> float:
        """The lowest gain that is drawn: below it, at a rate that is too high, the others would look level."""
        top = max(self.point(*key) for key in self.gains)
        return -top / 2 if top > 0 else -np.inf

    @property
    def sunk(self) -> dict[tuple[str, float], float]:
        """The gains below `floor`."""
        points = {key: self.point(*key) for key in sorted(self.gains)}
        return {key: point for key, point in points.items() if point < self.floor}

    def mean(self, name: str, rate: float) -> Values:
        """By seed the gain in the mean over all numbers of sampling steps, of the seeds that were evaluated at all."""
        cells = list(self.gains[name, rate].values())
        seeds = set.intersection(*map(set, cells))
        return {seed: float(np.mean([cell[seed] for cell in cells])) for seed in sorted(seeds)}

    def order(self, rate: float) -> tuple[int, int] | None:
        """At how many numbers of sampling steps the paper's whole order holds by the interquartile means over seeds,
        and of how many; None where one of its methods was not run at this rate."""
        if not all((name, rate) in self.gains for name in METHODS):
            return None
        found = [self.gains[name, rate] for name in METHODS]
        steps = sorted(set.intersection(*map(set, found)))
        points = [[float(iqm(list(cells[k].values()))) for cells in found] for k in steps]
        return sum(all(better > worse for better, worse in pairwise(at)) for at in points), len(steps)

    def merged(self, other: Rated) -> Rated:
        """Both panels in one. Runs that both have are the same."""
        gains = {key: dict(cells) for key, cells in self.gains.items()}
        for key, cells in other.gains.items():
            own = gains.setdefault(key, {})
            for steps, values in cells.items():
                own[steps] = own.get(steps, {}) | values
        unfinished = sorted({*self.unfinished, *other.unfinished})
        return Rated(self.setting, (*self.profiles, *other.profiles), gains, tuple(unfinished))


def rated(results: Results) -> list[Rated]:
    """The panels of a profile: one for each group whose methods share learning rates, with two methods or two rates."""
    found = [_rated(group) for group in results.groups]
    return [panel for panel in found if panel and len(panel.gains) > 1]


def _rated(group: Group) -> Rated | None:
    split = group.shown_split
    labels = {
        (name, rate): label
        for rate, own in swept(group).items()
        for name, label in own.items()
        if parent(name) is None or name in COUNTED
    }
    gains = {key: cells for key, label in labels.items() if (cells := _gains(group, label, split))}
    if not gains:
        return None
    used, shown = spent(group), {labels[key] for key in gains}
    samples = [used[label].samples for label in shown if label in used]
    config = next(run.config for run in group.runs if run.label in shown)
    setting = Setting(
        f"{group.model} on {group.device}",
        group.reward,
        group.steps,
        round(max(samples, default=0)),
        split,
        str(config.get("finetune", "")),
        str(config.get("prompts") or ""),
    )
    return Rated(setting, (printable(group.profile),), gains, _unfinished(group, {rate for _, rate in labels}))


def _gains(group: Group, label: str, split: str) -> dict[int, Values]:
    """Gains of a label's runs over the pretrained model, by number of sampling steps, then seed; empty where no
    seed was evaluated at all of them."""
    found = {}
    for steps in group.steps_evaluated:
        start = list(group.cell(PRETRAINED, group.reward, split, steps).values())
        if start and (values := group.cell(label, group.reward, split, steps)):
            found[steps] = {seed: value - start[0] for seed, value in values.items()}
    return found if found and set.intersection(*map(set, found.values())) else {}


def _unfinished(group: Group, rates: set[float]) -> tuple[tuple[str, float], ...]:
    """Methods and learning rates with an unfinished run, also at rates where no run has an end. A label without a rate
    has the one that all share, if there is one."""
    found = []
    for label in group.missing:
        name, _, end = label.rpartition(" ")
        try:
            rate = float(end)
        except ValueError:
            name, rate = label, min(rates) if len(rates) == 1 else np.nan
        if rate > 0 and name != PRETRAINED and (parent(name) is None or name in COUNTED):
            found.append((name, rate))
    return tuple(sorted(found))


def panels(found: Iterable[Rated]) -> list[Rated]:
    """The panels of all profiles, by reward, K and length. Profiles of one setting are in one panel where they have a
    method in common: they have it at further rates."""
    result: list[Rated] = []
    for panel in sorted(found, key=lambda panel: panel.profiles):
        alike = (
            index for index, other in enumerate(result) if other.setting == panel.setting and other.names & panel.names
        )
        if (index := next(alike, None)) is None:
            result.append(panel)
        else:
            result[index] = result[index].merged(panel)
    return sorted(
        result,
        key=lambda panel: (
            panel.setting.reward,
            panel.setting.steps,
            panel.setting.samples,
            *vars(panel.setting).values(),
            panel.profiles,
        ),
    )
