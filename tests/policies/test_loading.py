"""What is wrong with the files of a model or an adapter is said in one line, by every command that would use them.
Other forms of the same weights are read."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.tiny import SIZES, write_model
from transformers import T5EncoderModel

import sdpo_bench
from sdpo_bench.cli.main import main
from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.policies import load_policy, loading
from sdpo_bench.policies.loading import check_files, is_local, is_local_adapter, load_pipeline
from sdpo_bench.rewards import load_reward

COMPONENTS = {
    "sd": ("unet", "vae", "text_encoder"),
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
    "sd3": ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"),
    "flux": ("transformer", "vae", "text_encoder", "text_encoder_2"),
}
PARTS = [(name, part) for name, parts in COMPONENTS.items() for part in parts]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("loading")


@pytest.fixture
def copy(root, tmp_path):
    """A model's folder that may be changed."""

    def of(name):
        return shutil.copytree(write_model(root, name), tmp_path / name)

    return of


def configuration(folder, name, **changes):
    return RunConfig(
        model=str(folder), resolution=SIZES.get(name), reward="colourfulness", eval_rewards=(), device="cpu", **changes
    )


def weights_of(folder):
    (file,) = folder.glob("*.safetensors")
    return file


def rewrite(file, change):
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def pipeline_weights(folder, **options):
    networks = {
        k: v for k, v in load_pipeline(str(folder), **options).components.items() if isinstance(v, torch.nn.Module)
    }
    return {f"{name}.{key}": value for name, module in networks.items() for key, value in module.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def refused(arguments, capsys):
    """The line of a command that is refused."""
    capsys.readouterr()  # what making the model printed
    code = main([str(x) for x in arguments])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    return err


# Damaged models


@pytest.mark.parametrize("damage", ["deleted", "truncated", "missing", "misshapen", "surplus"])
@pytest.mark.parametrize(("name", "part"), PARTS)
def test_damaged_parts_are_named(copy, tmp_path, monkeypatch, capsys, name, part, damage):
    """By `train`, which would else run on random numbers, and by `doctor`, which would else say that it fits."""
    folder = copy(name)
    file = weights_of(folder / part)
    key = sorted(load_file(file))[-1]
    if damage == "deleted":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "missing":
        rewrite(file, lambda state: {k: v for k, v in state.items() if k != key})
    elif damage == "misshapen":
        rewrite(file, lambda state: state | {key: torch.zeros(3, 5, 7)})
    else:
        rewrite(file, lambda state: state | {"spare.weight": torch.zeros(3)})
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    reward = ["--reward", "colourfulness", "--eval-rewards", "colourfulness", "--device", "cpu"]
    for command in (["train", "--model", folder, *reward], ["doctor", "--model", folder, "--device", "cpu"]):
        error = refused(command, capsys)
        assert str(folder) in error
        assert f"{part}/" in error
        if damage == "missing":
            assert f"{part}/{file.name} lacks the tensor " in error
        elif damage == "misshapen":
            assert f"{file.name} has {key} of shape [3, 5, 7], not [" in error
        elif damage == "surplus":
            assert f"{file.name} has the tensor spare.weight, which a " in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"_class_name": ["custom", "StableDiffusionPipeline"]},
            '_class_name in model_index.json is ["custom", "Stable',
        ),
        ({"_class_name": None}, "_class_name in model_index.json is null; expected one of Flux"),
        ({"_class_name": 3}, "_class_name in model_index.json is 3"),
        ({"_class_name": {}}, "_class_name in model_index.json is {}"),
        ({}, "_class_name in model_index.json is null"),
        ([], "is not a JSON object"),
        ({"_class_name": "StableDiffusionPipeline"}, "names no unet"),
        ({"unet": "UNet2DConditionModel"}, "names no unet"),
        ({"vae": [None, None]}, "names no vae"),
        ({"text_encoder": ["transformers", "NoSuchModel"]}, "names no text_encoder"),
        ({"scheduler": [1]}, "can't be loaded as a StableDiffusionPipeline"),
    ],
)
def test_indices_that_name_no_pipeline(copy, capsys, index, message):
    path = copy("sd") / "model_index.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | index if index and "_class_name" not in index else index))
    for command in ("train", "doctor", "evaluate"):
        reward = {"train": ["--reward", "colourfulness", "--eval-rewards"], "evaluate": ["--rewards", "colourfulness"]}
        assert message in refused([command, "--model", path.parent, *reward.get(command, [])], capsys)


# Other forms of sound models


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_check_reads_no_weights_and_passes_sound_models(root, name):
    check_files(str(write_model(root, name)))
    check_files("owner/name")  # nothing is fetched


