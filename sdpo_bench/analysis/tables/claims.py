"""The paper's claims beside our records: final values, and verdicts on the order of the methods and on SDPO's samples,
for runs of the setting that its curves show (`paper.shows`).

Both sides are computed: ours from raw records, the paper's from its digitised curves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from sdpo_bench.analysis.comparisons import PRETRAINED, Group, Values, shown_split
from sdpo_bench.analysis.paper import METHODS, final_values, load_curves, samples_to_reach, shows
from sdpo_bench.analysis.statistics import Interval, mean_interval, paired_difference
from sdpo_bench.analysis.tables.base import (
    DASH,
    MIN_RUNS,
    Subject,
    Table,
    cell_text,
    context,
    interval_columns,
    interval_row,
    run_columns,
    step_header,
    summary,
)

SDPO, RIVALS = METHODS[0], METHODS[1:]


SUPPORTED, CONTRADICTED, UNDECIDED, UNMEASURED = "supported", "contradicted", "not decided", "not measured"


SOURCE = "Paper: the authors' figure (arXiv 2411.11727), digitised (results/paper)."


@dataclass(frozen=True)
class Claim:
    """A number of the paper's on one side of `neutral` (NaN: it claims nothing), and ours, by seed."""

    text: str
    steps: int
    paper: float
    neutral: float
    values: Values
    ours: Interval | None

    @property
    def verdict(self) -> str:
        """On the side, not on the size: where the 95 % interval of at least `MIN_RUNS` seeds lies."""
        if np.isnan(self.paper):
            return DASH
        if self.ours is None:
            return UNMEASURED
        if self.ours.n < MIN_RUNS or self.ours.low <= self.neutral <= self.ours.high:
            return UNDECIDED
        return SUPPORTED if (self.ours.low > self.neutral) == (self.paper > self.neutral) else CONTRADICTED


def applies(group: Group) -> bool:
    """Whether the paper's curves are of this group's setting."""
    return shows(group.model, group.reward, group.steps)


def order_claims(group: Group, curves: pd.DataFrame) -> list[Claim]:
    """Differences of the final values of neighbours in the paper's order, by step count; ours are paired by seed."""
    final = final_values(curves).set_index(["steps", "method"])["final"]
    claims = []
    for better, worse in pairwise(METHODS):
        for steps in _steps(curves):
            x, y = (group.cell(label, group.reward, group.shown_split, steps) for label in (better, worse))
            values = {seed: x[seed] - y[seed] for seed in x if seed in y}
            ours = paired_difference(x, y) if values else None
            paper = float(final[steps, better] - final[steps, worse])
            claims.append(Claim(f"{better} above {worse}", steps, paper, 0.0, values, ours))
    return claims


def sample_claims(group: Group, curves: pd.DataFrame) -> list[Claim]:
    """A rival's samples over those from which SDPO stays above its final value, by step count."""
    speedup = samples_to_reach(curves).set_index(["baseline", "steps"])["speedup"]
    claims = []
    for rival in RIVALS:
        for steps in _steps(curves):
            values = speedups(group, rival, steps)
            ours = mean_interval(list(values.values())) if values else None
            text = f"{SDPO} needs fewer samples than {rival}"
            claims.append(Claim(text, steps, float(speedup[rival, steps]), 1.0, values, ours))
    return claims


def speedups(group: Group, rival: str, steps: int) -> Values:
    """By seed: the rival's samples over those of the first of SDPO's evaluations from which on all lie above the
    rival's last; 0 if there is none."""
    curves = group.curves[
        (group.curves["reward"] == group.reward)
        & (group.curves["steps"] == steps)
        & (group.curves["split"] == shown_split(group.curves))
        & (group.curves["samples"] > 0)
    ]
    found = {}
    for seed, runs in curves.sort_values("samples").groupby("seed"):
        ours, theirs = (runs[runs["label"] == label] for label in (SDPO, rival))
        if len(ours) and len(theirs):
            last = theirs.iloc[-1]
            below = np.flatnonzero(ours["value"].to_numpy() <= last["value"])
            first = below[-1] + 1 if below.size else 0
            found[int(str(seed))] = float(last["samples"] / ours["samples"].iloc[first]) if first < len(ours) else 0.0
    return found


def _steps(curves: pd.DataFrame) -> list[int]:
    return sorted(int(k) for k in curves["steps"].unique())


def _header(first: str, curves: pd.DataFrame) -> tuple[str, ...]:
    return step_header(first, _steps(curves))


