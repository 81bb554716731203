"""The paper's published reward curves (`results/paper/`) and the numbers that we quote of them, computed from
the curves.

Aesthetic Score of SD-Turbo during finetuning, arXiv 2411.11727; how they were digitised, and how well:
`results/paper/README.md`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sdpo_bench.analysis.comparisons import steps_of
from sdpo_bench.analysis.markup import DASH
from sdpo_bench.analysis.render import table_files
from sdpo_bench.analysis.tables.base import Table
from sdpo_bench.records.files import RecordError

FOLDER = Path(__file__).resolve().parents[2] / "results" / "paper"


CURVES = "aesthetic_sd_turbo_curves.csv"


COLUMNS = ("steps", "method", "samples", "mean", "low", "high")


METHODS = ("SDPO", "DDPO", "REBEL", "D3PO")


LAST = 10  # epochs behind a "final" value: single epochs scatter by some 0.05
SMOOTH = 5  # epochs, centred, of SDPO's curve where it is compared with a final value


SETTING = ("sd-turbo", "aesthetic", 50)  # the curves' model (the last part of its hub id), reward and training K


SAMPLES = 29_184  # of a run in the figure: 114 epochs of 256


SDPO_STEPS = 11_400  # SDPO's AdamW steps in them: 50 for each of an epoch's 2 updates (settings.csv)


STEPS = {"SDPO": SDPO_STEPS, **dict.fromkeys(METHODS[1:], 228)}  # of the others one an update


RATE = 1e-4  # of all methods (settings.csv)


# Share of the advantages normalised by their prompt's own statistics: its 45 prompts have the 16 values that this takes
# after 3 of the 114 epochs of 256 samples.
OWN_STATISTICS = 0.98


QUERIES = {"SDPO": 3, "DDPO": 1, "REBEL": 1, "D3PO": 1}  # reward queries per trajectory, by the paper's method


def shows(model: str, reward: str, steps: int) -> bool:
    """Whether the curves are of runs of this model (a hub id, or a folder of that name), reward and training K."""
    return (Path(model).name.lower(), reward, steps) == SETTING


def load_curves(folder: str | os.PathLike[str] = FOLDER) -> pd.DataFrame:
    """The curves: columns steps (sampling steps), method, samples, mean, low, high (the figure's band).

    Errors: `RecordError` if the file is absent (an installed package does not carry it) or has other columns.
    """
    path = Path(folder) / CURVES
    if not path.exists():
        raise RecordError(f"{path}: not there; it is part of the repository, give its results/paper folder")
    frame = pd.read_csv(path)
    if tuple(frame.columns) != COLUMNS:
        raise RecordError(f"{path}, line 1: columns {list(frame.columns)}, not {list(COLUMNS)}; restore the file")
    return frame.sort_values(["steps", "method", "samples"], ignore_index=True)


def final_values(curves: pd.DataFrame) -> pd.DataFrame:
    """A row per step count and method: pretrained (first point), mean of the last 10 epochs, last point."""
    by = curves.groupby(["steps", "method"])["mean"]
    return pd.DataFrame(
        {"pretrained": by.first(), "final": by.apply(lambda mean: mean.tail(LAST).mean()), "last": by.last()}
    ).reset_index()


def samples_to_reach(curves: pd.DataFrame) -> pd.DataFrame:
    """Samples from which on SDPO's curve stays above a baseline's final value, and the baseline's samples
    over that.

    SDPO's curve is smoothed (centred mean of 5 epochs), the final value is the mean of the last 10 epochs.
    Columns: steps, baseline, samples (NaN if it starts above), speedup (per sample) and speedup_per_query
    (SDPO asks for the reward 3 times per trajectory, the baselines once).
    """
    rows = []
    for steps, group in curves.groupby("steps"):
        wide = group.pivot(index="samples", columns="method", values="mean")
        sdpo = wide["SDPO"].rolling(SMOOTH, center=True, min_periods=1).mean()
        for baseline in METHODS[1:]:
            final = wide[baseline].tail(LAST).mean()
            below = np.flatnonzero(sdpo.to_numpy() <= final)
            reached = below.size and below[-1] + 1 < len(sdpo)
            samples = float(sdpo.index[below[-1] + 1]) if reached else np.nan
            speedup = float(wide.index[-1]) / samples
            rows.append(
                {
                    "steps": steps,
                    "baseline": baseline,
                    "samples": samples,
                    "speedup": speedup,
                    "speedup_per_query": speedup * QUERIES[baseline] / QUERIES["SDPO"],
                }
            )
    return pd.DataFrame(rows)


def samples_to_part(curves: pd.DataFrame) -> pd.DataFrame:
    """Samples from which on, up to the figure's end, SDPO lies above a baseline: its line above the baseline's line
    (column `line`), the lower edge of its band above the upper edge of the baseline's (`band`).

    0 if that is so from the start, NaN if not even at the end. Neither is smoothed: a line may touch another again for
    an epoch, bands that are apart are told apart in the figure.
    """
    rows = []
    for steps, group in curves.groupby("steps"):
        wide = group.pivot(index="samples", columns="method", values=["mean", "low", "high"])
        for baseline in METHODS[1:]:
            gaps = {
                "line": wide["mean", "SDPO"] - wide["mean", baseline],
                "band": wide["low", "SDPO"] - wide["high", baseline],
            }
            rows.append(
                {"steps": steps, "baseline": baseline, **{name: _positive_from(gap) for name, gap in gaps.items()}}
            )
    return pd.DataFrame(rows)


def _positive_from(gap: pd.Series) -> float:
    """The first index from which on all values are above 0; NaN if the last is not."""
    below = np.flatnonzero(gap.to_numpy() <= 0)
    first = below[-1] + 1 if below.size else 0
    return float(gap.index[first]) if first < len(gap) else np.nan


def build_tables(curves: pd.DataFrame) -> list[Table]:
    """The three tables: final values, samples to a baseline's final value, samples until SDPO parts from a baseline."""
    return [final_table(curves), reach_table(curves), part_table(curves)]


def final_table(curves: pd.DataFrame) -> Table:
    """The pretrained model's value, and the final one of each method, by number of sampling steps."""
    final = final_values(curves)
    cells = {(row["steps"], row["method"]): row for row in final.to_dict("records")}
    rows = tuple(
        (
            str(k),
            f"{cells[k, 'SDPO']['pretrained']:.2f}",
            *(f"{cells[k, method]['final']:.2f} ({cells[k, method]['last']:.2f})" for method in METHODS),
        )
        for k in steps_of(curves)
    )
    return Table(
        "final_values",
        "Aesthetic Score of SD-Turbo in the paper's figure (arXiv 2411.11727)",
        f"Mean of the last {LAST} epochs (last point in brackets). Source: the authors' figure, digitised.",
        ("sampling steps", "pretrained", *METHODS),
        (("", rows),),
        final,
    )


def reach_table(curves: pd.DataFrame) -> Table:
    """Samples after which SDPO stays above a baseline's final value."""

    def text(row: dict[Hashable, Any]) -> str:
        if np.isnan(row["samples"]):
            return DASH
        return f"{row['samples']:,.0f} ({row['speedup']:.1f}x; {row['speedup_per_query']:.1f}x)"

    return _beside_baselines(
        "samples_to_final",
        "Samples from which SDPO stays above a baseline's final value",
        "In brackets: the baseline's total of samples over that, per sample and per reward query (SDPO queries "
        f"the reward {QUERIES['SDPO']} times per trajectory, the baselines once: below 1 it is behind). SDPO's "
        f"curve is smoothed over {SMOOTH} epochs; the final value is the mean of the last {LAST}. A dash: SDPO is "
        "not distinguishable from it at the start.",
        samples_to_reach(curves),
        text,
    )


def part_table(curves: pd.DataFrame) -> Table:
    """Samples after which SDPO stays above a baseline that has as many: its line, its band."""

    def text(row: dict[Hashable, Any]) -> str:
        return " / ".join(DASH if np.isnan(row[name]) else f"{row[name]:,.0f}" for name in ("line", "band"))

    return _beside_baselines(
        "samples_to_part",
        "Samples from which SDPO stays above a baseline at the same number of samples",
        f"Of {SAMPLES:,} samples. First: from there to the end SDPO's line lies above the baseline's; second: the "
        "lower edge of its band above the upper edge of the baseline's (the authors do not say what the bands "
        "are). Not smoothed; evaluations are 256 samples apart. 0: from the start. A dash: not at the end either.",
        samples_to_part(curves),
        text,
    )


def _beside_baselines(
    name: str, title: str, note: str, frame: pd.DataFrame, text: Callable[[dict[Hashable, Any]], str]
) -> Table:
    """A row per number of sampling steps, a column per baseline; `text` makes a cell of a row of the frame."""
    cells = {(row["steps"], row["baseline"]): text(row) for row in frame.to_dict("records")}
    rows = tuple((str(k), *(cells[k, baseline] for baseline in METHODS[1:])) for k in steps_of(frame))
    return Table(name, title, note, ("sampling steps", *METHODS[1:]), (("", rows),), frame)


def paper_files(folder: str | os.PathLike[str] = FOLDER, tex: bool = False) -> dict[str, bytes]:
    """`tables/*` of `results/paper`, by name, as the curves give them."""
    return table_files(build_tables(load_curves(folder)), tex)
