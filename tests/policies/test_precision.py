"""On a GPU float32 is multiplied in full, in a run, an evaluation and a benchmark; and their records say so."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sdpo_bench import RunConfig
from sdpo_bench.policies import StableDiffusionPolicy, base, precision
from sdpo_bench.records import provenance

sys.path.append(str(Path(__file__).parents[2]))  # the benchmarks are no part of the installed package

FULL = dict.fromkeys(("products", "convolutions", "recurrent"), "ieee")


@pytest.fixture
def tf32():
    """TF32 is on everywhere, and afterwards as it was."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [each.allow_tf32 for each in flags]
    for each in flags:
        each.allow_tf32 = True
    yield
    for each, was in zip(flags, before, strict=True):
        each.allow_tf32 = was


@pytest.mark.usefixtures("tf32")
def test_old_and_new_settings_agree():
    """torch.compile reads the old ones, and PyTorch raises where they contradict the new."""
    assert provenance.float32_precision() == dict.fromkeys(FULL, "tf32")
    precision.use_full_float32()
    assert provenance.float32_precision() == FULL
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.usefixtures("tf32")
def test_before_pytorch_2_9(monkeypatch):
    backends = SimpleNamespace(
        cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=False)), cudnn=SimpleNamespace(allow_tf32=True)
    )
    monkeypatch.setattr(precision, "torch", SimpleNamespace(backends=backends))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(backends=backends))
    assert provenance.float32_precision() == FULL | dict.fromkeys(("convolutions", "recurrent"), "tf32")
    precision.use_full_float32()
    assert provenance.float32_precision() == FULL


class Moved(Exception):
    pass


class Pipeline:
    def to(self, device):
        raise Moved(device)


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_policy_on_a_gpu_sets_it(device, monkeypatch):
    """Before anything moves to the device; a policy on a CPU changes nothing."""
    monkeypatch.setattr(base, "resolve_device", torch.device)
    monkeypatch.setattr(base.sdpo_kernels, "resolve_backend", lambda name, device: "torch")
    with pytest.raises(Moved, match=device):
        StableDiffusionPolicy(Pipeline(), RunConfig(device=device))
    assert (provenance.float32_precision() == FULL) == (device == "cuda")


@pytest.mark.usefixtures("tf32")
def test_benchmarks_on_a_gpu_set_it(monkeypatch):
    conftest = importlib.import_module("benchmarks.conftest")
    options = SimpleNamespace(getoption=lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    conftest.pytest_configure(options)
    assert provenance.float32_precision() != FULL
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    conftest.pytest_configure(options)
    assert provenance.float32_precision() == FULL


def test_provenance_of_a_gpu_has_it(monkeypatch):
    monkeypatch.setattr(provenance, "device_name", str)
    monkeypatch.setattr("sdpo_kernels.resolve_backend", lambda name, device: "triton")
    assert provenance.collect("cuda")["float32"] == provenance.float32_precision()
    assert "float32" not in provenance.collect("cpu")
