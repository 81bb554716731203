"""The tables of the protocol that the runs followed, and of the order of methods at each shared learning rate."""

from __future__ import annotations

from itertools import groupby, pairwise, product
from typing import Any, NamedTuple

import pandas as pd

from sdpo_bench.analysis.comparisons import PRETRAINED, Group, Values
from sdpo_bench.analysis.paper import METHODS, OWN_STATISTICS, QUERIES, RATE, SAMPLES, SDPO_STEPS, SETTING, STEPS
from sdpo_bench.analysis.statistics import iqm
from sdpo_bench.analysis.tables.base import (
    BASELINE,
    DASH,
    MIN_RUNS,
    UNKNOWN,
    Block,
    Subject,
    Table,
    by_text,
    context,
    decimals_of,
    file_suffix,
    joined,
    note_of,
    seeds_text,
    step_header,
)
from sdpo_bench.analysis.tables.means import clearly, mean_text, summarised
from sdpo_bench.analysis.tables.orders import cells_text
from sdpo_bench.analysis.tables.pairs import differences
from sdpo_bench.records.protocols import protocol_of


class Protocol(NamedTuple):
    """How the paper's methods were trained for one reward and K: by method the learning rate, the counters at the end
    of a run, and the mean share of advantages that their prompt's own statistics normalised, where it is recorded."""

    group: Group
    rates: dict[str, float]
    spent: dict[str, dict[str, Any]]
    own_statistics: dict[str, float]

    @property
    def cell(self) -> tuple[str, int]:
        return self.group.reward, self.group.steps

    @property
    def one_rate(self) -> bool:
        """Whether all methods have the same learning rate."""
        return len(set(self.rates.values())) == 1

    @property
    def samples(self) -> int:
        """Most samples of a method."""
        return max(row["samples"] for row in self.spent.values())


def protocols(groups: list[Group]) -> list[Protocol]:
    """The protocol of each group with two of the paper's methods."""
    found = []
    for group in groups:
        runs = {run.label: run for run in group.runs if run.label in METHODS and run.train}
        if len(runs) > 1:
            rates = {label: float(run.config["learning_rate"]) for label, run in runs.items()}
            shares = {label: share for label in runs if (share := own_statistics(group, label)) is not None}
            found.append(Protocol(group, rates, {label: run.train[-1] for label, run in runs.items()}, shares))
    return found


def own_statistics(group: Group, label: str) -> float | None:
    """The share of a label's advantages that were normalised by their prompt's own statistics, mean over epochs and
    runs; None where it is not recorded."""
    rows = [row for run in group.runs if run.label == label for row in run.train]
    if not rows or not all("prompt_stats_share" in row for row in rows):
        return None
    return sum(row["prompt_stats_share"] for row in rows) / len(rows)


def protocol_table(groups: list[Group]) -> Table | None:
    """Learning rates of the paper's methods and how long they were trained, beside the paper's length, for each reward
    and K: what a statement about their order holds for. None without two of the methods."""
    found, first = protocols(groups), groups[0]
    if not found:
        return None
    runs = [run for group in groups for run in group.runs]
    note = (
        f"Of the paper's methods; in brackets the share of the paper's {SAMPLES:,} samples and of SDPO's "
        f"{SDPO_STEPS:,} optimiser steps, which are those of its figure (results/paper). The last column: how many of "
        "the advantages were normalised by the mean and deviation of their prompt's own returns, which it takes 16 of, "
        "and not of the whole batch's; mean over epochs and runs."
    )
    return Table(
        f"protocol{file_suffix(first)}",
        f"Learning rates and length of training, {first.model} on {first.device}",
        note,
        (
            "trained on",
            *(f"{label}: rate" for label in METHODS),
            "samples",
            *(f"{label}: optimiser steps" for label in METHODS),
            "reward queries",
            "own-prompt statistics",
        ),
        (("", (*map(_protocol_row, found), _paper_row())),),
        pd.DataFrame([row for protocol in found for row in _protocol_frame(protocol)]),
        _protocol_answer(found, protocol_of(first.profile, runs, first.planned)),
        Subject.PROTOCOL,
    )


