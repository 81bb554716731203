"""The paper's setting: its runs, what they need, and the whole path with a tiny model in place of SD-Turbo."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import queue
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import write_tiny_model, write_tokenizer
from support.processes import same
from support.table_files import markdown_tables

from sdpo_bench.analysis import paper
from sdpo_bench.cli.main import main
from sdpo_bench.cli.tables import check_tables
from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.experiments import cost_model, pool, profiles, runner, summary, variants, workers
from sdpo_bench.experiments.cost_model import GPUCost, disk, evaluated_images
from sdpo_bench.experiments.profiles import build
from sdpo_bench.experiments.progress import Progress
from sdpo_bench.experiments.runs import Run, plan
from sdpo_bench.experiments.workers import Worker
from sdpo_bench.records.files import RecordError
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.packing import unpack_profile
from sdpo_bench.records.reader import load_profile
from sdpo_bench.rewards import PRETRAINED
from sdpo_bench.rewards._clip import VIT_L
from sdpo_bench.training import evaluation
from sdpo_bench.training.checkpoint import load_checkpoint
from sdpo_bench.training.loop import train

ROOT = Path(__file__).parents[2]


def test_runs_are_the_papers():
    configs = build("sd-turbo")
    trained = [config for config in configs if config.epochs]
    assert len(trained) == len(configs) - 1 == 4 * 7
    assert {config.method for config in trained} == set(variants.STUDIED)
    assert {c.seed for c in trained} == {0}
    assert {c.model for c in configs} == {"stabilityai/sd-turbo"}
    assert {c.eval_steps for c in configs} == {(1, 2, 4, 8, 16, 50)}
    with open(ROOT / "results" / "paper" / "settings.csv", newline="") as file:
        published = {row["reward"]: row for row in csv.DictReader(file)}
    assert published.keys() == profiles.SD_TURBO_REWARDS.keys()
    for config in trained:
        row = {key: float(value) for key, value in published[config.reward].items() if key != "reward"}
        batch = row["batch_size"] * row["gradient_accumulation_steps"] * row["gpus"]
        assert config.learning_rate == row["learning_rate"]
        assert config.pairs_per_update == batch
        assert config.pairs == row["pairs_per_epoch"]
        assert config.steps == row["sampling_steps"]
        # Of Aesthetic the published figure has more epochs than the published configuration.
        length = paper.SAMPLES / (2 * config.pairs) if config.reward == "aesthetic" else row["epochs"]
        assert config.epochs == length
        assert (config.finetune, config.lora_rank, config.lora_alpha) == ("lora", row["lora_rank"], row["lora_alpha"])
        assert config.eval_rewards == tuple(profiles.SD_TURBO_REWARDS)


def test_narrowing_makes_some_of_the_same_runs():
    def names(configs: list[RunConfig]) -> list[str]:
        return [run_id(config.to_json()) for config in configs]

    everything = names(build("sd-turbo", None, [0, 1]))
    narrow = names(build("sd-turbo", ["sdpo", "ddpo"], [1], rewards=["hpsv2"]))
    assert len(narrow) == 3
    assert set(narrow) < set(everything)
    elsewhere = build("sd-turbo", model="/data/sd-turbo")
    assert {(c.model, c.revision) for c in elsewhere} == {("/data/sd-turbo", None)}
    assert build("sd-turbo", revision="main")[1].revision == "main"
    with pytest.raises(UserError, match="unknown reward of this profile 'jpeg'; choose one of: aesthetic, hpsv2, imag"):
        build("sd-turbo", rewards=["jpeg"])
    with pytest.raises(UserError, match="profile quick does not take --model, --rewards; these do: sd-turbo"):
        build("quick", rewards=["aesthetic"], model="x")


def test_rates_of_methods(tmp_path, monkeypatch, capsys):
    methods, own = ["sdpo", "ddpo", "ddpo_dense"], {"DDPO": 3e-5, "DDPO-dense": 1e-4}
    plain = build("sd-turbo", methods)
    given = build("sd-turbo", methods, learning_rates=["ddpo=3e-5", "ddpo-dense=1e-4"])
    for config, before in zip(given, plain, strict=True):
        rate = own.get(config.label, profiles.SD_TURBO_REWARDS[config.reward]["learning_rate"])
        assert config == replace(before, learning_rate=rate)
    for text, words in {
        "dpo=1e-4": "unknown method in --learning-rates 'dpo'; choose one of: ",
        "rebel=1e-4": "rebel is not run; add it to --methods, or leave it out here",
        "ddpo=1e-5": "ddpo has a rate already",
        **dict.fromkeys(("sdpo=0", "sdpo=-1e-4", "sdpo=nan", "sdpo=inf", "sdpo=fast", "sdpo"), "expected METHOD=RATE"),
    }.items():
        with pytest.raises(UserError, match=words):
            build("sd-turbo", methods, learning_rates=["ddpo=3e-5", text])
    with pytest.raises(UserError, match="profile quick does not take --learning-rates; these do: sd-turbo"):
        build("quick", learning_rates=["ddpo=1e-4"])
    monkeypatch.chdir(tmp_path)
    command = ["reproduce", "--profile", "sd-turbo", "--methods", "ddpo", "--learning-rates", "ddpo=3e-5", "--dry-run"]
    assert main(command) == 0
    (folder,) = {run.folder.name for run in plan(tmp_path, [given[2]], GPUCost())}
    assert folder in capsys.readouterr().out


def test_numbers_of_the_page():
    """Its first command is the one for the paper's figure, and what it says of its cost is the estimate's."""
    page = (ROOT / "docs" / "sd_turbo.md").read_text()
    words = next(line for line in page.splitlines() if line.startswith("nox ")).split()
    methods, seeds = (words[words.index(flag) + 1 :][:count] for flag, count in (("--methods", 4), ("--seeds", 5)))
    runs = build("sd-turbo", methods, map(int, seeds), rewards=["aesthetic"])
    assert {config.label for config in runs[1:]} == {*paper.METHODS}
    assert f"These are {len(runs) - 1} runs" in page
    assert f": {sum(map(GPUCost().seconds, runs)) / 3600:.0f} GPU hours by the estimate" in page
    sdpo, dense = map(GPUCost().seconds, build("sd-turbo", ["sdpo", "ddpo_dense"], rewards=["aesthetic"])[1:])
    assert f"takes {dense / sdpo:.1f}\ntimes SDPO's" in page or f"takes {dense / sdpo:.1f} times SDPO's" in page


def test_newer_methods_may_be_named(monkeypatch):
    """With as many samples an epoch and an update; a method that needs the reward's gradient, where there is one."""
    newer = [*variants.RECENT, *variants.GROUPS]
    configs = build("sd-turbo", newer)[1:]
    assert {c.label for c in configs} == {variants.VARIANTS[name].label for name in newer}
    assert len(configs) == 4 * len(newer)
    for config in configs:
        own = profiles.SD_TURBO_REWARDS[config.reward]
        assert config.samples_per_group * config.pairs == 256
        assert config.samples_per_group * config.pairs_per_update == 2 * own["pairs_per_update"]
    monkeypatch.setitem(profiles.SD_TURBO_REWARDS, "jpeg_compressibility", profiles.SD_TURBO_REWARDS["aesthetic"])
    with pytest.raises(UserError, match=r"^--reward jpeg_compressibility: .* has no gradient, which DRaFT learns from"):
        build("sd-turbo", ["ddpo", "draft"], rewards=["jpeg_compressibility"])


