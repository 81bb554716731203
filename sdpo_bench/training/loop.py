"""The life of a run: start or resume, train and evaluate each epoch, save, finish."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sdpo_bench import interruption, plugins
from sdpo_bench.analysis.model_card import model_card
from sdpo_bench.config import RunConfig
from sdpo_bench.distributed import SINGLE_PROCESS, ProcessGroup
from sdpo_bench.errors import UserError
from sdpo_bench.policies import Policy, load_policy
from sdpo_bench.records.files import CHECKPOINT, write_atomic
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.lookup import recorded_epoch, recorded_weights, resumed
from sdpo_bench.records.provenance import collect
from sdpo_bench.records.reader import load_run
from sdpo_bench.records.schema import COUNTS
from sdpo_bench.records.writer import RunWriter
from sdpo_bench.rewards import Reward, names
from sdpo_bench.training.checkpoint import copied, load_checkpoint, save_checkpoint
from sdpo_bench.training.evaluation import (
    evaluate,
    evaluated_prompts,
    evaluation_rewards,
    grid_of_pictures,
    save_grid,
    warn_of_long_prompts,
)
from sdpo_bench.training.oom import find_max_batch_size
from sdpo_bench.training.sinks import Tracker
from sdpo_bench.training.trainer import Trainer
from sdpo_bench.training.weight_digests import Weights, changed, other_weights, replaced, weights_of

MOST_COPIED = 1 << 30  # bytes of weights and moments, about 0.3 s from a GPU


Event = dict[str, Any]
"""{"epoch", "epochs", "phase", "seconds", "reward_mean"}; see `train`."""


class Opened(NamedTuple):
    """A run's configuration as in config.json, and whether it is finished."""

    row: dict[str, Any]
    finished: bool


def train(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    on_epoch: Callable[[Event], None] | None = None,
    ranks: ProcessGroup = SINGLE_PROCESS,
    tracker: Tracker | None = None,
    keep: bool = False,
) -> None:
    """Runs `config` into `folder`, which `find_run` finds, and writes done.json last.

    With `resume` a finished run stays unchanged, and an unfinished one continues from its checkpoint. On a CPU it gets
    the same weights, bit for bit, as without the interruption. A finished run continues with more epochs if its
    checkpoint was kept (`keep`).

    `on_epoch` gets {"epoch", "epochs", "phase", "seconds", "reward_mean"} after each epoch ("train") and each
    evaluation ("evaluate"), and before the first one ("begin", with the number of finished epochs, and "recorded", the
    last epoch in the records). Among the processes of `ranks` only the first one writes; `folder` must be on a disk
    that all of them see. `tracker` gets a copy of the records.

    An error between two epochs, such as of a reward model, leaves a checkpoint of the last one. So does a signal within
    `interruption.watched`, at any time.
    """
    TrainingRun(config, folder, resume=resume, on_epoch=on_epoch, ranks=ranks, tracker=tracker, keep=keep).run()


