"""The first screen of a profile's pages: one sentence a question, with its size, and who leads where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sdpo_bench.analysis.comparisons import (
    EQUAL,
    Group,
    left_out_text,
    parent,
    without_reward_gradient,
)
from sdpo_bench.analysis.tables.base import (
    BASELINE,
    DASH,
    MIN_RUNS,
    Subject,
    Table,
    at_steps,
    decimals_of,
    step_header,
)
from sdpo_bench.analysis.tables.claims import CONTRADICTED, SUPPORTED
from sdpo_bench.analysis.tables.dense import ANCHORED
from sdpo_bench.analysis.tables.orders import Lead, leads
from sdpo_bench.analysis.tables.pairs import ALL
from sdpo_bench.analysis.tables.reach import TARGET

HELDOUT = "alignment_heldout"  # the scorer that no run optimises
SUBJECTS = (
    *(Subject.ORDER_PAPER, Subject.ORDER_PAPER_QUERIES, Subject.ABLATIONS),
    *(Subject.DENSE_BUDGETS, Subject.REACH, Subject.HACKING),
)
WITHOUT = "without the reward's gradient"
FEW = f"fewer than {MIN_RUNS} seeds, so nothing is decided"

Row = dict[Any, Any]  # of a table's frame


@dataclass(frozen=True)
class Overview:
    """verdicts: a question in a few words, and its answer in a sentence, those that every page shows first; winners:
    who leads, a block for each trained reward and K; places: which these are"""

    verdicts: tuple[tuple[str, str], ...] = ()
    winners: Table | None = None
    places: tuple[dict[str, str], ...] = ()


def overview(groups: list[Group], tables: list[Table]) -> Overview:
    """The overview of the groups of the first one's device and model, of which `tables` are all tables."""
    if not groups:
        return Overview()
    first = groups[0]
    own = [group for group in groups if (group.device, group.model) == (first.device, first.model)]
    equal = {counter: [group.equal[counter] for group in own if counter in group.equal] for counter in EQUAL}
    ahead: dict[str, list[Lead]] = {}
    missing: dict[str, str] = {}
    for counter, groups_then in {"samples": own, **equal}.items():
        what = counter.replace("_", " ")
        ahead[what] = leads(groups_then)
        # Where some methods use the reward's gradient: who leads among those that can't.
        without = leads(other for group in groups_then if (other := without_reward_gradient(group)))
        ahead[f"{what}, {WITHOUT}"] = without
        missing[what] = left_out_text(groups_then, counter)
    best = [
        (f"Best at equal {what}", " ".join(filter(None, (_best(found, first), missing.get(what)))))
        for what, found in ahead.items()
    ]
    rows = {subject: _rows(tables, subject, first) for subject in SUBJECTS}
    found = (
        *best[:2],
        ("The paper's order", _paper_order(rows[Subject.ORDER_PAPER], rows[Subject.ORDER_PAPER_QUERIES], first)),
        ("Reward hacking", _hacking(rows[Subject.HACKING], first)),
        *best[2:],
        ("Ablations", _ablation(rows[Subject.ABLATIONS], first)),
        ("Dense rewards", _dense(rows[Subject.DENSE_BUDGETS])),
        (f"Cost to reach {TARGET}'s reward", _reach(rows[Subject.REACH])),
    )
    verdicts = tuple((name, text) for name, text in found if text)
    return Overview(verdicts, *_winners(ahead, missing.values()))


def _rows(tables: Iterable[Table], subject: Subject, group: Group) -> list[Row]:
    """The rows of all tables of a subject, of one device and model."""
    rows = [row for table in tables if table.subject is subject for row in table.frame.to_dict("records")]
    return [row for row in rows if (row["device"], row["model"]) == (group.device, group.model)]


def _where(reward: str, steps: int) -> str:
    return f"{reward}, K = {steps}"


def _best(found: list[Lead], first: Group) -> str:
    """Which method is highest most often, and by how much in the first group."""
    if not found:
        return ""
    best, times = Counter(lead.best for lead in found).most_common(1)[0]
    sure = sum(lead.sure for lead in found if lead.best == best)
    text = f"{best} is highest in {times} of {len(found)} cells ({first.shown_split} prompts), "
    text += f"in {sure} of them by an interval above 0" if any(lead.enough for lead in found) else FEW
    ahead = [lead for lead in found if lead.best == best and lead.group is found[0].group and lead.values]
    if ahead:
        group = found[0].group
        span = _span([(lead.size, _lead_text(lead), lead.steps) for lead in ahead])
        text += f"; on {_where(group.reward, group.steps)} where it leads, it is ahead of the next by {span}"
    return f"{text}."