KINDS: tuple[tuple[str, Callable[[Group, pd.DataFrame], list[Claim]], str, str], ...] = (  # title, claims, sign, unit
    ("difference of final values", order_claims, "+", ""),
    ("ratio of samples to the rival's final value", sample_claims, "", "x"),
)


CLAIMS_NOTE = (
    "Ours, mean over seeds, paired by seed [95 % interval, Student's t] (n seeds), and the paper's. Supported: the "
    "interval lies on the paper's side of 0 (of a difference) or 1 (of a ratio); "
    f"contradicted: on the other; not decided: it does not, or there are fewer than {MIN_RUNS} seeds. The "
    "verdict is on the side, not on the size. Ratio: the rival's samples over those of the first of SDPO's "
    "evaluations from which on all lie above the rival's last; 0 if there is none. A dash: the paper's curves "
    f"claim nothing there. {SOURCE}"
)


def claims_table(group: Group) -> Table:
    """A verdict per claim and number of sampling steps."""
    curves = load_curves()
    found = [(title, find(group, curves), sign, unit) for title, find, sign, unit in KINDS]
    blocks = []
    for title, claims, sign, unit in found:
        rows: dict[str, list[str]] = {}
        for claim in claims:
            rows.setdefault(claim.text, []).append(_claim_text(claim, sign, unit))
        blocks.append((title, tuple((text, *cells) for text, cells in rows.items())))
    claims = [claim for _, own, _, _ in found for claim in own]
    return Table(
        f"claims{group.suffix}",
        f"The paper's claims, {group.title}",
        CLAIMS_NOTE,
        _header("claim", curves),
        tuple(blocks),
        pd.DataFrame([{**context(group), **_claim_row(claim)} for claim in claims]),
        verdicts(claims),
        Subject.CLAIMS,
    )


def _claim_text(claim: Claim, sign: str, unit: str) -> str:
    """The verdict, our values and the paper's; a dash where the paper claims nothing."""
    if claim.verdict == DASH:
        return DASH
    ours = f"{cell_text(claim.values, 2, sign, claim.ours)}; " if claim.values else ""
    return f"{claim.verdict}: {ours}paper {claim.paper:{sign}.2f}{unit}"


def _claim_row(claim: Claim) -> dict[str, object]:
    """A row of the table's frame."""
    ours = claim.ours or Interval(np.nan, np.nan, np.nan, 0)
    return {
        "claim": claim.text,
        "steps": claim.steps,
        "verdict": claim.verdict if claim.verdict != DASH else "",
        "paper": claim.paper,
        "n": ours.n,
        "value": ours.value,
        **interval_columns(ours),
        **run_columns(claim.values),
    }


def beside_table(group: Group) -> Table:
    """Final values of our runs and of the paper's curves."""
    curves = load_curves()
    final, split, steps = final_values(curves).set_index(["steps", "method"]), group.shown_split, _steps(curves)
    rows, long = [], []
    for label in dict.fromkeys((PRETRAINED, *METHODS, *group.labels)):
        ours = {k: group.cell(label, group.reward, split, k) for k in steps}
        method, column = (SDPO, "pretrained") if label == PRETRAINED else (label, "final")
        paper = {k: float(final[column].get((k, method), np.nan)) for k in steps}
        rows.append((label, *(cell_text(ours[k], 2) for k in steps)))
        if label in (PRETRAINED, *METHODS):
            rows.append((f"{label}, paper", *(f"{paper[k]:.2f}" for k in steps)))
        long += [
            {
                **context(group),
                "split": split,
                "label": label,
                "steps": k,
                **interval_row(summary(ours[k])),
                **run_columns(ours[k]),
                "paper": paper[k],
            }
            for k in steps
        ]
    note = (
        f"Ours: {split} prompts at the last evaluation, interquartile mean over runs [95 % bootstrap interval] (n "
        "runs), with fewer than 5 runs their values by seed; a dash: no finished run. The paper's: first point, "
        f"mean of the last 10 epochs; its REBEL is also labelled PRDP/REBEL. {SOURCE}"
    )
    return Table(
        f"paper{group.suffix}",
        f"Final {group.reward} and the paper's, {group.title}",
        note,
        _header("method", curves),
        (("", tuple(rows)),),
        pd.DataFrame(long),
        subject=Subject.PAPER,
    )


def verdicts(claims: list[Claim]) -> str:
    """How many of the paper's claims our runs decide, in a sentence."""
    found = Counter(claim.verdict for claim in claims)
    known = [SUPPORTED, CONTRADICTED, UNDECIDED, UNMEASURED]
    counts = ", ".join(f"{found[kind]} {kind}" for kind in known)
    return f"Of the paper's {sum(found[kind] for kind in known)} claims about this setting: {counts}."
