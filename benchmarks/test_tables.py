"""How long a profile of many runs takes from its records to its tables, and to its figures.

    pytest benchmarks/test_tables.py --benchmark-only

Seconds of a core, reported for 1,000 runs: the records are synthetic, of 200 runs with 60 epochs, 7 evaluations of 2
rewards at 4 numbers of sampling steps on 5 prompts with 4 noises each. The study's records hold about as much per run.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from sdpo_bench.analysis.comparisons import load_results
from sdpo_bench.analysis.figures.build import drawings, figure_files
from sdpo_bench.analysis.questions import sections
from sdpo_bench.analysis.readme import profile_tables
from sdpo_bench.analysis.tables.build import build_tables
from sdpo_bench.records.reader import row_digests

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support import synthetic_records

LABELS = ("SDPO", "DDPO", "REBEL", "PRDP", "D3PO")
TRAINING_STEPS, SEEDS = (4, 8, 20, 50), 10
RUNS = len(LABELS) * len(TRAINING_STEPS) * SEEDS


def write_run(profile: Path, config: dict[str, object]) -> None:
    """A finished run's folder, without the writes to disk of each row that make `synthetic_records.write_run` slow."""
    folder = profile / "raw" / str(config["run_id"])
    folder.mkdir(parents=True)
    epochs = int(str(config["epochs"]))
    rows = {
        "train": [synthetic_records.train_row(epoch, config) for epoch in range(1, epochs + 1)],
        "eval": [
            synthetic_records.eval_row(epoch, config, reward, steps)
            for epoch in sorted({0, *range(0, epochs + 1, 10)})
            for reward in ("alignment", "alignment_heldout")
            for steps in synthetic_records.STEPS
        ],
    }
    for name, found in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    objects = {
        "config": config,
        "provenance": synthetic_records.provenance(),
        "done": {"epochs": epochs, "records_sha256": row_digests(folder)},
    }
    for name, value in objects.items():
        (folder / f"{name}.json").write_text(json.dumps(value))


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "quick"
    configs = [synthetic_records.make_config("start")] + [
        synthetic_records.make_config(label, seed, steps=steps)
        for label in LABELS
        for steps in TRAINING_STEPS
        for seed in range(SEEDS)
    ]
    for config in configs:
        write_run(folder, config)
    return folder


def test_records_to_tables(benchmark, profile):
    parts: dict[str, float] = {}

    def tables() -> dict[str, bytes]:
        begin = time.process_time()
        results = load_results(profile)
        read = time.process_time()
        files = profile_tables(results, sections(build_tables(results.groups)))
        parts.update(read=read - begin, tables=time.process_time() - read)
        return files

    files = benchmark.pedantic(tables, rounds=3, warmup_rounds=1)
    assert all(f"\n## main_alignment_k{steps}\n".encode() in files["tables/methods.md"] for steps in TRAINING_STEPS)
    seconds = {name: round(part / RUNS * 1000, 2) for name, part in parts.items()}
    benchmark.extra_info.update(runs=RUNS, core_seconds_per_1000_runs=seconds)
    print(f"\ncore seconds for 1,000 runs: {seconds}")


def test_figures(benchmark, profile):
    """Figures grow with the number of rewards, K and methods, not with that of runs: seconds of one."""
    found = drawings(load_results(profile).groups)
    begin = time.process_time()
    files = benchmark.pedantic(figure_files, (found,), rounds=1)
    seconds = round((time.process_time() - begin) / len(found), 3)
    assert len(files) == len(found)
    benchmark.extra_info.update(figures=len(found), core_seconds_per_figure=seconds)
    print(f"\ncore seconds of a figure: {seconds}")
