"""What a GPU that is at hand by the half hour is used for, in parts of less than 8 minutes: docs/gpu_campaign.md.

    benchmarks/gpu_campaign.sh 1                        # a part; writes part-1.json and what it made to $OUT
    benchmarks/gpu_campaign.sh 1 --earlier came_back/1  # what is left of it
    benchmarks/gpu_campaign.sh merge came_back/*        # the benchmarks' records of parts 3 to 7, into results/
    benchmarks/gpu_campaign.sh 1 --dry                  # on a CPU, tiny: does the command work?

A part is a list of pieces, each a process of its own that is ended when the part's time is up. What a piece did is
written when it ends, so that a part that is cut short, by whatever, loses one piece.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.kernel_results import load, record_path
from sdpo_bench.errors import UserError
from sdpo_bench.records import provenance
from sdpo_bench.records.files import RecordError, write_atomic
from sdpo_bench.records.reader import load_run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SCHEMA = 1
BUDGET = 450.0  # seconds of a part: less than 8 minutes
LEAST = 20.0  # a piece is not begun with less left
GRACE = 15.0  # for a piece that was told to end to save what it has; part of the budget
ARCHIVE = 14 << 20  # bytes of records in an archive, before compression: a file may have 16 MiB
TAIL = 3000  # characters of a piece's output that its record keeps
DTYPES = {"float16": "float16 and not bfloat16", "bfloat16": "bfloat16", "float32": "float32"}  # for pytest's -k


class Piece(NamedTuple):
    """A command. record: it writes a benchmark's record. stop: the signal that ends it in order. needs: a program that
    must be there. always: it is run again where more is to be had of it, and ended by the clock as a rule."""

    name: str
    command: Sequence[str]
    env: dict[str, str] = {}  # noqa: RUF012
    record: bool = False
    stop: int = signal.SIGINT  # pytest writes what it measured
    needs: str = ""
    always: bool = False


class Place(NamedTuple):
    """Where a campaign runs. out: what comes back; work: what need not."""

    out: Path
    work: Path
    dry: bool = False
    workers: int = 1

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"


# The parts ------------------------------------------------------------------------------------------------------


def python(*arguments: object) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def pytest_(*arguments: object) -> list[str]:
    return python("-m", "pytest", "-p", "no:cacheprovider", *arguments)


def kernel_tests(place: Place) -> list[Piece]:
    env = {"SDPO_KERNELS_TESTS": "gpu"}
    few = ["tests/kernels/test_kernels.py", "-k", "test_sdpo_pairs or test_ppo or test_anchor or test_step"]
    if place.dry:
        env = {"SDPO_KERNELS_TESTS": "interpreter", "TRITON_INTERPRET": "1"}
        few = ["tests/kernels/test_kernels.py", "-k", "test_dtypes_may_differ"]
    only_gpu = ["--collect-only"] if place.dry else []
    pieces = [
        Piece("test_gpu", pytest_("tests/kernels/test_gpu.py", *only_gpu), env | {"SDPO_KERNELS_TESTS": "gpu"}),
        Piece("test_kernels", pytest_(*(few if place.dry else few[:1])), env),
    ]
    for tool in ("memcheck", "racecheck"):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *pytest_(*few, "-x")]
        # Each tensor an allocation of its own: else what lies beyond it is PyTorch's too.
        alone = env | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        pieces.append(Piece(tool, command, alone, needs="compute-sanitizer"))
    return pieces


def trainings(place: Place) -> list[Piece]:
    folder, kinds = place.work / "training", [["repeats"], ["methods"], ["settings"]]
    dry = ["--dry"] * place.dry
    if place.dry:
        kinds = [[what for kind in kinds for what in kind]]  # importing takes longer than they do
    pieces = [
        Piece(" ".join(kind), python("-m", "benchmarks._gpu_training", place.device, folder, *kind, *dry))
        for kind in kinds
    ]
    tiny = ("--steps", 2, "--eval-steps", 1, "--epochs", 1, "--pairs", 2, "--pairs-per-update", 2, "--no-eval-start")
    options = tiny if place.dry else ("--epochs", 3, "--eval-noises", 1)
    # The folder is taken up where an earlier try left it, so that nothing needs to be removed.
    command = python(
        "-m", "sdpo_bench", "train", "--device", place.device, "--out", folder / "command", "--resume", *options
    )
    return [*pieces, Piece("command", command)]


def benchmark(place: Place, name: str, file: str, select: str, *options: str) -> Piece:
    record = ["--benchmark-only", "--kernel-results", place.out / "kernels", "--kernel-add"]
    command = pytest_(f"benchmarks/{file}", *record, *options, "-k", select)
    return Piece(name, command, record=True)


def training_step(place: Place) -> list[Piece]:
    file = "test_training_step.py"
    if place.dry:
        return [benchmark(place, "loops", file, "ours-8-float32")]
    # Compiling takes longer than all the rest: so that it can be left to a part's second run.
    return [benchmark(place, "loops", file, "not compile"), benchmark(place, "compiled", file, "compile")]


def kernels(*operations: str) -> Callable[[Place], list[Piece]]:
    def pieces(place: Place) -> list[Piece]:
        options = ["--kernel-matrix", "small" if place.dry else "core", "--kernel-compile", "extremes"]
        if place.dry:
            select = f"({' or '.join(operations)}) and 64-1-float16"
            return [benchmark(place, " ".join(operations), "test_kernels.py", select, *options)]
        return [
            benchmark(place, f"{operation} {dtype}", "test_kernels.py", f"{operation} and {select}", *options)
            for operation in operations
            for dtype, select in DTYPES.items()
        ]

    return pieces


def study(place: Place) -> list[Piece]:
    profile = "smoke" if place.dry else "paper-k20"
    few = ["--methods", "sdpo"] if place.dry else []
    command = python(
        "-m",
        "sdpo_bench",
        "reproduce",
        "--profile",
        profile,
        "--device",
        place.device,
        "--workers",
        place.workers,
        "--results",
        place.work / "runs",
        "--resume",
        *few,
    )
    return [Piece(profile, command, stop=signal.SIGTERM, always=True)]


PARTS: dict[int, tuple[str, Callable[[Place], list[Piece]]]] = {
    1: ("the kernels' tests", kernel_tests),
    2: ("trainings of the embedded model", trainings),
    3: ("the training step", training_step),
    4: ("the step's and the log-prob's speed", kernels("ddim_step", "gaussian_log_prob")),
    5: ("SDPO's loss's speed", kernels("sdpo_loss_and_grad")),
    6: ("PPO's loss's speed", kernels("ppo_clip_loss_and_grad")),
    7: ("the anchor's speed", kernels("anchor_similarity")),
    8: ("the study at the paper's length", study),
}


# A piece --------------------------------------------------------------------------------------------------------


def run_piece(piece: Piece, seconds: float, log: Path) -> dict[str, Any]:
    """What became of a piece that has so many seconds: state (done, failed, left), seconds, exit_code, the end of its
    output, and its result where it printed one. Its output is added to `log`."""
    if piece.needs and shutil.which(piece.needs) is None:
        return {"state": "left", "why": f"{piece.needs} is not on the PATH"}
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            piece.command,
            cwd=ROOT,
            env=os.environ | piece.env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        cut = False
        try:
            try:
                process.wait(max(seconds - GRACE, 0))
            except subprocess.TimeoutExpired:
                cut = True
                process.send_signal(piece.stop)
                process.wait(GRACE)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also where this process is interrupted; and nothing that the piece started goes on
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        text = output.read()
    with log.open("a") as file:
        file.write(f"### {piece.name}: {' '.join(piece.command)}\n{text}\n")
    state = "left" if cut else "done" if process.returncode == 0 else "failed"
    found: dict[str, Any] = {
        "state": state,
        "seconds": round(time.monotonic() - begin, 1),
        "exit_code": process.returncode,
        "output": text[-TAIL:],
    }
    if cut:
        found["why"] = "its time was up"
    if results := re.findall(r"^RESULT (.*)$", text, re.MULTILINE):
        found["result"] = json.loads(results[-1])
    return found


# A part ---------------------------------------------------------------------------------------------------------


def gpu_name() -> str:
    """As PyTorch names it, without a CUDA context of this process's own."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError):
        raise UserError("nvidia-smi finds no GPU here; --dry tries the commands on a CPU") from None
    return f"cuda: {done.stdout.splitlines()[0].strip()}"