class TrainingRun:
    """The life of a run, from the first file in its folder to done.json. The arguments are those of `train`."""

    # Only the first process has a writer, and only it calls its methods.
    writer: RunWriter
    trainer: Trainer
    policy: Policy
    rewards: dict[str, Reward]

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        *,
        resume: bool,
        on_epoch: Callable[[Event], None] | None,
        ranks: ProcessGroup,
        tracker: Tracker | None,
        keep: bool,
    ) -> None:
        self.config, self.folder, self.resume = config, folder, resume
        self.on_epoch, self.ranks, self.tracker, self.keep = on_epoch, ranks, tracker, keep
        self.checkpoint = folder / CHECKPOINT
        self.saved_weights = saved_weights(config, folder)
        self.seconds = {"sample": 0.0, "reward": 0.0, "train": 0.0, "evaluate": 0.0}
        self.done, self.evaluated, self.restored = 0, False, False
        self.on_policy: float | None = None
        # The weights before the epoch that is being trained, where they were copied; and the number of optimiser steps
        # at which the weights were last those of a whole epoch.
        self.kept: dict[str, Any] | None = None
        self.whole_steps = 0

    def run(self) -> None:
        if self.ranks.run_on_main(self.open).finished:
            return
        self.load()  # all that can be refused is refused before anything is written
        with contextlib.ExitStack() as stack:
            self.writer = self.ranks.run_on_all(lambda: self.enter_writer(stack))
            self.row, finished = self.ranks.run_on_main(self.open)
            if finished:  # by another process, while this one was loading
                return
            self.restore()
            stack.enter_context(interruption.deferred(self.may_stop))
            self.begin()
            for epoch in range(self.done + 1, self.config.epochs + 1):
                self.train_epoch(epoch)
                self.evaluate_if_due(epoch)
                self.probe_if_due(epoch)
                self.save_checkpoint_if_due(epoch)
            self.finish()

    # Before the first epoch

    def open(self) -> Opened:
        """Inspects the folder. UserError if it holds something that this run cannot continue."""
        config, folder = self.config, self.folder
        row = config.to_json()
        row["run_id"] = run_id(row)
        begun = (folder / "config.json").exists()
        if not self.resume and (begun or self.checkpoint.exists()):
            raise UserError(f"{folder} already holds a run; continue with --resume, or choose another folder")
        if not begun:
            return Opened(row, False)
        row = resumed(folder, row)
        if not (folder / "done.json").exists():
            return Opened(row, False)
        trained = recorded_epoch(folder)
        if config.epochs > trained:
            if not self.checkpoint.exists():
                raise UserError(
                    f"{folder} holds a finished run of {trained} epochs without a checkpoint, so it can't continue "
                    f"to {config.epochs}; train another run, with another --label"
                )
            return Opened(row, False)
        if config.epochs and not self.saved_weights.is_dir() and self.checkpoint.exists():
            return Opened(row, False)  # they are made again
        if words := replaced(config, folder):
            raise other_weights(folder, words)
        if not self.keep:
            self.checkpoint.unlink(missing_ok=True)  # a kill may have come between the two
        return Opened(row, True)

    def load(self) -> None:
        """Loads rewards, model and trainer, and checks that the model's weights are those with which the run was
        begun."""
        self.rewards, self.policy = self.ranks.run_on_all(self.load_models)
        if self.ranks.sharded:
            self.policy.shard()
        self.trainer = self.ranks.run_on_all(self.prepare_trainer)
        self.weights_read = self.ranks.run_on_main(lambda: same_weights(self.config, self.folder))
        if self.config.rows == 0:
            find_max_batch_size(self.policy, self.config, self.ranks)
        if self.config.epochs and not self.ranks.run_on_main(self.checkpoint.exists):
            self.on_policy = self.trainer.check_on_policy(1)

    def load_models(self) -> tuple[dict[str, Reward], Policy]:
        if self.ranks.sharded:
            check_shares(self.config, self.ranks)
        return evaluation_rewards(self.config), load_policy(self.config)

    def prepare_trainer(self) -> Trainer:
        trainer = Trainer(self.config, self.policy, self.rewards[self.config.reward], self.ranks)
        prompts = [trainer.prompts, *evaluated_prompts(self.config).values()]
        for reward in self.rewards.values():
            for split in prompts:
                reward.check_prompts(split)
        if self.ranks.is_main:
            warn_of_long_prompts(self.policy, itertools.chain(*prompts))
        return trainer

    def enter_writer(self, stack: contextlib.ExitStack) -> Any:
        return stack.enter_context(RunWriter(self.folder)) if self.ranks.is_main else None

    def restore(self) -> None:
        """Loads the checkpoint's state, if there is one."""
        self.restored = self.ranks.run_on_main(self.checkpoint.exists)
        if self.restored:
            state = self.ranks.run_on_all(lambda: load_checkpoint(self.checkpoint, self.row["run_id"]))
            self.trainer.load_state(state)
            self.done, self.evaluated, self.seconds = state["epoch"], state["evaluated"], state["seconds"]
        self.whole_steps = self.trainer.counts.optimiser_steps

    def begin(self) -> None:
        """Writes the first records, and does what is due before the next epoch."""
        config, done = self.config, self.done
        self.ranks.run_on_main(self.begin_records)
        if not self.evaluated and (done or config.eval_start or config.epochs == 0):
            self.evaluate(done)
        if not self.evaluated and config.probe_every and config.epochs and done % config.probe_every == 0:
            self.probe(done)
        if done == 0 and (config.eval_start or config.epochs == 0):
            self.with_model(lambda: save_grid(self.policy, config, self.folder / "grid_before.png", self.ranks.is_main))
        if self.on_policy is None and done < config.epochs:
            self.on_policy = self.trainer.check_on_policy(done + 1)

    def begin_records(self) -> None:
        recorded = recorded_epoch(self.folder)
        self.writer.write_config(self.row)
        found: dict[str, Any] = {"weights": self.weights_read}
        if self.ranks.size > 1:
            found["processes"] = self.ranks.size
        if self.ranks.sharded:
            found["sharded"] = True
        if self.config.rows == 0:
            found["rows"] = self.policy.rows * self.policy.branches
        if used := used_plugins(self.config, self.policy):
            found["plugins"] = used
        self.writer.write_provenance(collect(self.policy.device, self.rewards) | found)
        self.writer.truncate(self.done if self.restored else -1)
        self.report("begin", self.done, 0.0, recorded=recorded)

    # An epoch

    def train_epoch(self, epoch: int) -> None:
        with self.saving(self.state_after(epoch - 1, evaluated=True)):
            self.heed_signals_of_others()
            self.kept = copied(self.trainer.weights()) if self.copies_weights() else None
            metrics = self.trainer.train_epoch(epoch)
            self.kept, self.whole_steps = None, self.trainer.counts.optimiser_steps
        row = metrics.to_row()
        if epoch == 1 and self.on_policy is not None:
            row["on_policy_log_ratio"] = self.on_policy
        self.ranks.run_on_main(lambda: self.writer.append_train(row))
        if self.tracker is not None:
            self.tracker.log(epoch, row)
        for phase, spent in metrics.seconds.items():
            self.seconds[phase] += spent
        self.report("train", epoch, sum(metrics.seconds.values()), metrics.reward_mean)

    def evaluate_if_due(self, epoch: int) -> None:
        if epoch == self.config.epochs or epoch % self.config.eval_every == 0:
            with self.saving(self.state_after(epoch, evaluated=False)):
                self.evaluate(epoch)

    def probe_if_due(self, epoch: int) -> None:
        if self.config.probe_every and epoch % self.config.probe_every == 0:
            with self.saving(self.state_after(epoch, evaluated=False)):
                self.probe(epoch)

    def save_checkpoint_if_due(self, epoch: int) -> None:
        every = self.config.checkpoint_every
        if epoch == self.config.epochs or (every and epoch % every == 0):
            state = self.trainer.weights() | self.state_after(epoch, evaluated=True)
            self.ranks.run_on_main(lambda: save_checkpoint(self.checkpoint, state))

    def evaluate(self, epoch: int) -> None:
        start, passes = time.perf_counter(), self.policy.passes
        results = evaluate(self.policy, self.config, self.rewards, self.ranks, last=epoch == self.config.epochs)
        if self.tracker is not None:
            self.tracker.log_evaluation(epoch, results)
            self.with_model(partial(self.log_pictures, self.tracker, epoch))
        self.policy.passes = passes  # evaluation enters no count
        counts = {name: getattr(self.trainer.counts, name) for name in COUNTS}  # train.jsonl has the others

        def append() -> None:
            for result in results:
                self.writer.append_eval({"epoch": epoch, **counts, **result})

        self.ranks.run_on_main(append)
        self.seconds["evaluate"] += time.perf_counter() - start
        self.report("evaluate", epoch, time.perf_counter() - start)

    def log_pictures(self, tracker: Tracker, epoch: int) -> None:
        tracker.log_pictures(epoch, grid_of_pictures(self.policy, self.config))

    def probe(self, epoch: int) -> None:
        rows = self.trainer.probe(epoch)

        def append() -> None:
            for row in rows:
                self.writer.append_dense(row)

        self.ranks.run_on_main(append)

    def report(self, phase: str, epoch: int, spent: float, reward_mean: float | None = None, **more: int) -> None:
        if self.on_epoch is not None and self.ranks.is_main:
            event = {"epoch": epoch, "epochs": self.config.epochs, "phase": phase, "seconds": spent}
            self.on_epoch(event | {"reward_mean": reward_mean} | more)

    # Signals and errors
    #
    # A signal is heeded where the weights are those of a whole epoch, or where a copy of these is at hand: it is taken
    # before an epoch's first update if that takes no noticeable time. Else an epoch whose updates have begun is ended
    # first. Of several processes so it is too: they stop at the same point, see `ProcessGroup.may_stop`.

    def copies_weights(self) -> bool:
        """Whether each epoch begins with a copy of the weights and AdamW's two moments."""
        size = sum(p.numel() * p.element_size() for p in self.policy.parameters)
        return interruption.is_watched() and self.ranks.size == 1 and 3 * size <= MOST_COPIED

    def may_stop(self) -> bool:
        whole = self.kept is not None or self.trainer.counts.optimiser_steps == self.whole_steps
        return self.ranks.may_stop and whole

    def heed_signals_of_others(self) -> None:
        """Raises Interrupted in all processes if any of several received a signal."""
        if self.ranks.size > 1:
            signals = [number for number in self.ranks.gather(interruption.pending()) if number is not None]
            if signals:
                raise interruption.Interrupted(signals[0])

    def state_after(self, epoch: int, evaluated: bool) -> dict[str, Any]:
        """The state of a checkpoint, without the weights."""
        known = {"run_id": self.row["run_id"], "epoch": epoch, "evaluated": evaluated, "seconds": dict(self.seconds)}
        return self.trainer.progress() | known

    @contextlib.contextmanager
    def saving(self, state: dict[str, Any]) -> Iterator[None]:
        """Saves `state` after a signal, or after an error that did not change its weights."""
        try:
            yield
        except interruption.Interrupted as signal:  # of several processes all are stopped at once
            weights = self.weights_of(state)
            if weights is not None:
                how = "is saved" if self.save(weights | state) else "could not be saved, the last checkpoint stays"
                signal.said = f"the state after epoch {state['epoch']} {how}"
            raise
        except Exception as error:
            # Where the others know nothing of the error, they would wait for this process for ever.
            if not self.ranks.raised_on_all(error) or not self.is_unchanged(state):
                raise
            saved = self.save(self.trainer.weights() | state)
            if saved and isinstance(error, UserError):
                text = f"{error}; the state after epoch {state['epoch']} is saved, continue with --resume"
                raise UserError(text) from error
            raise

    def is_unchanged(self, state: dict[str, Any]) -> bool:
        """Whether no optimiser step was taken since `state`."""
        return bool(self.trainer.counts.optimiser_steps == state["counts"]["optimiser_steps"])

    def weights_of(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """The weights that belong to `state`: the current ones or the copy; None if they no longer exist."""
        return self.trainer.weights() if self.is_unchanged(state) else self.kept

    def save(self, state: dict[str, Any]) -> bool:
        """Saves a checkpoint in the first process and returns whether that worked. If it did not, perhaps because of
        the disk, the earlier checkpoint stays."""

        def attempt() -> bool:
            with contextlib.suppress(OSError):
                save_checkpoint(self.checkpoint, state)
                return True
            return False

        return self.ranks.run_on_main(attempt)

    # After the last epoch

    def finish(self) -> None:
        if self.config.epochs:
            self.with_model(self.save_model)
        self.ranks.run_on_main(self.finish_records)

    def with_model(self, work: Callable[[], None]) -> None:
        """Calls work(), which needs the model, in the first process; if weights are sharded, in all."""
        self.ranks.run_on_all(work if self.ranks.is_main or self.ranks.sharded else lambda: None)

    def save_model(self) -> None:
        self.policy.save(self.saved_weights, self.ranks.is_main)
        save_grid(self.policy, self.config, self.folder / "grid_after.png", self.ranks.is_main)

    def finish_records(self) -> None:
        if self.config.epochs:
            write_atomic(self.saved_weights / "README.md", model_card(load_run(self.folder)).encode())
        epochs = max(self.config.epochs, 1)
        self.writer.finish(
            {
                "epochs": self.config.epochs,
                "seconds": {k: round(v, 3) for k, v in self.seconds.items()},
                "seconds_per_epoch": {k: round(v / epochs, 4) for k, v in self.seconds.items() if k != "evaluate"},
                "clip_range": self.trainer.clips["clip_range"],
                "trained_weights": sum(p.numel() for p in self.policy.parameters),
            }
        )
        if not self.keep:
            self.checkpoint.unlink(missing_ok=True)


def used_plugins(config: RunConfig, policy: Policy) -> dict[str, dict[str, Any]]:
    """The records of the plug-ins that the method, the dense reward, the rewards or the policy of a run come from."""
    specs = (config.reward, *config.eval_rewards, *config.eval_last_rewards)
    return plugins.used(
        {
            ("methods", config.method),
            ("dense_rewards", config.resolved_dense),
            ("policies", policy.pipeline_class.__name__),
            *(("rewards", name) for name in names(specs)),
        }
    )


def saved_weights(config: RunConfig, folder: Path) -> Path:
    """The folder within a run's folder that its trained weights are saved to."""
    return folder / ("adapter" if config.finetune == "lora" else "model")


def same_weights(config: RunConfig, folder: Path) -> Weights:
    """`weights_of` the run. UserError if the run in `folder` was begun with other weights under the same names."""
    stored, found = recorded_weights(folder), weights_of(config)
    if stored and (words := changed(stored, found)):
        raise other_weights(folder, words)
    return found


def check_shares(config: RunConfig, ranks: ProcessGroup) -> None:
    """Refuses settings that --shard does not support: all processes must make the same forward passes, or they would
    wait for each other."""
    if config.finetune != "full":
        raise UserError(
            "--shard divides the trained weights among processes, and a LoRA has few; use it with --finetune full"
        )
    if config.pairs_per_update % ranks.size:
        raise UserError(
            f"--shard: {ranks.size} processes, but --pairs-per-update is {config.pairs_per_update}; expected a multiple"
        )
    if config.rows < 4:
        raise UserError(f"--shard: --rows is {config.rows}; expected at least 4, for a pair with guidance")
