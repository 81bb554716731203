"""Runs that are killed, whose disk is full, memory short, reward model broken: nothing is lost, nothing is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import multiprocessing
import os
import random
import shutil
import time

import processes
import pytest
import torch
from safetensors.torch import load_file

from sdpo_bench.checkpoint import load_checkpoint
from sdpo_bench.config import RunConfig
from sdpo_bench.errors import UserError
from sdpo_bench.policies import StableDiffusionPolicy, load_policy
from sdpo_bench.records import load_run, run_id
from sdpo_bench.recovery import score, within_memory
from sdpo_bench.rewards import load_reward
from sdpo_bench.rewards.colourfulness import Colourfulness
from sdpo_bench.trainer import Trainer, train

KILLS = 20


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory):
    prompts = tmp_path_factory.mktemp("prompts")
    (prompts / "seen").write_text("cat\ndog\nhorse\n")
    (prompts / "unseen").write_text("wolf\n")
    return RunConfig(
        prompts=str(prompts / "seen"),
        unseen_prompts=str(prompts / "unseen"),
        model=str(tiny_model),
        reward="colourfulness",
        eval_rewards=(),
        steps=2,
        epochs=3,
        pairs=2,
        pairs_per_update=2,
        learning_rate=1e-3,
        eval_every=2,
        eval_start=False,
        eval_steps=(1,),
        eval_noises=1,
        checkpoint_every=1,
        device="cpu",
    )


def folder_of(root, config):
    return root / run_id(config.to_json())


def comparable(folder):
    """All that a run leaves behind but the time it took."""
    record = load_run(folder)
    assert record.done is not None
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in record.train]
    weights = load_file(next((folder / "adapter").glob("*.safetensors")))
    left = sorted(path.name for path in folder.iterdir())
    return rows, record.eval, {name: weight.tolist() for name, weight in weights.items()}, left


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    folder = folder_of(tmp_path_factory.mktemp("undisturbed"), config)
    train(config, folder)
    return comparable(folder)


def resumed(world, config, folder):
    train(config, folder, resume=True, world=world)


def test_twenty_kills(config, tmp_path):
    """kill -9 at random moments, in loading, sampling, training and writing: each run that was killed ends with the
    records and weights of the one that was left alone."""
    config = dataclasses.replace(config, epochs=6)
    whole = folder_of(tmp_path / "whole", config)
    start = time.perf_counter()
    train(config, whole)
    duration = time.perf_counter() - start
    fork = multiprocessing.get_context("fork")  # a new interpreter would import for longer than it trains
    chance, kills = random.Random(0), 0
    while kills < KILLS:
        killed = folder_of(tmp_path / str(kills), config)
        own = 0
        while not (killed / "done.json").exists():
            process = fork.Process(target=train, args=(config, killed), kwargs={"resume": True})
            process.start()
            process.join(chance.uniform(0.05, 0.5) * duration if own < 10 else 300)
            if process.is_alive():
                process.kill()
                own += 1
            process.join()
        assert comparable(killed) == comparable(whole)
        kills += own
        shutil.rmtree(killed.parent)


def test_kills_of_two_processes(config, tmp_path):
    """One of the two is killed, the launcher ends the other: with two processes again, the run they would have made."""
    config = dataclasses.replace(config, epochs=5)
    whole, killed = folder_of(tmp_path / "whole", config), folder_of(tmp_path / "killed", config)
    start = time.perf_counter()
    assert processes.run(2, resumed, config, whole) == [0, 0]
    duration = time.perf_counter() - start
    chance, kills = random.Random(0), 0
    while not (killed / "done.json").exists():
        both = processes.launch(2, resumed, config, killed)
        moment, victim = chance.uniform(0.1, 0.5) * duration, chance.randrange(2)
        both[victim].join(moment if kills < 3 else 300)
        if both[victim].is_alive():
            both[victim].kill()
            both[1 - victim].join(chance.uniform(0, 0.1))
            both[1 - victim].kill()
            kills += 1
        for process in both:
            process.join()
    assert kills
    assert comparable(killed) == comparable(whole)


def test_a_disk_that_is_full_at_any_moment(config, tmp_path, monkeypatch, undisturbed):
    """Each write of the run fails in its turn; what was written before stays, and the run goes on from there."""
    original, failures = os.fsync, 0
    for number in itertools.count(step=2):
        folder, calls = folder_of(tmp_path / str(number), config), itertools.count()

        def fsync(file, calls=calls, number=number):
            if next(calls) >= number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            original(file)

        monkeypatch.setattr(os, "fsync", fsync)
        done = False
        with contextlib.suppress(OSError):
            train(config, folder)
            done = True
        monkeypatch.setattr(os, "fsync", original)
        if done:
            break
        failures += 1
        assert not list(folder.glob(".*.tmp"))
        if (folder / "checkpoint.pt").exists():
            load_checkpoint(folder / "checkpoint.pt", folder.name)
        if number % 6 == 0:  # all of them would take as long again
            train(config, folder, resume=True)
            assert comparable(folder) == undisturbed
        shutil.rmtree(folder)
    assert failures > 7


def test_any_changed_byte_of_a_checkpoint_is_found(config, tmp_path):
    folder = folder_of(tmp_path, config)

    def stop(event):
        if event["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, folder, on_epoch=stop)
    checkpoint = folder / "checkpoint.pt"
    good = checkpoint.read_bytes()
    chance = random.Random(0)
    for position in (0, len(good) // 2, len(good) - 1, *(chance.randrange(len(good)) for _ in range(20))):
        bad = good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]
        checkpoint.write_bytes(bad)
        with pytest.raises(UserError, match=r"checkpoint\.pt can't be read \(truncated or damaged\?\); delete it"):
            load_checkpoint(checkpoint, folder.name)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(UserError, match="can't be read"):
        train(config, folder, resume=True)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before, "nothing overwritten"


def fail(monkeypatch, when, how):
    """Makes the reward fail at its calls of those numbers."""
    original, calls = Colourfulness.__call__, itertools.count(1)

    def reward(self, images, prompts):
        if next(calls) not in when:
            return original(self, images, prompts)
        if how == "nan":
            values = original(self, images, prompts)
            values[-1] = torch.nan
            return values
        raise ConnectionError("no answer")

    monkeypatch.setattr(Colourfulness, "__call__", reward)


@pytest.mark.parametrize("how", ["raises", "nan"])
def test_a_reward_that_fails_once_is_asked_again(config, tmp_path, monkeypatch, capsys, undisturbed, how):
    fail(monkeypatch, {2, 6}, how)
    folder = folder_of(tmp_path, config)
    train(config, folder)
    monkeypatch.undo()
    assert comparable(folder) == undisturbed
    assert capsys.readouterr().err.count("warning: reward colourfulness") == 2


@pytest.mark.parametrize("how", ["raises", "nan"])
@pytest.mark.parametrize(("call", "saved"), [(1, 0), (2, 1), (3, 2), (4, 2)])
def test_a_reward_that_fails_twice_stops_the_run_with_its_state_saved(
    config, tmp_path, monkeypatch, undisturbed, call, saved, how
):
    """Calls 1, 2 and 4 are those of the epochs, 3 is the evaluation after epoch 2. No checkpoint would be due."""
    config = dataclasses.replace(config, checkpoint_every=0)
    folder = folder_of(tmp_path, config)
    fail(monkeypatch, {call, call + 1}, how)
    what = r"raised ConnectionError \(no answer\)" if how == "raises" else "gave a value that is not finite"
    expected = rf"reward colourfulness {what} .* twice; the state after epoch {saved} is saved, go on with --resume"
    with pytest.raises(UserError, match=expected):
        train(config, folder)
    monkeypatch.undo()
    assert load_checkpoint(folder / "checkpoint.pt", folder.name)["epoch"] == saved
    assert [row["epoch"] for row in load_run(folder).train] == list(range(1, saved + 1))
    train(config, folder, resume=True)
    assert comparable(folder) == undisturbed


def test_bad_input_to_a_reward_is_not_tried_again():
    class Refusing:
        name, calls = "refusing", 0

        def __call__(self, images, prompts):
            self.calls += 1
            raise UserError("give other prompts")

    reward = Refusing()
    with pytest.raises(UserError, match=r"^give other prompts$"):
        score(reward, torch.zeros(1, 3, 8, 8), ["cat"])
    assert reward.calls == 1


def short_of_memory(monkeypatch, most, with_graph_only=False):
    """Forward passes with more than `most` rows run out of memory."""
    original = StableDiffusionPolicy.predict

    def predict(self, latents, *arguments):
        if min(len(latents), self.rows) > most and (torch.is_grad_enabled() or not with_graph_only):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, latents, *arguments)

    monkeypatch.setattr(StableDiffusionPolicy, "predict", predict)


@pytest.mark.parametrize("method", ["sdpo", "rebel", "prdp"])
@pytest.mark.parametrize("with_graph_only", [False, True], ids=["anywhere", "in training"])
def test_out_of_memory_halves_the_micro_batch(config, monkeypatch, capsys, method, with_graph_only):
    """The same numbers but for rounding, and the record says so."""
    config = dataclasses.replace(config, method=method, label="", pairs=8, pairs_per_update=8, learning_rate=1e-4)

    def two_epochs():
        trainer = Trainer(config, load_policy(config), load_reward(config.reward))
        rows = [trainer.epoch(epoch) for epoch in (1, 2)]
        return rows, torch.cat([p.detach().flatten() for p in trainer.policy.parameters])

    rows, weights = two_epochs()
    assert "rows" not in rows[0]
    short_of_memory(monkeypatch, 4, with_graph_only)
    halved, halved_weights = two_epochs()
    assert [row["rows"] for row in halved] == [4, 4]
    assert (weights - halved_weights).abs().max() < 1e-6
    for row, other in zip(rows, halved, strict=True):
        for name in ("samples", "reward_queries", "optimiser_steps", "model_evaluations"):
            assert row[name] == other[name]
        for name in ("loss", "reward_mean", "log_ratio_max", "grad_norm"):
            assert row[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name
    warnings = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert len(warnings) == 4  # 64 rows to 32, 16, 8, 4
    assert warnings[-1] == "warning: out of memory; a forward pass has at most 4 rows from here on"


def test_out_of_memory_with_one_pair_stops_the_run(config, tmp_path, monkeypatch, undisturbed):
    folder = folder_of(tmp_path, config)
    original = Trainer.epoch

    def epoch(self, number):
        if number == 2:
            short_of_memory(monkeypatch, 0, with_graph_only=True)
        return original(self, number)

    monkeypatch.setattr(Trainer, "epoch", epoch)
    expected = "out of memory with --rows 2, a single pair; use a GPU .* the state after epoch 1 is saved, go on with"
    with pytest.raises(UserError, match=expected):
        train(config, folder)
    monkeypatch.undo()
    state = load_checkpoint(folder / "checkpoint.pt", folder.name)
    assert state["epoch"] == 1
    assert sum(len(returns) for returns in state["normaliser"].values()) == 4, "of epoch 1 alone"
    train(config, folder, resume=True)
    assert comparable(folder) == undisturbed


def test_between_two_updates_of_an_epoch_the_earlier_checkpoint_stays(config, tmp_path, monkeypatch, undisturbed):
    """The weights are no longer those of the epoch's beginning, so there is no state of it left to save."""
    folder, original, calls = folder_of(tmp_path, config), Trainer.update, itertools.count(1)

    def update(self, *arguments):
        if next(calls) == 4:  # the second of the second epoch
            raise UserError("out of memory")
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "update", update)
    with pytest.raises(UserError, match=r"^out of memory$"):
        train(config, folder)
    monkeypatch.undo()
    assert load_checkpoint(folder / "checkpoint.pt", folder.name)["epoch"] == 1
    train(config, folder, resume=True)
    assert comparable(folder) == undisturbed


def test_memory_that_suffices_changes_nothing(config):
    policy = load_policy(config)
    assert within_memory(policy, lambda: 5) == 5
    assert policy.rows == config.rows
