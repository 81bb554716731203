"""Damaged and hostile records: `tables` and `compare` end with exit code 0 or 2 and a line, never with a traceback, and
leave the records as they are.

Half of the damaged rows are those that the run's digests were made of, as a faulty writer would leave them: else the
digests alone would refuse them, and no table would ever be made of hostile values.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the helpers, where this file is a script
from support import study_records
from support.synthetic_records import seal

from sdpo_bench.analysis.figures import style
from sdpo_bench.cli import main
from sdpo_bench.records.files import ROWS, RecordError
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.plan import write_plan
from sdpo_bench.records.reader import load_profile

EXAMPLES = 150
VALUES: list[Any] = [
    None,
    True,
    0,
    1,
    -1,
    2.5,
    -0.0,
    1e308,
    -1e99,
    10**30,
    float("nan"),
    float("inf"),
    "",
    "x",
    "a\\b",
    "-1",
    "=1+1",
    "\x1b[2J",
    "\ud800",
    "$x_{",
    "<script>",
    "![x](http://x)",
    "a|b`c",
    "é" * 300,
    [],
    {},
    [[]],
    {"x": {}},
    [None] * 3,
    {"name": 3},
    ["a", 1],
]
FILES = (
    "config.json",
    "provenance.json",
    "train.jsonl",
    "eval.jsonl",
    "dense.jsonl",
    "done.json",
    "grid_after.png",
    "plan.json",
)


def small_study(folder: Path) -> Path:
    """Two labels, an ablation, the start, and little of each, since every example reads and draws all of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_records, "QUANTITIES", ("alignment", "diversity"))
        patch.setattr(study_records, "EVAL_STEPS", (1,))
        patch.setattr(study_records, "LAST_STEPS", (2,))
        study_records.write_study(folder, ("SDPO", "SDPO (exact)", "DDPO"), seeds=1)
    write_plan(folder, [run.config for run in load_profile(folder)])
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return small_study(tmp_path_factory.mktemp("fuzz") / "full")


def spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places in a record, the record itself among them."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:40]:
        found += spots(inner, (*path, key))
    return found


def mutate(value: Any, choose: random.Random) -> Any:
    """The record with one place replaced, deleted, doubled, emptied or nested."""
    places = spots(value)
    # Deep lists have the most places: half of the time one near the top.
    near = [place for place in places if len(place) <= 1]
    place = choose.choice(near if choose.random() < 0.5 else places)
    kind = choose.choice(["replace", "replace", "delete", "empty", "nest", "rename"])
    if not place:
        return choose.choice(VALUES) if kind == "replace" else [value] if kind == "nest" else type(value)()
    *above, last = place
    inside = value
    for key in above:
        inside = inside[key]
    if kind == "delete":
        del inside[last]
    elif kind == "empty" and isinstance(inside[last], (dict, list, str)):
        inside[last] = type(inside[last])()
    elif kind == "nest":
        inside[last] = {"x": inside[last]} if choose.random() < 0.5 else [inside[last]]
    elif kind == "rename" and isinstance(inside, dict):
        inside[choose.choice([v for v in VALUES if isinstance(v, str)])] = inside.pop(last)
    else:
        inside[last] = choose.choice(VALUES)
    return value


def damage(path: Path, choose: random.Random) -> None:
    """Changes a file of a record as text, as bytes, or as JSON."""
    content = path.read_bytes()
    kind = choose.random()
    if kind < 0.1:
        path.write_bytes(content[: choose.randrange(len(content) + 1)])
    elif kind < 0.2:
        at = choose.randrange(len(content))
        path.write_bytes(content[:at] + bytes([choose.randrange(256)]) + content[at + 1 :])
    elif kind < 0.23:
        path.unlink()
    elif kind < 0.25:
        path.write_bytes(b"[" * 100_000)
    elif path.suffix == ".png":
        path.write_bytes(content[: choose.randrange(100)])
    elif path.suffix == ".json":
        path.write_text(json.dumps(mutate(json.loads(content), choose)))
    else:
        lines = content.decode().splitlines()
        at = choose.randrange(len(lines))
        if choose.random() < 0.1:
            lines[at : at + 1] = [] if choose.random() < 0.5 else [lines[at]] * 2
        else:
            lines[at] = json.dumps(mutate(json.loads(lines[at]), choose))
        path.write_text("".join(line + "\n" for line in lines))


def renamed(folder: Path) -> Path:
    """The run's folder with the id that its damaged configuration has, so that only the damage can be refused."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecordError, OSError, RecursionError):
        config = json.loads((folder / "config.json").read_bytes())
        name = run_id(config)
        (folder / "config.json").write_text(json.dumps(config | {"run_id": name}))
        folder = folder.rename(folder.with_name(name))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def examine(study: Path, seed: int) -> None:
    """Damages the record in one to three places, as the seed says, and asks for its tables and a comparison."""
    choose = random.Random(seed)
    name = choose.choice(FILES)
    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        if seed % 8:  # all figures are drawn, few written as SVG, which takes most of the time
            patch.setattr(style, "svg", lambda figure: '<svg width="1" height="1"></svg>')
        profile = Path(temporary) / "full"
        shutil.copytree(study, profile)
        holders = (
            [profile]
            if name == "plan.json"
            else sorted(path for path in profile.glob("raw/*") if (path / name).exists())
        )
        target = choose.choice(holders)
        for _ in range(choose.randint(1, 3)):
            # The damage before may have left nothing to mutate.
            with contextlib.suppress(FileNotFoundError, ValueError, RecursionError):
                damage(target / name, choose)
        if name in ROWS and choose.random() < 0.5:
            with contextlib.suppress(RecordError):  # of a file that can't be read
                seal(target)
        if name == "config.json":
            renamed(target)
        before = contents(profile)
        for arguments in (["tables", str(profile)], ["compare", "SDPO", "DDPO", "--results", temporary]):
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main.main(arguments)
            said = out.getvalue() + err.getvalue()
            assert code in (0, 2), said
            assert (code == 2) == any(line.startswith("error: ") for line in err.getvalue().splitlines()), said
            assert not {*said} & {chr(c) for c in range(32) if chr(c) not in "\n\t"}, said
        assert {key: value for key, value in contents(profile).items() if key in before} == before


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 2**32))
def test_damaged_records_end_in_a_line(study, seed):
    examine(study, seed)


if __name__ == "__main__":  # python tests/analysis/test_fuzz.py 3000: goes on after a failure, and tells each kind once
    import traceback

    failures: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as root:
        made = small_study(Path(root) / "full")
        for number in range(int(sys.argv[1])):
            try:
                examine(made, number)
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{type(error).__name__} at {last.filename}:{last.lineno}: {error}"[:300]
                if kind not in failures:
                    print(f"seed {number}")
                    traceback.print_exc()
                failures[kind] = failures.get(kind, 0) + 1
    print(f"{sys.argv[1]} records, {sum(failures.values())} failures", *failures, sep="\n")
