"""A worker of `reproduce`: makes runs, and reports their progress.

On this machine it is a process that takes runs as JSON lines on stdin and reports on stdout (`main`). It serves many
runs, since importing PyTorch takes as long as some epochs; a crash takes only the current one. On a cluster it is a
function that a launcher calls for one run (`make_run_there`). The module imports nothing heavy, and nothing of the
package before the launcher's environment is set.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOCKED_SECONDS = 10.0  # between tries of a locked run


def jobs() -> queue.SimpleQueue[dict[str, Any]]:
    """Yields the jobs that arrive on stdin. When it closes, the parent is gone and the process exits at once. Every
    write of a run is atomic, so the run can continue from its last checkpoint."""
    received: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            received.put(json.loads(line))
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    return received


def prepare() -> None:
    """Loads what all runs of this process share."""
    import torch

    from sdpo_bench.records import provenance

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    provenance.code_version()  # of the code that is loaded now


def make_run(job: dict[str, Any], report: Callable[..., None]) -> dict[str, Any]:
    """Makes a run, or continues it from its checkpoint; with others that got the same job, if its "processes" are more
    than one. Returns how it ended: its "kind" is done, locked, failed, other_failed (another process, which says why),
    or stopped (by a signal)."""
    from sdpo_bench import interruption
    from sdpo_bench.distributed import SINGLE_PROCESS, OtherFailed, join
    from sdpo_bench.errors import UserError, is_full_disk
    from sdpo_bench.experiments.profiles import config_from_json
    from sdpo_bench.records.files import RecordError, RunLocked
    from sdpo_bench.training.loop import train

    sys.argv = job["argv"]  # provenance records the command that the user gave
    try:
        config = config_from_json(job["config"])
        ranks = join(config.device) if job["processes"] > 1 else SINGLE_PROCESS
        with interruption.watched():
            folder = Path(job["folder"])
            train(config, folder, resume=True, on_epoch=lambda event: report("progress", **event), ranks=ranks)
    except interruption.Interrupted as stop:
        return {"kind": "stopped", "code": interruption.exit_code(stop)}
    except RunLocked as error:
        return {"kind": "locked", "message": str(error)}
    except OtherFailed:
        return {"kind": "other_failed"}
    except (UserError, RecordError) as error:
        return {"kind": "failed", "message": str(error), "details": "", "full_disk": False}
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        details = traceback.format_exc()
        return {"kind": "failed", "message": message, "details": details, "full_disk": is_full_disk(error)}
    return {"kind": "done"}


def make_run_there(job: dict[str, Any]) -> dict[str, Any]:
    """Makes a run on the machine to which a launcher sent it. Returns how it ended, as `make_run`.

    The reports go to the file `job["reports"]` on the shared disk. A run that is locked is tried again for
    `job["patience"]` seconds: the lock of a lost machine is held until the disk's server gives it up.
    """
    os.environ.update(job["environment"])
    reports = Path(job["reports"])
    if not reports.exists():  # the launching process has made it
        raise FileNotFoundError(
            f"{reports} is not seen from {socket.gethostname()}: --results must be on a shared disk"
        )

    def report(kind: str, **values: Any) -> None:
        with open(reports, "a") as file:  # closed each time, so that other machines see what was written
            file.write(json.dumps({"kind": kind, **values}) + "\n")

    prepare()
    # SLURM's signal before a job's time is up: the state is saved as after any other.
    signal.signal(signal.SIGUSR2, lambda *_: signal.raise_signal(signal.SIGTERM))
    end = time.monotonic() + job["patience"]
    while (ending := make_run(job, report))["kind"] == "locked" and time.monotonic() < end:
        time.sleep(LOCKED_SECONDS)
    return ending


def main() -> None:
    # Libraries print to stdout; the reports get a channel of their own.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def report(kind: str, **values: Any) -> None:
        try:
            channel.write(json.dumps({"kind": kind, **values}) + "\n")
        except BrokenPipeError:
            os._exit(1)

    received = jobs()
    prepare()
    report("ready")
    while True:
        job = received.get()
        ending = make_run(job, report)
        if ending["kind"] == "stopped":
            sys.exit(ending["code"])
        report(**ending)
        if ending["kind"] == "failed" and job["processes"] > 1:
            os._exit(1)  # the others may wait for this process for ever; its parent ends them


if __name__ == "__main__":
    main()
