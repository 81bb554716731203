"""The runs of a profile that may be compared with each other: same device, model, trained reward and K."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import math
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sdpo_bench.catalogue import METHODS
from sdpo_bench.records.files import RecordError, slug
from sdpo_bench.records.frames import COUNTERS, SPENT, MeanRow, mean_frame
from sdpo_bench.records.identity import EXECUTION
from sdpo_bench.records.plan import planned_protocol, unfinished_runs
from sdpo_bench.records.protocols import protocol_of
from sdpo_bench.records.reader import PRETRAINED, RunRecord, load_profile, shown_label

ORDER = (PRETRAINED, *(entry.title for entry in METHODS if entry.row is not None))  # of rows; others follow by name


Values = dict[int, float]  # seed -> value of that run


EQUAL = {
    "reward_queries": "queries",
    "model_evaluations": "evaluations",
    "compute": "compute",
    "optimiser_steps": "steps",
}
"""Counters that methods spend differently for a sample, and may be made equal in; and their names in tables' names."""


LONGEST = 40  # characters of a part of a file's name, of which a table's has four: systems allow 255 bytes


def parent(label: str) -> str | None:
    """The method of which a label is an ablation, "PARENT (change)"; None for a method."""
    method, bracket, _ = label.partition(" (")
    return method if bracket else None


def label_key(label: str) -> tuple[int, str]:
    """Sort key: the known methods in the order of `ORDER`, each before its ablations, then the others by name."""
    method = parent(label) or label
    return (ORDER.index(method) if method in ORDER else len(ORDER), label)


def name_part(text: str) -> str:
    """A text as a part of a file's name: its slug, or the beginning of a long one and a hash."""
    short = slug(text)
    return short if len(short) <= LONGEST else f"{short[: LONGEST - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, eq=False)
class Group:
    """The finished runs that may be compared, those of the pretrained model among them.

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
    full: pd.DataFrame | None = None
    """`curves` over all noises, where evaluations before the last had fewer: what `values` are taken from."""
    left_out: tuple[str, ...] = ()
    """Methods with runs that `at_equal` cannot tell the value of."""
    planned: str = ""
    """The protocol that the profile's plan names."""

    @property
    def protocol(self) -> str:
        """How the methods got their learning rates, a word (`records/protocols.py`); empty where it is not known."""
        return protocol_of(self.profile, self.runs, self.planned)

    @cached_property
    def all_points(self) -> dict[tuple[str, str, str, int], list[MeanRow]]:
        """Evaluations by run, reward, split and number of sampling steps, each by epoch."""
        found: dict[tuple[str, str, str, int], list[MeanRow]] = {}
        curves = self.curves.sort_values("epoch")
        for point in map(MeanRow._make, zip(*(curves[name].tolist() for name in MeanRow._fields), strict=True)):
            found.setdefault((point.run, point.reward, point.split, point.steps), []).append(point)
        return found

    @cached_property
    def equal(self) -> dict[str, Group]:
        """The group at equal counters, by counter of `EQUAL`, where there is something to show."""
        return {counter: found for counter in EQUAL if (found := at_equal(self, counter))}

    def points(self, run_id: str, reward: str, split: str, steps: int) -> list[MeanRow]:
        """A run's evaluations, by epoch."""
        return self.all_points.get((run_id, reward, split, steps), [])

    @cached_property
    def _spent(self) -> dict[str, tuple[list[int], list[float]]]:
        """By run its epochs, and the seconds spent before the first and after each."""
        return {
            run.run_id: (
                [row["epoch"] for row in run.train],
                np.cumsum([0.0, *(sum(row["seconds"].values()) for row in run.train)]).tolist(),
            )
            for run in self.runs
        }

    def seconds(self, run_id: str, epoch: int) -> float:
        """Seconds of sampling, reward and training that a run had spent at the end of an epoch."""
        epochs, spent = self._spent[run_id]
        return spent[bisect_right(epochs, epoch)]

    @cached_property
    def labels(self) -> list[str]:
        return sorted({run.label for run in self.runs} | set(self.missing), key=label_key)

    @cached_property
    def methods(self) -> list[str]:
        """The labels that are not ablations, the pretrained model among them."""
        return [label for label in self.labels if parent(label) is None]

    @cached_property
    def values(self) -> pd.DataFrame:
        return _last(self.curves if self.full is None else self.full)

    @cached_property
    def _epochs(self) -> dict[tuple[str, int], int]:
        f = self.curves[self.curves["epoch"] > 0]
        most = f.groupby(["reward", "steps", "run"])["epoch"].nunique().groupby(["reward", "steps"]).max()
        return dict(zip(most.index.tolist(), most.tolist(), strict=True))

    def ends_only(self, steps: int) -> bool:
        """Whether the trained reward was evaluated at this number of sampling steps before and after training only."""
        return self._epochs.get((self.reward, steps)) == 1

    def on_the_way(self, reward: str) -> list[int]:
        """Numbers of sampling steps at which a reward was evaluated during training too."""
        return [k for k in self.steps_of(reward) if self._epochs.get((reward, k), 0) > 1]

    @property
    def title(self) -> str:
        return f"trained on {self.reward} with K = {self.steps}, {self.model} on {self.device}"

    @cached_property
    def _steps(self) -> dict[str, list[int]]:
        return {str(reward): steps_of(rows) for reward, rows in self.values.groupby("reward")}

    def steps_of(self, reward: str) -> list[int]:
        """Numbers of sampling steps at which a reward was evaluated."""
        return self._steps.get(reward, [])

    @property
    def steps_evaluated(self) -> list[int]:
        """Numbers of sampling steps at which the trained reward was evaluated."""
        return self.steps_of(self.reward)

    @cached_property
    def shown_split(self) -> str:
        return shown_split(self.values)

    @cached_property
    def splits(self) -> list[str]:
        """Prompt lists on which the trained reward was evaluated."""
        return sorted(self.values.loc[self.values["reward"] == self.reward, "split"].unique())

    @cached_property
    def _cells(self) -> dict[tuple[str, str, str, int], Values]:
        return _by_seed(self.values)

    @cached_property
    def _ends(self) -> dict[tuple[str, str, str, int], Values]:
        return self._cells if self.full is None else _by_seed(_last(self.curves))

    def curve_ends(self, label: str, split: str, steps: int, reward: str = "") -> Values:
        """Values of a reward (the trained one) by seed as `cell` gives them, but the last ones of `curves`: what a
        curve's points are compared with and the pretrained model's curves begin at."""
        return self._ends.get((label, reward or self.reward, split, steps), {})

    def cell(self, label: str, reward: str, split: str, steps: int) -> Values:
        """Value of each of a label's runs, by seed, sorted; empty where there is none."""
        return self._cells.get((label, reward, split, steps), {})


