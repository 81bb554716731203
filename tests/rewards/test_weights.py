"""Files of weights: found, fetched, converted once, and never trusted."""

import hashlib
import io
import pickle
import re
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdpo_bench.errors import UserError
from sdpo_bench.rewards import PRETRAINED, _weights, find_weights, load_reward, network_bytes
from sdpo_bench.rewards._weights import MissingWeights, Source, mlp, read

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2, dtype=torch.float16)}
SOURCE = Source("someone/model", "0" * 40)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The local copy of SOURCE; the cache is beside it, and nothing may use the network."""
    monkeypatch.setenv(_weights.FOLDER, str(tmp_path / "weights"))
    monkeypatch.setenv(_weights.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(Source, "_download", lambda *_: pytest.fail("downloads"))
    path = tmp_path / "weights" / SOURCE.repo
    path.mkdir(parents=True)
    return path


def cached(folder):
    return sorted(path.name for path in (folder.parents[2]).glob("cache/*"))


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def same(found):
    return found.keys() == STATE.keys() and all(torch.equal(found[k], STATE[k]) for k in STATE)


@pytest.mark.parametrize("content", [STATE, {"state_dict": STATE, "epoch": 3}], ids=["plain", "nested"])
def test_pickles_are_converted_once(folder, monkeypatch, content):
    path = folder / "model.pt"
    torch.save(content, path)
    state, digest = read(SOURCE, "model.pt")
    assert same(state)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert cached(folder) == [f"{digest}.safetensors", f"{digest}.sha256"]
    assert same(load_file(folder.parents[2] / "cache" / f"{digest}.safetensors"))
    modes = {file.stat().st_mode for file in (folder.parents[2] / "cache").iterdir()}
    assert len(modes) == 1  # safetensors alone would keep the weights from other users

    loaded = []
    monkeypatch.setattr(torch, "load", lambda *a, **k: loaded.append(a))
    assert same(read(SOURCE, "model.pt")[0])
    assert loaded == []


def test_another_file_of_the_same_name_is_converted_anew(folder):
    torch.save(STATE, folder / "model.pt")
    read(SOURCE, "model.pt")
    torch.save({"other": torch.zeros(3)}, folder / "model.pt")
    assert read(SOURCE, "model.pt")[0].keys() == {"other"}
    assert len(cached(folder)) == 4


@pytest.mark.parametrize("damage", ["weights", "truncated", "digest", "no digest"])
def test_a_converted_file_that_was_changed_is_made_anew(folder, damage, capsys):
    torch.save(STATE, folder / "model.pt")
    digest = read(SOURCE, "model.pt")[1]
    converted = folder.parents[2] / "cache" / f"{digest}.safetensors"
    if damage == "weights":  # sound in its form, other numbers
        save_file({key: value + 1 for key, value in load_file(converted).items()}, converted)
    elif damage == "truncated":
        converted.write_bytes(converted.read_bytes()[:-3])
    elif damage == "digest":
        converted.with_suffix(".sha256").write_text("0\n")
    else:
        converted.with_suffix(".sha256").unlink()
    assert same(read(SOURCE, "model.pt")[0])
    assert "was changed after it was made; it is converted again" in capsys.readouterr().err
    assert same(load_file(converted))
    assert same(read(SOURCE, "model.pt")[0])
    assert capsys.readouterr().err == ""


def test_safetensors_are_read_in_place(folder):
    save_file(STATE, folder / "model.safetensors")
    state, digest = read(SOURCE, "model.safetensors")
    assert same(state)
    assert digest == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert cached(folder) == []


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_refused_and_not_run(folder, legacy):
    victim = folder / "victim"
    content = {"state_dict": STATE, "extra": Malicious(victim)}
    if legacy:
        (folder / "model.pt").write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, folder / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt is refused \(UnpicklingError\): it is damaged, or holds more"):
        read(SOURCE, "model.pt")
    assert not victim.exists()
    assert cached(folder) == []
    # It was no empty threat: where code is allowed to run, it does.
    pickle.loads((folder / "model.pt").read_bytes()) if legacy else torch.load(folder / "model.pt", weights_only=False)
    assert victim.exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": {"a": "b"}}, torch.ones(2)])
def test_what_is_not_tensors_by_name_is_refused(folder, content):
    torch.save(content, folder / "model.pt")
    with pytest.raises(UserError, match="refused"):
        read(SOURCE, "model.pt")
    assert cached(folder) == []


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "legacy.pt"])
def test_truncated_files(folder, name, keep):
    buffer = io.BytesIO()
    torch.save(STATE, buffer, _use_new_zipfile_serialization=name != "legacy.pt")
    save_file(STATE, folder / "model.safetensors")
    content = (folder / name).read_bytes() if name.endswith("s") else buffer.getvalue()
    (folder / name).write_bytes(content[:keep])
    with pytest.raises(UserError, match="damaged"):
        read(SOURCE, name)
    assert cached(folder) == []


def test_an_interrupted_conversion_leaves_nothing(folder, monkeypatch):
    def interrupted(state, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    torch.save(STATE, folder / "model.pt")
    monkeypatch.setattr("safetensors.torch.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(SOURCE, "model.pt")
    assert cached(folder) == []


def test_digests_are_checked(folder):
    save_file(STATE, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"has SHA-256 [0-9a-f]{64}, not 1111: damaged or another file"):
        read(Source(SOURCE.repo, SOURCE.revision, {"model.safetensors": "1111"}), "model.safetensors")


def test_a_file_that_the_local_copy_lacks(folder):
    with pytest.raises(MissingWeights) as caught:
        read(SOURCE, "model.pt")
    command = f"hf download someone/model model.pt --revision {'0' * 40}"
    assert str(folder) in str(caught.value)
    assert f"lacks model.pt; with a network: {command}; for a machine without: {command} --local-dir " in str(
        caught.value
    )
    assert "set SDPO_BENCH_WEIGHTS=FOLDER" in str(caught.value)


def test_no_network(tmp_path, monkeypatch):
    """As a user sees it: which file of what, how to fetch it, what else there is."""

    def offline(*arguments, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("Cannot reach the hub.\nMore lines.")

    monkeypatch.delenv(_weights.FOLDER, raising=False)
    monkeypatch.setenv(_weights.CACHE, str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        load_reward("colourfulness+imagereward")
    revision = "5736be03b2652728fb87788c9797b0570450ab72"
    command = f"hf download THUDM/ImageReward ImageReward.pt --revision {revision}"
    assert str(caught.value) == (
        f"reward imagereward: ImageReward.pt of THUDM/ImageReward at revision {revision} is not here and can't be "
        f"fetched (Cannot reach the hub.); with a network: {command}; for a machine without: {command} --local-dir "
        f"FOLDER/THUDM/ImageReward, copy FOLDER there, set SDPO_BENCH_WEIGHTS=FOLDER. Rewards that need no weights: "
        f"alignment, alignment_heldout, colourfulness, diversity, diversity_heldout, jpeg_compressibility, "
        f"jpeg_incompressibility, kid_start, vendi, vendi_heldout"
    )
    with pytest.raises(UserError, match=r"at revision main .* hf download .* --revision main"):
        load_reward("pickscore@main")
    with pytest.raises(UserError, match=r"aesthetic: sac\+logos.*\(HF_HUB_OFFLINE is set\); with a network: curl -L"):
        load_reward("aesthetic")


def test_files_of_github_are_fetched_once_and_checked(tmp_path, monkeypatch):
    monkeypatch.delenv(_weights.FOLDER, raising=False)
    monkeypatch.setenv(_weights.CACHE, str(tmp_path / "cache"))
    torch.save(STATE, tmp_path / "a+b.pth")
    digest = hashlib.sha256((tmp_path / "a+b.pth").read_bytes()).hexdigest()
    source = Source("someone/else", "1" * 40, {"a+b.pth": digest}, host="github")
    assert source._url("a+b.pth") == f"https://github.com/someone/else/raw/{'1' * 40}/a%2Bb.pth"
    monkeypatch.setattr(Source, "_url", lambda self, name: (tmp_path / name).as_uri())
    assert same(read(source, "a+b.pth")[0])
    (tmp_path / "a+b.pth").unlink()
    assert same(read(source, "a+b.pth")[0])

    torch.save({"other": torch.zeros(2)}, tmp_path / "a+b.pth")
    with pytest.raises(MissingWeights, match="invalid hash value"):
        read(Source("someone/else", "2" * 40, {"a+b.pth": digest}, host="github"), "a+b.pth")
    assert not list(tmp_path.glob("cache/someone/else/2*/*"))


def test_a_revision_of_the_users_is_not_held_to_the_pinned_digest(folder, monkeypatch):
    from sdpo_bench.rewards.imagereward import ImageReward

    monkeypatch.setattr(ImageReward, "load", lambda self: None)
    reward = load_reward("imagereward@main:published")
    assert reward.name == "imagereward@main:published"
    assert "THUDM/ImageReward@main" in reward.revision
    assert reward.sources[0].sha256 == {}
    assert reward.sources[1] == ImageReward.sources[1]


def test_the_head_takes_its_own_weights_only():
    state = {
        f"layers.{i}.{kind}": torch.zeros(shape)
        for i, (a, b) in zip((0, 2, 4, 6, 7), ((8, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)), strict=True)
        for kind, shape in (("weight", (b, a)), ("bias", (b,)))
    }
    assert [tuple(layer.weight.shape) for layer in mlp(state, torch.device("cpu"))] == [
        (1024, 8),
        (128, 1024),
        (64, 128),
        (16, 64),
        (1, 16),
    ]
    with pytest.raises(UserError, match=r"1 tensors of head differ.* layers\.7\.bias \(found none, expected \(1,\)\)"):
        mlp({key: value for key, value in state.items() if key != "layers.7.bias"}, torch.device("cpu"))
    with pytest.raises(UserError, match=r"layers\.8\.bias \(found \(1,\), expected none\)"):
        mlp(state | {"layers.8.bias": torch.zeros(1)}, torch.device("cpu"))


@pytest.mark.parametrize("name", PRETRAINED)
def test_the_documented_commands_fetch_what_is_pinned(name):
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    assert f"`{name}`" in page
    for source in PRETRAINED[name].sources:
        assert source.repo in page
        assert source.revision in page
        assert all(file in page for file in source.sha256)


def test_files_are_looked_for_before_any_is_read(tmp_path, monkeypatch):
    """All that a reward reads, and nothing is read: these are empty."""
    monkeypatch.setenv(_weights.FOLDER, str(tmp_path))
    files = [tmp_path / source.repo / name for source in PRETRAINED["aesthetic"].sources for name in source.sha256]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    find_weights(["aesthetic", "alignment", "0.5*aesthetic+jpeg_compressibility"])
    for file in files:
        file.unlink()
        with pytest.raises(UserError, match=f"reward aesthetic: .* lacks {re.escape(file.name)}; with a network"):
            find_weights(["aesthetic"])
        file.touch()


def test_bytes_of_networks():
    """CLIP ViT-L/14 has 427,616,513 weights. No file is there to be read."""
    sizes = network_bytes(["clipscore:published+aesthetic", "alignment"], torch.float32)
    assert sizes["clipscore"] == 4 * 427_616_513
    assert list(sizes) == ["clipscore", "aesthetic"]
    assert sizes["aesthetic"] < 0.75 * sizes["clipscore"]  # without the network for texts
    assert network_bytes(["clipscore"], torch.float16) == {"clipscore": 2 * 427_616_513}