def made_by(dry: bool) -> dict[str, Any]:
    """Commit, versions, device; and the source, by which an earlier record is known to be of the same code."""
    sources = {"package": provenance.PACKAGE, "kernels": ROOT / "kernels" / "sdpo_kernels", "benchmarks": HERE}
    return provenance.code_version() | {
        "versions": provenance.versions(),
        "device": provenance.device_name("cpu") if dry else gpu_name(),
        "sources": {name: provenance.source_hash(path) for name, path in sources.items()},
    }


def entries(folder: Path) -> int:
    """Cases in the benchmarks' records of a part's folder; UserError where one is damaged."""
    return sum(len(load(path)["benchmarks"]) for path in folder.glob("kernels/*/*.json"))


def done_before(number: int, piece: Piece, folders: Sequence[Path], made: dict[str, Any]) -> dict[str, Any] | None:
    """A piece's sound record of the same code and device in one of the folders, if it was done there."""
    for folder in folders:
        try:
            record = json.loads((folder / f"part-{number}.json").read_text())
            found = record["pieces"][piece.name]
            same = record["schema"] == SCHEMA and all(record[key] == made[key] for key in ("sources", "device"))
            if same and found["state"] == "done" and (not piece.record or entries(folder) >= found["entries"] > 0):
                return {**found}
        except (OSError, ValueError, KeyError, TypeError, UserError):
            continue  # none, or none that can be read: it is made again
    return None


