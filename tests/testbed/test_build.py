import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import forked

from sdpo_bench.testbed.build import SMOKE, build
from sdpo_bench.testbed.train_denoiser import GRID, trajectories


def _command(out: Path) -> list[str]:
    return [sys.executable, "-m", "sdpo_bench.testbed.build", "--smoke", "--out", str(out)]


def _weights(out: Path) -> dict[str, str]:
    files = sorted([*out.glob("embedded_model/**/*"), *out.glob("scorers/**/*")])
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if p.suffix != ".md" and p.is_file()
    }


def test_build_runs_end_to_end_gives_the_same_bytes_and_reuses_stages(tmp_path: Path) -> None:
    done = subprocess.run(_command(tmp_path / "a"), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    done = forked.run(_command(tmp_path / "b"), os.environ, tmp_path)
    assert done.returncode == 0, done.stdout
    first = _weights(tmp_path / "a")
    assert len([name for name in first if name.endswith(".safetensors")]) == 5
    assert first == _weights(tmp_path / "b")
    assert {p.name for p in (tmp_path / "a" / "quality").iterdir()} == {"quality.json", "README.md", "grid.png"}
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*.safetensors")}
    build(tmp_path / "a", SMOKE)  # everything is finished: nothing runs
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*.safetensors")}


def test_other_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"autoencoder": 1}')
    with pytest.raises(ValueError, match="other settings"):
        build(tmp_path, SMOKE)


def test_trajectories_end_on_training_latents() -> None:
    latents = torch.randn(45, 8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    classes, timesteps, states, ends = trajectories(latents, 64, torch.Generator().manual_seed(1))
    assert states.shape == (GRID, 64, 256)
    assert timesteps[0] == 999
    assert (timesteps[1:] < timesteps[:-1]).all()
    distance = (ends[:, None] - latents.flatten(2)[classes]).norm(dim=-1).min(1).values
    assert distance.max() < 1e-2
    assert 0.9 < states[0].std() < 1.1
    # Both points of the set and noise are spread over: many members are reached, not one.
    nearest = (ends[:, None] - latents.flatten(2)[classes]).norm(dim=-1).argmin(1)
    assert len(nearest.unique()) == 8
