"""The page over all profiles of a folder of results: who leads, and whether the paper's order holds, by reward, K,
protocol and length; and gains by learning rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from sdpo_bench.analysis.comparisons import (
    PRETRAINED,
    Group,
    Results,
    Values,
    label_key,
    parent,
    without_reward_gradient,
)
from sdpo_bench.analysis.figures.build import figure_files
from sdpo_bench.analysis.figures.rates import panel_text, rate_drawing
from sdpo_bench.analysis.markup import DASH, alt, escaped
from sdpo_bench.analysis.paper import METHODS
from sdpo_bench.analysis.rates import Rated, panels, rated
from sdpo_bench.analysis.render import markdown
from sdpo_bench.analysis.statistics import iqm
from sdpo_bench.analysis.tables.base import MIN_RUNS, Table, decimals_of
from sdpo_bench.analysis.tables.claims import CONTRADICTED, SUPPORTED
from sdpo_bench.analysis.tables.means import clearly
from sdpo_bench.analysis.tables.orders import spent
from sdpo_bench.analysis.tables.pairs import difference_text, differences
from sdpo_bench.analysis.tables.paper_order import Case, judge
from sdpo_bench.analysis.tables.protocol import swept
from sdpo_bench.terminal import printable

HEADER = (
    "trained on",
    "K",
    "protocol",
    "samples",
    "seeds",
    "leads",
    "over the next",
    "SDPO above DDPO",
    "the paper's whole order",
    "profile",
)


NOTE = (
    "At equal samples, in the mean over all numbers of sampling steps, on prompts seen in training (sweeps: tuning "
    "prompts). Leads: the method with the highest interquartile mean over seeds, ablations left out; > by a 95 % "
    f"interval of the difference above 0 (paired by seed, Student's t, at least {MIN_RUNS} seeds), ~ not established. "
    f"The paper's order is {' > '.join(METHODS)}: at how many numbers of sampling steps it holds by the estimates; "
    f"from {MIN_RUNS} seeds on also at how many intervals above 0 support all of it, or one below 0 contradicts it. A "
    "sweep has a row for each learning rate, which all its methods share. No interval is corrected for their number."
)


class Entry(NamedTuple):
    """A row of the table, of the methods of a group that were trained under one protocol."""

    profile: str
    place: str
    """Model and device, and whether the prompts are those of tuning: the block that it stands in."""
    key: tuple[str, int, str, float, int]
    """Trained reward, K, protocol, shared learning rate (0: none) and samples: what the rows are sorted by."""
    leader: str
    sure: bool
    texts: tuple[str, ...]


def entries(results: Results) -> list[Entry]:
    """The rows of a profile: one for each group, of sweeps for each learning rate; of groups with two methods. Where
    some use the reward's gradient, there is another without these."""
    found = []
    for choice in (choice for group in results.groups for choice in _choices(group)):
        found.append(_entry(choice))
        if (other := _gradient_free(choice)) is not None:
            found.append(_entry(other, ", without its gradient"))
    return [entry for entry in found if entry]


class Choice(NamedTuple):
    """Methods that meet: those of a group, or those with one learning rate (`rate`; 0: each its own). `labels` by their
    names, which leave the rate out."""

    group: Group
    rate: float
    labels: dict[str, str]

    @property
    def protocol(self) -> str:
        return ", ".join(filter(None, (self.group.protocol, f"{self.rate:g}" * (self.rate > 0)))) or DASH


def _choices(group: Group) -> list[Choice]:
    """Those of a group without a shared rate, and those at each shared rate."""
    rated = swept(group)
    at_rates = {label for labels in rated.values() for label in labels.values()}
    choices = {0.0: {label: label for label in group.methods if label not in at_rates and label != PRETRAINED}}
    choices |= {rate: {n: label for n, label in own.items() if parent(n) is None} for rate, own in rated.items()}
    return [Choice(group, rate, labels) for rate, labels in choices.items()]


def _gradient_free(choice: Choice) -> Choice | None:
    """The same without the methods that use the reward's gradient; None where none does."""
    other = without_reward_gradient(choice.group)
    if other is None:
        return None
    kept = {name: label for name, label in choice.labels.items() if label in other.methods}
    return Choice(other, choice.rate, kept) if len(kept) < len(choice.labels) else None


def _entry(choice: Choice, end: str = "") -> Entry | None:
    """The row of these methods; None with fewer than two that were run."""
    group, _, labels = choice
    split = group.shown_split
    means = {name: found for name, label in labels.items() if (found := _means(group, label, split))}
    if len(means) < 2:
        return None
    points = {name: float(iqm(list(values.values()))) for name, values in means.items()}
    leader, second, *_ = sorted(points, key=lambda name: (-points[name], label_key(name)))
    lead = differences(means[leader], means[second])
    sure = clearly(lead) > 0
    decimals = decimals_of(group.values.loc[group.values["reward"] == group.reward, "value"])
    used = spent(group)
    samples = [round(used[labels[name]].samples) for name in means]
    above, order = _order_texts(group, split, labels)
    tuning = ", tuning prompts" * (split == "tuning")
    texts = (
        group.reward + end,
        str(group.steps),
        choice.protocol,
        _range(samples),
        _range([len(values) for values in means.values()]),
        leader,
        f"{'>' if sure else '~'} {second} {difference_text(means[leader], means[second], decimals)}",
        above,
        order,
        printable(group.profile),
    )
    key = (group.reward + end, group.steps, group.protocol, choice.rate, max(samples))
    return Entry(group.profile, f"{group.model} on {group.device}{tuning}", key, leader, sure, texts)