def write_part(path: Path, record: dict[str, Any]) -> None:
    lists = {
        state: [name for name, found in record["pieces"].items() if found["state"] == state]
        for state in ("done", "failed", "left")
    }
    write_atomic(path, (json.dumps(record | lists, indent=1) + "\n").encode())


def run_part(
    number: int,
    pieces: Sequence[Piece],
    out: Path,
    earlier: Sequence[Path],
    made: dict[str, Any],
    budget: float = BUDGET,
    begin: float | None = None,
) -> dict[str, Any]:
    """Runs the pieces that were not done before, as far as the time goes; `begin`: when the part's time began."""
    begin = time.monotonic() if begin is None else begin
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"part-{number}.json"
    known = {piece.name: done_before(number, piece, [out, *earlier], made) for piece in pieces if not piece.always}
    record: dict[str, Any] = {"schema": SCHEMA, "part": number, "title": PARTS[number][0], **made, "budget": budget}
    record["pieces"] = {piece.name: known.get(piece.name) or {"state": "left", "why": "not begun"} for piece in pieces}
    for piece in pieces:
        left = budget - (time.monotonic() - begin)
        if known.get(piece.name):
            print(f"{piece.name}: done before", flush=True)
            continue
        if left < LEAST:
            record["pieces"][piece.name]["why"] = "the part's time was up"
            continue
        print(f"{piece.name}: begun with {left:.0f} s left", flush=True)
        write_part(path, record)
        found = run_piece(piece, left, out / f"part-{number}.log")
        if piece.record and found["state"] == "done":
            found["entries"] = entries(out)
        record["pieces"][piece.name] = found
        print(f"{piece.name}: {found['state']}{', ' + found['why'] if 'why' in found else ''}", flush=True)
        if found["state"] == "failed":
            print(found["output"], flush=True)
    record["seconds"] = round(time.monotonic() - begin, 1)
    write_part(path, record)
    return record


# Part 8's runs --------------------------------------------------------------------------------------------------

ARCHIVES = "runs-{}.tar.gz"


def unpack_runs(folders: Sequence[Path], runs: Path) -> None:
    """The finished runs of earlier folders, where `reproduce` keeps its own."""
    for path in sorted(path for folder in folders for path in folder.glob(ARCHIVES.format("*"))):
        with tarfile.open(path) as archive:
            archive.extractall(runs, filter="data")


def pack_runs(runs: Path, out: Path) -> dict[str, Any]:
    """Writes the finished runs' records, without models, to archives of a size that comes back; the runs that are
    finished, and the epochs of the others."""
    finished, begun, archives, size = [], {}, [], 0
    for old in out.glob(ARCHIVES.format("*")):
        old.unlink()
    for folder in sorted(path for path in runs.glob("*/raw/*") if (path / "config.json").exists()):
        if not (folder / "done.json").exists():
            try:
                rows = load_run(folder).train
                begun[folder.name] = {"epochs": len(rows), "last_seconds": rows[-1]["seconds"] if rows else None}
            except RecordError as error:  # it was ended before it had written all
                begun[folder.name] = {"error": str(error)}
            continue
        finished.append(folder.name)
        files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix != ".pt"]
        more = sum(path.stat().st_size for path in files)
        if not archives or size + more > ARCHIVE:
            archives, size = [*archives, []], 0
        archives[-1] += files
        size += more
    for number, files in enumerate(archives, 1):
        with tarfile.open(out / ARCHIVES.format(number), "w:gz") as archive:
            for path in files:
                archive.add(path, path.relative_to(runs).as_posix())
    return {"finished": finished, "begun": begun}


# The benchmarks' records ----------------------------------------------------------------------------------------

TESTS = {"kernels": "test_kernel[", "training_step": "test_training_step["}  # the results' folders: tests' names


