"""The processes of a run: one, or several started by `accelerate launch` or torchrun, on one or more machines.

Pairs, prompts and rewards are shared out, their results gathered; with --shard the trained weights too, else every
process holds the whole model. Which process does what changes no result: every random number belongs to a sample's own
seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from sdpo_bench import interruption
from sdpo_bench.errors import UserError

T = TypeVar("T")

BUCKET = 1 << 26  # elements summed in one go: 256 MiB of float32, beyond which a larger message is no faster
TIMEOUT = timedelta(hours=2)  # for downloads, slow reward models; of a process that died the launcher knows sooner
UNSUPPORTED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


class OtherFailed(Exception):
    """Another process of this run failed and reported the reason."""


class ProcessGroup:
    """A single process. `LaunchedProcesses` has the same methods for several."""

    rank, size = 0, 1
    sharded = False
    """Whether the denoiser's weights are shared out (FSDP). Each of its forward passes then needs all processes: they
    make the same ones, and an error waits for the next `run_on_all`."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def local_slice(self, items: Any) -> Any:
        """This process's part of a sequence (a tensor, a list): every `size`-th item, starting at its rank."""
        return items[self.rank :: self.size]

    def run_on_all(self, work: Callable[[], T]) -> T:
        """Calls work() in every process and returns this process's result.

        An error in one of them is raised there, and `OtherFailed` in the others: nobody waits for a process that
        has failed, and it is reported once. A signal that stops one of them (`interruption.check`) stops all.
        """
        return work()

    @property
    def may_stop(self) -> bool:
        """Whether a process may raise `Interrupted` here: the others will notice and are not waiting for it."""
        return True

    def gather(self, value: T) -> list[T]:
        """Returns the values of all processes, in the order of ranks. Tensors among them are on the CPU."""
        return [value]

    def run_on_main(self, work: Callable[[], T]) -> T:
        """Calls work() in the first process and returns its result in all. Errors are raised as in `run_on_all`."""
        return self.gather(self.run_on_all(work if self.is_main else lambda: None))[0]  # type: ignore[return-value]

    def raised_on_all(self, error: BaseException) -> bool:
        """Whether all processes raised this error or its `OtherFailed`, so that they are still in step."""
        return True

    def all_reduce_sum(self, tensors: Iterable[Tensor]) -> None:
        """Sums each tensor over the processes, in place, with the same bits in all of them."""

    def close(self) -> None:
        """Closes the connection to the other processes."""


SINGLE_PROCESS = ProcessGroup()


class LaunchedProcesses(ProcessGroup):
    """The processes of a launcher, which sets the environment variables with their ranks and addresses."""

    def __init__(self, cpu: bool = False) -> None:
        for variable, name in UNSUPPORTED.items():
            if os.environ.get(variable, "false").lower() in ("1", "true"):
                raise UserError(
                    f"accelerate is configured for {name}, which is not supported; launch with accelerate's "
                    f"--multi_gpu, or with torchrun, and use --shard to divide a model's weights"
                )
        from accelerate import PartialState  # here, since it takes a second that a single process need not wait

        # Joins the others; each process of a machine takes a GPU of its own.
        self.state = PartialState(cpu=cpu, timeout=TIMEOUT)
        self.rank, self.size = self.state.process_index, self.state.num_processes
        self._shared: BaseException | None = None
        self._working = False

    @property
    def may_stop(self) -> bool:
        return self._working and not self.sharded  # with shards the others' forward passes need this process

    def run_on_all(self, work: Callable[[], T]) -> T:
        result, error, signal = None, None, None
        self._working = True
        try:
            result = work()
        except interruption.Interrupted as stop:
            if not interruption.is_deferred():  # it came anywhere, perhaps long before the others end their work
                raise
            signal = stop.number
        except Exception as caught:
            error = caught
        finally:
            self._working = False
        ends = self.gather((None if error is None else f"{type(error).__name__}: {error}", signal))
        messages = [message for message, _ in ends]
        failed = [rank for rank, message in enumerate(messages) if message is not None]
        signals = [number for _, number in ends if number is not None]
        if signals and not failed:
            raise interruption.Interrupted(signals[0])
        if not failed:
            return result  # type: ignore[return-value]
        if error is None or self.rank != failed[0]:
            error = OtherFailed(f"process {failed[0]}: {messages[failed[0]]}")
        self._shared = error
        raise error

    def gather(self, value: T) -> list[T]:
        from accelerate.utils import gather_object

        gathered: list[T] = gather_object([value])
        return gathered

    def raised_on_all(self, error: BaseException) -> bool:
        return error is self._shared

    def all_reduce_sum(self, tensors: Iterable[Tensor]) -> None:
        for bucket in buckets(tensors):
            flat = torch.cat([x.flatten() for x in bucket])
            torch.distributed.all_reduce(flat)
            for x, total in zip(bucket, flat.split([x.numel() for x in bucket]), strict=True):
                x.copy_(total.view_as(x))

    def close(self) -> None:
        self.state.destroy_process_group()


def buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Divides the tensors, in their order, into lists of about BUCKET elements, for few messages and little memory."""
    bucket: list[Tensor] = []
    for x in tensors:
        if bucket and sum(y.numel() for y in bucket) + x.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(x)
    if bucket:
        yield bucket


def is_dtensor(tensor: Any) -> bool:
    """Whether it is a DTensor, whose module takes a while to import."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Any) -> Tensor:
    """Gathers a tensor that may be sharded. If it is, all processes must call this."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def full_tensor_on_cpu(tensor: Any) -> Tensor:
    """Like `full_tensor`, but into the host's memory for a checkpoint, because all weights may not fit a GPU."""
    return tensor.full_tensor().cpu() if is_dtensor(tensor) else tensor


def to_local(tensor: Any) -> Tensor:
    """This process's shard of a tensor, or the whole tensor if it is not sharded."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def distribute_like(tensor: Tensor, like: Any) -> Tensor:
    """Shards a tensor that all processes have in the way `like` is sharded, if it is."""
    if not is_dtensor(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def join(device: str, shard: bool = False) -> ProcessGroup:
    """The processes that this one was launched with; SINGLE_PROCESS if there are no others."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if shard:
            raise UserError("--shard divides weights among processes, but there is only one; leave it out")
        return SINGLE_PROCESS
    ranks = LaunchedProcesses(cpu=device == "cpu" or not torch.cuda.is_available())
    ranks.sharded = shard
    return ranks
