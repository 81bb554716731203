"""The output of `reproduce` before and after its runs: the list, the results, the command to continue."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from sdpo_bench import plugins
from sdpo_bench.analysis.comparisons import Results
from sdpo_bench.analysis.outputs import reference_results, shown
from sdpo_bench.config import flag
from sdpo_bench.experiments import cost_model
from sdpo_bench.experiments.progress import clock, speed
from sdpo_bench.experiments.runs import Run
from sdpo_bench.records.lookup import stored_run
from sdpo_bench.records.provenance import repository
from sdpo_bench.records.reader import finished_runs

RESULTS = Path("runs")  # not results/, which holds the committed reference


def finished(run: Run) -> bool:
    """Whether the run is finished, in a folder or packed."""
    stored = stored_run(run.folder)
    return stored is not None and stored.finished


def workers_text(workers: int, processes: int) -> str:
    """Such as: 2 workers of 4 processes each."""
    text = f"{workers} worker{'s' * (workers > 1)}"
    return text if processes == 1 else f"{text} of {processes} processes{' each' * (workers > 1)}"


def list_runs(runs: Sequence[Run], workers: int, source: str, gpu: bool = False, processes: int = 1) -> str:
    """The output of --dry-run; with disk space for a profile that needs GPUs."""
    width = max(len(run.name) for run in runs)
    lines = [f"{'run':<{width}}  epochs   estimate  state"]
    for run in runs:
        state = "done" if finished(run) else "begun" if run.folder.exists() else "to do"
        lines.append(f"{run.name:<{width}}  {run.config.epochs:>6}  {clock(run.estimate):>9}  {state}")
    left = sum(run.estimate for run in runs if not finished(run))
    lines.append(
        f"{len(runs)} runs, about {clock(left / workers)} left with {workers_text(workers, processes)} "
        f"(estimated from {source})"
    )
    if gpu:
        hours = f"{left * processes / 3600:.0f} GPU hours"
        lines.append(f"{hours}; {space(runs, workers)}; without downloads (docs/sd_turbo.md)")
    return "\n".join(lines)


def space(runs: Sequence[Run], workers: int) -> str:
    """A text about the disk space of runs. Of checkpoints it counts only those of runs at work at the same time."""
    parts: dict[str, float] = {}
    for run in runs:
        for kind, size in cost_model.disk(run.config).items():
            so_far = parts.get(kind, 0.0)
            parts[kind] = max(so_far, size * workers) if kind == "checkpoints" else so_far + size
    text = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in parts.items())
    return f"{sum(parts.values()) / 1e9:.1f} GB of disk at most ({text})"


def summarise(results: Results, profile: str, runs: Sequence[Run], seconds: float) -> str:
    """The output at the end, for the results of a profile with at least one finished run."""
    from sdpo_bench.analysis.compare import compare_with_reference
    from sdpo_bench.analysis.comparisons import load_groups
    from sdpo_bench.analysis.tables.build import render_terminal

    folder, names = results.folder, {run.name for run in runs}
    parts = [render_terminal(results), speed(record for record in results.runs if record.run_id in names)]
    reference = reference_results() / profile
    if reference.resolve() != folder.resolve():
        if finished_runs(reference):
            title = f"Comparison with the committed results ({shown(reference)}):"
            parts.append(f"{title}\n\n{compare_with_reference(results.groups, load_groups(reference))}")
        else:
            parts.append(f"No committed results of this profile ({shown(reference)}) to compare with.")
    finished = sum(run.state == "done" for run in runs)
    where = {
        "report": "report.html",
        "tables": "tables/",
        "figures": "figures/",
        "raw records, adapters": "raw/",
    }
    parts.append(
        f"{finished} of {len(runs)} runs finished. This call took {clock(seconds)}. Results are in {shown(folder)}:\n"
        + "\n".join(f"  {what:<22} {shown(folder / name)}{'/' * name.endswith('/')}" for what, name in where.items())
    )
    return "\n\n".join(part for part in parts if part)


def resume_command(
    profile: str,
    results: Path,
    methods: Sequence[str] | None,
    seeds: Sequence[int] | None,
    workers: int | None,
    device: str | None,
    **options: Sequence[str] | str | None,
) -> str:
    """The command that continues after an interruption, with the arguments that were given."""
    given = {
        "--profile": [profile] * (profile != "quick"),
        "--results": [shown(results)] * (results != RESULTS),
        "--methods": methods or [],
        "--seeds": seeds or [],
        "--workers": [workers] if workers else [],
        "--device": [device] if device else [],
    } | {flag(name): [value] if isinstance(value, str) else value for name, value in options.items()}
    arguments = [str(part) for name, values in given.items() if values for part in (name, *values)]
    for name in plugins.given():
        arguments += ["--plugin", shown(Path(name)) if plugins.is_file(name) else name]
    start = ["nox", "-s", "reproduce", "--"] if repository() else ["sdpo-bench", "reproduce"]
    return shlex.join([*start, *arguments, "--resume"])
