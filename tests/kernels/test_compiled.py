"""Every kernel compiled ahead of time for three generations of GPUs, and its machine code read: no GPU is needed.

In a process of its own (conftest.py): where Triton interprets, it does not compile.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import triton
from sdpo_kernels import losses_triton, similarity_triton, transition_triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ARCHITECTURES = (80, 90, 100)
DTYPES = {"fp16": 2, "bf16": 2, "fp32": 4}
LATENT = {"m_ptr", "x_ptr", "prev_ptr", "noise_ptr", "next_ptr", "clean_ptr", "grad_ptr"}
SCALAR = {"clip_range": "fp32", "advantage_clip": "fp32", "scale": "fp32", "step": "i32"}
POINTER = {"seeds_ptr": "*i64", "index_ptr": "*i64", "clipped_ptr": "*i1"}
SMALL, LARGE = 4 * 64 * 64, 16 * 128 * 128


def cases() -> dict[str, tuple[Any, dict[str, Any], dict[str, int]]]:
    """Name to kernel, its compile-time arguments, and 16-byte loads and stores per latent tensor that it makes."""
    found: dict[str, tuple[Any, dict[str, Any], dict[str, int]]] = {}
    for size in (SMALL, LARGE):
        tiling = transition_triton.tiles(size)
        one = tiling["BLOCKS"] == 1
        width = {"WIDTH": triton.next_power_of_2(tiling["BLOCKS"])}
        name = f"{size} elements"
        step, pairs = transition_triton.step_kernel, tiling | {"GROUP": 2}
        found[f"step, drawn, {name}"] = (step, tiling | {"DRAW": True}, {"loads": 2, "stores": 2})
        found[f"step, given, {name}"] = (step, tiling | {"DRAW": False}, {"loads": 3, "stores": 2})
        found[f"log-prob, {name}"] = (transition_triton.log_prob_kernel, pairs, {"loads": 3, "stores": 0})
        found[f"grad, {name}"] = (transition_triton.grad_kernel, pairs, {"loads": 3, "stores": 1})
        warps = {} if one else {"num_warps": 1}
        for which, kernel, per_loss in (("sdpo", losses_triton.sdpo_kernel, 2), ("ppo", losses_triton.ppo_kernel, 1)):
            for grad in (True, False) if one else (False,):
                accesses = {"loads": 3 * per_loss, "stores": per_loss * grad} if one else {}
                found[f"{which}, grad {grad}, {name}"] = (kernel, tiling | width | warps | {"GRAD": grad}, accesses)
        if not one:
            found[f"finish, {name}"] = (transition_triton.finish_kernel, tiling | width | warps, {})
    for steps in (4, 50, 128):
        found[f"gram, {steps} steps"] = (similarity_triton.gram_kernel, {"E": SMALL, "K": steps}, {})
        found[f"cosines, {steps} steps"] = (similarity_triton.cosines_kernel, {"E": SMALL, "K": steps}, {})
    return found


CASES = cases()
# Kernels that read sums, not latents, are the same for every dtype of latents.
MACHINE_CODE = [
    (case, dtype)
    for case, (_, _, accesses) in CASES.items()
    for dtype in DTYPES
    if accesses or case.startswith("gram") or dtype == "fp32"
]


@functools.cache
def compiled(case: str, dtype: str, architecture: int, others: str | None = None) -> Any:
    """The compiled kernel. `others`: the dtype of all latents but the model's output, if it is another one."""
    kernel, constants, _ = CASES[case]
    if "K" in constants:
        shape = similarity_triton.shape(SMALL, constants["K"], DTYPES[dtype])
        constants = constants | shape | transition_triton.OPTIONS
    options = {k: v for k, v in constants.items() if k in ("num_warps", "enable_fp_fusion")}
    if "EIGHT" in kernel.arg_names:
        constants = constants | {"EIGHT": DTYPES[others or dtype] == 2}
    constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
    # The launches pass None for what a kernel does not need; Triton takes that as a constant.
    absent = {"noise_ptr": constants.get("DRAW"), "seeds_ptr": constants.get("DRAW") is False}
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
    # What Triton's launcher finds out about aligned pointers and strides.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind_) in enumerate(signature.items())
        if kind_.startswith("*") or name.endswith(("_stride", "_outer", "_inner"))
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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "others"), [("fp16", None), ("bf16", None), ("fp32", None), ("fp16", "fp32")])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_all_kernels_sum_in_the_same_order(size, dtype, others, architecture):
    """So the log-prob of the step is the losses' to the bit. The step's noise changes no layout on its way."""
    names = [f"step, drawn, {size} elements", f"step, given, {size} elements", f"log-prob, {size} elements"]
    if size == SMALL:
        names += [f"sdpo, grad {grad}, {size} elements" for grad in (True, False)]
        names += [f"ppo, grad {grad}, {size} elements" for grad in (True, False)]
    layouts = {name: reduction_layouts(compiled(name, dtype, architecture, others)) for name in names}
    assert all(len(found) == 1 for found in layouts.values()), layouts
    assert len(set.union(*layouts.values())) == 1, layouts
    if others is None:
        for name in names:
            assert "convert_layout" not in compiled(name, dtype, architecture).asm["ttgir"], name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_multiplication_is_fused_behind_the_formulas_back(architecture):
    """A compiler that fuses as it likes may do so differently in two kernels, and the log-probs would differ."""
    text = compiled(f"log-prob, {SMALL} elements", "fp32", architecture).asm["ptx"]
    fused = [2 if pair else 1 for pair in re.findall(r"\bfma\.rn\.f32(x2)?\b", text)]
    assert sum(fused) == transition_triton.PER_THREAD  # one an element: b m + (a x)
