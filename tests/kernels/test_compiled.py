"""Every kernel compiled for three generations of GPUs, and its machine code read: no GPU is needed.

The launch code itself runs, on CPU tensors and with a driver that executes nothing (benchmarks/_stub_driver.py): so
what is compiled is what a GPU would be given, specialised by the arguments' dtypes, alignment and values. In a process
of its own (tests/conftest.py): where Triton interprets, it does not compile.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import triton
from sdpo_kernels import losses_triton, similarity_triton, transition_triton
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # the benchmarks are no part of the installed package

from benchmarks import test_host_time  # noqa: E402
from benchmarks._stub_driver import recorded, stub_gpu  # noqa: E402

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ARCHITECTURES = (80, 90, 100)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SMALL, LARGE = 4 * 64 * 64, 16 * 128 * 128
ODD = (8, 128, 1000, 36864, 50001)  # elements; not all of them whole 16 bytes, or whole tiles
STEPS = (4, 50, 128)
PAIRS = 2


class Inputs(NamedTuple):
    """Latents of pairs [P, 2, size]: the model's output in one dtype, all others in another or the same."""

    m: Tensor
    x: Tensor
    prev: Tensor

    @property
    def flat(self) -> list[Tensor]:
        return [t.flatten(0, 1) for t in self]


def inputs(size: int, dtype: str, others: str, views: bool) -> Inputs:
    """`views`: as the trainer has them, the latents being steps of stored trajectories."""
    m = torch.zeros(PAIRS, 2, size, dtype=DTYPES[dtype])
    stored = torch.zeros(PAIRS, 2, 4, size, dtype=DTYPES[others])
    x, prev = stored[:, :, 1], stored[:, :, 2]
    return Inputs(m, x, prev) if views else Inputs(m, x.contiguous(), prev.contiguous())


def rows(n: int) -> Tensor:
    """Coefficients, their rows one: as sampling has them."""
    return torch.ones(1, 5).expand(n, 5)


