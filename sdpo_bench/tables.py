"""Tables of a profile, as Markdown, CSV and LaTeX: a pure function of its raw records.

Runs meet in a table only if device, model, trained reward and number of training steps K agree. A cell is the
interquartile mean over runs, its 95 % bootstrap interval and n; a run's value is its mean over the fixed
prompts and noises at its last evaluation. Of fewer than 5 runs the values themselves are shown, by seed,
without an interval.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from .records import (
    COUNTERS,
    RecordError,
    RunRecord,
    load_profile,
    mean_frame,
    slug,
    unfinished_runs,
    write_atomic,
)
from .statistics import Interval, iqm, paired_difference, probability_of_improvement, stratified_bootstrap

START = "start"
BASELINE = "SDPO"
ORDER = (START, "SDPO", "SDPO-causal", "DDPO", "REBEL", "PRDP", "D3PO")  # of rows and lines; others follow by name
MIN_RUNS = 5  # below this a bootstrap interval says more about luck than about the method
DASH = "–"
RERUN = "nox -s reproduce -- --profile {} --resume"

Values = dict[int, float]  # seed -> value of that run


def parent(label: str) -> str | None:
    """The method of which a label is an ablation, "PARENT (change)"; None for a method."""
    method, bracket, _ = label.partition(" (")
    return method if bracket else None


def label_key(label: str) -> tuple[int, str]:
    """Sort key: the known methods in the order of `ORDER`, each before its ablations, then the others by name."""
    method = parent(label) or label
    return (ORDER.index(method) if method in ORDER else len(ORDER), label)


@dataclass(frozen=True)
class Table:
    """A table: `rows` of `blocks` (title, rows of cell texts, label first) for people, `frame` (long) for
    programs; `answer` says in a sentence what it shows, computed as the cells are."""

    name: str
    title: str
    note: str
    header: tuple[str, ...]
    blocks: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]
    frame: pd.DataFrame
    answer: str = ""


@dataclass(frozen=True)
class Group:
    """The finished runs that may be compared, those of the untrained start among them.

    `values` has a row per run, reward, sampling steps and split at the run's last evaluation, `curves` per
    evaluation too (columns of `mean_frame`); `missing` are labels with an unfinished run here; `suffix` ends
    the files' names.
    """

    profile: str
    device: str
    model: str
    reward: str
    steps: int
    suffix: str
    runs: tuple[RunRecord, ...]
    curves: pd.DataFrame
    missing: tuple[str, ...]

    @property
    def labels(self) -> list[str]:
        return sorted({run.label for run in self.runs} | set(self.missing), key=label_key)

    @property
    def methods(self) -> list[str]:
        """The labels that are not ablations, the start among them."""
        return [label for label in self.labels if parent(label) is None]

    @cached_property
    def values(self) -> pd.DataFrame:
        last = self.curves.groupby(["run", "reward"])["epoch"].transform("max")
        return self.curves[self.curves["epoch"] == last]

    @property
    def title(self) -> str:
        return f"trained on {self.reward} with K = {self.steps}, {self.model} on {self.device}"

    def cell(self, label: str, reward: str, split: str, steps: int,
             frame: pd.DataFrame | None = None) -> Values:
        """Value of each of a label's runs, by seed, sorted; empty where there is none."""
        f = self.values if frame is None else frame
        f = f[(f["label"] == label) & (f["reward"] == reward) & (f["split"] == split) & (f["steps"] == steps)]
        return dict(sorted(zip(f["seed"].astype(int), f["value"].astype(float), strict=True)))


def shown_split(frame: pd.DataFrame) -> str:
    """The prompts that curves are drawn of: those seen in training, or the only ones that were evaluated."""
    return "seen" if (frame["split"] == "seen").any() else str(min(frame["split"], default="seen"))


def _check_labels(runs: Iterable[RunRecord]) -> None:
    """A row is one configuration and its seeds. RecordError otherwise: mixing two under one name would
    mislead."""
    seen: dict[tuple[object, ...], RunRecord] = {}
    for run in runs:
        key = (run.device, run.config["model"], run.config["reward"], run.config["steps"], run.label)
        first = seen.setdefault(key, run)
        differ = [k for k in sorted(first.config.keys() | run.config.keys()) if k not in ("seed", "run_id")
                  and first.config.get(k) != run.config.get(k)]
        if differ or (run is not first and run.config["seed"] == first.config["seed"]):
            what = differ[0] if differ else "nothing, not even the seed"
            raise RecordError(f"runs {first.run_id} and {run.run_id} share the label {run.label!r} but differ in "
                              f"{what}: give one another label")