def merge(folders: Sequence[Path], results: Path) -> list[Path]:
    """Joins the records of parts 3 to 7, of the same device and commit each, into results/kernels/<device>/ and
    results/training_step/<device>/; of a case that was measured twice the later record's stays. The files written."""
    from benchmarks.conftest import add

    records = [load(path) for folder in folders for path in sorted(folder.glob("kernels/*/*.json"))]
    if not records:
        raise UserError(
            f"no records of benchmarks in {', '.join(map(str, folders))}; give the folders with the results"
        )
    joined: dict[Path, dict[str, Any]] = {}
    for record in sorted(records, key=lambda record: record["datetime"]):
        for family, prefix in TESTS.items():
            mine = of_family(record, prefix)
            if not any(mine[key] for key in ("benchmarks", "failed", "skipped")):
                continue
            path = record_path(results / family, record["machine_info"])
            earlier = joined.get(path) or (load(path) if path.exists() else None)
            if earlier is not None:
                same(path, earlier, mine)
                add(earlier, mine)
            joined[path] = mine
    for path, record in joined.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(record, indent=4) + "\n").encode())
    return sorted(joined)


def of_family(record: dict[str, Any], prefix: str) -> dict[str, Any]:
    """A record with one file's cases alone."""
    return record | {
        "machine_info": record["machine_info"] | {"command": "benchmarks/gpu_campaign.sh, parts 3 to 7"},
        "benchmarks": [entry for entry in record["benchmarks"] if entry["name"].startswith(prefix)],
        "failed": [name for name in record["failed"] if name.startswith(prefix)],
        "skipped": {name: why for name, why in record["skipped"].items() if name.startswith(prefix)},
    }


def same(path: Path, first: dict[str, Any], second: dict[str, Any]) -> None:
    for key in ("sources", "versions"):
        if first["machine_info"][key] != second["machine_info"][key]:
            raise UserError(f"{path}: its parts have different {key}; merge only records that belong together")


# The command ----------------------------------------------------------------------------------------------------


def campaign(number: int, place: Place, earlier: Sequence[Path], budget: float) -> int:
    """Runs a part; 0: all is done, 1: something failed, 3: nothing failed, something is left."""
    begin = time.monotonic()
    made = made_by(place.dry)
    # A shell's background process ignores Ctrl-C, and hands that on; pieces must not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    if place.dry:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    runs = place.work / "runs"
    if number == 8:
        unpack_runs(earlier, runs)
    spared = LEAST if number == 8 else 0.0  # for packing
    record = run_part(number, PARTS[number][1](place), place.out, earlier, made, budget - spared, begin)
    if number == 8:
        write_part(place.out / "part-8.json", record | {"runs": pack_runs(runs, place.out)})
    states = {name: found["state"] for name, found in record["pieces"].items()}
    print(f"part {number}, {record['seconds']:.0f} s: {states}", flush=True)
    return 1 if "failed" in states.values() else 3 if "left" in states.values() else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu_campaign.sh", description="docs/gpu_campaign.md describes the parts.")
    commands = parser.add_subparsers(dest="what", required=True, metavar="PART")
    for number, (title, _) in PARTS.items():
        part = commands.add_parser(str(number), help=title)
        part.add_argument("--out", type=Path, help="folder for the results; default: $OUT")
        part.add_argument(
            "--earlier", type=Path, nargs="*", default=[], help="results of earlier calls: skip what they have"
        )
        part.add_argument(
            "--work", type=Path, default=ROOT / "runs" / "gpu_campaign", help="folder for files that are not results"
        )
        part.add_argument("--seconds", type=float, default=BUDGET, help=f"time limit; default: {BUDGET:g}")
        part.add_argument(
            "--workers", type=int, default=max((os.cpu_count() or 1) - 2, 1), help="runs at the same time, in part 8"
        )
        part.add_argument("--dry", action="store_true", help="tiny sizes, on a CPU")
    joining = commands.add_parser("merge", help="merge the records of parts 3 to 7")
    joining.add_argument("folders", type=Path, nargs="+")
    joining.add_argument("--results", type=Path, default=ROOT / "results")
    given = parser.parse_args(argv)
    try:
        if given.what == "merge":
            for path in merge(given.folders, given.results):
                print(path)
            return 0
        if given.out is None and not os.environ.get("OUT"):
            raise UserError("OUT is not set; set it to the folder for the results, or give --out")
        out = (given.out or Path(os.environ["OUT"])).absolute()
        place = Place(out, given.work.absolute(), given.dry, 1 if given.dry else given.workers)
        return campaign(int(given.what), place, [path.absolute() for path in given.earlier], given.seconds)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
