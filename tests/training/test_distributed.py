"""Several processes on the CPU (gloo) train the run that one process trains."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from support import processes
from support.processes import same

from sdpo_bench import distributed, interruption
from sdpo_bench.config import RunConfig
from sdpo_bench.distributed import SINGLE_PROCESS, OtherFailed, ProcessGroup
from sdpo_bench.errors import UserError
from sdpo_bench.methods import METHODS
from sdpo_bench.policies import load_policy
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.reader import load_run
from sdpo_bench.rewards import load_reward, load_rewards
from sdpo_bench.rewards.colourfulness import Colourfulness
from sdpo_bench.training.advantages import PerPromptNormalizer
from sdpo_bench.training.checkpoint import load_checkpoint
from sdpo_bench.training.evaluation import evaluate
from sdpo_bench.training.loop import check_shares, train
from sdpo_bench.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
KINDS = [*itertools.product(("sdpo", "ddpo", "rebel"), ("lora", "full")), ("ddpo_critic", "lora")]


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory):
    prompts = tmp_path_factory.mktemp("prompts")
    (prompts / "seen").write_text("cat\ndog\nhorse\n")
    (prompts / "unseen").write_text("wolf\nfox\n")
    return RunConfig(
        prompts=str(prompts / "seen"),
        unseen_prompts=str(prompts / "unseen"),
        model=str(tiny_model),
        reward="colourfulness",
        eval_rewards=("jpeg_compressibility",),
        steps=3,
        epochs=2,
        pairs=4,
        pairs_per_update=4,
        learning_rate=1e-4,
        eval_every=1,
        eval_steps=(1, 3),
        eval_noises=2,
        eval_last_rewards=("kid_start", "vendi"),
        checkpoint_every=1,
        device="cpu",
    )


class Recorder(PerPromptNormalizer):
    """A normaliser that keeps what it was given and what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __call__(self, prompts, returns, known=None):
        advantages = super().__call__(prompts, returns, known)
        self.calls.append((prompts, returns.clone(), advantages))
        return advantages


def two_epochs(ranks: ProcessGroup, config: RunConfig) -> dict[str, Any]:
    trainer = Trainer(config, load_policy(config), load_reward(config.reward), ranks)
    trainer.normaliser = recorder = Recorder()
    on_policy = trainer.check_on_policy(1)
    rows = [trainer.train_epoch(epoch).to_row() for epoch in (1, 2)]
    weights = {name: value.clone() for name, value in trainer.policy.state_dict().items()}
    return {"on_policy": on_policy, "rows": rows, "calls": recorder.calls, "weights": weights}


def all_kinds(ranks: ProcessGroup, config: RunConfig, kinds: list[tuple[str, str]], folder: Path) -> None:
    found = {}
    for method, finetune in kinds:
        # Adam makes a step of a gradient that is nothing but rounding, too: a full finetuning's rate bounds it.
        rate = 1e-5 if finetune == "full" else 1e-4
        changes = {"method": method, "finetune": finetune, "label": "", "learning_rate": rate, "steps": 2}
        found[method, finetune] = two_epochs(ranks, dataclasses.replace(config, **changes))
    torch.save(found, folder / f"{ranks.size}-{ranks.rank}")


@pytest.fixture(scope="module")
def runs(config, tmp_path_factory):
    """Of every kind, two epochs by 1, 2, 3 and 4 processes: {size: [found of each rank]}."""
    folder = tmp_path_factory.mktemp("runs")
    all_kinds(SINGLE_PROCESS, config, KINDS, folder)
    for size in (2, 3, 4):
        assert processes.run(size, all_kinds, config, KINDS if size != 3 else KINDS[:1], folder) == [0] * size
    return {
        size: [torch.load(folder / f"{size}-{rank}", weights_only=False) for rank in range(size)]
        for size in (1, 2, 3, 4)
    }


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_the_same_run(runs, kind, size):
    """3 processes share the 4 pairs of an optimiser step unevenly."""
    if size == 3 and kind != KINDS[0]:
        pytest.skip("uneven shares are tried with one kind")
    compare(runs[1][0][kind], [found[kind] for found in runs[size]])


