"""The training step's benchmark itself: its architecture is counted, both loops agree, a wrong one is found, and its
tables say what was measured. What only a GPU has runs on stand-ins."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from support import forked

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # the benchmarks are no part of the installed package

from benchmarks import _training_step, test_training_step  # noqa: E402
from benchmarks._official_loop import OfficialLoop  # noqa: E402
from benchmarks._sd_turbo import SD_TURBO, TINY, cast, fast, flop, materialised, models, peak  # noqa: E402
from benchmarks._training_step import AGREEMENT, Agreement, Bench, Clock, Result, agreement, settings  # noqa: E402
from benchmarks.kernel_results import (  # noqa: E402
    STEP_CPU_NOTE,
    STEP_NOTE,
    load,
    main,
    record_path,
    render_steps,
    step_frame,
    step_label,
    step_verdicts,
)
from benchmarks.kernel_results import write_all as write_kernel_tables  # noqa: E402
from benchmarks.test_training_step import Variant, describe, variants  # noqa: E402

CPU = torch.device("cpu")
FEW = 4  # pairs


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(TINY, CPU, torch.float32, FEW)


# The architecture -----------------------------------------------------------------------------------------------


def test_weights_are_counted():
    """865.9 M and so on, as SD-Turbo's published files have; and the LoRA's by hand."""
    with torch.device("meta"):
        parts = models(SD_TURBO)
    counted = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    millions = {name: round(n / 1e6, 1) for name, n in counted.items()}
    assert millions == {"unet": 865.9, "vae": 83.7, "text_encoder": 340.4}
    assert counted.items() <= SD_TURBO.weights.items()
    blocks = {320: 5, 640: 5, 1280: 6}  # transformers by width: 2 a down block, 3 an up block, 1 in the middle
    own = sum(n * 8 * 2 * width for width, n in blocks.items())  # q, k, v, out of self-attention, times rank 4
    cross = sum(n * (4 * 2 * 2 * width + 4 * 2 * (width + 1024)) for width, n in blocks.items())
    assert SD_TURBO.weights["lora"] == own // 2 * 4 + cross


def test_another_architecture_is_refused():
    other = TINY._replace(weights=TINY.weights | {"vae": 7})
    with torch.device("meta"), pytest.raises(AssertionError, match=r"architecture: vae has 261,079 weights, not 7"):
        models(other)


def test_flop_of_a_sample():
    """As counted independently: 0.804 TFLOP forward, 0.973 backward with recomputed scores, 2.515 decode."""
    one = flop(SD_TURBO)
    assert one.forward == pytest.approx(0.804e12, rel=0.005)
    assert one.backward + one.scores == pytest.approx(0.973e12, rel=0.005)
    assert one.decode == pytest.approx(2.515e12, rel=0.005)
    # The scores' products by hand: 2 S L C multiplications-and-additions, over self- and cross-attention.
    tokens = {320: 64**2, 640: 32**2, 1280: 16**2}
    expected = sum(5 * 2 * s * (s + 77) * width for width, s in tokens.items()) + 2 * 8**2 * (8**2 + 77) * 1280
    assert one.scores == expected


@pytest.mark.parametrize(
    ("device", "tflops"),
    [
        ("cuda: NVIDIA H100 80GB HBM3", 989.4),
        ("cuda: NVIDIA A100-SXM4-80GB", 312),
        ("cuda: Tesla T4", 65),
        ("cuda: NVIDIA H100 PCIe", 756.4),
        ("cuda: NVIDIA H200", 989.4),
        ("cuda: NVIDIA H200 NVL", 835.5),
        ("cuda: NVIDIA T400", None),
        ("cuda: Made-up GPU", None),
    ],
)
def test_peaks(device, tflops):
    assert peak(device) == (tflops and pytest.approx(tflops * 1e12))


# How each loop runs the models ----------------------------------------------------------------------------------


def processors(bench: Bench) -> set[str]:
    unet, vae = bench.pipeline.unet, bench.pipeline.vae
    return {type(p).__name__ for module in (unet, vae) for p in module.attn_processors.values()}


def test_manners(bench, monkeypatch):
    unet = bench.pipeline.unet
    hooks = (
        unet._forward_hooks,
        unet._forward_pre_hooks,
        bench.pipeline.vae.decoder._forward_hooks,
        bench.pipeline.vae.post_quant_conv._forward_pre_hooks,
    )
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(options) or function)
    with fast(bench.pipeline):
        assert processors(bench) == {"AttnProcessor2_0"}
        assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        assert not unet.conv_in.weight.is_contiguous()
        assert all(hooks)
    assert not any(hooks)
    assert asked == []
    with fast(bench.pipeline, compiled=True):
        assert asked == [{"fullgraph": True}]
        assert "forward" in vars(unet)
    assert "forward" not in vars(unet), "compiled no longer"
    with materialised(bench.pipeline):
        assert processors(bench) == {"AttnProcessor"}
        assert unet.conv_in.weight.is_contiguous()


def test_a_bench_in_half_precision():
    half = Bench(TINY, CPU, torch.float16, FEW)
    assert {p.dtype for p in half.trained} == {torch.float32}, "the LoRA"
    assert {p.dtype for p in half.pipeline.vae.parameters()} == {torch.float16}
    assert not torch.equal(half.initial[0], half.initial[0].half().float()), "never rounded"


def test_half_precision_is_the_frozen_weights_alone(bench):
    """The policy's latents and its pictures stay float32; the official loop's are in half precision, as there."""
    cast(bench.pipeline, torch.bfloat16)
    try:
        assert {p.dtype for p in bench.trained} == {torch.float32}
        frozen = [
            p
            for m in (bench.pipeline.unet, bench.pipeline.vae, bench.pipeline.text_encoder)
            for p in m.parameters()
            if not p.requires_grad
        ]
        assert {p.dtype for p in frozen} == {torch.bfloat16}
        seen = []
        handle = bench.pipeline.unet.conv_in.register_forward_pre_hook(lambda _, x: seen.append(x[0].dtype))
        with fast(bench.pipeline):
            trajectory = bench.trainer.sample(bench.trainer.plan(1))
            pictures = bench.trainer.policy.decode(trajectory.predicted_clean[:1, 0, -1])
        handle.remove()
        assert trajectory.latents.dtype == pictures.dtype == torch.float32
        assert set(seen) == {torch.bfloat16}
        with materialised(bench.pipeline):
            loop = bench.official(2)
            samples = loop.sample(["a cat"], lambda part: None)
        assert samples.before[0].dtype == torch.bfloat16
        assert bench.official_on_policy(loop) > 1e-4, "its old log-probs are of latents before they are rounded"
    finally:
        cast(bench.pipeline, torch.float32)


# Correct first --------------------------------------------------------------------------------------------------


def test_the_loops_agree():
    found = agreement(CPU, microbatch=2)
    assert found.failures == []
    assert {name.partition(" (")[0].rstrip(" 0123456789") for name in found.errors} == {
        "latents",
        "next latents",
        "log-probs",
        "rewards",
        "returns",
        "loss",
        "gradient norm",
        "gradient",
    }
    assert sum("last step" in name for name in found.errors) == 3, "loss, norm and gradient"
    assert all(errors.keys() == {"ours", "official", "official, fused"} for errors in found.errors.values())
    # A margin of three: what other libraries round away must not look like a fault.
    plain = [max(errors.values()) for name, errors in found.errors.items() if "last step" not in name]
    assert max(plain) < AGREEMENT / 3
    assert not torch.backends.cuda.matmul.allow_tf32


def test_rounding_that_both_loops_share_is_no_disagreement(monkeypatch):
    """As where cuDNN takes a less exact convolution: the official loop's own distance from float64 is the measure, up
    to ten times what is allowed anywhere."""
    made_up: dict[str, dict[str, float]] = {}
    clipped = (_training_step.CLIPPED, {"ours": 0.5})
    monkeypatch.setattr(_training_step, "differences", lambda bench, microbatch: [*made_up.items(), clipped])
    made_up["gradient"] = {"ours": 6e-5, "official": 2e-5, "official, fused": 1e-5}
    assert agreement(CPU).failures == []
    made_up["gradient"] = {"ours": 9e-5, "official": 2e-5, "official, fused": 1e-5}
    assert agreement(CPU).failures == ["gradient: ours is off by 9e-05 of the largest entry; allowed are 8e-05"]
    made_up["gradient"] = {"ours": 2e-4, "official": 1.5e-4, "official, fused": 1.5e-4}
    assert len(agreement(CPU).failures) == 3, "so coarse is no float32"
    made_up["gradient"] = {"ours": float("inf"), "official": 1e-6, "official, fused": 1e-6}
    found = agreement(CPU)
    assert found.failures == ["gradient: ours is off by inf of the largest entry; allowed are 1e-05"]
    assert found.errors == {"gradient": {"official": 1e-6, "official, fused": 1e-6}}, "JSON has no infinity"


def official(name: str, change: Any) -> Any:
    return lambda patch: patch.setattr(OfficialLoop, name, change(getattr(OfficialLoop, name)))


def trainer(name: str, change: Any) -> Any:
    return lambda patch: patch.setattr(_training_step.Trainer, name, change(getattr(_training_step.Trainer, name)))


def swapped(self: OfficialLoop, log_probs: Any, old: Any, advantages: Any, steps: Any) -> Any:
    return OfficialLoop.right(self, log_probs, old, advantages[::-1], steps)


WRONG = {
    "the official loss takes the pair's advantages the wrong way round": (
        lambda patch: (
            patch.setattr(OfficialLoop, "right", OfficialLoop.loss, raising=False),
            patch.setattr(OfficialLoop, "loss", swapped),
        ),
        "(loss|gradient)",
    ),
    "the official loop clips elsewhere": (
        lambda patch: patch.setattr(OfficialLoop, "clip_range", property(lambda self: 9e-4)),
        "(loss|gradient)",
    ),
    "its sigma is a little large": (
        official("spread", lambda right: lambda self, t: right(self, t) * 1.0001),
        "latents",
    ),
    "our rewards are of other pictures": (
        trainer("score", lambda right: lambda self, x, prompts: right(self, x * 1.001, prompts)),
        "rewards",
    ),
    "our gradients are of other rows": (
        trainer(
            "predict",
            lambda right: lambda self, trajectory, pairs, steps: right(self, trajectory, pairs.flip(0), steps),
        ),
        "(loss|gradient)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_loop_that_is_wrong_is_found(name, monkeypatch):
    change, where = WRONG[name]
    change(monkeypatch)
    every = _training_step.updates
    monkeypatch.setattr(_training_step, "updates", lambda config: itertools.islice(every(config), 2))  # are enough
    failures = agreement(CPU, microbatch=2).failures
    assert re.match(rf"(\w+ )?{where}.* ours is off by", failures[0])


def test_one_branch_alone_is_no_agreement(monkeypatch):
    found = [(_training_step.CLIPPED, {"ours": 0.0})]
    monkeypatch.setattr(_training_step, "differences", lambda bench, microbatch: found)
    assert agreement(CPU).failures == ["0% of the losses were clipped: one branch was hardly compared"]


# What is measured -----------------------------------------------------------------------------------------------


def test_the_official_loop_is_what_it_is_said_to_be(bench):
    """Its waits, its UNet calls of one sample of each pair, its six decodes a pair, latents stored twice."""
    loop = bench.official(1)
    sizes = []
    handle = bench.pipeline.unet.register_forward_pre_hook(lambda _, x: sizes.append(len(x[0])))
    with materialised(bench.pipeline):
        result = bench.official_epoch(loop, 1)
        handle.remove()
        K = bench.config.steps
        assert sizes[: 2 * K] == [FEW] * 2 * K, "a trajectory of every pair, then the other"
        assert sizes[2 * K :] == [1] * (2 * FEW * K), "two calls a micro-batch"
        assert result.forwards == 4 * FEW * K
        assert result.trained == 2 * FEW * K
        assert result.pictures == 6 * FEW
        samples = loop.sample(["a cat", "a dog"], lambda part: None)
        assert torch.equal(samples.before[0][:, 1:], samples.after[0][:, :-1])
        assert samples.before[0].untyped_storage().data_ptr() != samples.after[0].untyped_storage().data_ptr()
        assert torch.equal(samples.before[0][:, 0], samples.before[1][:, 0]), "the pair's first latent"
        assert not torch.equal(samples.before[0][:, 1], samples.before[1][:, 1])
        advantages, one = loop.advantages(samples), [(torch.tensor([0]), torch.tensor([1]))]
        loop.waits = 0
        loop.train(samples, advantages, [one])
        assert loop.waits == 12 + 2, "a micro-batch's, and what an update logs"
        assert bench.official_on_policy(loop) < 1e-5
    bench.reset()


def test_our_epoch(bench):
    with fast(bench.pipeline):
        result = bench.ours_epoch(1)
        K = bench.config.steps
        assert result.forwards == 2 * FEW * (2 * K - 1), "one at the first step, for both"
        assert result.trained == FEW * (2 * K - 1)
        assert result.pictures == 5 * FEW
        assert list(result.seconds) == ["sample", "reward", "train"]
        assert min(result.seconds.values()) > 0
        moved = [p.detach().clone() for p in bench.trained]
        bench.reset()
        assert any(not torch.equal(p, was) for p, was in zip(bench.trained, moved, strict=True)), "it trains"
        assert bench.on_policy() == 0
    one = flop(TINY)
    assert bench.flop(result) == {
        "sample": FEW * (2 * K - 1) * one.forward,
        "reward": 5 * FEW * one.decode,
        "train": FEW * (2 * K - 1) * (one.forward + one.backward),
    }


def test_an_epoch_that_goes_another_way_is_not_timed(bench, monkeypatch):
    monkeypatch.setattr(_training_step.TimedTrainer, "sample", _training_step.Trainer.sample)
    with fast(bench.pipeline), pytest.raises(AssertionError, match="went through"):
        bench.ours_epoch(1)
    bench.reset()


def test_clock(monkeypatch):
    log = []
    stand_in = SimpleNamespace(
        synchronize=lambda: log.append("wait"),
        max_memory_allocated=iter([5, 9, 7]).__next__,
        reset_peak_memory_stats=lambda: log.append("reset"),
    )
    now = iter([0.0, 1.0, 3.0, 7.0]).__next__
    monkeypatch.setattr(_training_step, "torch", SimpleNamespace(cuda=stand_in))
    monkeypatch.setattr(_training_step, "time", SimpleNamespace(perf_counter=now))
    clock = Clock(SimpleNamespace(type="cuda"))
    for part in ("sample", "reward", "sample"):
        clock.lap(part)
    assert clock.seconds == {"sample": 5.0, "reward": 2.0}
    assert clock.memory == {"sample": 7, "reward": 9}
    assert log == ["wait"] + ["wait", "reset"] * 3
    monkeypatch.setattr(_training_step, "time", SimpleNamespace(perf_counter=iter([0.0, 1.0]).__next__))
    clock = Clock(CPU)
    clock.lap("train")
    assert (clock.seconds, clock.memory) == ({"train": 1.0}, {})


@pytest.mark.parametrize("rows", [2, 8])
def test_no_row_is_padding(bench, rows):
    """Rows that are computed and thrown away would be timed as if they were work."""
    seen = []
    handle = bench.pipeline.unet.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    bench.set_rows(rows)
    with fast(bench.pipeline):
        result = bench.ours_epoch(1)
    handle.remove()
    K = bench.config.steps
    assert max(seen) == rows
    most = {2: 2 * (FEW // 2) + FEW, 8: FEW + FEW * K}[rows]  # a pair's one forward at its first step: padded to `rows`
    assert sum(seen) <= result.forwards + most
    bench.set_rows(2 * FEW)
    bench.reset()


def test_variants():
    cpu, gpu = variants(False), variants(True)
    for found in (cpu, gpu):
        assert len({str(variant) for variant in found}) == len(found)
        assert {1, 2} < {v.rows for v in found if v.loop == "official"}
        assert str(found[-1]) == f"{found[0]}-again", "what changed meanwhile"
        assert [v.loop for v in found[:4]] == ["official", "ours"] * 2, "in turns"
        (fused,) = [v for v in found if v.fused]
        assert fused._replace(fused=False) in found
        assert any(v.loop == "ours" and v.rows == 2 * fused.rows for v in found), "the official loop at an equal batch"
    assert not any(v.compiled for v in cpu)
    assert {v.dtype for v in cpu} == {"float32", "bfloat16"}
    assert {v.dtype for v in gpu} == {"float16", "bfloat16"}
    assert max(v.rows for v in gpu) == 2 * 8, "an update's pairs in one forward"
    assert [str(v) for v in gpu if v.compiled] == ["ours-16-float16-compile"]
    assert [str(v) for v in gpu if v.backend == "torch"] == ["ours-16-float16-torch"]


def test_what_a_record_holds(bench, monkeypatch):
    """Of a GPU, as far as it goes without one."""
    memory = {"sample": 2**30, "reward": 2**31, "train": 3}
    results = [Result({"sample": 1.0 * s, "reward": 0.5, "train": 2.5}, memory, 56, 28, 20) for s in (1, 3, 2)]
    monkeypatch.setattr(test_training_step, "device_name", lambda device: "cuda: NVIDIA H100 80GB HBM3")
    agreed = Agreement({"loss": {"ours": 1.23456e-6}}, ["a loss"])
    stand_in = SimpleNamespace(
        **vars(bench) | {"device": torch.device("cuda"), "agreement": agreed, "flop": bench.flop, "seconds": {}}
    )
    info = describe(stand_in, Variant("ours", 8, "float16"), results, 1e-6)
    assert info["what"] == STEP_CPU_NOTE, "of the tiny architecture, wherever it runs"
    assert info["seconds"] == {"sample": 2.0, "reward": 0.5, "train": 2.5, "all": 5.0}
    assert info["pairs_per_s"] == {"sample": 2.0, "reward": 8.0, "train": 1.6, "all": 0.8}
    one = flop(TINY)
    work = 56 * one.forward + 28 * one.backward + 20 * one.decode
    assert info["flop"]["all"] == work
    assert info["utilisation"]["all"] == pytest.approx(work / 5.0 / 989.4e12, rel=1e-3)
    assert info["memory_bytes"] == memory | {"all": 2**31}
    assert (info["agreement"], info["disagreement"]) == ({"loss": {"ours": 1.235e-6}}, ["a loss"])
    assert info["drift"] is None
    slower = [result._replace(seconds={"sample": 3.0, "reward": 0.5, "train": 3.0}) for result in results]
    assert describe(stand_in, Variant("ours", 8, "float16", again=True), slower, 1e-6)["drift"] == 1.3
    json.dumps(info)
    monkeypatch.setattr(test_training_step, "device_name", lambda device: "cuda: Made-up GPU")
    assert describe(stand_in, Variant("ours", 8, "float16"), results, 1e-6)["utilisation"] is None
    assert describe(bench_of(SD_TURBO, stand_in), Variant("ours", 8, "float16"), results, 0.0)["what"] == STEP_NOTE


def bench_of(architecture: Any, bench: Any) -> Any:
    return SimpleNamespace(**vars(bench) | {"architecture": architecture})


def test_settings_are_the_official_ones():
    config = settings(pairs=8, pairs_per_update=8)
    assert (config.method, config.learning_rate, config.weight_decay) == ("sdpo", 1e-4, 1e-4)
    assert (config.train_last_step, config.eta, config.lora_rank) == (True, 1.0, 4)
    assert 1000 % config.steps == 0, "what the official scheduler's previous timestep needs"


# The command ----------------------------------------------------------------------------------------------------

BROKEN = """
import sys
import pytest, sdpo_kernels