def test_older_names_of_published_files_are_read(copy, root):
    """CLIP's prefix and its positions as a buffer, the rest of a whole CLIP or T5, T5's embedding under both names, the
    VAE's attention before diffusers 0.17."""
    folder = copy("sd3")
    expected = pipeline_weights(write_model(root, "sd3"))
    spare = {"text_model.embeddings.position_ids": torch.arange(16)[None], "logit_scale": torch.ones(1)}
    rewrite(weights_of(folder / "text_encoder"), lambda state: state | spare | {"vision_model.x": torch.ones(1)})
    twice, head = "encoder.embed_tokens.weight", {"lm_head.weight": torch.ones(1)}
    rewrite(weights_of(folder / "text_encoder_3"), lambda state: state | {twice: state["shared.weight"].clone()} | head)
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def older(state):
        out = {}
        for key, value in state.items():
            for new, old in names.items():
                key = key.replace(new, old) if "attentions" in key else key
            out[key] = value
        assert out.keys() != state.keys()
        return out

    rewrite(weights_of(folder / "vae"), older)
    assert_same(pipeline_weights(folder), expected)
    plain = copy("sd")
    rewrite(weights_of(plain / "text_encoder"), lambda state: {f"text_model.{k}": v for k, v in state.items()})
    assert_same(pipeline_weights(plain), pipeline_weights(write_model(root, "sd")))


def shard(folder, variant=None):
    """Saves a network in shards, as published ones are, in place of its file."""
    kind = T5EncoderModel if "text" in folder.name else SD3Transformer2DModel
    network = kind.from_pretrained(folder)
    weights_of(folder).unlink()
    network.save_pretrained(folder, max_shard_size="20KB", variant=variant)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards(copy, root, capsys, variant):
    folder = copy("sd3")
    files = shard(folder / "transformer", variant)
    shard(folder / "text_encoder_3", variant)
    assert_same(pipeline_weights(folder), pipeline_weights(write_model(root, "sd3")))
    with safe_open(files[-1], "pt") as content:
        key = next(iter(content.keys()))
    rewrite(files[-1], lambda state: {k: v for k, v in state.items() if k != key})
    error = refused(["doctor", "--model", folder, "--device", "cpu"], capsys)
    assert f"transformer/{files[0].name} and {len(files) - 1} more lacks the tensor {key}" in error
    files[1].unlink()
    assert "transformer/" in refused(["doctor", "--model", folder, "--device", "cpu"], capsys)


def halve(folder):
    """Leaves the fp16 variant alone."""
    file = weights_of(folder)
    halves = {k: v.half() for k, v in load_file(file).items()}
    save_file(halves, file.with_suffix(".fp16.safetensors"), {"format": "pt"})
    file.unlink()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_folders_with_the_fp16_variant_only(copy, root, name, dtype):
    """The numbers are those of float16, in the dtype that was asked for."""
    folder = copy(name)
    for part in COMPONENTS[name]:
        halve(folder / part)
    check_files(str(folder))
    whole = pipeline_weights(write_model(root, name), dtype=dtype)
    found = pipeline_weights(folder, dtype=dtype)
    assert {k: v.dtype for k, v in found.items()} == {k: v.dtype for k, v in whole.items()}
    exact = pipeline_weights(write_model(root, name))
    for key, value in found.items():
        assert torch.equal(value, exact[key].half().to(value.dtype)), key
    policy = load_policy(configuration(folder, name, dtype=dtype))
    assert policy.encode(["cat"])[0].isfinite().all()


def test_whole_weights_are_preferred_to_the_variant(copy, root):
    folder = copy("sd")
    for part in COMPONENTS["sd"]:
        file = weights_of(folder / part)
        state = load_file(file)
        halve(folder / part)
        if part != "vae":  # the VAE has the variant only
            save_file(state, file, {"format": "pt"})
    found, exact = pipeline_weights(folder), pipeline_weights(write_model(root, "sd"))
    for key, value in found.items():
        assert torch.equal(value, exact[key].half().float() if key.startswith("vae.") else exact[key]), key


def test_a_hub_model_with_the_variant_only_is_asked_for_again(copy, monkeypatch):
    """What is downloaded without naming a variant has no weights then."""
    folder, asked = copy("sd"), []
    hidden = {}
    for part in COMPONENTS["sd"]:
        halve(folder / part)
        file = weights_of(folder / part)
        hidden[file] = file.read_bytes()
        file.unlink()

    def download(source, revision=None, variant=None, **_):
        asked.append((source, revision, variant))
        for file, content in hidden.items() if variant else ():
            file.write_bytes(content)
        return str(folder)

    monkeypatch.setattr(StableDiffusionPipeline, "download", download)
    monkeypatch.setattr(loading, "hf_hub_download", lambda source, name, revision: folder / name)
    pipeline = load_pipeline("owner/name", "abc")
    assert asked == [("owner/name", "abc", None), ("owner/name", "abc", "fp16")]
    assert pipeline.config._name_or_path == "owner/name"
    load_pipeline("owner/name", "abc")
    assert len(asked) == 3


