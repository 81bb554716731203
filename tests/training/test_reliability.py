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
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch
from safetensors.torch import load_file
from support import processes

from sdpo_bench import interruption
from sdpo_bench.config import RunConfig
from sdpo_bench.distributed import ProcessGroup
from sdpo_bench.errors import UserError
from sdpo_bench.policies import StableDiffusionPolicy, load_policy
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.reader import load_run
from sdpo_bench.records.writer import RunWriter
from sdpo_bench.rewards import load_reward
from sdpo_bench.rewards.colourfulness import Colourfulness
from sdpo_bench.training import loop, oom
from sdpo_bench.training import trainer as trainer_module
from sdpo_bench.training.checkpoint import load_checkpoint
from sdpo_bench.training.loop import train
from sdpo_bench.training.oom import retry_on_oom
from sdpo_bench.training.scoring import score
from sdpo_bench.training.trainer import Trainer

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


# What a run does, by the functions that do it; between them it is "between".
PHASES = {
    "sampling": (Trainer, "sample"),
    "reward": (Trainer, "score"),
    "training": (Trainer, "update"),
    "evaluation": (loop, "evaluate"),
    "record": (RunWriter, "append_train"),
    "checkpoint": (loop, "save_checkpoint"),
    "finish": (RunWriter, "finish"),
}
CODES = {name: bytes([number]) for number, name in enumerate(("between", *PHASES))}
NAMES = {code: name for name, code in CODES.items()}


def watched(ranks, config, folder, policy, channel):
    """A run in a process of its own, that tells the one that will kill it where it is: a byte at each change."""

    def tell(name):
        if ranks.is_main:
            os.write(channel, CODES[name])

    def wrap(name, function):
        def telling(*arguments, **options):
            tell(name)
            try:
                return function(*arguments, **options)
            finally:
                tell("between")

        return telling

    for name, (owner, attribute) in PHASES.items():
        setattr(owner, attribute, wrap(name, getattr(owner, attribute)))
    fsync = os.fsync
    os.fsync = lambda file: (time.sleep(0.01), fsync(file))  # a disk slow enough to be killed at work
    loop.load_policy = lambda config: policy  # as it was when this process was forked
    train(config, folder, resume=True, ranks=ranks)


def reach(channel, phase, occurrence):
    """Waits until a run is in that phase for that time; False if it ended before."""
    while code := os.read(channel, 1):
        occurrence -= code == CODES[phase]
        if not occurrence:
            return True
    return False


def last(channel):
    """Where a run that has ended was, after what was read already."""
    rest = b""
    while part := os.read(channel, 1 << 16):
        rest += part
    return rest[-1:]


@pytest.mark.parametrize("size", [1, 2], ids=["one process", "two processes"])
def test_twenty_kills(config, tmp_path, size):
    """kill -9 at random moments in every phase: each run that was killed, again and again, ends with the records and
    weights of the one that was left alone. Of two processes either one is killed or both; the other ends then."""
    (tmp_path / "prompts").write_text("cat\n")  # one, of which the normaliser soon knows enough to use what it kept
    config = dataclasses.replace(config, epochs=4, pairs=4, pairs_per_update=4, prompts=str(tmp_path / "prompts"))
    policy, chance = load_policy(config), random.Random(size)
    kills, hit = 0, set()

    def start(root):
        reading, writing = os.pipe()
        members = processes.launch(size, watched, config, folder_of(root, config), policy, writing)
        os.close(writing)
        return members, reading

    members, channel = start(tmp_path / "whole")
    last(channel)
    for member in members:
        member.join()
    assert [member.exitcode for member in members] == [0] * size
    whole = comparable(folder_of(tmp_path / "whole", config))
    for number in itertools.count():
        folder = folder_of(tmp_path / str(number), config)
        while not (folder / "done.json").exists():
            members, channel = start(folder.parent)
            # First those phases in which none was killed so far. The last one costs a whole run: once is enough.
            phase = chance.choice(sorted(PHASES.keys() - hit) or sorted(PHASES.keys() - {"finish"}))
            reached = reach(channel, phase, 1 if phase in ("evaluation", "finish") else chance.randint(1, 2))
            time.sleep(chance.choice((0, 0.003, 0.01, 0.03)) if reached else 0)
            victims = chance.choice([members, *([member] for member in members)]) if reached else []
            for member in victims:
                member.kill()
            for member in members:
                member.join(60)
                assert member.exitcode is not None, "it waits for one that was killed"
            died = [member.exitcode == -signal.SIGKILL for member in members]
            kills += any(died)
            if died[0]:  # the one that says where it is
                hit.add(NAMES.get(last(channel), phase))
            os.close(channel)
            ends = [member.exitcode for member in members]
            assert any(died) or ends == [0] * size, "it could not go on"
            assert not any(died) or 0 not in ends or (folder / "done.json").exists(), "it did not notice the kill"
            assert kills < 5 * KILLS, f"killed {kills} times, and only in {hit}"
        train(config, folder, resume=True)  # after a kill behind done.json the checkpoint goes now
        (folder / ".lock").unlink(missing_ok=True)  # left by that one; nobody holds it
        assert comparable(folder) == whole
        shutil.rmtree(folder.parent)
        if kills >= KILLS and hit >= PHASES.keys():
            return


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