right = sdpo_kernels.ddim_step
sdpo_kernels.ddim_step = lambda m, *a, **k: right(m * (1 + 1e-3), *a, **k)
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_what_is_wrong_is_marked(tmp_path):
    """A GPU may be at hand once: times are kept, and the record and its tables say what is wrong with them."""
    done = forked.run(
        [
            sys.executable,
            "-c",
            BROKEN,
            "benchmarks/test_training_step.py",
            "--benchmark-only",
            "-k",
            "ours-8-float32",
            "--kernel-results",
            str(tmp_path / "kernels"),
        ],
        {k: v for k, v in os.environ.items() if "XDIST" not in k} | {"CUDA_VISIBLE_DEVICES": ""},
        ROOT,
    )
    assert done.returncode == 0, done.stdout
    said = r"The loops did not compute the same when this was measured: latents: ours is off by \S+ of"
    assert re.search(said, done.stdout)
    (path,) = tmp_path.glob("kernels/*/*.json")
    (entry,) = json.loads(path.read_text())["benchmarks"]
    assert entry["extra_info"]["disagreement"][0].startswith("latents: ours is off by")
    write_kernel_tables(path.parent)
    (table,) = path.parent.glob("tables/*_training_step.md")
    for text in (table.read_text(), (path.parent / "README.md").read_text()):
        assert re.search(said, text)


