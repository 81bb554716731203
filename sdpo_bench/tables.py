"""Tables of a profile, as Markdown, CSV and LaTeX: a pure function of its raw records.

Runs meet in a table only if device, model, trained reward and number of training steps K agree. A cell is the
interquartile mean over runs, its 95 % bootstrap interval and n; a run's value is its mean over the fixed
prompts and noises at its last evaluation. Of fewer than 5 runs the values themselves are shown, by seed,
without an interval.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from .groups import (
    START,
    Group,
    Results,
    Values,
    at_equal_queries,
    label_key,
    name_part,
    parent,
    query_budget,
    shown_split,
    steps_of,
    still_missing,
)
from .records import COUNTERS, RecordError
from .statistics import Interval, iqm, paired_difference, probability_of_improvement, stratified_bootstrap
from .terminal import printable

BASELINE = "SDPO"
MIN_RUNS = 5  # below this a bootstrap interval says more about luck than about the method
DASH = "–"
RERUN = "nox -s reproduce -- --profile {0} --results RESULTS --resume"  # where RESULTS/{0} is

Block = tuple[str, tuple[tuple[str, ...], ...]]  # title, rows of cell texts


@dataclass(frozen=True)
class Table:
    """A table: `rows` of `blocks` (title, rows of cell texts, label first) for people, `frame` (long) for
    programs; `answer` says in a sentence what it shows, computed as the cells are."""

    name: str
    title: str
    note: str
    header: tuple[str, ...]
    blocks: tuple[Block, ...]
    frame: pd.DataFrame
    answer: str = ""


def step_header(label: str, steps: Iterable[int], *last: str, first: tuple[str, ...] = ()) -> tuple[str, ...]:
    return label, *first, *(f"{k} step{'s' * (k > 1)}" for k in steps), *last


def joined(words: Iterable[object]) -> str:
    """a, b and c."""
    *head, last = [str(word) for word in words] or ["nothing"]
    return f"{', '.join(head)} and {last}" if head else last


def decimals_of(values: Iterable[float]) -> int:
    """3 below 10, 2 below 1000, else 1: so that a table's digits agree."""
    largest = max((abs(value) for value in values), default=0.0)
    return 3 if largest < 10 else 2 if largest < 1000 else 1


def summary(values: Values) -> Interval:
    """Interquartile mean over runs; the interval is NaN for fewer than `MIN_RUNS`, and so is the value for
    none."""
    if not values:
        return Interval(np.nan, np.nan, np.nan, 0)
    return _summary(tuple(values.values()))


@functools.lru_cache(maxsize=2**16)  # tables and figures show the same cells
def _summary(scores: tuple[float, ...]) -> Interval:
    if len(scores) < MIN_RUNS:
        return Interval(float(iqm(scores)), np.nan, np.nan, len(scores))
    return stratified_bootstrap(scores)


def cell_text(values: Values, decimals: int, sign: str = "", interval: Interval | None = None) -> str:
    """A cell: a dash, the runs' values (n < 5), or value [low, high]; always with n. `sign` is a format's."""
    if not values:
        return DASH
    n = f"(n={len(values)})"
    if len(values) < MIN_RUNS:
        return ", ".join(f"{value:{sign}.{decimals}f}" for value in values.values()) + f" {n}"
    value, low, high, _ = interval or summary(values)
    return f"{value:{sign}.{decimals}f} [{low:{sign}.{decimals}f}, {high:{sign}.{decimals}f}] {n}"


def interval_columns(interval: Interval) -> dict[str, float]:
    """`low` and `high` of a table's frame: NaN below `MIN_RUNS`."""
    few = interval.n < MIN_RUNS
    return {"low": np.nan if few else interval.low, "high": np.nan if few else interval.high}


def run_ids(group: Group, label: str, seeds: Iterable[int]) -> str:
    return " ".join(name for seed in seeds for name in group.ids.get((label, seed), ()))


def context(group: Group) -> dict[str, object]:
    """First columns of a group's frames."""
    return {"device": group.device, "model": group.model, "reward_trained": group.reward, "training_steps": group.steps}