def test_counts_of_arithmetic_are_the_architectures():
    """SD-Turbo's UNet and VAE, without memory for their weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from peft import LoraConfig
    from torch.utils.flop_counter import FlopCounterMode

    from sdpo_bench.policies.base import LORA_TARGETS

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        unet.requires_grad_(False).add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=LORA_TARGETS))
        unet.to("meta")
        latent, text, time = torch.zeros(1, 4, 64, 64), torch.zeros(1, 77, 1024), torch.zeros(1)
        trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
        with FlopCounterMode(display=False) as forward:
            output = unet(latent, time, text).sample.sum()
        with FlopCounterMode(display=False) as backward:
            output.backward()
        with torch.no_grad(), FlopCounterMode(display=False) as decode:
            vae.decode(latent)
    assert trained == 4 * cost_model.LORA_WEIGHTS
    cost = GPUCost()
    assert forward.get_total_flops() / 1e12 == pytest.approx(cost.forward, rel=0.01)
    # On this device attention's gradient is counted without what fused kernels compute anew.
    assert 0.9 < backward.get_total_flops() / 1e12 / cost.backward <= 1
    assert decode.get_total_flops() / 1e12 == pytest.approx(cost.decode, rel=0.01)


def test_hours_by_hand():
    """SDPO on Aesthetic: 128 pairs, K = 50, 114 epochs; 23 evaluations (the last at the end) of 45 prompts with 4
    noises, at 81 steps."""
    config = build("sd-turbo", ["sdpo"], rewards=["aesthetic"])[1]
    sample, train = 114 * 128 * 99 * 0.804, 114 * 128 * 99 * (0.804 + 0.973)
    decode = 114 * 128 * 5 * 2.515
    evaluate = 23 * 180 * (81 * 0.804 + 6 * 2.515)
    seconds = (sample + train + decode + evaluate) / (989 * 0.4)
    assert GPUCost(startup=0).seconds(config) == pytest.approx(seconds)
    assert GPUCost(startup=0, utilisation=0.1, peak=100).seconds(config) == pytest.approx(seconds * 39.56)
    assert evaluated_images(config) == 23 * 180
    by_method = {c.method: GPUCost().seconds(c) for c in build("sd-turbo", rewards=["aesthetic"])[1:]}
    # What needs the reference's log-probs, or all before the gradient, costs a pass more for each; SDPO more queries.
    assert by_method["ddpo"] < by_method["sdpo"] == by_method["sdpo_causal"] < by_method["d3po"] == by_method["rebel"]
    queries = 114 * 128 * (2 * 50 - 1 - 5)  # of DDPO-dense, which scores every step, more than SDPO's
    assert by_method["ddpo_dense"] - by_method["sdpo"] == pytest.approx(queries * 2.515 / (989 * 0.4))
    assert by_method["prdp"] - by_method["rebel"] == pytest.approx(by_method["rebel"] - by_method["ddpo"])
    for changes in ({"utilisation": 0.0}, {"utilisation": 1.5}, {"peak": 0.0}):
        with pytest.raises(UserError, match=r"--utilisation is|--peak-tflops is"):
            GPUCost(**changes)


def test_records_take_the_space_that_is_expected(tmp_path):
    """Held against the folders of committed runs, of the embedded model with a prompt list of the same kind."""
    unpack_profile(ROOT / "results" / "quick", tmp_path)
    for record in load_profile(tmp_path)[:2]:
        config = profiles.config_from_json(record.config)
        names = ("config.json", "provenance.json", "done.json", "train.jsonl", "eval.jsonl")
        real = sum((record.folder / name).stat().st_size for name in names if (record.folder / name).exists())
        assert 0.7 < disk(config)["records"] / real < 1.4
    config = build("sd-turbo", ["sdpo"], rewards=["aesthetic"])[1]
    assert disk(config)["adapters"] == 4 * 829_952
    assert disk(config)["pictures"] == 3 * 8 * 6 * 512 * 512
    runs = [Run(config, Path("x"), 1.0)] * 10
    few, many = (summary.space(runs, workers) for workers in (1, 4))
    assert "adapters 0.03" in few
    assert few != many


def test_seconds_of_finished_runs_replace_the_assumption(tmp_path):
    config = build("sd-turbo", ["sdpo"], rewards=["aesthetic"])[1]
    folder = tmp_path / "sd_turbo" / "raw" / "x"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_json()))
    (folder / "provenance.json").write_text('{"device": "cuda: x"}')
    spent = {kind: 0.01 * amount for kind, amount in cost_model.work(config).items()}
    assumed = runner.estimate_costs(tmp_path / "sd_turbo", config, {})
    assert "assumed 40% of 989" in assumed.source
    (folder / "done.json").write_text(json.dumps({"seconds": spent}))
    measured = runner.estimate_costs(tmp_path / "sd_turbo", config, {"utilisation": None})
    assert measured.source == "1 recorded runs"
    assert measured.seconds(config) == pytest.approx(sum(spent.values()), abs=5)
    (folder / "provenance.json").write_text('{"device": "cuda: x", "processes": 4}')  # in as many GPU seconds
    shared = runner.estimate_costs(tmp_path / "sd_turbo", config, {})
    assert shared.seconds(config, 4) == pytest.approx(sum(spent.values()), abs=5)
    for other in (replace(config, device="cpu"), replace(config, model="/other/model")):  # of these there are none
        assert "assumed" in runner.estimate_costs(tmp_path / "sd_turbo", other, {}).source
    changed = runner.estimate_costs(tmp_path / "sd_turbo", config, {"utilisation": 0.2})
    assert "assumed 20%" in changed.source
    with pytest.raises(UserError, match="leave them out"):
        runner.estimate_costs(tmp_path, RunConfig(), {"peak": 1.0})


def test_dry_run_and_refusal_without_a_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert runner.reproduce("sd-turbo", rewards=["aesthetic"], workers=2, dry_run=True) == 0
    out = capsys.readouterr().out
    hours = sum(GPUCost().seconds(c) for c in build("sd-turbo", rewards=["aesthetic"])) / 3600
    assert f"\n{hours:.0f} GPU hours; " in out
    assert out.count("-aesthetic-k50-s0-") == 8
    assert "8 runs" in out
    assert "with 2 workers (estimated from counted operations at an assumed 40% of 989 TFLOP/s" in out
    with pytest.raises(UserError, match=r"profile sd_turbo needs GPUs, but torch finds no CUDA device.*--dry-run"):
        runner.reproduce("sd-turbo")
    with pytest.raises(UserError, match="--device cuda: torch finds no CUDA device"):
        runner.reproduce("quick", device="cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="--workers is 3; expected at most 2, since each takes 1 of the 2 GPUs"):
        runner.reproduce("sd-turbo", workers=3)
    monkeypatch.setattr(runner, "check_folder", lambda *_: pytest.fail("reached"))
    with pytest.raises(pytest.fail.Exception, match="reached"):  # three may share two GPUs
        runner.reproduce("quick", device="cuda", workers=3)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_curves_are_said_before_anything_runs(tmp_path, monkeypatch):
    def gone() -> None:
        raise RecordError("not there")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "load_curves", gone)
    with pytest.raises(RecordError, match="not there"):
        runner.reproduce("sd-turbo", device="cpu")
    assert not list(tmp_path.iterdir())


def test_rewards_are_loaded_as_the_configuration_says(monkeypatch):
    asked = {}
    monkeypatch.setattr(evaluation, "load_rewards", lambda specs, **options: asked.update(options, specs=specs))
    own = {"reward": "hpsv2", "eval_rewards": ("pickscore",), "reward_dtype": "float16", "reward_batch": 7}
    evaluation.evaluation_rewards(RunConfig(device="cpu", **own))
    expected = {"specs": ("hpsv2", "pickscore"), "dtype": torch.float16, "batch_size": 7}
    assert asked == expected | {"device": torch.device("cpu")}
    evaluation.evaluation_rewards(RunConfig(**own), torch.device("cuda:1"))
    assert asked["device"] == torch.device("cuda:1")


def test_every_worker_has_a_gpu_of_its_own(tmp_path, monkeypatch):
    """Also where a worker is replaced, and where CUDA_VISIBLE_DEVICES leaves some out."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert workers.gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-8d1e")
    assert workers.gpus() == ["5", "GPU-8d1e"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert workers.gpus() == []
    hired = []

    class Recorded:
        def __init__(self, number, events, gpus, processes):
            hired.append((number, gpus))
            self.number, self.events, self.errors, self.run = number, events, [], None
            events.put((self, {"kind": "ready"}))

        def give(self, run):
            self.run = run
            kind = "ended" if len(hired) == 2 and self.number == 2 else "locked"
            self.events.put((self, {"kind": kind, "message": "", "details": "", "full_disk": False}))

        def stop(self):
            pass

        terminate = stop

    monkeypatch.setattr(pool, "Worker", Recorded)
    configs = build("sd-turbo", rewards=["aesthetic"])
    runs = plan(tmp_path, configs, GPUCost())
    pool.execute(runs, 2, devices=["5", "GPU-8d1e"])
    assert hired == [(1, "5"), (2, "GPU-8d1e"), (2, "GPU-8d1e")]
    assert sorted(run.state for run in runs) == ["failed", *["locked"] * 7]
    hired[:] = [None] * 3  # no worker fails
    pool.execute(plan(tmp_path, configs, GPUCost()), 4, devices=["5", "GPU-8d1e"])
    assert hired[3:] == [(1, "5"), (2, "GPU-8d1e"), (3, "5"), (4, "GPU-8d1e")]


class Process:
    """Stands for a worker's process: says and does what it is told."""

    stderr = ("as it says",)

    def __init__(self, *_, env, **__):
        self.env, self.code, self.signals = env, None, 0
        self.lines: queue.SimpleQueue = queue.SimpleQueue()
        self.stdout = iter(self.lines.get, None)

    def say(self, **report):
        self.lines.put(json.dumps(report) + "\n")

    def die(self, code):
        self.code = code
        self.lines.put(None)

    def poll(self):
        return self.code

    def wait(self, *_):
        return self.code

    def kill(self):
        if self.code is None:
            self.die(-signal.SIGKILL)

    def terminate(self):
        self.signals += 1


@pytest.fixture
def worker_of(monkeypatch):
    """Makes a worker of so many processes, and says where its reports come."""
    monkeypatch.setattr(workers.subprocess, "Popen", Process)

    def make(*arguments):
        events: queue.SimpleQueue = queue.SimpleQueue()
        return Worker(1, events, *arguments), lambda: events.get(timeout=30)[1]

    return make


def test_a_workers_environment(monkeypatch, worker_of):
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "3,4")
    for given, seen in ((("4",), "4"), ((), "3,4")):
        (process,) = worker_of(*given)[0].processes
        assert process.env["CUDA_VISIBLE_DEVICES"] == seen
        assert process.env.get("RANK") == os.environ.get("RANK")
    found = [process.env for process in worker_of("3,4", 2)[0].processes]
    assert [(env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"]) for env in found] == [("0", "0", "2"), ("1", "1", "2")]
    assert {env["CUDA_VISIBLE_DEVICES"] for env in found} == {"3,4"}
    assert len({env["MASTER_PORT"] for env in found}) == 1


def failure(message: str) -> dict[str, object]:
    return {"kind": "failed", "message": message, "details": "", "full_disk": False}


def test_processes_of_a_worker_answer_as_one(worker_of):
    worker, report = worker_of(None, 2)
    first, second = worker.processes
    for say in ({"kind": "ready"}, {"kind": "done"}):
        second.say(**say)
        first.say(kind="progress", epoch=1)  # the others of this run come before its end
        assert report()["kind"] == "progress"
        first.say(**say)
        assert report() == say
    second.say(kind="other_failed")
    first.say(kind="locked", message="by another")
    assert report() == {"kind": "locked", "message": "by another"}
    worker.terminate()
    worker.terminate()
    assert (first.signals, second.signals) == (1, 1), "a second signal ends a process before it has saved its state"


def known(worker, number):
    """Waits until so many processes have answered."""
    end = time.monotonic() + 60
    while len(worker._answers) < number:
        assert time.monotonic() < end, worker._answers
        time.sleep(0.001)


@pytest.mark.parametrize("how", ["lost", "alone", "both"])
def test_a_process_that_fails_ends_the_others(worker_of, how):
    """One that waits for it for ever, or says that the connection broke: the cause is named."""
    worker, report = worker_of(None, 2)
    first, second = worker.processes
    if how == "lost":
        second.code = -signal.SIGKILL
        first.say(**failure("connection closed by peer"))
        first.die(1)
        expected = "process 1 of 2 ended with SIGKILL (out of memory?)"
    else:
        second.say(**failure("no answer of the reward"))
        if how == "both":
            known(worker, 1)
            first.say(**failure("connection closed by peer"))
            known(worker, 2)
        second.die(1)
        expected = "no answer of the reward"
    assert report() | {"details": ""} == failure(expected) | {"kind": "ended"}
    assert first.code is not None


# The whole path, on the CPU, with a tiny model in place of SD-Turbo ----------------------------------------------


@pytest.fixture(scope="module")
def sd_turbo_folder(tmp_path_factory) -> Path:
    """A tiny random model where a local copy of SD-Turbo would be."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "sd-turbo")


@pytest.fixture(scope="module")
def aesthetic_weights(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Random weights in the files of the Aesthetic reward, of two narrow layers; their digests by repository/file."""
    from transformers import CLIPModel

    folder = tmp_path_factory.mktemp("rewards")
    repos = ("openai/clip-vit-large-patch14", "christophschuhmann/improved-aesthetic-predictor")
    names = ("model.safetensors", "sac+logos+ava1-l14-linearMSE.pth")
    towers = replace(VIT_L, text=(48, 2, 12), vision=(64, 2, 16), projection=40, vocabulary=514)
    torch.manual_seed(0)
    write_tokenizer(folder / repos[0], length=77)
    CLIPModel(towers.config()).save_pretrained(folder / repos[0])
    (folder / repos[1]).mkdir(parents=True)
    widths = (40, 1024, 128, 64, 16, 1)
    layers = {number: torch.nn.Linear(*widths[i : i + 2]) for i, number in enumerate((0, 2, 4, 6, 7))}
    state = {f"layers.{number}.{k}": v for number, layer in layers.items() for k, v in layer.state_dict().items()}
    torch.save(state, folder / repos[1] / names[1])
    cls = PRETRAINED["aesthetic"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDPO_BENCH_WEIGHTS", str(folder))
        patch.setenv("SDPO_BENCH_CACHE", str(folder / "cache"))
        patch.setattr(cls, "towers", towers)
        patch.setattr(cls, "sources", tuple(replace(source, sha256={}) for source in cls.sources))
        yield {
            f"{repo}/{name}": hashlib.sha256((folder / repo / name).read_bytes()).hexdigest()
            for repo, name in zip(repos, names, strict=True)
        }


def small(monkeypatch, prompts: Path, *rewards: str, **changes: object) -> None:
    """Makes the profile's runs take seconds: these rewards, the given changes."""
    settings = {"learning_rate": 1e-4, "pairs_per_update": 2, "epochs": 1}
    monkeypatch.setattr(profiles, "SD_TURBO_REWARDS", dict.fromkeys(rewards, settings))
    prompts.write_text("cat\ndog\n")
    tiny = {"pairs": 2, "prompts": str(prompts), "eval_every": 1, "eval_noises": 1, "rows": 64, "pad_rows": 2}
    monkeypatch.setattr(profiles, "SD_TURBO", profiles.SD_TURBO | tiny | changes)


def test_the_whole_path(tmp_path, sd_turbo_folder, aesthetic_weights, monkeypatch, capsys):
    """The paper's methods on the Aesthetic reward, from files of weights to tables, figure and report; a small K is
    taken for the paper's."""
    monkeypatch.chdir(tmp_path)
    small(monkeypatch, tmp_path / "prompts.txt", "aesthetic", "colourfulness", steps=5)
    monkeypatch.setattr(paper, "SETTING", ("sd-turbo", "aesthetic", 5))

    def here(runs, workers, devices, processes):  # workers would not see the narrow reward
        assert (workers, devices, processes) == (1, [], 1)
        for run in runs:
            train(run.config, run.folder, resume=True)
            run.state = "done"

    monkeypatch.setattr(runner, "execute", here)
    methods = ["sdpo", "ddpo", "rebel", "d3po"]
    given = {"rewards": ["aesthetic"], "model": str(sd_turbo_folder), "device": "cpu", "workers": 1, "methods": methods}
    assert runner.reproduce("sd-turbo", **given) == 0
    folder = tmp_path / "runs" / "sd_turbo"
    records = {record.label: record for record in load_profile(folder)}
    assert records.keys() == {"pretrained", "SDPO", "DDPO", "REBEL", "D3PO"}
    for label, record in records.items():
        assert {(row["reward"], row["steps"]) for row in record.eval} == {
            (reward, steps) for reward in ("aesthetic", "colourfulness") for steps in (1, 2, 4, 8, 16, 50)
        }
        reward = record.provenance["rewards"]["aesthetic"]
        assert reward["weights_sha256"] == aesthetic_weights
        assert reward["scale"] == "ratings, about 1..10"
        assert "openai/clip-vit-large-patch14 (local copy)" in reward["revision"]
        if label != "pretrained":
            # What hours are computed from is what was counted.
            config = profiles.config_from_json(record.config)
            assert record.train[-1]["model_evaluations"] == sum(cost_model.passes(config).values())
            assert record.train[-1]["reward_queries"] == cost_model.work(config)["reward"]

    claims = (folder / "tables" / "claims_aesthetic.csv").read_text()
    assert claims.count("not decided,") == 35, "one seed decides nothing"
    assert "paper +0.73" in markdown_tables(folder)["claims_aesthetic_k5"]
    assert (folder / "figures" / "curves_samples_aesthetic_k5.svg").is_file()
    readme = (folder / "README.md").read_text()
    page = (folder / "report.html").read_text()
    assert "Published, SD-Turbo, Aesthetic Score" in page  # the paper's curves, on axes of their own
    assert "| reward aesthetic | " in readme
    assert "Protocol: shared (all methods have one learning rate" in readme
    assert check_tables([folder]) == 0
    assert "all files are what their records give" in capsys.readouterr().out

    (folder / "raw" / records["D3PO"].run_id / "done.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in (folder / "raw").glob("*/done.json")}
    assert runner.reproduce("sd-turbo", **given, resume=True) == 0
    after = {path: path.stat().st_mtime_ns for path in (folder / "raw").glob("*/done.json")}
    assert before.items() < after.items()
    assert "5 of 5 runs finished" in capsys.readouterr().out


def test_missing_weights_are_said_and_leave_nothing(tmp_path, sd_turbo_folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "weights"
    (weights / "THUDM" / "ImageReward").mkdir(parents=True)
    monkeypatch.setenv("SDPO_BENCH_WEIGHTS", str(weights))
    small(monkeypatch, tmp_path / "prompts.txt", "imagereward", steps=3, eval_steps=(1,))
    given = {"methods": ["sdpo"], "model": str(sd_turbo_folder), "device": "cpu", "workers": 1}
    with pytest.raises(UserError, match=r"hf download THUDM/ImageReward ImageReward\.pt --revision"):
        runner.reproduce("sd-turbo", **given)
    assert not (tmp_path / "runs").exists()


# Runs that several processes share --------------------------------------------------------------------------------


class Acting(Progress):
    """Kills the second process of DDPO's run once that is begun, and is interrupted during REBEL's."""

    seen: ClassVar[list[Worker]] = []

    def update(self, worker=None, reward=None):
        super().update(worker, reward)
        if worker is None or worker.run is None:
            return
        if worker not in self.seen:
            self.seen.append(worker)
        method, folder = worker.run.config.method, worker.run.folder
        if method == "ddpo" and (folder / "config.json").exists():
            worker.processes[1].kill()
        if method == "rebel" and worker.run.epoch:
            raise KeyboardInterrupt


def two_epochs(monkeypatch, place: Path) -> None:
    """Runs of two epochs, on rewards that need no weights. Passes are padded, so that a sample has the same numbers in
    larger and smaller ones."""
    settings = {"steps": 3, "epochs": 2, "eval_steps": (1, 2), "eval_start": True, "pad_rows": RunConfig.pad_rows}
    small(monkeypatch, place / "prompts.txt", "colourfulness", "jpeg_compressibility", **settings)
    monkeypatch.chdir(place)


@pytest.fixture(scope="module")
def shared(sd_turbo_folder, tmp_path_factory):
    """The profile with two processes for each run: runs by label, the exit code, what was printed."""
    place, text = tmp_path_factory.mktemp("shared"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(text):
        two_epochs(patch, place)
        # As REBEL is interrupted, its run is long.
        patch.setitem(variants.VARIANTS, "rebel", variants.Variant("rebel", "REBEL", {"epochs": 500}))
        patch.setattr(pool, "Progress", Acting)
        given = {"methods": ["sdpo", "ddpo", "rebel"], "model": str(sd_turbo_folder), "rewards": ["colourfulness"]}
        code = runner.reproduce("sd-turbo", **given, device="cpu", workers=1, processes_per_run=2)
        runs = plan(place / "runs" / "sd_turbo", build("sd-turbo", **given), GPUCost())
    return {run.config.label: run for run in runs}, code, text.getvalue()


def test_a_run_that_processes_share_is_the_run_of_one(shared, tmp_path):
    runs, _, _ = shared
    run = runs["SDPO"]
    assert run.name == run_id(run.config.to_json())
    train(replace(run.config, device="cpu"), tmp_path / run.name)
    same(run.folder, tmp_path / run.name)
    for label in ("start", "SDPO"):
        assert json.loads((runs[label].folder / "provenance.json").read_text())["processes"] == 2
        assert (runs[label].folder / "done.json").exists()


def test_a_killed_process_fails_its_run_and_no_other(shared):
    runs, _, text = shared
    assert f"{runs['DDPO'].name}: FAILED: process 1 of 2 ended with SIGKILL (out of memory?)" in text
    assert not (runs["DDPO"].folder / "done.json").exists()
    assert text.count("FAILED") == 1
    assert f"{runs['REBEL'].name}: begins at epoch 1 of 500" in text


def test_an_interruption_saves_a_run_that_processes_share(shared):
    runs, code, text = shared
    assert code == 130
    assert "--workers 1 --device cpu" in text
    assert "--processes-per-run 2 --resume" in text
    folder = runs["REBEL"].folder
    rows = (folder / "train.jsonl").read_text().splitlines()
    assert load_checkpoint(folder / "checkpoint.pt", folder.name)["epoch"] == len(rows) > 0
    assert not (folder / "done.json").exists()
    (first, second), last = ([process.poll() for process in worker.processes] for worker in Acting.seen)
    assert first in (-signal.SIGKILL, 1), "killed, or it ended sooner since the other was gone"
    assert (second, last) == (-signal.SIGKILL, [143, 143])


def test_one_process_resumes_runs_that_several_shared(shared, sd_turbo_folder, tmp_path, monkeypatch, capsys):
    """The finished ones stay; the one whose process was killed is made, and those of another reward."""
    two_epochs(monkeypatch, tmp_path)
    folder = tmp_path / "runs" / "sd_turbo"
    shutil.copytree(shared[0]["SDPO"].folder.parents[1], folder)
    done = {path: path.stat().st_mtime_ns for path in folder.glob("raw/*/done.json")}
    given = {"methods": ["sdpo", "ddpo"], "model": str(sd_turbo_folder), "device": "cpu", "workers": 1}
    with pytest.raises(UserError, match="already holds 4 runs: add --resume"):
        runner.reproduce("sd-turbo", **given)
    assert runner.reproduce("sd-turbo", **given, resume=True) == 0
    assert "5 of 5 runs finished" in capsys.readouterr().out
    now = {path: path.stat().st_mtime_ns for path in folder.glob("raw/*/done.json")}
    assert (len(done), len(now)) == (2, 5)
    assert done.items() < now.items()
    assert {record.config["reward"] for record in load_profile(folder)} == {"colourfulness", "jpeg_compressibility"}
    assert not [name for name in markdown_tables(folder) if name.startswith("claims")]


def test_refusals_of_shared_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def refused(words: str, processes: int, **given: object) -> None:
        with pytest.raises(UserError, match=words):
            runner.reproduce("sd-turbo", processes_per_run=processes, **given)

    refused("--processes-per-run is 0; expected at least 1", 0)
    refused("not for --launcher slurm; use a job array with --part", 2, launcher="slurm")
    refused("--processes-per-run is 3, but an optimiser step of SDPO on aesthetic takes 64 pairs", 3)
    refused(
        "--processes-per-run is 2, but .* of D3PO .an update a pair. .* takes 1 pairs", 2, methods=["d3po_pair_updates"]
    )
    refused("--processes-per-run is 4, each on a GPU of its own; expected at most 2", 4)
    refused("--workers is 2; expected at most 1, since each takes 2 of the 2 GPUs here", 2, workers=2)
    assert runner.groups_of(["0", "GPU-8d1e", "2", "3", "4"], 2) == ["0,GPU-8d1e", "2,3"]
    assert not list(tmp_path.iterdir())

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    given = {"rewards": ["aesthetic"], "methods": ["sdpo"]}
    assert runner.reproduce("sd-turbo", **given, processes_per_run=4, dry_run=True) == 0
    out = capsys.readouterr().out
    runs = build("sd-turbo", **given)
    assert "left with 2 workers of 4 processes each" in out
    cost = GPUCost()
    assert cost.seconds(runs[1], 4) == pytest.approx((cost.seconds(runs[1]) - cost.startup) / 4 + cost.startup)
    assert f"\n{sum(cost.seconds(run, 4) for run in runs) * 4 / 3600:.0f} GPU hours" in out