def _last(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of each run's last evaluation."""
    return frame[frame["epoch"] == frame.groupby(["run", "reward"])["epoch"].transform("max")]


def _by_seed(frame: pd.DataFrame) -> dict[tuple[str, str, str, int], Values]:
    """Values by seed, sorted, of each label, reward, split and number of sampling steps."""
    f = frame.sort_values("seed")
    cells: dict[tuple[str, str, str, int], Values] = {}
    columns = (f[name].tolist() for name in ("label", "reward", "split", "steps", "seed", "value"))
    for label, reward, split, steps, seed, value in zip(*columns, strict=True):
        cells.setdefault((label, reward, split, int(steps)), {})[int(seed)] = float(value)
    return cells


def steps_of(frame: pd.DataFrame) -> list[int]:
    return sorted(int(k) for k in frame["steps"].unique())


def shown_split(frame: pd.DataFrame) -> str:
    """The prompts that curves are drawn of: those seen in training, or the only ones that were evaluated."""
    return "seen" if (frame["split"] == "seen").any() else str(min(frame["split"], default="seen"))


OF_A_RUN = ("seed", "run_id", "begun", "label", *EXECUTION)  # of config.json: what the runs of a row may differ in


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the runs of a row have in common, a method's options among them by their own names."""
    method = config.get("method", {})
    own = {"method" if key == "name" else key: value for key, value in method.items()}
    return {key: value for key, value in config.items() if key not in (*OF_A_RUN, "method")} | own


def differing(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which some of these settings differ, sorted."""
    keys = sorted({key for settings in found for key in settings})
    return [key for key in keys if any(settings.get(key) != found[0].get(key) for settings in found)]


def distinguished(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs, with labels by which rows of one name and other settings are told apart: "SDPO, learning_rate 0.0003".
    Runs of a label that differ in nothing keep it, and so does the pretrained model."""
    alike: dict[tuple[object, ...], list[dict[str, Any]]] = {}
    for run in runs:
        alike.setdefault(_row_of(run), []).append(settings_of(run.config))
    keys = {row: differing(found) for row, found in alike.items() if row[-1] != PRETRAINED}
    return [_relabelled(run, keys.get(_row_of(run), [])) for run in runs]


def _row_of(run: RunRecord) -> tuple[object, ...]:
    return (*_key(run), run.label)


def _relabelled(run: RunRecord, keys: Sequence[str]) -> RunRecord:
    """The run, with its values of these settings in its label."""
    if not keys:
        return run
    return replace(run, config=run.config | {"label": label_with(run.label, settings_of(run.config), keys)})


def label_with(label: str, settings: Mapping[str, Any], keys: Iterable[str]) -> str:
    """A label with the values of these settings: "SDPO, epochs 4, learning_rate 0.0003"."""
    return ", ".join([label, *(f"{key} {_shown(settings.get(key))}" for key in keys)])


def _shown(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _check_labels(runs: Iterable[RunRecord]) -> None:
    """A row is one configuration and its seeds. RecordError otherwise: mixing two under one name would
    mislead."""
    seen: dict[tuple[object, ...], RunRecord] = {}
    for run in runs:
        first = seen.setdefault(_row_of(run), run)
        differ = differing([settings_of(first.config), settings_of(run.config)])
        weights = [r.provenance["weights"] for r in (first, run) if "weights" in r.provenance]
        differ += ["the files of the model"] if weights and weights[0] != weights[-1] else []
        if differ or (run is not first and run.config["seed"] == first.config["seed"]):
            what = differ[0] if differ else "nothing, not even the seed"
            raise RecordError(
                f"runs {first.run_id} and {run.run_id} share the label {run.label!r} but differ in "
                f"{what}: give one another label"
            )


def still_missing(pending: list[dict[str, Any]]) -> str:
    """Unfinished runs in words, a part for each trained reward and K; those without a configuration by their ids."""
    cells = Counter((str(c["reward"]), int(c["steps"])) for c in pending if "label" in c)
    parts = [f"{count} of {reward} at K = {steps}" for (reward, steps), count in sorted(cells.items())]
    return ", ".join([*parts, *(str(c["run_id"]) for c in pending if "label" not in c)])


@dataclass(frozen=True)
class Results:
    """A profile's folder as read once: its finished runs, these in `groups`, and the configurations of the others."""

    folder: Path
    runs: list[RunRecord]
    groups: list[Group]
    unfinished: list[dict[str, Any]]
    planned: str = ""
    """The protocol that plan.json names."""

    @property
    def profile(self) -> str:
        return self.folder.resolve().name


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pauses Python's cyclic garbage collector, which would look through records and figures again and again while many
    objects are made that all stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def records_left_out() -> Iterator[None]:
    """Leaves all that exists out of the garbage collector's searches: the records stay while tables and figures of them
    are made, and a profile has millions of them."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def load_groups(folder: str | os.PathLike[str]) -> list[Group]:
    """The groups of `results/<profile>`, as of `load_results`."""
    return load_results(folder).groups


def load_results(folder: str | os.PathLike[str]) -> Results:
    """Reads `results/<profile>`, its groups sorted. Files of the device with most runs carry no device in their
    name.

    Runs of one label with other settings have these in their labels (`distinguished`). Errors: `RecordError`, of
    unsound records, or of two runs that nothing tells apart.
    """
    with collector_paused():
        runs = distinguished(load_profile(folder, means=True))
    _check_labels(runs)
    unfinished = unfinished_runs(folder)
    trained = [run for run in runs if run.label != PRETRAINED]
    keys = sorted({_key(run) for run in trained or runs})
    profile, planned = Path(folder).resolve().name, planned_protocol(folder)
    groups = [
        _group(profile, key, _suffix(key, runs), _runs_of(key, runs), _missing(key, runs, unfinished), planned)
        for key in keys
    ]
    return Results(Path(folder), runs, groups, unfinished, planned)


Key = tuple[str, str, str, int]  # device, model, trained reward and K: what the runs of a group have in common


def _key(run: RunRecord) -> Key:
    return run.device, run.config["model"], run.config["reward"], run.config["steps"]


def _main_device(runs: Sequence[RunRecord]) -> str:
    """The device with most runs."""
    counts = Counter(run.device for run in runs)
    return min(counts, key=lambda device: (-counts[device], device), default="")


def _suffix(key: Key, runs: Sequence[RunRecord]) -> str:
    """The end of a group's names: reward and K; the model if the runs have several, the device if it is not the main
    one."""
    device, model, reward, steps = key
    parts = [name_part(reward), f"k{steps}"]
    if len({run.config["model"] for run in runs}) > 1:
        parts.append(name_part(model))
    if device != _main_device(runs):
        parts.append(name_part(device))
    return "".join(f"_{part}" for part in parts)


def _runs_of(key: Key, runs: Sequence[RunRecord]) -> tuple[RunRecord, ...]:
    """The runs of a group. The pretrained model needs no training: one run of it serves every reward and K;
    if there are several, the group's own."""
    device, model, reward, steps = key
    starts = [run for run in runs if run.label == PRETRAINED and (run.device, run.config["model"]) == (device, model)]
    starts.sort(key=lambda run: (run.config["reward"] != reward, run.config["steps"] != steps, run.sort_key))
    return (*starts[:1], *(run for run in runs if run.label != PRETRAINED and _key(run) == key))


def _missing(key: Key, runs: Sequence[RunRecord], unfinished: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """Labels with an unfinished run that would be of a group: what is planned will run on the main device."""
    device, *rest = key
    if device != _main_device(runs):
        return ()
    known = (config for config in unfinished if "label" in config)
    return tuple(sorted({shown_label(c) for c in known if [c["model"], c["reward"], c["steps"]] == rest}))


def _group(
    profile: str, key: Key, suffix: str, runs: tuple[RunRecord, ...], missing: tuple[str, ...], planned: str
) -> Group:
    full = mean_frame(runs) if any(run.interim_noises for run in runs) else None
    return Group(profile, *key, suffix, runs, mean_frame(runs, interim=True), missing, full, planned=planned)


def without_reward_gradient(group: Group) -> Group | None:
    """The group without runs that used the reward's own gradient, as DRaFT does; None if there are no such runs."""
    users = {run.run_id for run in group.runs if run.train and run.train[-1].get("reward_gradients")}
    if not users:
        return None
    curves = group.curves[~group.curves["run"].isin(users)]
    full = None if group.full is None else group.full[~group.full["run"].isin(users)]
    runs = tuple(run for run in group.runs if run.run_id not in users)
    return replace(group, runs=runs, curves=curves, full=full)


def smallest_total(group: Group, counter: str) -> int | None:
    """Smallest final value of a counter (`EQUAL`) among the trained methods' runs; None without one."""
    trained = [label for label in group.methods if label != PRETRAINED]
    final = group.curves[group.curves["label"].isin(trained)].groupby("run")[counter].max().min()
    return None if np.isnan(final) else int(final)


def at_equal(group: Group, counter: str) -> Group | None:
    """The group with every run as it was when a counter (`EQUAL`) stood at `smallest_total`, on a straight line between
    its evaluations around that. None if nothing is left to show.

    Numbers of sampling steps that were evaluated at the end alone are left out (unless that end is the budget): a
    straight line from start to end is no estimate. So are runs whose first evaluation comes later; `left_out` of the
    result names methods without any run.
    """
    budget = smallest_total(group, counter)
    if not budget:
        return None
    rows, unknown = [], set()
    for (_, reward, _, steps), points in sorted(group.all_points.items()):
        if reward != group.reward:
            continue
        if points[-1].label == PRETRAINED:
            rows.append(points[-1])
            continue
        x = [getattr(point, counter) for point in points]
        if len(x) == 1 and x[0] > budget:
            unknown.add(steps)
        if not any(0 < count <= budget for count in x):
            continue
        if found := _between(points, counter, budget):
            rows.append(found)
    rows = [row for row in rows if row.steps not in unknown]
    shown = {row.label for row in rows}
    if not shown - {PRETRAINED}:
        return None
    runs = tuple(run for run in group.runs if run.label in shown)
    left_out = [label for label in dict.fromkeys(run.label for run in group.runs) if label not in shown]
    methods = tuple(sorted((label for label in left_out if parent(label) is None), key=label_key))
    return replace(group, runs=runs, curves=pd.DataFrame(rows), full=None, left_out=methods)


def _between(points: list[MeanRow], counter: str, budget: int) -> MeanRow | None:
    """A run's evaluation as it would be where a counter stands at `budget`, all counters with it. None where the run
    was not evaluated before or not after that."""
    x = [getattr(point, counter) for point in points]
    if not x[0] <= budget <= x[-1]:
        return None
    index = float(np.interp(budget, x, range(len(x))))
    before, after, part = points[math.floor(index)], points[math.ceil(index)], index % 1
    then: dict[str, Any] = {
        name: getattr(before, name) + part * (getattr(after, name) - getattr(before, name)) for name in SPENT
    }
    then |= {name: round(then[name]) for name in COUNTERS}
    then[counter] = budget
    then["value"] = float(np.interp(budget, x, [point.value for point in points]))
    return points[-1]._replace(**then)


def left_out_text(groups: Iterable[Group], counter: str) -> str:
    """A sentence about the methods that groups at an equal counter lack; empty if they have all."""
    cells: dict[str, list[str]] = {}
    for group in groups:
        for label in group.left_out:
            cells.setdefault(label, []).append(f"{group.reward} at K = {group.steps}")
    if not cells:
        return ""
    found = "; ".join(f"{label} on {', '.join(where)}" for label, where in cells.items())
    why = (
        "these runs did not record their backward passes"
        if counter == "compute"
        else "the first evaluation of these runs comes after others have spent all theirs"
    )
    return f"Not compared at equal {counter.replace('_', ' ')}, because {why}: {found}."