def stopped(config, folder, monkeypatch, owner, name, call, number=signal.SIGTERM):
    """Runs until a signal comes in that call of a function, whose end it does not wait for; what was said then."""
    original, calls = getattr(owner, name), itertools.count(1)

    def signalled(*arguments, **options):
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, signalled)
    with pytest.raises(interruption.Interrupted) as caught, interruption.watched():
        train(config, folder)
    monkeypatch.undo()
    assert interruption.exit_code(caught.value) == 128 + number
    return caught.value.said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("owner", "name", "call", "saved"),
    [
        (Trainer, "sample", 3, 1),  # the first is the check that training begins on-policy
        (Trainer, "update", 4, 1),  # the second of the second epoch: of the first epoch's weights there is a copy
        (loop, "evaluate", 1, 2),
        (RunWriter, "append_train", 1, 1),
    ],
    ids=["sampling", "training", "evaluation", "record"],
)
def test_a_signal_saves_the_last_whole_epoch(
    config, tmp_path, monkeypatch, undisturbed, owner, name, call, saved, number
):
    """At once, and nothing of the epoch that was begun; no checkpoint would be due."""
    config = dataclasses.replace(config, checkpoint_every=0)
    folder = folder_of(tmp_path, config)
    said = stopped(config, folder, monkeypatch, owner, name, call, number)
    assert said == f"the state after epoch {saved} is saved"
    state = load_checkpoint(folder / "checkpoint.pt", folder.name)
    assert (state["epoch"], state["evaluated"]) == (saved, name != "evaluate")
    assert [row["epoch"] for row in load_run(folder).train] == list(range(1, saved + 1))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(config, folder, resume=True)
    assert comparable(folder) == undisturbed


def test_a_signal_where_a_copy_would_take_long_ends_the_epoch_first(config, tmp_path, monkeypatch, undisturbed):
    config = dataclasses.replace(config, checkpoint_every=0)
    folder = folder_of(tmp_path, config)
    monkeypatch.setattr(loop, "MOST_COPIED", 0)
    said = stopped(config, folder, monkeypatch, Trainer, "update", 2)  # after the first step
    assert said == "the state after epoch 1 is saved"
    train(config, folder, resume=True)
    assert comparable(folder) == undisturbed


