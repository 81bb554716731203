"""The engines that run a profile on a cluster: submitit for SLURM, Ray for other clusters.

An engine sends jobs (`worker_main.make_run_there`) to machines and says when they have ended. What it needs to know of
the cluster (partition, time, GPUs of a run) is given with --launcher-options, as the engine's own library names it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from sdpo_bench.errors import UserError
from sdpo_bench.experiments.worker_main import make_run_there

Launcher = Literal["local", "slurm", "ray"]
MOST_SUBMITTED = 1000  # runs at a time without --workers: as many as a SLURM array holds by default
SLURM_MINUTES = 240  # of a job without timeout_min; a run that needs more goes on in another job


class Died(Exception):
    """A job's process or machine ended before the job did."""


class Engine(Protocol):
    """Sends jobs to a cluster. What `submit` returns stands for a job in the other calls."""

    def submit(self, jobs: Sequence[Mapping[str, Any]]) -> list[Any]: ...

    def ended(self, job: Any) -> bool: ...

    def ending(self, job: Any) -> dict[str, Any]:
        """The value that an ended job returned. `Died` if its process or machine is lost; `UserError` if it raised."""
        ...

    def cancel(self, job: Any) -> None:
        """Ends a job, which first saves its state if it is at work."""
        ...

    def kill(self, job: Any) -> None:
        """Ends a job at once. Mostly it was cancelled before."""
        ...


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """The options KEY=VALUE by key. A value that is not JSON is a text."""
    found = {}
    for text in options:
        key, sign, value = text.partition("=")
        if not sign or not key.isidentifier():
            raise UserError(f"--launcher-options {text}: expected KEY=VALUE, for example timeout_min=240")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def start(launcher: Launcher, options: Mapping[str, Any], logs: Path, gpus: int) -> Engine:
    """The engine of a launcher. `logs`: a folder on the shared disk; `gpus`: of a run, unless the options say so."""
    return Slurm(options, logs, gpus) if launcher == "slurm" else Ray(options, gpus)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


class Slurm:
    """A SLURM job for each run; several that are submitted together are an array. The option `cluster=local` makes them
    processes of this machine, for a trial."""

    def __init__(self, options: Mapping[str, Any], logs: Path, gpus: int) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError("--launcher slurm needs submitit: pip install 'sdpo-bench[slurm]'") from error
        self.library = submitit
        given: dict[str, Any] = {"name": "sdpo-bench", "timeout_min": SLURM_MINUTES, "cpus_per_task": 1}
        # Runs at the same time are bounded by --workers, not by an array's own bound.
        given |= {"slurm_array_parallelism": MOST_SUBMITTED, "gpus_per_node": gpus or None}
        given |= {"cluster": "slurm", **options}
        cluster = given.pop("cluster")
        try:
            self.executor = submitit.AutoExecutor(logs, cluster=cluster)
            self.executor.update_parameters(**given)
        except RuntimeError as error:
            raise UserError(
                f"--launcher slurm: {_one_line(error)} start it where sbatch is found, as on a login node; "
                f"--launcher-options cluster=local tries it on this machine"
            ) from error
        except (AssertionError, NameError, TypeError, ValueError) as error:
            raise UserError(f"--launcher-options: {_one_line(error)}") from error

    def submit(self, jobs: Sequence[Mapping[str, Any]]) -> list[Any]:
        try:
            return list(self.executor.map_array(make_run_there, jobs))
        except self.library.core.utils.FailedJobError as error:  # of sbatch
            raise UserError(f"--launcher slurm: {_one_line(error)}") from error

    def ended(self, job: Any) -> bool:
        return bool(job.done())

    def ending(self, job: Any) -> dict[str, Any]:
        # `result` would wait 15 s for it. If the disk shows it later, no harm: a finished run is not made again.
        if not job.paths.result_pickle.exists():
            raise Died(f"SLURM job {job.job_id} ended without a result (state {job.state})")
        try:
            return dict(job.result())
        except self.library.core.utils.FailedJobError as error:
            raise UserError(f"job {job.job_id} can't make runs: {_last_line(error)}; see {job.paths.stderr}") from error

    def cancel(self, job: Any) -> None:
        job.cancel(check=False)

    kill = cancel  # a second signal ends a worker at once; one that gets its first now has SLURM's KillWait


class Ray:
    """A Ray task for each run, on any machine of a running Ray cluster. The option `address` says which cluster; the
    others are those of Ray's tasks."""

    def __init__(self, options: Mapping[str, Any], gpus: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError("--launcher ray needs Ray: pip install 'sdpo-bench[ray]'") from error
        self.library = ray
        # A lost run is submitted again by us, which counts the losses and says so.
        given: dict[str, Any] = {"address": "auto", "num_cpus": 1, "num_gpus": gpus, **options, "max_retries": 0}
        address = given.pop("address")
        try:
            if not ray.is_initialized():
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise UserError(
                "--launcher ray: no Ray cluster is running here; start one with `ray start --head`, or give "
                "--launcher-options address=HOST:6379"
            ) from error
        try:
            self.task = ray.remote(make_run_there).options(**given)
        except (TypeError, ValueError) as error:
            raise UserError(f"--launcher-options: {_one_line(error)}") from error

    def submit(self, jobs: Sequence[Mapping[str, Any]]) -> list[Any]:
        return [self.task.remote(dict(job)) for job in jobs]

    def ended(self, job: Any) -> bool:
        return bool(self.library.wait([job], timeout=0)[0])

    def ending(self, job: Any) -> dict[str, Any]:
        errors = self.library.exceptions
        try:
            return dict(self.library.get(job))
        except errors.RayTaskError as error:
            raise UserError(f"a Ray worker can't make runs: {_last_line(error)}") from error
        except errors.RayError as error:
            raise Died(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error

    def cancel(self, job: Any) -> None:
        self.library.cancel(job, force=False)

    def kill(self, job: Any) -> None:
        self.library.cancel(job, force=True)


def _last_line(error: BaseException) -> str:
    """The exception at the end of a traceback that is an error's text."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith((" ", "-", "You can", "or at"))]
    return lines[-1] if lines else type(error).__name__