def _lead_text(lead: Lead) -> str:
    """The mean lead, and its interval if there is one."""
    return lead.text.rpartition(" (n=")[0] if lead.enough else f"{lead.size:+.{_decimals(lead.group)}f}"


def _decimals(group: Group) -> int:
    return decimals_of(group.values.loc[group.values["reward"] == group.reward, "value"])


def _span(sizes: list[tuple[float, str, int]]) -> str:
    """The smallest and the largest of some sizes, each with its text and number of sampling steps; one where they are
    the same."""
    ends = dict.fromkeys((min(sizes), max(sizes)))
    return " to ".join(f"{text} ({step_header('', [steps])[1]})" for _, text, steps in ends)


def _sized(row: Row, key: str, group: Group) -> str:
    """A row's value, with its interval if there is one."""
    value, low, high = (f"{row[name]:+.{_decimals(group)}f}" for name in (key, "low", "high"))
    return value if row["n"] < MIN_RUNS else f"{value} [{low}, {high}]"


def _paper_order(rows: list[Row], at_queries: list[Row], first: Group) -> str:
    """How often SDPO is above DDPO, by how much in the first group, and how often at equal reward queries."""
    claim = f"{BASELINE} above {TARGET}"
    rows, at_queries = (
        [row for row in found if (row["claim"], row["split"]) == (claim, first.shown_split)]
        for found in (rows, at_queries)
    )
    if not rows:
        return ""
    if all(row["n"] < MIN_RUNS for row in rows):
        text = f"{BASELINE} against {TARGET}: {FEW}"
    else:
        verdicts = Counter(row["verdict"] for row in rows)
        text = (
            f"Of {len(rows)} cells, {BASELINE} is above {TARGET} by an interval above 0 in {verdicts[SUPPORTED]}, and "
            f"below it in {verdicts[CONTRADICTED]}"
        )
    here = [(row["difference"], _sized(row, "difference", first), row["steps"]) for row in rows if _of(row, first)]
    if here:
        text += f"; on {_where(first.reward, first.steps)} the difference is {_span(here)}"
    if any(row["n"] >= MIN_RUNS for row in at_queries):
        verdicts = Counter(row["verdict"] for row in at_queries)
        text += (
            f". At equal reward queries it is above in {verdicts[SUPPORTED]} of {len(at_queries)}, and below in "
            f"{verdicts[CONTRADICTED]}"
        )
    return f"{text}."


def _of(row: Row, group: Group) -> bool:
    return (row["reward_trained"], row["training_steps"]) == (group.reward, group.steps)


def _ablation(rows: list[Row], first: Group) -> str:
    """The largest difference of an ablation from its method in the first group that is decided."""
    # By ablation, the last row: the mean over numbers of steps, where there are several.
    here = {
        row["label"]: row
        for row in rows
        if row["split"] == first.shown_split and _of(row, first) and parent(row["label"]) == row["baseline"]
    }
    if not here:
        return ""
    where = _where(first.reward, first.steps)
    decided = [row for row in here.values() if row["low"] > 0 or row["high"] < 0]
    if not decided:
        return f"On {where} the interval of no ablation's difference leaves out 0."
    row = max(decided, key=lambda row: abs(row["difference"]))
    return (
        f"On {where}, {len(decided)} of {len(here)} ablations change the reward by an interval that leaves out 0"
        f"{', in the mean over step counts' * (row['steps'] == ALL)}; the largest change is {row['label']} minus "
        f"{row['baseline']}, {_sized(row, 'difference', first)}."
    )


def _dense(rows: list[Row]) -> str:
    """The range of the error of SDPO's predicted dense rewards after training."""
    errors = [
        row
        for row in rows
        if (row["budget"], row["measure"]) == (ANCHORED, "error") and row["when"].startswith("after")
    ]
    if not errors:
        return ""
    ends = (end(errors, key=lambda row: row["value"]) for end in (min, max))
    spans = dict.fromkeys(
        f"{row['value']:.3f} ({_where(row['reward_trained'], row['training_steps'])})" for row in ends
    )
    return f"After training the predicted rewards' error is {' to '.join(spans)} standard deviations of the exact ones."


