"""`sdpo-bench compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from sdpo_bench import plugins
from sdpo_bench.cli.output import TakesPlugins
from sdpo_bench.terminal import echo


@dataclass(frozen=True)
class Compare(TakesPlugins):
    """Compare two methods, models or commits: differences of the trained reward paired by seed, with 95 % intervals,
    and the probability that a run of the first beats a run of the second. Of two runs all rewards are compared, paired
    by prompt. Reads only records.

    examples:
      sdpo-bench compare SDPO DDPO                                 # two rows of results/full
      sdpo-bench compare sdpo start --profile quick --results runs # before and after
      sdpo-bench compare "SDPO (exact)" SDPO --format markdown
      sdpo-bench compare runs/quick results/quick                  # your results and the committed ones
      sdpo-bench compare runs/train/raw/RUN_A runs/train/raw/RUN_B # two runs, whatever their settings
      sdpo-bench compare SDPO DDPO --results runs --profile train  # two labels of your own trainings
    """

    a: tyro.conf.Positional[str]
    """A label of the profile (as in its tables, or in lower case with hyphens), a folder of results, or a run's folder
    (also of a packed run: results/quick/raw/RUN_ID)."""
    b: tyro.conf.Positional[str]
    """The label or folder that is subtracted. Two folders of results are compared label by label; where they have no
    processor in common the title names both."""
    profile: str = "full"
    """The profile whose records are used to compare two labels."""
    results: Path | None = None
    """The folder that holds the profiles' folders; default: the committed results/."""
    format: Literal["text", "markdown", "csv"] = "text"
    """The format of the output."""

    def __call__(self) -> int:
        from sdpo_bench.analysis.compare import compare, rendered
        from sdpo_bench.records.provenance import repository

        plugins.check()
        results = self.results or (repository() or Path()) / "results"
        echo(rendered(compare(self.a, self.b, results / self.profile.replace("-", "_")), self.format))
        return 0