def compare(one: dict[str, Any], several: list[dict[str, Any]]) -> None:
    for found in several:
        assert found["on_policy"] == 0
        (prompts, rewards, advantages), (later_prompts, later, later_advantages) = found["calls"]
        assert prompts == one["calls"][0][0]
        assert torch.equal(rewards, one["calls"][0][1])
        assert torch.equal(advantages, one["calls"][0][2])
        assert later_prompts == one["calls"][1][0]
        assert torch.allclose(later, one["calls"][1][1], atol=1e-5)  # of weights that are equal to 1e-6
        assert torch.allclose(later_advantages, one["calls"][1][2], atol=2e-2)  # divided by small deviations
        for name, weight in found["weights"].items():
            assert torch.equal(weight, several[0]["weights"][name]), "the ranks differ"
            assert (weight - one["weights"][name]).abs().max() < 1e-6
        for row, expected in zip(found["rows"], one["rows"], strict=True):
            counters = ("samples", "reward_queries", "optimiser_steps", "model_evaluations")
            assert all(row[name] == expected[name] for name in counters)
            for name in ("loss", "reward_mean", "reward_std", "clip_fraction", "kl", "log_ratio_max", "grad_norm"):
                assert row[name] == pytest.approx(expected[name], rel=2e-3, abs=1e-5), name
            explained, of_one = (x.get("explained_variance", []) for x in (row, expected))
            assert explained == pytest.approx(of_one, rel=2e-2)


OTHERS = [name for name in METHODS if not any(name == method for method, _ in KINDS)]


ONE_OF_A_KIND = list({METHODS[name].learns_from: name for name in OTHERS}.values())


def one_epoch_of_each(ranks: ProcessGroup, config: RunConfig, methods: list[str], folder: Path) -> None:
    """Counts and gradients of one epoch, which is one update, of each method."""
    config, found = dataclasses.replace(config, finetune="full", steps=2), {}
    policy, reward = load_policy(config), load_reward(config.reward)
    weights = [p.detach().clone() for p in policy.parameters]
    for method in methods:
        size = None if METHODS[method].group_size == 2 else 4
        given = dataclasses.replace(config, method=method, label="", group_size=size, updates="trajectory")
        trainer = Trainer(given, policy, reward, ranks)
        row = trainer.train_epoch(1).to_row()
        counts = ("samples", "reward_queries", "model_evaluations", "backward_passes", "reward_gradients")
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters])
        found[method] = [row[name] for name in counts], gradient
        with torch.no_grad():  # the next method begins at the same weights
            for p, value in zip(policy.parameters, weights, strict=True):
                p.copy_(value)
    torch.save(found, folder / f"{ranks.size}-{ranks.rank}")


@pytest.fixture(scope="module")
def epochs(config, tmp_path_factory):
    """What an epoch of 1, 2 and 3 processes finds: {size: [found of each rank]}. 3 share the 4 groups unevenly."""
    folder = tmp_path_factory.mktemp("epochs")
    one_epoch_of_each(SINGLE_PROCESS, config, OTHERS, folder)
    for size, methods in ((2, ONE_OF_A_KIND), (3, OTHERS)):
        assert processes.run(size, one_epoch_of_each, config, methods, folder) == [0] * size
    return {size: [torch.load(folder / f"{size}-{rank}") for rank in range(size)] for size in (1, 2, 3)}


@pytest.mark.parametrize("method", OTHERS)
def test_the_same_epoch(epochs, method):
    counts, gradient = epochs[1][0][method]
    assert gradient.norm() > 0
    others = [found for size in (2, 3) for found in epochs[size] if method in found]
    assert len(others) == 3 + 2 * (method in ONE_OF_A_KIND)
    for found in others:
        assert found[method][0] == counts
        assert (found[method][1] - gradient).norm() < 1e-5 * gradient.norm(), "more than rounding in float32"