def note_of(text: str, blocks: object, profile: str) -> str:
    """A table's note: with how many intervals it shows, and, if a cell is empty, with what fills it."""
    shown = repr(blocks)
    count = shown.count(" [")
    text += f" {count} intervals are shown, each of 95 % on its own." if count else ""
    hole = (
        f" A dash is a run that is missing; `{RERUN.format(profile)}` runs what the profile lacks, "
        f"where RESULTS holds {profile}/."
    )
    return text + (hole if repr(DASH) in shown else "")


CELLS = (
    "Interquartile mean over runs [95 % bootstrap interval] (n runs); with fewer than 5 runs their values "
    "themselves, by seed."
)


def _value_table(
    group: Group, name: str, title: str, note: str, reward: str, extra: Mapping[str, str] | None = None
) -> Table:
    """Rows are methods, columns sampling steps, blocks the splits; `extra` adds a column of text per label."""
    frame = group.values[group.values["reward"] == reward]
    steps = steps_of(frame)
    decimals = decimals_of(frame["value"])
    blocks, long = [], []
    for split in sorted(frame["split"].unique()):
        rows = []
        for label in group.methods:
            cells = {k: group.cell(label, reward, split, k) for k in steps}
            rows.append(
                (label, *([extra.get(label, DASH)] if extra else []), *(cell_text(cells[k], decimals) for k in steps))
            )
            for k in steps:
                value, low, high, n = summary(cells[k])
                long.append(
                    {
                        **context(group),
                        "reward": reward,
                        "split": split,
                        "label": label,
                        "steps": k,
                        "n": n,
                        "value": value,
                        "low": low,
                        "high": high,
                        "runs": " ".join(f"{v:.6g}" for v in cells[k].values()),
                        "run_ids": run_ids(group, label, cells[k]),
                    }
                )
        blocks.append((f"{split} prompts", tuple(rows)))
    return Table(
        name,
        title,
        note_of(note, blocks, group.profile),
        step_header("method", steps, first=("samples",) if extra else ()),
        tuple(blocks),
        pd.DataFrame(long),
        leaders(group) if name.startswith("main") else "",
    )


def main_table(group: Group, reward: str | None = None) -> Table:
    """Final values by method and sampling steps, of the trained reward or of another (did the run only hack
    its own?)."""
    other = reward is not None and reward != group.reward
    reward = reward or group.reward
    what = f"{reward} of runs {group.title}" if other else f"{reward}, {group.title}"
    note = CELLS + (
        f" No run here was trained on {reward}: where it falls while {group.reward} rises, the run hacked its reward."
        if other
        else ""
    )
    name = f"other{group.suffix}_{name_part(reward)}" if other else f"main{group.suffix}"
    return _value_table(group, name, what, note, reward)


def equal_queries_table(group: Group, equal: Group | None) -> Table | None:
    """Values after the smallest final number of reward queries of a trained run, of `equal`, `at_equal_queries` of the
    group; None without it."""
    if equal is None:
        return None
    used = {}
    for label in group.methods:
        samples = sorted(equal.values.loc[equal.values["label"] == label, "samples"].astype(int).unique())
        if samples:
            used[label] = f"{samples[0]:,}" + (f"–{samples[-1]:,}" if len(samples) > 1 else "")
    note = (
        f"Every run after {query_budget(group):,} reward queries, the smallest total of a trained run; the samples "
        "that it had by then are shown. Values lie on a straight line between the evaluations before and after, "
        f"the start's being the first; numbers of steps evaluated only at the end are left out. {CELLS}"
    )
    title = f"{group.reward} at equal reward queries, {group.title}"
    return _value_table(equal, f"equal_queries{group.suffix}", title, note, group.reward, used)