# Names


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("stabilityai/sd-turbo", True),
        ("./foo", True),
        ("runs/foo/bar", True),
        ("/no/such", True),
        ("foo", True),
        ("~/x/y", True),
        ("runs/", True),
        ("a/b/", True),
        ("../a", True),
        ("a//b", True),
        ("runs\\foo", True),
    ],
)
def test_only_owner_and_name_are_a_hub_id(tmp_path, monkeypatch, capsys, name, local):
    """A mistyped path is refused at once; nothing is asked of the hub."""
    monkeypatch.chdir(tmp_path)

    def ask(*_, **__):
        raise AssertionError("asked")

    monkeypatch.setattr(loading, "hf_hub_download", ask)
    if name == "stabilityai/sd-turbo":
        assert not is_local(name)
        (tmp_path / name).mkdir(parents=True)
    assert is_local(name) == local
    assert "model_index.json does not exist; expected a folder" in refused(["doctor", "--model", name], capsys)


def test_names_of_adapters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("owner/name", "owner/name@abc", "owner/name/file.safetensors", "owner/name/sub/file.bin@abc"):
        assert not is_local_adapter(name)
    (tmp_path / "runs").mkdir()
    for name in ("./adapter", "runs/x/adapter", "runs/x/file.safetensors", "adapter", "runs/x/y/adapter/", "~/a/b"):
        assert is_local_adapter(name)


# Adapters