def test_the_runs_differ_by_kind_and_train(runs, config):
    """What makes the test above one that can fail: weights move by far more than its tolerance."""
    start = load_policy(config).state_dict()
    for method in ("sdpo", "ddpo", "rebel"):
        moved = [(runs[1][0][method, "lora"]["weights"][name] - value).abs().max() for name, value in start.items()]
        assert max(moved) > 1e-4


def without_sum(ranks: ProcessGroup, config: RunConfig, folder: Path) -> None:
    ranks.all_reduce_sum = lambda tensors: None
    for finetune in ("lora", "full"):
        with pytest.raises(UserError if ranks.is_main else OtherFailed, match="no longer have the same weights"):
            two_epochs(ranks, dataclasses.replace(config, finetune=finetune))
    (folder / str(ranks.rank)).touch()


def test_gradients_that_are_not_summed_are_found_out(config, tmp_path):
    """As in trainers that leave a LoRA's gradients out: each process goes its own way, and the run says so."""
    assert processes.run(2, without_sum, config, tmp_path) == [0, 0]
    assert len(list(tmp_path.iterdir())) == 2


def run_all(ranks: ProcessGroup, config: RunConfig, folder: Path, resume: bool) -> None:
    train(config, folder, resume=resume, ranks=ranks)


def broken_second_epoch(ranks: ProcessGroup, config: RunConfig, folder: Path, notes: Path, first: int = 5) -> None:
    """The reward model fails in the last process, in epoch 2 or another time, until it is given up."""
    original, calls = Colourfulness.__call__, itertools.count()

    def failing(self, images, prompts):
        # The first evaluation asks it for 2 step counts, epoch 1 once, the evaluation after it for 2 again.
        if next(calls) >= first and ranks.rank == ranks.size - 1:
            raise ConnectionError("no answer")
        return original(self, images, prompts)

    Colourfulness.__call__ = failing
    try:
        train(config, folder, ranks=ranks)
    except Exception as error:
        (notes / str(ranks.rank)).write_text(f"{type(error).__name__}: {error}")


def test_a_failure_in_one_process_ends_all_and_any_number_goes_on(config, tmp_path):
    """The state is saved once, and taken up by 1 and by 4 processes, to the run that one makes without a failure."""
    name = run_id(config.to_json())
    whole, parts = tmp_path / "whole" / name, tmp_path / "parts" / name
    train(config, whole)
    assert processes.run(2, broken_second_epoch, config, parts, tmp_path) == [0, 0]
    said = "reward colourfulness raised ConnectionError (no answer) for a picture of this run, twice"
    saved = f"UserError: {said}; the state after epoch 1 is saved, continue with --resume"
    assert (tmp_path / "1").read_text() == saved
    assert (tmp_path / "0").read_text() == f"OtherFailed: process 1: UserError: {said}"
    assert load_checkpoint(parts / "checkpoint.pt", name)["epoch"] == 1
    assert json.loads((parts / "provenance.json").read_text())["processes"] == 2
    again = shutil.copytree(parts, tmp_path / "again" / name)
    train(config, parts, resume=True)
    same(whole, parts)
    assert processes.run(4, run_all, config, again, True) == [0] * 4
    same(whole, again)
    assert not list(again.glob("*.tmp")) + list(again.glob("checkpoint.pt")) + list(again.glob(".lock"))


def refusals(ranks: ProcessGroup, config: RunConfig, notes: Path) -> None:
    with pytest.raises(UserError if ranks.rank == 0 else OtherFailed, match="3 processes, but --pairs-per-update is 2"):
        train(dataclasses.replace(config, pairs_per_update=2), notes / "run", ranks=ranks)
    if ranks.is_main:
        (notes / "locked").mkdir()

    with pytest.raises(UserError, match="all machines of a run must see its folder"):
        load_checkpoint(notes / "checkpoint.pt", "run")

    def fail() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError if ranks.is_main else OtherFailed, match="No space left"):
        ranks.run_on_main(fail)
    assert ranks.gather(ranks.rank) == [0, 1, 2]
    x = [torch.full((3,), float(ranks.rank)), torch.tensor(2.0)]
    distributed.BUCKET = 3  # two messages
    ranks.all_reduce_sum(x)
    assert x[0].tolist() == [3.0] * 3
    assert x[1] == 6
    (notes / str(ranks.rank)).touch()