def cost_table(group: Group) -> Table:
    """What a run of each label cost: totals at its end, seconds per epoch as recorded on its device."""
    header = (
        "method",
        "runs",
        "epochs",
        "samples",
        "reward queries",
        "optimiser steps",
        "model evaluations",
        "s/epoch: sampling",
        "reward",
        "training",
    )
    blocks, long = [], []
    for ablations in (False, True):
        rows: list[tuple[str, ...]] = []
        for label in group.labels:
            if (parent(label) is not None) != ablations:
                continue
            runs = [run for run in group.runs if run.label == label and run.train]
            if not runs:
                rows.append((label, *(DASH if label in group.missing else "0" for _ in header[1:])))
                continue
            last = [run.train[-1] for run in runs]
            epochs = [row for run in runs for row in run.train]
            totals = {key: float(np.mean([row[key] for row in last])) for key in ("epoch", *COUNTERS)}
            seconds = {
                key: sum(row["seconds"].get(key, 0.0) for row in epochs) / len(epochs)
                for key in ("sample", "reward", "train")
            }
            rows.append(
                (
                    label,
                    str(len(runs)),
                    *(f"{value:,.0f}" for value in totals.values()),
                    *(f"{value:.3g}" for value in seconds.values()),
                )
            )
            long.append(
                {
                    **context(group),
                    "label": label,
                    "n": len(runs),
                    **totals,
                    **{f"seconds_{key}": value for key, value in seconds.items()},
                    "run_ids": " ".join(run.run_id for run in runs),
                }
            )
        if rows:
            blocks.append(("ablations" if ablations else "", tuple(rows)))
    note = "Means over runs: totals at the end of training, seconds of an epoch (mean over epochs)."
    return Table(
        f"cost{group.suffix}",
        f"Cost, {group.title}",
        note_of(note, blocks, group.profile),
        header,
        tuple(blocks),
        pd.DataFrame(long),
    )


class Pair(NamedTuple):
    """Two labels to compare by seed, each with the group of its runs, and the row's text."""

    text: str
    group: Group
    label: str
    other_group: Group
    other: str

    def cells(self, split: str, steps: int) -> tuple[Values, Values]:
        """Values of the trained reward, by seed. The start has no seed of its own: it stands against every run."""
        x = self.group.cell(self.label, self.group.reward, split, steps)
        y = self.other_group.cell(self.other, self.other_group.reward, split, steps)
        if x and y and START in (self.label, self.other):
            x = dict.fromkeys(y, next(iter(x.values()))) if self.label == START else x
            y = dict.fromkeys(x, next(iter(y.values()))) if self.other == START else y
        return x, y


ALL = "mean"  # over these numbers of steps
PAIRED = (
    "Differences are paired by seed: their mean [95 % interval, Student's t] (n pairs); with fewer than 5 pairs "
    "the differences themselves, by seed. Where nothing differs about one interval in 20 leaves out 0. "
    "Probability: that a run of the first beats one of the second, ties half [95 % interval, Newcombe's]."
)


def differences(x: Values, y: Values) -> Values:
    """x - y at the seeds that both have."""
    return {seed: x[seed] - y[seed] for seed in sorted(x.keys() & y.keys())}


def difference_text(x: Values, y: Values, decimals: int) -> str:
    shared = differences(x, y)
    return cell_text(shared, decimals, "+", paired_difference(x, y) if shared else None)