def test_a_variant_that_does_not_fit_is_left_out(monkeypatch):
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    stand_in = SimpleNamespace(
        reset=lambda: None, pipeline=None, set_rows=lambda rows: None, on_policy=full, ours_epoch=None
    )
    monkeypatch.setattr(test_training_step, "cast", lambda *_: None)
    monkeypatch.setattr(test_training_step, "fast", lambda *_: contextlib.nullcontext())
    with pytest.raises(pytest.skip.Exception, match="memory is too small"):
        test_training_step.test_training_step(None, stand_in, Variant("ours", 8, "float32"))


# Tables ---------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def made_up(cpu: bool = False, slower: float = 1.0) -> dict[str, Any]:
    """A record of a device that does not exist: the official loop takes 8 and 4 s an epoch of 8 pairs, ours 1.25 s
    (compiled 1 s), times `slower`; measured nowhere."""
    variants = {
        ("official", 1, False): 8.0,
        ("official", 2, False): 4.0,
        ("ours", 16, False): 1.25 * slower,
        ("ours", 16, True): 1.0 * slower,
        ("ours", 4, False): 2.0 * slower,
    }
    entries = []
    for (loop, rows, compiled), seconds in variants.items():
        parts = {"sample": seconds / 4, "reward": seconds / 4, "train": seconds / 2, "all": seconds}
        memory = {"sample": 2**30, "reward": 2**30, "train": rows * 2**30, "all": rows * 2**30}
        info = {
            "what": STEP_CPU_NOTE if cpu else STEP_NOTE,
            "training_step": {
                "loop": loop,
                "rows": rows,
                "dtype": "float32" if cpu else "float16",
                "compiled": compiled,
            },
            "architecture": "an architecture",
            "pairs": 8,
            "steps": 4,
            "seconds": parts,
            "pairs_per_s": {part: 8 / value for part, value in parts.items()},
            "utilisation": None if cpu else {part: 0.5 / value for part, value in parts.items()},
            "memory_bytes": None if cpu else memory,
            "log_ratio": 2e-6,
            "clip_range": 1e-4,
        }
        entries.append({"name": "test_training_step", "extra_info": info, "stats": {"median": seconds}})
    device = "cpu: Made-up" if cpu else "cuda: Made-up GPU"
    machine = {
        "commit": COMMIT,
        "dirty": False,
        "versions": {"torch": "0.0.0"},
        "device": device,
        "threads": 1,
        "command": "pytest benchmarks",
        "sources": {"kernels": "a" * 64},
    }
    return {"machine_info": machine, "benchmarks": entries, "failed": [], "skipped": {}}