def vectors(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(shape), torch.zeros(shape)


N = 2 * PAIRS
OPERATIONS: dict[str, Callable[[Inputs], object]] = {
    "step, drawn": lambda t: transition_triton.ddim_step(*t.flat[:2], rows(N), torch.arange(N), 1, None),
    "step, given": lambda t: transition_triton.ddim_step(*t.flat[:2], rows(N), None, 1, t.flat[2]),
    "log-prob": lambda t: transition_triton.gaussian_log_prob(*t.flat, torch.ones(N, 5)),
    "grad": lambda t: transition_triton.log_prob_grad(torch.zeros(PAIRS, 2), *t, torch.ones(PAIRS, 5)),
    "sdpo": lambda t: losses_triton.sdpo_loss(
        *t, torch.ones(PAIRS, 5), *vectors(PAIRS, 2), torch.zeros(PAIRS), 0.1, 5.0
    ),
    "sdpo, grad": lambda t: losses_triton.sdpo_loss_and_grad(
        *t, torch.ones(PAIRS, 5), *vectors(PAIRS, 2), torch.zeros(PAIRS), 0.1, 5.0, 1.0
    ),
    "ppo": lambda t: losses_triton.ppo_clip_loss(*t.flat, torch.ones(N, 5), *vectors(N), 0.1, 5.0),
    "ppo, grad": lambda t: losses_triton.ppo_clip_loss_and_grad(*t.flat, torch.ones(N, 5), *vectors(N), 0.1, 5.0, 1.0),
}


class Case(NamedTuple):
    """A kernel that an operation launches, and its 16-byte loads and stores per latent tensor (none: it reads sums)."""

    operation: str
    kernel: str
    size: int
    accesses: dict[str, int]
    steps: int = 0


def cases(size: int) -> dict[str, Case]:
    found = {
        "step, drawn": Case("step, drawn", "step_kernel", size, {"loads": 2, "stores": 2}),
        "step, given": Case("step, given", "step_kernel", size, {"loads": 3, "stores": 2}),
        "log-prob": Case("log-prob", "log_prob_kernel", size, {"loads": 3, "stores": 0}),
        "grad": Case("grad", "grad_kernel", size, {"loads": 3, "stores": 1}),
    }
    single = size <= transition_triton.SINGLE
    for name, per_loss in (("sdpo", 2), ("ppo", 1)):
        loads = {"loads": 3 * per_loss, "stores": 0} if single else {}
        found[name] = Case(name, f"{name}_kernel", size, loads)
        if single:
            found[f"{name}, grad"] = Case(f"{name}, grad", f"{name}_kernel", size, loads | {"stores": per_loss})
    if not single:
        found["finish"] = Case("log-prob", "finish_kernel", size, {})
        found["log-prob of pairs"] = Case("sdpo", "log_prob_kernel", size, {"loads": 3, "stores": 0})
        found["grad, after ppo"] = Case("ppo, grad", "grad_kernel", size, {"loads": 3, "stores": 1})
    return found


CASES = {f"{name}, {size} elements": case for size in (SMALL, LARGE, *ODD) for name, case in cases(size).items()}
for steps in STEPS:
    for kernel in ("gram", "cosines"):
        CASES[f"{kernel}, {steps} steps"] = Case("anchor", f"{kernel}_kernel", SMALL, {}, steps)
# Kernels that read sums, not latents, are the same for every dtype of latents.
MACHINE_CODE = [
    (name, dtype)
    for name, case in CASES.items()
    for dtype in DTYPES
    if case.size in (SMALL, LARGE) and (case.accesses or name.startswith("gram") or dtype == "fp32")
]


@functools.cache
def launched(operation: str, size: int, steps: int, dtype: str, others: str, architecture: int, views: bool) -> Any:
    """The kernels that an operation launches, by name, as compiled."""
    with stub_gpu(architecture), recorded() as launches:
        if operation == "anchor":
            similarity_triton.anchor_similarity(torch.zeros(2, steps, size, dtype=DTYPES[dtype]))
        else:
            OPERATIONS[operation](inputs(size, dtype, others, views))
    kernels = {launch.kernel.__name__: launch.compiled for launch in launches}
    assert len(kernels) == len(launches)
    return kernels


def compiled(name: str, dtype: str, architecture: int, others: str | None = None, views: bool = False) -> Any:
    """The compiled kernel of a case. `others`: the dtype of all latents but the model's output, if another one."""
    case = CASES[name]
    kernels = launched(case.operation, case.size, case.steps, dtype, others or dtype, architecture, views)
    return kernels[case.kernel]


def tool(name: str, *arguments: str, cubin: bytes, folder: Path) -> str:
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    return subprocess.run([TOOLS / name, *arguments, path], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("case", "dtype"), MACHINE_CODE)
def test_machine_code(case, dtype, architecture, tmp_path):
    """No stack, no spills; all access to latents is 16 bytes wide, and there is no more of it than there must be."""
    cubin = compiled(case, dtype, architecture).asm["cubin"]
    usage = tool("cuobjdump", "--dump-resource-usage", cubin=cubin, folder=tmp_path)
    registers, stack, local = (int(x) for x in re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage).groups())
    assert (stack, local) == (0, 0), usage
    assert registers * 32 * compiled(case, dtype, architecture).metadata.num_warps <= 65536, "no program would start"
    code = Counter(re.findall(r"\b((?:LD|ST)[A-Z]*\.[\w.]+)", tool("nvdisasm", "-c", cubin=cubin, folder=tmp_path)))
    assert not [name for name in code if name.startswith(("LDL", "STL"))]
    narrow = [name for name in code if re.search(r"^(LDG|STG|LDGSTS).*\.[US](8|16)\b", name)]
    assert set(narrow) <= {"STG.E.U8"}, code  # the clip flag, a bool
    accesses = CASES[case].accesses
    wide = {name: sum(n for k, n in code.items() if k.startswith(name) and ".128" in k) for name in ("LDG", "STG")}
    if accesses:
        per_tensor = transition_triton.PER_THREAD * DTYPES[dtype].itemsize // 16
        expected = {"LDG": accesses["loads"] * per_tensor, "STG": accesses["stores"] * per_tensor}
        assert wide == expected, code
    elif case.startswith("gram"):
        reads = [name for name in code if name.startswith(("LDG.", "LDGSTS."))]
        assert reads
        assert all(".128" in name for name in reads), code


def reduction_layouts(kernel: Any) -> set[str]:
    """Which thread has which element, in the sums over a tile of residuals."""
    text = kernel.asm["ttgir"]
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", text, re.M))
    return {layouts[name] for name in re.findall(r"\(tensor<\d+xf32, (#\w+)>\) -> f32", text)}


ORDER = [
    (size, architecture, dtype, None) for size in (SMALL, LARGE) for architecture in ARCHITECTURES for dtype in DTYPES
]
ORDER += [(SMALL, 90, "fp16", "fp32"), (LARGE, 90, "fp16", "fp32")]
ORDER += [(size, 90, *dtypes) for size in ODD for dtypes in (("fp16", None), ("fp32", "fp16"))]