def _means(group: Group, label: str, split: str) -> Values:
    """A label's means over all numbers of sampling steps, by the seeds that were evaluated at all of them."""
    cells = [group.cell(label, group.reward, split, k) for k in group.steps_evaluated]
    seeds = set.intersection(*(set(cell) for cell in cells)) if cells else set()
    return {seed: float(np.mean([cell[seed] for cell in cells])) for seed in sorted(seeds)}


def _range(counts: Iterable[int]) -> str:
    """1,600, or 640 to 1,600."""
    found = sorted({*counts})
    return f"{found[0]:,}" + (f" to {found[-1]:,}" if len(found) > 1 else "") if found else DASH


def _order_texts(group: Group, split: str, labels: Mapping[str, str]) -> tuple[str, str]:
    """Whether SDPO is above DDPO, and all of the paper's methods are in its order, at how many numbers of steps."""
    known = {
        pair: [_judged(group, split, labels, pair, k) for k in group.steps_evaluated] for pair in pairwise(METHODS)
    }
    first = [case for case in known[METHODS[0], METHODS[1]] if case]
    steps = [[case for case in cases if case] for cases in zip(*known.values(), strict=True)]
    whole = [cases for cases in steps if len(cases) == len(METHODS) - 1]
    above, order = _count_text([[case] for case in first]), _count_text(whole)
    if missing := [label for label in METHODS if label not in labels]:
        order = f"not run: {', '.join(missing)}" if first else DASH
    return above, order


def _judged(group: Group, split: str, labels: Mapping[str, str], pair: tuple[str, str], steps: int) -> Case | None:
    better, worse = (labels.get(name) for name in pair)
    return judge(group, split, better, worse, steps) if better and worse else None


def _count_text(cells: list[list[Case]]) -> str:
    """At how many numbers of steps all of a step's claims hold; with enough seeds, at how many they are supported, or
    one is contradicted."""
    if not cells:
        return DASH
    text = f"{sum(all(case.ours.value > 0 for case in cases) for cases in cells)} of {len(cells)}"
    if any(case.ours.n < MIN_RUNS for cases in cells for case in cases):
        return text
    supported = sum(all(case.verdict == SUPPORTED for case in cases) for cases in cells)
    contradicted = sum(any(case.verdict == CONTRADICTED for case in cases) for cases in cells)
    return f"{text} ({supported} {SUPPORTED}, {contradicted} {CONTRADICTED})"


def across_table(found: Iterable[Entry]) -> Table:
    """The table of these rows, blocks by model, device and kind of prompts."""
    blocks: dict[str, list[Entry]] = {}
    for entry in sorted(found, key=lambda entry: (entry.place, entry.key, entry.profile)):
        blocks.setdefault(entry.place, []).append(entry)
    leads = Counter(entry.leader for rows in blocks.values() for entry in rows if entry.sure)
    named = "; ".join(f"{leader} in {count}" for leader, count in sorted(leads.items(), key=lambda item: -item[1]))
    return Table(
        "across",
        "Who leads at equal samples, in all profiles",
        NOTE,
        HEADER,
        tuple((place, tuple(entry.texts for entry in rows)) for place, rows in blocks.items()),
        pd.DataFrame(),
        f"Established leads in {leads.total()} of {sum(map(len, blocks.values()))} rows: {named or 'none'}.",
    )


@dataclass
class Across:
    """The parts of the page over all profiles."""

    entries: list[Entry] = field(default_factory=list)
    rated: list[Rated] = field(default_factory=list)

    def add(self, results: Results) -> None:
        self.entries += entries(results)
        self.rated += rated(results)


def overall_files(found: Across) -> dict[str, bytes]:
    """The files that are generated in a folder of results, over all its profiles, by name."""
    shown = panels(found.rated)
    files = figure_files([rate_drawing(shown)]) if shown else {}
    return {"README.md": page(found.entries, shown), **files}


def page(found: list[Entry], shown: list[Rated]) -> bytes:
    """README.md of a folder of results, with these panels of gains by learning rate."""
    links = ", ".join(
        map(_link, sorted({entry.profile for entry in found} | {p for each in shown for p in each.profiles}))
    )
    lines = [
        "# Results",
        "",
        "Generated from the records of all profiles in this folder; do not edit.",
        "",
        markdown(across_table(found)),
        "",
        *(_rates(shown) if shown else []),
        f"Profiles: {links}.",
        "",
    ]
    return "\n".join(lines).encode()


def _link(profile: str) -> str:
    return f"[{escaped(printable(profile))}]({profile}/README.md)"


def _rates(shown: list[Rated]) -> list[str]:
    """The figure of gains by learning rate, and the profiles and devices that its panels are of."""
    drawing = rate_drawing(shown)
    return [
        f"## {drawing.heading}",
        "",
        f"![{alt(drawing.alt)}](figures/{drawing.name}.svg)",
        "",
        escaped(drawing.caption),
        "",
        "Panels, in reading order:",
        "",
        *(
            f"{number}. {', '.join(map(_link, each.profiles))}: {escaped(panel_text(each))}"
            for number, each in enumerate(shown, 1)
        ),
        "",
    ]