def adapter_of(folder, name, tmp_path, **changes):
    """A policy whose LoRA is not 0, its adapter's file and the file's tensors."""
    policy = load_policy(configuration(folder, name, **changes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.parameters:
            p += 0.3 * torch.randn(p.shape, generator=generator)
    policy.save(tmp_path / "adapter")
    file = weights_of(tmp_path / "adapter")
    return policy, file, load_file(file)


def output(policy):
    """The denoiser's for one latent and prompt."""
    latents = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return policy.predict(latents, torch.tensor([500]), policy.encode(["cat"]))


def kohya(key):
    """kohya's name of a layer of the UNet."""
    path, part = key.removeprefix("unet.").split(".lora_")
    return f"lora_unet_{path.replace('.', '_')}", {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}[part]


OLDER = {
    "without metadata": lambda k: k,
    "lora.down": lambda k: k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"),
    "to_q_lora": lambda k: re.sub(
        r"\.(to_q|to_k|to_v|to_out)(\.0)?\.lora_([AB])",
        lambda m: f".processor.{m[1]}_lora.{'down' if m[3] == 'A' else 'up'}",
        k,
    ),
    "denoiser alone": lambda k: re.sub(r"^unet\.|^transformer\.", "", k),
    "kohya": lambda k: ".".join(kohya(k)),
}


@pytest.mark.parametrize("form", OLDER)
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_adapters_in_older_forms(root, tmp_path, name, form):
    """Rank 3, and alpha = rank where the file says none: `evaluate --weights` and `--adapter` both apply what diffusers
    would, without being told a rank."""
    folder = write_model(root, name)
    policy, file, state = adapter_of(folder, name, tmp_path, lora_rank=3, lora_alpha=3)
    expected = output(policy)
    renamed = {OLDER[form](key): value for key, value in state.items()}
    assert len(renamed) == len(state)
    if form == "kohya":
        # Half of the alphas' effect is in the weights: alpha 6 for rank 3 doubles it.
        renamed = {k: v / 2 if "lora_up" in k else v for k, v in renamed.items()}
        renamed |= {f"{kohya(key)[0]}.alpha": torch.tensor(6.0) for key in state}
    save_file({k: v.contiguous() for k, v in renamed.items()}, file)
    loaded = load_policy(configuration(folder, name))
    assert not torch.allclose(output(loaded), expected, atol=1e-3)
    loaded.load(file.parent)
    assert torch.allclose(output(loaded), expected, atol=1e-6)
    found = loaded.denoiser.peft_config["default"]
    assert (found.r, found.lora_alpha) == (3, 6 if form == "kohya" else 3)
    fused = load_policy(configuration(folder, name, adapter=str(file)))
    assert torch.allclose(output(fused), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_adapters_of_transformers_without_metadata(root, tmp_path, name):
    folder = write_model(root, name)
    policy, file, state = adapter_of(folder, name, tmp_path, lora_rank=8, lora_alpha=8)
    save_file(state, file)
    loaded = load_policy(configuration(folder, name))
    loaded.load(file.parent)
    assert torch.allclose(output(loaded), output(policy), atol=1e-6)


def test_an_adapter_with_another_rank_in_each_layer(root, tmp_path):
    folder = write_model(root, "sd")
    policy, file, state = adapter_of(folder, "sd", tmp_path, lora_rank=4)
    key = next(k for k in sorted(state) if "lora_A" in k)
    other = key.replace("lora_A", "lora_B")
    padded = {
        key: torch.cat([state[key], torch.zeros(2, state[key].shape[1])]),
        other: torch.cat([state[other], torch.ones(len(state[other]), 2)], 1),
    }
    save_file(state | padded, file)  # rank 6, the same product
    loaded = load_policy(configuration(folder, "sd"))
    loaded.load(file.parent)
    assert torch.allclose(output(loaded), output(policy), atol=1e-6)
    with pytest.raises(UserError, match=r"--lora-rank is 4, but .* holds an adapter with 4 and 6; leave it out"):
        load_policy(configuration(folder, "sd")).load(file.parent, rank=4)


def test_adapters_that_do_not_fit_say_where(root, tmp_path, capsys):
    """Another model's, by its first layer that this one lacks or has in another shape; damaged ones; none at all."""
    sd = write_model(root, "sd")
    _, of_xl, _ = adapter_of(write_model(root, "sdxl"), "sdxl", tmp_path / "xl")
    _, of_sd3, _ = adapter_of(write_model(root, "sd3"), "sd3", tmp_path / "sd3")
    _, of_sd, own = adapter_of(sd, "sd", tmp_path / "sd")
    cases = [
        (of_xl, "another model's: .*attn2.*is of shape .* for a layer of shape"),
        (of_sd3, "another model's: it has .*transformer.* and this one no layer"),
    ]
    key = sorted(own)[0]
    for label, changed, message in (
        ("missing", {k: v for k, v in own.items() if k != key}, "and its other half missing"),
        ("renamed", {k.replace("attn1", "attn7"): v for k, v in own.items()}, "attn7"),
        ("rank", own | {key: own[key][:1].contiguous()}, "and its other half"),
        ("foreign", own | {"unet.conv_in.weight": torch.ones(1)}, "conv_in.weight, which is no LoRA's"),
        ("encoder", {"text_encoder.x.lora_A.weight": torch.ones(1, 1)}, "no weights for the unet"),
    ):
        path = tmp_path / label / of_sd.name
        path.parent.mkdir()
        save_file(changed, path)
        cases.append((path, message))
    torn = tmp_path / "torn" / of_sd.name
    torn.parent.mkdir()
    torn.write_bytes(of_sd.read_bytes()[:-9])
    cases.append((torn, "can't be loaded|damaged"))
    for path, message in cases:
        train = ["train", "--reward", "colourfulness", "--eval-rewards", "--device", "cpu", "--adapter", path]
        evaluate = ["evaluate", "--rewards", "colourfulness", "--device", "cpu", "--weights", path.parent]
        for command in (train, evaluate):
            error = refused([*command, "--model", sd], capsys)
            assert re.search(message, error), error
            assert str(path.parent) in error
    error = refused([*evaluate, "--model", sd, "--weights", tmp_path / "sd" / "adapter", "--lora-rank", 8], capsys)
    assert "--lora-rank is 8, but" in error


def test_damaged_weights_of_full_finetuning_are_refused(copy, root, tmp_path, capsys):
    sd, trained = write_model(root, "sd"), copy("sd")
    evaluate = ["evaluate", "--rewards", "colourfulness", "--device", "cpu", "--model", sd, "--weights", trained]
    file = weights_of(trained / "unet")
    whole = load_file(file)
    save_file({k: v for k, v in whole.items() if k != "conv_in.bias"}, file, {"format": "pt"})
    assert "unet/diffusion_pytorch_model.safetensors lacks the tensor conv_in.bias" in refused(evaluate, capsys)
    shutil.rmtree(trained)
    copy("sdxl").rename(trained)
    assert "another model's (add_embedding.linear_1.bias is [" in refused(evaluate, capsys)


def test_the_embedded_model_is_a_pipeline_of_diffusers():
    pipeline = sdpo_bench.embedded_pipeline()
    assert type(pipeline) is StableDiffusionPipeline
    options = {"num_inference_steps": 4, "guidance_scale": 1, "generator": torch.Generator().manual_seed(0)}
    images = pipeline("cat", output_type="pt", **options).images
    assert images.shape == (1, 3, 32, 32)
    alignment = load_reward("alignment")
    assert alignment(images, ["cat"]) > 0.6 > 0.2 > alignment(images, ["whale"])
