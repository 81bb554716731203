"""The paper's published reward curves (`results/paper/`) and the numbers that we quote of them, computed from
the curves.

Aesthetic Score of SD-Turbo during finetuning, arXiv 2411.11727; how they were digitised, and how well:
`results/paper/README.md`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from .records import RecordError, write_atomic
from .tables import DASH, Table, clear, latex, markdown

FOLDER = Path(__file__).resolve().parents[1] / "results" / "paper"
CURVES = "aesthetic_sd_turbo_curves.csv"
COLUMNS = ("steps", "method", "samples", "mean", "low", "high")
METHODS = ("SDPO", "DDPO", "REBEL", "D3PO")
LAST = 10  # epochs behind a "final" value: single epochs scatter by some 0.05
SMOOTH = 5  # epochs, centred, of SDPO's curve where it is compared with a final value
SETTING = ("sd-turbo", "aesthetic", 50)  # the curves' model (the last part of its hub id), reward and training K
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
    """A row per step count and method: start (first point), mean of the last 10 epochs, last point."""
    by = curves.groupby(["steps", "method"])["mean"]
    return pd.DataFrame({"start": by.first(), "final": by.apply(lambda mean: mean.tail(LAST).mean()),
                         "last": by.last()}).reset_index()


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
            rows.append({"steps": steps, "baseline": baseline, "samples": samples, "speedup": speedup,
                         "speedup_per_query": speedup * QUERIES[baseline] / QUERIES["SDPO"]})
    return pd.DataFrame(rows)


def build_tables(curves: pd.DataFrame) -> list[Table]:
    """The two tables: final values, and samples to a baseline's final value."""
    final, reach = final_values(curves), samples_to_reach(curves)
    starts = final[final["method"] == "SDPO"].set_index("steps")["start"]
    cells = final.set_index(["steps", "method"])
    rows = tuple((str(k), f"{starts[k]:.2f}", *(f"{cells.loc[(k, m), 'final']:.2f} ({cells.loc[(k, m), 'last']:.2f})"
                                               for m in METHODS)) for k in starts.index)
    note = f"Mean of the last {LAST} epochs (last point in brackets). Source: the authors' figure, digitised."
    first = Table("final_values", "Aesthetic Score of SD-Turbo in the paper's figure (arXiv 2411.11727)", note,
                  ("sampling steps", "start", *METHODS), (("", rows),), final)
    reached = {(row["steps"], row["baseline"]): DASH if np.isnan(row["samples"]) else
               f"{row['samples']:,.0f} ({row['speedup']:.1f}x; {row['speedup_per_query']:.1f}x)"
               for row in reach.to_dict("records")}
    note = ("In brackets: the baseline's total of samples over that, per sample and per reward query (SDPO queries "
            f"the reward {QUERIES['SDPO']} times per trajectory, the baselines once: below 1 it is behind). SDPO's "
            f"curve is smoothed over {SMOOTH} epochs; the final value is the mean of the last {LAST}. A dash: SDPO is "
            "not distinguishable from it at the start.")
    second = Table("samples_to_final", "Samples from which SDPO stays above a baseline's final value", note,
                   ("sampling steps", *METHODS[1:]),
                   (("", tuple((str(k), *(reached[k, b] for b in METHODS[1:])) for k in starts.index)),), reach)
    return [first, second]


def write_paper_tables(folder: str | os.PathLike[str] = FOLDER) -> list[Path]:
    """Writes `results/paper/tables/*.{md,csv,tex}` anew from the curves; returns the paths, sorted."""
    target = Path(folder) / "tables"
    contents = {}
    for table in build_tables(load_curves(folder)):
        contents[target / f"{table.name}.md"] = markdown(table) + "\n"
        contents[target / f"{table.name}.tex"] = latex(table) + "\n"
        contents[target / f"{table.name}.csv"] = table.frame.to_csv(index=False, float_format="%.6g",
                                                                    lineterminator="\n")
    target.mkdir(parents=True, exist_ok=True)
    for path, text in contents.items():
        write_atomic(path, text.encode())
    clear(target, (".md", ".csv", ".tex"), contents)
    return sorted(contents)