def test_errors_reach_all_processes(config, tmp_path):
    assert processes.run(3, refusals, config, tmp_path) == [0] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "locked"]


def test_sharded_training_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=r"configured for FSDP, which is not supported; launch .* and use --shard"):
        distributed.join("cpu")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(UserError, match="there is only one; leave it out"):
        distributed.join("cpu", shard=True)


def sharded_epochs(ranks: ProcessGroup, config: RunConfig, kinds: list[str], folder: Path) -> None:
    """As `all_kinds`, of a sharded model; and what a process really holds of it."""
    ranks.sharded = True
    found = {}
    for method in kinds:
        given = dataclasses.replace(config, method=method, finetune="full", label="", learning_rate=1e-5, steps=2)
        policy = load_policy(given)
        total = sum(p.numel() for p in policy.parameters)
        policy.shard()
        held = sum(distributed.to_local(p).numel() for p in policy.parameters)
        assert held < 0.6 * total
        assert sum(distributed.to_local(p).numel() for p in policy._reference.parameters()) == held
        trainer = Trainer(given, policy, load_reward(given.reward), ranks)
        trainer.normaliser = recorder = Recorder()
        on_policy = trainer.check_on_policy(1)
        rows = [trainer.train_epoch(epoch).to_row() for epoch in (1, 2)]
        moments = [x for entry in trainer.optimiser.state_dict()["state"].values() for x in entry.values() if x.dim()]
        assert sum(distributed.to_local(x).numel() for x in moments) == 2 * held
        found[method, "full"] = {
            "on_policy": on_policy,
            "rows": rows,
            "calls": recorder.calls,
            "weights": trainer.weights()["weights"],
        }
    torch.save(found, folder / f"sharded-{ranks.rank}")