def _share(part: float) -> str:
    return f"({part:.1%})".replace("%", " %")


def _protocol_row(protocol: Protocol) -> tuple[str, ...]:
    """Rates, samples and optimiser steps, in brackets the shares of the paper's."""
    group, rates, spent, shares = protocol
    steps = {label: f"{row['optimiser_steps']:,}" for label, row in spent.items()}
    if BASELINE in steps:
        steps[BASELINE] += f" {_share(spent[BASELINE]['optimiser_steps'] / SDPO_STEPS)}"
    return (
        f"{group.reward}, K = {group.steps}",
        *(f"{rates[label]:g}" if label in rates else "not run" for label in METHODS),
        f"{protocol.samples:,} {_share(protocol.samples / SAMPLES)}",
        *(steps.get(label, "not run") for label in METHODS),
        by_text({label: f"{spent[label]['reward_queries']:,}" for label in METHODS if label in spent}),
        by_text({label: _percent(shares[label]) for label in METHODS if label in shares}) or UNKNOWN,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _paper_row() -> tuple[str, ...]:
    """The same of the runs in the paper's figure."""
    model, reward, steps = SETTING
    return (
        f"the paper: {model}, {reward}, K = {steps}",
        *(f"{RATE:g}" for _ in METHODS),
        f"{SAMPLES:,}",
        *(f"{STEPS[label]:,}" for label in METHODS),
        by_text({label: f"{count * SAMPLES:,}" for label, count in QUERIES.items()}),
        _percent(OWN_STATISTICS),
    )


def _protocol_frame(protocol: Protocol) -> list[dict[str, object]]:
    """Rows of the table's frame, one a method."""
    group = protocol.group
    return [
        {
            **context(group),
            "protocol": group.protocol,
            "label": label,
            "learning_rate": rate,
            "samples": protocol.spent[label]["samples"],
            "optimiser_steps": protocol.spent[label]["optimiser_steps"],
            "reward_queries": protocol.spent[label]["reward_queries"],
            "own_prompt_statistics": protocol.own_statistics.get(label),
            "seeds": seeds_text(run.config["seed"] for run in group.runs if run.label == label),
        }
        for label, rate in protocol.rates.items()
    ]


def _protocol_answer(found: list[Protocol], protocol: str) -> str:
    """For which learning rates and lengths a statement about the order of the methods holds."""
    own = [protocol.cell for protocol in found if not protocol.one_rate]
    shared = [protocol.cell for protocol in found if protocol.one_rate]
    ways = [
        f"{what} on {cells_text(cells)}"
        for what, cells in (("learning rates of their own", own), ("one learning rate for all", shared))
        if cells
    ]
    samples = _range([protocol.samples / SAMPLES for protocol in found])
    lengths = [f"{samples} of the {SAMPLES:,} samples of a run in the paper's figure"]
    steps = [protocol.spent[BASELINE]["optimiser_steps"] for protocol in found if BASELINE in protocol.spent]
    if steps:
        shares = _range([count / SDPO_STEPS for count in steps])
        lengths.append(f"{shares} of the {SDPO_STEPS:,} optimiser steps that SDPO takes there")
    answer = (
        f"What is said about the order of the methods holds for this protocol{f' ({protocol})' if protocol else ''} "
        f"and length: {'; '.join(ways)}; "
        f"{' and '.join(lengths)}."
    )
    if own:
        answer += (
            " Orders at one rate for all methods are in the table order_rate of the profiles that sweep learning rates."
        )
    return answer


def _range(shares: list[float]) -> str:
    """1.1 to 5.5 %."""
    low, high = (f"{100 * end:.1f}" for end in (min(shares), max(shares)))
    return f"{low} %" if low == high else f"{low} to {high} %"


RATED = {  # by how many optimiser steps they take: labels without their learning rate
    "the paper's methods": METHODS,
    "with an optimiser step for each denoising step": ("SDPO", "DDPO (per step)", "REBEL (per step)"),
    "with an optimiser step for each batch of trajectories": ("SDPO (per trajectory)", *METHODS[1:]),
}


class RatedCase(NamedTuple):
    """Values of the methods of a row of `RATED` at one learning rate, in one group, split and number of steps."""

    group: Group
    split: str
    title: str
    rate: float
    steps: int
    cells: dict[str, Values]

    @property
    def points(self) -> dict[str, float]:
        """Interquartile means by method."""
        return {name: float(iqm(list(values.values()))) for name, values in self.cells.items()}

    @property
    def order(self) -> list[str]:
        """Methods, best first."""
        points = self.points
        return sorted(points, key=lambda name: -points[name])

    @property
    def first_above(self) -> bool:
        """Whether the row's first method, SDPO, is above its second, DDPO."""
        first, second, *_ = self.points.values()
        return first > second

    @property
    def lead(self) -> Values:
        """The first method minus the second, by seed."""
        first, second, *_ = self.cells.values()
        return differences(first, second)

    @property
    def decides(self) -> bool:
        """Whether there are enough seeds for intervals."""
        return all(len(values) >= MIN_RUNS for values in self.cells.values())

    @property
    def ahead(self) -> list[Values]:
        """How far each method is ahead of the next in the order, by seed."""
        return [differences(self.cells[better], self.cells[worse]) for better, worse in pairwise(self.order)]

    @property
    def whole(self) -> bool:
        """Whether all methods are in the row's order."""
        return all(better > worse for better, worse in pairwise(self.points.values()))


def rated_cases(group: Group, split: str, title: str, steps: list[int]) -> dict[float, list[RatedCase | None]]:
    """By learning rate at which all methods of a row of `RATED` were run: a case for each number of steps, None where
    one of them was not evaluated."""
    found = {}
    for rate, labels in swept(group).items():
        names = RATED[title]
        if {*names} <= labels.keys():
            cells = {k: {name: group.cell(labels[name], group.reward, split, k) for name in names} for k in steps}
            found[rate] = [
                RatedCase(group, split, title, rate, k, own) if all(own.values()) else None for k, own in cells.items()
            ]
    return found


def rate_order_table(groups: list[Group]) -> Table | None:
    """Order of the paper's methods where all have the same learning rate: for each rate of a sweep, whose labels end in
    their rate, and where all methods of a profile share one. Groups of one device and model; None without all methods
    of a row of `RATED` at one rate."""
    first = groups[0]
    steps = sorted({k for group in groups for k in group.steps_evaluated})
    splits = sorted({split for group in groups for split in group.splits})
    blocks: list[Block] = []
    known: list[RatedCase] = []
    for split, title in product(splits, RATED):
        rows = []
        for group in groups:
            for rate, cases in rated_cases(group, split, title, steps).items():
                rows.append((f"{group.reward}, K = {group.steps}", f"{rate:g}", *_rated_texts(cases)))
                known += [case for case in cases if case]
        if rows:
            blocks.append((f"{split} prompts: {title}", tuple(rows)))
    if not known:
        return None
    seeds = {seed for case in known for values in case.cells.values() for seed in values}
    tuning = "tuning " * (splits == ["tuning"])
    only = f"one {tuning}seed" if len(seeds) == 1 else f"{len(seeds)} {tuning}seeds"
    intervals = (
        f"With {MIN_RUNS} seeds or more a > b says that the 95 % interval of the difference paired by seed is above 0 "
        "(Student's t), a ~ b that the order is not established, and the difference of the first two of a row stands "
        "behind it."
        if any(case.decides for case in known)
        else f"{only.capitalize()}: no interval, no verdict."
    )
    note = (
        f"{intervals} Best first, by value. The last columns: at how many "
        "numbers of sampling steps SDPO is above DDPO, and all are in the paper's order, "
        + ", or ".join(" > ".join(names) for names in RATED.values())
        + "."
    )
    return Table(
        f"order_rate{file_suffix(first)}",
        f"Order by shared learning rate, {first.model} on {first.device}",
        note_of(note, blocks, first.profile),
        step_header("trained on", steps, "SDPO above DDPO", "whole order", first=("learning rate",)),
        tuple(blocks),
        pd.DataFrame([row for case in known for row in _rated_frame(case)]),
        _rated_answer([case for case in known if case.split == case.group.shown_split], only),
        Subject.ORDER_RATE,
    )


def _rated_texts(cases: list[RatedCase | None]) -> list[str]:
    """Cells of a row: the order at each number of steps, then in how many the methods stand as in the paper."""
    texts = []
    for case in cases:
        if case is None:
            texts.append(DASH)
            continue
        texts.append(_rated_text(case))
    known = [case for case in cases if case]
    above = f"{sum(case.first_above for case in known)} of {len(known)}{_sure_text(known)}"
    return [*texts, above, f"{sum(case.whole for case in known)} of {len(known)}"]


def _rated_text(case: RatedCase) -> str:
    """Methods with their values, best first; with enough seeds also which leads are established, and the first's."""
    points, order = case.points, case.order
    decimals = decimals_of(points.values())
    named = [f"{name} {points[name]:.{decimals}f}" for name in order]
    if not case.decides:
        return ", ".join(named)
    signs = [">" if clearly(values) > 0 else "~" for values in case.ahead]
    text = named[0] + "".join(f" {sign} {name}" for sign, name in zip(signs, named[1:], strict=True))
    first, second = RATED[case.title][:2]
    return f"{text}; {first} minus {second} {mean_text(case.lead, decimals, '+')}"


def _sure_text(cases: list[RatedCase]) -> str:
    """In how many cases the first method is above the second by an interval; empty without intervals."""
    decided = [case for case in cases if case.decides]
    return f" ({sum(clearly(case.lead) > 0 for case in decided)} by an interval above 0)" if decided else ""


def _rated_frame(case: RatedCase) -> list[dict[str, object]]:
    """Rows of the table's frame, one a method."""
    points = case.points
    ahead = [summarised(values) for values in (*case.ahead, {})]
    return [
        {
            **context(case.group),
            "split": case.split,
            "learning_rate": case.rate,
            "compared": case.title,
            "steps": case.steps,
            "whole_order": case.whole,
            "rank": rank,
            "label": name,
            "n": len(case.cells[name]),
            "value": points[name],
            "ahead_of_next": lead["value"],
            "low": lead["low"],
            "high": lead["high"],
            "seeds": seeds_text(case.cells[name]),
        }
        for rank, (name, lead) in enumerate(zip(case.order, ahead, strict=True), 1)
    ]


def _rated_answer(known: list[RatedCase], only: str) -> str:
    """At which rates the paper's whole order stands at every number of steps, and how often SDPO is above DDPO."""
    whole: dict[tuple[str, int], list[str]] = {}
    places = groupby(
        (case for case in known if RATED[case.title] == METHODS), key=lambda case: (case.split, case.group, case.rate)
    )
    for (_, group, rate), cases in places:
        if all(case.whole for case in cases):
            whole.setdefault((group.reward, group.steps), []).append(f"{rate:g}")
    found = "; ".join(f"{cells_text([cell])} at {joined(rates)}" for cell, rates in whole.items())
    titles: dict[str, list[RatedCase]] = {}
    for case in known:
        titles.setdefault(case.title, []).append(case)
    counts = "; ".join(
        f"{title}, {RATED[title][0]} is above {RATED[title][1]} in {sum(case.first_above for case in cases)} of "
        f"{len(cases)} cases{_sure_text(cases)}"
        for title, cases in titles.items()
    )
    how = "by the estimates" if any(case.decides for case in known) else "no interval and no verdict"
    return (
        f"One learning rate for all methods, {only}, {how}: the paper's whole order, "
        f"{' > '.join(METHODS)}, stands at every number of sampling steps "
        f"{f'on {found}' if found else 'at no rate'}. Of {counts}."
    )


def swept(group: Group) -> dict[float, dict[str, str]]:
    """By learning rate, smallest first: the labels that end in it, by what comes before it; and, where all methods of
    the profile share one rate, those without a rate in their label."""
    found: dict[float, dict[str, str]] = {}
    for run in group.runs:
        rate = float(run.config["learning_rate"])
        name = run.label.removesuffix(f" {rate:g}")
        if name != run.label:
            found.setdefault(rate, {})[name] = run.label
        elif group.protocol == "shared" and run.label != PRETRAINED:
            found.setdefault(rate, {}).setdefault(name, name)
    return dict(sorted(found.items()))