def load_groups(folder: str | os.PathLike[str]) -> list[Group]:
    """The groups of `results/<profile>`, sorted. Files of the device with most runs carry no device in their
    name.

    Errors: `RecordError`, of unsound records, or of two configurations under one label.
    """
    runs = load_profile(folder)
    _check_labels(runs)
    profile = Path(folder).resolve().name
    trained = [run for run in runs if run.label != START]
    starts = [run for run in runs if run.label == START]
    devices = [run.device for run in runs]
    main_device = min(set(devices), key=lambda device: (-devices.count(device), device), default="")
    models = {run.config["model"] for run in runs}
    pending = [config for config in unfinished_runs(folder) if "label" in config]
    keys = sorted({(run.device, run.config["model"], run.config["reward"], run.config["steps"])
                   for run in trained or starts})
    groups = []
    for device, model, reward, steps in keys:
        own = [run for run in trained if (run.device, *(run.config[k] for k in ("model", "reward", "steps")))
               == (device, model, reward, steps)]
        # The start is not trained: one run of it serves every reward and K; if there are several, the group's own.
        fitting = [run for run in starts if (run.device, run.config["model"]) == (device, model)]
        fitting.sort(key=lambda run: (run.config["reward"] != reward, run.config["steps"] != steps,
                                      run.sort_key))
        missing = {str(config["label"]) for config in pending if device == main_device and
                   (config["model"], config["reward"], config["steps"]) == (model, reward, steps)}
        suffix = f"_{slug(reward)}_k{steps}" + (f"_{slug(str(model))}" if len(models) > 1 else "")
        suffix += f"_{slug(device)}" if device != main_device else ""
        chosen = (*fitting[:1], *own)
        groups.append(Group(profile, device, model, reward, steps, suffix, chosen, mean_frame(chosen),
                            tuple(sorted(missing))))
    return groups


def _decimals(values: Iterable[float]) -> int:
    """3 below 10, 2 below 1000, else 1: so that a table's digits agree."""
    largest = max((abs(value) for value in values), default=0.0)
    return 3 if largest < 10 else 2 if largest < 1000 else 1


def summary(values: Values) -> Interval:
    """Interquartile mean over runs; the interval is NaN for fewer than `MIN_RUNS`, and so is the value for
    none."""
    if not values:
        return Interval(np.nan, np.nan, np.nan, 0)
    scores = list(values.values())
    if len(scores) < MIN_RUNS:
        return Interval(float(iqm(scores)), np.nan, np.nan, len(scores))
    return stratified_bootstrap(scores)


def cell_text(values: Values, decimals: int, sign: str = "", interval: Interval | None = None) -> str:
    """A cell: a dash, the runs' values (n < 5), or value [low, high]; always with n."""
    if not values:
        return DASH
    n = f"(n={len(values)})"
    if len(values) < MIN_RUNS:
        return ", ".join(f"{value:{sign}.{decimals}f}" for value in values.values()) + f" {n}"
    value, low, high, _ = interval or summary(values)
    return f"{value:{sign}.{decimals}f} [{low:{sign}.{decimals}f}, {high:{sign}.{decimals}f}] {n}"


def _ids(group: Group, label: str, seeds: Iterable[int]) -> str:
    return " ".join(run.run_id for seed in seeds for run in group.runs
                    if run.label == label and run.config["seed"] == seed)


def _context(group: Group) -> dict[str, object]:
    return {"device": group.device, "model": group.model, "reward_trained": group.reward,
            "training_steps": group.steps}


def _note(text: str, blocks: object, profile: str) -> str:
    hole = f" A dash is a run that is missing; `{RERUN.format(profile)}` runs what the profile lacks."
    return text + (hole if DASH in repr(blocks) else "")


CELLS = ("Interquartile mean over runs [95 % bootstrap interval] (n runs); with fewer than 5 runs their values "
         "themselves, by seed.")


