"""The kernels' benchmark itself: what it measures is right, and what is wrong is not measured. Its GPU parts run here
on stand-ins for torch.cuda: they show what is called in which order, not that a GPU does it."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import sdpo_kernels
import torch
from support import forked

from sdpo_bench.records.provenance import code_version

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # the benchmarks are no part of the installed package

from benchmarks import _operations, _timing, conftest, test_kernels  # noqa: E402
from benchmarks._operations import OPERATIONS, Case, Draw, check, poisoned, size  # noqa: E402
from benchmarks.kernel_results import CPU_NOTE, frame, render, target_table  # noqa: E402
from benchmarks.kernel_results import OPERATIONS as NAMES  # noqa: E402
from benchmarks.kernel_results import write_all as write_kernel_tables  # noqa: E402

CPU = torch.device("cpu")
CASES = [
    Case(name, (4, 8, 8), 3, dtype, 6 if name == "anchor_similarity" else 0)
    for name in OPERATIONS
    for dtype in ("float16", "bfloat16", "float32")
]


def ours(case: Case):
    return partial(OPERATIONS[case.operation].ours, backend="torch")


def test_tables_know_the_operations():
    assert list(OPERATIONS) == list(NAMES)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_every_module_of_the_benchmarks_can_be_imported(name):
    importlib.import_module(f"benchmarks.{name}")


# Correctness before speed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_library_agrees_with_float64(case, monkeypatch):
    inputs = OPERATIONS[case.operation].draw(Draw(case, CPU))
    with poisoned():
        outputs = ours(case)(*inputs)
    errors = check(case, inputs, outputs)
    assert len(errors) == len(outputs), "every output is compared"
    monkeypatch.setattr(_operations, "CHUNK", 1)
    assert check(case, inputs, outputs).keys() == errors.keys(), "compared row by row"
    again = OPERATIONS[case.operation].draw(Draw(case, CPU))
    assert all(torch.equal(a, b) for a, b in zip(inputs, again, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_wrong_is_found(case):
    """NaN, an entry never written, an entry a little off: in every output of every operation."""
    inputs = OPERATIONS[case.operation].draw(Draw(case, CPU))
    outputs = [t.clone() for t in ours(case)(*inputs)]
    for i, output in enumerate(outputs):
        spoilt = [t.clone() for t in outputs]
        last = spoilt[i].reshape(-1)[-1:]
        if output.dtype == torch.bool:
            last.logical_not_()
        elif output.dtype == torch.int64:
            last.fill_(torch.iinfo(torch.int64).max)
        else:
            last += 0.02 * output.abs().max()
        with pytest.raises(AssertionError):
            check(case, inputs, spoilt)
        if output.is_floating_point():
            last.fill_(math.nan)
            with pytest.raises(AssertionError):
                check(case, inputs, spoilt)


def test_memory_that_nothing_wrote_to_is_not_a_number():
    with poisoned():
        assert torch.empty(1000).isnan().all()
        assert torch.empty_like(torch.zeros(1000, dtype=torch.bfloat16)).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", [name for name, operation in OPERATIONS.items() if operation.peers])
def test_further_rivals_compute_the_same(name, dtype):
    """The closed forms' gradients and torch.bmm's similarities, and their compiled forms."""
    case = Case(name, (4, 8, 8), 64, dtype, 6 if name == "anchor_similarity" else 0)
    inputs = OPERATIONS[name].draw(Draw(case, CPU))
    for peer in OPERATIONS[name].peers.values():
        check(case, inputs, peer(*inputs), rival=True)
        torch._dynamo.reset()
        compiled = torch.compile(peer, fullgraph=True, dynamic=False, backend="aot_eager")
        check(case, inputs, compiled(*inputs), rival=True)
    torch._dynamo.reset()


def test_equal_branches_share_the_gradient():
    one = torch.tensor([1.0, 2.0, 3.0])
    assert _operations.share_of_first(one, torch.tensor([2.0, 2.0, 2.0])).tolist() == [0, 0.5, 1]


CEILING = """
import torch
from benchmarks._ceiling import BLOCK, ceilings, move
for n in (1, BLOCK, 3 * BLOCK + 5):
    a, b, c = (torch.randn(n) for _ in range(3))
    out = torch.full((n + 8,), -7.0)
    move(a, b, c, out[:n])
    assert torch.equal(out[:n], a + b + c) and (out[n:] == -7).all()
