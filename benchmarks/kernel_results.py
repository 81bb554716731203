"""Tables and plots of the benchmarks (`results/kernels/<device>/`, `results/training_step/<device>/`), of the kernels
and of the training step: a pure function of their JSON files.

    python -m benchmarks.kernel_results          # all devices in results/
    python -m benchmarks.kernel_results --check  # change nothing, list what would differ

A file is what `pytest benchmarks` wrote for a commit. Files never share a table: each has a section of the device's
README, by name. Files of a CPU hold times of PyTorch's own operations, and say so wherever they are shown.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks._part_tables import part_tables
from benchmarks._targets import ALL_DTYPES, TARGETS
from sdpo_bench.analysis.markup import DASH, escaped
from sdpo_bench.analysis.outputs import shown
from sdpo_bench.analysis.render import aligned, table_files
from sdpo_bench.analysis.tables.base import Table
from sdpo_bench.errors import UserError
from sdpo_bench.records import generated
from sdpo_bench.records.files import RecordError, slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CPU_NOTE = "times of the library's PyTorch path on a CPU, not of kernels"
STEP_NOTE = "the training step on SD-Turbo's architecture, random weights"
STEP_CPU_NOTE = "the training step on a tiny architecture on a CPU: it says nothing about SD-Turbo"
RESULTS = Path(__file__).resolve().parents[1] / "results"
FAMILIES = ("kernels", "training_step")  # folders of results/ with a folder per device
OPERATIONS = (
    "ddim_step",
    "ddim_step_noise_given",
    "gaussian_log_prob",
    "sdpo_loss_and_grad",
    "ppo_clip_loss_and_grad",
    "anchor_similarity",
)
RIVALS = ("ours", "eager", "compile", "copy")  # of every record
PEERS = {  # further rivals, of a record that has them: what each is
    "autotune": "torch.compile of the eager expression, mode max-autotune-no-cudagraphs",
    "cudagraphs": "torch.compile of the eager expression, mode reduce-overhead: CUDA graphs, inputs copied in",
    "closed": "the gradient's closed form in eager PyTorch",
    "closed_compile": "torch.compile of the closed form",
    "bmm": "the Gram matrix by torch.bmm, cosines from it",
    "ceiling": "a Triton kernel that reads 3 and writes 1 tensors, as many bytes in all",
}
CLOCKS = {  # in the order of the tables; benchmarks/_timing.py measures them
    "graph": "replays of a CUDA graph over inputs that do not fit in the L2 cache: the device's work alone",
    "events": "CUDA events around a call, the L2 cache flushed before: launches count where the device waits for them",
    "call": "host clock around one call and the wait for it, from an idle device: launches wholly included",
}
DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}


# Files ----------------------------------------------------------------------------------------------------------


def record_path(folder: str | os.PathLike[str], made_by: Mapping[str, Any]) -> Path:
    """Where the record of a device and commit lies. Code that no commit holds is named by the kernels' source."""
    source = made_by["sources"]["kernels"][:12]
    commit = (made_by["commit"] or "")[:12]
    name = f"source-{source}" if not commit else f"{commit}-dirty-{source}" if made_by["dirty"] else commit
    return Path(folder) / slug(made_by["device"]) / f"{name}.json"


def record_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The records of a device's folder, `results/kernels/<device>` or `results/training_step/<device>`; none of any
    other folder."""
    folder = Path(folder)
    return sorted(folder.glob("*.json")) if folder.resolve().parent.name in FAMILIES else []


def load(path: Path) -> dict[str, Any]:
    """A record; UserError, naming the file, where it is none."""
    try:
        record = json.loads(path.read_text())
        frame(entry["extra_info"] for entry in record["benchmarks"])
        step_frame(entry["extra_info"] for entry in record["benchmarks"])
        part_tables((entry["extra_info"] for entry in record["benchmarks"]), "", "")
        _ = record["machine_info"]["device"], record["machine_info"]["versions"]["torch"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a record of the kernels' benchmark ({error!r}); restore or remove it") from None
    return record


# Numbers --------------------------------------------------------------------------------------------------------


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def rates(info: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from a case's bytes and medians, by clock: bandwidths, share of the copy's, speed-ups."""
    found: dict[str, Any] = {"gb_per_s": {}, "share_of_copy": {}, "speedup": {}}
    for clock, rivals in info["us"].items():
        median = {name: times["median"] for name, times in rivals.items()}
        found["gb_per_s"][clock] = {name: _digits(info["bytes"] / us * 1e-3) for name, us in median.items()}
        found["share_of_copy"][clock] = _digits(median["copy"] / median["ours"])
        found["speedup"][clock] = {
            name: _digits(us / median["ours"]) for name, us in median.items() if name not in ("ours", "copy")
        }
    return found