def _value_table(group: Group, name: str, title: str, note: str, reward: str, frame: pd.DataFrame,
                 extra: Mapping[str, str] | None = None) -> Table:
    """Rows are labels, columns sampling steps, blocks the splits; `extra` adds a column of text per label."""
    steps = sorted(int(k) for k in frame["steps"].unique())
    decimals = _decimals(frame.loc[frame["reward"] == reward, "value"])
    header = ("method", *(["reward queries"] if extra else []), *(f"{k} step{'s' * (k > 1)}" for k in steps))
    blocks, long = [], []
    for split in sorted(frame["split"].unique()):
        rows = []
        for label in group.labels:
            cells = {k: group.cell(label, reward, split, k, frame) for k in steps}
            rows.append((label, *([extra.get(label, DASH)] if extra else []),
                         *(cell_text(cells[k], decimals) for k in steps)))
            for k in steps:
                value, low, high, n = summary(cells[k])
                long.append({**_context(group), "reward": reward, "split": split, "label": label, "steps": k,
                             "n": n, "value": value, "low": low, "high": high,
                             "runs": " ".join(f"{v:.6g}" for v in cells[k].values()),
                             "run_ids": _ids(group, label, cells[k])})
        blocks.append((f"{split} prompts", tuple(rows)))
    return Table(name, title, _note(note, blocks, group.profile), header, tuple(blocks), pd.DataFrame(long))


def main_table(group: Group, reward: str | None = None) -> Table:
    """Final values by method and sampling steps, of the trained reward or of another (did the run only hack
    its own?)."""
    other = reward is not None and reward != group.reward
    reward = reward or group.reward
    what = f"{reward} of runs {group.title}" if other else f"{reward}, {group.title}"
    note = CELLS + (f" No run here was trained on {reward}: where it falls while {group.reward} rises, the "
                    "run hacked its reward." if other else "")
    name = f"other{group.suffix}_{slug(reward)}" if other else f"main{group.suffix}"
    return _value_table(group, name, what, note, reward, group.values)


def query_budget(group: Group) -> int | None:
    """Smallest final number of reward queries among the trained runs; None without one."""
    final = [max(row["reward_queries"] for row in run.eval) for run in group.runs if run.label != START]
    return min(final) if final else None


def equal_queries_table(group: Group) -> Table:
    """Every run at its last evaluation within the smallest final number of reward queries of the trained
    runs."""
    budget = query_budget(group) or 0
    f = group.curves[(group.curves["reward"] == group.reward) & (group.curves["reward_queries"] <= budget)]
    f = f[f["epoch"] == f.groupby("run")["epoch"].transform("max")]
    used = {}
    for label in group.labels:
        queries = sorted(f.loc[f["label"] == label, "reward_queries"].astype(int).unique())
        if queries:
            used[label] = f"{queries[0]:,}" + (f"–{queries[-1]:,}" if len(queries) > 1 else "")
    note = (f"Every run at its last evaluation within {budget:,} reward queries, the smallest total of a trained "
            f"run; the queries used are shown. {CELLS}")
    title = f"{group.reward} at equal reward queries, {group.title}"
    return _value_table(group, f"equal_queries{group.suffix}", title, note, group.reward, f, used)


def cost_table(group: Group) -> Table:
    """What a run of each label cost: totals at its end, seconds per epoch as recorded on its device."""
    header = ("method", "runs", "epochs", "samples", "reward queries", "optimiser steps", "model evaluations",
              "s/epoch: sampling", "reward", "training")
    rows, long = [], []
    for label in group.labels:
        runs = [run for run in group.runs if run.label == label and run.train]
        if not runs:
            rows.append((label, *(DASH if label in group.missing else "0" for _ in header[1:])))
            continue
        last = [run.train[-1] for run in runs]
        epochs = [row for run in runs for row in run.train]
        totals = {key: float(np.mean([row[key] for row in last])) for key in ("epoch", *COUNTERS)}
        seconds = {key: sum(row["seconds"].get(key, 0.0) for row in epochs) / len(epochs)
                   for key in ("sample", "reward", "train")}
        rows.append((label, str(len(runs)), *(f"{value:,.0f}" for value in totals.values()),
                     *(f"{value:.3g}" for value in seconds.values())))
        long.append({**_context(group), "label": label, "n": len(runs), **totals,
                     **{f"seconds_{key}": value for key, value in seconds.items()},
                     "run_ids": " ".join(run.run_id for run in runs)})
    note = "Means over runs: totals at the end of training, seconds of an epoch (mean over epochs)."
    return Table(f"cost{group.suffix}", f"Cost, {group.title}", _note(note, rows, group.profile), header,
                 (("", tuple(rows)),), pd.DataFrame(long))