@pytest.mark.parametrize(("size", "architecture", "dtype", "others"), ORDER)
def test_all_kernels_sum_in_the_same_order(size, architecture, dtype, others):
    """So the log-prob of the step is the losses' to the bit. The step's noise changes no layout on its way."""

    def layouts(*names):
        kernels = {
            (name, views): compiled(f"{name}, {size} elements", dtype, architecture, others, views)
            for name in names
            for views in ((False, True) if name in strided else (False,))
        }
        found = {name: reduction_layouts(kernel) for name, kernel in kernels.items()}
        assert all(len(each) == 1 for each in found.values()), found
        if others is None and size % 16 == 0:
            for name, kernel in kernels.items():
                assert "convert_layout" not in kernel.asm["ttgir"], name
        return set.union(*found.values())

    # Views have other strides, of which Triton may know less. One generation will do: it is the same code in all.
    strided = ("log-prob", "log-prob of pairs", "sdpo", "ppo, grad") if architecture == 90 else ()
    tiles = ["step, drawn", "step, given", "log-prob"]
    if size <= transition_triton.SINGLE:
        assert len(layouts(*tiles, "sdpo", "sdpo, grad", "ppo", "ppo, grad")) == 1
    else:
        assert len(layouts(*tiles, "log-prob of pairs")) == 1
        assert len(layouts("finish", "sdpo", "ppo")) == 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_multiplication_is_fused_behind_the_formulas_back(architecture):
    """A compiler that fuses as it likes may do so differently in two kernels, and the log-probs would differ."""
    text = compiled(f"log-prob, {SMALL} elements", "fp32", architecture).asm["ptx"]
    fused = [2 if pair else 1 for pair in re.findall(r"\bfma\.rn\.f32(x2)?\b", text)]
    assert sum(fused) == transition_triton.PER_THREAD  # one an element: b m + (a x)


def test_steps_batches_and_scales_share_a_kernel():
    """None of a loop's numbers is compiled into a kernel: not even 1, or a multiple of 16, unlike strides."""
    size = 128
    with stub_gpu(90), recorded() as launches:
        for n, step in ((4, 0), (4, 1), (4, 16), (2, 3)):
            m, x = torch.zeros(2, n, size)
            transition_triton.ddim_step(m, x, rows(n), torch.arange(n), step, None)
    assert len({id(launch.compiled) for launch in launches}) == 1
    with stub_gpu(90), recorded() as launches:
        for pairs, clip_range, scale in ((2, 0.1, 1.0), (2, 1, 1), (3, 0.5, 16)):
            t, weight = [torch.zeros(pairs, 2, size)] * 3, torch.zeros(pairs)
            arguments = (*t, torch.ones(pairs, 5), *vectors(pairs, 2), weight, clip_range, 5, scale)
            losses_triton.sdpo_loss_and_grad(*arguments)
    assert len({id(launch.compiled) for launch in launches}) == 1


def test_what_is_compiled_is_what_the_launch_passes():
    """The arguments' own types, and the alignment that they have."""
    kernel = compiled(f"sdpo, grad, {SMALL} elements", "fp16", 90, "fp32", views=True)
    signature = kernel.src.signature
    named = {name: signature[name] for name in ("m_ptr", "x_ptr", "grad_ptr", "loss_ptr", "clip_range", "sums_ptr")}
    assert named == {
        "m_ptr": "*fp16",
        "x_ptr": "*fp32",
        "grad_ptr": "*fp16",
        "loss_ptr": "*fp32",
        "clip_range": "fp32",
        "sums_ptr": "constexpr",
    }
    assert signature["clipped_ptr"] in ("*i1", "*u1")  # a bool, as this version of Triton calls it
    names = list(signature)
    aligned = {names[path[0]] for path, attributes in kernel.src.attrs.items() if ["tt.divisibility", 16] in attributes}
    assert {"m_ptr", "x_ptr", "grad_ptr", "m_outer", "x_inner"} <= aligned
    assert not {"coefficients_stride", "one", "scale"} & aligned  # 5, never told, and a float


def test_the_benchmark_of_host_time_measures_every_operation():
    """A few calls of each: that the benchmark works, and how many kernels a call launches."""
    found = {}
    for name, call in test_host_time.operations().items():
        with test_host_time.launches_of_cpu_tensors():
            found[name] = test_host_time.measure(call, rounds=2)
    assert {name: each["launches"] for name, each in found.items()} == {
        "ddim_step": 1,
        "ddim_step_noise_given": 1,
        "gaussian_log_prob": 1,
        "sdpo_loss_and_grad": 1,
        "ppo_clip_loss_and_grad": 1,
        "anchor_similarity": 2,
    }
    assert all(0 < each["bare_us"] < each["call_us"] for each in found.values())