def test_a_signal_on_a_full_disk_says_so(config, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(loop, "save_checkpoint", full)
    said = stopped(config, folder_of(tmp_path, config), monkeypatch, Trainer, "update", 1)
    assert said == "the state after epoch 0 could not be saved, the last checkpoint stays"


def signalled_run(ranks, config, folder, notes, at=(1, "train")):
    """A signal comes to one of the processes, in epoch 1."""

    def on_epoch(event):
        if (event["epoch"], event["phase"]) == at:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with interruption.watched(launched=True):
            train(config, folder, ranks=ranks, on_epoch=on_epoch)
    except interruption.Interrupted as stop:
        (notes / str(ranks.rank)).write_text(f"{interruption.exit_code(stop)} {stop.said}")


def test_of_several_processes_all_stop_at_the_same_point(config, tmp_path):
    config = dataclasses.replace(config, checkpoint_every=0)
    folder = folder_of(tmp_path / "runs", config)
    assert processes.run(2, signalled_run, config, folder, tmp_path) == [0, 0]
    assert {(tmp_path / rank).read_text() for rank in "01"} == {"143 the state after epoch 1 is saved"}
    assert load_checkpoint(folder / "checkpoint.pt", folder.name)["epoch"] == 1


def signalled_work(ranks, config, folder, notes, owner, name, call):
    """A signal comes to the last process in that call of a function."""
    original, calls = getattr(owner, name), itertools.count(1)

    def signalled(*arguments, **options):
        if next(calls) == call and ranks.rank == ranks.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    setattr(owner, name, signalled)  # in this forked process alone
    signalled_run(ranks, config, folder, notes, at=None)


@pytest.mark.parametrize(
    ("owner", "name", "call", "saved"),
    [
        (Trainer, "sample", 3, 1),
        (loop, "evaluate", 1, 2),
        (Trainer, "update", 3, 2),  # the second epoch's updates have begun, and are ended
    ],
    ids=["sampling", "evaluation", "updates"],
)
def test_several_processes_stop_before_the_epoch_ends(config, tmp_path, owner, name, call, saved):
    """One has the signal, all stop: while they sample or evaluate, the last whole epoch being saved."""
    config = dataclasses.replace(config, checkpoint_every=0)
    folder = folder_of(tmp_path / "runs", config)
    assert processes.run(2, signalled_work, config, folder, tmp_path, owner, name, call) == [0, 0]
    assert {(tmp_path / rank).read_text() for rank in "01"} == {f"143 the state after epoch {saved} is saved"}
    state = load_checkpoint(folder / "checkpoint.pt", folder.name)
    assert (state["epoch"], state["evaluated"]) == (saved, name == "sample")
    assert [row["epoch"] for row in load_run(folder).train] == list(range(1, saved + 1))
    train(config, folder, resume=True)
    assert load_run(folder).done["epochs"] == 3


@pytest.mark.parametrize(
    ("launched", "numbers", "code"),
    [(False, (2, 15), 143), (False, (2, 2), 130), (True, (2, 15), 0), (True, (2, 15, 15), 143)],
)
def test_a_second_signal_ends_the_process_at_once(launched, numbers, code):
    """From a launcher another one follows by itself, and is no second one."""

    def child():
        with (
            contextlib.suppress(interruption.Interrupted),
            interruption.watched(launched),
            interruption.deferred(lambda: False),
        ):
            for number in numbers:
                os.kill(os.getpid(), number)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == code


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
    expected = rf"reward colourfulness {what} .* twice; the state after epoch {saved} is saved, continue with --resume"
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
        rows = [trainer.train_epoch(epoch).to_row() for epoch in (1, 2)]
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


def rollout_of(config, rows):
    """An epoch's, its parts, and where they were sampled and scored."""
    trainer = Trainer(config, load_policy(config), load_reward(config.reward))
    trainer.policy.rows, seen = rows, []
    sample, score = trainer.sample, trainer.score

    def sampling(epoch, pairs):
        seen.append(("sample", threading.current_thread() is threading.main_thread()))
        return sample(epoch, pairs)

    def scoring(latents, prompts):
        seen.append(("score", threading.current_thread() is threading.main_thread()))
        return score(latents, prompts)

    trainer.sample, trainer.score = sampling, scoring
    return trainer.retry_on_oom(lambda: trainer.rollout(trainer.plan(1))), seen, trainer.policy


@pytest.mark.parametrize("failure", ["none", "reward raises", "memory of the thread"])
@pytest.mark.parametrize("method", ["sdpo", "prdp"])
def test_scoring_while_sampling(config, monkeypatch, method, failure):
    """In parts or as a whole: the same trajectories and rewards to the bit, also where a reward fails once, and where
    memory for decoding runs out."""
    config = dataclasses.replace(config, method=method, label="", pairs=40, pairs_per_update=4, steps=3)
    # 64 rows at once would be decoded by another kernel (RunConfig.pad_rows).
    (expected, expected_reference, expected_rewards, *_), seen, policy = rollout_of(config, 40)
    assert seen == [("sample", True), ("score", False)]
    passes = policy.passes
    if failure == "reward raises":
        fail(monkeypatch, {2}, "raises")
    if failure == "memory of the thread":
        decode = StableDiffusionPolicy.decode

        def short(self, latents, **options):
            if self.rows > 16 and threading.current_thread() is not threading.main_thread():
                raise torch.OutOfMemoryError("CUDA out of memory")
            return decode(self, latents, **options)

        monkeypatch.setattr(StableDiffusionPolicy, "decode", short)
    rows = 32 if failure == "memory of the thread" else 16
    (trajectory, reference, rewards, *_), seen, policy = rollout_of(config, rows)
    # 3 parts of at most 16 of the 40 pairs.
    assert [main for what, main in seen if what == "sample"][-3:] == [True] * 3
    assert [main for what, main in seen if what == "score"][-3:] == [False] * 3
    assert policy.passes == passes
    assert policy.rows == 16
    assert trajectory.prompts == expected.prompts
    for name in ("latents", "predicted_clean", "log_prob"):
        assert torch.equal(getattr(trajectory, name), getattr(expected, name)), name
    assert all(torch.equal(a, b) for a, b in zip(trajectory.conditions, expected.conditions, strict=True))
    assert reference is None if expected_reference is None else torch.equal(reference, expected_reference)
    assert torch.equal(rewards.values, expected_rewards.values)
    assert torch.equal(rewards.queried, expected_rewards.queried)
    assert rewards.queries == expected_rewards.queries


def test_a_failing_reward_ends_sampling(config, monkeypatch):
    """In the first part, while the second is sampled: the later ones are not, and no thread is left behind."""
    config = dataclasses.replace(config, pairs=40, pairs_per_update=4)
    second, futures = threading.Event(), []

    class Recorded(ThreadPoolExecutor):
        def submit(self, *args, **kwargs):
            futures.append(super().submit(*args, **kwargs))
            return futures[-1]

    monkeypatch.setattr(trainer_module, "ThreadPoolExecutor", Recorded)
    trainer = Trainer(config, load_policy(config), load_reward(config.reward))
    trainer.policy.rows, sample, sampled = 8, trainer.sample, []

    def sampling(epoch, pairs):
        if sampled:
            second.set()
            wait(futures, 60)
        sampled.append(pairs)
        return sample(epoch, pairs)

    def failing(latents, prompts):
        assert second.wait(60)
        raise UserError("no answer")

    trainer.sample, trainer.score = sampling, failing
    threads = threading.active_count()
    with pytest.raises(UserError, match="no answer"):
        trainer.rollout(trainer.plan(1))
    assert len(sampled) == 2
    assert threading.active_count() == threads


def test_out_of_memory_with_one_pair_stops_the_run(config, tmp_path, monkeypatch, undisturbed):
    folder = folder_of(tmp_path, config)
    original = Trainer.train_epoch

    def epoch(self, number):
        if number == 2:
            short_of_memory(monkeypatch, 0, with_graph_only=True)
        return original(self, number)

    monkeypatch.setattr(Trainer, "train_epoch", epoch)
    expected = "out of memory with --rows 2, a single pair; use a GPU .* the state after epoch 1 is saved, continue"
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


@pytest.mark.parametrize(("most", "budget", "found"), [(8, 1e9, 8), (64, 1e9, 16), (64, 9e5, 4), (2, 1e9, 2)])
def test_rows_that_fit_are_found(config, monkeypatch, most, budget, found):
    """They are doubled until memory runs out, until a budget is spent, or to an epoch's samples."""
    config = dataclasses.replace(config, pairs=8, rows=0)
    policy = load_policy(config)
    before = [p.detach().clone() for p in policy.parameters]
    monkeypatch.setattr(oom, "_free", lambda: budget)
    monkeypatch.setattr(oom, "_peak", lambda: 100_000 * policy.rows)
    short_of_memory(monkeypatch, most)
    assert oom._most_rows(policy, config) == policy.rows == found
    assert policy.passes == (0, 0)
    assert all(p.grad is None and torch.equal(p, old) for p, old in zip(policy.parameters, before, strict=True))


@pytest.mark.parametrize(("options", "decoded"), [({}, 1), ({"noisings": 3}, 3), ({"last_steps": 0}, 1)])
def test_rows_are_found_with_the_rewards_gradient(config, monkeypatch, options, decoded):
    """What DRaFT keeps for it, the decoder's activations above all, is tried too."""
    config = dataclasses.replace(config, method="draft", options=options, label="", rows=0, pairs=2)
    policy, graphs = load_policy(config), []
    decode = policy.decode

    def counted(latents, *, gradient=False):
        graphs.append(gradient)
        return decode(latents, gradient=gradient)

    monkeypatch.setattr(policy, "decode", counted)
    monkeypatch.setattr(oom, "_free", lambda: 1e9)
    monkeypatch.setattr(oom, "_peak", lambda: 0)
    assert oom._most_rows(policy, config) == 4
    assert graphs == [*[True] * decoded, False] * 2
    assert all(p.grad is None for p in policy.parameters)


def test_rows_where_a_pair_does_not_fit(config, monkeypatch):
    monkeypatch.setattr(oom, "_free", lambda: 1e9)
    short_of_memory(monkeypatch, 1)
    with pytest.raises(UserError, match="out of memory with --rows 2, a single pair"):
        oom._most_rows(load_policy(config), config)


def test_all_processes_take_the_fewest_rows(config, monkeypatch, capsys):
    class Others(ProcessGroup):
        def gather(self, value):
            return [value, 4]

    policy = load_policy(config)
    policy.device = torch.device("cuda")
    monkeypatch.setattr(oom, "_most_rows", lambda policy, config: 16)
    oom.find_max_batch_size(policy, config, Others())
    assert policy.rows == 4
    assert capsys.readouterr().err == "--rows 0: 4 rows, found to fit\n"


def test_rows_0_on_a_cpu_is_the_default(config, tmp_path, capsys, undisturbed):
    """A run of its own, with the same results; its records say how many rows there were."""
    config = dataclasses.replace(config, rows=0)
    folder = folder_of(tmp_path, config)
    train(config, folder)
    assert capsys.readouterr().err == "--rows 0: 64 rows, the default, for on a CPU more are no faster\n"
    rows, *others = comparable(folder)
    assert [row.pop("rows") for row in rows] == [64] * 3
    assert (rows, *others) == undisturbed
    assert load_run(folder).provenance["rows"] == 64


def test_memory_that_suffices_changes_nothing(config):
    policy = load_policy(config)
    assert retry_on_oom(policy, lambda: 5) == 5
    assert policy.rows == config.rows