def by_operation(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The operations' names, K among them, and their rows."""
    names = [f"{name}, K = {k}" if k else name for name, k in zip(rows["operation"], rows["steps"], strict=True)]
    return [(str(name), group) for name, group in rows.groupby(np.array(names, dtype=object), sort=False)]


def frame(infos: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A row per case and clock, sorted; of the benchmarks that are of an operation."""
    rows = []
    for info in infos:
        if "operation" not in info:
            continue
        for clock in (clock for clock in CLOCKS if clock in info["us"]):
            us = info["us"][clock]
            row: dict[str, Any] = {
                "clock": clock,
                "operation": info["operation"],
                "steps": info["steps"],
                "backend": info["backend"],
                "shape": "x".join(map(str, info["shape"])),
                "elements": int(np.prod(info["shape"])),
                "dtype": DTYPES[info["dtype"]],
                "pairs": info["pairs"],
                "bytes": info["bytes"],
            }
            for name in RIVALS:
                row[f"{name}_us"] = us[name]["median"] if name in us else np.nan
                row[f"{name}_gb_per_s"] = info["gb_per_s"][clock].get(name, np.nan)
            row |= {"ours_iqr_us": us["ours"]["iqr"], "share_of_copy": info["share_of_copy"][clock]}
            for name in ("eager", "compile"):
                row[f"speedup_{name}"] = info["speedup"][clock].get(name, np.nan)
            for name in (name for name in PEERS if name in us):
                row |= {f"{name}_us": us[name]["median"], f"speedup_{name}": info["speedup"][clock][name]}
            row |= {"drift": info["drift"][clock]} if "drift" in info else {}
            rows.append(row)
    if not rows:
        return pd.DataFrame()
    key = pd.DataFrame(rows)
    order = key.assign(
        clock=key["clock"].map([*CLOCKS].index),
        operation=key["operation"].map(OPERATIONS.index),
        dtype=key["dtype"].map([*DTYPES.values()].index),
    ).sort_values(["clock", "operation", "steps", "elements", "dtype", "pairs"])
    return key.loc[order.index].reset_index(drop=True)


# Tables ---------------------------------------------------------------------------------------------------------

HEADER = ("latents, pairs", "MB", "µs", "eager", "compile", "copy", "GB/s", "of copy", "vs eager", "vs compile")


def _number(value: float, form: str, unit: str = "") -> str:
    return DASH if np.isnan(value) else f"{value:{form}}{unit}"


def peer_table(rows: pd.DataFrame, name: str, title: str) -> Table:
    """Of one clock: how many times the further rivals' time is ours, and the drift of ours; a row per case."""
    present = [peer for peer in PEERS if f"speedup_{peer}" in rows and rows[f"speedup_{peer}"].notna().any()]
    blocks = []
    for operation, group in by_operation(rows):
        lines = [
            (
                f"{row['shape']} {row['dtype']}, {row['pairs']}",
                *(_number(row[f"speedup_{peer}"], ".3g", "x") for peer in present),
                _number(row["drift"], ".3f", "x"),
            )
            for row in group.to_dict("records")
        ]
        blocks.append((operation, tuple(lines)))
    note = "A rival's time over ours. " + "; ".join(f"{peer}: {PEERS[peer]}" for peer in present)
    note += ". drift: ours, measured once more after all others, over its first median."
    columns = [
        "clock",
        "operation",
        "steps",
        "shape",
        "dtype",
        "pairs",
        *(f"{kind}" for peer in present for kind in (f"{peer}_us", f"speedup_{peer}")),
        "drift",
    ]
    return Table(name, title, note, ("latents, pairs", *present, "drift"), tuple(blocks), rows[columns])


def speed_table(rows: pd.DataFrame, name: str, title: str) -> Table:
    """Of one clock: a row per case, a block per operation."""
    clock = rows["clock"].iloc[0]
    extra = [column for column in rows if column in ("drift", *(f"{peer}_us" for peer in PEERS))]
    extra += [column for column in rows if column in {f"speedup_{peer}" for peer in PEERS}]
    blocks = []
    for operation, group in by_operation(rows):
        lines = [
            (
                f"{row['shape']} {row['dtype']}, {row['pairs']}",
                f"{row['bytes'] / 1e6:.3g}",
                *(_number(row[f"{rival}_us"], ".4g") for rival in RIVALS),
                f"{row['ours_gb_per_s']:.4g}",
                f"{row['share_of_copy']:.0%}",
                *(_number(row[f"speedup_{rival}"], ".3g", "x") for rival in ("eager", "compile")),
            )
            for row in group.to_dict("records")
        ]
        blocks.append((operation, tuple(lines)))
    note = (
        f"Medians in microseconds ({clock}: {CLOCKS[clock]}). MB: the least traffic, each input read once and each "
        "output written once; GB/s: that over the time; of copy: the time of a copy on the device that reads and "
        "writes as many bytes, over ours; vs: a rival's time over ours."
    )
    return Table(name, title, note, HEADER, tuple(blocks), rows.drop(columns=["elements", *extra]))


def target_table(rows: pd.DataFrame, name: str) -> Table:
    """Each target of _targets.py and the worst of its cases: a block per regime and clock."""
    blocks: dict[str, list[tuple[str, ...]]] = {}
    long = []
    for target in TARGETS:
        for label, cases in by_operation(found) if len(found := target.cases(rows)) else [(target.operation, found)]:
            value = target.value(cases) if len(cases) else np.nan
            verdict = "not measured" if np.isnan(value) else "met" if target.met(value) else "missed"
            dtypes = "all" if target.dtypes == ALL_DTYPES else ", ".join(target.dtypes)
            shown = _number(value, ".3g", "x")
            cells = (label, target.text, dtypes, str(len(cases)), shown, verdict)
            blocks.setdefault(f"{target.regime} ({target.clock})", []).append(cells)
            long.append(
                {
                    "regime": target.regime,
                    "clock": target.clock,
                    "operation": label,
                    "target": target.text,
                    "dtypes": dtypes,
                    "cases": len(cases),
                    "value": value,
                    "verdict": verdict,
                }
            )
    note = "The worst case of each operation, of the file's cases in the regime; its clock in brackets."
    header = ("operation", "target", "dtypes", "cases", "worst", "verdict")
    found_blocks = tuple((title, tuple(lines)) for title, lines in blocks.items())
    return Table(name, "Targets", note, header, found_blocks, pd.DataFrame(long))


def verdicts(long: pd.DataFrame) -> list[str]:
    """Markdown, from the long form of `target_table`: how many targets of each regime and clock are met, and which are
    missed."""
    lines = ["| regime, clock | met | missed | not measured |", "|---|---|---|---|"]
    for (regime, clock), group in long.groupby(["regime", "clock"], sort=False):
        missed = group[group["verdict"] == "missed"]
        texts = "; ".join(
            f"{row['operation']} {row['target']} ({row['dtypes']}): {row['value']:.3g}x"
            for row in missed.to_dict("records")
        )
        counts = [int((group["verdict"] == verdict).sum()) for verdict in ("met", "not measured")]
        lines.append(f"| {regime}, {clock} | {counts[0]} of {len(group)} | {texts or DASH} | {counts[1]} |")
    return lines


def render(infos: Sequence[Mapping[str, Any]]) -> str:
    """The speed tables as aligned text."""
    parts = []
    for clock, rows in frame(infos).groupby("clock", sort=False):
        table = speed_table(rows, "", "")
        lines = [line for title, block in table.blocks for line in ((title, *[""] * (len(HEADER) - 1)), *block)]
        parts.append("\n".join([f"{clock}: {CLOCKS[str(clock)]}", *aligned([HEADER, *lines])]))
        if "drift" in rows:
            table = peer_table(rows, "", "")
            lines = [
                line for title, block in table.blocks for line in ((title, *[""] * (len(table.header) - 1)), *block)
            ]
            parts.append("\n".join([*aligned([table.header, *lines]), table.note]))
    return "\n\n".join(parts)


# The training step ----------------------------------------------------------------------------------------------

STEP_PARTS = ("all", "sample", "reward", "train")
STEP_GOALS = (  # of an H100: column, text, met; against the official loop's algorithm in the same process
    ("speedup_1", "≥ 6x its pairs per second, micro-batch 1", lambda value: value >= 6),
    ("speedup_2", "≥ 3x its pairs per second, micro-batch 2", lambda value: value >= 3),
    ("utilisation_all", "≥ 40 % model FLOP utilisation", lambda value: value >= 0.4),
    ("memory_ratio", "peak memory no higher than its at micro-batch 1", lambda value: value <= 1),
)


def step_frame(infos: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A row per variant of the training step: seconds and pairs per second by part, the official loop's rows first.

    What only some records tell (fused, backend, again, drift, disagreement) is a column where one of these does.
    """
    rows = []
    for info in (info for info in infos if "training_step" in info):
        variant = info["training_step"]
        row: dict[str, Any] = {
            "loop": variant["loop"],
            "rows": variant["rows"],
            "dtype": DTYPES[variant["dtype"]],
            "compiled": bool(variant["compiled"]),
            "architecture": info["architecture"],
            "pairs": info["pairs"],
            "steps": info["steps"],
            "log_ratio": info["log_ratio"],
            "clip_range": info["clip_range"],
        }
        row |= {name: variant[name] for name in ("fused", "backend", "again") if name in variant}
        row |= {"drift": info["drift"]} if info.get("drift") else {}
        row |= {"disagreement": "; ".join(info["disagreement"])} if info.get("disagreement") else {}
        for part in STEP_PARTS:
            row[f"seconds_{part}"] = info["seconds"][part]
            row[f"pairs_per_s_{part}"] = info["pairs_per_s"][part]
            row[f"utilisation_{part}"] = (info["utilisation"] or {}).get(part, np.nan)
            row[f"memory_gib_{part}"] = (info["memory_bytes"] or {}).get(part, np.nan) / 2**30
        rows.append(row)
    if not rows:
        return pd.DataFrame()
    found = pd.DataFrame(rows)
    found["loop"] = pd.Categorical(found["loop"], ("official", "ours"))
    marks = [name for name in ("fused", "again", "backend") if name in found]
    order = ["loop", "dtype", "compiled", *marks, "rows"]
    found = found.sort_values(order, ascending=[name != "dtype" for name in order])
    plain = found["loop"] == "official"
    for name in ("fused", "again"):
        plain &= ~found[name].astype(bool) if name in found else True
    official = found[plain].set_index("rows")
    for rows_ in (1, 2):
        rival = official["pairs_per_s_all"].get(rows_, np.nan)
        found[f"speedup_{rows_}"] = found["pairs_per_s_all"] / rival
    found["memory_ratio"] = found["memory_gib_all"] / official["memory_gib_all"].get(1, np.nan)
    return found.astype({"loop": str}).reset_index(drop=True)


def step_label(row: Mapping[Any, Any]) -> str:
    parts = [f"official, micro-batch {row['rows']}"] if row["loop"] == "official" else [f"ours, {row['rows']} rows"]
    parts += [row["dtype"]] if row["loop"] == "ours" else []
    parts += ["fused attention"] if row.get("fused") else []
    parts += [f"{row['backend']} backend"] if row.get("backend", "auto") != "auto" else []
    parts += ["compiled"] if row["compiled"] else []
    parts += ["again"] if row.get("again") else []
    return ", ".join(parts)


def step_warnings(rows: pd.DataFrame) -> list[str]:
    """What is wrong with the numbers: loops that do not compute the same."""
    texts = list(rows["disagreement"].dropna().unique()) if "disagreement" in rows else []
    return [f"The loops did not compute the same when this was measured: {text}" for text in texts]


def step_table(rows: pd.DataFrame, name: str, title: str) -> Table:
    """A block of speeds, one of shares of the device's peak and of its memory."""
    first = rows.iloc[0]
    header = ("loop", "in all", "sampling", "rewards", "training", "vs 1", "vs 2", "log-ratio")
    speeds, shares, memory = [], [], []
    for row in rows.to_dict("records"):
        label, rest = step_label(row), (DASH,) * 3
        speeds.append(
            (
                label,
                *(f"{row[f'pairs_per_s_{part}']:.4g}" for part in STEP_PARTS),
                *(_number(row[f"speedup_{n}"], ".3g", "x") for n in (1, 2)),
                f"{row['log_ratio']:.2g}",
            )
        )
        shares.append((label, *(_number(row[f"utilisation_{part}"], ".1%") for part in STEP_PARTS), *rest))
        memory.append((label, *(_number(row[f"memory_gib_{part}"], ".3g") for part in STEP_PARTS), *rest))
    blocks = [("pairs per second", tuple(speeds))]
    if rows["utilisation_all"].notna().any():
        blocks.append(("model FLOP utilisation", tuple(shares)))
    if rows["memory_gib_all"].notna().any():
        blocks.append(("peak memory, GiB", tuple(memory)))
    note = (
        f"An epoch of {first['pairs']} pairs at K = {first['steps']} on {first['architecture']}, random weights; "
        "medians. official: its algorithm in plain PyTorch, in the same process. rows: latents in a forward pass. vs: "
        "pairs per second in all over the official loop's at micro-batch 1 and 2. log-ratio: the largest of the "
        f"unchanged policy, in means over latent dimensions; the clip range is {first['clip_range']:g}."
    )
    if "fused" in rows:
        note += " fused attention: with our attention and layout. torch backend: loss and sampler in PyTorch."
    if "drift" in rows:
        drift = rows["drift"].dropna().iloc[0]
        note += f" again: the first, measured once more at the end, at {drift:.3g} times its first time."
    note += "".join(f" **{text}.**" for text in step_warnings(rows))
    if rows["utilisation_all"].isna().all():
        note += " No utilisation: the device's peak is not listed, or it is a CPU."
    return Table(name, title, note, header, tuple(blocks), rows)


def step_verdicts(rows: pd.DataFrame) -> list[str]:
    """Markdown: each goal for each variant of ours."""
    lines = ["| loop | " + " | ".join(text for _, text, _ in STEP_GOALS) + " |", "|---" * (len(STEP_GOALS) + 1) + "|"]
    for row in rows[rows["loop"] == "ours"].to_dict("records"):
        cells = []
        for column, _, met in STEP_GOALS:
            value = row[column]
            shown = f"{value:.1%}" if column.startswith("utilisation") else f"{value:.3g}x"
            cells.append("not measured" if np.isnan(value) else f"{shown}, {'met' if met(value) else 'missed'}")
        lines.append(f"| {step_label(row)} | {' | '.join(cells)} |")
    return lines


def render_steps(infos: Sequence[Mapping[str, Any]]) -> str:
    """The training step's table as aligned text."""
    table = step_table(step_frame(infos), "", "")
    lines = [line for title, block in table.blocks for line in ((title, *[""] * (len(table.header) - 1)), *block)]
    return "\n".join([*aligned([table.header, *lines]), table.note])


# Plot -----------------------------------------------------------------------------------------------------------

STYLE = {"ours": ("#0072b2", "o"), "eager": ("#d55e00", "^"), "compile": ("#009e73", "s"), "copy": ("#7f7f7f", "")}


def speed_figure(rows: pd.DataFrame, title: str) -> Figure:
    """Of one clock: bandwidth against least traffic, a panel per operation, a line per rival."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    groups = by_operation(rows)
    columns = min(len(groups), 4)
    lines = -(-len(groups) // columns)
    height = 1.2 + 2.3 * lines
    figure = Figure(figsize=(max(2.6 * columns, 7), height))
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    best = float(rows["copy_gb_per_s"].max())
    for index, axis in enumerate(axes.flat):
        if index >= len(groups):
            axis.set_axis_off()
            continue
        operation, group = groups[index]
        axis.axhline(best, color=STYLE["copy"][0], linestyle="--", linewidth=1)
        # Sizes within a factor of 2 are one point of a line: dtypes and shapes meet there.
        for rival, (colour, marker) in STYLE.items():
            shown = group[group[f"{rival}_gb_per_s"].notna()]
            axis.scatter(shown["bytes"] / 1e6, shown[f"{rival}_gb_per_s"], s=5, color=colour, alpha=0.35, linewidth=0)
            size = np.log2(shown["bytes"]).round()
            points = shown.assign(size=size).groupby("size")[["bytes", f"{rival}_gb_per_s"]].median()
            axis.plot(points["bytes"] / 1e6, points[f"{rival}_gb_per_s"], color=colour, marker=marker)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(operation, loc="left", fontsize=8.5)
        if index % columns == 0:
            axis.set_ylabel("GB/s")
        if index + columns >= len(groups):
            axis.set_xlabel("least traffic, MB")
            axis.tick_params(labelbottom=True)
    present = [rival for rival in STYLE if rows[f"{rival}_gb_per_s"].notna().any()]
    handles = [Line2D([], [], color=STYLE[rival][0], marker=STYLE[rival][1], label=rival) for rival in present]
    handles.append(Line2D([], [], color=STYLE["copy"][0], linestyle="--", linewidth=1, label="fastest copy"))
    figure.suptitle(title, x=0.01, y=1 - 0.05 / height, ha="left", va="top", fontsize=10, fontweight="bold")
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.002, 1 - 0.26 / height),
        ncols=len(handles),
        borderaxespad=0,
    )
    note = "dots: the cases; lines: their medians at sizes within a factor of 2"
    figure.text(0.01, 0.06 / height, note, fontsize=7.5, ha="left", va="bottom", color="#555555")
    figure.subplots_adjust(left=0.09, right=0.985, top=1 - 0.8 / height, bottom=0.68 / height, wspace=0.1, hspace=0.3)
    return figure


# A device's folder ----------------------------------------------------------------------------------------------


def facts(record: Mapping[str, Any]) -> list[str]:
    """Where a record was made, as lines of Markdown."""
    made_by = record["machine_info"]
    commit = made_by.get("commit") or "unknown"
    dirty = ", with changes that are not committed" if made_by.get("dirty") else ""
    lines = [
        f"- Commit `{commit}`{dirty}; sources: "
        + ", ".join(f"{name} `{value[:12]}`" for name, value in sorted(made_by.get("sources", {}).items())),
        "- Versions: " + ", ".join(f"{name} {value}" for name, value in sorted(made_by["versions"].items())),
        f"- Device: {made_by['device']}, {made_by.get('threads', '?')} CPU threads",
        f"- Command: `{made_by.get('command', 'unknown')}`",
    ]
    if found := made_by.get("gpu"):
        lines.insert(3, "- GPU: " + ", ".join(f"{name} {value}" for name, value in sorted(found.items())))
    if failed := record.get("failed"):
        lines.append(f"- **Wrong, so not timed: {', '.join(failed)}**")
    skipped = record.get("skipped") or {}
    lines += [f"- Not measured: {name}: {reason}" for name, reason in sorted(skipped.items())]
    return [escaped(line) for line in lines]


def kernel_files(folder: str | os.PathLike[str]) -> dict[str, bytes]:
    """All that is generated in `results/kernels/<device>`, by name: README.md, tables/, figures/."""
    import matplotlib

    from sdpo_bench.analysis.figures.style import RC, _bytes

    contents: dict[str, bytes] = {}
    sections: list[str] = []
    device = ""
    for path in record_files(folder):
        record = load(path)
        device = record["machine_info"]["device"]
        cpu = device.startswith("cpu")
        kind = CPU_NOTE if cpu else "kernels"
        parts = [f"## {path.stem}: {kind}", "\n".join(facts(record))]
        rows = frame(entry["extra_info"] for entry in record["benchmarks"])
        steps = step_frame(entry["extra_info"] for entry in record["benchmarks"])
        tables = []
        infos = (entry["extra_info"] for entry in record["benchmarks"])
        others = part_tables(infos, path.stem, f"{device}, {path.stem}")
        if rows.empty and steps.empty and not others:
            parts.append("No case was measured.")
        elif rows.empty:
            pass
        elif not cpu:
            name = f"{path.stem}_targets"
            tables.append(target_table(rows, name))
            parts.append(f"Targets of an H100 (docs/kernels.md); each one's worst case: [{name}](tables/{name}.md)\n")
            parts[-1] += "\n".join(["", *verdicts(tables[0].frame)])
        for clock, group in [] if rows.empty else rows.groupby("clock", sort=False):
            name = f"{path.stem}_{clock}"
            title = f"{device}, {path.stem}, {clock}: {kind}"
            tables.append(speed_table(group, name, title))
            if "drift" in group and group["drift"].notna().any():
                peers = f"{path.stem}_{clock}_peers"
                tables.append(peer_table(group[group["drift"].notna()], peers, f"{title}: further rivals"))
                parts.append(f"Further rivals by {clock}, and drift: [{peers}](tables/{peers}.md)")
            with matplotlib.rc_context(RC):
                figure = speed_figure(group, f"{kind[:1].upper() + kind[1:]}: bandwidth by {clock}")
                for suffix in (".png", ".svg"):
                    contents[f"figures/{name}{suffix}"] = _bytes(figure, suffix)
            parts.append(
                f"**{clock}**: {CLOCKS[str(clock)]}. Times: [{name}](tables/{name}.md), [CSV](tables/{name}.csv).\n\n"
                f"![Bandwidth against size, {clock}](figures/{name}.png)"
            )
        if not steps.empty:
            name, note = f"{path.stem}_training_step", STEP_CPU_NOTE if cpu else STEP_NOTE
            tables.append(step_table(steps, name, f"{device}, {path.stem}: {note}"))
            parts.append(f"**{note[:1].upper() + note[1:]}**: [{name}](tables/{name}.md), [CSV](tables/{name}.csv).")
            parts += [f"**{text}.**" for text in step_warnings(steps)]
            if not cpu:
                parts.append("Goals, set for an H100 against the official loop's algorithm, in all:")
                parts.append("\n".join(step_verdicts(steps)))
        for table in others:
            what = table.title.rpartition(": ")[2]
            parts.append(f"**{what[:1].upper()}{what[1:]}**: [{table.name}](tables/{table.name}.md).")
        contents |= table_files([*tables, *others])
        sections.append("\n\n".join(parts))
    intro = (
        f"# {escaped(device)}\n\nMade by `nox -s tables` from the JSON files here, which `nox -s bench` wrote. "
        "What is measured, and how: [Benchmarks](../../../docs/benchmarks.md)."
    )
    contents["README.md"] = ("\n\n".join([intro, *sections]) + "\n").encode()
    return contents


def write_all(folder: Path) -> list[Path]:
    """Writes a device's README.md, tables and figures; the files written. Errors: those of `generated.write`."""
    return generated.write(folder, lambda: kernel_files(folder))


# The command ----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """0: written, or with --check nothing differs; 1: --check found a difference; 2: it can't be done."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernel_results", description="Tables and plots of the benchmarks' records."
    )
    parser.add_argument("folders", type=Path, nargs="*", help="folders of devices; default: all in results/")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file differs")
    given = parser.parse_args(argv)
    try:
        found = given.folders or sorted(path for family in FAMILIES for path in RESULTS.glob(f"{family}/*"))
        for folder in given.folders:
            if not record_files(folder):
                raise UserError(f"{folder} has no benchmark records; give a folder such as results/kernels/DEVICE")
        folders = [folder for folder in found if record_files(folder)]
        if not folders:
            raise UserError(f"{shown(RESULTS)} has no benchmark records; `nox -s bench` makes some")
        if given.check:
            wrong = [
                f"{shown(folder / name)}: {why}"
                for folder in folders
                for name, why in generated.differences(folder, kernel_files(folder)).items()
            ]
            print("\n".join(wrong) or f"{len(folders)} folders: all files are what their records give")
            if wrong:
                print("error: the files above differ; without --check they are written again", file=sys.stderr)
            return 1 if wrong else 0
        for folder in folders:
            write_all(folder)
            print(f"{shown(folder)}: tables and figures written")
    except (UserError, RecordError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