calls = ceilings(4096, torch.float16, 3, torch.device("cpu"))
assert len(calls) == 3 and calls[0]().nbytes == 1024, "a quarter of the bytes is written"
"""


def test_ceiling_reads_three_and_writes_one():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", CEILING],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", OPERATIONS)
def test_rivals_compute_the_same_and_compile_as_one_graph(name):
    case = Case(name, (4, 8, 8), 3, "float16", 6 if name == "anchor_similarity" else 0)
    operation = OPERATIONS[name]
    inputs = operation.draw(Draw(case, CPU))
    check(case, inputs, operation.drive(operation.plain)(*inputs), rival=True)
    torch._dynamo.reset()
    compiled = torch.compile(operation.plain, fullgraph=True, dynamic=False, backend="aot_eager")
    check(case, inputs, operation.drive(compiled)(*inputs), rival=True)
    torch._dynamo.reset()


def test_every_branch_of_the_losses_is_drawn():
    for name in ("sdpo_loss_and_grad", "ppo_clip_loss_and_grad"):
        case = Case(name, (4, 8, 8), 128, "float32")
        result = ours(case)(*OPERATIONS[name].draw(Draw(case, CPU)))
        assert 0.2 < result[2].float().mean() < 0.9, "clipped"
        gradient = result[3].reshape(256, -1).abs().amax(1)
        assert 0 < (gradient == 0).sum() < 256, "some gradients vanish"
        assert gradient.median() > 1e-2, "far above what float16 can't hold"


def test_least_traffic():
    case = Case("sdpo_loss_and_grad", (4, 8, 8), 3, "float16")
    inputs = OPERATIONS[case.operation].draw(Draw(case, CPU))
    latents = 4 * case.elements * 2  # three read, one written
    assert size([*inputs, *ours(case)(*inputs)]) == latents + 3 * (20 + 8 + 8 + 4) + 3 * (4 + 8 + 1)


# The matrix -----------------------------------------------------------------------------------------------------


def test_matrices():
    small, core, full = (test_kernels.cases(name) for name in ("small", "core", "full"))
    assert len(full) == 8 * 3 * 3 * 4 == len(set(full))
    assert set(core) < set(full)
    assert {case.operation for case in core} == {case.operation for case in small} == set(NAMES)
    assert {case.steps for case in core} == {0, 4, 20, 50}
    assert {(case.pairs, case.dtype) for case in core if case.shape == (4, 64, 64)} == {
        (pairs, dtype) for pairs in (1, 8, 32, 128) for dtype in ("float16", "bfloat16", "float32")
    }
    assert len(core) < 140, "minutes"


def test_what_does_not_fit_is_skipped():
    timer = SimpleNamespace(sets=lambda size: 1, free=lambda: 80e9)
    test_kernels.guard(Case("sdpo_loss_and_grad", (16, 128, 128), 128, "float32"), timer)
    with pytest.raises(pytest.skip.Exception, match=r"needs about 120\.8 GB, more than 40% of the 80\.0 GB"):
        test_kernels.guard(Case("anchor_similarity", (16, 128, 128), 128, "float32", 50), timer)


# Clocks ---------------------------------------------------------------------------------------------------------


class FakeCuda:
    """Stands for torch.cuda: each call that it is told of takes a unit of device time; a graph keeps its calls."""

    def __init__(self) -> None:
        self.now, self.log, self.recording, self.pools = 0.0, [], None, []

    def work(self, name: str, ms: float) -> None:
        if self.recording is not None:
            self.recording.append((name, ms))
        else:
            self.log.append(name)
            self.now += ms

    def Event(self, enable_timing):
        event = SimpleNamespace(at=None)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def CUDAGraph(self):
        graph = SimpleNamespace(nodes=[])
        graph.replay = lambda: [self.work(*node) for node in graph.nodes]
        return graph

    @contextlib.contextmanager
    def graph(self, graph, stream, pool):
        self.pools.append(pool)
        assert self.log[-1].startswith("call"), "no warm-up on a side stream before the capture"
        self.recording = graph.nodes
        yield
        self.recording = None

    def Stream(self):
        return SimpleNamespace(wait_stream=lambda other: None)

    current_stream = Stream
    stream = staticmethod(lambda stream: contextlib.nullcontext())

    def graph_pool_handle(self):
        return (0, 1)

    def current_device(self):
        return 0

    def synchronize(self):
        self.log.append("wait")

    def get_device_properties(self, device):
        return SimpleNamespace(L2_cache_size=1000)


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    buffer = SimpleNamespace(zero_=lambda: fake.work("flush", 100.0))
    parts = {"device": lambda *_: CPU, "empty": lambda size, **_: vars(buffer).update(size=size) or buffer}
    monkeypatch.setattr(_timing, "cuda", fake)
    monkeypatch.setattr(_timing, "torch", SimpleNamespace(**vars(torch) | parts))
    return fake


def test_cuda_clocks(cuda):
    timer = _timing.CudaTimer()
    assert timer._flush.size == 2 * 1000
    calls = [partial(cuda.work, f"call {i}", 0.5) for i in range(3)]
    times = timer.compare({"x": calls})[0]["x"]
    assert set(times) == {"call", "events", "graph"}
    assert times["events"]["median"] == times["graph"]["median"] == 500.0, "microseconds; the flush is not counted"
    log = [name for name in cuda.log if name != "wait"]
    first = log.index("flush")
    assert log[first : first + 6] == ["flush", "call 0", "flush", "call 1", "flush", "call 2"]
    after = log[len(log) - log[::-1].index("flush") :]  # the last flush
    assert after[1:4] == ["call 0", "call 1", "call 2"], "on the side stream"
    assert after[4:10] == ["call 0", "call 1", "call 2"] * 2, "replayed"
    assert set(after) == {"call 0", "call 1", "call 2"}


def test_rivals_are_measured_in_turns_and_the_first_again(cuda, monkeypatch):
    """What slows the device down from here to there meets all alike; the last turn tells by how much."""
    monkeypatch.setattr(_timing, "FEWEST", 4)
    monkeypatch.setattr(_timing, "MOST", 4)
    timer = _timing.CudaTimer()
    timer.clocks = ("events", "graph")
    slow = {"a": 1.0}
    rivals = {name: [lambda name=name: cuda.work(f"call {name}", slow.get(name, 2.0))] for name in "abc"}
    times, drift = timer.compare(rivals, own_graphs={"c"})
    assert times["c"].keys() == {"events"}
    assert times["a"].keys() == {"events", "graph"}
    assert len(cuda.pools) == 2
    assert set(cuda.pools) == {timer._pool}
    assert drift == {"events": 1.0, "graph": 1.0}
    log = [name[-1] for name in cuda.log if name.startswith("call")]
    warm = 3 * (3 + 4)  # to warm up, and the first estimate
    assert "".join(log[warm : warm + 13]) == "abc" + "cba" + "abc" + "cba" + "a"
    # From the first rival's last measurement on it takes twice as long.
    original, seen = timer._events, []

    def slower(calls, count):
        seen.append(calls)
        slow["a"] = 2.0 if len(seen) == 13 else 1.0
        return original(calls, count)

    monkeypatch.setattr(timer, "_events", slower)
    timer.clocks = ("events",)
    times, drift = timer.compare(rivals)
    assert drift == {"events": 2.0}
    assert times["a"]["events"]["median"] == 1000.0, "the repetition is not among the times"


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_gpus_case_as_far_as_it_goes_without_one(name, cuda, monkeypatch):
    """The CUDA timer and all rivals, on CPU tensors and a device clock that only ticks."""
    event, modes = cuda.Event, []

    def ticking(enable_timing):
        found = event(enable_timing)
        found.record = lambda: setattr(found, "at", cuda.now) or cuda.work("tick", 0.1)
        return found

    monkeypatch.setattr(cuda, "Event", ticking)
    monkeypatch.setattr(cuda, "graph", lambda graph, stream, pool: contextlib.nullcontext())
    monkeypatch.setattr(_timing, "FEWEST", 2)
    monkeypatch.setattr(_timing, "MOST", 3)
    monkeypatch.setattr(
        test_kernels.torch,
        "compile",
        partial(
            lambda function, compile, mode, **o: (modes.append(mode), compile(function, backend="aot_eager", **o))[1],
            compile=torch.compile,
        ),
    )
    monkeypatch.setattr(test_kernels, "ceilings", lambda size, dtype, sets, device: [torch.zeros(1).clone] * sets)
    timer = _timing.CudaTimer()
    timer.backend, timer.free = "torch", lambda: 10**12
    benchmark = SimpleNamespace(extra_info={}, pedantic=lambda function, rounds, warmup_rounds: function())
    case = Case(name, (4, 8, 8), 2, "float16", 4 if name == "anchor_similarity" else 0)
    test_kernels.test_kernel(benchmark, case, True, timer)
    info = json.loads(json.dumps(benchmark.extra_info))
    assert info["what"] == "kernel"
    assert info["us"].keys() == info["gb_per_s"].keys() == {"call", "events", "graph"}
    further = {"closed", "closed_compile"} if name.endswith("loss_and_grad") else set()
    further |= {"bmm"} if name == "anchor_similarity" else set()
    rivals = {"eager", "compile", "autotune", "ceiling", *further}
    assert info["us"]["graph"].keys() == {"ours", "copy", *rivals}, "no graph holds a rival's own graphs"
    assert info["us"]["call"].keys() == info["us"]["events"].keys() == {"ours", "copy", "cudagraphs", *rivals}
    assert info["speedup"]["events"].keys() == {"cudagraphs", *rivals}
    assert modes[:3] == [None, "max-autotune-no-cudagraphs", "reduce-overhead"]
    assert info["drift"].keys() == {"call", "events", "graph"}
    assert "drift" in render([info])
    assert len(frame([info])) == 3
    assert target_table(frame([info]), "x").blocks
    torch._dynamo.reset()


def test_input_sets_exceed_the_cache(cuda):
    timer = _timing.CudaTimer()
    assert [timer.sets(size) for size in (1, 100, 999, 1000, 1500, 10**9)] == [512, 15, 2, 2, 1, 1]


def test_host_clock():
    timer = _timing.HostTimer()
    calls = []
    times = timer.compare({"x": [partial(calls.append, 0), partial(calls.append, 1)]})[0]["x"]
    assert times["call"]["rounds"] == _timing.MOST
    assert calls[:4] == [0, 1, 0, 0]
    copies = timer.copies(4096)
    assert [copy().nbytes for copy in copies] == [2048, 2048], "read and written"


# The command ----------------------------------------------------------------------------------------------------


def run(*arguments: object, where: Path = ROOT, script: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-c", script] if script else ["-m", "pytest"])]
    options = ("benchmarks/test_kernels.py", "--benchmark-only", "--kernel-matrix", "small")
    env = {k: v for k, v in os.environ.items() if "XDIST" not in k} | {"CUDA_VISIBLE_DEVICES": ""}
    return forked.run([*command, *options, *map(str, arguments)], env, where)


def test_command_writes_a_record_of_which_tables_are_made(tmp_path):
    done = run("-k", "gaussian_log_prob and float32", "--kernel-results", tmp_path / "results" / "kernels")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert f"note: {CPU_NOTE}" in done.stdout
    (path,) = (tmp_path / "results" / "kernels").glob("cpu-*/*.json")
    commit = code_version()["commit"]
    assert path.stem.startswith(commit[:12] if commit else "source-")
    text = path.read_text()
    for private in (socket.gethostname(), str(Path.home()), str(tmp_path), str(ROOT), sys.prefix):
        assert private not in text
    record = json.loads(text)
    assert (record["failed"], record["skipped"]) == ([], {})
    for entry in record["benchmarks"]:
        info = entry["extra_info"]
        assert info["what"] == CPU_NOTE
        assert "data" not in entry["stats"]
        assert entry["stats"]["rounds"] == 10
        assert info["us"]["call"].keys() == {"ours", "eager", "copy"}
        assert info["drift"]["call"] > 0
        assert info["bytes"] == 3 * 2 * info["pairs"] * 4 * 64 * 64 * 4 + 2 * info["pairs"] * (20 + 4)

    write_kernel_tables(path.parent)
    assert f": {CPU_NOTE}\n" in (path.parent / "README.md").read_text()


def test_a_record_is_not_replaced_unasked(tmp_path, monkeypatch):
    made_by = {"device": "cpu: x", "commit": "a" * 40, "dirty": False, "sources": {"kernels": ""}}
    monkeypatch.setattr(conftest, "collect", lambda config: made_by)
    options = {"kernel_results": tmp_path, "kernel_force": False}
    config = SimpleNamespace(getoption=options.get, option=SimpleNamespace(benchmark_json=None))
    conftest.pytest_configure(config)
    path = config.option.benchmark_json
    assert path == tmp_path / "cpu-x" / "aaaaaaaaaaaa.json"
    path.parent.mkdir()
    path.touch()
    with pytest.raises(pytest.UsageError, match=r"aaaaaaaaaaaa\.json exists: .*--kernel-force"):
        conftest.pytest_configure(config)
    options["kernel_force"] = True
    conftest.pytest_configure(config)


def test_a_record_is_made_in_parts(tmp_path, monkeypatch):
    """With -k and --kernel-add; not from parts of different code."""
    made_by = {"device": "cpu: x", "commit": "a" * 40, "dirty": False, "sources": {"kernels": "1"}}
    monkeypatch.setattr(conftest, "collect", lambda config: made_by)
    options = {"kernel_results": tmp_path, "kernel_add": True}
    config = SimpleNamespace(getoption=options.get, option=SimpleNamespace(benchmark_json=None))
    path = tmp_path / "cpu-x" / "aaaaaaaaaaaa.json"
    path.parent.mkdir()

    def part(measured, failed=(), skipped=()):
        conftest.pytest_configure(config)
        monkeypatch.setattr(conftest, "FAILED", list(failed))
        monkeypatch.setattr(conftest, "SKIPPED", dict.fromkeys(skipped, "memory"))
        entries = [{"name": name, "stats": {"median": value, "data": []}} for name, value in measured.items()]
        record = {"machine_info": made_by, "benchmarks": entries}
        conftest.pytest_benchmark_update_json(config, None, record)
        path.write_text(json.dumps(record))
        return {entry["name"]: entry["stats"]["median"] for entry in record["benchmarks"]}, record

    assert part({"a": 1, "b": 2}, failed=["c"], skipped=["d"])[0] == {"a": 1, "b": 2}
    measured, record = part({"b": 3, "c": 4}, failed=["a"], skipped=["e"])
    assert measured == {"b": 3, "c": 4}
    assert record["failed"] == ["a"]
    assert record["skipped"] == {"d": "memory", "e": "memory"}
    made_by = made_by | {"sources": {"kernels": "2"}}
    with pytest.raises(pytest.UsageError, match="is of other code"):
        part({"a": 1})


WRONG = """
import sys
import pytest, sdpo_kernels

right = sdpo_kernels.gaussian_log_prob
sdpo_kernels.gaussian_log_prob = lambda *a, **k: right(*a, **k) * (1 + 1e-5)
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_what_is_wrong_is_not_timed(tmp_path):
    chosen = ("-k", "4x64x64-1-float32 and (gaussian or ddim)", "--kernel-results", tmp_path / "kernels")
    done = run(*chosen, script=WRONG)
    assert done.returncode == 1
    assert re.search(r"gaussian_log_prob-4x64x64-1-float32: log_prob is off by \S+ of its largest entry", done.stdout)
    (path,) = (tmp_path / "kernels").glob("cpu-*/*.json")
    record = json.loads(path.read_text())
    assert [entry["group"] for entry in record["benchmarks"]] == ["ddim_step", "ddim_step_noise_given"]
    assert record["failed"] == ["test_kernel[gaussian_log_prob-4x64x64-1-float32]"]


def test_the_public_interface_is_what_is_measured():
    """The library's functions are called by their public names, so that the benchmark survives a rewrite."""
    source = Path(_operations.__file__).read_text()
    assert set(re.findall(r"sdpo_kernels\.(\w+)", source)) <= set(sdpo_kernels.__all__)