def paired_table(name: str, title: str, note: str, first: str, pairs: list[Pair]) -> Table:
    """A row per pair: differences of the trained reward at each number of sampling steps that both groups have, and
    of its mean over these, then probabilities of improvement; blocks are the splits."""
    group, other = pairs[0].group, pairs[0].other_group
    steps = [k for k in group.steps_evaluated if k in other.steps_evaluated]
    splits = sorted(set(group.splits) & set(other.splits))
    decimals = decimals_of(group.values.loc[group.values["reward"] == group.reward, "value"])
    blocks: list[Block] = []
    long, answer = [], ""
    for split in splits:
        shown, chances = [], []
        for pair in pairs:
            cells: dict[int | str, tuple[Values, Values]] = {k: pair.cells(split, k) for k in steps}
            if len(steps) > 1:
                mean_x, mean_y = (
                    {
                        seed: float(np.mean([cells[k][side][seed] for k in steps]))
                        for seed in sorted(set.intersection(*(set(cells[k][side]) for k in steps)))
                    }
                    for side in (0, 1)
                )
                cells[ALL] = mean_x, mean_y
            texts, odds = [pair.text], [pair.text]
            for k, (x, y) in cells.items():
                texts.append(difference_text(x, y, decimals))
                shared = differences(x, y)
                if not shared:
                    odds.append(DASH)
                    continue
                d = paired_difference(x, y)
                p = probability_of_improvement(list(x.values()), list(y.values()))
                odds.append(
                    f"{p.value:.2f}"
                    + (f" [{p.low:.2f}, {p.high:.2f}]" if p.n >= MIN_RUNS else "")
                    + f" (n={len(x)}, {len(y)})"
                )
                chance = {f"probability_{key}": value for key, value in interval_columns(p).items()}
                ids = (run_ids(pair.group, pair.label, shared), run_ids(pair.other_group, pair.other, shared))
                long.append(
                    {
                        **context(group),
                        "split": split,
                        "label": pair.label,
                        "baseline": pair.other,
                        "steps": k,
                        "n": d.n,
                        "difference": d.value,
                        **interval_columns(d),
                        "runs": " ".join(f"{v:.6g}" for v in shared.values()),
                        "probability": p.value,
                        **chance,
                        "run_ids": " ".join(filter(None, ids)),
                    }
                )
            shown.append(tuple(texts))
            chances.append(tuple(odds))
        blocks += [
            (f"{split} prompts: difference", tuple(shown)),
            (f"{split} prompts: probability of improvement", tuple(chances)),
        ]
        known = [f"{row[0]} {row[-1]}" for row in shown if row[-1] != DASH]
        if known and split == shown_split(group.values):
            answer = f"{split.capitalize()} prompts, mean over {joined(steps)} steps: {'; '.join(known)}."
    return Table(
        name,
        title,
        note_of(f"{PAIRED}{note}", blocks, group.profile),
        step_header(first, steps, *([ALL] if len(steps) > 1 else [])),
        tuple(blocks),
        pd.DataFrame(long),
        answer,
    )


def baseline_label(group: Group) -> str | None:
    """SDPO, or the first trained method where there is none."""
    labels = [label for label in group.methods if label != START]
    return BASELINE if BASELINE in labels else labels[0] if labels else None


def difference_table(group: Group) -> Table | None:
    """Each method minus the baseline; None with fewer than two methods."""
    base = baseline_label(group)
    pairs = [Pair(label, group, label, group, base) for label in group.methods if base and label not in (base, START)]
    if not pairs:
        return None
    table = paired_table(
        f"differences{group.suffix}",
        f"{group.reward} minus {base}'s, {group.title}",
        f" The second is {base}.",
        "method",
        pairs,
    )
    return replace(table, answer="")  # who leads is the main table's answer


def ranking(group: Group, split: str, steps: int) -> list[tuple[str, bool]]:
    """Methods from best to worst interquartile mean, each with whether the one before it is ahead beyond
    doubt: the 95 % interval of their difference, paired by at least `MIN_RUNS` seeds, lies above 0."""
    cells = {label: group.cell(label, group.reward, split, steps) for label in group.methods}
    points = {label: float(iqm(list(values.values()))) for label, values in cells.items() if values}
    labels = sorted(points, key=lambda label: (-points[label], label_key(label)))
    order = [(label, False) for label in labels[:1]]
    for better, worse in pairwise(labels):
        x, y = Pair("", group, better, group, worse).cells(split, steps)
        order.append((worse, len(x.keys() & y.keys()) >= MIN_RUNS and paired_difference(x, y).low > 0))
    return order


def leaders(group: Group) -> str:
    """Who is highest at each number of sampling steps, and by how much over the next, in a sentence."""
    split = shown_split(group.values)
    decimals = decimals_of(group.values.loc[group.values["reward"] == group.reward, "value"])
    leads = []
    for steps in group.steps_evaluated:
        order = [label for label, _ in ranking(group, split, steps)]
        if len(order) > 1:
            lead = difference_text(*Pair("", group, order[0], group, order[1]).cells(split, steps), decimals)
            over = f"{lead} over {order[1]}" if lead != DASH else f"before {order[1]}, no seed in common"
            leads.append(f"at {steps} step{'s' * (steps > 1)} {order[0]} ({over})")
    where = f"K = {group.steps}, {group.reward}, {split} prompts"
    return f"{where}: highest by interquartile mean is {joined(leads)}." if leads else ""