def baseline_label(group: Group) -> str | None:
    """SDPO, or the first trained label where there is none."""
    labels = [label for label in group.labels if label != START]
    return BASELINE if BASELINE in labels else labels[0] if labels else None


def difference_table(group: Group) -> Table:
    """Each label minus the baseline, paired by seed, and the probability that its run beats the
    baseline's."""
    base, frame, reward = baseline_label(group), group.values, group.reward
    steps = sorted(int(k) for k in frame["steps"].unique())
    blocks: list[tuple[str, tuple[tuple[str, ...], ...]]] = []
    long = []
    for split in sorted(frame["split"].unique()):
        differences, chances = [], []
        for label in group.labels:
            if label in (base, START) or base is None:
                continue
            texts, odds = [label], [label]
            for k in steps:
                x, y = group.cell(label, reward, split, k, frame), group.cell(base, reward, split, k, frame)
                shared = {seed: x[seed] - y[seed] for seed in x if seed in y}
                if not shared:
                    texts.append(DASH)
                    odds.append(DASH)
                    continue
                d = paired_difference(x, y)
                p = probability_of_improvement(list(x.values()), list(y.values()))
                texts.append(cell_text(shared, 3 if _decimals(x.values()) == 3 else 2, "+", d))
                odds.append(f"{p.value:.2f}" + (f" [{p.low:.2f}, {p.high:.2f}]" if p.n >= MIN_RUNS else "")
                            + f" (n={len(x)}, {len(y)})")
                few, few_p = d.n < MIN_RUNS, p.n < MIN_RUNS
                long.append({**_context(group), "split": split, "label": label, "baseline": base, "steps": k,
                             "n": d.n, "difference": d.value, "low": np.nan if few else d.low,
                             "high": np.nan if few else d.high, "probability": p.value,
                             "probability_low": np.nan if few_p else p.low,
                             "probability_high": np.nan if few_p else p.high,
                             "run_ids": f"{_ids(group, label, shared)} {_ids(group, base, shared)}"})
            differences.append(tuple(texts))
            chances.append(tuple(odds))
        blocks += [(f"{split} prompts: difference", tuple(differences)),
                   (f"{split} prompts: probability of improvement", tuple(chances))]
    note = ("Differences are paired by seed: their mean [95 % bootstrap interval]; with fewer than 5 pairs the "
            f"differences themselves. Probability: that a run of the row beats one of {base}, ties half.")
    return Table(f"differences{group.suffix}", f"{reward} minus {base}'s, {group.title}",
                 _note(note, blocks, group.profile), ("method", *(f"{k} step{'s' * (k > 1)}" for k in steps)),
                 tuple(blocks), pd.DataFrame(long))


def ranking(group: Group, split: str, steps: int) -> list[tuple[str, bool]]:
    """Labels from best to worst interquartile mean, each with whether the one before it is ahead beyond
    doubt: the 95 % interval of their difference, paired by at least `MIN_RUNS` seeds, lies above 0."""
    cells = {label: group.cell(label, group.reward, split, steps) for label in group.labels}
    points = {label: float(iqm(list(values.values()))) for label, values in cells.items() if values}
    labels = sorted(points, key=lambda label: (-points[label], label_key(label)))
    order = [(label, False) for label in labels[:1]]
    for better, worse in pairwise(labels):
        x, y = cells[better], cells[worse]
        # The start has no seed of its own: it stands against every run.
        x = dict.fromkeys(y, next(iter(x.values()))) if better == START else x
        y = dict.fromkeys(x, next(iter(y.values()))) if worse == START else y
        order.append((worse, len(x.keys() & y.keys()) >= MIN_RUNS and paired_difference(x, y).low > 0))
    return order


