"""The life of a run: start or resume, train and evaluate each epoch, save, finish."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sdpo_bench import interruption
from sdpo_bench.config import RunConfig
from sdpo_bench.distributed import SINGLE_PROCESS, ProcessGroup
from sdpo_bench.errors import UserError
from sdpo_bench.policies import Policy, load_policy
from sdpo_bench.records.files import CHECKPOINT
from sdpo_bench.records.identity import run_id
from sdpo_bench.records.lookup import recorded_epoch, recorded_weights, resumed
from sdpo_bench.records.provenance import collect
from sdpo_bench.records.writer import RunWriter
from sdpo_bench.rewards import Reward
from sdpo_bench.training.checkpoint import copied, load_checkpoint, save_checkpoint
from sdpo_bench.training.evaluation import (
    evaluate,
    evaluated_prompts,
    evaluation_rewards,
    save_grid,
    warn_of_long_prompts,
)
from sdpo_bench.training.oom import find_max_batch_size
from sdpo_bench.training.sinks import Tracker
from sdpo_bench.training.trainer import Trainer
from sdpo_bench.training.weight_digests import Weights, changed, other_weights, replaced, weights_of

MOST_COPIED = 1 << 30  # bytes of weights and moments, about 0.3 s from a GPU


def train(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    ranks: ProcessGroup = SINGLE_PROCESS,
    tracker: Tracker | None = None,
    keep: bool = False,
) -> None:
    """Runs `config` into `folder`, which `find_run` finds, and writes done.json last.

    With resume a finished run is left as it is, and an unfinished one goes on from its checkpoint: on a CPU to the
    same weights, bit for bit, as without the interruption. So does a finished one with more epochs, where its
    checkpoint was left (`keep`). `on_epoch` gets {"epoch", "epochs", "phase", "seconds", "reward_mean"} after each
    epoch ("train") and each evaluation ("evaluate"), and before the first one ("begin", with the epochs that are done,
    and "recorded", the last epoch in the records). Of the processes of `ranks` the first one writes; `folder` must be
    on a disk that all of them see. `tracker` gets a copy of the records.

    An error between two epochs, such as of a reward model, leaves a checkpoint of the last one; so does a signal within
    `interruption.watched`, at any time.
    """
    checkpoint = folder / CHECKPOINT
    saved_weights = folder / ("adapter" if config.finetune == "lora" else "model")

    def opened() -> tuple[dict[str, Any], bool]:
        """The configuration of the run, and whether it is finished."""
        row = config.to_json()
        row["run_id"] = run_id(row)
        if not resume and ((folder / "config.json").exists() or checkpoint.exists()):
            raise UserError(f"{folder} already holds a run; go on with --resume, or choose another folder")
        if not (folder / "config.json").exists():
            return row, False
        row = resumed(folder, row)
        if not (folder / "done.json").exists():
            return row, False
        trained = recorded_epoch(folder)
        if config.epochs > trained:
            if not checkpoint.exists():
                raise UserError(
                    f"{folder} holds a finished run of {trained} epochs without a checkpoint, so that it can't go on "
                    f"to {config.epochs}; train another run, with another --label"
                )
            return row, False
        if config.epochs and not saved_weights.is_dir() and checkpoint.exists():
            return row, False  # they are made again
        if words := replaced(config, folder):
            raise other_weights(folder, words)
        if not keep:
            checkpoint.unlink(missing_ok=True)  # a kill may have come between the two
        return row, True

    row, finished = ranks.run_on_main(opened)
    if finished:
        return

    # All that can be refused is refused before anything is written.
    def load() -> tuple[dict[str, Reward], Policy]:
        if ranks.sharded:
            check_shares(config, ranks)
        return evaluation_rewards(config), load_policy(config)

    def prepare() -> Trainer:
        trainer = Trainer(config, policy, rewards[config.reward], ranks)
        for reward in rewards.values():
            for prompts in (trainer.prompts, *evaluated_prompts(config).values()):
                reward.check_prompts(prompts)
        if ranks.is_main:
            warn_of_long_prompts(policy, itertools.chain(trainer.prompts, *evaluated_prompts(config).values()))
        return trainer

    rewards, policy = ranks.run_on_all(load)
    if ranks.sharded:
        policy.shard()
    trainer = ranks.run_on_all(prepare)
    weights_read = ranks.run_on_main(lambda: same_weights(config, folder))
    if config.rows == 0:
        find_max_batch_size(policy, config, ranks)
    on_policy = trainer.check_on_policy(1) if config.epochs and not ranks.run_on_main(checkpoint.exists) else None
    seconds = {"sample": 0.0, "reward": 0.0, "train": 0.0, "evaluate": 0.0}

    def report(phase: str, epoch: int, spent: float, reward_mean: float | None = None, **more: int) -> None:
        if on_epoch is not None and ranks.is_main:
            event = {"epoch": epoch, "epochs": config.epochs, "phase": phase, "seconds": spent}
            on_epoch(event | {"reward_mean": reward_mean} | more)

    with contextlib.ExitStack() as stack:
        # Of the first process alone, as are all calls of its methods.
        writer: Any = ranks.run_on_all(lambda: stack.enter_context(RunWriter(folder)) if ranks.is_main else None)
        row, finished = ranks.run_on_main(opened)
        if finished:  # by another process, while this one was loading
            return
        done, evaluated, begun = 0, False, ranks.run_on_main(checkpoint.exists)
        if begun:
            state = ranks.run_on_all(lambda: load_checkpoint(checkpoint, row["run_id"]))
            trainer.load_state(state)
            done, evaluated, seconds = state["epoch"], state["evaluated"], state["seconds"]

        def begin() -> None:
            recorded = recorded_epoch(folder)
            writer.write_config(row)
            found = {"processes": ranks.size} if ranks.size > 1 else {}
            found |= {"sharded": True} if ranks.sharded else {}
            found |= {"rows": policy.rows * policy.branches} if config.rows == 0 else {}
            writer.write_provenance(collect(policy.device, rewards) | {"weights": weights_read} | found)
            writer.truncate(done if begun else -1)
            report("begin", done, 0.0, recorded=recorded)

        # A signal is heeded where the weights are those of a whole epoch, or where a copy of these is at hand: it is
        # taken before an epoch's first update if that takes no noticeable time. Else an epoch whose updates have begun
        # is ended first. Of several processes so it is too: they stop at the same point, see `ProcessGroup.may_stop`.
        size = sum(p.numel() * p.element_size() for p in policy.parameters)
        copies = interruption.is_watched() and ranks.size == 1 and 3 * size <= MOST_COPIED  # AdamW has two moments
        kept: dict[str, Any] | None = None
        whole_steps = trainer.counts.optimiser_steps

        def may_stop() -> bool:
            return ranks.may_stop and (kept is not None or trainer.counts.optimiser_steps == whole_steps)

        def state_after(epoch: int, evaluated: bool) -> dict[str, Any]:
            known = {"run_id": row["run_id"], "epoch": epoch, "evaluated": evaluated, "seconds": dict(seconds)}
            return trainer.progress() | known

        @contextlib.contextmanager
        def saving(state: dict[str, Any]) -> Iterator[None]:
            """Saves `state` when an error comes that left the weights as they are in it."""
            try:
                yield
            except (Exception, interruption.Interrupted) as error:
                stopped = isinstance(error, interruption.Interrupted)  # of several processes all are at once
                unchanged = trainer.counts.optimiser_steps == state["counts"]["optimiser_steps"]
                # Where the others know nothing of the error, they would wait for this process for ever.
                if not (stopped or ranks.raised_on_all(error)) or not (unchanged or (stopped and kept)):
                    raise

                weights = trainer.weights() if unchanged or kept is None else kept

                def save() -> bool:
                    with contextlib.suppress(OSError):  # the disk may be what failed; the earlier checkpoint stays
                        save_checkpoint(checkpoint, weights | state)
                        return True
                    return False

                saved = ranks.run_on_main(save)
                if isinstance(error, interruption.Interrupted):
                    how = "is saved" if saved else "could not be saved, the last checkpoint stays"
                    error.said = f"the state after epoch {state['epoch']} {how}"
                elif saved and isinstance(error, UserError):
                    text = f"{error}; the state after epoch {state['epoch']} is saved, go on with --resume"
                    raise UserError(text) from error
                raise

        def evaluation(epoch: int) -> None:
            start = time.perf_counter()
            evaluations = policy.evaluations
            results = evaluate(policy, config, rewards, ranks, last=epoch == config.epochs)
            policy.evaluations = evaluations

            def append() -> None:
                for result in results:
                    writer.append_eval({"epoch": epoch, **dataclasses.asdict(trainer.counts), **result})

            ranks.run_on_main(append)
            if tracker is not None:
                tracker.log_evaluation(epoch, results)
            seconds["evaluate"] += time.perf_counter() - start
            report("evaluate", epoch, time.perf_counter() - start)

        def probing(epoch: int) -> None:
            rows = trainer.probe(epoch)
            ranks.run_on_main(lambda: [writer.append_dense(row) for row in rows])

        def train_epoch(epoch: int) -> None:
            nonlocal kept, whole_steps
            with saving(state_after(epoch - 1, True)):
                if ranks.size > 1 and (signals := [x for x in ranks.gather(interruption.pending()) if x is not None]):
                    raise interruption.Interrupted(signals[0])
                kept = copied(trainer.weights()) if copies else None
                result = trainer.epoch(epoch)
                kept, whole_steps = None, trainer.counts.optimiser_steps
            if epoch == 1:
                result["on_policy_log_ratio"] = on_policy
            ranks.run_on_main(lambda: writer.append_train(result))
            if tracker is not None:
                tracker.log(epoch, result)
            for phase, spent in result["seconds"].items():
                seconds[phase] += spent
            report("train", epoch, sum(result["seconds"].values()), result["reward_mean"])
            last = epoch == config.epochs
            if last or epoch % config.eval_every == 0:
                with saving(state_after(epoch, False)):
                    evaluation(epoch)
            if config.probe_every and epoch % config.probe_every == 0:
                with saving(state_after(epoch, False)):
                    probing(epoch)
            if last or (config.checkpoint_every and epoch % config.checkpoint_every == 0):
                weights = trainer.weights()
                ranks.run_on_main(lambda: save_checkpoint(checkpoint, weights | state_after(epoch, True)))

        def with_model(work: Callable[[], None]) -> None:
            """work() in the first process, or, where weights are shared out, in all: it needs the model."""
            ranks.run_on_all(work if ranks.is_main or ranks.sharded else lambda: None)

        def save_model() -> None:
            policy.save(saved_weights, ranks.is_main)
            save_grid(policy, config, folder / "grid_after.png", ranks.is_main)

        def finish() -> None:
            per_epoch = {k: v / config.epochs if config.epochs else 0.0 for k, v in seconds.items() if k != "evaluate"}
            writer.finish(
                {
                    "epochs": config.epochs,
                    "seconds": {k: round(v, 3) for k, v in seconds.items()},
                    "seconds_per_epoch": {k: round(v, 4) for k, v in per_epoch.items()},
                    "clip_range": trainer.clips["clip_range"],
                    "trained_weights": sum(p.numel() for p in policy.parameters),
                }
            )
            if not keep:
                checkpoint.unlink(missing_ok=True)

        stack.enter_context(interruption.deferred(may_stop))
        ranks.run_on_main(begin)
        if not evaluated and (done or config.eval_start or config.epochs == 0):
            evaluation(done)
        if not evaluated and config.probe_every and config.epochs and done % config.probe_every == 0:
            probing(done)
        if done == 0 and (config.eval_start or config.epochs == 0):
            with_model(lambda: save_grid(policy, config, folder / "grid_before.png", ranks.is_main))
        if on_policy is None and done < config.epochs:
            on_policy = trainer.check_on_policy(done + 1)
        for epoch in range(done + 1, config.epochs + 1):
            train_epoch(epoch)
        if config.epochs:
            with_model(save_model)
        ranks.run_on_main(finish)


def same_weights(config: RunConfig, folder: Path) -> Weights:
    """`weights_of` the run, UserError where a run was begun in `folder` with others under the same names."""
    stored, found = recorded_weights(folder), weights_of(config)
    if stored and (words := changed(stored, found)):
        raise other_weights(folder, words)
    return found


def check_shares(config: RunConfig, ranks: ProcessGroup) -> None:
    """Refuses what --shard can't: all processes make the same forward passes, or they would wait for each other."""
    if config.finetune != "full":
        raise UserError("--shard shares the trained weights out, and a LoRA has few; use it with --finetune full")
    if config.pairs_per_update % ranks.size:
        raise UserError(
            f"--shard: {ranks.size} processes, but --pairs-per-update is {config.pairs_per_update}; expected a multiple"
        )
    if config.rows < 4:
        raise UserError(f"--shard: --rows is {config.rows}; expected 4 or more, room for a pair and for guidance")
