"""Every kernel compiled ahead of time for three generations of GPUs, and its machine code read: no GPU is needed.

In a process of its own (tests/conftest.py): where Triton interprets, it does not compile.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from sdpo_kernels import losses_triton, similarity_triton, transition_triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ARCHITECTURES = (80, 90, 100)
DTYPES = {"fp16": 2, "bf16": 2, "fp32": 4}
LATENT = {"m_ptr", "x_ptr", "prev_ptr", "noise_ptr", "next_ptr", "clean_ptr", "grad_ptr"}
SCALAR = {"clip_range": "fp32", "advantage_clip": "fp32", "scale": "fp32", "step": "i32", "one": "i32"}
POINTER = {"seeds_ptr": "*i64", "index_ptr": "*i64", "clipped_ptr": "*i1"}
SMALL, LARGE = 4 * 64 * 64, 16 * 128 * 128
ODD = (8, 128, 1000, 36864, 50001)  # elements; not all of them whole 16 bytes, or whole tiles
STEPS = (4, 50, 128)

Case = tuple[Any, dict[str, Any], dict[str, int]]


def cases(size: int) -> dict[str, Case]:
    """Name to kernel, its compile-time arguments, and 16-byte loads and stores per latent tensor that it makes."""
    tiling = transition_triton.tiles(size)
    single = tiling["BLOCKS"] == 1
    sums = tiling if single else tiling | {"num_warps": 1}
    found: dict[str, Case] = {
        "step, drawn": (transition_triton.step_kernel, tiling | {"DRAW": True}, {"loads": 2, "stores": 2}),
        "step, given": (transition_triton.step_kernel, tiling | {"DRAW": 0}, {"loads": 3, "stores": 2}),
        "log-prob": (transition_triton.log_prob_kernel, tiling | {"GROUP": 2}, {"loads": 3, "stores": 0}),
        "grad": (transition_triton.grad_kernel, tiling | {"GROUP": 2}, {"loads": 3, "stores": 1}),
    }
    for name, kernel, per_loss in (("sdpo", losses_triton.sdpo_kernel, 2), ("ppo", losses_triton.ppo_kernel, 1)):
        loads = {"loads": 3 * per_loss, "stores": 0} if single else {}
        found[name] = (kernel, sums | {"GRAD": False}, loads)
        if single:
            found[f"{name}, grad"] = (kernel, sums | {"GRAD": True}, loads | {"stores": per_loss})
    if not single:
        found["finish"] = (transition_triton.finish_kernel, sums, {})
    return found


CASES = {
    f"{name}, {size} elements": (*case, size)
    for size in (SMALL, LARGE, *ODD)
    for name, case in cases(size).items()
}
for steps in STEPS:
    CASES[f"gram, {steps} steps"] = (similarity_triton.gram_kernel, {"K": steps}, {}, SMALL)
    CASES[f"cosines, {steps} steps"] = (similarity_triton.cosines_kernel, {"K": steps}, {}, SMALL)
# Kernels that read sums, not latents, are the same for every dtype of latents.
MACHINE_CODE = [
    (name, dtype)
    for name, (_, _, accesses, size) in CASES.items()
    for dtype in DTYPES
    if size in (SMALL, LARGE) and (accesses or name.startswith("gram") or dtype == "fp32")
]


@functools.cache
def compiled(case: str, dtype: str, architecture: int, others: str | None = None) -> Any:
    """The compiled kernel. `others`: the dtype of all latents but the model's output, if it is another one."""
    kernel, constants, _, size = CASES[case]
    if "K" in constants:
        shape = similarity_triton.shape(size, constants["K"], DTYPES[dtype])
        constants = {"E": size} | constants | shape | transition_triton.OPTIONS
    if constants.get("DRAW") is True:
        sample = torch.empty(1, dtype=torch.float16 if DTYPES[others or dtype] == 2 else torch.float32)
        constants = constants | {"DRAW": transition_triton.drawn_together(sample, constants)}
    options = {k: v for k, v in constants.items() if k in ("num_warps", "enable_fp_fusion")}
    constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
    # The launches pass None for what a kernel does not need; Triton takes that as a constant.
    absent = {"noise_ptr": constants.get("DRAW"), "seeds_ptr": constants.get("DRAW") == 0}
    absent |= {"sums_ptr": constants.get("BLOCKS") == 1 and "GRAD" in constants}
    absent |= {"grad_ptr": constants.get("GRAD") is False}
    constants |= {name: None for name, missing in absent.items() if missing and name in kernel.arg_names}

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in LATENT:
            return "*" + (others if others and name not in ("m_ptr", "grad_ptr") else dtype)
        if name == "clean_ptr":
            return "*" + dtype
        return POINTER.get(name) or SCALAR.get(name) or ("*fp32" if name.endswith("_ptr") else "i32")

    signature = {name: kind(name) for name in kernel.arg_names}

    def multiple_of_16(name: str) -> bool:
        """What Triton's launcher finds out: of pairs, the outer stride may be one where the inner is not."""
        elements = 2 * size if name.endswith("_outer") else size
        return name.endswith("_ptr") or (name.endswith(("_stride", "_outer", "_inner")) and elements % 16 == 0)

    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind_) in enumerate(signature.items())
        if kind_ != "constexpr" and multiple_of_16(name)
    }
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


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
    accesses = CASES[case][2]
    wide = {name: sum(n for k, n in code.items() if k.startswith(name) and ".128" in k) for name in ("LDG", "STG")}
    if accesses:
        per_tensor = transition_triton.PER_THREAD * DTYPES[dtype] // 16
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


ORDER = [(size, architecture, dtype, None) for size in (SMALL, LARGE) for architecture in ARCHITECTURES
         for dtype in DTYPES]  # fmt: skip
ORDER += [(SMALL, 90, "fp16", "fp32"), (LARGE, 90, "fp16", "fp32")]
ORDER += [(size, 90, *dtypes) for size in ODD for dtypes in (("fp16", None), ("fp32", "fp16"))]


@pytest.mark.parametrize(("size", "architecture", "dtype", "others"), ORDER)
def test_all_kernels_sum_in_the_same_order(size, architecture, dtype, others):
    """So the log-prob of the step is the losses' to the bit. The step's noise changes no layout on its way."""

    def layouts(*names):
        kernels = {name: compiled(f"{name}, {size} elements", dtype, architecture, others) for name in names}
        found = {name: reduction_layouts(kernel) for name, kernel in kernels.items()}
        assert all(len(each) == 1 for each in found.values()), found
        if others is None and size % 16 == 0:
            for name, kernel in kernels.items():
                assert "convert_layout" not in kernel.asm["ttgir"], name
        return set.union(*found.values())

    tiles = ["step, drawn", "step, given", "log-prob"]
    if size <= transition_triton.SINGLE:
        assert len(layouts(*tiles, "sdpo", "sdpo, grad", "ppo", "ppo, grad")) == 1
    else:
        assert len(layouts(*tiles)) == 1
        assert len(layouts("finish", "sdpo", "ppo")) == 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_multiplication_is_fused_behind_the_formulas_back(architecture):
    """A compiler that fuses as it likes may do so differently in two kernels, and the log-probs would differ."""
    text = compiled(f"log-prob, {SMALL} elements", "fp32", architecture).asm["ptx"]
    fused = [2 if pair else 1 for pair in re.findall(r"\bfma\.rn\.f32(x2)?\b", text)]
    assert sum(fused) == transition_triton.PER_THREAD  # one an element: b m + (a x)