def _reach(rows: list[Row]) -> str:
    """In how many runs the baseline gets there, and the method that does in most."""
    reached: Counter[str] = Counter()
    compared: Counter[str] = Counter()
    for row in rows:
        if row["cost"] == "samples" and parent(row["label"]) is None and row["label"] != TARGET:
            reached[row["label"]] += row["reached"]
            compared[row["label"]] += row["runs_compared"]
    if not compared[BASELINE]:
        return ""

    def text(label: str) -> str:
        return f"{label} reaches it in {reached[label]} of {compared[label]} cases"

    best = max((label for label in compared if compared[label]), key=lambda label: reached[label] / compared[label])
    others = f"; {text(best)}" if best != BASELINE else ""
    return f"{text(BASELINE)} (a run at a number of sampling steps){others}."


def _hacking(rows: list[Row], first: Group) -> str:
    """By trained reward, how often it rose while the held-out scorer fell, and the lowest change of that scorer in the
    first group."""
    rows = [row for row in rows if parent(row["label"]) is None]
    heldout = [row for row in rows if row["reward"] == HELDOUT]
    if not heldout:
        return ""
    if all(row["n"] < MIN_RUNS for row in rows):
        return f"{FEW[0].upper()}{FEW[1:]}."
    risen = [row for row in rows if row["reward"] == row["reward_trained"] and row["low"] > 0]
    rose = Counter(row["reward"] for row in risen)
    fell = Counter(row["reward_trained"] for row in heldout if row["falls_while_trained_rises"])
    texts = [f"{fell[reward]} of {count} cases of {reward}" for reward, count in rose.items()]
    if not texts:
        return ""
    text = f"Where the trained reward rose, the held-out scorer fell in {', in '.join(texts)}"
    cases = {(row["label"], row["steps"]) for row in risen if _of(row, first)}
    here = [row for row in heldout if _of(row, first) and (row["label"], row["steps"]) in cases]
    if here:
        row = min(here, key=lambda row: row["value"])
        text += (
            f"; on {_where(first.reward, first.steps)} its lowest change is {row['label']}'s, "
            f"{_sized(row, 'value', first)} at {at_steps(row['steps'])}"
        )
    return f"{text}."


def _winners(ahead: dict[str, list[Lead]], missing: Iterable[str]) -> tuple[Table | None, tuple[dict[str, str], ...]]:
    """Who leads at each number of sampling steps: a block for each trained reward and K, in it a row for each thing
    that is held equal, one more without the reward's gradient where methods use it; and the blocks' places."""
    found = [lead for held in ahead.values() for lead in held]
    if not found:
        return None, ()
    steps = sorted({lead.steps for lead in found})
    rows: dict[tuple[str, int], dict[str, dict[int, str]]] = {}
    for what, held in ahead.items():
        for lead in held:
            block = rows.setdefault((lead.group.reward, lead.group.steps), {})
            block.setdefault(what, {})[lead.steps] = _winner_text(lead)
    blocks = tuple(
        (_where(*place), tuple((what, *(row.get(k, DASH) for k in steps)) for what, row in block.items()))
        for place, block in rows.items()
    )
    note = (
        f"{found[0].group.shown_split.capitalize()} prompts; a cell is a trained reward, K and number of sampling "
        f"steps. The method with the highest interquartile mean, and how far it is ahead of the next in the mean over "
        f"seeds: > by a 95 % interval above 0 (paired by seed, at least {MIN_RUNS} of them), ~ not established, and "
        f"then this mean may be below 0."
    )
    note = " ".join((note, *filter(None, missing)))
    table = Table("winners", "Who leads", note, step_header("at equal", steps), blocks, pd.DataFrame())
    return table, tuple({"reward": reward, "k": str(k)} for reward, k in rows)


def _winner_text(lead: Lead) -> str:
    size = f" by {lead.size:+.{_decimals(lead.group)}f}" if lead.values else ""
    return f"{lead.best} {'>' if lead.sure else '~'} {lead.second}{size}"