def cells_text(cells: Iterable[tuple[str, int]]) -> str:
    """(reward, K) in words: "alignment at K = 4 and 20 and colourfulness at K = 4"."""
    found: dict[str, list[int]] = {}
    for reward, k in sorted(cells):
        found.setdefault(reward, []).append(k)
    return joined([f"{reward} at K = {joined(ks)}" for reward, ks in found.items()])


def order_table(groups: list[Group], queries: bool = False) -> Table:
    """Order of the methods at each step count for every training K: does it change with K? Groups of one
    device; at equal samples, or as `at_equal_queries` gives them."""
    rows, long = [], []
    first = groups[0]
    leads: dict[str, list[bool]] = {}  # by who is highest: whether it is established
    for group in groups:
        for split in group.splits:
            for steps in group.steps_evaluated:
                order = ranking(group, split, steps)
                text = "".join((" > " if sure else " ~ ") + label for label, sure in order)[3:]
                rows.append((group.reward, str(group.steps), split, str(steps), text or DASH))
                long += [
                    {
                        **context(group),
                        "split": split,
                        "steps": steps,
                        "rank": rank,
                        "label": label,
                        "established": sure,
                    }
                    for rank, (label, sure) in enumerate(order, 1)
                ]
                if len(order) > 1:
                    leads.setdefault(order[0][0], []).append(order[1][1])
    extra = first.suffix.removeprefix(f"_{name_part(first.reward)}_k{first.steps}")
    note = (
        "Best first, by interquartile mean. a > b: the 95 % interval of the difference paired by seed is above "
        f"0 (Student's t, at least {MIN_RUNS} pairs, intervals not corrected for their number); a ~ b: the order "
        "of the estimates, not established."
    )
    how = " at equal reward queries" if queries else " at equal samples"
    each = ", ".join(
        f"{label} {len(sure)} ({sum(sure)})"
        for label, sure in sorted(leads.items(), key=lambda item: (-len(item[1]), label_key(item[0])))
    )
    cases = sum(map(len, leads.values()))
    answer = (
        f"Highest{how}, in how many of {cases} cases (a reward, K, split of prompts, number of sampling steps; "
        f"in brackets: ahead of the next by an interval above 0): {each}."
    )
    return Table(
        f"order{'_queries' * queries}{extra}",
        f"Order of the methods{how}, {first.model} on {first.device}",
        note,
        ("reward", "training K", "prompts", "sampling steps", "order"),
        (("", tuple(rows)),),
        pd.DataFrame(long),
        answer if each else "",
    )


def build_tables(groups: list[Group]) -> list[Table]:
    """All tables of a profile, in the order of the report; those that the records have nothing for are left out."""
    from . import claims, study  # they build on this module

    tables: list[Table | None] = []
    at_equal = [at_equal_queries(group) for group in groups]
    for group, found in zip(groups, at_equal, strict=True):
        others = sorted(set(group.curves["reward"]) - {group.reward})
        tables += [
            main_table(group),
            equal_queries_table(group, found),
            *(main_table(group, other) for other in others),
            difference_table(group),
            cost_table(group),
        ]
        if claims.applies(group):
            tables += [claims.beside_table(group), claims.claims_table(group)]
        tables += [study.ablation_table(group), study.reach_table(group), study.hacking_table(group)]
    for key in sorted({(group.device, group.model) for group in groups}):
        own = [group for group in groups if (group.device, group.model) == key]
        equal = [
            found for group, found in zip(groups, at_equal, strict=True) if found and (group.device, group.model) == key
        ]
        tables.append(order_table(own))
        tables += [order_table(equal, queries=True)] if equal else []
        tables += study.profile_tables(own, equal)
    return [table for table in tables if table is not None]


# What Markdown would take for markup in a label or reward of the records: tags and comments, entities, links and
# pictures, cells' borders, code; and a backslash, which would take the escape away.
_MARKUP = re.compile(r"(`[^`<\[\\|&\n]*`)|[\\`|]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|\](?=[(\[])|!(?=\[)")