def order_table(groups: list[Group]) -> Table:
    """Order of the methods at each step count for every training K: does it change with K? Groups of one
    device."""
    rows, long = [], []
    first = groups[0]
    for group in groups:
        frame = group.values[group.values["reward"] == group.reward]
        for split in sorted(frame["split"].unique()):
            for steps in sorted(int(k) for k in frame["steps"].unique()):
                order = ranking(group, split, steps)
                text = "".join((" > " if sure else " ~ ") + label for label, sure in order)[3:]
                rows.append((group.reward, str(group.steps), split, str(steps), text or DASH))
                long += [{**_context(group), "split": split, "steps": steps, "rank": rank, "label": label,
                          "established": sure} for rank, (label, sure) in enumerate(order, 1)]
    extra = first.suffix.removeprefix(f"_{slug(first.reward)}_k{first.steps}")
    note = ("Best first, by interquartile mean. a > b: the 95 % interval of the difference paired by seed is above "
            f"0 (at least {MIN_RUNS} pairs, intervals not corrected for their number); a ~ b: the order of the "
            "estimates, not established.")
    return Table(f"order{extra}", f"Order of the methods, {first.model} on {first.device}", note,
                 ("reward", "training K", "prompts", "sampling steps", "order"), (("", tuple(rows)),),
                 pd.DataFrame(long))


def build_tables(groups: list[Group]) -> list[Table]:
    """All tables of a profile, in the order of the report."""
    from . import claims  # it builds on this module

    tables = []
    for group in groups:
        others = sorted(set(group.curves["reward"]) - {group.reward})
        trained = [label for label in group.labels if label != START]
        tables += [main_table(group), *([equal_queries_table(group)] if query_budget(group) else []),
                   *(main_table(group, other) for other in others),
                   *([difference_table(group)] if len(trained) > 1 else []), cost_table(group)]
        if claims.applies(group):
            tables += [claims.beside_table(group), claims.claims_table(group)]
    for key in sorted({(group.device, group.model) for group in groups}):
        tables.append(order_table([group for group in groups if (group.device, group.model) == key]))
    return tables


def markdown(table: Table) -> str:
    """GitHub Markdown, without a trailing newline."""
    lines = [f"**{table.title[:1].upper() + table.title[1:]}**", *(["", table.answer] if table.answer else [])]
    for title, rows in table.blocks:
        lines += ["", *([f"*{title}*", ""] if title else []), "| " + " | ".join(table.header) + " |",
                  "|---" * len(table.header) + "|",
                  *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)]
    return "\n".join([*lines, "", table.note])


TEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
       "}": r"\}", "~": r"$\sim$", "^": r"\^{}", "–": "--", ">": "$>$", "<": "$<$"}


def _tex(text: str) -> str:
    return "".join(TEX.get(character, character) for character in text)