def write(root: Path, record: dict[str, Any]) -> Path:
    path = record_path(root / "results" / "kernels", record["machine_info"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return path


def test_tables_of_a_gpu(tmp_path):
    folder = write(tmp_path, made_up()).parent
    written = write_kernel_tables(folder)
    name = "0123456789ab_training_step"
    assert {path.name for path in written} == {"README.md", f"{name}.md", f"{name}.csv"}
    readme = (folder / "README.md").read_text()
    assert f"**{STEP_NOTE[0].upper() + STEP_NOTE[1:]}**: [0123456789ab_training_step](tables/" in readme
    assert "No case was measured" not in readme
    assert STEP_CPU_NOTE not in readme
    assert "| ours, 4 rows, fp16 | 4x, missed | 2x, missed | 25.0%, missed | 4x, missed |" in readme
    assert "| ours, 16 rows, fp16 | 6.4x, met | 3.2x, met | 40.0%, met | 16x, missed |" in readme
    assert "| ours, 16 rows, fp16, compiled | 8x, met | 4x, met | 50.0%, met | 16x, missed |" in readme
    table = (folder / "tables" / "0123456789ab_training_step.md").read_text()
    assert "| official, micro-batch 1 | 1 | 4 | 4 | 2 | 1x | 0.5x | 2e-06 |" in table
    assert "| official, micro-batch 2 | 12.5% | 50.0% | 50.0% | 25.0% | – | – | – |" in table
    assert "| ours, 4 rows, fp16 | 4 | 1 | 1 | 4 | – | – | – |" in table
    assert "An epoch of 8 pairs at K = 4 on an architecture, random weights" in table
    rows = pd.read_csv(folder / "tables" / "0123456789ab_training_step.csv")
    assert list(rows["speedup_1"]) == pytest.approx([1, 2, 4, 6.4, 8])
    assert list(rows["memory_ratio"]) == [1, 2, 4, 16, 16]
    first = {path.name: path.read_bytes() for path in written}
    write_kernel_tables(folder)
    assert {path.name: path.read_bytes() for path in written} == first
    assert main([str(folder), "--check"]) == 0


def test_the_memory_goal_is_met_by_what_takes_no_more():
    record = made_up()
    record["benchmarks"][2]["extra_info"]["memory_bytes"]["all"] = 2**30
    lines = step_verdicts(step_frame(entry["extra_info"] for entry in record["benchmarks"]))
    assert sum("1x, met |" in line for line in lines) == 1


def test_tables_of_a_cpu_say_so(tmp_path):
    folder = write(tmp_path, made_up(cpu=True)).parent
    write_kernel_tables(folder)
    for path in (folder / "README.md", folder / "tables" / "0123456789ab_training_step.md"):
        text = path.read_text()
        assert STEP_CPU_NOTE in text.replace("The training", "the training")
        assert "Goals" not in text
        assert " met" not in text
    assert "No utilisation: the device's peak is not listed, or it is a CPU." in text
    assert "peak memory, GiB" not in text
    shown = render_steps([entry["extra_info"] for entry in made_up(cpu=True)["benchmarks"]])
    assert re.search(r"^ours, 16 rows, fp32 +6\.4 ", shown, re.M)


def test_tables_of_the_newer_variants(tmp_path):
    """Fused attention, the operations in PyTorch, the first once more: none of them is what others are held against."""
    record = made_up()
    plain, *_, last = record["benchmarks"]
    for like, seconds, marks in (
        (plain, 2.0, {"fused": True}),
        (plain, 8.8, {"again": True}),
        (last, 5.0, {"backend": "torch"}),
    ):
        entry = json.loads(json.dumps(like))
        info = entry["extra_info"]
        info["training_step"] |= marks
        info["pairs_per_s"] = dict.fromkeys(info["pairs_per_s"], 8 / seconds)
        info["drift"] = 1.1 if "again" in marks else None
        record["benchmarks"].append(entry)
    for entry in record["benchmarks"]:
        entry["extra_info"]["training_step"] = {"fused": False, "again": False, "backend": "auto"} | (
            entry["extra_info"]["training_step"]
        )
    rows = step_frame(entry["extra_info"] for entry in record["benchmarks"])
    speed = dict(zip(map(step_label, rows.to_dict("records")), rows["speedup_1"], strict=True))
    assert speed["official, micro-batch 1"] == 1
    assert speed["official, micro-batch 1, fused attention"] == 4
    assert speed["official, micro-batch 1, again"] == pytest.approx(1 / 1.1)
    assert speed["ours, 4 rows, fp16, torch backend"] == 1.6
    folder = write(tmp_path, record).parent
    write_kernel_tables(folder)
    table = (folder / "tables" / "0123456789ab_training_step.md").read_text()
    assert "again: the first, measured once more at the end, at 1.1 times its first time." in table


def test_a_record_without_the_official_loop(tmp_path):
    record = made_up()
    record["benchmarks"] = record["benchmarks"][2:]
    folder = write(tmp_path, record).parent
    write_kernel_tables(folder)
    assert "| ours, 4 rows, fp16 | not measured | not measured | 25.0%, missed | not measured |" in (
        (folder / "README.md").read_text()
    )


def test_a_damaged_record_is_refused(tmp_path):
    from sdpo_bench.errors import UserError

    record = made_up()
    del record["benchmarks"][0]["extra_info"]["seconds"]
    path = write(tmp_path, record)
    with pytest.raises(UserError, match=r"not a record"):
        load(path)