def escaped(text: str) -> str:
    """Text of the tables as Markdown, in which it says the same: `code` without signs of markup stays, and so does
    **bold**; every other sign is escaped, so that no label is run, drawn or followed as a link."""

    def escape(found: re.Match[str]) -> str:
        return found[1] or {"<": "&lt;", "&": "&amp;"}.get(found[0], "\\" + found[0])

    return _MARKUP.sub(escape, printable(text))


def markdown(table: Table) -> str:
    """GitHub Markdown, without a trailing newline."""
    title, answer, note = map(escaped, (table.title[:1].upper() + table.title[1:], table.answer, table.note))
    lines = [f"**{title}**", *(["", answer] if answer else [])]
    for title, rows in table.blocks:
        lines += [
            "",
            *([f"*{escaped(title)}*", ""] if title else []),
            "| " + " | ".join(map(escaped, table.header)) + " |",
            "|---" * len(table.header) + "|",
            *("| " + " | ".join(map(escaped, row)) + " |" for row in rows),
        ]
    return "\n".join([*lines, "", note])


TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"$\sim$",
    "^": r"\^{}",
    "–": "--",
    ">": "$>$",
    "<": "$<$",
    "|": "$|$",
}


def _tex(text: str) -> str:
    return "".join(TEX.get(character, character) for character in printable(text))


def _tex_row(row: Iterable[str]) -> str:
    line = " & ".join(map(_tex, row)) + r" \\"
    return "{}" + line if line.startswith(("[", "*")) else line  # else an option of the row before


def latex(table: Table) -> str:
    """A LaTeX table environment (package booktabs), without a trailing newline."""
    columns = len(table.header)
    caption = f"{table.title[:1].upper() + table.title[1:]}. {table.note.replace('`', '')}"
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(caption)}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}",
        rf"\begin{{tabular}}{{l{'r' * (columns - 1)}}}",
        r"\toprule",
        _tex_row(table.header),
    ]
    for title, rows in table.blocks:
        lines.append(r"\midrule")
        if title:
            lines.append(rf"\multicolumn{{{columns}}}{{l}}{{\emph{{{_tex(title)}}}}} \\")
        lines += map(_tex_row, rows)
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def csv(frame: pd.DataFrame) -> str:
    """A table's frame as CSV. An apostrophe stands before a text that a spreadsheet would run as a formula."""
    texts = frame.select_dtypes(exclude=["number", "bool"]).columns
    safe = frame.assign(**{str(name): frame[name].map(_no_formula) for name in texts})
    return safe.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _no_formula(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    cell = printable(cell)
    return "'" + cell if cell.startswith(("=", "+", "-", "@", "\t", "\n")) and not _numbers(cell) else cell


def _numbers(text: str) -> bool:
    """Whether a text is nothing but numbers with spaces between, as the values of runs."""
    try:
        return bool([float(part) for part in text.split(" ")])
    except ValueError:
        return False


def table_files(tables: Iterable[Table]) -> dict[str, bytes]:
    """`tables/*.{md,csv,tex}`, by name. RecordError where two tables would have the same name."""
    formats: dict[str, Callable[[Table], str]] = {
        ".md": lambda table: markdown(table) + "\n",
        ".tex": lambda table: latex(table) + "\n",
        ".csv": lambda table: csv(table.frame),
    }
    files: dict[str, bytes] = {}
    for table in tables:
        for suffix, render in formats.items():
            name = f"tables/{table.name}{suffix}"
            if name in files:
                raise RecordError(
                    f"two tables would be {name}: rewards, models or devices of these records have names "
                    "that differ in their signs alone; keep them in two folders of results"
                )
            files[name] = render(table).encode()
    return files


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def text(table: Table) -> str:
    """Aligned columns, for a terminal."""
    lines = [table.title, *(["", table.answer] if table.answer else [])]
    for title, rows in table.blocks:
        lines += ["", *aligned([(title or table.header[0], *table.header[1:]), *rows])]
    return "\n".join([*lines, "", table.note])


def render_terminal(results: Results) -> str:
    """The main table of every group as aligned text, with what is unfinished."""
    parts = [part for group in results.groups for part in (text(main_table(group)), "")]
    if results.unfinished:
        parts.append(f"{len(results.unfinished)} unfinished: {still_missing(results.unfinished)}")
    return "\n".join(parts).rstrip() or f"no finished run in {results.folder}"