def latex(table: Table) -> str:
    """A LaTeX table environment (package booktabs), without a trailing newline."""
    columns = len(table.header)
    caption = f"{table.title[:1].upper() + table.title[1:]}. {table.note.replace('`', '')}"
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(caption)}}}",
             rf"\label{{tab:{table.name.replace('_', '-')}}}",
             rf"\begin{{tabular}}{{l{'r' * (columns - 1)}}}", r"\toprule",
             " & ".join(map(_tex, table.header)) + r" \\"]
    for title, rows in table.blocks:
        lines.append(r"\midrule")
        if title:
            lines.append(rf"\multicolumn{{{columns}}}{{l}}{{\emph{{{_tex(title)}}}}} \\")
        lines += [" & ".join(map(_tex, row)) + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def clear(folder: Path, suffixes: tuple[str, ...], keep: Iterable[Path]) -> None:
    """Removes earlier generated files of these suffixes that were not written anew."""
    kept = set(keep)
    for path in sorted(folder.iterdir()):
        if path.suffix in suffixes and path not in kept:
            path.unlink()


def write_tables(folder: str | os.PathLike[str]) -> list[Path]:
    """Writes `results/<profile>/tables/*.{md,csv,tex}` anew, removing those that no record supports; returns
    the paths."""
    target = Path(folder) / "tables"
    formats: dict[str, Callable[[Table], str]] = {
        ".md": lambda table: markdown(table) + "\n", ".tex": lambda table: latex(table) + "\n",
        ".csv": lambda table: table.frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")}
    contents = {target / f"{table.name}{suffix}": render(table)
                for table in build_tables(load_groups(folder)) for suffix, render in formats.items()}
    target.mkdir(parents=True, exist_ok=True)
    for path, text in contents.items():
        write_atomic(path, text.encode())
    clear(target, tuple(formats), contents)
    return sorted(contents)


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows]


def render_terminal(folder: str | os.PathLike[str]) -> str:
    """The main table of every group as aligned text, with what is unfinished."""
    parts = []
    for group in load_groups(folder):
        table = main_table(group)
        parts.append(table.title)
        for title, rows in table.blocks:
            parts += ["", *_aligned([(title, *table.header[1:]), *rows])]
        parts += ["", table.note, ""]
    if pending := unfinished_runs(folder):
        parts.append(f"{len(pending)} unfinished: " + ", ".join(str(config["run_id"]) for config in pending))
    return "\n".join(parts).rstrip() or f"no finished run in {folder}"


def _spread(group: Group, split: str, steps: int) -> tuple[float, int]:
    """Standard deviation between runs of one method, pooled over the trained methods, and its degrees of
    freedom."""
    cells = [list(group.cell(label, group.reward, split, steps).values())
             for label in group.labels if label != START]
    freedom = sum(len(cell) - 1 for cell in cells if cell)
    squares = sum(float(np.var(cell)) * len(cell) for cell in cells if cell)
    return (float(np.sqrt(squares / freedom)) if freedom else np.nan), freedom


def compare_with_reference(mine: str | os.PathLike[str], reference: str | os.PathLike[str]) -> str:
    """Text: per label and step count my value against the reference results' and whether it lies within
    tolerance.

    Values are means over runs. Tolerance: half the 95 % prediction interval (Student's t) from the spread
    between the reference's runs, pooled over its methods since a method alone may have two runs; about 1
    value in 20 falls outside by chance alone. The untrained start has no spread: 1 % of its value. Devices
    may differ; model, reward, K may not.
    """
    theirs = {(g.model, g.reward, g.steps): g for g in reversed(load_groups(reference))}
    lines: list[str] = []
    verdicts: list[str] = []
    for group in load_groups(mine):
        other = theirs.get((group.model, group.reward, group.steps))
        lines += [group.title, f"reference: {other.device if other else 'none, nothing to compare with'}", ""]
        if other is None:
            continue
        rows: list[tuple[str, ...]] = [("prompts", "method", "steps", "mine", "reference", "tolerance", "")]
        frame = group.values[group.values["reward"] == group.reward]
        for split in sorted(frame["split"].unique()):
            for steps in sorted(int(k) for k in frame["steps"].unique()):
                spread, freedom = _spread(other, split, steps)
                for label in sorted({*group.labels, *other.labels}, key=label_key):
                    x = list(group.cell(label, group.reward, split, steps).values())
                    y = list(other.cell(label, group.reward, split, steps).values())
                    tolerance, verdict = np.nan, "not in both"
                    if x and y:
                        tolerance = 0.01 * abs(y[0]) if label == START else float(
                            stats.t.ppf(0.975, max(freedom, 1)) * spread * np.sqrt(1 / len(x) + 1 / len(y)))
                        within = abs(np.mean(x) - np.mean(y)) <= tolerance
                        verdict = "no spread" if np.isnan(tolerance) else "within" if within else "OUTSIDE"
                    verdicts.append(verdict)
                    rows.append((split, label, str(steps), *(f"{np.mean(v):.3f} (n={len(v)})" if v else DASH
                                                             for v in (x, y)),
                                 DASH if np.isnan(tolerance) else f"{tolerance:.3f}", verdict))
        lines += [*_aligned(rows), ""]
    inside, outside = verdicts.count("within"), verdicts.count("OUTSIDE")
    lines.append(f"{inside} of {inside + outside} values within tolerance; about 1 in 20 falls outside by "
                 f"chance; {len(verdicts) - inside - outside} not compared.")
    return "\n".join(lines)