@pytest.fixture(scope="module")
def sharded(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    assert processes.run(2, sharded_epochs, config, ["sdpo", "rebel"], folder) == [0, 0]
    return [torch.load(folder / f"sharded-{rank}", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("method", ["sdpo", "rebel"])
def test_the_same_run_with_shards(runs, sharded, method):
    compare(runs[1][0][method, "full"], [found[method, "full"] for found in sharded])


def sharded_run(ranks: ProcessGroup, config: RunConfig, folder: Path, notes: Path | None = None) -> None:
    """All of a run; with `notes` only until the reward fails in the evaluation after epoch 1, which has another step
    count to come; the next time until the first process is killed in epoch 2."""
    ranks.sharded = True
    if notes is None:
        train(config, folder, resume=True, ranks=ranks)
    elif not (folder / "checkpoint.pt").exists():
        broken_second_epoch(ranks, config, folder, notes, first=3)
    else:

        def kill(event: dict[str, Any]) -> None:
            if (event["epoch"], event["phase"]) == (2, "train"):
                os.kill(os.getpid(), signal.SIGKILL)

        train(config, folder, resume=True, ranks=ranks, on_epoch=kill)


def evaluations(ranks: ProcessGroup, config: RunConfig, folder: Path) -> None:
    """Of weights that are not the model's own, by processes that share out prompts, and then weights too."""
    for sharded in (False, True):
        c = dataclasses.replace(config, finetune="full" if sharded else "lora")
        policy, generator = load_policy(c), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in policy.parameters:
                p += 0.05 * torch.randn(p.shape, generator=generator)
        if sharded and ranks.size > 1:
            ranks.sharded = True
            policy.shard()
        rows = evaluate(policy, c, load_rewards(c.eval_last_rewards), ranks)
        (folder / f"{c.finetune}-{ranks.size}-{ranks.rank}").write_text(json.dumps(rows))


def test_several_processes_compare_with_the_start(config, tmp_path):
    """The 5 prompts are shared out over 2 processes, which both get the values of one."""
    evaluations(SINGLE_PROCESS, config, tmp_path)
    assert processes.run(2, evaluations, config, tmp_path) == [0, 0]
    for finetune in ("lora", "full"):
        found = [json.loads((tmp_path / f"{finetune}-{name}").read_text()) for name in ("1-0", "2-0", "2-1")]
        assert found[0] == found[1] == found[2]
        for row in found[0]:
            assert list(row["values"]["seen"]) == ["cat", "dog", "horse"]
            assert all(value != 0 for values in row["values"]["seen"].values() for value in values), "untrained"


def test_a_sharded_run_goes_on(config, tmp_path):
    """After a failing reward and a kill, with shards and by one process without; to the run of one process, whose model
    plain diffusers loads. The two share 5 prompts."""
    config = dataclasses.replace(config, finetune="full", learning_rate=1e-5)
    name = run_id(config.to_json())
    whole, parts = tmp_path / "whole" / name, tmp_path / "parts" / name
    train(config, whole)
    assert processes.run(2, sharded_run, config, parts, tmp_path) == [0, 0]
    said = "reward colourfulness raised ConnectionError (no answer) for a picture of this run, twice"
    saved = f"UserError: {said}; the state after epoch 1 is saved, continue with --resume"
    assert (tmp_path / "1").read_text() == saved
    assert (tmp_path / "0").read_text() == f"OtherFailed: process 1: UserError: {said}"
    assert load_checkpoint(parts / "checkpoint.pt", name)["evaluated"] is False
    killed, other = processes.run(2, sharded_run, config, parts, tmp_path)
    assert killed == -signal.SIGKILL
    assert other
    assert load_checkpoint(parts / "checkpoint.pt", name)["epoch"] == 1
    again = shutil.copytree(parts, tmp_path / "again" / name)
    assert processes.run(2, sharded_run, config, parts) == [0, 0]
    same(whole, parts)
    assert json.loads((parts / "provenance.json").read_text())["sharded"] is True
    for file in ("model_index.json", "unet/config.json", "vae/config.json"):
        assert (parts / "model" / file).read_bytes() == (whole / "model" / file).read_bytes()
    plain = StableDiffusionPipeline.from_pretrained(parts / "model", safety_checker=None)
    assert type(plain.unet) is UNet2DConditionModel
    train(config, again, resume=True)
    same(whole, again)


def signalled_shards(ranks: ProcessGroup, config: RunConfig, folder: Path, notes: Path) -> None:
    """A signal comes to the last process in the first update of epoch 1; what each process says then."""
    original, calls = Trainer.update, itertools.count()

    def signalled(*arguments: Any) -> Any:
        if ranks.rank == ranks.size - 1 and next(calls) == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    Trainer.update, ranks.sharded = signalled, True
    try:
        with interruption.watched(launched=True):
            train(config, folder, ranks=ranks)
    except interruption.Interrupted as stop:
        (notes / str(ranks.rank)).write_text(f"{interruption.exit_code(stop)} {stop.said}")


def test_a_signal_stops_a_sharded_run_with_its_state_saved(config, tmp_path):
    """All processes stop after the same epoch, whose state has all their shards: the run goes on to the same end."""
    few = {"eval_rewards": (), "eval_last_rewards": (), "eval_steps": (1,), "eval_noises": 1, "steps": 2}
    more = {"checkpoint_every": 0, "eval_every": 9, "finetune": "full", "learning_rate": 1e-5}
    config = dataclasses.replace(config, **few, **more)
    name = run_id(config.to_json())
    whole, parts = tmp_path / "whole" / name, tmp_path / "parts" / name
    assert processes.run(2, signalled_shards, config, parts, tmp_path) == [0, 0]
    assert {(tmp_path / rank).read_text() for rank in "01"} == {"143 the state after epoch 1 is saved"}
    state = load_checkpoint(parts / "checkpoint.pt", name)
    assert state["epoch"] == 1
    assert processes.run(2, sharded_run, config, parts) == [0, 0]
    train(config, whole)
    same(whole, parts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune": "lora"}, "use it with --finetune full"),
        ({"pairs": 6, "pairs_per_update": 3}, "2 processes, but --pairs-per-update is 3; expected a multiple"),
        ({"rows": 0}, "--rows is 0; expected at least 4"),
    ],
)
def test_what_shards_cannot_do(config, changes, message):
    ranks = ProcessGroup()
    ranks.size, ranks.sharded = 2, True
    with pytest.raises(UserError, match=message):
        check_shares(dataclasses.replace(config, **{"finetune": "full"} | changes), ranks)


def test_buckets_keep_the_order_and_bound_the_size(monkeypatch):
    monkeypatch.setattr(distributed, "BUCKET", 4)
    sizes = [[x.numel() for x in bucket] for bucket in distributed.buckets(torch.zeros(n) for n in (1, 3, 1, 9, 2, 2))]
    assert sizes == [[1, 3], [1], [9], [2, 2]]
    assert list(distributed.buckets([])) == []


def test_the_real_command(config, tmp_path):
    """Two processes as a user starts them: one report, one set of records, the values of one process."""
    given = dataclasses.replace(config, epochs=1)
    # On a machine without GPUs too --multi_gpu makes accelerate start the processes by torchrun.
    launch = [
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    command = [sys.executable, "-m", *launch, "-m", "sdpo_bench", "train", "--device", "cpu"]
    for name in (
        "prompts",
        "unseen_prompts",
        "model",
        "reward",
        "eval_rewards",
        "steps",
        "epochs",
        "pairs",
        "pairs_per_update",
        "eval_every",
        "eval_steps",
        "eval_noises",
        "eval_last_rewards",
        "checkpoint_every",
    ):
        value = getattr(given, name)
        command += ["--" + name.replace("_", "-"), *map(str, value if isinstance(value, tuple) else [value])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("records: ") == 1
    folder = tmp_path / "runs" / "train" / "raw" / run_id(given.to_json())
    record = load_run(folder)
    assert record.done is not None
    assert record.provenance["processes"] == 2
    train(given, tmp_path / "one" / folder.name)
    expected = load_run(tmp_path / "one" / folder.name)
    assert record.train[0]["reward_mean"] == expected.train[0]["reward_mean"]
    assert [row["values"] for row in record.eval[:4]] == [row["values"] for row in expected.eval[:4]]


@pytest.mark.parametrize(
    ("dense", "steps", "last"), [("anchored", 4, True), ("exact", 4, False), ("anchored", 2, True)]
)
@pytest.mark.parametrize("name", ["sdpo", "ddpo", "rebel", "prdp"])
def test_the_cost_model(config, name, dense, steps, last):
    """The formulas of docs/scale.md against the counters, and bytes against tensors."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "scale.md").read_text(), re.M | re.S)
    page: dict[str, Any] = {}
    exec(code, page)
    changes = {"method": name, "dense": dense, "steps": steps, "train_last_step": last, "label": "", "finetune": "full"}
    given = dataclasses.replace(config, **changes, pairs=6, pairs_per_update=3)
    trainer = Trainer(given, load_policy(given), load_reward(given.reward))
    method, row = METHODS[name], trainer.train_epoch(1).to_row()
    used = dense if method.dense else "terminal"
    costs = page["costs"](
        6,
        steps,
        given.trained_steps,
        3,
        given.resolved_updates,
        used,
        method.reference,
        method.learns_from == "trajectory",
    )
    assert costs == {name: row[name] for name in costs}
    trajectory = trainer.sample(trainer.plan(1))
    elements = 4 * 8 * 8
    stored = [trajectory.latents, trajectory.predicted_clean]
    assert sum(x.numel() * x.element_size() for x in stored) == 4 * 2 * (2 * steps + 1) * 6 * elements
    weights = sum(p.numel() for p in trainer.policy.parameters)
    state = trainer.state()
    moments = [x for entry in state["optimiser"]["state"].values() for x in entry.values() if x.dim()]
    assert sum(x.numel() * x.element_size() for x in moments) == 8 * weights
    assert sum(x.numel() * x.element_size() for x in state["weights"].values()) == 4 * weights
